"""Summary and picture of the training of a world whose observations are choices only."""

from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium import spaces
from toy_data import walking_episode, write_store

from worldmodel.cli.train_mdnrnn import report
from worldmodel.data import Episode
from worldmodel.models import MDNRNNConfig, WorldModel
from worldmodel.training import TrainingConfig, fit


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("choices")

    def make(number):
        state = np.random.default_rng(number).integers(4, size=13)
        return Episode(**{**vars(walking_episode(number, 12)), "observations": state})

    store = write_store(path / "data", [make(i) for i in range(12)], observation_space=spaces.Discrete(4))
    training = TrainingConfig(num_updates=20, evaluate_every=10)
    fit(store.path, out=path / "world", config=MDNRNNConfig(hidden_size=4), training_config=training)
    return path


def test_the_summary_of_a_training_names_the_kinds_and_their_units(directory):
    text = report(WorldModel.from_pretrained(directory / "world"), "runs/x").text
    assert "layout of z\n  observation: choice of 4\n" in text
    assert "held-out negative log-likelihood, nats per choice\n  this model" in text
    assert "nats per dimension" not in text


def test_the_report_draws_the_likelihood_of_choices_if_there_are_no_densities(directory):
    figures = pytest.importorskip("matplotlib.figure")
    from worldmodel.plots.report import draw_training

    axes = figures.Figure().add_subplot()
    draw_training(axes, [SimpleNamespace(directory=directory, number=1)])
    assert axes.get_ylabel() == "negative log-likelihood, nats per choice"
    assert len(axes.lines[0].get_xdata()) == 2
