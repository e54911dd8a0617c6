"""DreamEnv and DreamVectorEnv: Gymnasium's contracts, and independence of the rows."""

import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from toy_data import walking_episode, write_store
from toy_worlds import WalkEnv, random_world, same_bits, walk_world

from worldmodel.data import EnvConfig
from worldmodel.dream import Dreams, time_limit, usual_horizon
from worldmodel.envs import DreamEnv, DreamOptions, DreamVectorEnv
from worldmodel.models import StateNormalizer, feature_size
from worldmodel.spaces import map_leaves
from worldmodel.testing import check_vector_env

MODES = list(AutoresetMode)
KINDS = ["z", "zh", "zhc", "decoded"]
BOUNDED = spaces.Box(-50.0, 50.0, (2,), np.float32)  # Gymnasium's checker warns of spaces without bounds
DICTS = (
    spaces.Dict({"push": spaces.Box(-1.0, 1.0, (2,), np.float32), "kind": spaces.Discrete(3)}),
    spaces.Dict({"place": spaces.Box(-9.0, 9.0, (2,), np.float32), "mode": spaces.Discrete(2)}),
)


def terminating_world(**arguments):
    """Return a random world model whose dreams terminate sometimes."""
    return random_world(termination_bias=-1.0, **arguments)


def play(env, steps, *, seed=0, actions=None):
    """Step with the same actions in every dream; return observations, rewards, flags (T, ...)."""
    observations, _ = env.reset(seed=seed)
    rows = [(observations, np.zeros(env.num_envs), *np.zeros((2, env.num_envs), bool))]
    for t in range(steps):
        chosen = np.full(env.num_envs, t % 3) if actions is None else actions[t]
        rows.append(env.step(chosen)[:4])
    return [map_leaves(lambda *leaves: np.stack(leaves), *column) for column in zip(*rows, strict=True)]


def episodes_of(observations, rewards, terminations, truncations, row, mode):
    """Return the episodes of one row of `play` as lists of (observation, reward)."""
    episodes, fresh = [[]], True
    for t in range(len(rewards)):
        if mode is AutoresetMode.NEXT_STEP and t > 0 and (terminations[t - 1, row] or truncations[t - 1, row]):
            episodes.append([])
            fresh = True
        episodes[-1].append((observations[t, row].tolist(), 0.0 if fresh else rewards[t, row]))
        fresh = False
    return episodes


# The contracts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("horizon", [7, 1000])
def test_gymnasium_finds_nothing_wrong(tmp_path, kind, horizon):
    random_world(observation_space=BOUNDED).save_pretrained(tmp_path / "world")
    env = gym.make(
        "worldmodel:Dream-v0", world=str(tmp_path / "world"), observation=kind, horizon=horizon, render_mode="rgb_array"
    )
    check_env(env.unwrapped)


@pytest.mark.parametrize("kind", KINDS)
def test_nested_spaces_pass_gymnasiums_checks_too(tmp_path, kind):
    random_world(*DICTS).save_pretrained(tmp_path / "world")
    env = gym.make("worldmodel:Dream-v0", world=str(tmp_path / "world"), observation=kind)
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)  # through the passive checker
    for _ in range(20):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("kind", ["zh", "decoded"])
