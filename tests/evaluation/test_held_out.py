"""Held-out likelihood and open-loop forecasts of recorded data, without an environment."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import worldmodel as wm
from worldmodel.data import ConversionConfig, EpisodeStore, from_arrays
from worldmodel.dream import Dreams
from worldmodel.evaluation import crps, forecasting, held_out, likelihood, open_loop
from worldmodel.evaluation.forecasting import _Scores
from worldmodel.mixtures import LatentLayout, LatentPart


def oscillator(seed, lengths, out, *, gear=True, config=None):
    """Episodes of a driven oscillator whose gear is the sign of its position."""
    rng = np.random.default_rng(seed)
    positions, gears, actions, rewards, ends = [], [], [], [], []
    for length in lengths:
        state, rows, action = rng.normal(size=2), [], rng.uniform(-1, 1, size=length)
        for force in [*action, 0.0]:
            rows.append(state)
            x, v = state
            state = np.array([x + 0.1 * v, 0.98 * v - 0.1 * x + 0.1 * force]) + 0.02 * rng.normal(size=2)
        positions.append(np.array(rows))
        gears.append((positions[-1][:, 0] > 0).astype(int))
        actions.append(action)
        rewards.append(positions[-1][1:, 0])
        ends.append(np.arange(length) == (length - 1 if length % 2 else -1))
    observations = {"state": positions, "gear": gears} if gear else {"state": positions}
    return from_arrays(observations, actions, rewards, out=out, terminations=ends, config=config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A world of 40 episodes, its data, and a test store of other lengths."""
    path = tmp_path_factory.mktemp("held_out")
    oscillator(0, np.random.default_rng(0).integers(20, 90, 40), path / "may")
    oscillator(1, [7, 150, 64, 65, 1, 30], path / "june", config=ConversionConfig(like=path / "may"))
    config, training = wm.MDNRNNConfig(hidden_size=24), wm.TrainingConfig(num_updates=60)
    world = wm.fit(path / "may", out=path / "world", config=config, training_config=training)
    return world, path


def test_crps_is_that_of_a_normal_distribution():
    """sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), Gneiting et al. (2005)."""
    generator = torch.Generator().manual_seed(0)
    count, mean, scale = 4000, 1.5, 2.0
    value = torch.linspace(-6, 8, 15, dtype=torch.float64)
    samples = mean + scale * torch.randn(count, 200, dtype=torch.float64, generator=generator)
    z, unit = (value - mean) / scale, Normal(0.0, 1.0)
    exact = scale * (z * (2 * unit.cdf(z) - 1) + 2 * unit.log_prob(z).exp() - 1 / math.sqrt(math.pi))
    for y, expected in zip(value, exact, strict=True):
        found = crps(samples, y.expand(200))  # 200 independent estimates
        assert abs(found.mean() - expected) < 4 * found.std() / 200**0.5


def test_crps_is_that_of_a_mixture_of_normal_distributions():
    """Sum of w A(y - m, s) less half of it over pairs; A(m, s) = 2 s phi(m / s) + m (2 Phi(m / s) - 1) (Grimit et al. 2006)."""
    weights, means, scales = (torch.tensor(x, dtype=torch.float64) for x in ([0.3, 0.7], [-1.0, 2.0], [0.5, 1.5]))
    unit = Normal(0.0, 1.0)

    def a(mean, scale):
        return 2 * scale * unit.log_prob(mean / scale).exp() + mean * (2 * unit.cdf(mean / scale) - 1)

    value = 0.7
    pairs = a(means - means[:, None], (scales**2 + scales[:, None] ** 2).sqrt())
    exact = (weights * a(value - means, scales)).sum() - 0.5 * (weights * weights[:, None] * pairs).sum()
    generator = torch.Generator().manual_seed(0)
    which = torch.multinomial(weights, 4000 * 200, replacement=True, generator=generator)
    samples = means[which] + scales[which] * torch.randn(len(which), dtype=torch.float64, generator=generator)
    found = crps(samples.reshape(4000, 200), torch.full((200,), value, dtype=torch.float64))
    assert abs(found.mean() - exact) < 4 * found.std() / 200**0.5


