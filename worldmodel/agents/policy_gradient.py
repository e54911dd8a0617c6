"""Proximal policy optimisation (PPO) of an agent in short dreams that start from states within real episodes.

Evolution (`worldmodel.agents.evolution`) scores an agent by the return of complete dreams, one number for thousands of steps,
so its progress stops early if only rare steps matter. PPO (Schulman et al. 2017) weights each action by its generalised
advantage (Schulman et al. 2016). The critic has the same input as the agent: features divided by their standard deviation over
the starts.

In long dreams rare objects disappear: a Doom agent that dodges well soon sees no fireballs. Short dreams from real states still
contain them. So each dream here is cut off after ``horizon`` steps, bootstrapped with the critic's value, and restarted from a
`StartBank`.

If terminations are sampled (`Dreams` with the rule "sample"), a dream that terminates is restarted, but the target of its last
step uses the probability p: the value of the next state is multiplied by 1 - p, as in Hafner et al. (2020). So every dangerous
step contributes, not only the last of hundreds. The tests, complete dreams, are scored in the same way. This needs a calibrated
termination head: see `worldmodel.training.likelihood`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from worldmodel.agents.action_distributions import make_choices
from worldmodel.agents.registry import copy_for_training
from worldmodel.dream import Agent, Dreams, LatentState, StartBank, check_rewards, usual_horizon
from worldmodel.models import FeatureKind, State
from worldmodel.rng import PPO_LEARN_STREAM, PPO_TEST_STREAM, derive_seed
from worldmodel.runtime import (
    Progress,
    RunConfig,
    check_integer,
    check_integers,
    check_numbers,
    explains_keywords,
    interrupt_between_steps,
    keeps_threads,
    set_threads,
)
from worldmodel.spaces import FlatSpace

LARGEST_STD = 1.5  # initial standard deviation of the outputs over the starts, at most; beyond it an agent hardly explores
SMALLEST_SCALE = 1e-3  # a feature that varies less over the starts is not scaled up
TINY = 1e-12  # smallest spread of returns: if all returns are equal to the last bit, the initial critic explains them
CLIP_NORM = 1.0  # largest norm of the agent's gradient
ADAPTATION = 0.1  # share of the latest iteration in the mean and the spread of the returns


class DifferentiableAgent(Agent, Protocol):
    """Protocol of the agents that `ppo` improves, in addition to nn.Module.

    It acts on features alone, without a state of its own. For a Discrete space with n actions, ``outputs`` has n columns
    (logits), or one if the agent has an attribute ``ordered`` that is True (see `worldmodel.agents.ControllerConfig`). For a
    Box it has one column per number, the mean of a Gaussian before `FlatSpace.squash`. ``act`` must choose the mode of that
    distribution.

    Two methods are optional: ``scale_inputs(factor)`` multiplies the weights of each feature by ``factor`` (F,); without it
    the agent gets features that are not scaled. ``shrink_outputs(divisor)`` divides the outputs by a number; without it an
    agent whose outputs are large explores little.
    """

    features: FeatureKind
    action_features: FlatSpace

    def outputs(self, features: Tensor) -> Tensor:
        """Return the outputs (B, A) for features (B, F), differentiably."""


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
        learning_rate: Adam's, for the agent.
        critic_learning_rate: Adam's, for the critic.
        critic_size: units of the critic's hidden layer.
        epochs: passes over the steps of an iteration.
        minibatches: minibatches in each pass.
        clip: largest relative change of an action's probability.
        entropy: weight of the entropy, in units of the normalised advantage.
        test_every: iterations between tests.
        test_dreams: complete dreams in a test, from first frames; ignored if each dream has its own temperature.

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
    learning_rate: float = 3e-3
    critic_learning_rate: float = 1e-3
    critic_size: int = 64
    epochs: int = 2
    minibatches: int = 4
    clip: float = 0.2
    entropy: float = 0.01
    test_every: int = 50
    test_dreams: int = 256

    def __post_init__(self) -> None:
        """Check every field."""
        counts = ("iterations", "steps", "horizon", "critic_size", "epochs", "minibatches", "test_every", "test_dreams")
        check_integers(self, dict.fromkeys(counts, 1))
        positive = dict.fromkeys(("breadth", "learning_rate", "critic_learning_rate", "clip"), "(0, inf)")
        check_numbers(self, {**positive, "entropy": "[0, inf)", "discount": "[0, 1)", "gae_lambda": "[0, 1]"})


@explains_keywords
@keeps_threads
def ppo(
    agent: DifferentiableAgent,
    dreams: Dreams,
    starts: StartBank,
    *,
    config: PPOConfig | None = None,
    horizon: int | None = None,
    seed: int = 0,
    run: RunConfig | None = None,
) -> Any:
    """Improve an agent in short dreams from real states.

    Args:
        agent: a `Controller`, such as the result of `evolve`, or an nn.Module with what `DifferentiableAgent` names. It is not
            modified.
        dreams: world, temperature, termination rule ("sample" is recommended), and number of parallel dreams.
        starts: start states of the short dreams, such as `StartBank.along`.
        config: numbers of the algorithm; the defaults if None.
        horizon: longest dream of the tests, in steps; None: the limit of the world model's data. (That of the short dreams is
            in ``config``.)
        seed: seed of all samples.
        run: how to report progress. Each iteration is one record of stage "ppo", with the metrics ends (expected terminations
            per 1,000 steps of the short dreams), entropy (mean entropy of the actions, nats), explained (share of the returns'
            variance that the critic explains) and best_test (and test after a test), and the best agent so far as result.

    Returns:
        The agent of the best test, which may be the one given, on the device of the world.

    Raises:
        ValueError: if there are no rewards or constant ones, the dreams share random numbers, the agent was not made for this
            world, or its action space is neither Discrete with several actions nor a Box.
        TypeError: if the agent lacks something; names it.
        KeyboardInterrupt: after the iteration in which Ctrl-C was pressed.
    """
    config, world, run = config or PPOConfig(), dreams.world, run or RunConfig()
    set_threads(None, run.threads, "ppo")
    horizon = check_integer(usual_horizon(world) if horizon is None else horizon, "horizon", least=1)
    check_rewards(world, dreams.reward)
    if dreams.num_groups != 1:
        raise ValueError(f"num_groups: expected 1 (no common random numbers), got {dreams.num_groups}")
    _check_differentiable(agent)
    best = copy_for_training(agent, world).to(world.device)
    learner = _Learner(copy.deepcopy(best), dreams, starts, config, seed)
    test = _Test(dreams, config, horizon, seed)
    best_test = test(best)
    with interrupt_between_steps() as requested, run.reporter() as report:
        for number in range(1, config.iterations + 1):
            metrics = learner.iterate()
            if number % config.test_every == 0 or number == config.iterations:
                candidate = learner.agent()
                metrics["test"] = test(candidate)
                if metrics["test"] > best_test:
                    best, best_test = candidate, metrics["test"]
            report(Progress("ppo", number, config.iterations, "iteration", metrics | {"best_test": best_test}, best))
            if requested.is_set():
                raise KeyboardInterrupt(f"interrupted after {number} iterations")
    return best


def _check_differentiable(agent: Any) -> None:
    """Raise TypeError unless the agent has what `DifferentiableAgent` names."""
    missing = [] if isinstance(agent, nn.Module) else ["torch.nn.Module as base class"]
    missing += [name for name in ("features", "action_features", "outputs") if not hasattr(agent, name)]
    if missing:
        raise TypeError(
            f"agent: expected an nn.Module with features, action_features and outputs(features), got {type(agent).__name__} "
            f"without {', '.join(missing)}; search it with evolve, which needs no gradient"
        )


class _Test:
    """The test of an agent: its mean return over complete dreams, always the same ones."""

    def __init__(self, dreams: Dreams, config: PPOConfig, horizon: int, seed: int):
        mixed = isinstance(dreams.temperature, Tensor) and dreams.temperature.ndim > 0
        self._dreams = dreams if mixed else dreams.variant(num_dreams=config.test_dreams)
        self._horizon, self._seed = horizon, derive_seed(seed, PPO_TEST_STREAM)

    def __call__(self, agent: Agent) -> float:
        generator = self._dreams.generator(self._seed)
        if self._dreams.termination == "sample":
            return self._dreams.expected_return(agent, self._horizon, generator=generator).mean().item()
        return self._dreams.score(agent, self._horizon, generator=generator)[0].mean().item()


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


class _Learner:
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
        self._critic = _Critic(seen.shape[1], config.critic_size, usual, self._generator)
        self._actor_optimizer = torch.optim.Adam(agent.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
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

    @torch.no_grad()
    def _dream(self) -> tuple[_Steps, float]:
        """Continue every dream; return the steps and the expected number of terminations in them."""
        config, columns, ends = self._config, [], self._scale.new_zeros(())
        features = self._features(self._state)
        for _ in range(config.steps):
            outputs = self._outputs(features)
            choice = self._choices.draw(outputs, self._generator)
            action = self._choices.features(choice)
            z, lstm, reward, logit = self._dreams.draw(self._state, action, generator=self._generator)
            assert reward is not None
            continuation = torch.ones_like(reward) if logit is None else self._dreams.continuation(logit)
            after = LatentState(z, lstm, self._state.alive)
            self._age += 1
            over = (self._uniform(continuation) >= continuation) | (self._age >= config.horizon)
            target = (1 - config.discount) * reward + config.discount * continuation * self._value(self._features(after))
            log_prob = self._choices.log_prob(outputs, choice)
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

    def _learn(self, steps: _Steps) -> float:
        """Do one step of both optimisers; return the mean entropy."""
        config, outputs = self._config, self._outputs(steps.features)
        advantage = (steps.advantage - steps.advantage.mean()) / steps.advantage.std(correction=0).clamp(min=TINY)
        ratio = (self._choices.log_prob(outputs, steps.choice) - steps.log_prob).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage).mean()
        entropy = self._choices.entropy(outputs).mean()
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

    def _value(self, features: Tensor) -> Tensor:
        """The critic's value (B,): (1 - discount) times the discounted return, so about the mean reward of a step."""
        value: Tensor = self._critic(features)
        return value


