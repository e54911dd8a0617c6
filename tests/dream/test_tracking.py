"""LatentTracker: the same states as in lockstep and in wrapped environments, randomness, partial resets, errors."""

import functools
import inspect
import textwrap

import gymnasium as gym
import numpy as np
import pytest
import torch
from toy_controllers import random_controller
from toy_worlds import WalkEnv, random_world, same_bits, walk_world

from worldmodel.dream import LatentTracker, Reality, primed_states, tracking
from worldmodel.envs import LatentEnv
from worldmodel.rng import episode_seed

SEED = episode_seed(5, 0)


def noisy(world):
    """The world with a V that has noise."""
    encode = world.vision.encode
    world.vision.encode = lambda observation: (encode(observation)[0], torch.full_like(encode(observation)[0], -2.0))
    return world


def observations(steps, rows=1, seed=0):
    return np.random.default_rng(seed).standard_normal((steps, rows, 2))


def actions(steps, rows=1, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (steps, rows)))


def follow(tracker, seen, done, **options):
    """All states along recorded steps."""
    states = [tracker.observe(seen[0], **options)]
    return states + [tracker.observe(o, a, **options) for o, a in zip(seen[1:], done, strict=True)]


def test_the_example_of_the_module_runs_on_a_robot_without_gymnasium():
    class Robot:
        def __init__(self):
            self.left, self.log = 5, []

        def observe(self):
            return np.full((1, 2), self.left / 5)

        def is_running(self):
            return self.left > 0

        def execute(self, action):
            self.left -= 1
            self.log.append(action)

    world, robot = random_world(), Robot()
    names = {"LatentTracker": LatentTracker, "world": world, "agent": random_controller(world), "robot": robot}
    text = inspect.getdoc(tracking)
    exec(textwrap.dedent(text[text.index("    tracker =") : text.index("M is advanced")]), names)
    assert len(robot.log) == 5
    *_, lstm = primed_states(
        world.mdnrnn, torch.linspace(1, 0.2, 5)[None, :, None].expand(1, 5, 2), torch.eye(3)[torch.cat(robot.log)][None]
    )
    torch.testing.assert_close(names["state"].lstm.c, lstm.c)


@pytest.mark.parametrize("kind", ["z", "zh", "zhc"])
def test_it_gives_the_states_of_lockstep_and_of_a_wrapped_environment(kind):
    world, plan = random_world(), actions(4) % 2  # never moves right, so it does not terminate
    reality, wrapped, env = Reality(world, WalkEnv, 1, seed=5), LatentEnv(WalkEnv(), world, features=kind), WalkEnv()
    tracker = LatentTracker(world)
    tracker.reset(seed=SEED)
    states = [tracker.observe(env.reset(seed=SEED)[0][None])]
    lockstep, features = [reality.start(generator=reality.generator(0))], [wrapped.reset(seed=SEED)[0]]
    for action in plan:
        states.append(tracker.observe(env.step(int(action))[0][None], action))
        lockstep.append(reality.step(lockstep[-1], action, generator=reality.generator(0))[0])
        features.append(wrapped.step(int(action))[0])
    assert same_bits(tuple(states), tuple(lockstep))
    assert np.array_equal(torch.cat([state.features(kind) for state in states]).detach().numpy(), features)


def test_noise_is_that_of_a_wrapped_environment_with_the_same_seed():
    world, env = noisy(random_world()), WalkEnv()
    wrapped, tracker = LatentEnv(WalkEnv(), world, features="z"), LatentTracker(world)
    for seed in (SEED, None):  # None: the next episode of the same seed
        tracker.reset(seed=seed)
        first = tracker.observe(env.reset(seed=seed)[0][None])
        assert np.array_equal(wrapped.reset(seed=seed)[0], first.z[0].numpy())
        second = tracker.observe(env.step(1)[0][None], torch.tensor([1]))
        assert np.array_equal(wrapped.step(1)[0], second.z[0].numpy())


def test_m_advances_exactly_once_per_step(monkeypatch):
    world, seen, done, calls = random_world(), observations(6), actions(5), []
    advance = world.mdnrnn.advance
    monkeypatch.setattr(world.mdnrnn, "advance", lambda *inputs: calls.append(1) or advance(*inputs))
    tracker = LatentTracker(world)
    tracker.reset()
    states = follow(tracker, seen, done)
    assert len(calls) == 5
    z = torch.as_tensor(seen, dtype=torch.float32).transpose(0, 1)  # (1, 6, 2)
    expected = primed_states(world.mdnrnn, z, torch.eye(3)[done].transpose(0, 1))
    assert all(same_bits(state.lstm, lstm) for state, lstm in zip(states, expected, strict=True))