def test_every_contract_of_vector_environments_is_kept_in_all_modes(kind, tensors):
    options = {"observation": kind, "tensors": tensors, "horizon": 7, "temperature": (0.5, 1.5)}
    world = terminating_world(observation_space=BOUNDED)
    # Some CPUs round matrix products differently for different rows, which changes the last bits of observations near 50.
    tolerance = 1e-3 if kind == "decoded" else 1e-5
    check_vector_env(lambda mode: DreamVectorEnv(world, 3, autoreset_mode=mode, **options), num_steps=40, tolerance=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_observations_lie_in_their_space(kind):
    env = DreamVectorEnv(terminating_world(observation_space=BOUNDED), 50, observation=kind, temperature=3.0)
    observations, _ = env.reset(seed=0)
    assert env.observation_space.contains(observations)
    for t in range(50):
        observations, *_ = env.step(np.full(50, t % 3))
        assert env.observation_space.contains(observations)


@pytest.mark.parametrize("kind", ["z", "zh", "zhc", "decoded"])
def test_a_world_in_double_precision_keeps_the_types_of_the_space(kind):
    world = terminating_world().double()
    env = DreamVectorEnv(world, 3, observation=kind, temperature=(0.5, 1.5), autoreset_mode="SameStep")
    tensors = DreamVectorEnv(world, 3, observation=kind, temperature=(0.5, 1.5), autoreset_mode="SameStep", tensors=True)
    assert env.observation_space.contains(env.reset(seed=0)[0])
    tensors.reset(seed=0)
    for _ in range(5):
        observations, rewards, *_ = env.step(np.array([0, 1, 2]))
        assert env.observation_space.contains(observations)
        there, there_rewards, *_ = tensors.step(torch.tensor([0, 1, 2]))
        assert np.array_equal(observations, there.numpy())
        assert (rewards.dtype, there_rewards.dtype) == (np.float64, torch.float32)


def test_the_autoreset_mode_is_the_enum_in_metadata_and_attribute():
    for mode in MODES:
        for given in (mode, mode.value, mode.name):
            env = DreamVectorEnv(random_world(), 2, autoreset_mode=given)
            assert env.metadata["autoreset_mode"] is env.autoreset_mode is mode
    assert "torch" not in DreamEnv.metadata


def test_make_and_make_vec_take_json(tmp_path):
    terminating_world().save_pretrained(tmp_path / "world")
    text = json.dumps({"world": str(tmp_path / "world"), "temperature": [0.5, 1.5], "horizon": 5, "observation": "z"})
    single = gym.make("worldmodel:Dream-v0", **json.loads(text))
    assert isinstance(single.unwrapped, DreamEnv)
    vector = gym.make_vec("worldmodel:Dream-v0", num_envs=3, autoreset_mode="SameStep", **json.loads(text))
    assert isinstance(vector, DreamVectorEnv)
    assert (vector.num_envs, vector.autoreset_mode) == (3, AutoresetMode.SAME_STEP)
    assert gym.make(single.spec.to_json() and single.spec).reset(seed=1)[0].tolist() == single.reset(seed=1)[0].tolist()


# Independence of the rows


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("kind", ["zh", "decoded"])
def test_a_dream_alone_is_row_0_of_many_and_row_i_with_seed_plus_i(mode, kind):
    world = terminating_world()
    many = play(DreamVectorEnv(world, 5, autoreset_mode=mode, observation=kind), 40, seed=10)
    for row in (0, 3):
        alone = play(DreamVectorEnv(world, 1, autoreset_mode=mode, observation=kind), 40, seed=10 + row)
        for part, whole in zip(alone, many, strict=True):
            np.testing.assert_allclose(part[:, 0], whole[:, row], rtol=1e-4, atol=1e-4)


def test_all_modes_and_the_single_environment_dream_the_same_episodes():
    """Episodes are equal although they start at different steps."""
    world, horizon = terminating_world(), 9
    next_step, same_step = (DreamVectorEnv(world, 1, autoreset_mode=mode, horizon=horizon) for mode in MODES[:2])
    disabled = DreamVectorEnv(world, 1, autoreset_mode=AutoresetMode.DISABLED, horizon=horizon)
    single = DreamEnv(world, horizon=horizon)
    observations = [env.reset(seed=4)[0][0] for env in (next_step, same_step, disabled)] + [single.reset(seed=4)[0]]
    for episode in range(6):
        assert all(np.array_equal(other, observations[0]) for other in observations[1:])
        over, t = False, 0
        while not over:
            action = np.array([(episode + t) % 3])
            rows = [env.step(action) for env in (next_step, same_step, disabled)]
            alone = single.step(action[0])
            over = alone[2] or alone[3]
            for row in rows:
                assert (row[1][0], row[2][0], row[3][0]) == alone[1:4]
            assert np.array_equal(rows[0][0][0], alone[0])
            assert np.array_equal(rows[2][0][0], alone[0])
            assert np.array_equal(rows[1][4]["final_obs"][0] if over else rows[1][0][0], alone[0])
            t += 1
        reset = {"reset_mask": np.array([True])}
        observations = [next_step.step(action)[0][0], rows[1][0][0], disabled.reset(options=reset)[0][0], single.reset()[0]]


def test_a_dream_does_not_change_when_another_acts_differently_or_is_reset():
    world = terminating_world()
    for mode in MODES[:2]:
        first, second = (DreamVectorEnv(world, 3, autoreset_mode=mode) for _ in range(2))
        for env in (first, second):
            env.reset(seed=2)
        for t in range(30):
            same, other = np.array([t % 3, 0, 1]), np.array([t % 3, 2, t % 2])
            if t in (5, 6, 20):
                second.reset(options={"reset_mask": np.array([False, True, False])}, seed=[None, 77, None])
            kept, changed = first.step(same), second.step(other)
            for one, two in zip(kept[:4], changed[:4], strict=True):
                assert np.array_equal(one[0], two[0])


def test_a_list_seeds_each_dream_and_none_continues_its_seed():
    world = terminating_world()
    env = DreamVectorEnv(world, 3)
    first, _ = env.reset(seed=[5, 6, 5])
    assert np.array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])
    second, _ = env.reset(seed=[None, 6, None])
    assert np.array_equal(second[1], first[1])
    assert np.array_equal(second[0], second[2])
    assert not np.array_equal(second[0], first[0])
    assert np.array_equal(env.reset(seed=[5, 5, 5])[0][1], first[0])


