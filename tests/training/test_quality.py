"""Trainings that end in a bad state say so."""

import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_vae import make_vae
from toy_images import dot_store

import worldmodel as wm
from worldmodel.models import MDNRNN, MDNRNNConfig, SequenceBatch
from worldmodel.training import TrainingQualityWarning, TrainingResult, encode, quality
from worldmodel.training.trivial_models import TrivialModels

GOOD = TrainingResult(updates=1000, best_update=900, best_metrics={"nll_per_dim": 0.5}, seconds=1.0)


@pytest.mark.parametrize(
    ("in_use", "size", "bad"), [(0, 8, True), (1, 8, False), (3, 32, True), (4, 32, False), (0, 1, True), (1, 1, False)]
)
def test_a_v_with_few_latents_in_use_has_collapsed(in_use, size, bad):
    found = quality.vision_problems(in_use, size)
    assert bool(found) == bad
    if bad:
        assert f"{in_use} of {size} latents" in found[0]


def test_latents_in_use_are_those_whose_mean_varies_more_than_a_hundredth_of_the_total():
    mean = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.3, 0.01, 0.0])
    log_variance = torch.tensor([-3.0, 0.0, 0.0, 0.0]).expand(5000, 4)
    assert quality.latents_in_use(mean, log_variance) == 2


@pytest.mark.parametrize(("own", "linear", "bad"), [(1.0, 0.5, True), (0.5, 0.5, False), (0.505, 0.5, False)])
def test_an_m_worse_than_a_linear_gaussian_is_told(own, linear, bad):
    assert bool(quality.model_problems({"nll_per_dim": own}, {"linear_gaussian": linear})) == bad
    assert quality.model_problems({"nll_per_dim": own}, {}) == []


@pytest.mark.parametrize(("own", "bad"), [(-3.7, False), (-3.5, True)])
def test_an_m_close_to_a_linear_gaussian_that_is_nearly_exact_is_good(own, bad):
    baselines = {"repeat_last": -0.1, "linear_gaussian": -4.1}  # of CartPole
    assert bool(quality.model_problems({"nll_per_dim": own}, baselines)) == bad


@pytest.mark.parametrize(("best", "updates", "bad"), [(200, 1000, True), (400, 1000, False), (200, 400, False)])
def test_a_loss_that_rises_from_the_first_evaluation_on_is_told(best, updates, bad):
    result = TrainingResult(updates=updates, best_update=best, best_metrics={}, seconds=1.0)
    assert bool(quality.loss_problems(result, evaluate_every=200)) == bad