def test_a_reset_tracker_equals_a_fresh_one():
    world, seen, done = noisy(random_world()), observations(5, rows=3), actions(4, rows=3)
    used, fresh = LatentTracker(world, 3), LatentTracker(world, 3)
    used.reset(seed=9)
    follow(used, seen, done)
    used.end(np.array([True, False, False]))
    runs = []
    for tracker in (used, fresh):
        tracker.reset(seed=3)
        runs.append(tuple(follow(tracker, seen, done)))
    assert same_bits(*runs)
    assert runs[0][-1].alive.all()


def test_each_row_is_what_it_is_alone():
    """Rounding of matrix products may depend on a row's place."""
    world, seen, done = noisy(random_world()), observations(5, rows=3), actions(4, rows=3)
    together = LatentTracker(world, 3)
    together.reset(seed=4)
    states = follow(together, seen, done)
    for k in range(3):
        alone = LatentTracker(world)
        alone.reset(seed=4 + k)
        for many, one in zip(states, follow(alone, seen[:, k : k + 1], done[:, k : k + 1]), strict=True):
            torch.testing.assert_close(many.z[k], one.z[0])
            torch.testing.assert_close(many.lstm.c[:, k], one.lstm.c[:, 0])


@pytest.mark.parametrize("by_action", [False, True])
def test_rows_are_reset_alone_with_or_without_a_step_of_the_others(by_action):
    world, seen, done = random_world(), observations(4, rows=2), actions(3, rows=2)
    tracker = LatentTracker(world, 2)
    tracker.reset(seed=0)
    *_, before = follow(tracker, seen[:3], done[:2])
    kept = [part.clone() for part in (before.z, *before.lstm)]
    tracker.reset(mask=torch.tensor([False, True]))
    after = tracker.observe(seen[3], done[2] if by_action else None)
    assert not after.lstm.h[:, 1].any()
    assert torch.equal(after.z[1], torch.as_tensor(seen[3, 1], dtype=torch.float32))
    if by_action:
        assert torch.equal(
            after.lstm.h,
            torch.stack([world.mdnrnn.advance(before.z, torch.eye(3)[done[2]], before.lstm).h[:, 0], after.lstm.h[:, 1]], 1),
        )
    else:
        assert torch.equal(after.lstm.h[:, 0], before.lstm.h[:, 0])
        assert torch.equal(after.z[0], before.z[0])
    assert all(torch.equal(old, now) for old, now in zip(kept, (before.z, *before.lstm), strict=True))  # never modified


@pytest.mark.parametrize("with_generator", [False, True])
def test_ended_episodes_are_frozen_until_they_are_reset(with_generator):
    world, seen, done = noisy(random_world()), observations(5, rows=3), actions(4, rows=3)
    source = {"generator": torch.Generator().manual_seed(0)} if with_generator else {}
    tracker, ends = LatentTracker(world, 3), np.array([False, True, False])
    tracker.reset(seed=0)
    *_, before = follow(tracker, seen[:2], done[:1], **source)
    tracker.end(ends)
    assert tracker.state.alive.tolist() == [True, False, True]
    seen[2, 1] = np.nan  # what an environment gives after its end does not matter
    after = tracker.observe(seen[2], done[1], **source)
    assert torch.equal(after.z[1], before.z[1])
    assert torch.equal(after.lstm.c[:, 1], before.lstm.c[:, 1])
    assert not torch.equal(after.z[0], before.z[0])
    tracker.reset(mask=ends)
    again = tracker.observe(seen[3], done[2], **source)
    assert again.alive.all()
    assert not again.lstm.c[:, 1].any()
    tracker.end(np.ones(3, dtype=bool))
    assert same_bits(tracker.observe(seen[4], done[3], **source), tracker.state)


