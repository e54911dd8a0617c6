"""Replay a real trajectory in a dream (open loop)."""

from __future__ import annotations

from worldmodel.data import Episode
from worldmodel.dream import Dreams, RecordedActions, Rollout
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
        A rollout that begins at ``episode.observations[prefix]``.

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
