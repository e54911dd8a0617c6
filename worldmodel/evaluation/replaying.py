"""Replay a real trajectory in a dream (open loop)."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.data import Episode
from worldmodel.dream import Dreams, RecordedActions, Rollout, variance_of_means
from worldmodel.models import WorldModel, fill_missing
from worldmodel.runtime import check_integer
from worldmodel.spaces import map_leaves


def replay(dreams: Dreams, episode: Episode, *, prefix: int = 0, horizon: int | None = None, seed: int = 0) -> Rollout:
    """Dream under the actions of a real episode, from the same start, without seeing its observations again (open loop).

    Args:
        dreams: the dreams, all under the same actions.
        episode: the real episode.
        prefix: real steps that prime the LSTM before the dream begins.
        horizon: steps to dream; to the end of the episode if None.
        seed: seed of the dreams.

    Returns:
        A rollout that begins at ``episode.observations[prefix]``; of an ensemble it has the uncertainty of each step.

    Raises:
        ValueError: if the episode has no step after the prefix or does not fit the world's spaces, or ``horizon`` is below 1.
    """
    prefix = check_integer(prefix, "prefix", least=0)
    if prefix >= len(episode):
        raise ValueError(f"prefix: expected from 0 to below the episode's length {len(episode)}, got {prefix}")
    left = len(episode) - prefix
    steps = left if horizon is None else min(left, check_integer(horizon, "horizon", least=1))
    generator = dreams.generator(seed)
    start = dreams.start_from(
        map_leaves(lambda leaf: leaf[: prefix + 1], episode.observations),
        map_leaves(lambda leaf: leaf[:prefix], episode.actions),
        generator=generator,
    )
    recorded = RecordedActions(map_leaves(lambda leaf: leaf[prefix:], episode.actions))
    return dreams.rollout(recorded, steps, generator=generator, start=start)


@torch.no_grad()
def episode_uncertainty(world: WorldModel, episode: Episode, *, seed: int = 0) -> Tensor:
    """How much the members of an ensemble disagree about each step of a real episode, given everything before it.

    Args:
        world: with an ensemble.
        episode: the real episode.
        seed: seed of the samples of z, if V has noise.

    Returns:
        (T,) `worldmodel.dream.variance_of_means`.

    Raises:
        ValueError: if M is no ensemble, or the episode does not fit the world's spaces.
    """
    generator, model = torch.Generator(world.device).manual_seed(seed), world.mdnrnn
    z = world.encode(episode.observations, generator=generator)
    action = world.action_features.flatten(episode.actions)
    filled = fill_missing(model, z.unsqueeze(0), action.unsqueeze(0))
    z, action = filled.z[0], filled.action[0]
    found, state = [], model.initial_state(1)
    for t in range(len(episode)):
        before, taken = z[t : t + 1], action[t : t + 1]
        state = model.advance(before, taken, state)
        found.append(variance_of_means(model, before, taken, state))
    return torch.cat(found)