def test_without_a_seed_two_environments_differ_and_the_global_seed_is_irrelevant():
    world = terminating_world()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (the point)
    one = DreamVectorEnv(world, 8).reset()[0]
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    assert not np.array_equal(one, DreamVectorEnv(world, 8).reset()[0])
    before = torch.get_rng_state()
    env = DreamVectorEnv(world, 8)
    env.reset(seed=1)
    env.step(np.zeros(8, dtype=int))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_environment_gives_the_dreams_of_the_class_dreams():
    """At temperature 0 and with termination by threshold, only the start is random."""
    world = walk_world()
    env = DreamVectorEnv(world, 6, temperature=0.0, termination="threshold", autoreset_mode="Disabled", check_actions=False)
    observations, _ = env.reset(seed=3)
    dreams = Dreams(world, 6, temperature=0.0, termination="threshold")
    state = dreams.start(generator=dreams.generator(0))
    z = torch.as_tensor(observations[:, :2])
    state = type(state)(z, state.lstm, state.alive)
    for t in range(10):
        actions = np.full(6, 2 if t % 4 else 0)
        state, reward, terminated = dreams.step(state, actions, generator=dreams.generator(0))
        observations, rewards, terminations, _, _ = env.step(actions)
        assert np.array_equal(observations, state.features("zh").numpy())
        assert np.array_equal(rewards, reward.double().numpy())
        assert np.array_equal(terminations, terminated.numpy())
    assert not state.alive.all()


# Autoreset modes, horizon, infos


def test_next_step_ignores_the_action_after_an_end_and_gives_no_reward():
    env = DreamVectorEnv(walk_world(), 4, temperature=0.0)
    env.reset(seed=0)
    seen = 0
    over = np.zeros(4, dtype=bool)
    for _ in range(20):
        observations, rewards, terminations, truncations, infos = env.step(np.full(4, 2))
        assert not (terminations | truncations)[over].any()
        assert not rewards[over].any()
        assert not observations[over, 2:].any()  # h of a fresh episode is zero
        assert infos == {}
        seen += over.sum()
        over = terminations | truncations
    assert seen > 4


