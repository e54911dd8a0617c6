"""The baselines against least squares in NumPy and likelihoods by hand."""

import math

import numpy as np
import pytest
import torch

from worldmodel.models import SequenceBatch
from worldmodel.training import baseline_nll


def batches(count, seed, *, offset=0.0):
    """Sample a linear process z' = 0.8 z + M a + 0.3 + noise, with arbitrary values in masked steps."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        action = torch.randn(5, 7, 2, generator=generator)
        z = torch.zeros(5, 8, 3)
        z[:, 0] = torch.randn(5, 3, generator=generator)
        for t in range(7):
            noise = torch.tensor([0.1, 0.5, 1.0]) * torch.randn(5, 3, generator=generator)
            z[:, t + 1] = 0.8 * z[:, t] + action[:, t] @ torch.tensor([[1.0, 0, 2], [0, 1, 1]]) + 0.3 + noise
        mask = torch.rand(5, 7, generator=generator) < 0.8
        mask[0, -1] = False
        z[0, -1] = 1e3  # no step that counts touches it
        result.append(SequenceBatch(z + offset, action, torch.zeros(5, 7), torch.zeros(5, 7, dtype=torch.bool), mask))
    return result


def steps(parts):
    """Regressors [z, a, 1] and targets of the steps that count, in float64."""
    x = np.concatenate([torch.cat([b.z[:, :-1], b.action], -1)[b.mask].double().numpy() for b in parts])
    y = np.concatenate([b.z[:, 1:][b.mask].double().numpy() for b in parts])
    return np.concatenate([x, np.ones((len(x), 1))], axis=1), y


def gaussian_nll(error, variance):
    """Mean over steps and dimensions of -log N(error; 0, variance)."""
    return np.mean(0.5 * error**2 / variance + 0.5 * np.log(2 * math.pi * variance))


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_baselines_match_direct_least_squares(offset):
    train, test = batches(6, 0, offset=offset), batches(3, 1, offset=offset)
    floor = np.array([0.05, 0.2, 0.1])
    result = baseline_nll(train, test, min_scale=torch.tensor(floor))
    (x, y), (test_x, test_y) = steps(train), steps(test)
    weights = np.linalg.lstsq(x, y, rcond=None)[0]
    linear = gaussian_nll(test_y - test_x @ weights, ((y - x @ weights) ** 2).mean(axis=0) + floor**2)
    repeat = gaussian_nll(test_y - test_x[:, :3], ((y - x[:, :3]) ** 2).mean(axis=0) + floor**2)
    assert result["linear_gaussian"] == pytest.approx(linear, abs=1e-5)
    assert result["repeat_last"] == pytest.approx(repeat, abs=1e-9)
    assert result["linear_gaussian"] < result["repeat_last"]


def test_repeat_last_by_hand():
    z = torch.tensor([[[0.0], [1.0], [3.0]]])  # changes 1 and 2: mean square 2.5
    ends = torch.zeros(1, 2, dtype=torch.bool)
    batch = SequenceBatch(z, torch.zeros(1, 2, 1), torch.zeros(1, 2), ends, ~ends)
    result = baseline_nll([batch], [batch], min_scale=torch.tensor([1e-6]))
    assert result["repeat_last"] == pytest.approx(0.5 + 0.5 * math.log(2 * math.pi * 2.5), abs=1e-6)


def test_a_constant_dimension_has_the_variance_of_the_floor():
    ends = torch.zeros(2, 9, dtype=torch.bool)
    batch = SequenceBatch(torch.full((2, 10, 1), 4.0), torch.zeros(2, 9, 1), torch.zeros(2, 9), ends, ~ends)
    result = baseline_nll([batch], [batch], min_scale=torch.tensor([0.01]))
    expected = 0.5 * math.log(2 * math.pi) + math.log(0.01)
    assert result == pytest.approx({"repeat_last": expected, "linear_gaussian": expected}, abs=1e-3)


def test_collinear_one_hot_actions_give_finite_results():
    parts = batches(4, 0)
    for batch in parts:
        batch.action.copy_(torch.nn.functional.one_hot((batch.action[..., 0] > 0).long(), 2))  # sums to the constant 1
    x, y = steps(parts)
    weights = np.linalg.lstsq(x, y, rcond=None)[0]
    expected = gaussian_nll(y - x @ weights, ((y - x @ weights) ** 2).mean(axis=0))
    result = baseline_nll(parts, parts, min_scale=torch.full((3,), 1e-6))
    assert result["linear_gaussian"] == pytest.approx(expected, abs=1e-4)


def test_steps_outside_the_mask_do_not_count():
    train, test = batches(3, 0), batches(2, 1)
    expected = baseline_nll(train, test, min_scale=torch.full((3,), 0.1))
    for batch in train + test:
        batch.action[~batch.mask] = 77.0
    assert baseline_nll(train, test, min_scale=torch.full((3,), 0.1)) == expected


@pytest.mark.parametrize("name", ["train", "test"])
def test_batches_without_steps_raise(name):
    given = {"train": batches(1, 0), "test": batches(1, 1)} | {name: []}
    with pytest.raises(ValueError, match=f"{name}: expected at least one step, got none"):
        baseline_nll(given["train"], given["test"], min_scale=torch.full((3,), 0.1))
