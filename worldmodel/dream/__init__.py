"""Many episodes at once in a world model, without Gymnasium: dreams, and M's state along real episodes.

`Dreams` steps a batch of latent states through M, `Reality` steps real environments behind the same interface, and
`LatentTracker` follows M's state on real observations, for example on a robot. An agent therefore acts in all three
unchanged. Training does not appear here: a dream needs weights, not how they were made.

Example:
    >>> import torch
    >>> from worldmodel.dream import lambda_returns
    >>> reward, continuation, value = torch.ones(3), torch.ones(3), torch.zeros(4)
    >>> lambda_returns(reward, continuation, value, discount=0.5, lambda_=1.0)
    tensor([1.7500, 1.5000, 1.0000])
"""

from typing import TYPE_CHECKING

from worldmodel.lazy import attach

if TYPE_CHECKING:
    from worldmodel.dream.agent import Agent as Agent
    from worldmodel.dream.agent import LatentState as LatentState
    from worldmodel.dream.agent import Policy as Policy
    from worldmodel.dream.dreams import DreamPrecision as DreamPrecision
    from worldmodel.dream.dreams import Dreams as Dreams
    from worldmodel.dream.dreams import MemberPer as MemberPer
    from worldmodel.dream.dreams import TerminationRule as TerminationRule
    from worldmodel.dream.half_precision_step import FastStep as FastStep
    from worldmodel.dream.horizon import DEFAULT_HORIZON as DEFAULT_HORIZON
    from worldmodel.dream.horizon import check_action_repeat as check_action_repeat
    from worldmodel.dream.horizon import time_limit as time_limit
    from worldmodel.dream.horizon import usual_horizon as usual_horizon
    from worldmodel.dream.imagination import Imagination as Imagination
    from worldmodel.dream.imagination import imagine as imagine
    from worldmodel.dream.imagination import lambda_returns as lambda_returns
    from worldmodel.dream.latent_world import BatchedWorld as BatchedWorld
    from worldmodel.dream.latent_world import Rollout as Rollout
    from worldmodel.dream.policies import CyclicActions as CyclicActions
    from worldmodel.dream.policies import FeaturePolicy as FeaturePolicy
    from worldmodel.dream.policies import RandomActions as RandomActions
    from worldmodel.dream.policies import RecordedActions as RecordedActions
    from worldmodel.dream.policies import RepeatedActions as RepeatedActions
    from worldmodel.dream.policies import agent_of as agent_of
    from worldmodel.dream.policies import as_agent as as_agent
    from worldmodel.dream.reality import Reality as Reality
    from worldmodel.dream.rewards import REWARD_MODES as REWARD_MODES
    from worldmodel.dream.rewards import LatentReward as LatentReward
    from worldmodel.dream.rewards import Reward as Reward
    from worldmodel.dream.rewards import RewardFunction as RewardFunction
    from worldmodel.dream.rewards import RewardMode as RewardMode
    from worldmodel.dream.rewards import UserReward as UserReward
    from worldmodel.dream.rewards import check_rewards as check_rewards
    from worldmodel.dream.rewards import load_reward as load_reward
    from worldmodel.dream.rewards import reward_name as reward_name
    from worldmodel.dream.scores import Scores as Scores
    from worldmodel.dream.scores import format_spread as format_spread
    from worldmodel.dream.scores import score as score
    from worldmodel.dream.seeding import EpisodeSeeds as EpisodeSeeds
    from worldmodel.dream.seeding import Rows as Rows
    from worldmodel.dream.seeding import rows_to_reset as rows_to_reset
    from worldmodel.dream.sharing import shared_rollout as shared_rollout
    from worldmodel.dream.starts import StartBank as StartBank
    from worldmodel.dream.starts import StartConfig as StartConfig
    from worldmodel.dream.tracking import LatentTracker as LatentTracker
    from worldmodel.dream.tracking import primed_states as primed_states
    from worldmodel.dream.uncertainty import Information as Information
    from worldmodel.dream.uncertainty import Penalty as Penalty
    from worldmodel.dream.uncertainty import mutual_information as mutual_information
    from worldmodel.dream.uncertainty import variance_of_means as variance_of_means
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "agent": "Agent LatentState Policy",
            "dreams": "DreamPrecision Dreams MemberPer TerminationRule",
            "half_precision_step": "FastStep",
            "horizon": "DEFAULT_HORIZON check_action_repeat time_limit usual_horizon",
            "imagination": "Imagination imagine lambda_returns",
            "latent_world": "BatchedWorld Rollout",
            "policies": "CyclicActions FeaturePolicy RandomActions RecordedActions RepeatedActions agent_of as_agent",
            "reality": "Reality",
            "rewards": (
                "LatentReward REWARD_MODES Reward RewardFunction RewardMode UserReward check_rewards load_reward reward_name"
            ),
            "scores": "Scores format_spread score",
            "seeding": "EpisodeSeeds Rows rows_to_reset",
            "sharing": "shared_rollout",
            "starts": "StartBank StartConfig",
            "tracking": "LatentTracker primed_states",
            "uncertainty": "Information Penalty mutual_information variance_of_means",
        },
    )
