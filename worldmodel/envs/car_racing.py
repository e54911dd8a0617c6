"""Gymnasium's CarRacing, drawn faster: only what can be seen is drawn, and nothing if nobody looks.

The polygons that are seen are drawn by the original calls in the original order, so the frames are Gymnasium's, bit for bit
(tests/envs/test_car_racing.py). Most of its time goes into 400 patches of grass and 300 pieces of road, of which a frame shows
some twenty.

Importing this module needs Box2D and pygame; `worldmodel.envs.paper` has the registered environment.
"""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
import numpy as np
import pygame
from gymnasium import spaces
from gymnasium.envs.box2d import car_racing as original
from gymnasium.utils import RecordConstructorArgs

MARGIN = 4  # pixels around the picture in which polygons are drawn, for edges that are blended
BAR = 5 / 40  # height of the bar with the indicators, of the picture's
ROAD_ROWS = 84  # rows of 96 above the bar
FONT_SIZE = 42
# Indicators in the bar of a 96x96 frame: columns, and the channel in which the indicator is bright. The rows do not matter,
# as the bars start at different heights but lie over black.
SPEED, WHEELS, STEERING, TURNING = slice(12, 15), slice(16, 27), slice(34, 62), slice(58, 86)
MIDDLES = 48.0, 72.0  # columns at which the bars of steering and turning start


class FastCarRacing(original.CarRacing):
    """CarRacing with the same frames, drawn only if ``drawing`` is True.

    Args:
        kwargs: arguments of `gymnasium.envs.box2d.car_racing.CarRacing`.
    """

    surf: Any
    car: Any

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.drawing = True  # False: `step` returns the frame before, unless the episode ends
        self._frame: np.ndarray | None = None
        self._corners: tuple[np.ndarray, np.ndarray] | None = None

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; the first frame is always drawn."""
        drawing, self.drawing, self._corners = self.drawing, True, None
        try:
            return super().reset(**kwargs)
        finally:
            self.drawing = drawing

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step as the original does; the last frame of an episode is always drawn."""
        before = self.reward
        found = super().step(action)
        if self.drawing or not found[2]:
            return found
        after, self.reward = self.reward, before  # the picture shows the return before the step
        self.state = self._frame = self._draw()
        self.reward = after
        return (self.state, *found[1:])

    def _render(self, mode: str) -> Any:
        if mode != "state_pixels" or "t" not in self.__dict__:
            return super()._render(mode)
        if self.drawing or self._frame is None:
            self._frame = self._draw()
        return self._frame

    def _draw(self) -> np.ndarray:
        """Draw the frame as the original's `_render` does; the text's pictures are kept."""
        width, height = original.WINDOW_W, original.WINDOW_H
        self.surf = pygame.Surface((width, height))
        angle = -self.car.hull.angle
        zoom = 0.1 * original.SCALE * max(1 - self.t, 0) + original.ZOOM * original.SCALE * min(self.t, 1)
        scroll = (-(position) * zoom for position in self.car.hull.position)
        turned = pygame.math.Vector2(tuple(scroll)).rotate_rad(angle)
        translation = (width / 2 + turned[0], height / 4 + turned[1])
        self._render_road(zoom, translation, angle)
        self.car.draw(self.surf, zoom, translation, angle, False)
        self.surf = pygame.transform.flip(self.surf, False, True)
        self._render_indicators(width, height)
        text = _picture(f"{self.reward:04.0f}")
        rectangle = text.get_rect()
        rectangle.center = (60, height - height * 2.5 / 40.0)
        self.surf.blit(text, rectangle)
        frame: np.ndarray = self._create_image_array(self.surf, (original.STATE_W, original.STATE_H))
        return frame

    def _render_road(self, zoom: float, translation: tuple[float, float], angle: float) -> None:
        """Draw the background, and the grass and the road that can be seen."""
        if _within_field(zoom, translation, angle):
            self.surf.fill([int(c) for c in self.bg_color])
        else:
            bounds = original.PLAYFIELD
            field = [(bounds, bounds), (bounds, -bounds), (-bounds, -bounds), (-bounds, bounds)]
            self._draw_colored_polygon(self.surf, field, self.bg_color, zoom, translation, angle, clip=False)
        if self._corners is None:
            road = np.array([[(float(x), float(y)) for x, y in corners] for corners, _ in self.road_poly])
            self._corners = np.array(_grass()), road
        grass, pieces = (_visible(corners, zoom, translation, angle) for corners in self._corners)
        for index in grass:
            self._draw_colored_polygon(self.surf, _grass()[index], self.grass_color, zoom, translation, angle)
        for index in pieces:
            corners, color = self.road_poly[index]
            points = [(p[0], p[1]) for p in corners]
            self._draw_colored_polygon(self.surf, points, [int(c) for c in color], zoom, translation, angle)


