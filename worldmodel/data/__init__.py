"""Real episodes: how they are collected, stored, verified and read.

`collect` plays an environment and writes an `EpisodeStore`, a directory that stays readable after a kill and can be resumed,
verified and repaired. ``rollouts`` yields episodes without storing them. This package does not import models: a store of
encoded episodes records only the fingerprint of V, so data can be read without the model.

Example:
    >>> from worldmodel.data import rollouts
    >>> (episode,) = rollouts("CartPole-v1", "random", episode_ids=[0], seed=0)
    >>> episode.observations.shape[0] == len(episode) + 1
    True
    >>> bool(episode.terminations[-1] or episode.truncations[-1])
    True
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.data.collecting import collect as collect
    from worldmodel.data.collecting import open_or_create as open_or_create
    from worldmodel.data.collection import EpisodeCollection as EpisodeCollection
    from worldmodel.data.collection import permuted as permuted
    from worldmodel.data.collection import split_episodes as split_episodes
    from worldmodel.data.compression import pack as pack
    from worldmodel.data.compression import unpack as unpack
    from worldmodel.data.env_factory import EnvConfig as EnvConfig
    from worldmodel.data.env_factory import EnvMaker as EnvMaker
    from worldmodel.data.env_factory import env_maker as env_maker
    from worldmodel.data.env_factory import make_env as make_env
    from worldmodel.data.episode import Episode as Episode
    from worldmodel.data.episode import as_reward as as_reward
    from worldmodel.data.episode import check_episode as check_episode
    from worldmodel.data.policies import POLICIES as POLICIES
    from worldmodel.data.policies import BrownianPolicy as BrownianPolicy
    from worldmodel.data.policies import CyclicPolicy as CyclicPolicy
    from worldmodel.data.policies import Policy as Policy
    from worldmodel.data.policies import RandomPolicy as RandomPolicy
    from worldmodel.data.policies import RepeatPolicy as RepeatPolicy
    from worldmodel.data.policies import SweepPolicy as SweepPolicy
    from worldmodel.data.policies import make_policy as make_policy
    from worldmodel.data.reading import describe_recipe as describe_recipe
    from worldmodel.data.repairing import Problem as Problem
    from worldmodel.data.repairing import repair as repair
    from worldmodel.data.repairing import verify as verify
    from worldmodel.data.runner import EpisodeFailure as EpisodeFailure
    from worldmodel.data.runner import Runner as Runner
    from worldmodel.data.runner import rollouts as rollouts
    from worldmodel.data.shards import Schema as Schema
    from worldmodel.data.store import EpisodeStore as EpisodeStore
    from worldmodel.data.time_limits import TIME_LIMIT as TIME_LIMIT
    from worldmodel.data.time_limits import common_truncation as common_truncation
    from worldmodel.data.time_limits import find_time_limit as find_time_limit
    from worldmodel.data.time_limits import positive_limits as positive_limits
    from worldmodel.data.time_limits import recorded_limits as recorded_limits
    from worldmodel.data.writer import EpisodeWriter as EpisodeWriter
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "collecting": "collect open_or_create",
            "collection": "EpisodeCollection permuted split_episodes",
            "compression": "pack unpack",
            "env_factory": "EnvConfig EnvMaker env_maker make_env",
            "episode": "Episode as_reward check_episode",
            "policies": "BrownianPolicy CyclicPolicy POLICIES Policy RandomPolicy RepeatPolicy SweepPolicy make_policy",
            "reading": "describe_recipe",
            "repairing": "Problem repair verify",
            "runner": "EpisodeFailure Runner rollouts",
            "shards": "Schema",
            "store": "EpisodeStore",
            "time_limits": "TIME_LIMIT common_truncation find_time_limit positive_limits recorded_limits",
            "writer": "EpisodeWriter",
        },
    )
