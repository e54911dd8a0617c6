"""Recurrent world models: collect, train, dream, act, and compare with reality.

See the README for the tour, and the modules' docstrings for the mathematics.
"""

from worldmodel.collect import collect
from worldmodel.controller import LatentPolicy, LinearController, evolve
from worldmodel.dream import Dreams, LatentState, RandomActions, Rollout
from worldmodel.episode import Episode
from worldmodel.evaluation import Evaluation, Scores, evaluate, replay
from worldmodel.fit import DataConfig, fit
from worldmodel.iteration import IterationConfig, Round, iterate, summarize
from worldmodel.mdn import Factorization, MixtureDensityNetwork, MixtureHead, NoiseType
from worldmodel.mdnrnn import MDNRNN, MDNRNNConfig
from worldmodel.mixture import GaussianMixture
from worldmodel.policies import BrownianPolicy, RandomPolicy, RepeatPolicy
from worldmodel.rollouts import EpisodeFailure, rollouts
from worldmodel.store import EpisodeStore, repair, verify
from worldmodel.training import TrainingConfig
from worldmodel.version import __version__
from worldmodel.vision import StateNormalizer
from worldmodel.world import WorldModel

__all__ = [
    "MDNRNN",
    "BrownianPolicy",
    "DataConfig",
    "Dreams",
    "Episode",
    "EpisodeFailure",
    "EpisodeStore",
    "Evaluation",
    "Factorization",
    "GaussianMixture",
    "IterationConfig",
    "LatentPolicy",
    "LatentState",
    "LinearController",
    "MDNRNNConfig",
    "MixtureDensityNetwork",
    "MixtureHead",
    "NoiseType",
    "RandomActions",
    "RandomPolicy",
    "RepeatPolicy",
    "Rollout",
    "Round",
    "Scores",
    "StateNormalizer",
    "TrainingConfig",
    "WorldModel",
    "__version__",
    "collect",
    "evaluate",
    "evolve",
    "fit",
    "iterate",
    "repair",
    "replay",
    "rollouts",
    "summarize",
    "verify",
]