class _Critic(nn.Module):
    """A hidden layer and a linear one, whose output is in units of the returns (PopArt: van Hasselt et al. 2016).

    Rewards differ by orders of magnitude between worlds, and Adam's steps do not: the value of a goal that pays 1 once in a
    hundred steps is below the noise of a critic that learns values near 1.

    Args:
        size: F, size of the features.
        hidden: units of the hidden layer.
        value: the initial value of all features.
        generator: samples the hidden layer.
    """

    mean: Tensor
    unit: Tensor

    def __init__(self, size: int, hidden: int, value: float, generator: torch.Generator):
        super().__init__()
        made = {"device": generator.device, "dtype": torch.float32}
        self.first, self.last = (nn.utils.skip_init(nn.Linear, *pair, **made) for pair in ((size, hidden), (hidden, 1)))
        nn.init.normal_(self.first.weight, std=size**-0.5, generator=generator)
        for parameter in (self.first.bias, self.last.weight, self.last.bias):
            nn.init.zeros_(parameter)
        for name, number in {"mean": value, "unit": 1.0}.items():
            self.register_buffer(name, torch.tensor(number, device=generator.device, dtype=torch.float32))
        self._adapted = False

    def forward(self, features: Tensor) -> Tensor:
        """Values (B,) of features (B, F)."""
        return self.mean + self.unit * self._relative(features)

    def loss(self, features: Tensor, returns: Tensor) -> Tensor:
        """Mean squared error of the values of N steps, in units of the returns (N,)."""
        return (self._relative(features) - (returns - self.mean) / self.unit).square().mean()

    @torch.no_grad()
    def adapt(self, returns: Tensor) -> None:
        """Move mean and unit towards those of returns (N,), and the last layer so that no value changes."""
        rate = ADAPTATION if self._adapted else 1.0
        mean, spread = self.mean.lerp(returns.mean(), rate), returns.std(correction=0)
        unit = self.unit.square().lerp(spread.square(), rate).sqrt() if spread > TINY else self.unit
        self.last.weight *= self.unit / unit
        self.last.bias.mul_(self.unit).add_(self.mean - mean).div_(unit)
        self.mean.copy_(mean)
        self.unit.copy_(unit)
        self._adapted |= bool(spread > TINY)

    def _relative(self, features: Tensor) -> Tensor:
        relative: Tensor = self.last(torch.tanh(self.first(features)))[:, 0]
        return relative
