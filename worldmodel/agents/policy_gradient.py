"""Proximal policy optimisation of a controller in short dreams that begin in the midst of real episodes.

Evolution (`worldmodel.agents.evolution`) judges a controller by whole dreams, one number for thousands of steps, and soon stands still
where what matters is a rare step among them. PPO (Schulman et al. 2017) weighs each action by what came of it, by generalised
advantage estimation (Schulman et al. 2016). Its critic sees what the controller sees, both in units of each feature's standard
deviation over the starts.

Whole dreams forget: what is born rarely, such as a fireball of Doom to one who runs well, dies out in them. Short ones from
real states have it still, so each dream here is cut off after ``horizon`` steps, with the value of where it stands, and begins
anew from a `StartBank`.

Where ends are a matter of probability (`Dreams` with the rule "sample"), a dream that ends by a draw begins anew, but what is
learned of its last step is the probability p: after it, what may come counts 1 - p times, as in Hafner et al. (2020). Each
step that was dangerous says so, then, not one in hundreds that was the last; the tests, whole dreams, are scored so, too. M's
head must know what it says: see `worldmodel.training.likelihood`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.agents.action_distributions import make_choices
from worldmodel.agents.controller import Controller
from worldmodel.dream import Dreams, LatentState, StartBank
from worldmodel.models import State
from worldmodel.rng import PPO_LEARN_STREAM, PPO_TEST_STREAM, derive_seed
from worldmodel.runtime import interrupt_between_steps

MOST_SURE = 1.5  # of the outputs' standard deviation over the starts at first; a surer controller would try nothing
SMALLEST_SCALE = 1e-3  # a feature that varies less over the starts is not scaled up
TINY = 1e-12  # of a variance: returns that are all the same, to the last bit, are explained by what the critic begins with
CLIP_NORM = 1.0  # of the controller's gradient


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """The numbers of `ppo`.

    Args:
        iterations: rounds of dreaming and learning.
        steps: that each dream goes on in a round.
        horizon: steps after which a dream is cut off.
        discount: of rewards, per step.
        gae_lambda: of generalised advantage estimation.
        breadth: of the draws; see `worldmodel.agents.action_distributions`.
        learning_rate: Adam's, of the controller, whose features have a standard deviation of 1.
        critic_learning_rate: Adam's, of the critic.
        critic_size: units of its hidden layer.
        epochs: passes over a round's steps.
        minibatches: in each pass.
        clip: how far a probability may move from what it was, as a ratio.
        entropy: weight of the entropy, in units of the normalised advantage.
        test_every: iterations between tests.
        test_dreams: whole dreams from first frames in a test; where dreams have a temperature each, as many as they are.

    Raises:
        ValueError: naming the number that is out of range.
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
    entropy: float = 0.003
    test_every: int = 50
    test_dreams: int = 256

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("iterations", "steps", "horizon", "critic_size", "epochs", "minibatches", "test_every", "test_dreams"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        for name in ("breadth", "learning_rate", "critic_learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a positive finite number, got {getattr(self, name)}")
        if not 0 <= self.entropy < math.inf:
            raise ValueError(f"entropy: expected a finite number >= 0, got {self.entropy}")
        if not (0 <= self.discount < 1 and 0 <= self.gae_lambda <= 1):
            given = f"{self.discount} and {self.gae_lambda}"
            raise ValueError(f"discount, gae_lambda: expected in [0, 1) and in [0, 1], got {given}")


@dataclass(frozen=True)
class PPOIteration:
    """What one iteration of `ppo` found.

    Args:
        number: iterations done.
        total: iterations in all.
        ends: terminations for each 1,000 steps of the short dreams, as many as are to be expected of their probabilities.
        entropy: mean entropy of the choices, in nats.
        explained: part of the returns' variance that the critic explained.
        test: mean return over the test's whole dreams, by `Dreams.expected_return` where ends are drawn; None without a test.
        best_test: highest test so far, the start's included.
        controller: the controller of that test.
    """

    number: int
    total: int
    ends: float
    entropy: float
    explained: float
    test: float | None
    best_test: float
    controller: Controller


def ppo(
    controller: Controller,
    dreams: Dreams,
    starts: StartBank,
    *,
    config: PPOConfig | None = None,
    horizon: int = 1000,
    seed: int = 0,
    on_iteration: Callable[[PPOIteration], None] | None = None,
) -> Controller:
    """Improve a controller in short dreams from real states.

    Args:
        controller: where to begin, such as what `evolve` found; it stays as it is.
        dreams: world, temperature, rule of ends, and how many dream at once; "sample" is the rule to learn by.
        starts: where the short dreams begin, such as `StartBank.along`.
        config: its numbers; the defaults if None.
        horizon: longest dream of the tests, in steps. (That of the short dreams is in ``config``.)
        seed: of everything that is drawn.
        on_iteration: called after each iteration.

    Returns:
        The controller of the best test, the start's included, on the device of the world.

    Raises:
        ValueError: if the world has no reward head, the dreams are in groups, ``controller`` is not of this world, or its
            actions are neither a choice among several nor a Box.
        KeyboardInterrupt: after the iteration in which Ctrl-C came.
    """
    config, world = config or PPOConfig(), dreams.world
    if world.mdnrnn.reward_head is None:
        raise ValueError("dreams: expected a world model that predicts rewards, got one without a reward head")
    if dreams.num_groups != 1:
        raise ValueError(f"dreams: expected dreams that share no luck, got {dreams.num_groups} groups of them")
    controller.check_world(world)
    learner = _Learner(copy.deepcopy(controller).to(world.device), dreams, starts, config, seed)
    mixed = isinstance(dreams.temperature, Tensor) and dreams.temperature.ndim > 0
    tests = dreams if mixed else dreams.variant(num_dreams=config.test_dreams)

    def test(candidate: Controller) -> float:
        generator = tests.generator(derive_seed(seed, PPO_TEST_STREAM))
        if dreams.termination == "sample":
            return tests.expected_return(candidate, horizon, generator=generator).mean().item()
        return tests.score(candidate, horizon, generator=generator)[0].mean().item()

    best = copy.deepcopy(controller).to(world.device)
    best_test = test(best)
    with interrupt_between_steps() as requested:
        for number in range(1, config.iterations + 1):
            facts, tested = learner.iterate(), None
            if number % config.test_every == 0 or number == config.iterations:
                candidate = learner.controller()
                tested = test(candidate)
                if tested > best_test:
                    best, best_test = candidate, tested
            if on_iteration is not None:
                on_iteration(PPOIteration(number, config.iterations, *facts, tested, best_test, best))
            if requested.is_set():
                raise KeyboardInterrupt(f"interrupted after {number} iterations")
    return best


@dataclass(frozen=True)
class _Steps:
    """N dreamed steps: scaled features (N, F), choices (N, ...), their log-probabilities, advantages and returns, (N,) each."""

    features: Tensor
    choice: Tensor
    log_prob: Tensor
    advantage: Tensor
    returns: Tensor

    def rows(self, index: Tensor) -> _Steps:
        """Those of ``index``."""
        return _Steps(*(part[index] for part in vars(self).values()))


class _Learner:
    """A controller and its critic on scaled features, the dreams that they learn in, and where these stand."""

    def __init__(self, controller: Controller, dreams: Dreams, starts: StartBank, config: PPOConfig, seed: int):
        self._dreams, self._starts, self._config = dreams, starts, config
        self._generator = dreams.generator(derive_seed(seed, PPO_LEARN_STREAM))
        noise = torch.randn(starts.mean.shape, generator=self._generator, device=starts.mean.device)
        seen = starts.features(controller.features, noise)  # (N, F)
        scale = seen.std(dim=0, correction=0)
        self._scale = torch.where(scale > SMALLEST_SCALE, scale, 1.0)  # M's state is 0 in all first frames
        self._actor, self._choices = controller, make_choices(controller, config.breadth)
        with torch.no_grad():
            surer = controller.outputs(seen).std(correction=0) / MOST_SURE
            for parameter in controller.layers[-1].parameters():
                parameter.div_(surer.clamp(min=1.0))
            _scale_inputs(controller, self._scale)
        usual = dreams.world.mdnrnn.reward_mean.item()
        self._critic = _make_critic(controller.size, config.critic_size, usual, self._generator)
        self._actor_optimizer = torch.optim.Adam(controller.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
        self._critic_optimizer = torch.optim.Adam(self._critic.parameters(), lr=config.critic_learning_rate)
        everywhere = torch.ones(dreams.batch_size, dtype=torch.bool, device=self._scale.device)
        self._state = self._restarted(dreams.start(generator=self._generator), everywhere)
        self._age = torch.randint(config.horizon, (dreams.batch_size,), generator=self._generator, device=self._scale.device)

    def controller(self) -> Controller:
        """The controller as it stands, on features as they are."""
        controller = copy.deepcopy(self._actor)
        with torch.no_grad():
            _scale_inputs(controller, 1 / self._scale)
        return controller

    def iterate(self) -> tuple[float, float, float]:
        """Dream on and learn from it: terminations for each 1,000 steps, entropy, and what the critic explained."""
        steps, ends = self._dream()
        for _ in range(self._config.epochs):
            order = torch.randperm(len(steps.returns), generator=self._generator, device=self._scale.device)
            for index in order.chunk(self._config.minibatches):
                entropy = self._learn(steps.rows(index))
        missed = steps.advantage.var(correction=0) / steps.returns.var(correction=0).clamp(min=TINY)
        return 1000 * ends / len(steps.returns), entropy, 1 - missed.item()

    @torch.no_grad()
    def _dream(self) -> tuple[_Steps, float]:
        """Go on with every dream: the steps, and how many terminations are to be expected of them."""
        config, columns, ends = self._config, [], torch.zeros((), device=self._scale.device)
        features = self._features(self._state)
        for _ in range(config.steps):
            outputs = self._actor.outputs(features)
            choice = self._choices.draw(outputs, self._generator)
            action = self._choices.features(choice)
            z, lstm, reward, logit = self._dreams.draw(self._state, action, generator=self._generator)
            assert reward is not None
            goes_on = torch.ones_like(reward) if logit is None else self._dreams.goes_on(logit)
            after = LatentState(z, lstm, self._state.alive)
            self._age += 1
            over = (self._uniform(goes_on) >= goes_on) | (self._age >= config.horizon)
            target = (1 - config.discount) * reward + config.discount * goes_on * self._value(self._features(after))
            log_prob = self._choices.log_prob(outputs, choice)
            columns.append((features, choice, log_prob, self._value(features), target, over))
            self._state = self._restarted(after, over)
            self._age[over] = 0
            features = self._features(self._state)
            ends += (1 - goes_on).sum()
        *kept, values, targets, overs = (torch.stack(column) for column in zip(*columns, strict=True))  # (T, B, ...)
        advantages = self._advantages(values, targets, overs)
        return _Steps(*(part.flatten(0, 1) for part in (*kept, advantages, advantages + values))), ends.item()

    def _advantages(self, values: Tensor, targets: Tensor, over: Tensor) -> Tensor:
        """Generalised advantages (T, B), from values, one-step targets, and where the next column is another dream."""
        advantages, advantage = torch.zeros_like(values), torch.zeros_like(values[0])
        for t in reversed(range(len(values))):
            later = self._config.discount * self._config.gae_lambda * advantage
            advantage = targets[t] - values[t] + torch.where(over[t], 0.0, later)
            advantages[t] = advantage
        return advantages

    def _learn(self, steps: _Steps) -> float:
        """One step of both optimisers; the mean entropy."""
        config, outputs = self._config, self._actor.outputs(steps.features)
        advantage = (steps.advantage - steps.advantage.mean()) / steps.advantage.std(correction=0).clamp(min=1e-6)
        ratio = (self._choices.log_prob(outputs, steps.choice) - steps.log_prob).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage).mean()
        entropy = self._choices.entropy(outputs).mean()
        self._actor_optimizer.zero_grad()
        (-gain - config.entropy * entropy).backward()
        nn.utils.clip_grad_norm_(self._actor.parameters(), CLIP_NORM)
        self._actor_optimizer.step()
        self._critic_optimizer.zero_grad()
        (self._value(steps.features) - steps.returns).square().mean().backward()
        self._critic_optimizer.step()
        return entropy.item()

    def _uniform(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self._generator, device=like.device)

    def _restarted(self, state: LatentState, over: Tensor) -> LatentState:
        """The state with new starts where dreams are over."""
        rows = over.nonzero()[:, 0]
        index = torch.randint(len(self._starts), (len(rows),), generator=self._generator, device=rows.device)
        noise = torch.randn(len(rows), state.z.shape[1], generator=self._generator, device=rows.device)
        z, lstm = self._starts.take(index, noise)
        whole = State(*(old.index_copy(1, rows, new) for old, new in zip(state.lstm, lstm, strict=True)))
        return LatentState(state.z.index_copy(0, rows, z), whole, torch.ones_like(over))

    def _features(self, state: LatentState) -> Tensor:
        return state.features(self._actor.features) / self._scale

    def _value(self, features: Tensor) -> Tensor:
        """What the critic expects: (1 - discount) times the discounted return, so about the mean reward of a step."""
        return self._critic(features)[:, 0]


def _scale_inputs(controller: Controller, factor: Tensor) -> None:
    first = controller.layers[0]
    assert isinstance(first, nn.Linear)
    first.weight *= factor


def _make_critic(size: int, hidden: int, value: float, generator: torch.Generator) -> nn.Module:
    """A critic that begins with the same value everywhere."""
    first, last = (nn.utils.skip_init(nn.Linear, *pair, device=generator.device) for pair in ((size, hidden), (hidden, 1)))
    nn.init.normal_(first.weight, std=size**-0.5, generator=generator)
    for parameter, constant in ((first.bias, 0.0), (last.weight, 0.0), (last.bias, value)):
        nn.init.constant_(parameter, constant)
    return nn.Sequential(first, nn.Tanh(), last)
