"""Configuration and results of `iterate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from worldmodel.agents import METHODS, Method, OpenAIESConfig
from worldmodel.data import POLICIES
from worldmodel.dream import Scores
from worldmodel.mixtures import check_temperature
from worldmodel.models import FEATURE_KINDS, FeatureKind, MDNRNNConfig
from worldmodel.runtime import check_integers
from worldmodel.training import DataConfig, TrainingConfig

SCORES = ("validation", "real", "dream", "random")


@dataclass(frozen=True, kw_only=True)
class IterationConfig:
    """Sizes and budgets of one round of `iterate`.

    Args:
        max_rounds: rounds at most.
        patience_rounds: stop after so many rounds in a row whose validation score is not the best yet; None runs them all.
        first_policy: policy of round 1; "random", or "repeat" where single random actions get nowhere (as in Acrobot-v1).
        first_episodes: its episodes.
        controller_episodes: episodes of the latest controller, in each later round.
        exploration: share of that controller's steps at which it takes a random action, as its own alone may be too narrow.
        mdnrnn: architecture and loss of M.
        data_config: windows and batches.
        training_config: how to train M.
        temperature: tau of the dreams in which the controller is searched.
        features: what the controller sees: "z", "zh" or "zhc".
        controller_hidden_size: units of the controller's hidden layer; None for a linear one.
        method: how it is searched: "cma" (CMA-ES), or "openai-es" for thousands of weights.
        openai_es: how OpenAI-ES climbs.
        population: candidates of a generation.
        rollouts: dreams of each candidate.
        generations: generations at most.
        sigma: standard deviation of the candidates' weights; CMA-ES only starts with it.
        patience: the search ends after so many tests in a row without an improvement of 1 %; None never ends it early.
        test_dreams: dreams of each such test.
        validation_episodes: real episodes by which the loop decides whether to stop and which round was best.
        test_episodes: other real episodes, by which each round's score is reported.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: naming the field that is out of range.
    """

    max_rounds: int = 5
    patience_rounds: int | None = 2
    first_policy: str = "random"
    first_episodes: int = 1000
    controller_episodes: int = 100
    exploration: float = 0.0
    mdnrnn: MDNRNNConfig = field(default_factory=lambda: MDNRNNConfig(hidden_size=64))
    data_config: DataConfig = field(default_factory=DataConfig)
    training_config: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(num_updates=800, learning_rate=1e-2, clip_norm=10.0)
    )
    temperature: float = 1.0
    features: FeatureKind = "zh"
    controller_hidden_size: int | None = None
    method: Method = "cma"
    openai_es: OpenAIESConfig = field(default_factory=OpenAIESConfig)
    population: int = 24
    rollouts: int = 8
    generations: int = 30
    sigma: float = 0.1
    patience: int | None = 2
    test_dreams: int = 256
    validation_episodes: int = 30
    test_episodes: int = 100

    def __post_init__(self) -> None:
        """Check what the stages would check only later."""
        optional = ("patience_rounds", "controller_hidden_size", "patience")
        counts = ("max_rounds", "first_episodes", "controller_episodes", "rollouts", "generations", "test_dreams")
        least = dict.fromkeys((*counts, "validation_episodes", "test_episodes", *optional), 1)
        check_integers(self, {**least, "population": 2}, optional=optional)
        check_temperature(self.temperature)
        if not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma: expected a positive finite number, got {self.sigma}")
        if not 0 <= self.exploration <= 1:
            raise ValueError(f"exploration: expected a probability from 0 to 1, got {self.exploration}")
        for name, choices in (("features", FEATURE_KINDS), ("method", METHODS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.method == "openai-es" and self.population % 2:
            raise ValueError(f"population: expected an even number for openai-es, got {self.population}")
        if self.first_policy not in POLICIES:
            raise ValueError(f"first_policy: expected one of {', '.join(POLICIES)}, got {self.first_policy!r}")

    def identity(self) -> dict[str, Any]:
        """Return what the results depend on, for the record of a run."""
        training = self.training_config.identity() | ({"calibrate": True} if self.training_config.calibrate else {})
        return asdict(self) | {"data_config": self.data_config.identity(), "training_config": training}


@dataclass(frozen=True)
class Round:
    """What a round reached.

    Args:
        number: from 1.
        directory: where its data, world, controller and scores are.
        validation: the controller in the real environment, on the episodes that decide when to stop.
        real: the controller in the real environment, on episodes that decide nothing.
        dream: the controller in the dream.
        random: random play in the real environment.
        seconds: duration of each stage, in the run that completed the round.
    """

    number: int
    directory: Path
    validation: Scores
    real: Scores
    dream: Scores
    random: Scores
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON-able data."""
        scores = {name: getattr(self, name).to_json() for name in SCORES}
        return {"number": self.number, **scores, "seconds": self.seconds}


def best_round(rounds: Sequence[Round]) -> Round:
    """The round with the best validation score, the earliest of equals; its ``real`` score is then no lucky one."""
    return max(rounds, key=lambda round_: round_.validation.mean)


def has_stalled(rounds: Sequence[Round], patience_rounds: int | None) -> bool:
    """Whether the last ``patience_rounds`` rounds all had no better validation score than those before them."""
    return patience_rounds is not None and bool(rounds) and rounds[-1].number - best_round(rounds).number >= patience_rounds


def summarize(rounds: Sequence[Round], *, target: float | None = None) -> dict[str, Any]:
    """Say as JSON-able data what a loop reached: the best round's paths, whether the target was met, and every round's scores.

    Raises:
        ValueError: if there is no round.
    """
    if not rounds:
        raise ValueError("rounds: expected at least one, got none")
    best = best_round(rounds)
    return {
        "target": target,
        "reached": target is not None and best.real.mean >= target,
        "best_round": best.number,
        "world_model": str(best.directory / "world"),
        "controller": str(best.directory / "controller"),
        "rounds": [round_.to_json() for round_ in rounds],
    }
