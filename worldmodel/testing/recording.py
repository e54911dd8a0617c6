"""Play a vector environment with given actions and keep, by copy, what each sub-environment showed; compare such records.

Nothing here judges. Environments that return torch tensors get tensors and are recorded as NumPy arrays.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from torch import Tensor

from worldmodel.spaces import map_leaves

Seed = int | list[int] | None
Choices = list[list[Any]]  # [step][sub-environment]: an action of the single action space


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What one sub-environment showed at one step.

    Args:
        observation: as `reset` (step 0) or `step` returned it.
        reward: 0 at step 0.
        terminated: as `step` returned it.
        truncated: as `step` returned it.
        final: the row's ``infos["final_obs"]`` at an end in SAME_STEP.
        restart: in DISABLED, the observation that the `reset` with a mask after this step returned, for every row if for one.
    """

    observation: Any
    reward: Any = 0.0
    terminated: bool = False
    truncated: bool = False
    final: Any = None
    restart: Any = None

    @property
    def ended(self) -> bool:
        """Whether the episode ended with this step."""
        return self.terminated or self.truncated

    @property
    def last_of_episode(self) -> Any:
        """The observation at an end, before any reset."""
        return self.observation if self.final is None else self.final


@dataclass(frozen=True)
class Difference:
    """Where two records of a sub-environment first differ."""

    step: int
    what: str
    left: Any
    right: Any

    def __str__(self) -> str:
        return f"{self.what} of step {self.step} is {short(self.left)} in one run and {short(self.right)} in the other"


class Recorder:
    """One run of a vector environment, recorded.

    Args:
        env: the environment; its observations may be arrays or tensors.
        mode: in DISABLED, `step` resets what ended with a mask.
        inspect: called with the step and what `reset` or `step` returned, before it is taken apart; may raise.
        meddle: called with each observation that was returned, as an agent that writes into it would be.
        meddle_actions: the same for the actions, after the step.
    """

    def __init__(
        self,
        env: VectorEnv,
        mode: AutoresetMode,
        *,
        inspect: Callable[[int, Any], None] | None = None,
        meddle: Callable[[Any], None] | None = None,
        meddle_actions: Callable[[Any], None] | None = None,
    ):
        self.env, self.mode = env, mode
        self.moments: list[list[Moment]] = []  # [step][sub-environment]; step 0 is the reset
        self.kept: list[tuple[int, str, Any, Any]] = []  # step, name, what the environment returned, a copy of it
        self.changed_actions: int | None = None  # the first step that wrote into the caller's actions
        self.changed_options: Any = None  # what `reset` left of the caller's options, if more than the mask is gone
        self._inspect, self._meddle, self._meddle_actions = inspect, meddle, meddle_actions
        self._device: torch.device | None = None  # that of an environment that returns tensors

    def reset(self, seed: Seed = None, mask: np.ndarray | None = None) -> list[Any]:
        """Reset all sub-environments, or those of the mask (num_envs,); returns each one's observation."""
        given: dict[str, Any] = {} if seed is None else {"seed": seed}
        options = {} if mask is None else {"reset_mask": self.native(mask.copy())}
        if options:
            given["options"] = dict(options)
        returned = self.env.reset(**given)
        if options and (given["options"].keys() - options.keys() or not same(snapshot(options["reset_mask"]), mask)):
            self.changed_options = given["options"] | options
        step = len(self.moments) - (mask is not None)
        if self._inspect:
            self._inspect(step, returned)
        observation = returned[0]
        self._device = _device(observation)
        self.kept.append((step, "observation", observation, snapshot(observation)))
        rows = self._rows(observation)
        if mask is None:
            self.moments.append([Moment(observation=row) for row in rows])
        return rows

    def step(self, choices: Sequence[Any], *, revive: bool = True) -> None:
        """Step with one action per sub-environment; in DISABLED, reset what ended unless ``revive`` is false."""
        space = self.env.single_action_space
        empty: Any = create_empty_array(space, len(choices))
        actions = self.native(concatenate(space, choices, empty))
        before = snapshot(actions)
        returned = self.env.step(actions)
        if self.changed_actions is None and not same(snapshot(actions), before):
            self.changed_actions = len(self.moments)
        if self._meddle_actions:
            self._meddle_actions(actions)
        if self._inspect:
            self._inspect(len(self.moments), returned)
        self.moments.append(self._take_apart(*returned))
        ended = np.array([moment.ended for moment in self.moments[-1]])
        if revive and self.mode is AutoresetMode.DISABLED and ended.any():
            restarts = self.reset(mask=ended)
            self.moments[-1] = [replace(m, restart=start) for m, start in zip(self.moments[-1], restarts, strict=True)]

    def native(self, value: Any) -> Any:
        """Arrays as the environment takes them: tensors on its device where it returns tensors."""
        if self._device is None:
            return value
        return map_leaves(
            lambda leaf: torch.as_tensor(leaf, device=self._device) if isinstance(leaf, np.ndarray) else leaf, value
        )

    def rows_of(self, index: int) -> list[Moment]:
        """All moments of one sub-environment."""
        return [moments[index] for moments in self.moments]

    def changed_since(self) -> tuple[int, str] | None:
        """The first returned value that is no longer what it was when it was returned: its step and name."""
        return next(((step, name) for step, name, value, then in self.kept if not same(snapshot(value), then)), None)

    def _rows(self, observation: Any) -> list[Any]:
        rows = list(iterate(self.env.observation_space, snapshot(observation)))
        if self._meddle:
            self._meddle(observation)
        return rows

    def _take_apart(self, observation: Any, rewards: Any, terminated: Any, truncated: Any, infos: Any) -> list[Moment]:
        returned = {"observation": observation, "rewards": rewards, "terminations": terminated, "truncations": truncated}
        if isinstance(infos, Mapping) and "final_obs" in infos:
            returned["infos['final_obs']"] = infos["final_obs"]
        self.kept += [(len(self.moments), name, value, snapshot(value)) for name, value in returned.items()]
        rewards, terminated, truncated = snapshot(rewards), snapshot(terminated), snapshot(truncated)
        return [
            Moment(
                observation=row,
                reward=rewards[i],
                terminated=bool(terminated[i]),
                truncated=bool(truncated[i]),
                final=_final(infos, i) if self.mode is AutoresetMode.SAME_STEP and (terminated[i] or truncated[i]) else None,
            )
            for i, row in enumerate(self._rows(observation))
        ]