@pytest.mark.parametrize("count", [2, 3, 10])
def test_crps_is_the_sum_over_all_pairs_of_samples(count):
    samples, value = torch.randn(count, 4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    pairs = (samples - samples[:, None]).abs().sum(dim=(0, 1)) / (count * (count - 1))
    torch.testing.assert_close(crps(samples, value), (samples - value).abs().mean(dim=0) - pairs / 2)


def test_crps_needs_two_samples():
    with pytest.raises(ValueError, match="samples: expected at least two, got 1"):
        crps(torch.zeros(1, 3), torch.zeros(3))


def test_forecasts_from_the_true_distribution_have_the_nominal_coverage_and_its_crps():
    generator, size, dreams = torch.Generator().manual_seed(0), 20_000, 99
    world = type("World", (), {"layout": LatentLayout((LatentPart(name="x", kind="continuous", start=0, size=1),))})()
    scores = _Scores(world, torch.tensor([2.0], dtype=torch.float64), 1)
    samples = torch.randn(dreams, size, 1, dtype=torch.float64, generator=generator)
    real = torch.randn(size, 1, dtype=torch.float64, generator=generator)
    scores.add(0, 2 * samples, 2 * real, torch.zeros(size, 1, dtype=torch.float64))
    result = scores.result(size)
    assert result.nominal == pytest.approx(0.9)
    assert result.coverage[0] == pytest.approx(0.9, abs=4 * math.sqrt(0.9 * 0.1 / size))
    assert result.crps[0] == pytest.approx(1 / math.sqrt(math.pi), abs=0.02)
    assert result.error[0] == pytest.approx(math.sqrt(1 + 1 / dreams), abs=0.03)
    assert result.repeat_last_error[0] == pytest.approx(1, abs=0.03)
    assert result.repeat_last_crps[0] == pytest.approx(math.sqrt(2 / math.pi), abs=0.03)


def test_a_number_that_all_forecasts_leave_as_it_is_lies_within_their_interval():
    world = type("World", (), {"layout": LatentLayout((LatentPart(name="x", kind="continuous", start=0, size=1),))})()
    scores = _Scores(world, torch.ones(1, dtype=torch.float64), 1)
    scores.add(0, torch.full((19, 2, 1), 3.0), torch.tensor([[3.0], [4.0]]), torch.zeros(2, 1))
    assert scores.result(2).coverage[0] == 0.5  # the second number has changed


@pytest.mark.parametrize(("batch", "steps"), [(64, 64), (2, 10), (1, 1000)])
def test_the_likelihood_is_the_mean_over_all_steps_with_ms_state_from_the_beginning(trained, monkeypatch, batch, steps):
    world, path = trained
    monkeypatch.setattr(held_out, "BATCH_EPISODES", batch)
    monkeypatch.setattr(held_out, "BATCH_STEPS", steps)
    store = EpisodeStore.open(path / "june")
    totals = {}
    for index in range(len(store)):
        episode = store.read(index)
        z = world.encode(episode.observations)[None]
        action = world.action_features.flatten(episode.actions)[None]
        with torch.no_grad():
            prediction, _ = world.mdnrnn(z[:, :-1], action)
            parts = {name: -value.sum().item() for name, value in prediction.latent.log_probs(z[:, 1:]).items()}
            outcome = prediction.outcome(z[:, 1:])
            reward = torch.as_tensor(episode.rewards, dtype=torch.float32)[None, :, None]
            parts["reward_nll"] = -outcome.reward.log_prob(reward).sum().item()
            ended = torch.as_tensor(episode.terminations)[None]
            logit = torch.where(ended, outcome.termination_logit, -outcome.termination_logit)
            parts["termination_nll"] = -torch.nn.functional.logsigmoid(logit).sum().item()
        for name, value in parts.items():
            totals[name] = totals.get(name, 0.0) + value
    found = likelihood(world, path / "june")
    assert found.num_steps == store.num_steps
    sizes = {"nll_per_dim": 2}
    assert found.nats == pytest.approx({k: v / store.num_steps / sizes.get(k, 1) for k, v in totals.items()}, rel=1e-4)
    assert found.nats_per_step == pytest.approx(sum(totals.values()) / store.num_steps, rel=1e-4)
    assert all(error > 0 for error in found.standard_errors.values())
    assert "nats per choice" in str(found)


def test_the_likelihood_of_training_data_is_better_than_that_of_noise(trained, tmp_path):
    world, path = trained
    rng = np.random.default_rng(0)
    lengths = [40, 40]
    noise = {"state": [rng.normal(size=(n + 1, 2)) for n in lengths], "gear": [rng.integers(0, 2, n + 1) for n in lengths]}
    from_arrays(
        noise,
        [rng.uniform(-1, 1, n) for n in lengths],
        [np.zeros(n) for n in lengths],
        out=tmp_path / "noise",
        terminations=[np.zeros(n, bool) for n in lengths],
        config=ConversionConfig(like=path / "may"),
    )
    good, bad = likelihood(world, path / "may"), likelihood(world, tmp_path / "noise")
    assert good.nats["nll_per_dim"] < bad.nats["nll_per_dim"] - 1
    assert good.nats["nats_per_choice"] < bad.nats["nats_per_choice"]


def test_constants_that_change_are_counted_and_left_out(tmp_path):
    rng = np.random.default_rng(0)

    def data(name, constant, **options):
        observations = [np.stack([rng.normal(size=21), constant], axis=1) for _ in range(3)]
        return from_arrays(observations, out=tmp_path / name, **options)

    data("may", np.ones(21))
    data("june", np.where(np.arange(21) < 10, 1.0, 2.0), config=ConversionConfig(like=tmp_path / "may"))
    config, training = wm.MDNRNNConfig(hidden_size=8), wm.TrainingConfig(num_updates=2)
    world = wm.fit(tmp_path / "may", out=tmp_path / "w", config=config, training_config=training)
    assert likelihood(world, tmp_path / "may").changed_constants == 0
    found = likelihood(world, tmp_path / "june")
    assert found.changed_constants == pytest.approx(1 / 20)
    assert math.isfinite(found.nats_per_step)
    assert "changed in 5 %" in str(found)


def test_other_spaces_are_refused_with_the_fix(trained, tmp_path):
    world, _ = trained
    oscillator(1, [20, 30], tmp_path / "other")
    with pytest.raises(ValueError, match=r"expected the world model's observation space .*; convert the data .*like="):
        likelihood(world, tmp_path / "other")


def test_an_open_loop_is_a_dream_under_the_recorded_actions(trained):
    world, path = trained
    found = open_loop(world, path / "june", burn_in=5, horizon=20, num_dreams=39, num_forecasts=3, seed=0)
    assert found.num_forecasts == 3
    assert all(len(value) == 20 for value in (found.error, found.crps, found.coverage, found.choice_error))
    store = EpisodeStore.open(path / "june")
    windows = list(held_out.windows_of(*_collection(store), 25, 3))
    z = [world.encode(store.read(i, start, start + 25).observations) for i, start in windows]
    kept = list(range(2, 4)) if world.layout.parts[0].kind.value == "choice" else [0, 1]
    deviation = torch.cat(z)[:, kept].std(dim=0, correction=0)
    last = torch.stack([(one[6:, kept] - one[5, kept]) / deviation for one in z])
    np.testing.assert_allclose(found.repeat_last_error, last.square().mean(dim=(0, 2)).sqrt(), rtol=1e-4)
    np.testing.assert_allclose(found.repeat_last_crps, last.abs().mean(dim=(0, 2)), rtol=1e-4)
    assert set(found.crps_by_number) == {"state"}
    assert "within 90%" in str(found)


def _collection(store):
    from worldmodel.data import EpisodeCollection

    return (EpisodeCollection([store]),)


def test_forecasts_of_a_trained_model_beat_repeating_the_last_observation(trained):
    world, path = trained
    found = open_loop(world, path / "june", burn_in=5, horizon=20)
    assert found.crps[-1] < found.repeat_last_crps[-1]
    assert found.error[-1] < found.repeat_last_error[-1]


def test_an_open_loop_is_reproducible_and_depends_on_the_seed(trained):
    world, path = trained
    one, same, other = (open_loop(world, path / "june", 5, 10, num_dreams=19, num_forecasts=4, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.crps, same.crps)
    assert (one.crps != other.crps).all()


def test_forecasts_that_are_made_in_parts_have_other_noise_in_each(trained, monkeypatch):
    world, path = trained
    seeds, generator = [], Dreams.generator
    monkeypatch.setattr(forecasting, "ROWS", 2 * 19)
    monkeypatch.setattr(Dreams, "generator", lambda self, seed: seeds.append(seed) or generator(self, seed))
    open_loop(world, path / "june", 5, 10, num_dreams=19, num_forecasts=5, seed=3)
    assert seeds == [3, 5, 7]


def test_a_horizon_longer_than_all_episodes_is_refused(trained):
    world, path = trained
    with pytest.raises(ValueError, match="expected at most 150 steps together"):
        open_loop(world, path / "june", 100, 51)


def test_windows_are_spread_evenly_without_overlap():
    episodes = type("Episodes", (), {"lengths": np.array([25, 3, 30, 9])})()
    assert list(held_out.windows_of(episodes, 10, 100)) == [(0, 0), (0, 10), (2, 0), (2, 10), (2, 20)]
    assert list(held_out.windows_of(episodes, 10, 2)) == [(0, 0), (2, 0)]


def test_a_world_without_actions_forecasts_too(tmp_path):
    rng = np.random.default_rng(0)
    from_arrays([np.cumsum(rng.normal(size=(40, 2)), axis=0) for _ in range(6)], out=tmp_path / "s")
    config, training = wm.MDNRNNConfig(hidden_size=8), wm.TrainingConfig(num_updates=4)
    world = wm.fit(tmp_path / "s", out=tmp_path / "w", config=config, training_config=training)
    assert (world.mdnrnn.reward_head, world.mdnrnn.termination_head, world.mdnrnn.action_size) == (None, None, 0)
    again = wm.WorldModel.from_pretrained(tmp_path / "w")
    assert set(likelihood(again, tmp_path / "s").nats) == {"nll_per_dim"}
    assert np.isfinite(open_loop(again, tmp_path / "s", 5, 10, num_dreams=19).crps).all()


def test_a_test_store_is_tested_on_and_not_learned_from(tmp_path):
    lengths = [30] * 10
    oscillator(0, lengths, tmp_path / "may", gear=False)
    oscillator(1, lengths, tmp_path / "june", gear=False, config=ConversionConfig(like=tmp_path / "may"))
    oscillator(2, lengths, tmp_path / "july", gear=False, config=ConversionConfig(like=tmp_path / "may"))
    config, training = wm.MDNRNNConfig(hidden_size=8), wm.TrainingConfig(num_updates=20, evaluate_every=20)
    options = {"config": config, "training_config": training}
    june, july = (
        wm.fit(tmp_path / "may", out=tmp_path / f"w{name}", test_data=tmp_path / name, **options) for name in ("june", "july")
    )
    assert june.fingerprint == july.fingerprint
    metrics = [world.provenance["training"]["best_metrics"]["nll_per_dim"] for world in (june, july)]
    assert metrics[0] != metrics[1]
    assert metrics[0] == pytest.approx(likelihood(june, tmp_path / "june").nats["nll_per_dim"], rel=1e-4)
    assert june.provenance["test_fingerprint"] != july.provenance["test_fingerprint"]
    with pytest.raises(ValueError, match="test_fingerprint"):
        wm.fit(tmp_path / "may", out=tmp_path / "wjune", test_data=tmp_path / "july", **options)


def test_test_data_of_other_spaces_are_refused(tmp_path):
    oscillator(0, [30] * 4, tmp_path / "may")
    oscillator(1, [30] * 4, tmp_path / "june")
    with pytest.raises(ValueError, match="expected observation_space"):
        wm.fit(tmp_path / "may", out=tmp_path / "w", test_data=tmp_path / "june")
    assert not (tmp_path / "w").exists()
