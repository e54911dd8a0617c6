"""Recurrent world models: collect, train, dream, act, and compare with the real environment.

The most used names are here, everything else in the packages (docs/architecture.md lists them and where to find what). Names
are imported on first use, so that ``import worldmodel`` imports neither torch nor matplotlib.

Example:
    >>> import tempfile
    >>> import worldmodel as wm
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     store = wm.collect("CartPole-v1", out=directory, num_episodes=2, seed=0)
    >>> len(store)
    2
"""

# ruff: noqa: E402  (Ctrl-C is handled before the imports that take time)
from worldmodel.starting import exit_on_interrupt as _exit_on_interrupt

_exit_on_interrupt()

from typing import TYPE_CHECKING

import gymnasium

from worldmodel.lazy import attach
from worldmodel.version import __version__ as __version__

if TYPE_CHECKING:
    from worldmodel.agents.controller import Controller as Controller
    from worldmodel.agents.controller import ControllerConfig as ControllerConfig
    from worldmodel.agents.evolution import SearchConfig as SearchConfig
    from worldmodel.agents.evolution import evolve as evolve
    from worldmodel.agents.latent_policy import LatentPolicy as LatentPolicy
    from worldmodel.agents.policy_gradient import ppo as ppo
    from worldmodel.agents.ppo_learner import PPOConfig as PPOConfig
    from worldmodel.data.collecting import collect as collect
    from worldmodel.data.env_factory import EnvConfig as EnvConfig
    from worldmodel.data.store import EpisodeStore as EpisodeStore
    from worldmodel.dream.dreams import Dreams as Dreams
    from worldmodel.envs.dream_env import DreamEnv as DreamEnv
    from worldmodel.envs.dream_env import DreamVectorEnv as DreamVectorEnv
    from worldmodel.envs.latent_env import LatentEnv as LatentEnv
    from worldmodel.envs.latent_env import LatentVectorEnv as LatentVectorEnv
    from worldmodel.evaluation.config import EvaluationConfig as EvaluationConfig
    from worldmodel.evaluation.evaluating import evaluate as evaluate
    from worldmodel.evaluation.faithfulness import probe as probe
    from worldmodel.experiments.iteration import iterate as iterate
    from worldmodel.experiments.iteration_config import IterationConfig as IterationConfig
    from worldmodel.mixtures.network import MixtureDensityNetwork as MixtureDensityNetwork
    from worldmodel.models.mdnrnn_config import MDNRNNConfig as MDNRNNConfig
    from worldmodel.models.vae import ConvVAE as ConvVAE
    from worldmodel.models.vae import VAEConfig as VAEConfig
    from worldmodel.models.world import WorldModel as WorldModel
    from worldmodel.runtime.runs import RunConfig as RunConfig
    from worldmodel.training.config import DataConfig as DataConfig
    from worldmodel.training.config import FrameConfig as FrameConfig
    from worldmodel.training.config import TrainingConfig as TrainingConfig
    from worldmodel.training.encode import encode_store as encode_store
    from worldmodel.training.fit_vision import train_vae as train_vae
    from worldmodel.training.fit_world import fit as fit
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "agents.controller": "Controller ControllerConfig",
            "agents.evolution": "SearchConfig evolve",
            "agents.latent_policy": "LatentPolicy",
            "agents.policy_gradient": "PPOConfig ppo",
            "data.collecting": "collect",
            "data.env_factory": "EnvConfig",
            "data.store": "EpisodeStore",
            "dream.dreams": "Dreams",
            "envs.dream_env": "DreamEnv DreamVectorEnv",
            "envs.latent_env": "LatentEnv LatentVectorEnv",
            "evaluation.config": "EvaluationConfig",
            "evaluation.evaluating": "evaluate",
            "evaluation.faithfulness": "probe",
            "experiments.iteration": "iterate",
            "experiments.iteration_config": "IterationConfig",
            "mixtures.network": "MixtureDensityNetwork",
            "models.mdnrnn_config": "MDNRNNConfig",
            "models.vae": "ConvVAE VAEConfig",
            "models.world": "WorldModel",
            "runtime.runs": "RunConfig",
            "training.config": "DataConfig FrameConfig TrainingConfig",
            "training.encode": "encode_store",
            "training.fit_vision": "train_vae",
            "training.fit_world": "fit",
        },
    )

gymnasium.register(  # for gym.make("worldmodel:Dream-v0"), which imports this module; nothing else happens here
    "Dream-v0", entry_point="worldmodel.envs:DreamEnv", vector_entry_point="worldmodel.envs:DreamVectorEnv"
)
