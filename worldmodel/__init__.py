"""Recurrent world models: collect, train, dream, act, and compare with reality.

See the README for the tour, and the modules' docstrings for the mathematics.
"""

from worldmodel.batches import SequenceBatch
from worldmodel.collect import CollectionProgress, collect
from worldmodel.controller import Generation, LatentPolicy, LinearController, evolve
from worldmodel.dream import BatchedWorld, Dreams, LatentState, RandomActions, Rollout
from worldmodel.episode import Episode
from worldmodel.evaluation import Evaluation, Scores, evaluate, replay
from worldmodel.fit import DataConfig, fit
from worldmodel.iteration import IterationConfig, Round, StageProgress, best_round, iterate, summarize
from worldmodel.mdn import Factorization, MixtureDensityNetwork, MixtureHead, NoiseType
from worldmodel.mdnrnn import MDNRNN, MDNRNNConfig, Prediction, State
from worldmodel.mixture import GaussianMixture
from worldmodel.policies import BrownianPolicy, RandomPolicy, RepeatPolicy
from worldmodel.reality import Reality
from worldmodel.rollouts import EpisodeFailure, rollouts
from worldmodel.store import EpisodeStore, Problem, repair, verify
from worldmodel.training import NonFiniteLossError, TrainingConfig, TrainingProgress
from worldmodel.version import __version__
from worldmodel.vision import StateNormalizer
from worldmodel.world import WorldModel

__all__ = [
    "MDNRNN",
    "BatchedWorld",
    "BrownianPolicy",
    "CollectionProgress",
    "DataConfig",
    "Dreams",
    "Episode",
    "EpisodeFailure",
    "EpisodeStore",
    "Evaluation",
    "Factorization",
    "GaussianMixture",
    "Generation",
    "IterationConfig",
    "LatentPolicy",
    "LatentState",
    "LinearController",
    "MDNRNNConfig",
    "MixtureDensityNetwork",
    "MixtureHead",
    "NoiseType",
    "NonFiniteLossError",
    "Prediction",
    "Problem",
    "RandomActions",
    "RandomPolicy",
    "Reality",
    "RepeatPolicy",
    "Rollout",
    "Round",
    "Scores",
    "SequenceBatch",
    "StageProgress",
    "State",
    "StateNormalizer",
    "TrainingConfig",
    "TrainingProgress",
    "WorldModel",
    "__version__",
    "best_round",
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
