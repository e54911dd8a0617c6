"""The figure of the disagreement of an ensemble."""

import numpy as np
import pytest
import torch
from test_ensemble import ensemble_world

from worldmodel.dream import Rollout
from worldmodel.plots import draw_dream_uncertainty, draw_uncertainty


def rollout(uncertainty, mask):
    b, t = mask.shape
    return Rollout(torch.zeros(b, t + 1, 1), torch.zeros(b, t), torch.zeros(b, t), ~mask, mask, uncertainty)


def test_the_figure_has_the_median_of_the_running_dreams_and_the_real_episode():
    mask = torch.tensor([[True, True, True], [True, True, False], [True, True, False]])
    values = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 0.0], [6.0, 9.0, 0.0]])
    (axes,) = draw_uncertainty(rollout(values, mask), real=torch.tensor([5.0, 7.0])).axes
    found = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    np.testing.assert_allclose(found["median of the dreams"], [(1, 2), (2, 4), (3, 3)])
    np.testing.assert_allclose(found["real episode"], [(1, 5), (2, 7)])


def test_a_rollout_without_uncertainty_is_refused():
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="expected one of a world model with an ensemble"):
        draw_uncertainty(rollout(None, mask))


def test_the_dreams_of_a_world_are_drawn():
    assert draw_dream_uncertainty(ensemble_world()).axes[0].get_lines()
