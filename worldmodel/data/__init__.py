"""Real episodes: how they are collected, stored, verified and read.

`collect` plays an environment and writes an `EpisodeStore`, a directory that stays readable after a kill and can be resumed,
verified and repaired. `from_arrays`, `from_csv`, `from_parquet`, `from_hdf5`, `from_lerobot` and `from_video` convert recorded
data. ``rollouts`` yields episodes without storing them. This package does not import models: a store of
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
    from worldmodel.data.action_repeat import ActionRepeat as ActionRepeat
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
    from worldmodel.data.episode import as_flag as as_flag
    from worldmodel.data.episode import as_reward as as_reward
    from worldmodel.data.episode import check_episode as check_episode
    from worldmodel.data.formats.arrays import from_arrays as from_arrays
    from worldmodel.data.formats.config import Columns as Columns
    from worldmodel.data.formats.config import ConversionConfig as ConversionConfig
    from worldmodel.data.formats.conversion import describe_conversion as describe_conversion
    from worldmodel.data.formats.conversion import describe_number as describe_number
    from worldmodel.data.formats.csv_files import from_csv as from_csv
    from worldmodel.data.formats.hdf5 import from_hdf5 as from_hdf5
    from worldmodel.data.formats.lerobot import from_lerobot as from_lerobot
    from worldmodel.data.formats.parquet import from_parquet as from_parquet
    from worldmodel.data.formats.parquet import to_parquet as to_parquet
    from worldmodel.data.formats.video import from_video as from_video
    from worldmodel.data.inspecting import Number as Number
    from worldmodel.data.inspecting import StoreSummary as StoreSummary
    from worldmodel.data.inspecting import summarise_store as summarise_store
    from worldmodel.data.missing import held as held
    from worldmodel.data.missing import joined_missing as joined_missing
    from worldmodel.data.missing import missing_numbers as missing_numbers
    from worldmodel.data.noise import ActionNoise as ActionNoise
    from worldmodel.data.noise import NoiseProcess as NoiseProcess
    from worldmodel.data.noise import SlowDriver as SlowDriver
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
            "action_repeat": "ActionRepeat",
            "collecting": "collect open_or_create",
            "collection": "EpisodeCollection permuted split_episodes",
            "compression": "pack unpack",
            "env_factory": "EnvConfig EnvMaker env_maker make_env",
            "episode": "Episode as_flag as_reward check_episode",
            "formats.arrays": "from_arrays",
            "formats.config": "Columns ConversionConfig",
            "formats.conversion": "describe_conversion describe_number",
            "formats.csv_files": "from_csv",
            "formats.hdf5": "from_hdf5",
            "formats.lerobot": "from_lerobot",
            "formats.parquet": "from_parquet to_parquet",
            "formats.video": "from_video",
            "inspecting": "Number StoreSummary summarise_store",
            "missing": "held joined_missing missing_numbers",
            "noise": "ActionNoise NoiseProcess SlowDriver",
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
