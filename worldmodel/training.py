"""One training loop for V and M: precision, clipping, schedule, checkpoints, resuming, early stopping.

A run is a pure function of the data, the configuration and the seed, on one device. Its whole state (weights, Adam's moments,
the generator, where it stands) is one safetensors file, replaced atomically; stopping at any moment and resuming gives the same bits
as never stopping. That is why learning rates are functions of the update and batches of (seed, epoch, index), and why Ctrl-C is
heeded between updates only.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from worldmodel import checkpoint

CHECKPOINT_SECONDS = 60.0  # a killed run loses at most so much work
STATE_FORMAT, STATE_VERSION = "worldmodel.training", 1


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Args:
        num_updates: optimiser steps.
        learning_rate: Adam's peak rate.
        final_learning_rate: rate at the last update; a cosine leads there from the peak.
        warmup_updates: updates over which the rate rises linearly from 0.
        clip_norm: largest norm of the gradient; None does not clip the norm.
        clip_value: largest absolute value of each entry of the gradient (the authors' way); None does not clip values.
        precision: "float32", or "bfloat16" for matrix products under autocast (likelihoods stay in float32).
        evaluate_every: updates between evaluations on held-out data.
        patience: stop after so many evaluations without improvement; None never stops early.

    Raises:
        ValueError: naming the field that is out of range.
    """

    num_updates: int = 2000
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_updates: int = 0
    clip_norm: float | None = 1.0
    clip_value: float | None = None
    precision: str = "float32"
    evaluate_every: int = 200
    patience: int | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("num_updates", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        for name in ("clip_norm", "clip_value", "patience"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected None or a positive number, got {getattr(self, name)}")
        if not 0 <= self.final_learning_rate <= self.learning_rate or not self.learning_rate > 0:
            raise ValueError(
                f"learning_rate, final_learning_rate: expected 0 <= final <= peak and a positive peak, "
                f"got {self.learning_rate} and {self.final_learning_rate}"
            )
        if not 0 <= self.warmup_updates < self.num_updates:
            raise ValueError(f"warmup_updates: expected from 0 to below num_updates {self.num_updates}, got {self.warmup_updates}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision: expected 'float32' or 'bfloat16', got {self.precision!r}")


class Batch(Protocol):
    """What a model's loss takes; ``weight`` is the number of examples that its averages are over."""

    @property
    def weight(self) -> int:
        """Examples that count."""


class TrainingData(Protocol):
    """Batches as a function of (epoch, index); `SequenceData` is one."""

    def num_batches(self, epoch: int) -> int:
        """Number of batches in an epoch."""

    def batch(self, epoch: int, index: int, *, generator: torch.Generator | None = None) -> Any:
        """Batch ``index`` of ``epoch``."""


@dataclass(frozen=True)
class TrainingProgress:
    """Where a run stands, for a progress bar.

    Args:
        update: updates done.
        num_updates: updates in all.
        metrics: the loss and its terms at this update.
        test_metrics: those of the latest evaluation on held-out data; empty before the first.
    """

    update: int
    num_updates: int
    metrics: dict[str, float]
    test_metrics: dict[str, float]


@dataclass
class _RunState:
    """What, beside tensors, a resumed run must know."""

    update: int = 0
    epoch: int = 0
    index: int = 0
    best_loss: float | None = None
    best_update: int = 0
    stale_evaluations: int = 0
    test_metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Args:
        updates: updates done, fewer than asked for after early stopping.
        best_update: the update whose weights are kept.
        best_loss: held-out loss there; None without held-out data.
        seconds: duration of this call.
    """

    updates: int
    best_update: int
    best_loss: float | None
    seconds: float


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is NaN or infinite; the last good state has been saved."""


def learning_rate(config: TrainingConfig, update: int) -> float:
    """Rate of update number ``update`` (from 0): linear warm-up, then a cosine from the peak to the final rate."""
    if update < config.warmup_updates:
        return config.learning_rate * (update + 1) / config.warmup_updates
    progress = (update - config.warmup_updates) / max(1, config.num_updates - 1 - config.warmup_updates)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine


def train(
    model: nn.Module,
    data: TrainingData,
    *,
    out: str | Path,
    config: TrainingConfig,
    seed: int,
    test_data: TrainingData | None = None,
    fingerprint: str = "",
    resume: bool = False,
    tensorboard: bool = False,
    on_progress: Callable[[TrainingProgress], None] | None = None,
) -> TrainingResult:
    """Train ``model`` in place and leave it with the weights that were best on held-out data (the last without such data).

    Args:
        model: has ``loss(batch, generator=...) -> (scalar, metrics)``.
        data: training batches.
        out: directory for ``state.safetensors`` (to resume), ``best.safetensors`` and ``metrics.jsonl``.
        config: how to train.
        seed: seed of everything that is drawn in training.
        test_data: held-out batches; None keeps the last weights and never stops early.
        fingerprint: of the data; a resumed run must have the same.
        resume: go on from ``out``'s state if there is one.
        tensorboard: write scalars for TensorBoard to ``out`` too (extra ``tensorboard``).
        on_progress: called every few updates.

    Returns:
        How the run ended.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after the state has been saved; the message says so.
        NonFiniteLossError: if loss or gradient is not finite; the state before that update has been saved.
        ValueError: if the state to resume from belongs to another configuration, seed or data set.
        FileExistsError: if ``out`` holds a run and ``resume`` is not set.
    """
    run = _Run(model, data, test_data, Path(out), config, seed, fingerprint)
    run.start(resume)
    began = last_saved = time.monotonic()
    with _interrupt_between_updates() as interrupted, _MetricsLog(Path(out), run.state.update, tensorboard) as log:
        while not run.finished:
            metrics = run.update()
            evaluated = run.state.update % config.evaluate_every == 0 or run.state.update == config.num_updates
            if evaluated:
                run.evaluate()
            if evaluated or run.state.update % LOG_EVERY == 0:
                log.write(run.state.update, {f"train/{name}": value for name, value in metrics.items()} | {
                    "learning_rate": learning_rate(config, run.state.update - 1)
                } | ({f"test/{name}": value for name, value in run.state.test_metrics.items()} if evaluated else {}))
                if on_progress is not None:
                    on_progress(TrainingProgress(run.state.update, config.num_updates, metrics, run.state.test_metrics))
            if evaluated or interrupted.is_set() or time.monotonic() - last_saved > CHECKPOINT_SECONDS:
                run.save()
                last_saved = time.monotonic()
            if interrupted.is_set():
                raise KeyboardInterrupt(f"stopped after update {run.state.update}; {out} holds the state: resume to go on")
    run.load_best()
    return TrainingResult(run.state.update, run.state.best_update, run.state.best_loss, time.monotonic() - began)


LOG_EVERY = 10  # updates


class _Run:
    """A model being trained, with everything that its state file holds."""

    def __init__(
        self,
        model: nn.Module,
        data: TrainingData,
        test_data: TrainingData | None,
        out: Path,
        config: TrainingConfig,
        seed: int,
        fingerprint: str,
    ):
        self.model, self.data, self.test_data, self.out, self.config, self.seed = model, data, test_data, out, config, seed
        self.identity = {"config": asdict(config), "seed": seed, "fingerprint": fingerprint}
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.state = _RunState()

    @property
    def finished(self) -> bool:
        stale = self.config.patience is not None and self.state.stale_evaluations >= self.config.patience
        return stale or self.state.update >= self.config.num_updates

    def start(self, resume: bool) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint.remove_temporaries(self.out)
        if (self.out / "state.safetensors").exists():
            if not resume:
                raise FileExistsError(f"{self.out}: already holds a training run; resume it or choose another directory")
            self._load()

    def update(self) -> dict[str, float]:
        """Do one optimiser step and return the loss and its terms."""
        state = self.state
        if state.index >= self.data.num_batches(state.epoch):
            state.epoch, state.index = state.epoch + 1, 0
        batch = self.data.batch(state.epoch, state.index, generator=self.generator)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss, terms = self.model.loss(batch, generator=self.generator)
        loss.backward()
        self._check_finite(loss, terms, self._clip())
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, state.update)
        self.optimizer.step()
        state.update, state.index = state.update + 1, state.index + 1
        return {"loss": loss.item()} | {name: term.item() for name, term in terms.items()}

    @torch.no_grad()
    def evaluate(self) -> None:
        """Average the loss over the held-out data, always with the same draws, and keep the best weights."""
        if self.test_data is None:
            return
        self.model.eval()
        generator = torch.Generator(self.device).manual_seed(self.seed)
        totals: dict[str, float] = {}
        weight = 0
        for index in range(self.test_data.num_batches(0)):
            batch = self.test_data.batch(0, index, generator=generator)
            with self._autocast():
                loss, terms = self.model.loss(batch, generator=generator)
            for name, term in ({"loss": loss} | terms).items():
                totals[name] = totals.get(name, 0.0) + term.item() * batch.weight
            weight += batch.weight
        state = self.state
        state.test_metrics = {name: total / weight for name, total in totals.items()}
        if state.best_loss is None or state.test_metrics["loss"] < state.best_loss:
            state.best_loss, state.best_update, state.stale_evaluations = state.test_metrics["loss"], state.update, 0
            checkpoint.save_tensors(self.out / "best.safetensors", self.model.state_dict())
        else:
            state.stale_evaluations += 1

    def save(self) -> None:
        """Write the whole state as one file, atomically."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
        tensors["generator"] = self.generator.get_state()
        content = {"format": STATE_FORMAT, "version": STATE_VERSION, "state": asdict(self.state), "identity": self.identity}
        checkpoint.save_tensors(self.out / "state.safetensors", tensors, {"state": json.dumps(content)})

    def load_best(self) -> None:
        """Put the weights that were best on held-out data into the model."""
        if self.state.best_loss is not None:
            self.model.load_state_dict(checkpoint.load_tensors(self.out / "best.safetensors")[0])
        self.model.eval()

    def _load(self) -> None:
        path = self.out / "state.safetensors"
        tensors, metadata = checkpoint.load_tensors(path)
        content = json.loads(metadata.get("state", "{}"))
        if content.get("format") != STATE_FORMAT or content.get("version") != STATE_VERSION:
            found = content.get("format"), content.get("version")
            raise ValueError(f"{path}: expected format {STATE_FORMAT!r} version {STATE_VERSION}, got {found}")
        for name, expected in self.identity.items():
            if content["identity"][name] != json.loads(json.dumps(expected)):
                raise ValueError(
                    f"{path}: expected {name} {expected}, got a run with {content['identity'][name]}; "
                    "resume with what it was started with, or train into another directory"
                )
        self.state = _RunState(**content["state"])
        self.model.load_state_dict(_with_prefix(tensors, "model."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _with_prefix(tensors, "optimizer.").items():
            number, key = name.split(".")
            moments.setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.generator.set_state(tensors["generator"])

    def _clip(self) -> Tensor:
        """Clip the gradient as configured and return its norm before that."""
        parameters = list(self.model.parameters())
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if self.config.clip_norm is None else self.config.clip_norm)
        if self.config.clip_value is not None:
            nn.utils.clip_grad_value_(parameters, self.config.clip_value)
        return norm

    def _check_finite(self, loss: Tensor, terms: Mapping[str, Tensor], gradient_norm: Tensor) -> None:
        if bool(torch.isfinite(loss) & torch.isfinite(gradient_norm)):
            return
        self.save()
        values = {"loss": loss.item(), "gradient norm": gradient_norm.item()} | {name: term.item() for name, term in terms.items()}
        culprits = ", ".join(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))
        state = self.state
        raise NonFiniteLossError(
            f"update {state.update}, batch {state.index} of epoch {state.epoch}: expected finite numbers, got {culprits}; the state "
            f"before this update is in {self.out}. A lower learning rate, a larger min_scale or float32 often helps"
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")


class _MetricsLog:
    """Appends rows to ``metrics.jsonl``, and to TensorBoard where asked, after dropping rows that a resumed run writes anew."""

    def __init__(self, out: Path, update: int, tensorboard: bool):
        path = out / "metrics.jsonl"
        rows = path.read_text().splitlines() if path.exists() else []
        kept = [row for row in rows if _is_row_up_to(row, update)]
        checkpoint.write_bytes(path, "".join(row + "\n" for row in kept).encode())
        self._file = open(path, "a")  # noqa: SIM115 (closed in __exit__)
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError("tensorboard is not installed: pip install worldmodel[tensorboard]") from error
            self._writer = SummaryWriter(str(out), purge_step=update + 1)

    def write(self, update: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"update": update, **values}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, update)

    def __enter__(self) -> _MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_metrics(out: str | Path) -> list[dict[str, float]]:
    """Read the rows of a run's ``metrics.jsonl``."""
    return [json.loads(row) for row in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def _is_row_up_to(row: str, update: int) -> bool:
    try:
        return json.loads(row)["update"] <= update
    except (json.JSONDecodeError, KeyError):  # the last row of a killed run may be cut
        return False


@contextlib.contextmanager
def _interrupt_between_updates() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, so that no update is left half done; a second one interrupts at once."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return

    def request(signum: int, frame: object) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield requested
    finally:
        signal.signal(signal.SIGINT, previous)


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