def test_same_step_gives_the_final_observation_and_restarts():
    env = DreamVectorEnv(walk_world(), 4, temperature=0.0, autoreset_mode=AutoresetMode.SAME_STEP, horizon=6)
    env.reset(seed=0)
    seen = 0
    for _ in range(20):
        observations, _, terminations, truncations, infos = env.step(np.full(4, 2))
        over = terminations | truncations
        seen += over.sum()
        assert ("final_obs" in infos) == bool(over.any())
        if over.any():
            assert np.array_equal(infos["_final_obs"], over)
            assert np.array_equal(infos["_final_info"], over)
            assert [final is not None for final in infos["final_obs"]] == over.tolist()
            assert not observations[over, 2:].any()
            assert all(final[2:].any() for final in infos["final_obs"][over])
            assert all(final[0] >= 0.99 for final in infos["final_obs"][terminations])  # where the walk ends
    assert seen > 4


def test_disabled_waits_for_a_reset_of_the_finished_rows():
    env = DreamVectorEnv(walk_world(), 3, temperature=0.0, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    over = np.zeros(3, dtype=bool)
    while not over.any():
        observations, _, terminations, _, _ = env.step(np.full(3, 2))
        over = terminations
    with pytest.raises(gym.error.ResetNeeded, match=rf"got \[{np.flatnonzero(over)[0]}.*reset_mask"):
        env.step(np.full(3, 2))
    options = {"reset_mask": over}
    after, _ = env.reset(options=options)
    assert options == {"reset_mask": over}
    assert np.array_equal(after[~over], observations[~over])
    assert not after[over, 2:].any()
    env.step(np.full(3, 2))


def test_the_horizon_truncates_and_a_terminated_dream_is_not_truncated():
    env = DreamVectorEnv(terminating_world(), 200, horizon=4)
    env.reset(seed=0)
    terminated, truncated = np.zeros(200, bool), np.zeros(200, bool)
    for t in range(1, 5):
        _, _, terminations, truncations, _ = env.step(np.zeros(200, dtype=int))
        if t < 4:
            assert not truncations.any()
            break_rows = terminated  # these have been reset and are at another step
            terminated = terminated | terminations
        else:
            truncated = truncations
    assert truncated[~terminated].sum() + terminations[~terminated].sum() == (~terminated).sum()
    assert not (truncated & terminations).any()
    assert not truncated[break_rows].any()


def test_the_horizon_is_by_default_the_limit_of_the_environment():
    world = random_world(termination_head=False)
    world.provenance = {"recipes": [{"env": "CartPole-v1", "max_steps": 3}]}
    env = DreamEnv(world)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(("asked", "horizon"), [(2000, 2000), (7, 7), (None, 500)])
def test_the_horizon_is_the_step_limit_of_the_environment_of_the_data(asked, horizon):
    world = random_world()
    world.provenance = {"recipes": [{"env": "CartPole-v1", "env_kwargs": {"max_episode_steps": asked}}]}
    assert usual_horizon(world) == horizon == time_limit(EnvConfig("CartPole-v1", kwargs={"max_episode_steps": asked}))


def test_each_episode_samples_a_temperature_from_the_range():
    env = DreamVectorEnv(terminating_world(), 300, temperature=(0.5, 2.0), autoreset_mode="SameStep")
    _, infos = env.reset(seed=0)
    first = infos["temperature"]
    assert infos["_temperature"].all()
    assert 0.5 <= first.min() < 0.6 < 1.9 < first.max() <= 2.0
    assert len(np.unique(first)) > 250
    _, _, terminations, _, infos = env.step(np.zeros(300, dtype=int))
    assert (infos["temperature"][terminations] != first[terminations]).all()
    assert (infos["temperature"][~terminations] == first[~terminations]).all()
    assert np.array_equal(infos["final_info"]["temperature"][terminations], first[terminations])
    single = DreamEnv(terminating_world(), temperature=(0.5, 2.0))
    assert single.reset(seed=7)[1]["temperature"] == pytest.approx(first[7])


def test_temperature_changes_the_dream_and_a_range_of_one_value_does_not():
    world = random_world(termination_head=False)
    runs = {tau: play(DreamVectorEnv(world, 20, temperature=tau), 5)[0] for tau in (0.0, 1.0, 2.0, (1.0, 1.0))}
    assert np.array_equal(runs[1.0], runs[(1.0, 1.0)])
    assert not np.array_equal(runs[1.0], runs[2.0])
    assert runs[2.0][-1].std() > runs[0.0][-1].std()


# Tensors


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_hold_the_same_numbers(mode, kind):
    world = terminating_world(termination_head=mode is not AutoresetMode.DISABLED)
    plain = DreamVectorEnv(world, 5, autoreset_mode=mode, observation=kind, temperature=(0.5, 1.0))
    tensors = DreamVectorEnv(world, 5, autoreset_mode=mode, observation=kind, temperature=(0.5, 1.0), tensors=True)
    one, two = plain.reset(seed=1), tensors.reset(seed=1)
    assert isinstance(two[0], torch.Tensor)
    assert np.array_equal(one[0], two[0].numpy())
    for t in range(15):
        one, two = plain.step(np.full(5, t % 3)), tensors.step(torch.full((5,), t % 3))
        for array, tensor in zip(one[:4], two[:4], strict=True):
            assert isinstance(tensor, torch.Tensor)
            np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-6)
        assert np.array_equal(one[4]["temperature"], two[4]["temperature"].numpy())
        if mode is AutoresetMode.SAME_STEP:
            over = two[4]["_final_obs"].numpy()
            assert np.array_equal(over, one[2] | one[3])
            for k in np.flatnonzero(over):
                assert np.array_equal(one[4]["final_obs"][k], two[4]["final_obs"][k].numpy())


