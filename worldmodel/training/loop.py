"""One training loop for V and M: precision, clipping, schedule, checkpoints, resuming, early stopping.

A run is a pure function of the data, the configuration and the seed, on one device. Its complete state (weights, moments of the
optimiser, generator, position in the data) is one safetensors file, replaced atomically; stopping at any moment and resuming
gives the same bits as never stopping. That is why learning rates are functions of the update and batches of (seed, epoch,
index), and why Ctrl-C takes effect between updates only.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

import torch
from torch import Tensor, nn

from worldmodel.runtime import (
    Listener,
    Progress,
    Ranks,
    RunConfig,
    check_same_run,
    files,
    float32_default,
    interrupt_between_steps,
    keeps_threads,
    load_optimizer_tensors,
    optimizer_tensors,
    resolve_precision,
    set_threads,
    single_writer,
)
from worldmodel.training.config import TrainingConfig, learning_rate
from worldmodel.training.log import METRICS_FILE, MetricsLog
from worldmodel.training.optimizers import make_optimizer
from worldmodel.training.shared_loss import SharedLoss

CHECKPOINT_SECONDS = 60.0  # maximum work that a killed run loses
LOG_EVERY = 10  # updates
STATE_FORMAT, STATE_VERSION = "worldmodel.training", 1
STATE_FILE, BEST_FILE = "state.safetensors", "best.safetensors"


class Batch(Protocol):
    """Batch for a model's loss; ``weight`` is the number of examples in its averages."""

    @property
    def weight(self) -> int:
        """Number of examples that count in the loss."""


