"""The real environment beside a dream, and the messages of a session."""

import functools
import importlib
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from worldmodel.data import EnvConfig
from worldmodel.play import companion as module
from worldmodel.play import included_worlds
from worldmodel.play.companion import Companion, check_trusted
from worldmodel.play.page import read_world
from worldmodel.play.session import Session
from worldmodel.runtime import RemoteError

(CARTPOLE,) = (each for each in included_worlds() if each.id == "cartpole")


@pytest.fixture
def page():
    return read_world(CARTPOLE.directory)


@pytest.fixture
def session(tmp_path):
    made = Session({"cartpole": CARTPOLE}, tmp_path / "films")
    yield made
    made.close()


def act(session, t, number=1, episode=1):
    return session.answer({"type": "act", "episode": episode, "t": t, "action": {"action": [number]}})


def test_the_companion_is_the_environment_with_this_seed(page):
    env, companion = gym.make("CartPole-v1"), Companion(page)
    assert companion.start(5)["observation"] == env.reset(seed=5)[0].astype(float).tolist()
    for t in range(200):
        expected, reward, terminated, *_ = env.step(t % 2)
        found = companion.act({"action": [t % 2]})
        assert found["observation"] == {"observation": expected.astype(float).tolist()}
        assert (found["reward"], found["total"], found["ended"]) == (reward, t + 1, terminated)
        if terminated:
            break
    assert terminated
    with pytest.raises(ValueError, match="expected a running episode"):
        companion.act({"action": [0]})
    companion.close()
    env.close()


def test_going_back_restores_the_real_environment(page):
    companion = Companion(page)
    companion.start(3)
    first = [companion.act({"action": [t % 2]}) for t in range(8)]
    companion.back(3)
    assert companion.total == 3
    assert [companion.act({"action": [t % 2]}) for t in range(3, 8)] == first[3:]
    with pytest.raises(ValueError, match="t: expected 0 to 8, the steps of the real episode, got 9"):
        companion.back(9)
    companion.close()


@pytest.mark.parametrize("action", [{}, {"action": []}, {"action": [0, 1]}, {"action": ["left"]}, {"action": [7]}])
def test_an_action_that_is_not_in_the_space_is_refused(page, action):
    companion = Companion(page)
    companion.start(0)
    with pytest.raises(ValueError, match=r"action: expected (the numbers|a value) of Discrete\(2\)"):
        companion.act(action)
    companion.close()


def test_a_world_without_a_record_of_its_environment_has_no_companion(page):
    with pytest.raises(ValueError, match="environment: expected a record of how it is built, got none"):
        Companion({**page, "environment": None})
    with pytest.raises(RemoteError, match="expected a registered Gymnasium id, got 'Gone-v7'"):
        Companion({**page, "environment": {"env": "Gone-v7"}}, trusted=True)
    with pytest.raises(ValueError, match="environment: expected id, arguments and wrappers, got"):
        Companion({**page, "environment": {"env": "CartPole-v1", "env_kwargs": [1]}})
    with pytest.raises(ValueError, match="environment: expected id, arguments and wrappers, got"):
        Companion({**page, "environment": {"action_repeat": 2}})
    with pytest.raises(ValueError, match=r"environment: expected the action space Discrete\(2\), got"):
        Companion({**page, "environment": {"env": "MountainCar-v0"}})


