"""Inputs of any units, dtype and kind, through collection, training, dreams and the real environment."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_data import write_store
from toy_grid import MISSION, GridEnv

from worldmodel import collect, evaluate, evolve, fit
from worldmodel.agents import Controller, ControllerConfig, SearchConfig
from worldmodel.data import EnvConfig, Episode, EpisodeStore
from worldmodel.dream import Dreams, LatentTracker, Reality, StartBank, StartConfig
from worldmodel.envs import DreamEnv, FramesAsChannels, LatentEnv, LatentVectorEnv
from worldmodel.evaluation import EvaluationConfig
from worldmodel.models import ConvVAE, EncodedObservations, MDNRNNConfig, StateNormalizer, Vision, WorldModel
from worldmodel.runtime import RunConfig
from worldmodel.training import DataConfig, TrainingConfig

RUN = RunConfig(progress=False)


def small_fit(data, out, *, num_updates=4, hidden_size=8, config=None, **data_config):
    return fit(
        data,
        out=out,
        config=config or MDNRNNConfig(hidden_size=hidden_size),
        data_config=DataConfig(window=16, batch_size=16, **data_config),
        training_config=TrainingConfig(num_updates=num_updates, evaluate_every=max(4, num_updates // 4), learning_rate=1e-2),
        run=RUN,
    )


def oscillator(number, *, factor=1.0, offset=0.0, steps=50):
    rng = np.random.default_rng(number)
    action = rng.uniform(-2, 2, steps)
    states = [rng.standard_normal(2)]
    for a in action:
        x, v = states[-1]
        states.append(np.array([x + 0.1 * v, 0.99 * v + 0.1 * (a - x)]) + 0.01 * rng.standard_normal(2))
    last = np.arange(steps) == steps - 1
    return Episode(
        observations=np.stack(states),
        actions=(offset + factor * action[:, None]).astype(np.float64),
        rewards=np.zeros(steps),
        terminations=~last & False,
        truncations=last,
        episode_id=number,
    )


UNBOUNDED = spaces.Box(-np.inf, np.inf, (1,), np.float64)
STATE = spaces.Box(-np.inf, np.inf, (2,), np.float64)


def test_the_units_of_actions_do_not_change_what_is_learned(tmp_path):
    variants = {
        "bounded": (spaces.Box(-2, 2, (1,), np.float64), {}),
        "factor": (UNBOUNDED, {"factor": 500.0}),
        "offset": (UNBOUNDED, {"offset": 1.5e9}),
        "wide": (spaces.Box(-1e4, 1e4, (1,), np.float64), {}),
        "huge": (spaces.Box(-3.4e38, 3.4e38, (1,), np.float64), {"factor": 1.6e38}),
    }
    found = {}
    for name, (space, units) in variants.items():
        episodes = [oscillator(number, **units) for number in range(16)]
        write_store(tmp_path / name, episodes, observation_space=STATE, action_space=space)
        world = small_fit(tmp_path / name, tmp_path / f"{name}-world", num_updates=60)
        found[name] = world.provenance["training"]["best_metrics"]["nll_per_dim"]
    assert max(found.values()) - min(found.values()) < 0.02, found


def test_choices_keep_their_units_and_their_files(tmp_path):
    episodes = [oscillator(0)]
    choices = Episode(**{**vars(episodes[0]), "actions": np.arange(50) % 3})
    write_store(tmp_path / "data", [choices], observation_space=STATE, action_space=spaces.Discrete(3))
    world = small_fit(tmp_path / "data", tmp_path / "world")
    assert world.mdnrnn.action_units.is_neutral
    assert not any("action_units" in name for name in world.state_dict())


def test_units_of_actions_are_saved_and_shared_by_sequences_and_steps(tmp_path):
    episodes = [oscillator(number, factor=500.0, offset=1500.0) for number in range(4)]
    write_store(tmp_path / "data", episodes, observation_space=STATE, action_space=UNBOUNDED)
    world = small_fit(tmp_path / "data", tmp_path / "world")
    assert not world.mdnrnn.action_units.is_neutral
    opened = WorldModel.from_pretrained(tmp_path / "world")
    assert opened.fingerprint == world.fingerprint
    z = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    action = opened.action_features.flatten(np.random.default_rng(0).normal(1500, 500, (3, 5, 1)))
    with torch.no_grad():
        whole, _ = opened.mdnrnn(z, action)
        state, means = opened.mdnrnn.initial_state(3), []
        for t in range(5):
            prediction, state = opened.mdnrnn.step(z[:, t], action[:, t], state)
            means.append(prediction.latent.mean)
    torch.testing.assert_close(torch.stack(means, dim=1), whole.latent.mean)


def test_coordinates_and_times_keep_their_steps():
    space = spaces.Dict(
        {"northing": spaces.Box(-np.inf, np.inf, (1,), np.float64), "time": spaces.Box(0, 2**62, (1,), np.int64)}
    )
    t = np.arange(400)
    values = {"northing": 5_000_000.0 + 0.02 * t[:, None], "time": 1_700_000_000_000 + 50 * t[:, None]}
    vision = StateNormalizer(space).fit([values])
    z, _ = vision.encode(values)
    assert z.dtype is torch.float32
    expected = (t - t.mean()) / t.std()
    np.testing.assert_allclose(z.numpy(), np.stack([expected, expected], axis=1), atol=1e-5)
    decoded = vision.decode(z)
    np.testing.assert_allclose(decoded["northing"].numpy(), values["northing"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(decoded["time"].numpy(), values["time"])


def test_the_float32_statistics_of_earlier_versions_encode_with_the_same_bits():
    vision = StateNormalizer(STATE)
    earlier = {"mean": torch.tensor([0.3, 7.1], dtype=torch.float32), "scale": torch.tensor([0.7, 3.3], dtype=torch.float32)}
    vision.load_state_dict(earlier)
    values = np.random.default_rng(0).normal(size=(50, 2))
    z, _ = vision.encode(values)
    assert torch.equal(z, (torch.as_tensor(values).float() - earlier["mean"]) / earlier["scale"])
    assert {name: value.dtype for name, value in vision.state_dict().items()} == dict.fromkeys(earlier, torch.float32)


def test_a_device_without_float64_gets_float32_constants():
    vision = StateNormalizer(STATE)

    def move(tensor):
        if tensor.dtype is torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return tensor.clone()

    moved = vision._apply(move)
    assert {buffer.dtype for buffer in moved.buffers()} == {torch.float32, torch.bool}
    assert moved.encode(np.zeros((3, 2)))[0].shape == (3, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"observations": (1, 3)},
            r"observations, dimension 1: expected numbers of at most 3.4e\+38.* got 1e\+300 in row 3; rescale",
        ),
        ({"actions": (0, 2)}, r"episode 0 actions, dimension 0: .* got 1e\+300 in row 2"),
        ({"rewards": (None, 4)}, r"episode 0 rewards: .* got 1e\+300 in row 4"),
    ],
)
def test_numbers_beyond_float32_are_named_with_dimension_and_value(tmp_path, changes, message):
    episode = oscillator(0)
    for name, (dimension, row) in changes.items():
        array = getattr(episode, name).copy()
        array[(row,) if dimension is None else (row, dimension)] = 1e300
        episode = Episode(**{**vars(episode), name: array})
    write_store(tmp_path / "data", [episode], observation_space=STATE, action_space=UNBOUNDED)
    with pytest.raises(ValueError, match=message):
        small_fit(tmp_path / "data", tmp_path / "world")


def test_encodings_beyond_float16_name_the_dtype():
    form = EncodedObservations(2, "float16")
    mean = torch.tensor([[0.0, 0.0], [0.0, 7e4]])
    with pytest.raises(
        ValueError, match=r"dtype: expected float16 .*up to 65504, got a mean of 70000 in latent 1; encode in float32"
    ):
        form.to_observation(mean, torch.zeros(2, 2))
    assert EncodedObservations(2, "float32").to_observation(mean, torch.zeros(2, 2))["mean"][1, 1] == 7e4


def test_stacked_frames_are_joined_along_their_channels():
    class Stack(gym.Env):
        observation_space, action_space = spaces.Box(0, 255, (4, 16, 12, 3), np.uint8), spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.arange(4 * 16 * 12 * 3).reshape(4, 16, 12, 3).astype(np.uint8), {}

    env = FramesAsChannels(Stack())
    observation, _ = env.reset()
    assert env.observation_space == spaces.Box(0, 255, (16, 12, 12), np.uint8)
    assert env.observation_space.contains(observation)
    original, _ = Stack().reset()
    np.testing.assert_array_equal(observation[..., 3:6], original[1])
    with pytest.raises(ValueError, match="expected stacked images"):
        FramesAsChannels(env)


LEAVE_OUT = EnvConfig(GridEnv, leave_out=("mission",))


@pytest.fixture(scope="module")
def grid_world(tmp_path_factory):
    root = tmp_path_factory.mktemp("grid")
    store = collect(LEAVE_OUT, out=root / "data", num_episodes=12, seed=0, run=RUN)
    return small_fit(root / "data", root / "world"), store


def test_a_mission_is_left_out_of_collection_training_and_evaluation(grid_world):
    world, store = grid_world
    assert store.recipe["leave_out"] == ["mission"]
    assert sorted(store.observation_space.spaces) == ["direction", "image"]
    assert world.left_out == ("mission",)
    config = SearchConfig(generations=1, population=4, method="openai-es", test_dreams=4)
    agent = evolve(Dreams(world, 8), ControllerConfig(features="z"), config=config, horizon=5, run=RUN)
    for env in (EnvConfig(GridEnv, max_steps=50), replace(LEAVE_OUT, max_steps=50)):
        scores = evaluate(agent, world, env=env, config=EvaluationConfig(num_episodes=2, num_dreams=4), run=RUN)
        assert np.isfinite(scores.real.mean)


def test_observations_that_still_have_the_mission_are_accepted_everywhere(grid_world, tmp_path):
    world, store = grid_world
    tracker, env = LatentTracker(world), LatentEnv(GridEnv(), world)
    expected, _ = env.reset(seed=3)
    tracker.reset(seed=[3])
    observation, _ = GridEnv().reset(seed=3)
    state = tracker.observe({name: np.asarray(value)[None] for name, value in observation.items()})
    np.testing.assert_array_equal(state.features("zh")[0].numpy(), expected)
    assert env.step(2)[0].shape == expected.shape
    reality = Reality(world, GridEnv, 2, seed=0)
    state = reality.start(generator=reality.generator(0))
    reality.step(state, np.array([2, 2]), generator=reality.generator(1))
    vector = LatentVectorEnv(gym.vector.SyncVectorEnv([GridEnv, GridEnv]), world)
    vector.reset(seed=0)
    vector.step(np.array([2, 0]))
    agent = Controller.for_world(world, ControllerConfig(features="z"))
    assert len(collect(LEAVE_OUT, out=tmp_path / "more", num_episodes=1, policy=_policy(world, agent), run=RUN)) == 1
    assert len(StartBank.along(world, store.path, config=StartConfig(num_states=20))) > 0


def _policy(world, agent):
    from worldmodel.agents import LatentPolicy

    return LatentPolicy(world, agent)


def test_a_collecting_policy_still_sees_what_is_left_out(tmp_path):
    seen = []

    def policy(observation):
        seen.append(observation["mission"])
        return 2

    collect(LEAVE_OUT, out=tmp_path / "data", num_episodes=1, policy=policy, run=RUN)
    assert set(seen) == {MISSION}


def test_fit_leaves_out_leaves_of_a_store(grid_world, tmp_path):
    _, store = grid_world
    world = small_fit(store.path, tmp_path / "world", leave_out=("image",))
    assert list(world.observation_space.spaces) == ["direction"]
    assert world.left_out == ("mission", "image")
    assert "leave_out" not in DataConfig().identity()
    assert len(StartBank.along(world, store.path, config=StartConfig(num_states=20))) > 0
    LatentEnv(GridEnv(), world).reset(seed=0)


def test_an_unsupported_leaf_names_leave_out(tmp_path):
    with pytest.raises(TypeError, match=r"""at 'mission': .* got Text; .*leave_out=\("mission",\)"""):
        collect(GridEnv, out=tmp_path / "data", num_episodes=1, run=RUN)
    with pytest.raises(ValueError, match="leave_out: expected paths of leaves among"):
        collect(EnvConfig(GridEnv, leave_out=("misson",)), out=tmp_path / "data", num_episodes=1, run=RUN)


def test_bad_spaces_are_refused_before_an_episode_is_played(tmp_path):
    with pytest.raises(ValueError, match="observation_space: expected images with at most three dimensions"):
        EpisodeStore.create(
            tmp_path / "data", observation_space=spaces.Box(0, 255, (4, 84, 84, 3), np.uint8), action_space=spaces.Discrete(2)
        )


@pytest.fixture
def float64_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _train_everything(root):
    store = collect("CartPole-v1", out=root / "data", num_episodes=6, run=RUN)
    world = small_fit(store.path, root / "world")
    world = WorldModel.from_pretrained(root / "world")
    config = SearchConfig(generations=2, population=4, method="openai-es", test_dreams=4)
    agent = evolve(Dreams(world, 8), ControllerConfig(hidden_size=3), config=config, horizon=10, run=RUN)
    scores = evaluate(agent, world, env="CartPole-v1", config=EvaluationConfig(num_episodes=2, num_dreams=8), run=RUN)
    return (
        world.fingerprint,
        torch.cat([p.detach().flatten() for p in agent.parameters()]).numpy(),
        scores.real.returns,
        scores.dream.returns,
    )


def test_torchs_default_dtype_changes_no_bit(tmp_path, float64_default):
    wide = _train_everything(tmp_path / "wide")
    torch.set_default_dtype(torch.float32)
    narrow = _train_everything(tmp_path / "narrow")
    assert wide[0] == narrow[0]
    for one, other in zip(wide[1:], narrow[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_intact_vision_opens_under_any_default_dtype(tmp_path, float64_default):
    torch.set_default_dtype(torch.float32)
    vision = ConvVAE(spaces.Box(0, 255, (16, 16, 3), np.uint8))
    vision.save_pretrained(tmp_path / "vision")
    torch.set_default_dtype(torch.float64)
    assert Vision.from_pretrained(tmp_path / "vision").fingerprint == vision.fingerprint


def test_a_dream_clips_an_action_beyond_a_bound_by_a_rounding_error(tmp_path):
    space = spaces.Box(-0.1, 0.2, (1,), np.float32)
    episode = oscillator(0, factor=0.05, offset=0.05)
    write_store(tmp_path / "data", [episode], observation_space=STATE, action_space=space)
    seen = []

    def reward(observation, action, next_observation):
        seen.append(action.clone())
        return torch.zeros(len(action))

    env = DreamEnv(small_fit(tmp_path / "data", tmp_path / "world"), reward=reward)
    env.reset(seed=0)
    env.step(np.nextafter(space.high, np.float32(1)))
    assert space.contains(seen[0][0].numpy())
    with pytest.raises(ValueError, match=r"actions\[0\]"):
        env.step(space.high + np.float32(0.01))
