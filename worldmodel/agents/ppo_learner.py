"""Agent and critic of PPO, and the short dreams that they learn in; see `worldmodel.agents.policy_gradient`."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worldmodel.agents.action_distributions import Choices, make_choices
from worldmodel.agents.critic import TINY, Critic
from worldmodel.dream import Dreams, LatentState, StartBank
from worldmodel.models import State
from worldmodel.rng import PPO_LEARN_STREAM, derive_seed
from worldmodel.runtime import check_integers, check_numbers, load_optimizer_tensors, optimizer_tensors

LARGEST_STD = 1.5  # initial standard deviation of the outputs over the starts, at most; beyond it an agent hardly explores
SMALLEST_SCALE = 1e-3  # a feature that varies less over the starts is not scaled up
LARGEST_EXPONENT = math.log(4)  # of the factor of a learned breadth
CLIP_NORM = 1.0  # largest norm of the agent's gradient


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Numbers of `ppo`.

    Args:
        iterations: iterations of dreaming and learning.
        steps: steps of each dream in an iteration.
        horizon: steps after which a dream is cut off.
        discount: discount of rewards, per step.
        gae_lambda: lambda of generalised advantage estimation.
        breadth: breadth of the action distributions; see `worldmodel.agents.action_distributions`.
        spread: "fixed": all states have this breadth; "state": a network with a hidden layer of ``critic_size`` units learns a
            breadth for each state and output, from a quarter to four times as large, starting there.
        learning_rate: Adam's, for the agent.
        critic_learning_rate: Adam's, for the critic.
        critic_size: units of the critic's hidden layer.
        epochs: passes over the steps of an iteration.
        minibatches: minibatches in each pass.
        clip: largest relative change of an action's probability.
        entropy: weight of the entropy, in units of the normalised advantage.
        test_every: iterations between tests.
        test_dreams: dreams in a test; ignored if each dream has its own temperature.
        test_from: "first": the dreams of a test start at first frames; "starts": at the starts of the short dreams, for worlds
            whose long dreams do not follow reality.

    Raises:
        ValueError: naming the field that is out of range.
        TypeError: naming the field of another type.
    """

    iterations: int = 300
    steps: int = 32
    horizon: int = 80
    discount: float = 0.99
    gae_lambda: float = 0.95
    breadth: float = 0.5
    spread: Literal["fixed", "state"] = "fixed"
    learning_rate: float = 3e-3
    critic_learning_rate: float = 1e-3
    critic_size: int = 64
    epochs: int = 2
    minibatches: int = 4
    clip: float = 0.2
    entropy: float = 0.01
    test_every: int = 50
    test_dreams: int = 256
    test_from: Literal["first", "starts"] = "first"

    def __post_init__(self) -> None:
        """Check every field."""
        counts = ("iterations", "steps", "horizon", "critic_size", "epochs", "minibatches", "test_every", "test_dreams")
        check_integers(self, dict.fromkeys(counts, 1))
        positive = dict.fromkeys(("breadth", "learning_rate", "critic_learning_rate", "clip"), "(0, inf)")
        check_numbers(self, {**positive, "entropy": "[0, inf)", "discount": "[0, 1)", "gae_lambda": "[0, 1]"})
        for name, choices in {"spread": ("fixed", "state"), "test_from": ("first", "starts")}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {choices}, got {getattr(self, name)!r}")

    def identity(self) -> dict[str, Any]:
        """Return all fields for the record of a run, without the later ones that have their default."""
        later = {"spread": "fixed", "test_from": "first"}
        return {name: value for name, value in asdict(self).items() if later.get(name) != value}


@dataclass(frozen=True)
class _Steps:
    """N dreamed steps: scaled features (N, F), actions (N, ...), their log-probabilities, advantages and returns, (N,) each."""

    features: Tensor
    choice: Tensor
    log_prob: Tensor
    advantage: Tensor
    returns: Tensor

    def rows(self, index: Tensor) -> _Steps:
        """Select steps by index."""
        return _Steps(*(part[index] for part in vars(self).values()))


