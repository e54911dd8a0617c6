"""Configuration and results of `iterate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from worldmodel.agents import ControllerConfig, PPOConfig, SearchConfig
from worldmodel.data import POLICIES, ActionNoise
from worldmodel.dream import Scores, load_reward, reward_name
from worldmodel.experiments.presets import ImprovementPreset, VisionPreset
from worldmodel.models import MDNRNNConfig, VAEConfig
from worldmodel.runtime import check_flags, check_integers, check_numbers
from worldmodel.training import DataConfig, TrainingConfig

SCORES = ("validation", "real", "dream", "random")


@dataclass(frozen=True, kw_only=True)
class RoundOptions:
    """How later rounds differ from the first, and what V and M keep from round to round.

    Args:
        first_max_steps: truncate the episodes of round 1 after this many steps, for a first policy that soon leaves the states
            that matter; None truncates them as all others.
        noise: autocorrelated noise on the actions of the collecting agent; without size (``scale`` 0) there is none.
        keep_best: later rounds collect with the best agent so far, by its validation score, and improve it; False: the latest.
        continue_m: M of a later round starts from the round before and is trained by ``training``; False: from scratch.
        training: training of M in later rounds, with ``continue_m``.
        continue_v: V goes on learning, in each later round, from all data and by ``vision_training``; all data are encoded
            again, and M starts from scratch. False: V is trained in round 1 only.
        vision_training: training of V in later rounds, with ``continue_v``.
        improve: agents are improved by PPO in short dreams instead of searched by evolution; the first starts with random
            weights.
        improvement: numbers of PPO and its short dreams.
        start_rounds: number of the latest rounds in whose episodes the short dreams start.
        test_horizon: steps of the dreams that choose among the agents of one training; None: as long as episodes.

    Raises:
        TypeError: naming the field of another type.
        ValueError: naming the field that is out of range, or if both V and M shall continue.
    """

    first_max_steps: int | None = None
    noise: ActionNoise = field(default_factory=lambda: ActionNoise(scale=0.0))
    keep_best: bool = False
    continue_m: bool = False
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(num_updates=200))
    continue_v: bool = False
    vision_training: TrainingConfig = field(default_factory=lambda: TrainingConfig(num_updates=200))
    improve: bool = False
    improvement: ImprovementPreset = field(default_factory=lambda: ImprovementPreset(ppo=PPOConfig()))
    start_rounds: int = 2
    test_horizon: int | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        optional = ("first_max_steps", "test_horizon")
        check_integers(self, dict.fromkeys((*optional, "start_rounds"), 1), optional=optional)
        check_flags(self, "keep_best", "continue_m", "continue_v", "improve")
        if self.continue_m and self.continue_v:
            raise ValueError(
                "continue_m, continue_v: expected one of them, as M's weights are for the latents of one V, got both"
            )


@dataclass(frozen=True, kw_only=True)
class IterationConfig:
    """Sizes and budgets of one round of `iterate`.

    Args:
        max_rounds: maximum number of rounds.
        patience_rounds: stop after this many consecutive rounds without a new best validation score; None runs all rounds.
        first_policy: policy of round 1; "random", or "repeat" if single random actions achieve nothing (as in Acrobot-v1).
        first_episodes: episodes of round 1.
        controller_episodes: episodes of the latest controller, in each later round.
        exploration: probability of a random action in these episodes, because the controller's own actions may vary too little.
        mdnrnn: architecture and loss of M.
        data_config: windows and batches.
        training_config: training of M.
        controller: kind of controller.
        search: numbers of the search of the controller.
        temperature: temperature of the dreams of the search.
        reward: name "module:function" of a function that replaces all rewards, dreamed and real; from Python also the function
            itself. See `worldmodel.dream.rewards`. A ``train_agent`` must give it to its own dreams.
        rollouts: dreams per candidate of the search.
        validation_episodes: real episodes that decide when to stop and which round was best.
        test_episodes: other real episodes, for the reported score of each round.
        vision: training of V, if observations hold an image.
        rounds: how rounds differ, and what they keep.

    Raises:
        TypeError: naming the field of another type.
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
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    search: SearchConfig = field(
        default_factory=lambda: SearchConfig(population=24, generations=30, patience=2, test_dreams=256)
    )
    temperature: float = 1.0
    reward: str | None = None
    rollouts: int = 8
    validation_episodes: int = 30
    test_episodes: int = 100
    vision: VisionPreset = field(default_factory=lambda: _default_vision())
    rounds: RoundOptions = field(default_factory=RoundOptions)

    def __post_init__(self) -> None:
        """Check what the stages would check only later."""
        counts = ("max_rounds", "patience_rounds", "first_episodes", "controller_episodes", "rollouts")
        check_integers(self, dict.fromkeys((*counts, "validation_episodes", "test_episodes"), 1), optional=("patience_rounds",))
        check_numbers(self, {"temperature": "[0, inf)", "exploration": "[0, 1]"})
        load_reward(self.reward)
        if self.first_policy not in POLICIES:
            raise ValueError(f"first_policy: expected one of {', '.join(POLICIES)}, got {self.first_policy!r}")

    def identity(self) -> dict[str, Any]:
        """Return what the results depend on, for the record of a run."""
        training = self.training_config.identity() | ({"calibrate": True} if self.training_config.calibrate else {})
        parts = {"mdnrnn": self.mdnrnn.identity(), "data_config": self.data_config.identity(), "training_config": training}
        found = asdict(self) | parts
        defaults = {"vision": _default_vision(), "rounds": RoundOptions()}
        for name, default in defaults.items():  # left out, as in records of earlier versions
            if getattr(self, name) == default:
                del found[name]
        del found["reward"]
        return found if self.reward is None else found | {"reward": reward_name(self.reward)}


def _default_vision() -> VisionPreset:
    return VisionPreset(config=VAEConfig(), training=TrainingConfig(num_updates=2_000))


@dataclass(frozen=True)
class Round:
    """Results of one round.

    Args:
        number: number of the round, from 1.
        directory: directory of its data, world model, controller and scores.
        validation: scores of the controller in the real environment, on the episodes that decide when to stop.
        real: scores of the controller in the real environment, on other episodes.
        dream: scores of the controller in dreams.
        random: scores of random play in the real environment.
        seconds: duration of each stage in the call that completed the round.
    """

    number: int
    directory: Path
    validation: Scores
    real: Scores
    dream: Scores
    random: Scores
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return all numbers as JSON-serialisable data."""
        scores = {name: getattr(self, name).to_json() for name in SCORES}
        return {"number": self.number, **scores, "seconds": self.seconds}


def best_round(rounds: Sequence[Round]) -> Round:
    """Return the round with the best validation score, the earliest of equals; this does not bias its ``real`` score."""
    return max(rounds, key=lambda round_: round_.validation.mean)


def has_stalled(rounds: Sequence[Round], patience_rounds: int | None) -> bool:
    """Return whether the last ``patience_rounds`` rounds brought no new best validation score."""
    return patience_rounds is not None and bool(rounds) and rounds[-1].number - best_round(rounds).number >= patience_rounds


def summarize(rounds: Sequence[Round], *, target: float | None = None) -> dict[str, Any]:
    """Summarise a loop as JSON-serialisable data: the best round's paths, whether the target was met, and every round's scores.

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