def steps(num=400, *, seed=0):
    """Make a batch of steps: z of two numbers, a step that ends with a probability of 0.1, and more if |z_0| is large."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num, 2, 2, generator=generator)
    ended = torch.rand(num, 1, generator=generator) < 0.1
    return SequenceBatch(
        z=z, action=torch.zeros(num, 1, 1), reward=z[:, :1, 0] + 0.1 * torch.randn(num, 1, generator=generator),
        terminated=ended, mask=torch.ones(num, 1, dtype=torch.bool),
    )  # fmt: skip


def predicted(model, batch, *, fitted_on=None):
    trivial = TrivialModels.fit([fitted_on or batch])
    return quality.Predictions.of(model.eval(), [batch], trivial)


def flat_model(bias, **config):
    """Make an M whose termination head says the same at each step."""
    model = MDNRNN(2, 1, MDNRNNConfig(hidden_size=3, **config))
    with torch.no_grad():
        model.termination_head.weight.zero_()
        model.termination_head.bias.fill_(bias)
    return model


@pytest.mark.parametrize(("bias", "bad"), [(-2.1972, False), (-8.0, True), (3.0, True)])
def test_a_termination_head_worse_than_the_base_rate_is_told(bias, bad):
    batch = replace(steps(), terminated=torch.arange(400).reshape(400, 1) % 10 == 0)  # a rate of 0.1, log-odds -2.197
    found = quality.termination_problems(predicted(flat_model(bias), batch))
    assert bool(found) == bad
    assert all("worse than the rate" in one for one in found)


def test_a_termination_head_that_predicts_the_rate_is_told_only_if_a_regression_does_better():
    by_chance = steps(4000)
    rate = float(by_chance.terminated.double().mean())
    model = flat_model(float(np.log(rate / (1 - rate))))
    assert quality.termination_problems(predicted(model, by_chance, fitted_on=steps(4000, seed=1))) == []
    far = replace(by_chance, terminated=by_chance.z[:, :1, 0].abs() > 1.7)  # in both directions, so not linear in z
    rate = float(far.terminated.double().mean())
    model = flat_model(float(np.log(rate / (1 - rate))))
    (message,) = quality.termination_problems(predicted(model, far))
    assert "hardly predicts better than the rate" in message


def test_few_terminations_are_not_judged():
    few = replace(steps(), terminated=torch.arange(400).reshape(400, 1) < 9)
    assert quality.termination_problems(predicted(flat_model(9.0), few)) == []


@pytest.mark.parametrize(("slope", "bad"), [(0.0, True), (0.05, True), (0.3, False), (1.0, False)])
def test_a_reward_head_that_has_learnt_little_is_told(slope, bad):
    batch = steps(2000)
    predictions = predicted(MDNRNN(2, 1, MDNRNNConfig(hidden_size=3)), batch)
    found = quality.reward_problems(replace(predictions, mean_reward=slope * batch.z[:, 0, 0].double()))
    assert bool(found) == bad


def test_a_reward_head_is_not_told_of_rewards_that_no_one_can_predict_or_that_are_constant():
    noise = replace(steps(2000), reward=torch.randn(2000, 1, generator=torch.Generator().manual_seed(5)))
    constant = replace(noise, reward=torch.ones(2000, 1))
    model = MDNRNN(2, 1, MDNRNNConfig(hidden_size=3))
    for batch in (noise, constant):
        predictions = predicted(model, batch, fitted_on=replace(steps(2000, seed=3), reward=batch.reward.flip(0)))
        assert quality.reward_problems(replace(predictions, mean_reward=predictions.mean_reward * 0 + 0.2)) == []


@pytest.mark.parametrize("factorization", ["joint", "per_dimension"])
def test_dead_components_are_counted(factorization):
    model = MDNRNN(2, 1, MDNRNNConfig(hidden_size=3, num_components=3, factorization=factorization))
    predictions = predicted(model, steps())
    assert predictions.weights.shape == (3,)
    assert quality.dead_components(predictions) == ""
    dead = replace(predictions, weights=torch.tensor([0.995, 0.004, 0.001]))
    assert "1 of 3 components" in quality.dead_components(dead)
    (message,) = quality.model_problems({"nll_per_dim": 1.0}, {"linear_gaussian": 0.0}, quality.dead_components(dead))
    assert "not below 0.000, with 1 of 3 components" in message


def test_a_logistic_regression_finds_known_log_odds_and_a_linear_one_known_coefficients():
    batch = steps(40_000)
    generator = torch.Generator().manual_seed(7)
    log_odds = -2 + 1.5 * batch.z[:, 0, 0].double() - 0.5 * batch.z[:, 0, 1].double().square()
    ended = torch.rand(40_000, generator=generator, dtype=torch.float64) < log_odds.sigmoid()
    trivial = TrivialModels.fit([replace(batch, terminated=ended.unsqueeze(-1))])
    found, reward = trivial.predict(batch)
    assert float((found - log_odds).abs().mean()) < 0.1
    torch.testing.assert_close(reward, batch.z[:, 0, 0].double(), atol=0.02, rtol=0)


@pytest.mark.parametrize(("updates", "held_out", "judged"), [(199, True, False), (200, True, True), (200, False, False)])
def test_short_trainings_and_those_without_held_out_data_are_not_judged(updates, held_out, judged):
    assert quality.judge(TrainingResult(updates, updates, {}, 1.0), held_out=held_out) == judged


def bad_fit(path, **training):
    wm.collect("CartPole-v1", out=path / "data", num_episodes=20, seed=0)
    config = wm.TrainingConfig(num_updates=200, evaluate_every=100, learning_rate=3.0, final_learning_rate=3.0, **training)
    small = wm.MDNRNNConfig(hidden_size=4, num_components=1)
    return wm.fit(path / "data", out=path / "world", config=small, training_config=config)


def test_a_bad_fit_warns_and_its_directory_keeps_the_warning(tmp_path):
    with pytest.warns(TrainingQualityWarning, match=r"M predicts worse than a linear Gaussian: .* see docs/"):
        world = bad_fit(tmp_path)
    (message,) = [one for one in world.provenance["warnings"] if "linear Gaussian" in one]
    assert f"{world.provenance['training']['best_metrics']['nll_per_dim']:.3f}" in message
    assert wm.WorldModel.from_pretrained(tmp_path / "world").provenance["warnings"] == world.provenance["warnings"]


@pytest.fixture
def collapsed(tmp_path):
    """Make a V whose mean is the same for every image, and a store of images."""
    dot_store(tmp_path / "frames", 12)
    vision = make_vae()
    with torch.no_grad():
        for parameter in (*vision.mean_head.parameters(), *vision.log_variance_head.parameters()):
            parameter.zero_()
    return vision, tmp_path / "frames"


def test_encoding_with_a_collapsed_v_warns(collapsed, tmp_path, monkeypatch):
    vision, frames = collapsed
    monkeypatch.setattr(encode, "LEAST_OBSERVATIONS", 10)
    with pytest.warns(TrainingQualityWarning, match=f"V has collapsed: 0 of {vision.latent_size} latents"):
        wm.encode_store(frames, vision=vision, out=tmp_path / "z")


def test_a_fit_with_a_collapsed_v_warns_and_keeps_it(collapsed, tmp_path):
    vision, frames = collapsed
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", TrainingQualityWarning)
        world = wm.fit(
            frames,
            out=tmp_path / "world",
            vision=vision,
            config=MDNRNNConfig(hidden_size=4, num_components=1, latent_head="MixtureHead"),
            data_config=wm.DataConfig(window=8, batch_size=4, test_fraction=0.2),
            training_config=wm.TrainingConfig(num_updates=200, evaluate_every=100),
        )
    assert any("V has collapsed: 0 of" in str(one.message) for one in found)
    assert any("V has collapsed: 0 of" in one for one in world.provenance["warnings"])
    assert "V has collapsed" in str(world)


def test_a_good_fit_says_nothing(tmp_path):
    wm.collect("CartPole-v1", out=tmp_path / "data", num_episodes=100, seed=0)
    config = wm.TrainingConfig(num_updates=600, learning_rate=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainingQualityWarning)
        world = wm.fit(tmp_path / "data", out=tmp_path / "world", training_config=config)
    assert "warnings" not in world.provenance


def test_a_program_prints_warnings_on_one_line():
    code = (
        "import warnings\nfrom worldmodel.cli import main\n"
        "warnings.showwarning = main.show_warning\nwarnings.warn('two\\n lines')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "warning: two lines\n"


def test_the_pages_that_warnings_name_exist():
    from pathlib import Path

    root = Path(__file__).parents[2]
    batch = replace(steps(2000), terminated=torch.arange(2000).reshape(2000, 1) % 10 == 0)
    bad = predicted(flat_model(9.0), batch)
    bad = replace(bad, mean_reward=bad.reward * 0)
    risen = TrainingResult(updates=1000, best_update=100, best_metrics={"nll_per_dim": 1.0}, seconds=1.0)
    flat = torch.zeros(50, 8), torch.zeros(50, 8)
    messages = quality.world_problems(risen, {"linear_gaussian": 0.0}, bad, [flat], evaluate_every=100)
    assert len(messages) == 5
    for message in messages:
        page = message.rpartition("see ")[2]
        assert (root / page).is_file(), page