@pytest.mark.parametrize("tensors", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_callers_may_keep_and_modify_returned_values(tensors, kind, mode):
    def run(overwrite):
        world = terminating_world(termination_head=mode is not AutoresetMode.DISABLED)
        env = DreamVectorEnv(world, 4, observation=kind, autoreset_mode=mode, tensors=tensors, temperature=(1.0, 2.0))
        results, copies = [env.reset(seed=0)], []
        for t in range(8):
            copies.append(
                map_leaves(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf.clone(), results[-1][0])
            )
            if overwrite:
                for leaf in (*results[-1][:4], *results[-1][-1].values()):
                    if isinstance(leaf, torch.Tensor | np.ndarray) and leaf.dtype != object:
                        leaf[:] = 1
            results.append(env.step(np.full(4, t % 3)))
            if mode is AutoresetMode.DISABLED and t == 4:
                env.reset(options={"reset_mask": np.array([True, False, True, False])})
        return results, copies

    kept, copies = run(overwrite=False)
    for result, copied in zip(kept, copies, strict=False):
        assert same_bits(result[0], copied)
    _, overwritten = run(overwrite=True)
    assert all(same_bits(one, two) for one, two in zip(copies, overwritten, strict=True))


def test_rows_of_all_dreams_at_once_are_computed_as_on_a_gpu(monkeypatch):
    """On a GPU, new values are computed for all rows and then selected; the result is the same."""
    from worldmodel.envs import dream_env

    world = terminating_world()
    expected = play(DreamVectorEnv(world, 6, temperature=(0.5, 1.5)), 20)
    rows = dream_env.Rows
    monkeypatch.setattr(dream_env, "Rows", lambda mask: rows(mask, dense=True))
    assert same_bits(tuple(play(DreamVectorEnv(world, 6, temperature=(0.5, 1.5)), 20)), tuple(expected))


# Rewards, starts, decoded observations, pictures


def distance_reward(observation, action, next_observation):
    """Reward function that the test below imports by name."""
    return next_observation[:, 0] - observation[:, 0] + 100 * action


@pytest.mark.parametrize("reward", [distance_reward, "test_envs:distance_reward"])
def test_a_reward_function_sees_decoded_observations_and_the_action(reward):
    env = DreamVectorEnv(walk_world(reward_head=True), 3, temperature=0.0, reward=reward, observation="decoded")
    before, _ = env.reset(seed=0)
    over = np.zeros(3, dtype=bool)
    for t in range(12):
        after, rewards, terminations, _, _ = env.step(np.array([2, t % 3, 1]))
        expected = after[:, 0] - before[:, 0] + 100 * np.array([2, t % 3, 1])
        np.testing.assert_allclose(rewards, np.where(over, 0, expected), atol=1e-5)
        before, over = after, terminations


def test_prefixes_prime_the_state(tmp_path):
    world = random_world(termination_head=False)
    episodes = [walking_episode(k, 12) for k in range(5)] + [walking_episode(9, 3)]
    write_store(tmp_path / "data", episodes, observation_space=world.observation_space)
    env = DreamVectorEnv(world, 40, prefix_length=4, prefix_data=tmp_path / "data", observation="zhc")
    observations, _ = env.reset(seed=0)
    dreams = Dreams(world, 1)
    primed = []
    for episode in episodes[:5]:
        start = dreams.start_from(episode.observations[:5], episode.actions[:4], generator=dreams.generator(0))
        primed.append(start.features("zhc")[0].numpy())
    distance = np.abs(observations[:, None] - np.stack(primed)).max(axis=-1)  # (40, 5)
    assert (distance.min(axis=1) < 1e-5).all()
    assert len(set(distance.argmin(axis=1).tolist())) == 5


def test_prefixes_longer_than_all_episodes_are_rejected(tmp_path):
    world = random_world()
    write_store(tmp_path / "data", [walking_episode(0, 3)], observation_space=world.observation_space)
    with pytest.raises(ValueError, match=r"prefix_length: expected fewer steps than the longest episode of .* has, 3, got"):
        DreamVectorEnv(world, 1, prefix_length=3, prefix_data=tmp_path / "data")


def test_decoded_observations_are_those_of_the_real_environment():
    env = DreamEnv(walk_world(), temperature=0.0, observation="decoded")
    assert env.observation_space == WalkEnv.observation_space
    observation, _ = env.reset(seed=0)
    x, y = observation
    for t in range(5):
        observation, *_ = env.step(t % 2)
        x, y = x + (t % 2 - 1) / 4, y + x / 8
        np.testing.assert_allclose(observation, [x, y], atol=1e-6)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_rendering_draws_each_dream(num_envs):
    env = DreamVectorEnv(random_world(), num_envs, render_mode="rgb_array")
    with pytest.raises(gym.error.ResetNeeded, match="render"):
        env.render()
    env.reset(seed=0)
    frames = env.render()
    assert len(frames) == num_envs
    assert all(frame.dtype == np.uint8 and frame.shape == frames[0].shape and frame.shape[2] == 3 for frame in frames)
    env.step(np.zeros(num_envs, dtype=int))
    assert not np.array_equal(env.render()[0], frames[0])
    env.close()
    single = DreamEnv(random_world(), render_mode="rgb_array")
    single.reset(seed=0)
    assert np.array_equal(single.render(), frames[0])
    single.close()


def test_without_a_render_mode_there_is_a_warning_and_no_picture():
    env = DreamEnv(random_world())
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


# Invalid input


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        (np.array([0, 1, 3]), ValueError, r"actions\[2\]: expected a value of Discrete\(3\), got 3"),
        (np.array([0, -1, 2]), ValueError, r"actions\[1\]: .*got -1"),
        (np.array([0.0, 1.0, 2.0]), TypeError, "actions: expected integers for Discrete"),
        (np.array([0, 1]), ValueError, r"actions: expected shape \(3,\)"),
        (np.array([[0], [1], [2]]), ValueError, r"got \(3, 1\)"),
        (torch.tensor([0, 1, 7]), ValueError, r"actions\[2\].*got 7"),
        (1, ValueError, r"got \(\)"),
    ],
)
def test_actions_outside_the_space_are_named(actions, error, message):
    env = DreamVectorEnv(random_world(), 3)
    observations, _ = env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.step(actions)
    assert np.array_equal(env.reset(seed=0)[0], observations)


