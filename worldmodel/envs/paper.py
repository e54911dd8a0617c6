"""The two environments of Ha & Schmidhuber (2018) as they are used there, and a wrapper that makes frames small.

Importing this module registers ``DoomTakeCover-v0`` and ``CarRacing64-v0`` with Gymnasium, so that they are known everywhere by
``"worldmodel.environments:DoomTakeCover-v0"`` and ``"worldmodel.environments:CarRacing64-v0"``. Neither needs a display.
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

from worldmodel.spaces import Value, find_images, image_layout, resize_by_area

SIZE = 64  # pixels to a side, what the paper's V sees
DOOM_STEPS = 2100  # the longest episode: 60 seconds of 35 tics
CAR_STEPS = 1000
CAR_ROWS = 84  # of 96: below is the status bar
DOOM_ACTIONS = ("left", "stay", "right")
_TAKE_COVER_ACTIONS = (2, 0, 1)  # the same as VizDoom numbers them


class AreaResize(gym.ObservationWrapper, RecordConstructorArgs):
    """Makes the image in an observation small, by area, before it is stored.

    Args:
        env: its observation is an image, or a Dict with one.
        size: new height and width.
        rows: how many rows are kept, from the top; None keeps all. What is below is cut off first.

    Raises:
        ValueError: if the observation holds no image, or several.
    """

    def __init__(self, env: gym.Env, size: int = SIZE, rows: int | None = None):
        RecordConstructorArgs.__init__(self, size=size, rows=rows)
        gym.ObservationWrapper.__init__(self, env)
        found = find_images(env.observation_space)
        whole = isinstance(env.observation_space, (spaces.Box, spaces.Dict))
        if not whole or len(found) != 1 or "/" in found[0].path:
            raise ValueError(f"env: expected one image as observation or in a Dict of it, got {env.observation_space}")
        self._layout, self._size, self._rows = found[0], size, rows
        small = {None: (size, size), 0: (found[0].channels, size, size), 2: (size, size, found[0].channels)}
        space = spaces.Box(0, 255, small[found[0].channel_axis], np.uint8)
        if found[0].path:
            assert isinstance(env.observation_space, spaces.Dict)
            self.observation_space = spaces.Dict({**env.observation_space.spaces, found[0].path: space})
        else:
            self.observation_space = space
        self._small = image_layout(space)

    def observation(self, observation: Value) -> Value:
        """Return the observation with its image small."""
        if not self._layout.path:
            return self._shrink(observation)
        return {**observation, self._layout.path: self._shrink(observation[self._layout.path])}

    def _shrink(self, frame: np.ndarray) -> np.ndarray:
        image = self._layout.to_channels_last(torch.from_numpy(np.ascontiguousarray(frame)).unsqueeze(0))[:, : self._rows]
        small = resize_by_area(image, self._size, self._size).round_().to(torch.uint8)
        return self._small.from_channels_last(small)[0].contiguous().numpy()


class _TakeCover(gym.Wrapper):
    """The screen alone; actions from left to right; after the end, where VizDoom has no screen, the last one again."""

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
    """Make VizDoom's "take cover": dodge fireballs by moving left (0), staying (1) or moving right (2); 1 point per step lived.

    The screen is rendered at 160x120 and made small by area; a step is one tic. Registered with at most `DOOM_STEPS` steps.

    Args:
        render_mode: None or "rgb_array".
        size: height and width of the observation.

    Raises:
        ImportError: if VizDoom is not installed, or a library that it needs.
    """
    try:
        import vizdoom.gymnasium_wrapper

        _check_libraries(Path(vizdoom.__file__).with_name("vizdoom"))
    except ImportError as error:
        raise ImportError(_how_to_install("vizdoom", "doom", error)) from error
    del vizdoom  # importing it has registered the environment
    settings = Path(tempfile.gettempdir()) / f"worldmodel-vizdoom-{os.getpid()}.ini"  # VizDoom's own choice is "./_vizdoom.ini"
    env = gym.make(
        "VizdoomTakeCover-v1",
        screen_resolution="RES_160X120",
        doom_config_path=str(settings),
        frame_skip=1,
        render_mode=render_mode,
        disable_env_checker=True,
    )
    return AreaResize(_TakeCover(env), size)


def car_racing(render_mode: str | None = None, size: int = SIZE) -> gym.Env:
    """Make Gymnasium's CarRacing-v3 with its three continuous actions, the status bar cut off and the rest made small by area.

    Args:
        render_mode: None or "rgb_array".
        size: height and width of the observation.

    Raises:
        ImportError: if Box2D is not installed, or a system library that it needs.
    """
    try:
        import Box2D
        import pygame
    except ImportError as error:
        raise ImportError(_how_to_install("Box2D and pygame", "box2d", error)) from error
    del Box2D, pygame
    env = gym.make("CarRacing-v3", continuous=True, render_mode=render_mode, max_episode_steps=-1, disable_env_checker=True)
    return AreaResize(env, size, rows=CAR_ROWS)


@functools.cache
def _check_libraries(program: Path) -> None:
    """Ask ldd, where there is one, for the libraries of VizDoom's game: without one of them its start ends this process."""
    try:
        said = subprocess.run(["ldd", program], capture_output=True, timeout=10, check=False).stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return
    missing = re.search(r"(\S+) => not found", said)
    if missing:
        raise ImportError(f"{missing[1]}: not found, and the game needs it")


def _how_to_install(library: str, extra: str, error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{library}: not installed: pip install worldmodel[{extra}]"
    missing = str(error).split(":")[0]
    return (
        f"{library}: installed, but its library does not load ({error}). If {missing} is a system library, install it, on "
        f"Debian and Ubuntu by `apt-get install libgl1 libsdl2-2.0-0 libopenal1`; if not, install {library} anew"
    )


def _register() -> None:
    for name, maker, steps in (("DoomTakeCover-v0", doom_take_cover, DOOM_STEPS), ("CarRacing64-v0", car_racing, CAR_STEPS)):
        if name not in gym.registry:
            gym.register(name, entry_point=f"{__name__}:{maker.__name__}", max_episode_steps=steps, disable_env_checker=True)


_register()