class Indicators(gym.ObservationWrapper, RecordConstructorArgs):
    """Wrapper that adds the numbers of the status bar to the frame: a Dict of "image" and "indicators".

    Args:
        env: a `FastCarRacing`.
    """

    skips_frames = True  # see `worldmodel.data.ActionRepeat`

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        numbers = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.observation_space = spaces.Dict({"image": env.observation_space, "indicators": numbers})

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        """Return the frame and its indicators."""
        return {"image": observation, "indicators": read_indicators(observation)}


def read_indicators(frame: np.ndarray) -> np.ndarray:
    """Read the bar at the bottom of a 96x96 frame, which V's latents are too coarse for.

    Args:
        frame: (96, 96, 3) uint8, as Gymnasium's CarRacing gives it.

    Returns:
        (4,) float32: speed, the wheels' speed (a sum of four), steering and turning, about in [-1, 1]; the last two have signs.
    """
    bar = frame[ROAD_ROWS:].astype(np.float32) / 255  # (12, 96, 3)
    speed = bar[:, SPEED].sum() / 18
    wheels = bar[:, WHEELS, 2].sum() / 24
    steering, turning = (
        (bar[:, columns, channel].sum(axis=0) * np.sign(np.arange(columns.start, columns.stop) + 0.5 - middle)).sum() / 50
        for columns, channel, middle in ((STEERING, 1, MIDDLES[0]), (TURNING, 0, MIDDLES[1]))
    )
    return np.array([speed, wheels, steering, turning], dtype=np.float32)


@functools.cache
def _grass() -> list[list[tuple[float, float]]]:
    """Return the corners of the patches of grass, as the original draws them."""
    d = original.GRASS_DIM
    return [
        [(d * x + d, d * y + 0), (d * x + 0, d * y + 0), (d * x + 0, d * y + d), (d * x + d, d * y + d)]
        for x in range(-20, 20, 2)
        for y in range(-20, 20, 2)
    ]


def _within_field(zoom: float, translation: tuple[float, float], angle: float) -> bool:
    """Return whether the whole picture shows the playing field."""
    width, height = original.WINDOW_W + MARGIN, original.WINDOW_H + MARGIN
    x, y = (np.array(ends) - start for ends, start in zip(((-MARGIN, width), (-MARGIN, height)), translation, strict=True))
    cosine, sine = np.cos(angle), np.sin(angle)
    corners = [((a * cosine + b * sine) / zoom, (b * cosine - a * sine) / zoom) for a in x for b in y]
    return bool(np.abs(corners).max() < original.PLAYFIELD)


def _visible(corners: np.ndarray, zoom: float, translation: tuple[float, float], angle: float) -> np.ndarray:
    """Return the indices of the polygons (N, 4, 2) that overlap the picture above the bar, in order."""
    cosine, sine = np.cos(angle), np.sin(angle)
    x = (corners[..., 0] * cosine - corners[..., 1] * sine) * zoom + translation[0]
    y = (corners[..., 0] * sine + corners[..., 1] * cosine) * zoom + translation[1]
    least = original.WINDOW_H * BAR - MARGIN  # the picture is drawn upside down, and the bar hides its first rows
    seen = (x.max(axis=1) >= -MARGIN) & (x.min(axis=1) <= original.WINDOW_W + MARGIN)
    seen &= (y.max(axis=1) >= least) & (y.min(axis=1) <= original.WINDOW_H + MARGIN)
    return np.flatnonzero(seen)


@functools.lru_cache(maxsize=512)
def _picture(text: str) -> pygame.Surface:
    """Return white letters on black; opening the font takes longer than drawing."""
    pygame.font.init()
    font = pygame.font.Font(pygame.font.get_default_font(), FONT_SIZE)
    return font.render(text, True, (255, 255, 255), (0, 0, 0))