STRANGE = """
import os
import threading

import gymnasium as gym
import numpy as np

open("imported", "a", encoding="utf-8").close()


class Slow(gym.Wrapper):
    way = "hang"

    def __init__(self, env, after=2):
        super().__init__(env)
        self.after, self.steps = after, 0

    def step(self, action):
        self.steps += 1
        if self.steps == self.after:
            {"hang": threading.Event().wait, "crash": lambda: os._exit(3), "raise": lambda: 1 / 0}[self.way]()
        return super().step(action)


class Crash(Slow):
    way = "crash"


class Raise(Slow):
    way = "raise"


class Double(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward


gym.register("Strange-v0", entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv")
"""


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A module of somebody else, which leaves a file when it is imported."""
    (tmp_path / "strange_module.py").write_text(STRANGE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "imported"
    sys.modules.pop("strange_module", None)
    gym.registry.pop("Strange-v0", None)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"env": "strange_module:Strange-v0"}, "strange_module:Strange-v0"),
        ({"env": "strange_module:CartPole-v1"}, "strange_module:CartPole-v1"),
        ({"env": "worldmodel.environments:Strange-v0"}, "worldmodel.environments:Strange-v0"),
        ({"env": "CartPole-v1", "wrappers": ["strange_module.Double"]}, "strange_module.Double"),
        ({"env": "FrozenLake-v1", "env_kwargs": {"map_name": "8x8", "is_slippery": False}}, "map_name='8x8'"),
    ],
)
def test_a_world_imports_nothing_that_it_names_unless_it_is_trusted(page, strange, environment, named):
    with pytest.raises(ValueError, match=r"of Gymnasium or of this library, got .*--trust-env") as caught:
        Companion({**page, "environment": environment})
    assert f"got {named}, for which" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not strange.exists()


def test_environments_of_gymnasium_and_of_this_library_need_no_consent():
    check_trusted({"env": "FrozenLake-v1", "env_kwargs": {"is_slippery": False}, "action_repeat": 3})
    check_trusted({"env": "worldmodel.environments:DoomTakeCover-v0"})


def test_a_trusted_environment_has_its_wrappers_and_repeated_actions(page, strange):
    recipe = {"env": "strange_module:Strange-v0", "wrappers": ["strange_module.Double"], "action_repeat": 2}
    companion = Companion({**page, "environment": recipe}, trusted=True)
    companion.start(0)
    assert companion.act({"action": [0]})["reward"] == 4.0
    companion.close()
    assert strange.exists()


def test_a_configuration_is_built_again_from_its_recipe(strange):
    strange_module = importlib.import_module("strange_module")
    wrappers = (strange_module.Double, functools.partial(strange_module.Slow, after=7))
    config = EnvConfig("strange_module:Strange-v0", {}, wrappers, action_repeat=2, leave_out=("a",))
    found = EnvConfig.from_recipe(config.recipe())
    assert replace(found, wrappers=()) == replace(config, wrappers=())
    env = found.make()
    assert isinstance(env.env, strange_module.Slow)
    assert env.env.after == 7
    assert isinstance(env.env.env, strange_module.Double)
    for wrapper in (lambda env: env, "gone_module.Wrapper", "strange_module.Gone"):
        recipe = EnvConfig("CartPole-v1", wrappers=(wrapper,)).recipe()
        with pytest.raises(ValueError, match="wrappers: expected a class or function that can be imported, got"):
            EnvConfig.from_recipe(recipe)


@pytest.mark.parametrize(
    ("wrapper", "text"),
    [
        ("Slow", "environment: expected an end of step within 0.3 s, got none; it was stopped"),
        ("Crash", "environment: expected an end of step, got a crash of its process"),
        ("Raise", "ZeroDivisionError: division by zero"),
    ],
)
def test_an_environment_that_hangs_crashes_or_raises_ends_and_the_next_start_builds_it_anew(
    page, strange, tmp_path, monkeypatch, wrapper, text
):
    monkeypatch.setattr(module, "STEP_SECONDS", 0.3)
    recipe = {"env": "CartPole-v1", "wrappers": [f"strange_module.{wrapper}"]}
    monkeypatch.setattr("worldmodel.play.catalog.read_world", lambda _: {**page, "environment": recipe})
    session = Session({"cartpole": replace(CARTPOLE, trusted=True)}, tmp_path / "films")
    start = {"type": "start", "world": "cartpole", "seed": 4}
    for episode in (1, 2):
        monkeypatch.setattr(module, "STEP_SECONDS", 20.0)
        assert session.answer(start)["episode"] == episode
        assert act(session, 1, episode=episode)["t"] == 1
        monkeypatch.setattr(module, "STEP_SECONDS", 0.3)
        answer = act(session, 2, episode=episode)
        assert answer == {"type": "error", "about": "act", "text": f"{text}; the dream goes on without reality"}
        assert act(session, 3, episode=episode) is None
    session.close()


def test_a_session_answers_in_order_and_ignores_steps_of_an_episode_that_is_over(session):
    started = session.answer({"type": "start", "world": "cartpole", "seed": 4})
    assert (started["type"], started["episode"], len(started["observation"]["observation"])) == ("started", 1, 4)
    assert [act(session, t)["t"] for t in (1, 2, 3)] == [1, 2, 3]
    assert act(session, 5)["text"] == "t: expected 4, got 5"
    assert session.answer({"type": "back", "episode": 1, "t": 1}) == {"type": "restored", "episode": 1, "t": 1}
    assert act(session, 2)["t"] == 2
    assert session.answer({"type": "start", "world": "cartpole", "seed": 4})["episode"] == 2
    assert act(session, 3, episode=1) is None
    session.answer({"type": "stop"})
    assert act(session, 1, episode=2) is None


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (None, "type: expected one of start, act"),
        ([1], "type: expected one of start, act"),
        ({"type": "shutdown"}, "type: expected one of start, act"),
        ({"type": "start", "world": "cartpole"}, "start: expected a complete message, got one without 'seed'"),
        ({"type": "start", "world": "cartpole", "seed": -1}, "seed: expected an integer from 0"),
        ({"type": "start", "world": "cartpole", "seed": 1.5}, "seed: expected an integer from 0"),
        ({"type": "start", "world": "../secret", "seed": 1}, "world: expected one of cartpole, got '../secret'"),
        ({"type": "save"}, "save: expected a recording, got none"),
        (
            {"type": "record", "format": "exe", "fps": 30, "width": 4, "height": 4},
            "format: expected one of mp4, gif, got 'exe'",
        ),
        ({"type": "record", "format": "/../../x.mp4", "fps": 30, "width": 4, "height": 4}, "format: expected mp4 or gif"),
        ({"type": "record", "format": "mp4", "fps": 0, "width": 4, "height": 4}, "fps: expected an integer from 1, got 0"),
        (
            {"type": "record", "format": "mp4", "fps": 30, "width": 10**6, "height": 10**6},
            "width, height, fps: expected at most",
        ),
    ],
)
def test_a_message_that_makes_no_sense_is_answered_with_one_line(session, message, text):
    pytest.importorskip("imageio_ffmpeg", reason="needs worldmodel[video]")
    answer = session.answer(message)
    assert answer["type"] == "error"
    assert text in answer["text"]
    assert "\n" not in answer["text"]


@pytest.mark.parametrize("format", ["mp4", "gif"])
def test_frames_become_a_film(session, tmp_path, format):
    pytest.importorskip("imageio_ffmpeg", reason="needs worldmodel[video]")
    begin = {"type": "record", "format": format, "fps": 20, "width": 48, "height": 32}
    assert session.answer(begin) == {"type": "recording"}
    for level in range(0, 250, 10):
        assert session.add_frame(np.full((32, 48, 3), level, np.uint8).tobytes()) is None
    assert "expected 4,608 bytes, got 3" in session.add_frame(b"abc")["text"]
    saved = session.answer({"type": "save"})
    assert (saved["type"], saved["frames"]) == ("saved", 25)
    (film,) = (tmp_path / "films").iterdir()
    assert saved["address"] == f"recordings/{film.name}"
    assert film.suffix == f".{format}"
    begun = film.read_bytes()[:12]
    assert b"ftyp" in begun if format == "mp4" else begun.startswith(b"GIF89a")


def test_a_recording_whose_page_is_closed_leaves_no_file(session, tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="needs worldmodel[video]")
    session.answer({"type": "record", "format": "mp4", "fps": 20, "width": 4, "height": 4})
    session.add_frame(bytes(48))
    session.close()
    assert not list((tmp_path / "films").iterdir())
