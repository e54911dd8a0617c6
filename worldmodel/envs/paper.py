"""The two environments of Ha & Schmidhuber (2018), and a wrapper that resizes frames.

Importing this module registers ``DoomTakeCover-v0``, ``CarRacing64-v0`` and, with the numbers of the status bar,
``CarRacingIndicators64-v0`` with Gymnasium.
``gym.make`` imports it for ids with the prefix ``"worldmodel.environments:"``, as in
``"worldmodel.environments:DoomTakeCover-v0"``. Neither environment needs a display.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from worldmodel.runtime import missing_extra
from worldmodel.spaces import Value, find_images, image_layout, resize_by_area

SIZE = 64  # height and width of the paper's frames, in pixels
DOOM_STEPS = 2100  # longest episode: 60 seconds of 35 tics
CAR_STEPS = 1000
CAR_ROWS = 84  # rows of 96 above the status bar
DOOM_ACTIONS = ("left", "stay", "right")
_TAKE_COVER_ACTIONS = (2, 0, 1)  # VizDoom's numbers of these actions


class AreaResize(gym.ObservationWrapper, RecordConstructorArgs):
    """Wrapper that resizes the image in an observation by area.

    Args:
        env: environment whose observation is an image, or a Dict with one image.
        size: new height and width, in pixels.
        rows: number of rows kept from the top before resizing; None keeps all.

    Raises:
        ValueError: if the observation is not an image or a Dict with exactly one image.
    """

    skips_frames = True  # see `worldmodel.data.ActionRepeat`

    def __init__(self, env: gym.Env, size: int = SIZE, rows: int | None = None):
        RecordConstructorArgs.__init__(self, size=size, rows=rows)
        gym.ObservationWrapper.__init__(self, env)
        found = find_images(env.observation_space)
        supported = isinstance(env.observation_space, (spaces.Box, spaces.Dict))
        if not supported or len(found) != 1 or "/" in found[0].path:
            raise ValueError(f"env: expected an image observation, or a Dict with one image, got {env.observation_space}")
        self._layout, self._size, self._rows = found[0], size, rows
        small = {None: (size, size), 0: (found[0].channels, size, size), 2: (size, size, found[0].channels)}
        space = spaces.Box(0, 255, small[found[0].channel_axis], np.uint8)
        if found[0].path:
            assert isinstance(env.observation_space, spaces.Dict)
            self.observation_space = spaces.Dict({**env.observation_space.spaces, found[0].path: space})
        else:
            self.observation_space = space
        self._small = image_layout(space)
        self._drawing, self._resized = hasattr(env.unwrapped, "drawing"), np.empty(0)
        self._given: np.ndarray | None = None

    def observation(self, observation: Value) -> Value:
        """Return the observation with its image resized."""
        if not self._layout.path:
            return self._resize(observation)
        return {**observation, self._layout.path: self._resize(observation[self._layout.path])}

    def _resize(self, frame: np.ndarray) -> np.ndarray:
        """Resize a frame, unless it is the one before because nobody looks."""
        skipped = self._drawing and not self.env.unwrapped.drawing  # type: ignore[attr-defined]
        if not (skipped and frame is self._given):
            self._given, self._resized = frame, self._computed(frame)
        return self._resized

    def _computed(self, frame: np.ndarray) -> np.ndarray:
        image = self._layout.to_channels_last(torch.from_numpy(np.ascontiguousarray(frame)).unsqueeze(0))[:, : self._rows]
        small = resize_by_area(image, self._size, self._size).round_().to(torch.uint8)
        return self._small.from_channels_last(small)[0].contiguous().numpy()


class _TakeCover(gym.Wrapper):
    """Wrapper that returns only the screen and orders the actions as `DOOM_ACTIONS`.

    VizDoom has no screen at the end of an episode; the last one is returned again.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        self.observation_space = env.observation_space["screen"]
        self._screen: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._screen = observation["screen"]
        return observation["screen"], info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(_TAKE_COVER_ACTIONS[action])
        if not terminated:
            self._screen = observation["screen"]
        assert self._screen is not None
        return self._screen, float(reward), terminated, truncated, info


