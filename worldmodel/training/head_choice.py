"""Choose the head that predicts z by a short training of each candidate.

The richer head is chosen only if its held-out likelihood is better by more than the standard error of the difference. Both
candidates see the same batches, and the same samples of the latents in the comparison. Where a first trial shows no clear
difference, as before M has learned to use its memory, a longer one decides. The pilot models are discarded: the chosen head is
trained as if the configuration had named it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from worldmodel.mixtures import DENSITIES, Factorization, LatentLayout, NoiseType, PartKind
from worldmodel.models import AUTO_LATENT_HEAD, MDNRNN, MDNRNNConfig
from worldmodel.runtime import files, float32_default
from worldmodel.training import loop
from worldmodel.training.config import TrainingConfig, learning_rate
from worldmodel.training.optimizers import make_optimizer
from worldmodel.training.windows import SequenceData

SIMPLE, RICH = "MixtureHead", "AutoregressiveHead"
TRIALS = (0.03, 0.06)  # of the updates, for each candidate
CLEAR = 3.0  # standard errors of a difference after which there is no longer trial
MAX_DIMENSIONS = 64  # a dream samples the dimensions of the richer head one after the other
CHOICE_FILE = "latent_head.json"
CHOICE_STAMP: dict[str, Any] = {"format": "worldmodel.latent_head", "version": 1}

Make = Callable[[tuple[int, int], MDNRNNConfig], MDNRNN]


def has_choice(config: MDNRNNConfig, layout: LatentLayout) -> bool:
    """Return whether `fit` chooses the head: "auto", several real numbers, and no option that only one of the heads has.

    Latents of an image are left to `MixtureHead`: they are independent given the frame.
    """
    plain = config.factorization is Factorization.PER_DIMENSION and config.noise_type is NoiseType.DIAGONAL
    number = 0 if layout.columns(PartKind.IMAGE) else len(layout.columns(*DENSITIES))
    return config.latent_head == AUTO_LATENT_HEAD and plain and 1 < number <= MAX_DIMENSIONS


def with_chosen_head(
    model: MDNRNN,
    make: Make,
    start: Callable[[MDNRNN], None],
    data: tuple[SequenceData, SequenceData],
    config: TrainingConfig,
    seed: int,
    directory: Path,
) -> MDNRNN:
    """Return M with the head that is better on held-out data, ready for training.

    Args:
        model: M, from which the sizes, the configuration and the device are taken.
        make: makes M with new weights from its sizes and a configuration.
        start: sets the statistics and initial weights of M from the data.
        data: training and held-out data.
        config: of the training.
        seed: of the batches.
        directory: of the run; the choice is recorded there and read if it is there already.
    """

    def started(head: str) -> MDNRNN:
        sizes, chosen = (model.latent_size, model.action_size), replace(model.config, latent_head=head)
        candidate = make(sizes, chosen).to(model.change_scale.device)
        start(candidate)
        return candidate

    candidates = {}
    if not (directory / CHOICE_FILE).exists():
        candidates = {head: started(head) for head in (SIMPLE, RICH)}
        files.write_json(directory / CHOICE_FILE, choose_latent_head(candidates, *data, config, seed), **CHOICE_STAMP)
    chosen = str(read_choice(directory)["latent_head"]["chosen"])
    return candidates[chosen] if candidates else started(chosen)


def read_choice(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the recorded choice of the head as an entry of the provenance; an empty one if there was none."""
    if not (directory / CHOICE_FILE).exists():
        return {}
    content = files.read_json(directory / CHOICE_FILE, **CHOICE_STAMP)
    return {"latent_head": {name: value for name, value in content.items() if name not in ("format", "version")}}


def choose_latent_head(
    candidates: Mapping[str, MDNRNN], train: SequenceData, test: SequenceData, config: TrainingConfig, seed: int
) -> dict[str, Any]:
    """Train copies of both candidates for a part of the updates and compare them on held-out windows.

    Args:
        candidates: models ready for training, by the class name of their head: `SIMPLE` and `RICH`.
        train: training data.
        test: held-out data.
        config: of the training, of which each trial is a shorter version.
        seed: of the batches.

    Returns:
        ``chosen``, the class name of a head; ``gain`` of the richer one, in nats per random variable of z, and its standard
        error ``se`` over windows, None where they are not finite; ``updates`` of each pilot of the last trial.
    """
    gain = se = math.nan
    trials = sorted({max(1, round(fraction * config.num_updates)) for fraction in TRIALS})
    for updates in trials:
        pilot = replace(config, num_updates=updates, warmup_updates=0)
        simple, rich = (
            _held_out(_trained(copy.deepcopy(candidates[name]), train, pilot, seed), test, pilot, seed)
            for name in (SIMPLE, RICH)
        )
        each = simple - rich
        gain, se = each.mean().item(), each.std().item() / math.sqrt(len(each)) if len(each) > 1 else math.inf
        if abs(gain) > CLEAR * se:
            break
    chosen = RICH if gain > se else SIMPLE  # not if the gain is NaN
    finite = {name: value if math.isfinite(value) else None for name, value in {"gain": gain, "se": se}.items()}
    return {"chosen": chosen, **finite, "updates": updates}


@torch.enable_grad()
def _trained(model: MDNRNN, data: SequenceData, config: TrainingConfig, seed: int) -> MDNRNN:
    """Train in place, without checkpoints."""
    optimizer = make_optimizer(config.optimizer, model.parameters(), learning_rate=learning_rate(config, 0))
    generator = torch.Generator(model.change_scale.device).manual_seed(seed)
    epoch = index = 0
    for update in range(config.num_updates):
        if index >= data.num_batches(epoch):
            epoch, index = epoch + 1, 0
        optimizer.zero_grad(set_to_none=True)
        loss, _ = model.train().loss(data.batch(epoch, index, generator=generator), generator=generator)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf if config.clip_norm is None else config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, update)
        with float32_default():  # the optimiser's counters have the default dtype
            optimizer.step()
        index += 1
    return model


@torch.no_grad()
def _held_out(model: MDNRNN, data: SequenceData, config: TrainingConfig, seed: int) -> torch.Tensor:
    """Return the mean loss of z of each held-out window, in nats per random variable: (windows,) float64."""
    found = []
    for batch in loop.held_out_batches(data, config.max_test_batches, seed=seed, device=model.change_scale.device):
        losses = torch.where(batch.mask, model.eval().step_losses(batch).latent, 0.0).double().sum(dim=1)
        steps = batch.mask.sum(dim=1)
        found.append((losses / steps.clamp(min=1) / model.frame.num_variables)[steps > 0])
    return torch.cat(found)