def play(env: VectorEnv, mode: AutoresetMode, seed: Seed, choices: Iterable[Sequence[Any]], **hooks: Any) -> Recorder:
    """Reset with a seed and take all of the ``choices``; ``hooks`` are those of `Recorder`."""
    recorder = Recorder(env, mode, **hooks)
    recorder.reset(seed)
    for actions in choices:
        recorder.step(actions)
    return recorder


def draw_choices(space: gym.Space, num_steps: int, num_envs: int, seed: int) -> Choices:
    """Draw actions of a single action space, from nothing but the seed."""
    space = copy.deepcopy(space)  # its generator is not the environment's
    space.seed(seed)
    return [[space.sample() for _ in range(num_envs)] for _ in range(num_steps)]


def first_difference(left: Sequence[Moment], right: Sequence[Moment], tolerance: float = 0.0) -> Difference | None:
    """Find where two records of a sub-environment first differ, as far as both go; None if nowhere.

    Args:
        left: one record.
        right: the other.
        tolerance: the absolute difference of numbers that does not count.
    """
    for step, (one, other) in enumerate(zip(left, right, strict=False)):
        names = {name: name for name in ("reward", "terminated", "truncated", "observation")} | {"final_obs": "final"}
        if one.ended and other.ended:
            names["observation after the reset"] = "restart"
        for name, field in names.items():
            a, b = getattr(one, field), getattr(other, field)
            if not same(a, b, tolerance):
                return Difference(step, *_narrow(name, a, b, tolerance))
    return None


def _narrow(name: str, left: Any, right: Any, tolerance: float) -> tuple[str, Any, Any]:
    """The first part of two different nested values that differs, and its name."""
    if isinstance(left, Mapping) and isinstance(right, Mapping) and left.keys() == right.keys():
        key = next(key for key in left if not same(left[key], right[key], tolerance))
        return _narrow(f"{name}[{key!r}]", left[key], right[key], tolerance)
    sequences = (tuple, list, np.ndarray)
    if isinstance(left, sequences) and isinstance(right, sequences) and np.ndim(left) > 0 and len(left) == len(right):
        index = next(i for i in range(len(left)) if not same(left[i], right[i], tolerance))
        return _narrow(f"{name}[{index}]", left[index], right[index], tolerance)
    return name, left, right


def same(left: Any, right: Any, tolerance: float = 0.0) -> bool:
    """Whether two nested values are equal, NaN to NaN; numbers up to ``tolerance``."""
    if isinstance(left, Mapping):
        return (
            isinstance(right, Mapping) and left.keys() == right.keys() and all(same(left[k], right[k], tolerance) for k in left)
        )
    if isinstance(left, np.ndarray) and left.dtype == object:
        return isinstance(right, np.ndarray) and same(left.tolist(), right.tolist(), tolerance)
    if isinstance(left, (tuple, list)):
        alike = isinstance(right, (tuple, list)) and len(left) == len(right)
        return alike and all(same(a, b, tolerance) for a, b in zip(left, right, strict=True))
    if isinstance(left, (np.ndarray, np.number, float)) and isinstance(right, (np.ndarray, np.number, float)):
        a, b = np.asarray(left), np.asarray(right)
        if a.shape != b.shape:
            return False
        if tolerance == 0:
            return bool(np.array_equal(a, b, equal_nan=np.issubdtype(a.dtype, np.inexact)))
        return bool(np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=0, atol=tolerance, equal_nan=True))
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return False
    return bool(left == right)


def snapshot(value: Any) -> Any:
    """Copy a nested value; tensors become NumPy arrays."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy().copy()
    if isinstance(value, Mapping):
        return {key: snapshot(child) for key, child in value.items()}
    if type(value) is tuple:
        return tuple(snapshot(child) for child in value)
    if isinstance(value, np.ndarray) and value.dtype == object:
        copied = np.empty_like(value)
        for index in np.ndindex(value.shape):
            copied[index] = snapshot(value[index])
        return copied
    return copy.deepcopy(value)


def overwrite(value: Any) -> None:
    """Write other numbers into the arrays and tensors of a nested value, where they can be written."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for child in value:
            overwrite(child)
    elif isinstance(value, Tensor):
        value.detach()[...] = value != 1
    elif isinstance(value, np.ndarray) and value.flags.writeable:
        value[...] = value != 1  # ones become zeros, all else ones


def short(value: Any) -> str:
    """A value in one short line."""
    return textwrap.shorten(" ".join(str(value).split()), 120, placeholder=" ...")


def _final(infos: Any, index: int) -> Any:
    finals = infos.get("final_obs") if isinstance(infos, Mapping) else None
    if isinstance(finals, (np.ndarray, Tensor, list, tuple)) and index < len(finals):
        return snapshot(finals[index])
    return None


def _device(observation: Any) -> torch.device | None:
    if isinstance(observation, Mapping):
        observation = tuple(observation.values())
    if isinstance(observation, tuple):
        return next((device for device in map(_device, observation) if device is not None), None)
    return observation.device if isinstance(observation, Tensor) else None
