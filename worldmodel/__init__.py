"""Recurrent world models: collect, train, dream, act, and compare with reality.

See the README for the tour, and the modules' docstrings for the mathematics.
"""

import gymnasium

from worldmodel.batched import BatchedWorld, LatentState, Rollout
from worldmodel.batches import SequenceBatch
from worldmodel.collect import CollectionProgress, collect
from worldmodel.controller import Controller, LatentPolicy
from worldmodel.dream import Dreams, RandomActions
from worldmodel.dream_options import DreamOptions
from worldmodel.encoding import Encoder, encode_store
from worldmodel.envs import DreamEnv, DreamVectorEnv
from worldmodel.episode import Episode
from worldmodel.evaluation import Evaluation, evaluate, replay
from worldmodel.evolution import Generation, evolve
from worldmodel.fit import DataConfig, fit
from worldmodel.imagination import Imagination, imagine, lambda_returns
from worldmodel.iteration import iterate
from worldmodel.latent_env import LatentEnv, LatentVectorEnv
from worldmodel.mdn import Factorization, MixtureDensityNetwork, MixtureHead, NoiseType
from worldmodel.mdnrnn import MDNRNN, MDNRNNConfig, Prediction, State
from worldmodel.mixture import GaussianMixture
from worldmodel.policies import BrownianPolicy, RandomPolicy, RepeatPolicy
from worldmodel.population import RealPopulation
from worldmodel.ppo import PPOConfig, PPOIteration, ppo
from worldmodel.probe import Probe, probe
from worldmodel.reality import Reality
from worldmodel.rollouts import EpisodeFailure, rollouts
from worldmodel.rounds import IterationConfig, Round, StageProgress, best_round, summarize
from worldmodel.scores import Scores
from worldmodel.starts import StartBank
from worldmodel.store import EpisodeStore, Problem, repair, verify
from worldmodel.strategies import OpenAIESConfig
from worldmodel.training import NonFiniteLossError, TrainingProgress
from worldmodel.training_config import TrainingConfig
from worldmodel.vae import ConvVAE, FrameBatch, VAEConfig
from worldmodel.vae_training import FrameConfig, train_vae
from worldmodel.version import __version__
from worldmodel.vision import StateNormalizer, Vision
from worldmodel.world import WorldModel

__all__ = [
    "MDNRNN",
    "BatchedWorld",
    "BrownianPolicy",
    "CollectionProgress",
    "Controller",
    "ConvVAE",
    "DataConfig",
    "DreamEnv",
    "DreamOptions",
    "DreamVectorEnv",
    "Dreams",
    "Encoder",
    "Episode",
    "EpisodeFailure",
    "EpisodeStore",
    "Evaluation",
    "Factorization",
    "FrameBatch",
    "FrameConfig",
    "GaussianMixture",
    "Generation",
    "Imagination",
    "IterationConfig",
    "LatentEnv",
    "LatentPolicy",
    "LatentState",
    "LatentVectorEnv",
    "MDNRNNConfig",
    "MixtureDensityNetwork",
    "MixtureHead",
    "NoiseType",
    "NonFiniteLossError",
    "OpenAIESConfig",
    "PPOConfig",
    "PPOIteration",
    "Prediction",
    "Probe",
    "Problem",
    "RandomActions",
    "RandomPolicy",
    "RealPopulation",
    "Reality",
    "RepeatPolicy",
    "Rollout",
    "Round",
    "Scores",
    "SequenceBatch",
    "StageProgress",
    "StartBank",
    "State",
    "StateNormalizer",
    "TrainingConfig",
    "TrainingProgress",
    "VAEConfig",
    "Vision",
    "WorldModel",
    "__version__",
    "best_round",
    "collect",
    "encode_store",
    "evaluate",
    "evolve",
    "fit",
    "imagine",
    "iterate",
    "lambda_returns",
    "ppo",
    "probe",
    "repair",
    "replay",
    "rollouts",
    "summarize",
    "train_vae",
    "verify",
]

gymnasium.register(  # for gym.make("worldmodel:Dream-v0"), which imports this module; the one thing that an import does
    "Dream-v0", entry_point="worldmodel.envs:DreamEnv", vector_entry_point="worldmodel.envs:DreamVectorEnv"
)