def test_continuous_actions_outside_the_bounds_are_named():
    env = DreamEnv(random_world(spaces.Box(-2.0, 2.0, (1,), np.float32)))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions\[0\]: expected a value of Box.*got \[2.5\]"):
        env.step(np.array([2.5]))
    with pytest.raises(ValueError, match="nan"):
        env.step(np.array([np.nan]))
    env.step(np.array([2.0]))


@pytest.mark.parametrize("make", [lambda world: DreamVectorEnv(world, 2), DreamEnv])
def test_stepping_before_reset_is_rejected(make):
    with pytest.raises(gym.error.ResetNeeded, match=r"step: expected reset\(\) first"):
        make(random_world()).step(0)


def test_stepping_a_finished_single_dream_is_rejected():
    env = DreamEnv(random_world(), horizon=1)
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(gym.error.ResetNeeded, match=r"expected a running dream, got a finished one; start .* with reset\(\)"):
        env.step(0)  # `reset` of a single environment takes no reset_mask


def test_a_world_without_a_reward_head_needs_a_function():
    with pytest.raises(ValueError, match=r"reward: expected a world model with a reward head.*reward_head=True"):
        DreamVectorEnv(random_world(reward_head=False), 2)
    env = DreamVectorEnv(random_world(reward_head=False), 2, reward=lambda before, action, after: torch.ones(2))
    env.reset(seed=0)
    assert env.step(np.zeros(2, dtype=int))[1].tolist() == [1.0, 1.0]