class Learner:
    """An agent and its critic on scaled features, with the dreams that they learn in and the state of these."""

    def __init__(self, agent: Any, dreams: Dreams, starts: StartBank, config: PPOConfig, seed: int):
        self._dreams, self._starts, self._config = dreams, starts, config
        self._generator = dreams.generator(derive_seed(seed, PPO_LEARN_STREAM))
        noise = torch.empty_like(starts.mean).normal_(generator=self._generator)
        seen = starts.features(agent.features, noise)  # (N, F)
        scale = seen.std(dim=0, correction=0)
        self._scale = torch.where(scale > SMALLEST_SCALE, scale, 1.0)  # M's state is 0 in all first frames
        self._actor, self._choices = agent, make_choices(agent, config.breadth)
        self._scaled = hasattr(agent, "scale_inputs")
        if hasattr(agent, "shrink_outputs"):
            with torch.no_grad():
                excess = agent.outputs(seen).std(correction=0) / LARGEST_STD
            agent.shrink_outputs(excess.clamp(min=1.0))
        if self._scaled:
            agent.scale_inputs(self._scale)
        usual = dreams.world.mdnrnn.mean_reward if dreams.reward is None else 0.0
        self._critic = Critic(seen.shape[1], config.critic_size, usual, self._generator)
        sizes = seen.shape[1], config.critic_size, self._choices.num_breadths
        self._spread = _make_spread(*sizes, self._generator) if config.spread == "state" else None
        learned = [*agent.parameters(), *([] if self._spread is None else self._spread.parameters())]
        self._actor_optimizer = torch.optim.Adam(learned, lr=config.learning_rate, betas=(0.9, 0.99))
        self._critic_optimizer = torch.optim.Adam(self._critic.parameters(), lr=config.critic_learning_rate)
        everywhere = torch.ones(dreams.batch_size, dtype=torch.bool, device=self._scale.device)
        self._state = self._restarted(dreams.start(generator=self._generator), everywhere)
        self._age = torch.randint(config.horizon, (dreams.batch_size,), generator=self._generator, device=self._scale.device)

    def agent(self) -> Any:
        """Return a copy of the current agent, for features that are not scaled."""
        agent = copy.deepcopy(self._actor)
        if self._scaled:
            agent.scale_inputs(1 / self._scale)
        return agent

    def iterate(self) -> dict[str, float]:
        """Dream and learn; return the metrics."""
        steps, ends = self._dream()
        self._critic.adapt(steps.returns)
        for _ in range(self._config.epochs):
            order = torch.randperm(len(steps.returns), generator=self._generator, device=self._scale.device)
            for index in order.chunk(self._config.minibatches):
                entropy = self._learn(steps.rows(index))
        missed = steps.advantage.var(correction=0) / steps.returns.var(correction=0).clamp(min=TINY)
        return {"ends": 1000 * ends / len(steps.returns), "entropy": entropy, "explained": 1 - missed.item()}

    def tensors(self) -> dict[str, Tensor]:
        """Return the complete state, on any device."""
        state = {"z": self._state.z, **self._state.lstm._asdict(), "age": self._age, "generator": self._generator.get_state()}
        for name, module in self._modules().items():
            state |= {f"{name}.{part}": tensor for part, tensor in module.state_dict().items()}
        state |= optimizer_tensors(self._actor_optimizer, "actor_optimizer")
        return state | optimizer_tensors(self._critic_optimizer, "critic_optimizer")

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `tensors` returned."""
        for name, module in self._modules().items():
            module.load_state_dict(named(tensors, name))
        load_optimizer_tensors(self._actor_optimizer, "actor_optimizer", tensors)
        load_optimizer_tensors(self._critic_optimizer, "critic_optimizer", tensors)
        self._generator.set_state(tensors["generator"])
        device = self._scale.device
        z, age, *lstm = (tensors[name].to(device) for name in ("z", "age", *State._fields))
        self._state, self._age = LatentState(z, State(*lstm), torch.ones_like(age, dtype=torch.bool)), age

    def _modules(self) -> dict[str, nn.Module]:
        """Networks that learn, by name."""
        return {"actor": self._actor, "critic": self._critic} | ({} if self._spread is None else {"spread": self._spread})

    @torch.no_grad()
    def _dream(self) -> tuple[_Steps, float]:
        """Continue every dream; return the steps and the expected number of terminations in them."""
        config, columns, ends = self._config, [], self._scale.new_zeros(())
        features = self._features(self._state)
        for _ in range(config.steps):
            outputs, choices = self._outputs(features), self._choices_in(features)
            choice = choices.draw(outputs, self._generator)
            action = choices.features(choice)
            z, lstm, reward, logit = self._dreams.draw(self._state, action, generator=self._generator)
            assert reward is not None
            continuation = torch.ones_like(reward) if logit is None else self._dreams.continuation(logit)
            after = LatentState(z, lstm, self._state.alive)
            self._age += 1
            over = (self._uniform(continuation) >= continuation) | (self._age >= config.horizon)
            target = (1 - config.discount) * reward + config.discount * continuation * self._value(self._features(after))
            log_prob = choices.log_prob(outputs, choice)
            columns.append((features, choice, log_prob, self._value(features), target, over))
            self._state = self._restarted(after, over)
            self._age[over] = 0
            features = self._features(self._state)
            ends += (1 - continuation).sum()
        *kept, values, targets, overs = (torch.stack(column) for column in zip(*columns, strict=True))  # (T, B, ...)
        advantages = self._advantages(values, targets, overs)
        return _Steps(*(part.flatten(0, 1) for part in (*kept, advantages, advantages + values))), ends.item()

    def _advantages(self, values: Tensor, targets: Tensor, over: Tensor) -> Tensor:
        """Generalised advantages (T, B) from values, one-step targets, and whether the dream was over after the step."""
        advantages, advantage = torch.zeros_like(values), torch.zeros_like(values[0])
        for t in reversed(range(len(values))):
            later = self._config.discount * self._config.gae_lambda * advantage
            advantage = targets[t] - values[t] + torch.where(over[t], 0.0, later)
            advantages[t] = advantage
        return advantages

    @torch.enable_grad()
    def _learn(self, steps: _Steps) -> float:
        """Do one step of both optimisers; return the mean entropy."""
        config, outputs, choices = self._config, self._outputs(steps.features), self._choices_in(steps.features)
        advantage = (steps.advantage - steps.advantage.mean()) / steps.advantage.std(correction=0).clamp(min=TINY)
        ratio = (choices.log_prob(outputs, steps.choice) - steps.log_prob).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage).mean()
        entropy = choices.entropy(outputs).mean()
        self._actor_optimizer.zero_grad()
        (-gain - config.entropy * entropy).backward()
        nn.utils.clip_grad_norm_(self._actor.parameters(), CLIP_NORM)
        self._actor_optimizer.step()
        self._critic_optimizer.zero_grad()
        self._critic.loss(steps.features, steps.returns).backward()
        self._critic_optimizer.step()
        return entropy.item()

    def _uniform(self, like: Tensor) -> Tensor:
        return torch.empty_like(like).uniform_(generator=self._generator)

    def _restarted(self, state: LatentState, over: Tensor) -> LatentState:
        """Return the state with new starts for dreams that are over."""
        rows = over.nonzero()[:, 0]
        index = torch.randint(len(self._starts), (len(rows),), generator=self._generator, device=rows.device)
        noise = state.z.new_empty(len(rows), state.z.shape[1]).normal_(generator=self._generator)
        z, lstm = self._starts.take(index, noise)
        joined = State(*(old.index_copy(1, rows, new) for old, new in zip(state.lstm, lstm, strict=True)))
        return LatentState(state.z.index_copy(0, rows, z), joined, torch.ones_like(over))

    def _features(self, state: LatentState) -> Tensor:
        return state.features(self._actor.features) / self._scale

    def _outputs(self, features: Tensor) -> Tensor:
        """Outputs of the agent for scaled features (B, F)."""
        outputs: Tensor = self._actor.outputs(features if self._scaled else features * self._scale)
        return outputs

    def _choices_in(self, features: Tensor) -> Choices:
        """Distribution over actions in states with scaled features (B, F)."""
        if self._spread is None:
            return self._choices
        exponent = self._spread(features).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
        return self._choices.with_breadth(self._config.breadth * exponent.exp())

    def _value(self, features: Tensor) -> Tensor:
        """The critic's value (B,): (1 - discount) times the discounted return, so about the mean reward of a step."""
        value: Tensor = self._critic(features)
        return value


def _make_spread(size: int, hidden: int, outputs: int, generator: torch.Generator) -> nn.Module:
    """Make the network of the spread, whose initial outputs are 0 for all features."""
    made = {"device": generator.device, "dtype": torch.float32}
    first, last = (nn.utils.skip_init(nn.Linear, *pair, **made) for pair in ((size, hidden), (hidden, outputs)))
    nn.init.normal_(first.weight, std=size**-0.5, generator=generator)
    for parameter in (first.bias, last.weight, last.bias):
        nn.init.zeros_(parameter)
    return nn.Sequential(first, nn.Tanh(), last)


def named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix.``, without it."""
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}
