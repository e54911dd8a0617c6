"""Configuration of a training and of its data, and the learning rate of each update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from worldmodel.mixtures import LatentLayout
from worldmodel.runtime import PRECISIONS, Precision, check_flags, check_integers, check_names, check_numbers
from worldmodel.training.optimizers import OPTIMIZERS, Optimizer

PEAK_RATE, MODEL_RATE = 3e-3, 6e-3  # of V and other models, and of M
MODEL_RATE_SIZE = 128  # hidden units of M above which the rate falls with their square root


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Args:
        num_updates: optimiser steps.
        learning_rate: the optimiser's peak rate. None is 6e-3 for M, less for more than 128 hidden units, and 3e-3 for V.
        final_learning_rate: rate at the last update; a cosine leads there from the peak.
        warmup_updates: updates over which the rate rises linearly from 0.
        clip_norm: largest norm of the gradient; None does not clip the norm.
        clip_value: largest absolute value of each entry of the gradient (the authors' way); None does not clip values.
        precision: "float32", "bfloat16" for matrix products alone, or "auto" for the latter where the device has units for it.
        evaluate_every: updates between evaluations on held-out data.
        max_test_batches: maximum number of batches in an evaluation, spread evenly over the held-out data and always the same,
            so that its cost does not grow with the data.
        patience: number of evaluations without improvement after which training stops; None never stops early.
        optimizer: "adam", or "muon", with which V and M need fewer updates (see `worldmodel.training.optimizers`).
        calibrate: after the training of M, calibrate its termination probabilities on the held-out episodes (see
            `calibrate_termination`); V has none.

    Raises:
        TypeError: if a field has another type.
        ValueError: naming the field that is out of range.
    """

    num_updates: int = 2000
    learning_rate: float | None = None
    final_learning_rate: float = 1e-5
    warmup_updates: int = 0
    clip_norm: float | None = 10.0
    clip_value: float | None = None
    precision: Precision = "float32"
    evaluate_every: int = 200
    max_test_batches: int = 50
    patience: int | None = None
    optimizer: Optimizer = "adam"
    calibrate: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        at_least_one = dict.fromkeys(("num_updates", "evaluate_every", "max_test_batches", "patience"), 1)
        check_integers(self, {**at_least_one, "warmup_updates": 0}, optional=("patience",))
        clips = dict.fromkeys(("clip_norm", "clip_value"), "(0, inf)")
        check_numbers(
            self, {"learning_rate": "(0, inf)", "final_learning_rate": "[0, inf)", **clips}, optional=("learning_rate", *clips)
        )
        check_flags(self, "calibrate")
        peak = PEAK_RATE if self.learning_rate is None else self.learning_rate
        if self.final_learning_rate > peak:
            raise ValueError(
                f"learning_rate, final_learning_rate: expected 0 <= final <= peak and a positive peak, "
                f"got {peak} and {self.final_learning_rate}"
            )
        if self.warmup_updates >= self.num_updates:
            raise ValueError(
                f"warmup_updates: expected an integer from 0 to below num_updates {self.num_updates}, got {self.warmup_updates}"
            )
        for name, choices in {"precision": PRECISIONS, "optimizer": OPTIMIZERS}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {choices}, got {getattr(self, name)!r}")

    def resolve(self, *, hidden_size: int | None = None) -> TrainingConfig:
        """Replace ``learning_rate=None`` by its value.

        Args:
            hidden_size: H of M; None for other models.
        """
        if self.learning_rate is not None:
            return self
        rate = PEAK_RATE
        if hidden_size is not None:
            rate = MODEL_RATE * math.sqrt(min(1.0, MODEL_RATE_SIZE / hidden_size))
        return replace(self, learning_rate=rate)

    def identity(self) -> dict[str, Any]:
        """Return what the training depends on, for the record of a run; ``calibrate`` comes after it and is left out."""
        return {name: value for name, value in asdict(self.resolve()).items() if name != "calibrate"}


