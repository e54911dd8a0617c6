"""Make M ready for training: new weights, the statistics of the data, and heads that start near the data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch

from worldmodel.mixtures import LatentLayout, PartKind
from worldmodel.models import (
    MDNRNN,
    DataStatistics,
    ExtraInputs,
    MDNRNNConfig,
    MDNRNNEnsemble,
    SequenceBatch,
    held_batches,
    members_of,
)
from worldmodel.rng import MEMBER_STREAM, derive_seed
from worldmodel.runtime import float32_default
from worldmodel.training.config import TrainingConfig
from worldmodel.training.head_choice import with_chosen_head
from worldmodel.training.reward_atoms import set_base_rates
from worldmodel.training.windows import SequenceData

STATISTICS_BATCHES = 100  # maximum number of batches for the statistics of the data and the baselines
REWARD_STEPS = 2**17  # steps of the fit of the reward head, as rewards may be rare
INITIAL_STEPS = 16_384  # the initial components of the latent head fit so many steps at most
LEAST_STEPS = 256  # of data in which numbers are missing
STATE_RIDGE, INPUT_RIDGE = 0.1, 1e-6  # of that fit: penalties of h (only without skip connections), and of z and a


@torch.no_grad()
def initialise_latent_head(model: MDNRNN, batches: Iterable[SequenceBatch], *, fit_floors: bool = False) -> None:
    """Set the initial weights of the latent head by a fit to batches; see `worldmodel.mixtures.LatentHead.initialise`.

    Args:
        model: M with its statistics set; the rest of it is not trained.
        batches: training data.
        fit_floors: lower the floors of the sigmas where the data show less noise.
    """
    was_training = model.training
    model.eval()
    features, targets, missing = [], [], INITIAL_STEPS
    for batch in held_batches(model, batches):
        features.append(model.head_inputs(batch)[batch.mask][:missing])
        targets.append(model.head_target(batch.z[:, :-1], batch.z[:, 1:])[batch.mask][:missing])
        missing -= len(targets[-1])
        if missing <= 0:
            break
    seen = torch.cat(features)
    if len(seen) < LEAST_STEPS and model.extras.maskable:
        model.train(was_training)
        return  # hardly a z is complete
    ridge = seen.new_full((seen.shape[1],), INPUT_RIDGE)
    ridge[: model.config.hidden_size] = torch.inf if model.config.skip else STATE_RIDGE  # h changes in training
    model.latent_head.initialise(seen, torch.cat(targets), ridge, fit_floors=fit_floors)
    model.train(was_training)


@torch.no_grad()
def initialise_reward_head(model: MDNRNN, batches: Iterable[SequenceBatch]) -> None:
    """Set the initial weights of the reward head by a fit to batches; see `worldmodel.mixtures.RewardHead.initialise`."""
    head, inputs, rewards, missing = model.reward_head, [], [], REWARD_STEPS
    if head is None or not model.config.skip:  # it sees h alone, which changes in training
        return
    for batch in held_batches(model, batches, complete=False):
        z = batch.z[:, :-1]
        seen = torch.cat([z, model.action_units(batch.action, z.dtype)], dim=-1)
        inputs.append(seen[batch.mask][:missing])
        rewards.append(batch.reward[batch.mask][:missing])
        missing -= len(rewards[-1])
        if missing <= 0:
            break
    target = head.targets(torch.cat(rewards), model.reward_mean, model.reward_scale)
    first = model.config.hidden_size
    head.initialise(torch.cat(inputs), target, slice(first, first + inputs[0].shape[1]))


def new_model(
    sizes: tuple[int, int], config: MDNRNNConfig, layout: LatentLayout, seed: int, extras: ExtraInputs | None = None
) -> MDNRNN:
    """Return M with new weights, which depend on the seed only."""
    with torch.random.fork_rng(devices=[]), float32_default():
        torch.default_generator.manual_seed(seed)
        return MDNRNN(*sizes, config, layout=layout, extras=extras)


@torch.no_grad()
def set_statistics(model: MDNRNN, data: SequenceData, layout: LatentLayout, *, fit_floors: bool = False) -> None:
    """Set M's statistics, the initial components of the latent, and the base rates of terminations and atoms from the data."""
    atoms = model.config.reward_atoms or ()
    kept = list(statistics_batches(data)) if data.resident is not None else None  # else too large to keep

    def batches() -> Iterable[SequenceBatch]:
        return statistics_batches(data) if kept is None else kept

    model.set_statistics(DataStatistics.of(batches(), layout, atoms=atoms))
    set_base_rates(model, batches())
    model.action_units.fit(batches(), data.action_space.is_box)
    if not layout.columns(PartKind.IMAGE):
        initialise_latent_head(model, batches(), fit_floors=fit_floors)
        initialise_reward_head(model, batches())
    if model.termination_head is None:
        return
    counts = torch.tensor([[(b.terminated & b.mask).sum().item(), b.mask.sum().item()] for b in batches()])
    ended, steps = counts.sum(dim=0).tolist()
    model.termination_head.bias.fill_(math.log((ended + 0.5) / (steps - ended + 0.5)))


@torch.no_grad()
def widen_bounds(model: MDNRNN, data: SequenceData, layout: LatentLayout) -> None:
    """Widen the bounds of dreams to hold the data, too: a better agent reaches states beyond those of the first data."""
    found = DataStatistics.of(statistics_batches(data), layout, atoms=model.config.reward_atoms or ())
    for member, name in itertools.product(members_of(model), ("latent", "reward")):
        low, high = (getattr(member, f"{name}_{end}") for end in ("low", "high"))
        low.copy_(torch.minimum(low, getattr(found, f"{name}_low")))
        high.copy_(torch.maximum(high, getattr(found, f"{name}_high")))


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
    open_fields: Mapping[str, bool],
    size: int = 1,
) -> MDNRNN:
    """Return M ready for training, with what its configuration leaves to the data; see `decisions.left_open`.

    With a ``size`` above 1 it is an ensemble of so many members, with the same statistics and other initial weights.
    """
    train, test = data
    start = partial(set_statistics, data=train, layout=layout, fit_floors=open_fields["sigma_floors"])
    make = partial(new_model, layout=layout, extras=model.extras)
    if open_fields["latent_head_choice"] and test is not None:
        model = with_chosen_head(model, partial(make, seed=seed), start, (train, test), config, seed, directory)
    else:
        start(model)
    return model if size == 1 else _with_members(model, size, make, start, seed)


def _with_members(
    first: MDNRNN, size: int, make: Callable[..., MDNRNN], start: Callable[[MDNRNN], None], seed: int
) -> MDNRNNEnsemble:
    """Return an ensemble of a model that is ready for training and others of its kind."""
    members, device = [first], first.change_scale.device
    for number in range(1, size):
        sizes, own = (first.latent_size, first.action_size), derive_seed(seed, MEMBER_STREAM, number)
        member = make(sizes, first.config, seed=own).to(device)
        start(member)
        member.latent_head.set_constants(first.latent_head.constants())
        members.append(member.to(device))
    return MDNRNNEnsemble(members)
