"""Train the members of an ensemble: each from its own initial weights, on its own bootstrap sample of the training episodes.

A bootstrap sample draws as many episodes as there are, with replacement. V, the choice of the head, the units of the data and
the held-out episodes are the same for all members, so that their predictions can be mixed and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.models import MDNRNN, WorldModel, members_of
from worldmodel.rng import MEMBER_STREAM, derive_seed
from worldmodel.runtime import RunConfig, check_integer
from worldmodel.training import loop
from worldmodel.training.config import DataConfig, TrainingConfig
from worldmodel.training.loop import TrainingResult
from worldmodel.training.sharing import share_training
from worldmodel.training.windows import SequenceData, WindowSampler


@dataclass(frozen=True)
class EnsembleResult(TrainingResult):
    """Result of the training of an ensemble.

    ``updates`` and ``best_update`` are the largest of the members, ``best_metrics`` the held-out losses of their mixture and
    ``seconds`` the time of all.

    Args:
        members: result of each member.
    """

    members: list[dict[str, Any]] = field(default_factory=list)


def ensemble_size(ensemble: int | None, initial: WorldModel | None) -> int:
    """Return the number of models to train.

    Raises:
        ValueError: if it is below 1, or given together with an initial world model.
    """
    if initial is None:
        return 1 if ensemble is None else check_integer(ensemble, "ensemble", least=1)
    size = len(members_of(initial.mdnrnn))
    if ensemble not in (None, size):
        raise ValueError(f"ensemble: expected None or {size}, the number of models of the initial world model, got {ensemble}")
    return size


def bootstrap(data: SequenceData, seed: int) -> SequenceData:
    """Return batches of as many of the same episodes, drawn with replacement."""
    every = data.sampler
    drawn = np.random.default_rng(seed).integers(len(every.episodes), size=len(every.episodes))
    sampler = WindowSampler(
        every.episodes[drawn],
        every.lengths[drawn],
        window=every.window,
        burn_in=every.burn_in,
        batch_size=every.batch_size,
        seed=seed,
        shuffle=every.shuffle,
    )
    return SequenceData(data.episodes, sampler, data.vision, data.action_space, resident=data.resident)


def train_models(
    model: MDNRNN,
    data: tuple[SequenceData, SequenceData | None],
    out: Path,
    configs: tuple[DataConfig, TrainingConfig],
    seed: int,
    run: RunConfig,
) -> TrainingResult:
    """Train M, or all members of an ensemble, or resume their training.

    Args:
        model: ready for training.
        data: training data and held-out data.
        out: directory of the training; of member k the subdirectory ``member-k``.
        configs: of the data and of the training.
        seed: of the batches and all samples.
        run: log and progress. The stage is "train M", of a member "train M (k of K)".
    """
    members, results = members_of(model), []
    for number, member in enumerate(members):
        alone = len(members) == 1
        own = seed if alone else derive_seed(seed, MEMBER_STREAM, number)
        train = data[0] if alone else bootstrap(data[0], own)
        directory = out if alone else out / f"member-{number + 1}"
        share_training(member, train, configs[0], configs[1], own)
        with run.reporter() as report:
            shown = run.within(report, "train M" if alone else f"train M ({number + 1} of {len(members)})")
            result = loop.train(
                member,
                train,
                out=directory,
                config=configs[1],
                seed=own,
                test_data=data[1],
                fingerprint=train.episodes.fingerprint,
                run=shown,
            )
            results.append(result)
    return results[0] if len(results) == 1 else _together(model, results, data[1], configs[1], seed)


def _together(
    model: MDNRNN, results: Sequence[TrainingResult], test: SequenceData | None, config: TrainingConfig, seed: int
) -> EnsembleResult:
    """Summarise the trainings of the members, and evaluate their mixture."""
    return EnsembleResult(
        max(result.updates for result in results),
        max(result.best_update for result in results),
        {} if test is None else _held_out(model, test, config, seed),
        sum(result.seconds for result in results),
        [asdict(result) for result in results],
    )


@torch.no_grad()
def _held_out(model: MDNRNN, data: SequenceData, config: TrainingConfig, seed: int) -> dict[str, float]:
    """Average the loss and its terms over the held-out batches of an evaluation."""
    totals: dict[str, float] = {}
    weight = 0
    for batch in loop.held_out_batches(data, config.max_test_batches, seed=seed, device=model.change_scale.device):
        loss, terms = model.eval().loss(batch)
        for name, value in ({"loss": loss} | terms).items():
            totals[name] = totals.get(name, 0.0) + value.item() * batch.weight
        weight += batch.weight
    return {name: total / weight for name, total in totals.items()}
