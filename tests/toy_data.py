"""Small stores of synthetic episodes for the tests."""

import numpy as np
from gymnasium import spaces

from worldmodel.data import Episode, EpisodeStore

OBSERVATION = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTION = spaces.Discrete(3)


def labelled_episode(episode_id, steps, *, terminated=True):
    """Return observations [episode_id, t], actions t mod 3 and rewards 100 episode_id + t."""
    t = np.arange(steps + 1)
    last = t[:-1] == steps - 1
    return Episode(
        observations=np.stack([np.full(steps + 1, episode_id), t], axis=1).astype(np.float32),
        actions=t[:-1] % 3,
        rewards=100.0 * episode_id + t[:-1],
        terminations=last & terminated,
        truncations=last & (not terminated),
        episode_id=episode_id,
    )


def walking_episode(episode_id, steps):
    """Return a random walk to which the action adds -0.5, 0 or 0.5, which is the reward."""
    rng = np.random.default_rng(episode_id)
    action = rng.integers(3, size=steps)
    push = 0.5 * (action - 1)
    moves = np.stack([push, -push], axis=1) + 0.1 * rng.standard_normal((steps, 2))
    last = np.arange(steps) == steps - 1
    return Episode(
        observations=np.concatenate([rng.standard_normal((1, 2)), moves]).cumsum(axis=0).astype(np.float32),
        actions=action,
        rewards=push,
        terminations=last,
        truncations=~last & False,
        episode_id=episode_id,
    )


def write_store(path, episodes, *, observation_space=OBSERVATION, action_space=ACTION):
    """Write episodes to a store with one shard; no episodes make an empty store."""
    store = EpisodeStore.create(path, observation_space=observation_space, action_space=action_space)
    store.append(list(episodes))
    return store
