"""Choose the head that predicts z by a short training of each candidate.

The richer head is chosen only if its held-out likelihood is better by more than the standard error of the difference. Both
candidates see the same batches, and the same samples of the latents in the comparison. The pilot models are discarded: the
chosen head is trained as if the configuration had named it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from worldmodel.mixtures import Factorization, NoiseType
from worldmodel.models import MDNRNN, MDNRNNConfig
from worldmodel.training import loop
from worldmodel.training.config import TrainingConfig, learning_rate
from worldmodel.training.optimizers import make_optimizer
from worldmodel.training.windows import SequenceData

SIMPLE, RICH = "MixtureHead", "AutoregressiveHead"
PILOT_FRACTION = 0.05  # of the updates, for each candidate


def has_choice(config: MDNRNNConfig, latent_size: int) -> bool:
    """Return whether the candidates differ: several dimensions, and no factorisation or noise that only one of them has."""
    plain = config.factorization is Factorization.PER_DIMENSION and config.noise_type is NoiseType.DIAGONAL
    return plain and latent_size > 1


def choose_latent_head(
    make: Callable[[str], MDNRNN], train: SequenceData, test: SequenceData, config: TrainingConfig, seed: int
) -> dict[str, Any]:
    """Train each candidate for a part of the updates and compare them on held-out windows.

    Args:
        make: makes a model with a head of this class name, ready for training.
        train: training data.
        test: held-out data.
        config: of the training, of which the pilot is a shorter version.
        seed: of the batches.

    Returns:
        ``chosen``, the class name of a head; ``gain`` of the richer one, in nats per dimension, and its standard error ``se``
        over windows; ``updates`` of each pilot.
    """
    updates = max(1, round(PILOT_FRACTION * config.num_updates))
    pilot = replace(config, num_updates=updates, warmup_updates=0)
    simple, rich = (_held_out(_trained(make(name), train, pilot, seed), test, pilot, seed) for name in (SIMPLE, RICH))
    gain = simple - rich
    se = gain.std().item() / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    chosen = RICH if gain.mean().item() > se else SIMPLE
    return {"chosen": chosen, "gain": gain.mean().item(), "se": None if math.isinf(se) else se, "updates": updates}


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
        optimizer.step()
        index += 1
    return model


@torch.no_grad()
def _held_out(model: MDNRNN, data: SequenceData, config: TrainingConfig, seed: int) -> torch.Tensor:
    """Return the mean loss of z of each held-out window, in nats per dimension: (windows,) float64."""
    found = []
    for batch in loop.held_out_batches(data, config.max_test_batches, seed=seed, device=model.change_scale.device):
        losses = torch.where(batch.mask, model.eval().step_losses(batch).latent, 0.0).double().sum(dim=1)
        steps = batch.mask.sum(dim=1)
        found.append((losses / steps.clamp(min=1) / model.latent_size)[steps > 0])
    return torch.cat(found)
