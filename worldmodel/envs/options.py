"""Options of dream environments, and their validation against a world model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from worldmodel.dream import (
    REWARD_MODES,
    LatentReward,
    MemberPer,
    Penalty,
    Reward,
    RewardMode,
    StartBank,
    TerminationRule,
    load_reward,
)
from worldmodel.mixtures import check_temperature
from worldmodel.models import WorldModel
from worldmodel.runtime import check_integers

ObservationKind = Literal["z", "zh", "zhc", "decoded"]


@dataclass(frozen=True, kw_only=True)
class DreamOptions:
    """Options of a dream environment, JSON-serialisable except a callable ``reward`` and a `Penalty`.

    Args:
        observation: observation of the agent: latents "z", the paper's features "zh" or "zhc", or
            the "decoded" observation in the space of the real environment.
        temperature: tau >= 0, or a range (low, high) from which each episode samples uniformly.
        termination: "sample" terminates with probability p at each step, "threshold" if p > 0.5 as
            in the paper.
        horizon: steps after which an episode is truncated; None takes the limit of the environment
            in which the data were collected.
        reward: None uses M's reward head. Otherwise a function of batches of decoded (observation,
            action, next observation), as nested tensors of the spaces, that returns rewards (B,);
            a `worldmodel.dream.LatentReward`; or the name of one, "module:function".
        reward_mode: "expected" pays the mean of the reward that M predicts, "sampled" draws it.
        member_per: of an ensemble, "dream": an episode follows one member; "step": another one at each step.
        penalty: weight of a penalty for where the members of an ensemble disagree, or a `worldmodel.dream.Penalty`.
        prefix_length: number of real steps that prime M before the dream starts; 0 starts at the
            first frames stored in the world model.
        prefix_data: path of the store with the episodes for the prefixes.

    Raises:
        ValueError: if a field is out of range. The message names the field.
    """

    observation: ObservationKind = "zh"
    temperature: float | Sequence[float] = 1.0
    termination: TerminationRule = "sample"
    horizon: int | None = None
    reward: Reward | None = None
    reward_mode: RewardMode = "expected"
    member_per: MemberPer = "dream"
    penalty: Penalty | float = 0.0
    prefix_length: int = 0
    prefix_data: str | Path | None = None

    def __post_init__(self) -> None:
        """Validate all fields as far as possible without a world model."""
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
        if not isinstance(self.reward, str):
            load_reward(self.reward)
        if self.reward_mode not in REWARD_MODES:
            raise ValueError(f"reward_mode: expected one of {REWARD_MODES}, got {self.reward_mode!r}")

    @property
    def temperature_range(self) -> tuple[float, float]:
        """Lowest and highest temperature.

        Raises:
            ValueError: if ``temperature`` is neither a number nor a pair of numbers.
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
        """Return the start states of the dreams.

        Raises:
            ValueError: if no episode is longer than the prefix, or the data are from another
                environment.
        """
        if self.prefix_data is None:
            return StartBank.of(world)
        return StartBank.after_prefixes(world, self.prefix_data, self.prefix_length)

    def check_world(self, world: WorldModel) -> None:
        """Validate that a world model has the reward head and the decoder that these options need.

        Raises:
            ValueError: if one is missing. The message names the fix.
        """
        if self.reward is None and world.mdnrnn.reward_head is None:
            raise ValueError(
                "reward: expected a world model with a reward head, got one without; fit it with reward_head=True, or pass "
                "a reward function"
            )
        if self.observation == "decoded" or not (self.reward is None or isinstance(load_reward(self.reward), LatentReward)):
            check_decoder(world)


def check_decoder(world: WorldModel) -> None:
    """Validate that the V of a world model has a decoder.

    Raises:
        ValueError: if it has none.
    """
    if not world.vision.has_decoder:
        raise ValueError(
            f"world: expected a V with a decoder, got {type(world.vision).__name__} without one; use observation 'z', 'zh' or "
            "'zhc', take rewards from the reward head, and do not render"
        )
