"""Numbers that users meet without choosing them: defaults, rates, boundaries of checks."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from toy_data import walking_episode, write_store

from worldmodel.data import EpisodeCollection
from worldmodel.mixtures import LatentLayout, LatentPart
from worldmodel.models import DEFAULT_OUTCOME_SIZE, MDNRNN, MDNRNNConfig, SequenceBatch
from worldmodel.runtime import RunConfig, files
from worldmodel.runtime.ranks import Ranks
from worldmodel.training import (
    DataConfig,
    FrameConfig,
    TrainingConfig,
    TrainingResult,
    WindowSampler,
    baseline_nll,
    calibrate_termination,
    decisions,
    encoding,
    fit_data,
    head_choice,
    learning_rate,
    likelihood,
    optimizers,
    platt_scaling,
    quality,
    shared_loss,
    termination_scores,
)
from worldmodel.training.shared_loss import SharedLoss
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
    assert {field.name: field.default for field in dataclasses.fields(config)} == DEFAULTS[config]


def test_the_constants_are_those_of_the_papers_and_the_pages():
    assert (optimizers.MOMENTUM, optimizers.ADAM_RMS, optimizers.ITERATIONS, optimizers.MIN_MATRIX_SIZE) == (0.95, 0.2, 5, 16)
    assert (quality.LEAST_UPDATES, quality.MAX_JUDGED, quality.FEW_IN_USE, quality.LEAST_WEIGHT) == (200, 20, 8, 0.01)
    assert (likelihood.MIN_TERMINATIONS, head_choice.TRIALS, head_choice.MAX_DIMENSIONS) == (10, (0.03, 0.06), 64)
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


@pytest.fixture
def episodes(tmp_path):
    return EpisodeCollection([write_store(tmp_path / "data", [walking_episode(number, 4) for number in range(3)])])


def recorded(tmp_path, **entries):
    """The directory of a run with this record."""
    out = tmp_path / "out"
    out.mkdir()
    files.write_json(out / decisions.FIT_FILE, entries, format=decisions.FIT_FORMAT, version=decisions.FIT_VERSION)
    return out


def test_a_new_fit_decides_what_is_open_and_keeps_what_is_given(episodes, tmp_path):
    new = decisions.decide(None, episodes, tmp_path / "out", RunConfig())
    assert (new.outcome_size, new.min_scale, new.termination_head) == (DEFAULT_OUTCOME_SIZE, None, True)
    given = MDNRNNConfig(outcome_size=3, min_scale=0.2, termination_head=False)
    kept = decisions.decide(given, episodes, tmp_path / "out", RunConfig())
    assert (kept.outcome_size, kept.min_scale, kept.termination_head) == (3, 0.2, False)


@pytest.mark.parametrize(("run", "resumed"), [({}, True), ({"overwrite": True}, False), ({"resume": False}, False)])
def test_only_a_run_that_is_resumed_takes_what_it_has_recorded(episodes, tmp_path, run, resumed):
    model = {"latent_head": "MixtureHead", "min_scale": 0.07}
    out = recorded(tmp_path, mdnrnn=model, training_config={"learning_rate": 0.004})
    found = decisions.decide(None, episodes, out, RunConfig(**run))
    assert found.latent_head == ("MixtureHead" if resumed else "auto")
    assert found.min_scale == (0.07 if resumed else None)
    assert found.outcome_size == (0 if resumed else DEFAULT_OUTCOME_SIZE)
    rate = decisions.with_rate(TrainingConfig(), MDNRNN(2, 3, MDNRNNConfig(hidden_size=4)), out, RunConfig(**run)).learning_rate
    assert rate == (0.004 if resumed else 6e-3)


def test_a_resumed_run_keeps_what_is_given_and_what_was_left_open(episodes, tmp_path):
    model = {"latent_head": "MixtureHead", "min_scale": 0.07, "outcome_size": 5}
    out = recorded(tmp_path, mdnrnn=model, latent_head_choice=True, sigma_floors=True)
    found = decisions.decide(None, episodes, out, RunConfig())
    assert (found.latent_head, found.min_scale, found.outcome_size) == ("auto", None, 5)
    given = decisions.decide(MDNRNNConfig(min_scale=0.2, latent_head="AutoregressiveHead"), episodes, out, RunConfig())
    assert (given.min_scale, given.latent_head) == (0.2, "AutoregressiveHead")


def test_a_given_model_leaves_nothing_open():
    layout = LatentLayout((LatentPart(name="x", kind="continuous", start=0, size=2),))
    assert decisions.left_open(None, layout) == {"latent_head_choice": False, "sigma_floors": False}
    assert decisions.left_open(MDNRNNConfig(), layout) == {"latent_head_choice": True, "sigma_floors": True}
    assert decisions.left_open(MDNRNNConfig(min_scale=0.1), layout) == {"latent_head_choice": True, "sigma_floors": False}


def test_the_weight_of_a_component_is_that_of_the_number_that_uses_it_most():
    torch.manual_seed(0)
    model = MDNRNN(2, 1, MDNRNNConfig(hidden_size=3, num_components=3)).eval()
    batch = SequenceBatch(
        torch.randn(50, 2, 2), torch.zeros(50, 1, 1), torch.randn(50, 1), torch.arange(50).reshape(50, 1) % 5 == 0,
        torch.ones(50, 1).bool(),
    )  # fmt: skip
    found = quality.Predictions.of(model, [batch, batch], TrivialModels.fit([batch]))
    weights = model(batch.z[:, :-1], batch.action)[0].latent.log_weights.exp().double()  # (B, 1, K, D)
    torch.testing.assert_close(found.weights, weights.mean(dim=(0, 1)).amax(dim=-1).detach())
    assert quality.dead_components(found) == ""
    dead = dataclasses.replace(found, weights=torch.tensor([0.99, 0.005, 0.02]))
    assert quality.dead_components(dead) == ", with 2 of 3 components of the mixture in use"
    assert len(found.ended) == len(found.log_odds) == len(found.mean_reward) == 100


def test_without_a_termination_head_its_quality_is_not_judged():
    ended = torch.arange(100).double() % 5 == 0
    numbers = torch.zeros(100).double()
    fields = {"trivial_log_odds": numbers, "reward": numbers, "mean_reward": None, "trivial_reward": numbers, "weights": None}
    assert quality.termination_problems(quality.Predictions(ended=ended.double(), log_odds=None, **fields)) == []
    wrong = quality.Predictions(ended=ended.double(), log_odds=numbers + 9, **fields)
    assert "worse than the rate" in quality.termination_problems(wrong)[0]
    assert quality.dead_components(wrong) == ""


def test_held_out_episodes_are_those_of_the_split_unless_there_are_test_data(episodes, tmp_path):
    split = np.array([0, 2]), np.array([1])
    assert [one.episode_id for one in fit_data.held_out(episodes, split, None)] == [1]
    tests = EpisodeCollection([write_store(tmp_path / "tests", [walking_episode(number, 3) for number in (7, 8)])])
    assert [one.episode_id for one in fit_data.held_out(episodes, split, tests)] == [7, 8]


def test_ranks_encode_all_episodes_in_blocks():
    size = 2 * encoding.EPISODES_AT_ONCE
    blocks = list(encoding._blocks(range(size + 3), Ranks(size=2)))
    assert blocks == [range(size), range(size, size + 3)]
    assert list(encoding._blocks([], Ranks())) == []


@dataclasses.dataclass(frozen=True)
class MeanBatch:
    """A batch whose loss is its mean."""

    values: torch.Tensor

    @property
    def weight(self):
        return len(self.values)


class Mean(torch.nn.Module):
    """A model whose loss is the mean of the batch."""

    def loss(self, batch, *, generator=None):
        return batch.values.mean(), {"mean": batch.values.mean()}


@pytest.mark.parametrize(("rank", "share"), [(0, 0.0), (1, 1.0)])
def test_a_rank_without_rows_counts_nothing(monkeypatch, rank, share):
    monkeypatch.setattr(shared_loss, "DistributedDataParallel", lambda model: model)
    monkeypatch.setattr(Ranks, "sum", lambda self, values: values)
    batch = MeanBatch(torch.tensor([3.0]))
    loss, terms = SharedLoss(Mean(), Ranks(rank, 2))(batch)
    assert loss.item() == 2 * share * 3.0
    assert terms["loss"].item() == terms["mean"].item() == share * 3.0
