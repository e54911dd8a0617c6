"""The agent that the first round of a loop improves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from worldmodel.agents import Controller, ControllerConfig
from worldmodel.data import EpisodeCollection
from worldmodel.models import WorldModel

LARGEST_FEATURE = 0.95  # of the mean action, in [-1, 1]: tanh of the outputs must keep a gradient


def first_agent(world: WorldModel, config: ControllerConfig, stores: Sequence[Path], seed: int) -> Controller:
    """Make a controller with random hidden weights; for a Box it acts as the data do in the mean.

    Without that, its first actions are the middles of their ranges. In CarRacing these press gas and brake at once, far from
    all data, and dreams of what no data show are not to be trusted (dev/LOG.md).

    Args:
        world: V and M.
        config: kind of the controller; without a bias it starts in the middle of the ranges.
        stores: the data of the first round.
        seed: seed of the hidden weights.
    """
    controller = Controller.for_world(world, config, torch.Generator().manual_seed(seed))
    if not config.bias or not bool(world.action_features.is_box.all()):
        return controller
    episodes = EpisodeCollection.open(list(stores))
    features = [world.action_features.flatten(episodes.read(index).actions) for index in range(len(episodes))]
    mean = torch.cat([part.float() for part in features]).mean(dim=0).cpu()
    last = controller.layers[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.bias.copy_(mean.clamp(-LARGEST_FEATURE, LARGEST_FEATURE).atanh())
    return controller
