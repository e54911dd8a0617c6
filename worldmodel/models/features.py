"""Features for agents, in dreams and in the real environment: z, (z, h) or (z, h, c), and their Gymnasium space."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from worldmodel.models.mdnrnn import State
from worldmodel.models.world import WorldModel

FeatureKind = Literal["z", "zh", "zhc"]
FEATURE_KINDS: tuple[FeatureKind, ...] = ("z", "zh", "zhc")
CELL_BOUND = 1e6  # an LSTM's cell grows by less than 1 per step, so only an episode of a million steps could exceed it


def check_features(kind: str) -> None:
    """Raise if a kind of features is unknown.

    Raises:
        ValueError: if ``kind`` is not "z", "zh" or "zhc".
    """
    if kind not in FEATURE_KINDS:
        raise ValueError(f"features: expected 'z', 'zh' or 'zhc', got {kind!r}")


def latent_features(z: Tensor, lstm: State, kind: FeatureKind) -> Tensor:
    """Concatenate z (B, D) with h and c of the LSTM's last layer, as in Ha & Schmidhuber (2018): (B, F).

    The result is a copy; the agent may write into it.

    Raises:
        ValueError: if ``kind`` is not "z", "zh" or "zhc".
    """
    if kind == "z":
        return z.clone()
    if kind == "zh":
        return torch.cat([z, lstm.h[-1]], dim=-1)
    check_features(kind)
    return torch.cat([z, lstm.h[-1], lstm.c[-1]], dim=-1)


def feature_size(world: WorldModel, kind: FeatureKind) -> int:
    """Number of features F of a kind: D for "z", plus H for "zh", plus 2 H for "zhc"."""
    check_features(kind)
    model = world.mdnrnn
    return model.latent_size + {"z": 0, "zh": 1, "zhc": 2}[kind] * model.config.hidden_size


def feature_space(world: WorldModel, kind: FeatureKind) -> spaces.Box:
    """Return the space of the features (F,): z within the bounds of dreams, h within -1 and 1, c within `CELL_BOUND`."""
    check_features(kind)
    model = world.mdnrnn
    hidden = np.ones(model.config.hidden_size, dtype=np.float32)
    others = {"z": [], "zh": [hidden], "zhc": [hidden, CELL_BOUND * hidden]}[kind]
    low, high = (bound.cpu().float().numpy() for bound in (model.latent_low, model.latent_high))
    return spaces.Box(np.concatenate([low, *(-part for part in others)]), np.concatenate([high, *others]), dtype=np.float32)
