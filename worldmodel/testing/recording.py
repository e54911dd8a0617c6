"""Record runs of a vector environment with given actions, and compare the records.

Records hold copies as NumPy arrays. Environments that return torch tensors also receive tensors.
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

from worldmodel.spaces import map_leaves, sample_value

Seed = int | list[int] | None
Choices = list[list[Any]]  # [step][sub-environment]: an action of the single action space


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Values returned for one sub-environment at one step.

    Args:
        observation: observation from `reset` (step 0) or `step`.
        reward: reward from `step`; 0 at step 0.
        terminated: flag from `step`.
        truncated: flag from `step`.
        final: in SAME_STEP, the row's ``infos["final_obs"]`` at the end of an episode.
        restart: in DISABLED, the observation from the `reset` with a mask after this step. If any
            row was reset, all rows have one.
    """

    observation: Any
    reward: Any = 0.0
    terminated: bool = False
    truncated: bool = False
    final: Any = None
    restart: Any = None

    @property
    def ended(self) -> bool:
        """Whether the episode ended at this step."""
        return self.terminated or self.truncated

    @property
    def last_of_episode(self) -> Any:
        """Observation before any reset in this step."""
        return self.observation if self.final is None else self.final


@dataclass(frozen=True)
class Difference:
    """First difference between two records of a sub-environment.

    Args:
        step: step of the difference.
        what: name of the value, such as ``"observation['angle']"``.
        left: the value in the first record.
        right: the value in the second record.
    """

    step: int
    what: str
    left: Any
    right: Any

    def __str__(self) -> str:
        return f"{self.what} of step {self.step} is {short(self.left)} in one run and {short(self.right)} in the other"


class Recorder:
    """Recorder of one run of a vector environment.

    Args:
        env: the environment; its observations may be arrays or tensors.
        mode: in DISABLED, `step` also resets the rows that ended, with a mask.
        inspect: called with the step and the return value of `reset` or `step`, before it is split
            into rows; may raise.
        after_return: called with each returned observation; may write into it, as an agent may.
        after_step: called with the actions after each step; may write into them.
    """

    def __init__(
        self,
        env: VectorEnv,
        mode: AutoresetMode,
        *,
        inspect: Callable[[int, Any], None] | None = None,
        after_return: Callable[[Any], None] | None = None,
        after_step: Callable[[Any], None] | None = None,
    ):
        self.env, self.mode = env, mode
        self.moments: list[list[Moment]] = []  # [step][sub-environment]; step 0 is the reset
        self.returned: list[tuple[int, str, Any, Any]] = []  # step, name, returned value, a copy of it
        self.changed_actions: int | None = None  # first step that wrote into the caller's actions
        self.changed_options: Any = None  # the caller's options, if `reset` changed more than the mask
        self._inspect, self._after_return, self._after_step = inspect, after_return, after_step
        self._device: torch.device | None = None  # device of returned tensors; None for arrays

    def reset(self, seed: Seed = None, mask: np.ndarray | None = None) -> list[Any]:
        """Reset all rows, or those of the mask (num_envs,) bool; return all observations."""
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
        self.returned.append((step, "observation", observation, snapshot(observation)))
        rows = self._rows(observation)
        if mask is None:
            self.moments.append([Moment(observation=row) for row in rows])
        return rows

    def step(self, choices: Sequence[Any], *, reset_ended: bool = True) -> None:
        """Step with one action per row; in DISABLED, then reset ended rows if ``reset_ended``."""
        space = self.env.single_action_space
        empty: Any = create_empty_array(space, len(choices))
        actions = self.native(concatenate(space, choices, empty))
        before = snapshot(actions)
        returned = self.env.step(actions)
        if self.changed_actions is None and not same(snapshot(actions), before):
            self.changed_actions = len(self.moments)
        if self._after_step:
            self._after_step(actions)
        if self._inspect:
            self._inspect(len(self.moments), returned)
        self.moments.append(self._split(*returned))
        ended = np.array([moment.ended for moment in self.moments[-1]])
        if reset_ended and self.mode is AutoresetMode.DISABLED and ended.any():
            restarts = self.reset(mask=ended)
            self.moments[-1] = [replace(m, restart=start) for m, start in zip(self.moments[-1], restarts, strict=True)]

    def native(self, value: Any) -> Any:
        """Convert arrays to tensors on the device of the environment, if it returns tensors."""
        if self._device is None:
            return value
        return map_leaves(
            lambda leaf: torch.as_tensor(leaf, device=self._device) if isinstance(leaf, np.ndarray) else leaf, value
        )

    def rows_of(self, index: int) -> list[Moment]:
        """Return all moments of one sub-environment."""
        return [moments[index] for moments in self.moments]

    def changed_since(self) -> tuple[int, str] | None:
        """Return step and name of the first returned value that later changed; None if none did."""
        return next(((step, name) for step, name, value, then in self.returned if not same(snapshot(value), then)), None)

    def _rows(self, observation: Any) -> list[Any]:
        rows = list(iterate(self.env.observation_space, snapshot(observation)))
        if self._after_return:
            self._after_return(observation)
        return rows

    def _split(self, observation: Any, rewards: Any, terminated: Any, truncated: Any, infos: Any) -> list[Moment]:
        returned = {"observation": observation, "rewards": rewards, "terminations": terminated, "truncations": truncated}
        if isinstance(infos, Mapping) and "final_obs" in infos:
            returned["infos['final_obs']"] = infos["final_obs"]
        self.returned += [(len(self.moments), name, value, snapshot(value)) for name, value in returned.items()]
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
    """Record a run: reset with a seed, step with all ``choices``; ``hooks`` go to `Recorder`."""
    recorder = Recorder(env, mode, **hooks)
    recorder.reset(seed)
    for actions in choices:
        recorder.step(actions)
    return recorder