class Model(Protocol):
    """Loss that a trained `nn.Module` must have."""

    def loss(self, batch: Any, *, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar to minimise and its terms, averaged over the ``weight`` examples of the batch."""


class TrainingData(Protocol):
    """Batches as a function of (epoch, index); `SequenceData` is one."""

    def num_batches(self, epoch: int) -> int:
        """Number of batches in an epoch."""

    def batch(self, epoch: int, index: int, *, generator: torch.Generator | None = None) -> Batch:
        """Batch ``index`` of ``epoch``."""


@dataclass
class _RunState:
    """State of a run in addition to its tensors."""

    update: int = 0
    epoch: int = 0
    index: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    best_update: int = 0
    stale_evaluations: int = 0
    test_metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingResult:
    """Result of a run.

    Args:
        updates: updates done, fewer than configured after early stopping.
        best_update: the update whose weights are kept.
        best_metrics: held-out loss and its terms there; empty without held-out data.
        seconds: duration of this call.
    """

    updates: int
    best_update: int
    best_metrics: dict[str, float]
    seconds: float


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is NaN or infinite; the last good state has been saved."""


@keeps_threads
@single_writer()
def train(
    model: nn.Module,
    data: TrainingData,
    *,
    out: str | Path,
    config: TrainingConfig,
    seed: int,
    test_data: TrainingData | None = None,
    fingerprint: str = "",
    run: RunConfig | None = None,
) -> TrainingResult:
    """Train ``model`` in place and leave it with the weights that were best on held-out data (the last without such data).

    With several ranks, each computes its rows of every batch: rank 0 calls this function, the others call `follow`.

    Args:
        model: has ``loss(batch, generator=...) -> (scalar, metrics)``.
        data: training batches.
        out: directory for ``state.safetensors`` (to resume), ``best.safetensors`` and ``metrics.jsonl``.
        config: how to train.
        seed: seed of everything that is drawn in training.
        test_data: held-out batches; None keeps the last weights and never stops early.
        fingerprint: of the data; a resumed run must have the same.
        run: whether a run in ``out`` is resumed or replaced, its log, and how progress is shown. Stage "train", in updates,
            with the loss and its terms, and those of the latest evaluation as ``held_out/...``.

    Returns:
        How the run ended.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after the state has been saved; the message says so.
        NonFiniteLossError: if loss or gradient is not finite; the state before that update has been saved.
        ValueError: if the saved state is of another configuration, seed, data set, kind of device or model.
        FileExistsError: if ``out`` holds a run that ``run`` neither resumes nor replaces.
    """
    run, training = run or RunConfig(), _Run(model, data, test_data, Path(out), config.resolve(), seed, fingerprint)
    training.start(run)
    training.share_state()
    began, state = time.monotonic(), training.state
    with (
        interrupt_between_steps() as interrupted,
        MetricsLog(training.out, state.update, tensorboard=run.tensorboard) as log,
        run.reporter() as report,
    ):
        _run_to_the_end(training, log, interrupted, report)
    training.load_best()
    training.ranks.finish(model.state_dict())
    return TrainingResult(state.update, state.best_update, state.best_metrics, time.monotonic() - began)


def follow(model: nn.Module, data: TrainingData, *, config: TrainingConfig, seed: int) -> None:
    """Take part in the training that rank 0 leads by `train`, until it ends; the model gets the weights that rank 0 keeps.

    Args:
        model: of the same class and sizes.
        data: the same training batches.
        config: as on rank 0.
        seed: as on rank 0.

    Raises:
        NonFiniteLossError: if the loss is not finite, as on rank 0.
        RankLostError: if another process ended.
        LeaderFailedError: if rank 0 ended with an error.
    """
    run = _Run(model, data, None, None, config.resolve(), seed, "")
    run.share_state()
    with interrupt_between_steps():  # rank 0 decides
        while run.ranks.agree(False):
            run.update()
    model.load_state_dict(run.ranks.follow())
    model.eval()


def held_out_batches(data: TrainingData, most: int, *, seed: int, device: torch.device) -> Iterator[Any]:
    """Yield the held-out batches of every evaluation of a run: the same windows, with the same samples of their latents.

    Args:
        data: held-out batches.
        most: maximum number of batches, which are spread evenly.
        seed: the run's seed.
        device: where the batches are.
    """
    generator = torch.Generator(device).manual_seed(seed)
    total = data.num_batches(0)
    for number in range(min(total, most)):
        yield data.batch(0, number * total // min(total, most), generator=generator)


def _run_to_the_end(run: _Run, log: MetricsLog, interrupted: threading.Event, report: Listener) -> None:
    """Update, evaluate, log and save, until the run is finished or interrupted."""
    saved = time.monotonic()
    while run.ranks.agree(not run.finished):
        terms = run.update()
        with run.ranks.releasing():
            state, total = run.state, run.config.num_updates
            evaluated = state.update % run.config.evaluate_every == 0 or state.update == total
            if evaluated:
                run.evaluate()
            if evaluated or state.update % LOG_EVERY == 0:
                metrics = {name: term.item() for name, term in terms.items()}
                tested = state.test_metrics if evaluated else {}
                row = {f"train/{name}": value for name, value in metrics.items()}
                row |= {f"test/{name}": value for name, value in tested.items()}
                log.write(state.update, row | {"learning_rate": learning_rate(run.config, state.update - 1)})
                held_out = {f"held_out/{name}": value for name, value in state.test_metrics.items()}
                report(Progress("train", state.update, total, "update", metrics | held_out))
            if evaluated or interrupted.is_set() or time.monotonic() - saved > CHECKPOINT_SECONDS:
                run.save()
                saved = time.monotonic()
            if interrupted.is_set():
                raise KeyboardInterrupt(
                    f"stopped after update {state.update} of {total}; the state is saved in {run.out}: call again to resume"
                )


class _Run:
    """A model in training, with everything that its state file holds."""

    def __init__(
        self,
        model: nn.Module,
        data: TrainingData,
        test_data: TrainingData | None,
        out: Path | None,
        config: TrainingConfig,
        seed: int,
        fingerprint: str,
    ):
        self.model, self.data, self.test_data, self.config, self.seed = model, data, test_data, config, seed
        self.out, self.ranks = out or Path(), Ranks.current()
        self.device = next(model.parameters()).device
        self.precision = resolve_precision(config.precision, self.device)
        used = config.identity() | {"precision": self.precision}
        self.identity = {"config": used, "seed": seed, "fingerprint": fingerprint, "device": self.device.type}
        self.identity |= {} if self.ranks.alone else {"ranks": self.ranks.size}  # of one process left out: old runs resume
        self.optimizer = make_optimizer(
            config.optimizer, model.parameters(), learning_rate=learning_rate(config, 0), precision=self.precision
        )
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._loss = cast(Model, model).loss
        self._shared_loss = self._loss if self.ranks.alone else SharedLoss(model, self.ranks)
        self.state = _RunState()

    @property
    def finished(self) -> bool:
        patience = math.inf if self.config.patience is None else self.config.patience
        return self.state.stale_evaluations >= patience or self.state.update >= self.config.num_updates

    def start(self, run: RunConfig) -> None:
        """Load the state of an earlier run, or remove that run, if there is one."""
        self.out.mkdir(parents=True, exist_ok=True)
        files.remove_temporaries(self.out)
        if run.overwrite:
            for name in (STATE_FILE, BEST_FILE, METRICS_FILE):
                (self.out / name).unlink(missing_ok=True)
            for events in self.out.glob("events.out.tfevents.*"):
                events.unlink()
        elif (self.out / STATE_FILE).exists():
            if not run.resume:
                raise FileExistsError(
                    f"{self.out}: expected no earlier training, got one; resume it, replace it with overwrite, or choose "
                    "another directory"
                )
            self._load(self.out / STATE_FILE, run.threads)
            return
        set_threads(None, run.threads, self.out)

    def update(self) -> dict[str, Tensor]:
        """Do one optimiser step, in step with the other ranks, and return the loss and its terms."""
        with self.ranks.watched():
            return self._update()

    @torch.enable_grad()  # the caller may have turned gradients off
    def _update(self) -> dict[str, Tensor]:
        state = self.state
        if state.index >= self.data.num_batches(state.epoch):
            state.epoch, state.index = state.epoch + 1, 0
        before = self.generator.get_state()
        batch = self.data.batch(state.epoch, state.index, generator=self.generator)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss, terms = self._shared_loss(batch, generator=self.generator)
        torch.autograd.backward(loss)
        values = {"loss": loss.detach()} | {name: term.detach() for name, term in terms.items()}
        finite = values | {"gradient norm": self._clip()}
        if not bool(torch.stack([value.isfinite() for value in finite.values()]).all()):
            self.generator.set_state(before)
            self._stop(f"update {state.update + 1}, batch {state.index} of epoch {state.epoch}", finite)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, state.update)
        with float32_default():  # the optimiser's counters have the default dtype
            self.optimizer.step()
        state.update, state.index = state.update + 1, state.index + 1
        return values

    @torch.no_grad()
    def evaluate(self) -> None:
        """Average the loss over the held-out batches, always with the same samples, and keep the best weights."""
        if self.test_data is None:
            return
        self.model.eval()
        totals: dict[str, float] = {}
        weight = 0
        batches = held_out_batches(self.test_data, self.config.max_test_batches, seed=self.seed, device=self.device)
        generator = torch.Generator(self.device).manual_seed(self.seed)  # source of randomness of the loss
        for number, batch in enumerate(batches):
            with self._autocast():
                loss, terms = self._loss(batch, generator=generator)
            values = {"loss": loss} | terms
            if not bool(torch.stack([value.isfinite() for value in values.values()]).all()):
                self._stop(f"evaluation after update {self.state.update}, held-out batch {number}", values)
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + value.item() * batch.weight
            weight += batch.weight
        state = self.state
        state.test_metrics = {name: total / weight for name, total in totals.items()}
        if not state.best_metrics or state.test_metrics["loss"] < state.best_metrics["loss"]:
            state.best_metrics, state.best_update, state.stale_evaluations = dict(state.test_metrics), state.update, 0
            files.save_tensors(self.out / BEST_FILE, self.model.state_dict())
        else:
            state.stale_evaluations += 1

    def share_state(self) -> None:
        """Give the state of rank 0 to all ranks."""
        if self.ranks.alone:
            return
        if self.ranks.leads:
            self.ranks.finish((self._tensors(), self.state))
        else:
            self._set_state(*self.ranks.follow())

    def save(self) -> None:
        """Write the complete state as one file, atomically; on rank 0 only."""
        if not self.ranks.leads:
            return
        tensors = self._tensors()
        content = {"format": STATE_FORMAT, "version": STATE_VERSION, "state": asdict(self.state), "identity": self.identity}
        content["threads"] = torch.get_num_threads()
        files.save_tensors(self.out / STATE_FILE, tensors, {"state": json.dumps(content)})

    def load_best(self) -> None:
        """Put the weights that were best on held-out data into the model."""
        if self.state.best_metrics:
            self.model.load_state_dict(files.load_tensors(self.out / BEST_FILE)[0])
        self.model.eval()

    def _load(self, path: Path, threads: int | None) -> None:
        tensors, metadata = files.load_tensors(path)
        content = files.parse_json(metadata.get("state", "{}"), path)
        files.check_stamp(content, path, format=STATE_FORMAT, version=STATE_VERSION)
        check_same_run(content["identity"], self.identity, path)
        set_threads(content.get("threads"), threads, path)
        try:
            self._set_state(tensors, _RunState(**content["state"]))
        except RuntimeError as error:
            raise ValueError(f"{path}: expected the weights of this model, got those of another one: {error}") from error

    def _tensors(self) -> dict[str, Tensor]:
        """Return all tensors that the run depends on."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        return tensors | optimizer_tensors(self.optimizer, "optimizer") | {"generator": self.generator.get_state()}

    def _set_state(self, tensors: Mapping[str, Tensor], state: _RunState) -> None:
        self.model.load_state_dict({n.removeprefix("model."): x for n, x in tensors.items() if n.startswith("model.")})
        load_optimizer_tensors(self.optimizer, "optimizer", tensors)
        self.generator.set_state(tensors["generator"])
        self.state = state

    def _clip(self) -> Tensor:
        """Clip the gradient as configured and return its norm before that."""
        parameters = list(self.model.parameters())
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if self.config.clip_norm is None else self.config.clip_norm)
        if self.config.clip_value is not None:
            nn.utils.clip_grad_value_(parameters, self.config.clip_value)
        return norm

    def _stop(self, where: str, values: Mapping[str, Tensor]) -> NoReturn:
        """Save the state and raise an error that names the terms that are not finite."""
        self.save()
        culprits = ", ".join(f"{name} = {value.item()}" for name, value in values.items() if not value.isfinite())
        raise NonFiniteLossError(
            f"{where}: expected finite numbers, got {culprits}; the last good state, after {self.state.update} updates, is in "
            f"{self.out}. A lower learning rate, a larger min_scale or float32 often helps"
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
