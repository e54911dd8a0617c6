"""The environments of the paper: frames, rewards, episode ends, errors for missing packages."""

import builtins
import sys
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_envs import SpaceEnv

import worldmodel as wm
from worldmodel.data import rollouts
from worldmodel.envs import AreaResize, paper
from worldmodel.spaces import resize_by_area

DOOM, CAR = "worldmodel.environments:DoomTakeCover-v0", "worldmodel.environments:CarRacing64-v0"


def play(env_id, seed, steps, **options):
    env = gym.make(env_id, **options)
    observation, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    frames, rewards, ends = [observation], [], []
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        frames.append(observation)
        rewards.append(reward)
        ends.append((terminated, truncated))
        if terminated or truncated:
            break
    env.close()
    return np.stack(frames), rewards, ends


# Resizing


@pytest.mark.parametrize("shape", [(60, 80, 3), (3, 60, 80), (60, 80)], ids=str)
def test_frames_are_resized_in_their_own_layout(shape):
    env = AreaResize(SpaceEnv(spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(2)), size=20)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert sorted(env.observation_space.shape) == sorted((20, 20, *([3] if len(shape) == 3 else [])))


def test_small_frames_are_means_of_the_large_ones_and_rows_below_are_cut_off():
    large = SpaceEnv(
        spaces.Dict({"eye": spaces.Box(0, 255, (60, 40, 3), np.uint8), "gear": spaces.Discrete(3)}), spaces.Discrete(2)
    )
    expected, _ = large.reset(seed=3)
    small, _ = AreaResize(large, size=20, rows=40).reset(seed=3)
    means = expected["eye"][:40].reshape(20, 2, 20, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(small["eye"], means, atol=0.5)
    assert small["gear"] == expected["gear"]


def test_observations_without_exactly_one_image_are_rejected():
    with pytest.raises(ValueError, match="expected an image observation"):
        AreaResize(SpaceEnv(spaces.Box(-1, 1, (3,)), spaces.Discrete(2)))
    image = spaces.Box(0, 255, (60, 80, 3), np.uint8)
    with pytest.raises(ValueError, match="expected an image observation, or a Dict with one image"):
        AreaResize(SpaceEnv(spaces.Tuple((image, spaces.Box(-1, 1, (3,)))), spaces.Discrete(2)))


def test_small_frames_are_collected_by_a_wrapper(tmp_path):
    env = SpaceEnv(spaces.Box(0, 255, (60, 80, 3), np.uint8), spaces.Discrete(2))
    store = wm.collect(wm.EnvConfig(lambda: env, max_steps=3, wrappers=[AreaResize]), out=tmp_path, num_episodes=1)
    assert store.read(0).observations.shape == (4, 64, 64, 3)


def test_frames_of_changing_size_are_a_failure_that_names_both_shapes(tmp_path):
    class Growing(SpaceEnv):
        def step(self, action):
            return (np.zeros((61, 80, 3), np.uint8), *super().step(action)[1:])

    with pytest.raises(
        RuntimeError, match=r"values: expected equal shapes, got \(60, 80, 3\) at index 0 and \(61, 80, 3\) at index 1"
    ):
        wm.collect(
            wm.EnvConfig(lambda: Growing(spaces.Box(0, 255, (60, 80, 3), np.uint8), spaces.Discrete(2)), max_steps=3),
            out=tmp_path,
            num_episodes=1,
        )


# Missing packages


@pytest.mark.parametrize(
    ("make", "module", "error", "message"),
    [
        (paper.doom_take_cover, "vizdoom", ModuleNotFoundError("x"), r"vizdoom: expected the extra doom.*worldmodel\[doom\]"),
        (paper.car_racing, "Box2D", ModuleNotFoundError("x"), r"Box2D, pygame: expected the extra box2d.*worldmodel\[box2d\]"),
        (
            paper.doom_take_cover,
            "vizdoom",
            ImportError("libGL.so.1: cannot open shared object file"),
            r"If libGL.so.1 is a system library, install it \(on Debian and Ubuntu: `apt-get install",
        ),
    ],
)
def test_a_missing_package_is_named_with_the_install_command(make, module, error, message, monkeypatch):
    real_import = builtins.__import__

    def broken_import(name, *args, **kwargs):
        if name.split(".")[0] == module:
            raise error
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken_import)
    with pytest.raises(ImportError, match=message):
        make()


@pytest.fixture
def ldd(monkeypatch, tmp_path):
    """Return a function that replaces ldd by a shell script, or removes it."""

    def put(script):
        monkeypatch.setenv("PATH", str(tmp_path))
        if script is not None:
            (tmp_path / "ldd").write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / "ldd").chmod(0o755)

    paper._check_libraries.cache_clear()
    yield put
    paper._check_libraries.cache_clear()