def learning_rate(config: TrainingConfig, update: int) -> float:
    """Rate of update number ``update`` (from 0): linear warm-up, then a cosine from the peak to the final rate."""
    peak = PEAK_RATE if config.learning_rate is None else config.learning_rate
    if update < config.warmup_updates:
        return peak * (update + 1) / config.warmup_updates
    progress = (update - config.warmup_updates) / max(1, config.num_updates - 1 - config.warmup_updates)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_learning_rate + (peak - config.final_learning_rate) * cosine


@dataclass(frozen=True, kw_only=True)
class FrameConfig:
    """How frames become batches.

    Args:
        batch_size: images in a batch.
        test_fraction: part of the episodes that is held out.
        min_length: episodes of fewer steps are left out.
        leave_out: paths of leaves of the observations that V does not encode, such as other cameras.

    Raises:
        TypeError: if a field has another type.
        ValueError: naming the field that is out of range.
    """

    batch_size: int = 256
    test_fraction: float = 0.05
    min_length: int = 1
    leave_out: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Return what the batches depend on, for the record of a run; ``leave_out`` only if it is given."""
        fields = asdict(self)
        left = list(fields.pop("leave_out"))
        return {**fields, "leave_out": left} if left else fields

    def __post_init__(self) -> None:
        """Check every field."""
        check_names(self, "leave_out")
        check_integers(self, {"batch_size": 1, "min_length": 1})
        check_numbers(self, {"test_fraction": "[0, 1)"})


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
        leave_out: paths of leaves of the observations that z does not hold, such as "mission".
        resident: True keeps the encoded data on the device (fast, if they fit), False reads windows from disk as they come (any
            size), None decides by size. The result is the same.
        kinds: kinds of leaves of the observation, or of numbers of a leaf, that `fit` shall not find from the data:
            "gear=choice", "state[0:3]=continuous", "gear=choice(1, 2.5)" (see `worldmodel.models.find_layout`). A mapping is
            accepted, too.
        layout: the same for every number of the observation, so that `fit` finds nothing. A `LatentLayout` is accepted, too.

    Raises:
        TypeError: if a field has another type.
        ValueError: naming the field that is out of range.
    """

    window: int = 64
    burn_in: int = 0
    batch_size: int = 64
    test_fraction: float = 0.1
    min_length: int = 1
    leave_out: tuple[str, ...] = ()
    resident: bool | None = None
    kinds: tuple[str, ...] = ()
    layout: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every field."""
        check_names(self, "leave_out")
        check_integers(self, {"window": 1, "burn_in": 0, "batch_size": 1, "min_length": 1})
        check_numbers(self, {"test_fraction": "[0, 1)"})
        check_flags(self, optional=("resident",))
        for name in ("kinds", "layout"):
            object.__setattr__(self, name, _kinds(getattr(self, name), name))
        if self.kinds and self.layout:
            raise ValueError(f"kinds, layout: expected one of them, got both: {self.kinds} and {self.layout}")

    def kinds_by_leaf(self) -> dict[str, str]:
        """Return ``kinds`` or ``layout`` as a mapping."""
        return {key: kind for key, _, kind in (entry.rpartition("=") for entry in self.kinds or self.layout)}

    def identity(self) -> dict[str, Any]:
        """Return what the batches depend on, for the record of a run.

        ``resident`` changes no result and is left out, as are ``kinds``, ``layout`` and ``leave_out`` if they are not given.
        """
        fields = {name: getattr(self, name) for name in DataConfig.__dataclass_fields__ if name != "resident"}
        given = {name: list(fields.pop(name)) for name in ("kinds", "layout", "leave_out")}
        return fields | {name: entries for name, entries in given.items() if entries}


def _kinds(given: Any, name: str) -> tuple[str, ...]:
    """Return kinds by leaf as strings "leaf=kind", from a layout, a mapping, or such strings."""
    given = given.kinds() if isinstance(given, LatentLayout) else given
    if isinstance(given, Mapping):
        given = [f"{key}={getattr(kind, 'value', kind)}" for key, kind in given.items()]
    entries = (given,) if isinstance(given, str) else tuple(given)
    for entry in entries:
        if not isinstance(entry, str) or "=" not in entry:
            raise ValueError(f"{name}: expected entries such as 'gear=choice', got {entry!r}")
    return entries
