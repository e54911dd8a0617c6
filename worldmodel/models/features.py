"""Features for agents, in dreams and in the real environment: z, (z, h) or (z, h, c), and their Gymnasium space.

Features have a meaning only in the world model that made them: another V has other latents, and another M other hidden units.
So an agent and a space of features carry the `Origin` of the features, and an agent of another world model is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from worldmodel.models.mdnrnn import State
from worldmodel.models.world import WorldModel

FeatureKind = Literal["z", "zh", "zhc"]
FEATURE_KINDS: tuple[FeatureKind, ...] = ("z", "zh", "zhc")
CELL_BOUND = 1e6  # an LSTM's cell grows by less than 1 per step, so only an episode of a million steps could exceed it


@dataclass(frozen=True)
class Origin:
    """The world model in which an agent was trained.

    Args:
        vision: fingerprint of V.
        world: fingerprint of the world model.
    """

    vision: str
    world: str

    @classmethod
    def of(cls, world: WorldModel) -> Origin:
        """Return the origin of the features of a world model; it is computed once, until a weight is written to."""
        state = tuple((tensor.data_ptr(), tensor._version) for tensor in world.state_dict().values())
        known = _ORIGINS.get(world)
        if known is None or known[0] != state:
            known = _ORIGINS[world] = (state, cls(world.vision.fingerprint, world.fingerprint))
        return known[1]

    def check(self, world: WorldModel, kind: FeatureKind, *, name: str) -> None:
        """Raise unless features of this kind mean the same in a world model.

        V must be the same one and, as "zh" and "zhc" contain M's state, M too; an M that was trained further (``fit`` with
        ``initial``) counts as the same.

        Raises:
            ValueError: naming ``name`` and what differs.
        """
        here = Origin.of(world)
        if self.vision != here.vision:
            part, expected, got = "V", here.vision, self.vision
        elif kind != "z" and self.world not in (here.world, world.provenance.get("initial")):
            part, expected, got = "M", here.world, self.world
        else:
            return
        raise ValueError(
            f"{name}: expected one trained on features of this world model, got one trained with another {part} ({got[:8]}, "
            f"not {expected[:8]}), whose features mean something else; use its own world model, train it in this one (evolve "
            "and ppo take it as the start), or set its origin to None if you know better"
        )


_ORIGINS: WeakKeyDictionary[WorldModel, tuple[Any, Origin]] = WeakKeyDictionary()  # digests copy a GPU's weights to the host


class FeatureSpace(spaces.Box):
    """Space of features, which also says what they are; a Box in all other respects.

    Args:
        low: (F,) lower bounds.
        high: (F,) upper bounds.
        kind: "z", "zh" or "zhc".
        origin: the world model that makes them.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, *, kind: FeatureKind, origin: Origin):
        super().__init__(low, high, dtype=np.float32)
        self.kind, self.origin = kind, origin


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
    """Number of features F of a kind: D for "z", plus H for "zh" (of all members of an ensemble), plus 2 H for "zhc"."""
    check_features(kind)
    model = world.mdnrnn
    return model.latent_size + {"z": 0, "zh": 1, "zhc": 2}[kind] * model.state_size


def feature_space(world: WorldModel, kind: FeatureKind) -> FeatureSpace:
    """Return the space of the features (F,): z within the bounds of dreams, h within -1 and 1, c within `CELL_BOUND`."""
    check_features(kind)
    model = world.mdnrnn
    hidden = np.ones(model.state_size, dtype=np.float32)
    others = {"z": [], "zh": [hidden], "zhc": [hidden, CELL_BOUND * hidden]}[kind]
    low, high = (bound.cpu().float().numpy() for bound in (model.latent_low, model.latent_high))
    bounds = np.concatenate([low, *(-part for part in others)]), np.concatenate([high, *others])
    return FeatureSpace(*bounds, kind=kind, origin=Origin.of(world))