def test_the_noise_of_running_episodes_does_not_depend_on_those_that_ended():
    world, seen, done = noisy(random_world()), observations(4, rows=2), actions(3, rows=2)
    runs = []
    for ends in ([False, False], [False, True]):
        tracker = LatentTracker(world, 2)
        tracker.reset(seed=6)
        follow(tracker, seen[:2], done[:1])
        tracker.end(np.array(ends))
        runs.append([tracker.observe(seen[t + 1], done[t]).z[0] for t in (1, 2)])
    for one, two in zip(*runs, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("with_generator", [False, True])
def test_rows_computed_as_on_a_gpu_give_the_same_states(monkeypatch, with_generator):
    """A GPU computes new values for all rows and selects; a generator then serves all rows, so the noise is another."""
    world, seen, done, runs = random_world(), observations(6, rows=3), actions(5, rows=3), []
    rows = tracking.Rows
    for dense in (None, True):
        monkeypatch.setattr(tracking, "Rows", lambda mask, dense=dense: rows(mask, dense=dense))
        tracker, source = LatentTracker(world, 3), {"generator": torch.Generator().manual_seed(0)} if with_generator else {}
        tracker.reset(seed=2)
        follow(tracker, seen[:3], done[:2], **source)
        tracker.end(np.array([False, True, True]))
        tracker.observe(seen[3], done[2], **source)
        tracker.reset(mask=torch.tensor([False, True, False]))
        tracker.observe(seen[4], done[3], **source)
        runs.append(tracker.observe(seen[5], done[4], **source))
    assert same_bits(*runs)
    assert runs[0].alive.tolist() == [True, True, False]


def test_invalid_observations_actions_and_masks_raise():
    world = random_world()
    tracker = LatentTracker(world, 2)
    with pytest.raises(RuntimeError, match=r"expected reset\(\) of all episodes before the first observation"):
        tracker.observe(np.zeros((2, 2)))
    tracker.reset()
    with pytest.raises(ValueError, match="observation: expected finite numbers, got NaN or infinity in row 1"):
        tracker.observe(np.array([[0.0, 0.0], [0.0, np.inf]]))
    with pytest.raises(ValueError, match=r"observation: expected a batch of 2, got leading dimensions \(3,\)"):
        tracker.observe(np.zeros((3, 2)))
    tracker.observe(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="last_action: expected the action that led to this observation, got None"):
        tracker.observe(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"mask: expected shape \(2,\), got \(3,\)"):
        tracker.reset(mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="mask: expected booleans"):
        tracker.end(np.array([0, 1]))
    with pytest.raises(ValueError, match="num_episodes: expected an integer >= 1, got 0"):
        LatentTracker(world, 0)


def test_a_row_that_is_not_finite_is_named_by_its_number_among_all():
    tracker = LatentTracker(random_world(), 3)
    tracker.reset()
    tracker.observe(np.zeros((3, 2)))
    tracker.end(np.array([True, False, False]))
    with pytest.raises(ValueError, match="in row 2"):
        tracker.observe(np.array([[0.0, 0.0], [0.0, 0.0], [np.nan, 0.0]]), torch.zeros(3, dtype=torch.int64))


def test_primed_states_continue_from_a_given_state():
    model = random_world().mdnrnn
    generator = torch.Generator().manual_seed(0)
    z, action = torch.randn(2, 5, 2, generator=generator), torch.randn(2, 4, 3, generator=generator)
    whole = list(primed_states(model, z, action))
    assert len(whole) == 5
    assert not whole[0].h.any()
    rest = list(primed_states(model, z[:, 2:], action[:, 2:], whole[2]))
    assert same_bits(tuple(rest), tuple(whole[2:]))


def test_an_exact_world_is_followed_by_a_dream(monkeypatch):
    world, env = walk_world(), functools.partial(gym.wrappers.TimeLimit, WalkEnv(), max_episode_steps=9)()
    tracker = LatentTracker(world)
    tracker.reset()
    state = tracker.observe(env.reset(seed=2)[0][None])
    for action in (1, 0, 1, 0):
        prediction, lstm = world.mdnrnn.step(state.z, torch.eye(3)[[action]], state.lstm)
        state = tracker.observe(env.step(action)[0][None], torch.tensor([action]))
        torch.testing.assert_close(prediction.latent.sample(0.0), state.z)
        assert same_bits(state.lstm, lstm)


def test_rows_are_selected_only_while_episodes_have_ended(monkeypatch):
    """Selecting them reads a mask, which would make a GPU wait in every step."""
    world, seen, done, selections = random_world(), observations(6, rows=2), actions(5, rows=2), []
    take_rows = tracking._take_rows
    monkeypatch.setattr(tracking, "_take_rows", lambda *given: selections.append(None) or take_rows(*given))
    tracker = LatentTracker(world, 2)
    tracker.reset(seed=0)
    follow(tracker, seen[:2], done[:1])
    tracker.reset(mask=np.array([False, True]))  # before its end
    follow(tracker, seen[2:4], done[2:3])
    assert not selections
    tracker.end(np.array([True, False]))
    tracker.observe(seen[4], done[3])
    assert len(selections) == 1
    tracker.reset()
    tracker.observe(seen[5], done[4])
    assert len(selections) == 1
