"""Rows at uneven times: M sees how long a step takes, and dreams are asked for at given times."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from linear_worlds import DECAY, linear_world

from worldmodel.data import (
    ConversionConfig,
    Episode,
    EpisodeCollection,
    EpisodeStore,
    describe_conversion,
    from_arrays,
    from_csv,
    from_parquet,
    to_parquet,
)
from worldmodel.dream import Dreams, LatentTracker, imagine
from worldmodel.evaluation import impute, likelihood, open_loop, surprise
from worldmodel.models import ExtraInputs, MDNRNNConfig
from worldmodel.training import TrainingConfig, fit

UNEVEN = ConversionConfig(elapsed=True)
CONFIG, TRAINING = MDNRNNConfig(hidden_size=8), TrainingConfig(num_updates=20, evaluate_every=10)


def write_store(path, *, episodes=8, steps=30, config=UNEVEN):
    rng = np.random.default_rng(0)
    times = [np.cumsum(rng.choice([0.5, 1.0, 4.0], steps + 1)) for _ in range(episodes)]
    observations = [rng.normal(size=(steps + 1, 2)).cumsum(axis=0) for _ in range(episodes)]
    actions = [rng.uniform(-1, 1, (steps, 1)) for _ in range(episodes)]
    return from_arrays(observations, actions, out=path, time=times, config=config)


def timed_world():
    """z' = 0.9 z + log(time / 0.5 s) + noise."""
    world = linear_world(extras=ExtraInputs(usual_time=0.5))
    with torch.no_grad():
        world.mdnrnn.latent_head.linear.weight[1, -1] = 1.0
    return world


def timed_dreams(elapsed):
    dreams = Dreams(timed_world(), 2, temperature=0.0)
    dreams.elapsed = elapsed
    return dreams