class BlindVision(StateNormalizer):
    """V without a decoder."""

    decode = None


def test_a_world_without_a_decoder_cannot_be_decoded_or_drawn():
    world = random_world()
    world.vision = BlindVision(world.observation_space)
    DreamVectorEnv(world, 1)
    for arguments in ({"observation": "decoded"}, {"render_mode": "rgb_array"}, {"reward": "test_envs:distance_reward"}):
        with pytest.raises(ValueError, match="expected a V with a decoder, got BlindVision"):
            DreamVectorEnv(world, 1, **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation": "pixels"}, "observation: expected one of"),
        ({"temperature": -1.0}, "temperature: expected finite values >= 0"),
        ({"temperature": (2.0, 1.0)}, "temperature: expected a number or a range"),
        ({"temperature": (1.0, 2.0, 3.0)}, "temperature: expected a number or a range"),
        ({"temperature": "warm"}, "temperature: expected a number or a range .*got 'warm'"),
        ({"temperature": (1.0, "warm")}, "temperature: expected a number or a range"),
        ({"termination": "never"}, "termination: expected 'threshold' or 'sample'"),
        ({"horizon": 0}, "horizon: expected an integer >= 1"),
        ({"horizon": 2.5}, "horizon: expected an integer >= 1, got 2.5"),
        ({"horizon": float("nan")}, "horizon: expected an integer >= 1, got nan"),  # would never truncate
        ({"horizon": "9"}, "horizon: expected an integer >= 1, got '9'"),
        ({"prefix_length": 1.5, "prefix_data": "data"}, "prefix_length: expected an integer >= 0, got 1.5"),
        ({"prefix_length": 3}, "prefix_length, prefix_data: expected both or neither"),
        ({"prefix_data": "data"}, "prefix_length, prefix_data: expected both or neither"),
        ({"reward": "nowhere:nothing"}, "reward: expected a function or its name"),
        ({"reward": ".relative:name"}, "reward: expected a function or its name"),
        ({"reward": 3}, "reward: expected None, a function or its name, 'module:function', got 3"),
        ({"reward": "math:pi"}, "reward: expected the name of a function"),
        ({"num_envs": 0}, "num_dreams"),
        ({"render_mode": "human"}, "render_mode: expected 'rgb_array' or None, got 'human'"),
        ({"autoreset_mode": "Sometimes"}, r"autoreset_mode: expected one of \['NextStep'.*got 'Sometimes'"),
        ({"device": "meta"}, "device: expected None or the world model's"),
    ],
)
def test_options_out_of_range_are_rejected(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        DreamVectorEnv(random_world(), **{"num_envs": 2, **options})


def test_unknown_options_are_rejected():
    with pytest.raises(TypeError, match="tempreature"):
        DreamEnv(random_world(), tempreature=1.0)


def test_a_reward_that_is_not_made_of_numbers_is_rejected():
    env = DreamVectorEnv(random_world(), 3, reward=lambda before, action, after: None)
    env.reset(seed=0)
    with pytest.raises(TypeError, match="reward: expected an array or tensor of numbers, got None"):
        env.step(np.zeros(3, dtype=int))


def test_a_reward_of_another_shape_is_rejected():
    env = DreamVectorEnv(random_world(), 3, reward=lambda before, action, after: torch.zeros(3, 1))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"reward: expected a function that returns shape \(3,\), got \(3, 1\)"):
        env.step(np.zeros(3, dtype=int))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": [1, 2]}, ValueError, "seed: expected an integer or a list of 3, got a list of 2"),
        ({"seed": -1}, ValueError, "seed: expected an integer >= 0, got -1"),
        ({"seed": [1, 2, 2.5]}, TypeError, "seed: expected an integer >= 0, got 2.5"),
        ({"options": {"reset_mask": np.array([True, False])}}, ValueError, r"reset_mask: expected shape \(3,\)"),
        ({"options": {"reset_mask": np.zeros(3, dtype=bool)}}, ValueError, "at least one True"),
        ({"options": {"reset_mask": np.ones(3)}}, TypeError, "reset_mask: expected booleans"),
        ({"options": {"reset_mask": None}}, TypeError, "reset_mask: expected an array or tensor"),
        ({"options": {"rest_mask": np.ones(3, dtype=bool)}}, ValueError, r"options: expected 'reset_mask' or nothing"),
    ],
)
def test_invalid_resets_are_rejected(arguments, error, message):
    env = DreamVectorEnv(random_world(), 3)
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.reset(**arguments)


def test_the_first_reset_must_reset_all_dreams():
    with pytest.raises(gym.error.ResetNeeded, match="expected a reset of all dreams first"):
        DreamVectorEnv(random_world(), 2).reset(options={"reset_mask": np.array([True, False])})


def test_options_are_checked_without_a_world():
    options = DreamOptions(temperature=[0.5, 1.0])
    assert options.temperature_range == (0.5, 1.0)
    assert DreamOptions(temperature=2).temperature_range == (2.0, 2.0)
    for number in (np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2)):
        assert DreamOptions(temperature=number).temperature_range == (2.0, 2.0)
    assert DreamOptions(temperature=np.array([0.5, 1.0])).temperature_range == (0.5, 1.0)


def test_features_have_the_size_of_the_space():
    world = random_world(hidden_size=7)
    for kind, size in {"z": 2, "zh": 9, "zhc": 16}.items():
        assert feature_size(world, kind) == size
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert DreamVectorEnv(world, 2, observation=kind).single_observation_space.shape == (size,)
