"""Value of the states of a world model under an agent, learnt in dreams: what comes after the end of a plan.

A plan of a few dozen steps cannot see that a cart which moves slowly will leave the track. The value of its last state can, if
it was learnt from dreams of an agent that goes on from there. Planning with it improves on the agent (Bertsekas 2019,
*Reinforcement Learning and Optimal Control*, chapter 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.agents.critic import Critic
from worldmodel.dream import Agent, Dreams, LatentState, Policy, StartBank, agent_of, check_rewards, lambda_returns
from worldmodel.models import FeatureKind
from worldmodel.rng import VALUE_STREAM, derive_seed
from worldmodel.runtime import check_integers, check_numbers, keeps_threads

SMALLEST_SCALE = 1e-3  # a feature that varies less over the starts is not scaled up


@dataclass(frozen=True, kw_only=True)
class ValueConfig:
    """Numbers of `fit_value`.

    Args:
        iterations: iterations of dreaming and learning.
        horizon: steps of each dream.
        discount: discount of rewards, per step; a planner that uses the value should have the same.
        lambda_: weight of long returns; see `worldmodel.dream.lambda_returns`.
        features: what the value depends on: "z", "zh" or "zhc".
        size: units of the hidden layer.
        learning_rate: Adam's.
        epochs: passes over the steps of an iteration.
        minibatches: minibatches in each pass.

    Raises:
        ValueError: naming the field that is out of range.
        TypeError: naming the field of another type.
    """

    iterations: int = 100
    horizon: int = 32
    discount: float = 0.99
    lambda_: float = 0.95
    features: FeatureKind = "zh"
    size: int = 64
    learning_rate: float = 2e-3
    epochs: int = 2
    minibatches: int = 4

    def __post_init__(self) -> None:
        """Check every field."""
        check_integers(self, dict.fromkeys(("iterations", "horizon", "size", "epochs", "minibatches"), 1))
        check_numbers(self, {"discount": "[0, 1)", "lambda_": "[0, 1]", "learning_rate": "(0, inf)"})
        if self.features not in ("z", "zh", "zhc"):
            raise ValueError(f"features: expected z, zh or zhc, got {self.features!r}")


class LatentValue(nn.Module):
    """Discounted return of an agent from a state: a function of `LatentState`, such as ``Planner(terminal_value=)`` takes.

    Args:
        features: kind of features.
        scale: (F,) what they are divided by.
        critic: a network on scaled features.
    """

    scale: Tensor

    def __init__(self, features: FeatureKind, scale: Tensor, critic: Critic):
        super().__init__()
        self.features, self.critic = features, critic
        self.register_buffer("scale", scale)

    def describe(self) -> dict[str, Any]:
        """Return what a file has to hold besides the weights."""
        return {"features": self.features, "size": self.critic.first.out_features}

    @classmethod
    def restored(cls, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> LatentValue:
        """Make the value that `describe` and ``state_dict`` returned, on the device of the weights."""
        scale = weights["scale"]
        critic = Critic(len(scale), int(description["size"]), 0.0, torch.Generator(scale.device))
        value = cls(description["features"], scale, critic)
        value.load_state_dict(dict(weights))
        return value.requires_grad_(False)

    def forward(self, state: LatentState) -> Tensor:
        """Values (B,) of B states."""
        values: Tensor = self.critic(self.scaled(state))
        return values

    def scaled(self, state: LatentState) -> Tensor:
        """Features (B, F) that the critic sees."""
        return state.features(self.features) / self.scale


@keeps_threads
def fit_value(
    policy: Policy, dreams: Dreams, starts: StartBank, *, config: ValueConfig | None = None, seed: int = 0
) -> LatentValue:
    """Learn the value of states under an agent, from dreams that start in real episodes.

    Each iteration dreams ``config.horizon`` steps from new starts and learns lambda returns; steps count by the probability
    that the episode has not terminated. The agent does not change.

    Args:
        policy: an agent, or a function of features.
        dreams: world, temperature, rewards and number of parallel dreams.
        starts: where the dreams start, such as `StartBank.along`.
        config: numbers; the defaults if None.
        seed: seed of all samples.

    Returns:
        The value, on the device of the world.

    Raises:
        ValueError: if there are no rewards or constant ones, or the agent was not made for this world.
        TypeError: if ``policy`` is not an agent.
    """
    config, agent = config or ValueConfig(), agent_of(policy, dreams.world)
    check_rewards(dreams.world, dreams.reward)
    generator = dreams.generator(derive_seed(seed, VALUE_STREAM))
    seen = starts.features(config.features, torch.empty_like(starts.mean).normal_(generator=generator))  # (N, F)
    scale = seen.std(dim=0, correction=0)
    critic = Critic(seen.shape[1], config.size, 0.0, generator)
    value = LatentValue(config.features, torch.where(scale > SMALLEST_SCALE, scale, 1.0), critic)
    optimizer = torch.optim.Adam(critic.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
    for _ in range(config.iterations):
        features, returns = _dream(agent, value, dreams, starts.sample(dreams.batch_size, generator), config, generator)
        critic.adapt(returns)
        for _ in range(config.epochs):
            order = torch.randperm(len(returns), generator=generator, device=returns.device)
            for index in order.chunk(config.minibatches):
                with torch.enable_grad():
                    loss = critic.loss(features[index], returns[index])
                    optimizer.zero_grad()
                    loss.backward()
                optimizer.step()
    return value.requires_grad_(False)


@torch.no_grad()
def _dream(
    agent: Agent, value: LatentValue, dreams: Dreams, state: LatentState, config: ValueConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Dream from the states; return features (N, F) and returns (N,) of the steps before a sampled termination."""
    agent.reset(dreams.batch_size)
    features, rewards, continuations = [value.scaled(state)], [], []
    for _ in range(config.horizon):
        action = dreams.flatten_actions(agent.act(state))
        drawn = dreams.draw(state, action, generator=generator)
        assert drawn.reward is not None
        state = LatentState(drawn.z, drawn.lstm, state.alive)
        features.append(value.scaled(state))
        rewards.append(drawn.reward)
        logit = drawn.termination_logit
        continuations.append(torch.ones_like(drawn.reward) if logit is None else dreams.continuation(logit))
    seen, reward, continuation = (torch.stack(column, dim=1) for column in (features, rewards, continuations))
    values = value.critic(seen.flatten(0, 1)).view(seen.shape[:2])
    returns = lambda_returns(reward, continuation, values, discount=config.discount, lambda_=config.lambda_)
    lasted = continuation > torch.empty_like(continuation).uniform_(generator=generator)
    before = torch.cat([torch.ones_like(lasted[:, :1]), lasted[:, :-1].cumprod(dim=1).bool()], dim=1)
    return seen[:, :-1][before], returns[before]
