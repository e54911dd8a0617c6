"""Make M ready for training: new weights, the statistics of the data, and heads that start near the data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch

from worldmodel.mixtures import LatentLayout, PartKind
from worldmodel.models import MDNRNN, DataStatistics, MDNRNNConfig, SequenceBatch
from worldmodel.runtime import float32_default
from worldmodel.training.config import TrainingConfig
from worldmodel.training.head_choice import with_chosen_head
from worldmodel.training.reward_atoms import set_base_rates
from worldmodel.training.windows import SequenceData

STATISTICS_BATCHES = 100  # maximum number of batches for the statistics of the data and the baselines
INITIAL_STEPS = 16_384  # the initial components of the latent head fit so many steps at most
STATE_RIDGE, INPUT_RIDGE = 1e-2, 1e-6  # of that fit: penalties of h, which changes in training, and of z and a


@torch.no_grad()
def initialise_latent_head(model: MDNRNN, batches: Iterable[SequenceBatch]) -> None:
    """Set the initial weights of the latent head by a fit to batches; see `worldmodel.mixtures.LatentHead.initialise`.

    Args:
        model: M with its statistics set; the rest of it is not trained.
        batches: training data.
    """
    was_training = model.training
    model.eval()
    features, targets, missing = [], [], INITIAL_STEPS
    for batch in batches:
        features.append(model.head_inputs(batch)[batch.mask][:missing])
        targets.append(model.head_target(batch.z)[batch.mask][:missing])
        missing -= len(targets[-1])
        if missing <= 0:
            break
    seen = torch.cat(features)
    ridge = seen.new_full((seen.shape[1],), INPUT_RIDGE)
    ridge[: model.config.hidden_size] = STATE_RIDGE
    model.latent_head.initialise(seen, torch.cat(targets), ridge)
    model.train(was_training)


def new_model(sizes: tuple[int, int], config: MDNRNNConfig, layout: LatentLayout, seed: int) -> MDNRNN:
    """Return M with new weights, which depend on the seed only."""
    with torch.random.fork_rng(devices=[]), float32_default():
        torch.default_generator.manual_seed(seed)
        return MDNRNN(*sizes, config, layout=layout)


@torch.no_grad()
def set_statistics(model: MDNRNN, data: SequenceData, layout: LatentLayout) -> None:
    """Set M's statistics, the initial components of the latent, and the base rates of terminations and atoms from the data."""
    atoms = model.config.reward_atoms or ()
    model.set_statistics(DataStatistics.of(statistics_batches(data), layout, atoms=atoms))
    set_base_rates(model, statistics_batches(data))
    model.action_units.fit(statistics_batches(data), data.action_space.is_box)
    if not layout.columns(PartKind.IMAGE):
        initialise_latent_head(model, statistics_batches(data))
    if model.termination_head is None:
        return
    counts = torch.tensor([[(b.terminated & b.mask).sum().item(), b.mask.sum().item()] for b in statistics_batches(data)])
    ended, steps = counts.sum(dim=0).tolist()
    model.termination_head.bias.fill_(math.log((ended + 0.5) / (steps - ended + 0.5)))


def statistics_batches(data: SequenceData, seed: int = 0) -> Iterator[SequenceBatch]:
    """Return a bounded number of batches, always the same, for statistics of the data."""
    generator = torch.Generator(data.action_space.low.device).manual_seed(seed)
    return itertools.islice(data.epoch(0, generator=generator), STATISTICS_BATCHES)


def prepare_model(
    model: MDNRNN,
    layout: LatentLayout,
    data: tuple[SequenceData, SequenceData | None],
    config: TrainingConfig,
    seed: int,
    directory: Path,
    *,
    chooses: bool,
) -> MDNRNN:
    """Return M ready for training, with the chosen head if ``chooses``."""
    train, test = data
    start = partial(set_statistics, data=train, layout=layout)
    if chooses and test is not None:
        make = partial(new_model, layout=layout, seed=seed)
        return with_chosen_head(model, make, start, (train, test), config, seed, directory)
    start(model)
    return model
