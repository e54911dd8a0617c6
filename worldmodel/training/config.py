"""How a training goes: its numbers, and the learning rate of each update."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from worldmodel.runtime import PRECISIONS, check_integers
from worldmodel.training.optimizers import OPTIMIZERS

ADAM_RATE, MUON_RATE = 3e-3, 1e-2


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Args:
        num_updates: optimiser steps.
        learning_rate: the optimiser's peak rate. None is 3e-3; for `fit` with Muon it is 1e-2, or less for more than 128 hidden
            units.
        final_learning_rate: rate at the last update; a cosine leads there from the peak.
        warmup_updates: updates over which the rate rises linearly from 0.
        clip_norm: largest norm of the gradient; None does not clip the norm.
        clip_value: largest absolute value of each entry of the gradient (the authors' way); None does not clip values.
        precision: "float32", "bfloat16" for matrix products alone, or "auto" for the latter where the device has units for it.
        evaluate_every: updates between evaluations on held-out data.
        max_test_batches: an evaluation takes at most so many batches, spread evenly over the held-out data and always the same,
            so that its cost does not grow with the data.
        patience: stop after so many evaluations without improvement; None never stops early.
        optimizer: "adam", or "muon", with which V and M need fewer updates (see `worldmodel.training.optimizers`); "auto" is
            Muon in `fit` and Adam elsewhere.
        calibrate: after the training of M, calibrate its termination probabilities on the held-out episodes (see
            `calibrate_termination`); V has none.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: naming the field that is out of range.
    """

    num_updates: int = 2000
    learning_rate: float | None = None
    final_learning_rate: float = 1e-5
    warmup_updates: int = 0
    clip_norm: float | None = 10.0
    clip_value: float | None = None
    precision: str = "float32"
    evaluate_every: int = 200
    max_test_batches: int = 50
    patience: int | None = None
    optimizer: str = "auto"
    calibrate: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        at_least_one = dict.fromkeys(("num_updates", "evaluate_every", "max_test_batches", "patience"), 1)
        check_integers(self, {**at_least_one, "warmup_updates": 0}, optional=("patience",))
        for name in ("clip_norm", "clip_value"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected None or a positive number, got {getattr(self, name)}")
        peak = ADAM_RATE if self.learning_rate is None else self.learning_rate
        if not 0 <= self.final_learning_rate <= peak or not peak > 0:
            raise ValueError(
                f"learning_rate, final_learning_rate: expected 0 <= final <= peak and a positive peak, "
                f"got {peak} and {self.final_learning_rate}"
            )
        if self.warmup_updates >= self.num_updates:
            raise ValueError(
                f"warmup_updates: expected an integer from 0 to below num_updates {self.num_updates}, got {self.warmup_updates}"
            )
        for name, choices in {"precision": PRECISIONS, "optimizer": ("auto", *OPTIMIZERS)}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {choices}, got {getattr(self, name)!r}")

    def resolve(self, *, hidden_size: int | None = None) -> TrainingConfig:
        """Replace ``learning_rate=None`` and ``optimizer="auto"`` by their values.

        Args:
            hidden_size: H of M; None for other models.
        """
        optimizer, rate = self.optimizer, self.learning_rate
        if optimizer == "auto":
            optimizer = "adam" if hidden_size is None else "muon"
        if rate is None:
            fast = optimizer == "muon" and hidden_size is not None
            rate = MUON_RATE * min(1.0, math.sqrt(128 / (hidden_size or 128))) if fast else ADAM_RATE
        return replace(self, optimizer=optimizer, learning_rate=rate)

    def identity(self) -> dict[str, Any]:
        """Return what the training depends on, for the record of a run; ``calibrate`` comes after it and is left out."""
        return {name: value for name, value in asdict(self.resolve()).items() if name != "calibrate"}


def learning_rate(config: TrainingConfig, update: int) -> float:
    """Rate of update number ``update`` (from 0): linear warm-up, then a cosine from the peak to the final rate."""
    config = config.resolve()
    assert config.learning_rate is not None
    if update < config.warmup_updates:
        return config.learning_rate * (update + 1) / config.warmup_updates
    progress = (update - config.warmup_updates) / max(1, config.num_updates - 1 - config.warmup_updates)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine


@dataclass(frozen=True, kw_only=True)
class FrameConfig:
    """How frames become batches.

    Args:
        batch_size: images in a batch.
        test_fraction: part of the episodes that is held out.
        min_length: episodes of fewer steps are left out.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: naming the field that is out of range.
    """

    batch_size: int = 256
    test_fraction: float = 0.05
    min_length: int = 1

    def __post_init__(self) -> None:
        """Check every field."""
        check_integers(self, {"batch_size": 1, "min_length": 1})
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"test_fraction: expected a number in [0, 1), got {self.test_fraction}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How episodes become batches.

    Args:
        window: T, steps of a window that count in the loss. A window starts anywhere, with M's state zero before its burn-in: M
            never learns to remember for longer, however long its dreams are.
        burn_in: steps before a window that warm up the LSTM without counting.
        batch_size: B, windows in a batch.
        test_fraction: part of the episodes that is held out.
        min_length: episodes of fewer steps are left out.
        resident: True keeps the encoded data on the device (fast, if they fit), False reads windows from disk as they come (any
            size), None decides by size. The result is the same.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: naming the field that is out of range.
    """

    window: int = 64
    burn_in: int = 0
    batch_size: int = 64
    test_fraction: float = 0.1
    min_length: int = 1
    resident: bool | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        check_integers(self, {"window": 1, "burn_in": 0, "batch_size": 1, "min_length": 1})
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"test_fraction: expected a number in [0, 1), got {self.test_fraction}")

    def identity(self) -> dict[str, Any]:
        """Return what the batches depend on, for the record of a run; ``resident`` changes no result and is left out."""
        return {name: value for name, value in asdict(self).items() if name != "resident"}
