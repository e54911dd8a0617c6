"""What kind of dream an environment is, in words that are JSON-able, and what follows from them for a world model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from worldmodel.dream import StartBank, TerminationRule
from worldmodel.mixtures import check_temperature
from worldmodel.models import WorldModel
from worldmodel.runtime import check_integers
from worldmodel.spaces import Value

ObservationKind = Literal["z", "zh", "zhc", "decoded"]
RewardFunction = Callable[[Value, Value, Value], Tensor]  # batches of (observation, action, next observation) -> rewards (B,)


@dataclass(frozen=True, kw_only=True)
class DreamOptions:
    """What kind of dream an environment is; every field but a callable ``reward`` is JSON-able.

    Args:
        observation: what the agent sees: latents "z", the paper's features "zh" or "zhc", or the "decoded" observation in
            the real environment's own space.
        temperature: tau >= 0, or a range (low, high) from which each episode draws its own, uniformly.
        termination: "sample" draws the end with probability p, "threshold" ends a dream when p > 0.5, as in the paper.
        horizon: steps after which an episode is truncated; None takes the limit of the environment that the data came from.
        reward: None takes M's reward head; else a function of batches of decoded (observation, action, next observation),
            nested tensors in the spaces' own form, that returns rewards (B,); or its name, "module:function".
        prefix_length: real steps that prime M before the dream begins; 0 starts at the first frames that the model keeps.
        prefix_data: path of the store of episodes that the prefixes are taken from.

    Raises:
        ValueError: naming the field that is out of range.
    """

    observation: ObservationKind = "zh"
    temperature: float | Sequence[float] = 1.0
    termination: TerminationRule = "sample"
    horizon: int | None = None
    reward: RewardFunction | str | None = None
    prefix_length: int = 0
    prefix_data: str | Path | None = None

    def __post_init__(self) -> None:
        """Check every field that does not need the world model."""
        if self.observation not in get_args(ObservationKind):
            raise ValueError(f"observation: expected one of {get_args(ObservationKind)}, got {self.observation!r}")
        low, high = self.temperature_range
        check_temperature(torch.tensor([low, high]))
        if low > high:
            raise ValueError(f"temperature: expected a number or a range (low, high), got {self.temperature}")
        check_integers(self, {"horizon": 1, "prefix_length": 0}, optional=("horizon",))
        if (self.prefix_length > 0) != (self.prefix_data is not None):
            raise ValueError(
                "prefix_length, prefix_data: expected both or neither, got "
                f"{self.prefix_length} and {None if self.prefix_data is None else str(self.prefix_data)!r}"
            )
        if not (self.reward is None or isinstance(self.reward, str) or callable(self.reward)):
            raise ValueError(f"reward: expected None, a function or its name, 'module:function', got {self.reward!r}")

    @property
    def temperature_range(self) -> tuple[float, float]:
        """Lowest and highest temperature.

        Raises:
            ValueError: if ``temperature`` is neither a number nor two.
        """
        try:
            values = np.asarray(self.temperature, dtype=np.float64)
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.shape not in ((), (2,)):
            raise ValueError(f"temperature: expected a number or a range (low, high), got {self.temperature!r}")
        low, high = np.broadcast_to(values, 2).tolist()
        return low, high

    def start_bank(self, world: WorldModel) -> StartBank:
        """Where the dreams begin.

        Raises:
            ValueError: if no episode is longer than the prefix, or the data are of another environment.
        """
        if self.prefix_data is None:
            return StartBank.of(world)
        return StartBank.after_prefixes(world, self.prefix_data, self.prefix_length)

    def reward_function(self) -> RewardFunction | None:
        """The function that gives the rewards; None where M's reward head does.

        Raises:
            ValueError: if a name is not that of a function, "module:function".
        """
        if self.reward is None or callable(self.reward):
            return self.reward
        module, _, name = self.reward.partition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"reward: expected a function or its name, 'module:function', got {self.reward!r}") from error
        if not callable(function):
            raise ValueError(f"reward: expected the name of a function, got {self.reward!r}, which is {function!r}")
        return function

    def check_world(self, world: WorldModel) -> None:
        """Refuse a world model without what these options need.

        Raises:
            ValueError: naming what is missing and what to do.
        """
        if self.reward is None and world.mdnrnn.reward_head is None:
            raise ValueError(
                "reward: expected a world model that predicts rewards, got one without a reward head; fit it with "
                "reward_head=True, or pass a reward function"
            )
        if self.observation == "decoded" or self.reward is not None:
            check_decoder(world)


def check_decoder(world: WorldModel) -> None:
    """Raise if the world model's V cannot turn z into an observation.

    Raises:
        ValueError: naming the V.
    """
    if not world.vision.has_decoder:
        raise ValueError(
            f"world: expected a V with a decoder, got {type(world.vision).__name__} without one; observe 'z', 'zh' or 'zhc', "
            "take rewards from the reward head, and do not render"
        )
