"""Thousands of dreams at once, stepped as one tensor, at a temperature per dream.

A dream starts from a real first frame (the world model's bank of start states) or from a real prefix that primes the LSTM,
never from a made-up z. At each step a policy acts; then M advances once and z_{t+1} is drawn from its mixture.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from worldmodel.dream.agent import LatentState, Policy
from worldmodel.dream.half_precision_step import FastStep, applies
from worldmodel.dream.latent_world import BatchedWorld, Drawn
from worldmodel.dream.policies import agent_of
from worldmodel.dream.rewards import REWARD_MODES, Reward, RewardMode, UserReward
from worldmodel.dream.step_time import StepTime
from worldmodel.dream.tracking import primed_states
from worldmodel.dream.uncertainty import Penalty
from worldmodel.mixtures import check_temperature, shared_draws
from worldmodel.models import MDNRNNEnsemble, State, WorldModel, draw_latent, fill_missing, members_of, require_world
from worldmodel.rng import Streams, fill_normal, fill_uniform
from worldmodel.runtime import check_integer, resolve_precision
from worldmodel.spaces import Value

TerminationRule = Literal["threshold", "sample"]
DreamPrecision = Literal["float32", "bfloat16", "auto"]
MemberPer = Literal["dream", "step"]


class Dreams(StepTime, BatchedWorld):
    """A batch of dreams in a world model, on the device of that model.

    Without a termination head no dream ends before its horizon; without a reward head or function every reward is 0.

    Args:
        world: the world model.
        num_dreams: B.
        temperature: tau >= 0, a number or one value per dream (B,). 1 is what M learned; more is harder, 0 is the mode.
        termination: "sample": a dream terminates with probability p at each step; "threshold": when p > 0.5, as in the paper.
            Temperature does not affect it. dev/LOG.md has the measurement behind the default.
        num_groups: number of equal groups of dreams. Groups share start states and random numbers, to compare candidates
            under common random numbers: dream g * R + r has the random numbers of dream r.
        precision: "float32"; "bfloat16" for the matrix products of M, by `FastStep`, which at the paper's sizes is several
            times as fast where the device has units for it, and works on a copy of M's weights as they are now; "auto" for
            the latter where device and M allow it. A seed dreams one dream in the one and another in the other.
        reward: a function that replaces M's reward head, or its name, "module:function"; see `worldmodel.dream.rewards`.
        reward_mode: "expected" pays the mean of the reward that M predicts, "sampled" draws it, so that returns spread as real
            ones do. The temperature changes neither. A seed dreams one dream in the one and another in the other.
        member_per: of an ensemble, "dream": each dream follows a member, chosen at its first step; "step": every step is that
            of another one, a sample of the mixture of all members. Ignored for a single M.
        penalty: for where the members of an ensemble disagree, subtracted from all rewards; a number is the weight of a
            `Penalty`. None or 0 subtracts nothing.

    Raises:
        ValueError: if an argument is out of range, M is of a kind that `FastStep` does not know, or the reward function is not
            found or needs a decoder that V lacks, or there is a penalty but no ensemble.
    """

    def __init__(
        self,
        world: WorldModel,
        num_dreams: int,
        *,
        temperature: float | Tensor = 1.0,
        termination: TerminationRule = "sample",
        num_groups: int = 1,
        precision: DreamPrecision = "float32",
        reward: Reward | None = None,
        reward_mode: RewardMode = "expected",
        member_per: MemberPer = "dream",
        penalty: Penalty | float | None = None,
    ):
        require_world(world)
        num_dreams = check_integer(num_dreams, "num_dreams", least=1)
        num_groups = check_integer(num_groups, "num_groups", least=1)
        if num_dreams % num_groups:
            raise ValueError(f"num_groups: expected a divisor of num_dreams {num_dreams}, got {num_groups}")
        if reward_mode not in REWARD_MODES:
            raise ValueError(f"reward_mode: expected one of {', '.join(REWARD_MODES)}, got {reward_mode!r}")
        if member_per not in ("dream", "step"):
            raise ValueError(f"member_per: expected 'dream' or 'step', got {member_per!r}")
        resolved = resolve_precision(precision, world.device)
        super().__init__(world, num_dreams)
        self.temperature, self.termination = temperature, termination
        self._num_groups = num_groups
        self.reward = None if reward is None else UserReward(reward, world)
        self._reward_mode: RewardMode = reward_mode
        self._member_per, self.penalty = member_per, Penalty.of(penalty, world)
        if precision == "auto" and not applies(world.mdnrnn):
            resolved = "float32"
        self._fast = FastStep(world.mdnrnn) if resolved == "bfloat16" else None

    @property
    def temperature(self) -> float | Tensor:
        """tau, a number or one value per dream (B,); a new value takes effect at the next step."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float | Tensor) -> None:
        check_temperature(value)
        if isinstance(value, Tensor) and value.shape not in ((), (self.batch_size,)):
            raise ValueError(f"temperature: expected a number or shape ({self.batch_size},), got {tuple(value.shape)}")
        self._temperature = value.to(self.world.device) if isinstance(value, Tensor) else value

    def put_temperatures(self, values: Tensor) -> None:
        """Set valid temperatures (B,), on the world's device, without reading their values, which would synchronise a GPU."""
        self._temperature = values

    @property
    def termination(self) -> TerminationRule:
        """Rule by which dreams terminate; a new value takes effect at the next step."""
        return self._termination

    @termination.setter
    def termination(self, value: TerminationRule) -> None:
        if value not in ("threshold", "sample"):
            raise ValueError(f"termination: expected 'threshold' or 'sample', got {value!r}")
        self._termination = value

    @property
    def reward_mode(self) -> RewardMode:
        """Whether rewards are expected or sampled."""
        return self._reward_mode

    @property
    def member_per(self) -> MemberPer:
        """Whether a dream follows one member of an ensemble, or another one at each step."""
        return self._member_per

    @property
    def num_groups(self) -> int:
        """Number of groups; `variant` makes dreams with another one."""
        return self._num_groups

    @property
    def precision(self) -> DreamPrecision:
        """Precision of M's matrix products, "float32" or "bfloat16"."""
        return "float32" if self._fast is None else "bfloat16"

    def __repr__(self) -> str:
        model, tau = self.world.mdnrnn, self.temperature
        shown = f"{len(tau)} temperatures" if isinstance(tau, Tensor) and tau.ndim else f"temperature {float(tau):g}"
        sizes = f"latents ({self.batch_size}, {model.latent_size}), LSTM of {model.config.hidden_size}"
        return f"Dreams: {self.batch_size} dreams, {sizes}, {shown}, termination {self.termination}, {self.precision}"

    def variant(self, *, num_dreams: int | None = None, num_groups: int = 1) -> Dreams:
        """Return dreams of the same world, temperature, termination and rewards with another number of dreams or groups."""
        made = Dreams(
            self.world,
            self.batch_size if num_dreams is None else num_dreams,
            temperature=self.temperature,
            termination=self.termination,
            num_groups=num_groups,
            precision=self.precision,
            reward=None if self.reward is None else self.reward.reward,
            reward_mode=self.reward_mode,
            member_per=self.member_per,
            penalty=self.penalty,
        )
        made.elapsed = self.elapsed
        return made

    @torch.no_grad()
    def start(self, *, generator: torch.Generator) -> LatentState:
        """Start every dream at the first frame of a real episode, sampled from the world model's bank."""
        world, once = self.world, self.batch_size // self.num_groups
        index = torch.randint(world.start_mean.shape[0], (once,), generator=generator, device=world.device)
        z = draw_latent(world.start_mean[index], world.start_log_variance[index], generator=generator)
        return self._alive(z.repeat(self.num_groups, 1), world.mdnrnn.initial_state(self.batch_size))

    @torch.no_grad()
    def start_from(self, observations: Value, actions: Value, *, generator: torch.Generator) -> LatentState:
        """Start the dreams where real prefixes end; the prefix primes the LSTM.

        Args:
            observations: values of the observation space, (P + 1, ...) for all dreams, which then share one sample of z, or
                (B, P + 1, ...) one prefix each. Missing numbers (NaN) of the last one are sampled for each dream.
            actions: values of the action space, (P, ...) or (B, P, ...); P may be 0.
            generator: source of the samples from V's posterior.

        Raises:
            ValueError: if the shapes do not fit.
        """
        world, b = self.world, self.batch_size
        z = world.encode(observations, generator=generator)
        action = world.action_features.flatten(actions)
        z, action = (part.expand(b, *part.shape) if part.ndim == 2 else part for part in (z, action))
        if z.ndim != 3 or z.shape[0] != b or action.shape[:2] != (b, z.shape[1] - 1):
            raise ValueError(
                f"observations, actions: expected leading dimensions (P + 1,) and (P,), or ({b}, P + 1) and ({b}, P), "
                f"got {tuple(z.shape[:-1])} and {tuple(action.shape[:-1])}"
            )
        filled = fill_missing(world.mdnrnn, z, action, generator=generator)
        *_, lstm = primed_states(world.mdnrnn, filled.z, filled.action)
        return self._alive(filled.z[:, -1], lstm)

    @torch.no_grad()
    def step(
        self, state: LatentState, actions: Value, *, generator: torch.Generator | Streams
    ) -> tuple[LatentState, Tensor, Tensor]:
        """Advance every dream by one step; those that have ended stay as they are.

        Args:
            state: where the dreams stand.
            actions: a batch of B values of the action space.
            generator: source of randomness; `Streams` give every dream its own.

        Returns:
            The next state, the reward (B,) by ``reward_mode`` or the reward function, and whether the dream terminated with
            this step (B,). Dreams that had ended before get reward 0 and False.

        Raises:
            ValueError: if the shape of ``actions`` is not that of B actions, or the reward function returns another shape or a
                number that is not finite.
            TypeError: if a choice is given as a floating-point number.
        """
        return self.step_features(state, self.flatten_actions(actions), generator=generator, actions=actions)

    @torch.no_grad()
    def step_features(
        self, state: LatentState, action: Tensor, *, generator: torch.Generator | Streams, actions: Value | None = None
    ) -> tuple[LatentState, Tensor, Tensor]:
        """`step` for action features (B, A), which are not checked; ``actions`` are for the reward function."""
        z, lstm, given, logit = self.draw(state, action, generator=generator, actions=actions)
        ended = torch.zeros_like(state.alive) if logit is None else self._ends(logit, generator) & state.alive
        reward = torch.zeros_like(z[:, 0]) if given is None else torch.where(state.alive, given, 0.0)
        return LatentState(z, lstm, state.alive & ~ended), reward, ended

    @torch.no_grad()
    def draw(
        self, state: LatentState, action: Tensor, *, generator: torch.Generator | Streams, actions: Value | None = None
    ) -> Drawn:
        """Advance as `step_features` does, but return termination log-odds instead of a decision."""
        if isinstance(generator, Streams):
            generator.reserve(self._numbers_per_step)
        drawn = (self._draw if self._fast is None else self._draw_fast)(state, self.timed(action), generator)
        if self.reward is not None:
            drawn = drawn._replace(reward=self.reward.of_dreams(state.z, action, drawn.z, state.alive, actions))
        if self.penalty is None or drawn.reward is None:
            return drawn
        return drawn._replace(reward=drawn.reward - self.penalties(state.z, action, drawn.lstm, generator=generator))

    def penalties(
        self, z: Tensor, action: Tensor, after: State, *, generator: torch.Generator | Streams | None = None
    ) -> Tensor:
        """What ``penalty`` subtracts from the rewards of a step, (B,); zeros without one.

        Args:
            z: (B, D) before the step.
            action: (B, A) action features.
            after: M's state after the step.
            generator: source of randomness, for a penalty that needs it.
        """
        if self.penalty is None:
            return torch.zeros_like(z[:, 0])
        return self.penalty.of_steps(self.world, z, self.timed(action), after, num_groups=self.num_groups, generator=generator)

    def following(self, lstm: State, generator: torch.Generator | Streams) -> State:
        """Return M's state with the members that the dreams follow, which are chosen as ``member_per`` says."""
        model = self.world.mdnrnn
        if not isinstance(model, MDNRNNEnsemble):
            return lstm
        uniform = shared_draws(lstm.h[0, :, 0], self.num_groups, partial(fill_uniform, source=generator))
        return model.follow(lstm, uniform, again=self.member_per == "step")

    @torch.no_grad()
    def expected_return(
        self, policy: Policy, horizon: int, *, generator: torch.Generator, start: LatentState | None = None
    ) -> Tensor:
        """Expected return of each dream, marginalised over termination: (B,).

        No termination is sampled; each reward is weighted by the product of the continuation probabilities so far. The variance
        is much lower than that of `score`, but every dream runs to the horizon.

        Args:
            policy: an agent or a function of features, as in `rollout`.
            horizon: number of steps.
            generator: source of randomness.
            start: where the dreams start; None for first frames, as `start` samples them.

        Raises:
            ValueError: if ``horizon`` is below 1.
        """
        horizon, agent = check_integer(horizon, "horizon", least=1), agent_of(policy, self.world)
        agent.reset(self.batch_size)
        state = self.start(generator=generator) if start is None else start
        returns, weight = (self.world.start_mean.new_full((self.batch_size,), fill) for fill in (0.0, 1.0))
        for _ in range(horizon):
            action = self.flatten_actions(agent.act(state))
            z, lstm, reward, logit = self.draw(state, action, generator=generator)
            state = LatentState(z, lstm, state.alive)
            returns += 0.0 if reward is None else weight * reward
            weight *= 1.0 if logit is None else self.continuation(logit)
        return returns

    def continuation(self, logit: Tensor) -> Tensor:
        """Continuation probability after a step with these termination log-odds (B,): 1 - p, or 0 or 1 by the threshold."""
        return (logit <= 0).to(logit.dtype) if self.termination == "threshold" else torch.sigmoid(-logit)

    def _draw(self, state: LatentState, action: Tensor, generator: torch.Generator | Streams) -> Drawn:
        """Return the next z and state of every dream; those of terminated dreams do not change."""
        prediction, lstm = self.world.mdnrnn.step(state.z, action, self.following(state.lstm, generator))
        z = self.bound(prediction.latent.sample(self.temperature, num_groups=self.num_groups, generator=generator))
        outcome, reward = prediction.outcome(z), None
        if outcome.reward is not None and self._samples_rewards:
            reward = self.bound_reward(outcome.reward.sample(num_groups=self.num_groups, generator=generator))
        elif outcome.reward is not None:
            reward = self.bound_reward(outcome.reward.expectation())
        return Drawn(*_unless_ended(state, z, lstm), reward, outcome.termination_logit)

    def _draw_fast(self, state: LatentState, action: Tensor, generator: torch.Generator | Streams) -> Drawn:
        """Sample in half precision; on a CPU only running dreams are computed, as finding them synchronises a GPU."""
        assert self._fast is not None
        head, rows_of = self.world.mdnrnn.latent_head, state.z.new_empty
        uniform, normal = rows_of(self.batch_size, head.num_uniforms), rows_of(self.batch_size, head.num_normals)
        uniform = shared_draws(uniform, self.num_groups, partial(fill_uniform, source=generator))
        normal = shared_draws(normal, self.num_groups, partial(fill_normal, source=generator))
        noise = self._reward_noise(state.z, generator)
        on_cpu = state.z.device.type == "cpu"
        rows = state.alive.nonzero()[:, 0] if on_cpu and not bool(state.alive.all()) else slice(None)
        tau = self.temperature
        z, lstm, reward, logit = self._fast(
            state.z[rows],
            action[rows],
            State(*(part[:, rows] for part in state.lstm)),
            temperature=tau[rows] if isinstance(tau, Tensor) and tau.ndim else tau,
            uniform=uniform[rows],
            normal=normal[rows],
            reward_noise=None if noise is None else (noise[0][rows], noise[1][rows]),
        )
        reward = None if reward is None else self.bound_reward(reward.unsqueeze(-1))
        z = self.bound(z)
        if isinstance(rows, slice):
            return Drawn(z, lstm, reward, logit) if on_cpu else Drawn(*_unless_ended(state, z, lstm), reward, logit)
        kept = State(*(old.index_copy(1, rows, new) for old, new in zip(state.lstm, lstm, strict=True)))
        others = (None if part is None else part.new_zeros(len(state.z)).index_copy(0, rows, part) for part in (reward, logit))
        return Drawn(state.z.index_copy(0, rows, z), kept, *others)

    @property
    def _numbers_per_step(self) -> int:
        """Random numbers that a step takes per dream: those of the heads that are sampled, and one for the termination."""
        head = self.world.mdnrnn.reward_head
        heads = [self.world.mdnrnn.latent_head.numbers_per_sample]
        heads += [head.numbers_per_sample] if head is not None and self._samples_rewards else []
        members = len(members_of(self.world.mdnrnn))
        return sum(heads) + 1 if members == 1 else members * (sum(heads) + len(heads)) + 2

    @property
    def _samples_rewards(self) -> bool:
        return self.reward_mode == "sampled" and self.reward is None

    def _reward_noise(self, z: Tensor, generator: torch.Generator | Streams) -> tuple[Tensor, Tensor] | None:
        """Uniform and normal numbers (B,) each that sample M's rewards; None if no reward is sampled."""
        if self.world.mdnrnn.reward_head is None or not self._samples_rewards:
            return None
        uniform = shared_draws(z[:, 0], self.num_groups, partial(fill_uniform, source=generator))
        return uniform, shared_draws(z[:, 0], self.num_groups, partial(fill_normal, source=generator))

    def bound(self, z: Tensor) -> Tensor:
        """Clip latents (B, D) to the bounds of dreams; see `DataStatistics`."""
        return z.clamp(self.world.mdnrnn.latent_low, self.world.mdnrnn.latent_high)

    def bound_reward(self, reward: Tensor) -> Tensor:
        """Clip rewards of M's head (B, 1) to the bounds of dreams: (B,)."""
        return reward.clamp(self.world.mdnrnn.reward_low, self.world.mdnrnn.reward_high)[:, 0]

    def _alive(self, z: Tensor, lstm: State) -> LatentState:
        return LatentState(z, lstm, torch.ones(self.batch_size, dtype=torch.bool, device=z.device))

    def _ends(self, logit: Tensor, generator: torch.Generator | Streams) -> Tensor:
        if self.termination == "threshold":
            return logit > 0
        return shared_draws(logit, self.num_groups, lambda noise: fill_uniform(noise, generator)) < logit.sigmoid()


def _unless_ended(state: LatentState, z: Tensor, lstm: State) -> tuple[Tensor, State]:
    """Keep the previous state of terminated dreams."""
    alive = state.alive.unsqueeze(-1)
    kept = State(*(torch.where(alive, new, old) for new, old in zip(lstm, state.lstm, strict=True)))
    return torch.where(alive, z, state.z), kept
