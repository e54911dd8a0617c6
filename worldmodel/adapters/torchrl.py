"""Adapters to TorchRL (extra ``torchrl``): dreams as an `EnvBase`, with a state of their own or in the tensordict."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from worldmodel.dream import Dreams, LatentState, Reward, StartBank, check_rewards
from worldmodel.envs import ChangeableDreams, DreamVectorEnv
from worldmodel.models import State, WorldModel, open_world
from worldmodel.runtime import missing_extra
from worldmodel.spaces import Value

try:
    from tensordict import TensorDict, TensorDictBase
    from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, TensorSpec, Unbounded
    from torchrl.envs import EnvBase
except ImportError as error:
    raise missing_extra("torchrl") from error


class TorchRLEnv(ChangeableDreams, EnvBase):  # type: ignore[misc]  # TorchRL has no types
    """B dreams as a TorchRL environment of batch size (B,).

    A step reads ``action`` and writes ``observation`` (with the leaves of a Dict under it),
    ``reward``, ``done``, ``terminated`` and ``truncated``, each (B, 1). A reset starts the next
    episode of the rows in ``_reset`` and leaves the others unchanged. Finished rows that are not in
    ``_step`` do not change. ``set_seed(s)`` gives dream i the seed s + i at the next full reset, as
    in `DreamVectorEnv`.

    Args:
        world: a world model, or its path.
        num_envs: number B of dreams.
        check_actions: validate every action, and raise if a finished dream is stepped. This
            synchronises the GPU at each step.
        device: device of a world model given as a path; "auto": an NVIDIA GPU if there is one, else the CPU.
        **options: fields of `DreamOptions`.

    Raises:
        ValueError: if an argument is out of range, or the world model lacks a required head or
            decoder.
        TypeError: if an option is unknown, or a space contains a Tuple, which TorchRL lacks.

    Attributes:
        dreams: the wrapped `DreamVectorEnv`.
    """

    def __init__(
        self,
        world: WorldModel | str | Path,
        num_envs: int = 1,
        *,
        check_actions: bool = True,
        device: str | torch.device | None = None,
        **options: Any,
    ):
        mode = AutoresetMode.DISABLED
        dreams = DreamVectorEnv(
            world, num_envs, autoreset_mode=mode, tensors=True, check_actions=False, device=device, **options
        )
        super().__init__(device=dreams.world.device, batch_size=torch.Size([num_envs]))
        self.dreams, self._check_actions = dreams, check_actions
        self._seed: int | None = None
        no_rows = torch.zeros(num_envs, 1, dtype=torch.bool, device=self.device)
        self._terminated, self._truncated = no_rows, no_rows.clone()
        flag = Categorical(2, shape=(1,), dtype=torch.bool, device=self.device)
        self.observation_spec = self._batched({"observation": _spec(dreams.single_observation_space, self.device)})
        self.action_spec = self._batched({"action": _spec(dreams.single_action_space, self.device)})
        self.reward_spec = self._batched({"reward": Unbounded((1,), device=self.device, dtype=torch.float32)})
        self.done_spec = self._batched({name: flag.clone() for name in ("done", "terminated", "truncated")})
        self.settings = dreams.settings

    def to(self, device: Any) -> TorchRLEnv:
        """Return this environment if ``device`` is of the same type as the world's device.

        Raises:
            ValueError: if ``device`` is of another type.
        """
        if torch.device(device).type != self.dreams.world.device.type:
            raise ValueError(
                f"device: expected the world's device, {self.dreams.world.device}, got {device!r}; open the world there"
            )
        return self

    def _batched(self, specs: dict[str, TensorSpec]) -> Composite:
        return Composite(specs, device=self.device).expand(self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        self._seed = seed

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        options = kwargs.pop("options", None) or {}
        if kwargs or set(options) - {"temperature"}:
            unknown = sorted({*kwargs, *options} - {"temperature"})
            raise TypeError(f"reset: expected no arguments except the tensordict and options with temperature, got {unknown}")
        chosen = None if tensordict is None else tensordict.get("_reset", None)
        if chosen is None:
            observations, _ = self.dreams.reset(seed=self._seed, options=options)
            self._seed, rows = None, torch.ones_like(self._terminated)
        else:
            rows = chosen.reshape(self._terminated.shape)
            observations, _ = self.dreams.reset(options={**options, "reset_mask": rows[:, 0]})
        self._terminated, self._truncated = self._terminated & ~rows, self._truncated & ~rows
        return self._result(observations)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = tensordict.get("action")
        if isinstance(actions, TensorDictBase):
            actions = actions.to_dict()
        if self._check_actions:
            actions = self.dreams.world.action_features.check(actions, self.dreams.num_envs, name="action")
            self._check_rows(tensordict.get("_step", None))
        observations, reward, terminated, truncated, _ = self.dreams.step(actions)
        self._terminated = self._terminated | terminated.unsqueeze(-1)
        self._truncated = self._truncated | truncated.unsqueeze(-1)
        return self._result(observations, reward=reward.unsqueeze(-1))

    def _check_rows(self, stepped: Tensor | None) -> None:
        """Raise unless exactly the running dreams are stepped."""
        done = self._terminated | self._truncated
        stepped = torch.ones_like(done) if stepped is None else stepped.reshape(done.shape)
        if bool((wrong := done & stepped).any()):
            raise gym.error.ResetNeeded(
                f"step: expected no finished dream, got {wrong[:, 0].nonzero().flatten().tolist()}; reset them with "
                '"_reset", as rollout(..., break_when_any_done=False) and the collectors do'
            )
        if bool((wrong := ~done & ~stepped).any()):
            missing = wrong[:, 0].nonzero().flatten().tolist()
            raise ValueError(f"_step: expected all dreams that are not finished, got a mask without {missing}")

    def _result(self, observations: Value, **values: Tensor) -> TensorDictBase:
        flags = {"terminated": self._terminated.clone(), "truncated": self._truncated.clone()}
        values = {"observation": observations, **values, "done": self._terminated | self._truncated, **flags}
        return TensorDict(values, batch_size=self.batch_size, device=self.device)


class StatelessTorchRLEnv(EnvBase):  # type: ignore[misc]  # TorchRL has no types
    """Dreams without a state of their own, which TorchRL's planners (`torchrl.modules.CEMPlanner`) need.

    The tensordict holds the state: ``z`` (..., D), and ``h`` and ``c`` (..., L, H) of M's L layers. So a step takes any batch.
    It reads ``action`` and writes the next state, ``reward`` and ``done``, each (..., 1). `state` turns the state of real
    episodes, such as a `LatentTracker` returns, into a tensordict to plan from.

    Args:
        world: a world model, or its path.
        temperature: tau >= 0 of the dreams.
        reward: a function that replaces M's reward head, as in `Dreams`.
        device: device of a world model given as a path.

    Raises:
        ValueError: if the world model predicts no rewards and there is no ``reward``.
        TypeError: if the action space has no spec in TorchRL.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> StatelessTorchRLEnv:
        """Tell TorchRL that batches may have any shape."""
        made: StatelessTorchRLEnv = super().__new__(cls, *args, _batch_locked=False, **kwargs)
        return made

    def __init__(
        self,
        world: WorldModel | str | Path,
        *,
        temperature: float = 1.0,
        reward: Reward | None = None,
        device: str | torch.device | None = None,
    ):
        world = open_world(world, device)
        super().__init__(device=world.device, batch_size=torch.Size([]))
        self._dreams = Dreams(world, 1, temperature=temperature, reward=reward)
        check_rewards(world, self._dreams.reward)
        self._random = self._dreams.generator(0)
        first = self.state(StartBank.of(world).sample(1, self._random))[0]
        self.observation_spec = Composite({name: Unbounded(part.shape, device=self.device) for name, part in first.items()})
        self.state_spec = self.observation_spec.clone()
        self.action_spec = _spec(world.action_space, self.device)
        self.reward_spec = Unbounded((1,), device=self.device)
        flag = Categorical(2, shape=(1,), dtype=torch.bool, device=self.device)
        self.done_spec = Composite({name: flag.clone() for name in ("done", "terminated")}, device=self.device)

    def state(self, state: LatentState) -> TensorDictBase:
        """Return the state of B episodes as a tensordict of batch size (B,)."""
        parts = {"z": state.z, "h": state.lstm.h.transpose(0, 1), "c": state.lstm.c.transpose(0, 1)}
        return TensorDict(parts, batch_size=state.z.shape[:1], device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._random.manual_seed(seed)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        shape = self.batch_size if tensordict is None else tensordict.batch_size
        start = self.state(StartBank.of(self._dreams.world).sample(math.prod(shape), self._random)).reshape(shape)
        return start.update({name: torch.zeros(*shape, 1, dtype=torch.bool) for name in ("done", "terminated")})

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        shape, flat = tensordict.batch_size, tensordict.reshape(-1)
        lstm = State(*(flat[name].transpose(0, 1).contiguous() for name in ("h", "c")))
        now = LatentState(flat["z"], lstm, torch.ones(len(flat), dtype=torch.bool, device=self.device))
        action = flat["action"].to_dict() if isinstance(flat["action"], TensorDictBase) else flat["action"]
        features = self._dreams.world.action_features.flatten(action).float()
        drawn = self._dreams.draw(now, features, generator=self._random)
        assert drawn.reward is not None
        ended = torch.zeros_like(now.alive)
        if drawn.termination_logit is not None:
            uniform = torch.empty_like(drawn.reward).uniform_(generator=self._random)
            ended = uniform >= self._dreams.continuation(drawn.termination_logit)
        after = self.state(LatentState(drawn.z, drawn.lstm, now.alive))
        after.update({"reward": drawn.reward.unsqueeze(-1), "done": ended.unsqueeze(-1), "terminated": ended.unsqueeze(-1)})
        return after.reshape(shape)


def _spec(space: gym.Space, device: torch.device) -> TensorSpec:
    """Convert a space to a TorchRL spec.

    Raises:
        TypeError: if TorchRL has no spec for the space.
    """
    if isinstance(space, spaces.Dict):
        return Composite({name: _spec(child, device) for name, child in space.spaces.items()}, device=device)
    dtype = None if space.dtype is None else torch.from_numpy(np.empty(0, dtype=space.dtype)).dtype
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return Categorical(int(space.n), device=device, dtype=dtype)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and not space.start.any():
        return MultiCategorical(space.nvec.tolist(), device=device, dtype=dtype)
    if isinstance(space, spaces.MultiBinary):
        return Binary(shape=space.shape, device=device, dtype=dtype)
    if isinstance(space, spaces.Box) and space.is_bounded("both"):
        low, high = (torch.as_tensor(bound, device=device) for bound in (space.low, space.high))
        return Bounded(low, high, shape=torch.Size(space.shape), device=device, dtype=dtype)
    if isinstance(space, spaces.Box):
        return Unbounded(space.shape, device=device, dtype=dtype)
    raise TypeError(f"space: expected a space with a TorchRL spec (no Tuple, discrete values from 0), got {space}")
