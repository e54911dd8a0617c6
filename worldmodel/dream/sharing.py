"""Dreams that several ranks share: each dreams its rows of a batch, with the numbers that one process would draw for them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from worldmodel.dream.agent import LatentState, Policy
from worldmodel.dream.dreams import Dreams
from worldmodel.dream.latent_world import Rollout
from worldmodel.dream.policies import RandomActions
from worldmodel.models import State
from worldmodel.rng import BatchRows
from worldmodel.runtime import Ranks
from worldmodel.spaces import Value, map_leaves


def shared_rollout(dreams: Dreams, policy: Policy | None, horizon: int, *, seed: int) -> Rollout | None:
    """Dream a rollout with all ranks.

    Args:
        dreams: the dreams of all ranks together.
        policy: an agent that draws no random numbers of its own; None acts at random.
        horizon: largest number of steps.
        seed: seed of all samples.

    Returns:
        On rank 0 the rollout that one process would dream, but for the last bits and the actions after the ends of episodes;
        None on the others.
    """
    ranks, generator, total = Ranks.current(), dreams.generator(seed), dreams.batch_size
    rows = ranks.rows(total)
    if ranks.alone:
        return dreams.rollout(policy or RandomActions(dreams.world, generator=generator), horizon, generator=generator)
    agent = policy or _SharedRandomActions(dreams, rows, generator)
    start = dreams.start(generator=generator)
    part = None
    if rows.start < rows.stop:
        lstm = State(*(part[:, rows] for part in start.lstm))
        mine = dreams.variant(num_dreams=rows.stop - rows.start)
        source = cast(torch.Generator, BatchRows(generator, rows, total))
        begun = LatentState(start.z[rows], lstm, start.alive[rows])
        part = map_rollout(mine.rollout(agent, horizon, generator=source, start=begun), Tensor.cpu)
    parts = [found for found in ranks.collect(part) if found is not None]
    return _joined(parts, dreams.world.device) if ranks.leads else None


class _SharedRandomActions(RandomActions):
    """The random actions of some rows of a batch."""

    def __init__(self, dreams: Dreams, rows: slice, generator: torch.Generator):
        super().__init__(dreams.world, generator=generator)
        self._rows, self._total = rows, dreams.batch_size

    def act(self, state: LatentState) -> Value:
        """Sample the actions of the whole batch and return those of the rows."""
        return map_leaves(lambda leaf: leaf[self._rows], self._space.sample(self._total, generator=self._generator))


def map_rollout(rollout: Rollout, function: Any) -> Rollout:
    """Apply a function to every tensor of a rollout."""
    parts = {name: function(part) for name, part in vars(rollout).items() if name != "actions" and part is not None}
    return Rollout(actions=map_leaves(function, rollout.actions), **parts)


def _joined(parts: list[Rollout], device: torch.device) -> Rollout:
    """Join rollouts of different lengths; the shorter ones have ended, so their last states are repeated."""
    steps = max(part.mask.shape[1] for part in parts)

    def longer(tensor: Tensor, extra: int) -> Tensor:
        missing = steps + extra - tensor.shape[1]
        return torch.cat([tensor, tensor[:, -1:].expand(-1, missing, *tensor.shape[2:])], dim=1)

    def ended(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor.new_zeros(len(tensor), steps - tensor.shape[1])], dim=1)

    of_steps = ["rewards", "terminated", "mask", *([] if parts[0].uncertainty is None else ["uncertainty"])]
    whole = Rollout(
        torch.cat([longer(part.z, 1) for part in parts]),
        map_leaves(lambda *leaf: torch.cat([longer(one, 0) for one in leaf]), *(part.actions for part in parts)),
        *(torch.cat([ended(getattr(part, name)) for part in parts]) for name in of_steps),
    )
    return map_rollout(whole, lambda tensor: tensor.to(device))
