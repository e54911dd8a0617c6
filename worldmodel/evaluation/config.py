"""Configuration of scores in dreams and in reality."""

from __future__ import annotations

from dataclasses import dataclass

from worldmodel.dream import DreamPrecision, Reward, TerminationRule, load_reward
from worldmodel.runtime import PRECISIONS, check_integers, check_numbers


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Sizes and dreams of `evaluate` and `probe`.

    Args:
        num_episodes: real episodes of each policy.
        num_dreams: dreamed episodes of each policy.
        temperature: tau >= 0 of the dreams.
        termination: how dreams end; see `Dreams`.
        precision: of the dreams; see `Dreams`.
        reward: a function that replaces the rewards of dreams and of the environment; see `worldmodel.dream.rewards`.

    Raises:
        TypeError: naming the field of another type.
        ValueError: naming the field that is out of range.
    """

    num_episodes: int = 100
    num_dreams: int = 1024
    temperature: float = 1.0
    termination: TerminationRule = "sample"
    precision: DreamPrecision = "float32"
    reward: Reward | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        check_integers(self, {"num_episodes": 1, "num_dreams": 1})
        check_numbers(self, {"temperature": "[0, inf)"})
        load_reward(self.reward)
        for name, choices in {"termination": ("threshold", "sample"), "precision": PRECISIONS}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