def test_the_time_of_each_step_is_stored_in_seconds(tmp_path):
    (tmp_path / "log.csv").write_text("t,x\n0,1.5\n250,2.5\n1000,0.5\n", encoding="utf-8")
    store = from_csv(tmp_path / "log.csv", tmp_path / "store", config=ConversionConfig(elapsed=True, time_unit="ms"))
    assert next(iter(store)).elapsed.tolist() == [0.25, 0.75]
    assert EpisodeStore.open(tmp_path / "store").has_elapsed
    assert "is checked" not in describe_conversion(store)
    (tmp_path / "log.csv").write_text("y,x\n0,1.5\n250,2.5\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"log\.csv.*expected a column of times for elapsed=True, got none; name it"):
        from_csv(tmp_path / "log.csv", tmp_path / "other", config=UNEVEN)


def test_a_window_has_the_times_of_its_steps_and_one_store_without_times_hides_them(tmp_path):
    timed, plain = write_store(tmp_path / "timed"), write_store(tmp_path / "plain", config=ConversionConfig())
    assert timed.read(0, 3, 6).elapsed.tolist() == timed.read(0).elapsed[3:6].tolist()
    assert plain.read(0).elapsed is None
    assert "elapsed" not in plain.recipe
    assert EpisodeCollection([timed, plain]).read(0).elapsed is None


@pytest.mark.parametrize("elapsed", [None, np.array([1.0, 0.0]), np.array([1.0, np.nan]), np.array([[1.0], [2.0]])])
def test_a_store_with_times_takes_no_others(tmp_path, elapsed):
    box, flags = spaces.Box(-1, 1, (1,)), np.zeros(2, dtype=bool)
    store = EpisodeStore.create(tmp_path / "store", observation_space=box, action_space=box, recipe={"elapsed": True})
    episode = Episode(
        observations=np.zeros((3, 1), np.float32),
        actions=np.zeros((2, 1), np.float32),
        rewards=np.zeros(2),
        terminations=flags,
        truncations=flags,
        elapsed=elapsed,
    )
    with pytest.raises(ValueError, match="episode 0 elapsed: expected"):
        store.append([episode])


def test_parquet_keeps_the_times(tmp_path):
    pytest.importorskip("pyarrow")
    store = write_store(tmp_path / "store")
    copy = from_parquet(to_parquet(store, tmp_path / "store.parquet"), tmp_path / "copy")
    assert copy.fingerprint == store.fingerprint


def test_m_sees_the_log_of_the_time_and_dreams_take_a_time():
    dreams = timed_dreams(torch.tensor([0.5, 1.0]))
    state = dreams.start(generator=dreams.generator(0))
    after, _, _ = dreams.step(state, np.zeros((2, 1), np.float32), generator=dreams.generator(1))
    expected = DECAY * state.z[:, 0] + torch.tensor([0.0, math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(after.z[:, 0], expected)
    dreams.elapsed = None  # the usual time
    after, _, _ = dreams.step(state, np.zeros((2, 1), np.float32), generator=dreams.generator(1))
    torch.testing.assert_close(after.z[:, 0], DECAY * state.z[:, 0])
    assert dreams.variant(num_dreams=4).elapsed is None
    assert timed_dreams(2.0).variant(num_dreams=4).elapsed == 2.0


def test_imagined_steps_take_the_time_of_the_dreams():
    dreams = Dreams(timed_world(), 2, temperature=0.0, reward=lambda before, action, after: after[..., 0])
    dreams.elapsed = 1.0
    start = dreams.start(generator=dreams.generator(0))
    rollout = imagine(
        dreams, lambda state: torch.zeros(2, 1, dtype=torch.float64), 1, start=start, generator=dreams.generator(1)
    )
    torch.testing.assert_close(rollout.z[:, 1, 0], DECAY * start.z[:, 0] + math.log(2))


def test_the_tracker_takes_the_time_since_the_last_observation(tmp_path):
    world = fit(write_store(tmp_path / "data").path, out=tmp_path / "world", config=CONFIG, training_config=TRAINING)
    assert world.mdnrnn.extras == ExtraInputs(usual_time=1.0)
    states = []
    for elapsed in (None, 1.0, 4.0):
        tracker = LatentTracker(world)
        tracker.reset(seed=0)
        tracker.observe(np.zeros((1, 2)))
        states.append(tracker.observe(np.ones((1, 2)), np.zeros((1, 1)), elapsed=elapsed).lstm.h)
    torch.testing.assert_close(states[0], states[1])
    assert not torch.allclose(states[0], states[2])


@pytest.mark.parametrize("elapsed", [0.0, math.inf, torch.ones(3), torch.tensor([1.0, -1.0])])
def test_a_time_that_is_none_is_refused(elapsed):
    with pytest.raises(ValueError, match="elapsed: expected positive seconds, a number or shape"):
        timed_dreams(elapsed)


def test_a_model_that_does_not_see_the_time_cannot_be_asked_for_one(tmp_path):
    with pytest.raises(ValueError, match=r"elapsed: expected None, as M does not see the time of a step; train on a store"):
        Dreams(linear_world(), 2).elapsed = 1.0
    plain = fit(
        write_store(tmp_path / "plain", config=ConversionConfig()).path,
        out=tmp_path / "world",
        config=CONFIG,
        training_config=TRAINING,
    )
    timed = write_store(tmp_path / "timed")
    assert likelihood(plain, timed.path).nats == likelihood(plain, tmp_path / "plain").nats
    assert np.isfinite(surprise(plain, timed.read(0)).nats[1:]).all()


def test_evaluations_use_the_recorded_times(tmp_path):
    store = write_store(tmp_path / "data")
    world = fit(store.path, out=tmp_path / "world", config=CONFIG, training_config=TRAINING)
    even = write_store(tmp_path / "even", config=ConversionConfig())
    assert likelihood(world, store.path).nats != likelihood(world, even.path).nats
    found = [open_loop(world, path, 2, 3, num_dreams=19, num_forecasts=3).error.tolist() for path in (store.path, even.path)]
    assert found[0] != found[1]
    assert impute(world, store.read(0), 1).shape == (1, 31, 2)
