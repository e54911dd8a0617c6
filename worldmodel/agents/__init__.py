"""Agents and how they are improved: controllers, evolution, policy gradients.

An agent maps latent features to actions. `evolve` searches its weights by the return of complete episodes, `ppo` by
gradients in short dreams. Agents and Gymnasium environments do not import each other: a policy maps features to actions, a
world steps, and both meet in the dream package.

Example:
    >>> import numpy as np
    >>> from worldmodel.agents import OpenAIES
    >>> search = OpenAIES(np.zeros(2), sigma=0.5, population=64, seed=0)
    >>> for _ in range(100):
    ...     search.tell(-np.square(search.ask() - 1.0).sum(axis=1))  # the best weights are (1, 1)
    >>> bool(np.abs(search.mean - 1.0).max() < 0.3)
    True
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.agents.action_distributions import make_choices as make_choices
    from worldmodel.agents.controller import CONTROLLER_FILE as CONTROLLER_FILE
    from worldmodel.agents.controller import CONTROLLER_FILES as CONTROLLER_FILES
    from worldmodel.agents.controller import CONTROLLER_FORMAT as CONTROLLER_FORMAT
    from worldmodel.agents.controller import Controller as Controller
    from worldmodel.agents.controller import ControllerConfig as ControllerConfig
    from worldmodel.agents.evolution import SEARCH_FILE as SEARCH_FILE
    from worldmodel.agents.evolution import SearchConfig as SearchConfig
    from worldmodel.agents.evolution import evolve as evolve
    from worldmodel.agents.latent_policy import LatentPolicy as LatentPolicy
    from worldmodel.agents.latent_value import LatentValue as LatentValue
    from worldmodel.agents.latent_value import ValueConfig as ValueConfig
    from worldmodel.agents.latent_value import fit_value as fit_value
    from worldmodel.agents.plan_scores import PlannedStep as PlannedStep
    from worldmodel.agents.planner import Planner as Planner
    from worldmodel.agents.planner import PlanReport as PlanReport
    from worldmodel.agents.planner_config import PlannerConfig as PlannerConfig
    from worldmodel.agents.policy_gradient import PPO_FILE as PPO_FILE
    from worldmodel.agents.policy_gradient import DifferentiableAgent as DifferentiableAgent
    from worldmodel.agents.policy_gradient import ppo as ppo
    from worldmodel.agents.population import AgentGroups as AgentGroups
    from worldmodel.agents.population import ControllerBatch as ControllerBatch
    from worldmodel.agents.population import DreamPopulation as DreamPopulation
    from worldmodel.agents.population import RealPopulation as RealPopulation
    from worldmodel.agents.ppo_learner import PPOConfig as PPOConfig
    from worldmodel.agents.registry import check_agent as check_agent
    from worldmodel.agents.registry import copy_for_training as copy_for_training
    from worldmodel.agents.registry import has_agent as has_agent
    from worldmodel.agents.registry import load_agent as load_agent
    from worldmodel.agents.registry import register_agent as register_agent
    from worldmodel.agents.strategies import METHODS as METHODS
    from worldmodel.agents.strategies import Method as Method
    from worldmodel.agents.strategies import OpenAIES as OpenAIES
    from worldmodel.agents.strategies import OpenAIESConfig as OpenAIESConfig
    from worldmodel.agents.strategies import centred_ranks as centred_ranks
    from worldmodel.agents.strategies import check_fitness as check_fitness
    from worldmodel.agents.strategies import estimate_gradient as estimate_gradient
    from worldmodel.agents.strategies import make_strategy as make_strategy
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "action_distributions": "make_choices",
            "controller": "CONTROLLER_FILE CONTROLLER_FILES CONTROLLER_FORMAT Controller ControllerConfig",
            "evolution": "SEARCH_FILE SearchConfig evolve",
            "latent_policy": "LatentPolicy",
            "latent_value": "LatentValue ValueConfig fit_value",
            "plan_scores": "PlannedStep",
            "planner": "PlanReport Planner",
            "planner_config": "PlannerConfig",
            "policy_gradient": "DifferentiableAgent PPO_FILE ppo",
            "population": "AgentGroups ControllerBatch DreamPopulation RealPopulation",
            "ppo_learner": "PPOConfig",
            "registry": "check_agent copy_for_training has_agent load_agent register_agent",
            "strategies": "METHODS Method OpenAIES OpenAIESConfig centred_ranks check_fitness estimate_gradient make_strategy",
        },
    )
