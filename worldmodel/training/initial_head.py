"""Start the latent head of a new M near the targets of a few training batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from worldmodel.models import MDNRNN, SequenceBatch

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