def test_a_missing_system_library_raises_before_the_game_starts(ldd, monkeypatch, tmp_path):
    package, wrapper = ModuleType("vizdoom"), ModuleType("vizdoom.gymnasium_wrapper")
    package.__file__, package.gymnasium_wrapper = str(tmp_path / "__init__.py"), wrapper
    monkeypatch.setitem(sys.modules, "vizdoom", package)
    monkeypatch.setitem(sys.modules, "vizdoom.gymnasium_wrapper", wrapper)
    ldd(f'[ "$1" = {tmp_path}/vizdoom ] && echo "libm.so.6 => /lib/libm.so.6" && echo "libSDL2.so.0 => not found"')
    for _ in range(2):  # each call raises, and the game never starts
        with pytest.raises(
            ImportError, match=r"load \(libSDL2.so.0: not found.*If libSDL2.so.0 is a system library, install it"
        ):
            paper.doom_take_cover()


@pytest.mark.parametrize("script", [None, "exit 1", "echo libm.so.6 =\\> /lib/libm.so.6", "printf '\\377'"])
def test_a_game_starts_if_ldd_finds_all_libraries_or_fails(ldd, script, tmp_path):
    ldd(script)
    paper._check_libraries(tmp_path / "vizdoom")


# VizDoom


@pytest.mark.slow
def test_doom_gives_small_frames_and_one_point_per_step_and_ends_with_the_last_screen():
    pytest.importorskip("vizdoom")
    frames, rewards, ends = play(DOOM, 2, 2100)
    assert frames.shape[1:] == (64, 64, 3)
    assert frames.dtype == np.uint8
    assert ends[-1] == (True, False)
    assert set(rewards) == {1.0}
    assert (frames[-1] == frames[-2]).all()
    assert frames[-1].mean() > 20


@pytest.mark.slow
def test_doom_moves_left_stays_and_moves_right():
    pytest.importorskip("vizdoom")

    import vizdoom

    def moved_right(action):
        env = gym.make(DOOM)
        env.reset(seed=5)
        names = ("POSITION_X", "POSITION_Y", "ANGLE")
        x, y, angle = (env.unwrapped.game.get_game_variable(getattr(vizdoom.GameVariable, name)) for name in names)
        for _ in range(12):
            env.step(action)
        new_x, new_y, _ = (env.unwrapped.game.get_game_variable(getattr(vizdoom.GameVariable, name)) for name in names)
        env.close()
        return (new_x - x) * np.sin(np.deg2rad(angle)) - (new_y - y) * np.cos(np.deg2rad(angle))

    assert moved_right(0) < -5
    assert abs(moved_right(1)) < 1
    assert moved_right(2) > 5


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [DOOM, CAR])
def test_an_episode_is_a_function_of_its_seed(env_id):
    pytest.importorskip("vizdoom" if env_id == DOOM else "Box2D")
    runs = [list(rollouts(wm.EnvConfig(env_id, max_steps=60), episode_ids=ids, seed=4)) for ids in ([0, 1], [1])]
    one, other = runs[0][1], runs[1][0]
    assert (one.observations == other.observations).all()
    assert (one.observations[:10] != runs[0][0].observations[:10]).any()


@pytest.mark.slow
def test_random_play_lasts_in_doom_as_long_as_in_the_paper():
    """Paper: 210 +- 108 steps (100 episodes); here 219 +- 90. Tolerance: 4 standard errors."""
    pytest.importorskip("vizdoom")
    lengths = [len(episode) for episode in rollouts(DOOM, episode_ids=range(100), seed=0)]
    assert abs(np.mean(lengths) - 210) < 4 * 108 / 10
    assert 60 < np.std(lengths) < 160


@pytest.mark.slow
def test_a_long_doom_episode_is_truncated():
    pytest.importorskip("vizdoom")
    env = gym.make(DOOM)
    assert env.spec.max_episode_steps == 2100
    env.reset(seed=0)
    env._elapsed_steps = 2099
    _, _, terminated, truncated, _ = env.step(1)
    assert (terminated, truncated) == (False, True)
    env.close()


# CarRacing


@pytest.mark.slow
def test_car_racing_gives_small_frames_without_the_status_bar():
    pytest.importorskip("Box2D")
    frames, rewards, _ = play(CAR, 2, 60)
    assert frames.shape == (61, 64, 64, 3)
    bar = gym.make("CarRacing-v3")
    large, _ = bar.reset(seed=2)
    bar.close()
    expected = resize_by_area(torch.from_numpy(large[:84].copy()).unsqueeze(0), 64, 64)[0]
    np.testing.assert_allclose(frames[0], expected, atol=0.51)
    assert min(rewards) < 0
    env = gym.make(CAR)
    assert env.action_space.shape == (3,)
    assert env.spec.max_episode_steps == 1000
    env.close()
