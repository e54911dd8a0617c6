"""Numbers that users meet without choosing them: defaults, rates, boundaries of checks."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch

from worldmodel.models import MDNRNN, MDNRNNConfig, SequenceBatch
from worldmodel.training import (
    DataConfig,
    FrameConfig,
    TrainingConfig,
    TrainingResult,
    WindowSampler,
    baseline_nll,
    calibrate_termination,
    head_choice,
    learning_rate,
    likelihood,
    optimizers,
    platt_scaling,
    quality,
    termination_scores,
)
from worldmodel.training.trivial_models import TrivialModels

DEFAULTS = {
    TrainingConfig: {
        "num_updates": 2000,
        "learning_rate": None,
        "final_learning_rate": 1e-5,
        "warmup_updates": 0,
        "clip_norm": 10.0,
        "clip_value": None,
        "precision": "float32",
        "evaluate_every": 200,
        "max_test_batches": 50,
        "patience": None,
        "optimizer": "adam",
        "calibrate": False,
    },
    FrameConfig: {"batch_size": 256, "test_fraction": 0.05, "min_length": 1, "leave_out": ()},
    DataConfig: {
        "window": 64,
        "burn_in": 0,
        "batch_size": 64,
        "test_fraction": 0.1,
        "min_length": 1,
        "leave_out": (),
        "resident": None,
        "kinds": (),
        "layout": (),
    },
}


@pytest.mark.parametrize("config", DEFAULTS)
def test_the_defaults_are_those_that_the_results_were_measured_with(config):
    assert {field.name: field.default for field in fields(config)} == DEFAULTS[config]


def test_the_constants_are_those_of_the_papers_and_the_pages():
    assert (optimizers.MOMENTUM, optimizers.ADAM_RMS, optimizers.ITERATIONS, optimizers.MIN_MATRIX_SIZE) == (0.95, 0.2, 5, 16)
    assert (quality.LEAST_UPDATES, quality.MAX_JUDGED, quality.FEW_IN_USE, quality.LEAST_WEIGHT) == (200, 20, 8, 0.01)
    assert (likelihood.MIN_TERMINATIONS, head_choice.PILOT_FRACTION, head_choice.MAX_DIMENSIONS) == (10, 0.03, 64)
    assert head_choice.CHOICE_STAMP == {"format": "worldmodel.latent_head", "version": 1}


@pytest.mark.parametrize(("hidden_size", "rate"), [(None, 3e-3), (16, 6e-3), (128, 6e-3), (512, 3e-3)])
def test_an_open_learning_rate_is_that_of_the_model(hidden_size, rate):
    assert TrainingConfig().resolve(hidden_size=hidden_size).learning_rate == pytest.approx(rate)
    assert TrainingConfig(learning_rate=0.1).resolve(hidden_size=hidden_size).learning_rate == 0.1


def test_the_rate_rises_in_the_warm_up_and_falls_along_a_cosine():
    config = TrainingConfig(num_updates=7, warmup_updates=2, learning_rate=0.2, final_learning_rate=0.1)
    cosine = [0.1 + 0.05 * (1 + math.cos(math.pi * part / 4)) for part in range(5)]
    assert [learning_rate(config, update) for update in range(7)] == pytest.approx([0.1, 0.2, *cosine])
    assert learning_rate(config, 100) == pytest.approx(0.1)  # after the last update
    open_rate = TrainingConfig(num_updates=7, final_learning_rate=0.0)
    assert learning_rate(open_rate, 0) == pytest.approx(3e-3)


def test_one_termination_that_is_found_is_all_of_them():
    scores = termination_scores(torch.tensor([1.0, -1.0]).double(), torch.tensor([1.0, 0.0]).double())
    assert scores["recall"] == 1
    assert termination_scores(torch.tensor([1.0]).double(), torch.tensor([0.0]).double())["recall"] == 0


def test_the_targets_of_platt_are_inside_of_0_and_1():
    ended = torch.tensor([1.0] * 3 + [0.0] * 5).double()
    scale, shift = platt_scaling(torch.where(ended > 0, 1.0, -1.0).double(), ended)
    high, low = math.log((4 / 5) / (1 / 5)), math.log((1 / 7) / (6 / 7))  # two values of x: the fit meets the targets
    assert (scale + shift, shift - scale) == pytest.approx((high, low), abs=1e-4)


@pytest.mark.parametrize(("count", "calibrated"), [(10, True), (9, False)])
def test_ten_terminations_in_each_half_are_enough(count, calibrated):
    ended = (torch.arange(200) % 100 < count).reshape(200, 1)
    torch.manual_seed(0)
    model = MDNRNN(1, 1, MDNRNNConfig(hidden_size=2)).eval()
    batch = SequenceBatch(torch.randn(200, 2, 1), torch.zeros(200, 1, 1), torch.zeros(200, 1), ended, ended | True)
    scores = calibrate_termination(model, [batch])
    assert (scores["after"] != scores["before"]) == calibrated


@pytest.mark.parametrize(("updates", "told"), [(600, True), (599, False)])
def test_three_evaluations_show_a_rising_loss(updates, told):
    result = TrainingResult(updates=updates, best_update=200, best_metrics={}, seconds=1.0)
    assert bool(quality.loss_problems(result, evaluate_every=200)) == told


def test_a_baseline_is_the_mean_over_the_steps():
    z = torch.tensor([[[0.0], [1.0]], [[0.0], [3.0]]])
    batch = SequenceBatch(z, torch.zeros(2, 1, 1), torch.zeros(2, 1), torch.zeros(2, 1).bool(), torch.ones(2, 1).bool())
    found = baseline_nll([batch], [batch], min_scale=torch.tensor([0.0]))
    assert found["repeat_last"] == pytest.approx(0.5 + 0.5 * math.log(2 * math.pi * 5))  # the mean of 1 and 9 is 5
    assert found["linear_gaussian"] == pytest.approx(0.5 + 0.5 * math.log(2 * math.pi))  # around the mean 2


def steps(z, reward, ended=None):
    """A batch of steps from z (N,) without actions, and their rewards (N,)."""
    z = torch.stack([z, z], dim=1).unsqueeze(-1).float()
    ended = torch.zeros(len(z), 1).bool() if ended is None else ended.reshape(-1, 1)
    return SequenceBatch(z, torch.zeros(len(z), 1, 0), reward.reshape(-1, 1).float(), ended, torch.ones(len(z), 1).bool())


def test_a_regression_in_other_units_predicts_the_same():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(500, generator=generator)
    reward = 3 * z + 1
    for scale, shift in ((1.0, 0.0), (1e-3, 1.0), (100.0, -5.0)):
        batch = steps(scale * z + shift, reward)
        _, predicted = TrivialModels.fit([batch]).predict(batch)
        torch.testing.assert_close(predicted, reward.double(), atol=0.1, rtol=0)


def test_a_logistic_regression_that_must_halve_its_steps_still_ends_at_the_optimum():
    z = torch.linspace(-1, 1, 400)
    ended = (z > 0.9) | (torch.arange(400) % 97 == 0)
    batch = steps(z, z, ended)
    log_odds, _ = TrivialModels.fit([batch]).predict(batch)
    assert float(log_odds.sigmoid().sum()) == pytest.approx(float(ended.sum()), abs=0.05)  # as at every optimum


def test_a_batch_may_hold_one_window():
    sampler = WindowSampler(np.arange(2), np.array([3, 2]), window=1, batch_size=1)
    assert sampler.num_batches(0) == 5
    for name in ("batch_size", "window"):
        with pytest.raises(ValueError, match=f"{name}: expected an integer >= 1, got 0"):
            WindowSampler(np.arange(1), np.array([3]), **{"window": 1, "batch_size": 1, name: 0})


def test_the_direction_of_a_small_gradient_is_that_of_a_large_one():
    matrix = torch.randn(16, 20, generator=torch.Generator().manual_seed(0))
    matrix /= matrix.norm()
    small = optimizers.orthogonalize(1.5e-7 * matrix, torch.float32)
    torch.testing.assert_close(small, optimizers.orthogonalize(matrix, torch.float32), atol=1e-5, rtol=1e-5)
    assert not optimizers.orthogonalize(torch.zeros(16, 20), torch.float32).any()


class OneWindow:
    """Held-out data of one batch with windows of 0, 1 and 2 steps."""

    def num_batches(self, epoch):
        return 1

    def batch(self, epoch, index, *, generator=None):
        mask = torch.tensor([[False, False], [True, False], [True, True]])
        z, zeros = torch.zeros(3, 3, 1), torch.zeros(3, 2)
        return SequenceBatch(z, torch.zeros(3, 2, 1), zeros, zeros.bool(), mask)


def test_heads_are_compared_on_every_window_with_a_step():
    model = MDNRNN(1, 1, MDNRNNConfig(hidden_size=2))
    assert head_choice._held_out(model, OneWindow(), TrainingConfig(), 0).shape == (2,)


def test_of_two_equal_heads_the_simple_one_is_chosen():
    torch.manual_seed(0)
    model = MDNRNN(1, 1, MDNRNNConfig(hidden_size=2))
    candidates = dict.fromkeys((head_choice.SIMPLE, head_choice.RICH), model)
    choice = head_choice.choose_latent_head(candidates, OneWindow(), OneWindow(), TrainingConfig(num_updates=1), 0)
    assert choice == {"chosen": head_choice.SIMPLE, "gain": 0.0, "se": 0.0, "updates": 1}