def doom_take_cover(render_mode: str | None = None, size: int = SIZE) -> gym.Env:
    """Make VizDoom's "take cover": dodge fireballs.

    The actions are left (0), stay (1) and right (2). The reward is 1 per step. The screen is
    rendered at 160x120 and resized by area. A step is one tic. The registered environment has at
    most `DOOM_STEPS` steps.

    Args:
        render_mode: None or "rgb_array".
        size: height and width of the observation, in pixels.

    Raises:
        ImportError: if VizDoom, or a system library that it needs, is not installed.
    """
    try:
        import vizdoom.gymnasium_wrapper

        _check_libraries(Path(vizdoom.__file__).with_name("vizdoom"))
    except ImportError as error:
        raise ImportError(_how_to_install("vizdoom", "doom", error)) from error
    del vizdoom  # importing it has registered the environment
    settings = Path(tempfile.gettempdir()) / f"worldmodel-vizdoom-{os.getpid()}.ini"  # VizDoom's default is "./_vizdoom.ini"
    env = gym.make(
        "VizdoomTakeCover-v1",
        screen_resolution="RES_160X120",
        doom_config_path=str(settings),
        frame_skip=1,
        render_mode=render_mode,
        disable_env_checker=True,
    )
    return AreaResize(_TakeCover(env), size)


def car_racing(
    render_mode: str | None = None, size: int = SIZE, *, indicators: bool = False, domain_randomize: bool = False
) -> gym.Env:
    """Make Gymnasium's CarRacing-v3 with three continuous actions and small frames.

    The status bar is cut off, and the frame is resized by area. Frames are Gymnasium's, but drawn faster; with
    `worldmodel.data.ActionRepeat` those that nobody sees are not drawn.

    Args:
        render_mode: None or "rgb_array".
        size: height and width of the observation, in pixels.
        indicators: the observation is a Dict with the "image" and the "indicators" (4,), which are read from the status bar's
            pixels: speed, speed of the wheels, steering and turning.
        domain_randomize: other colours in each episode, as in Gymnasium.

    Raises:
        ImportError: if Box2D or pygame, or a system library that they need, is not installed.
    """
    try:
        import Box2D
        import pygame
    except ImportError as error:
        raise ImportError(_how_to_install("Box2D and pygame", "box2d", error)) from error
    del Box2D, pygame
    from worldmodel.envs.car_racing import FastCarRacing, Indicators

    env: gym.Env = FastCarRacing(render_mode=render_mode, domain_randomize=domain_randomize)
    return AreaResize(Indicators(env) if indicators else env, size, rows=CAR_ROWS)


@functools.cache
def _check_libraries(program: Path) -> None:
    """Raise if ldd reports a missing library, without which the game would end this process."""
    try:
        output = subprocess.run(["ldd", program], capture_output=True, timeout=10, check=False).stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return
    missing = re.search(r"(\S+) => not found", output)
    if missing:
        raise ImportError(f"{missing[1]}: not found, but needed by the game")


def _how_to_install(library: str, extra: str, error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError):
        return str(missing_extra(extra))
    missing = str(error).split(":")[0]
    return (
        f"{library}: installed, but a library does not load ({error}). If {missing} is a system library, install it (on "
        f"Debian and Ubuntu: `apt-get install libgl1 libsdl2-2.0-0 libopenal1`); otherwise reinstall {library}"
    )


def _register() -> None:
    made: list[tuple[str, Any, int, dict[str, Any]]] = [
        ("DoomTakeCover-v0", doom_take_cover, DOOM_STEPS, {}),
        ("CarRacing64-v0", car_racing, CAR_STEPS, {}),
        ("CarRacingIndicators64-v0", car_racing, CAR_STEPS, {"indicators": True}),
    ]
    for name, maker, steps, kwargs in made:
        if name not in gym.registry:
            entry = f"{__name__}:{maker.__name__}"
            gym.register(name, entry_point=entry, max_episode_steps=steps, disable_env_checker=True, kwargs=kwargs)


_register()