def draw_choices(space: gym.Space, num_steps: int, num_envs: int, seed: int) -> Choices:
    """Sample actions of a single action space; they depend on the seed only."""
    space = copy.deepcopy(space)  # so that the environment's generator is not used
    space.seed(seed)
    return [[sample_value(space) for _ in range(num_envs)] for _ in range(num_steps)]


def first_difference(left: Sequence[Moment], right: Sequence[Moment], tolerance: float = 0.0) -> Difference | None:
    """Find the first difference between two records of a sub-environment.

    Records of different length are compared up to the end of the shorter one.

    Args:
        left: the first record.
        right: the second record.
        tolerance: absolute difference that counts as equal.

    Returns:
        The difference, or None if there is none.
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
    """Return the name and values of the first different part of two nested values."""
    if isinstance(left, Mapping) and isinstance(right, Mapping) and left.keys() == right.keys():
        key = next(key for key in left if not same(left[key], right[key], tolerance))
        return _narrow(f"{name}[{key!r}]", left[key], right[key], tolerance)
    sequences = (tuple, list, np.ndarray)
    if isinstance(left, sequences) and isinstance(right, sequences) and np.ndim(left) > 0 and len(left) == len(right):
        index = next(i for i in range(len(left)) if not same(left[i], right[i], tolerance))
        return _narrow(f"{name}[{index}]", left[index], right[index], tolerance)
    return name, left, right


def same(left: Any, right: Any, tolerance: float = 0.0) -> bool:
    """Return whether two nested values are equal, up to ``tolerance``; NaN equals NaN."""
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
    """Copy a nested value; convert tensors to NumPy arrays."""
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
    """Overwrite the writeable arrays and tensors of a nested value with other numbers."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for child in value:
            overwrite(child)
    elif isinstance(value, Tensor):
        value.detach()[...] = value != 1
    elif isinstance(value, np.ndarray) and value.flags.writeable:
        value[...] = value != 1  # 1 becomes 0, other numbers become 1


def short(value: Any) -> str:
    """Format a value as one line of at most 120 characters."""
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
