"""Track z and M's state over real episodes, in any loop: a robot, a simulator, or a Gymnasium environment.

    tracker = LatentTracker(world)
    tracker.reset(seed=0)
    agent.reset(1)
    state = tracker.observe(robot.observe())  # a batch of one
    while robot.is_running():
        action = agent.act(state)
        robot.execute(action)
        state = tracker.observe(robot.observe(), action)

M is advanced exactly once per step, with the action that was taken, so h_t has consumed (z_0, a_0) .. (z_{t-1}, a_{t-1}) as in
a dream. Numbers that were missing in some training data may be NaN: z has M's own expectation of them. V's noise comes from one
random stream per episode, or from a generator that the caller passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from worldmodel.dream.agent import LatentState
from worldmodel.dream.seeding import EpisodeSeeds, Rows
from worldmodel.models import (
    MDNRNN,
    State,
    WorldModel,
    check_elapsed,
    check_maskable,
    draw_latent,
    fill_step,
    require_world,
    with_elapsed,
    with_indicators,
)
from worldmodel.runtime import check_integer
from worldmodel.spaces import Value, as_numbers, check_float32_range, leaf_values, map_leaves, select_leaves


class LatentTracker:
    """z and M's state of B real episodes.

    Args:
        world: V and M.
        num_episodes: B.

    Raises:
        TypeError: if ``num_episodes`` is not an integer.
        ValueError: if it is below 1.
    """

    def __init__(self, world: WorldModel, num_episodes: int = 1):
        require_world(world)
        num_episodes = check_integer(num_episodes, "num_episodes", least=1)
        self.world, self.num_episodes = world, num_episodes
        self._seeds = EpisodeSeeds(num_episodes, world.device)
        self._z = world.start_mean.new_zeros(num_episodes, world.vision.latent_size)
        self._observed = torch.ones_like(self._z, dtype=torch.bool)
        self._lstm = world.mdnrnn.initial_state(num_episodes)
        self._alive = torch.ones(num_episodes, dtype=torch.bool, device=world.device)
        self._new = torch.zeros_like(self._alive)  # rows whose first observation is still to come
        self._started = self._any_new = self._any_ended = False  # on the host: reading a mask would synchronise a GPU

    @property
    def state(self) -> LatentState:
        """z, M's state of all layers, and which episodes are running; never modified later."""
        return LatentState(self._z, self._lstm, self._alive)

    def reset(self, *, seed: int | Sequence[int | None] | None = None, mask: Tensor | np.ndarray | None = None) -> None:
        """Begin new episodes; their first observations are the next ones that `observe` is given.

        Args:
            seed: seed of V's noise: an int s gives row i the seed s + i; a list holds one seed per row, or None to keep a row's
                seed. None continues with the next episode of each row's seed, which is random if it never had one.
            mask: (B,) bool, the rows to reset; all if None.

        Raises:
            ValueError: if the mask has another shape, or a seed is out of range.
            TypeError: if the mask is not boolean, or a seed is not an integer.
        """
        rows = torch.ones_like(self._alive) if mask is None else self._mask(mask)
        self._seeds.reseed(seed, rows, np.random.default_rng())
        self._new, self._alive = self._new | rows, self._alive | rows
        self._started = self._started or bool(rows.all())
        self._any_new, self._any_ended = True, self._any_ended and mask is not None

    @torch.no_grad()
    def observe(
        self,
        observation: Value,
        last_action: Value | None = None,
        *,
        elapsed: float | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> LatentState:
        """Process one observation of every running episode.

        Args:
            observation: a batch of B observations, as arrays or tensors. Rows of ended episodes are ignored, and so are leaves
                that the world model's observation space lacks.
            last_action: a batch of B actions that led to it. Rows that were reset ignore it. None if no action was taken: then
                only rows that were reset process their observation, and the others keep their state.
            elapsed: seconds since the last observation, a number or (B,), if M sees the time; None is the usual time.
            generator: source of V's noise, on the device of the world; None uses the random stream of each episode.

        Returns:
            The state after the observation.

        Raises:
            RuntimeError: before the first reset of all rows.
            ValueError: if an observation is not finite, except for numbers that may be missing; if a batch has another size, or
                ``last_action`` is missing.
        """
        if not self._started:
            raise RuntimeError("LatentTracker: expected reset() of all episodes before the first observation, got none")
        if last_action is None and not self._any_new:
            raise ValueError("last_action: expected the action that led to this observation, got None; or call reset() first")
        if self._any_ended and not bool(self._alive.any()):
            return self.state
        observation = select_leaves(self.world.observation_space, observation)
        running = Rows(self._alive, dense=False) if self._any_ended else None
        if running is not None:
            observation = _take_rows(observation, self._alive)
        may_lack = bool(self.world.mdnrnn.extras.maskable)
        check_finite(observation, rows=None if running is None else running.index, may_lack=may_lack)
        mean, log_variance = self.world.vision.encode(observation)  # (B, D), or those of the running episodes
        expected = self.num_episodes if running is None else running.count
        if mean.shape[:-1] != (expected,):
            raise ValueError(f"observation: expected a batch of {expected}, got leading dimensions {tuple(mean.shape[:-1])}")
        if last_action is not None:
            features = self.world.action_features.flatten(last_action)
            if elapsed is not None:
                given = check_elapsed(self.world.mdnrnn, elapsed, self.num_episodes)
                features = with_elapsed(self.world.mdnrnn, features, given)
            self._advance(mean, log_variance, features, running, generator)
        if self._any_new:
            if running is not None:
                mean, log_variance = (running.put(self._z.clone(), part) for part in (mean, log_variance))
            self._begin(mean, log_variance, generator)
        return self.state

    def end(self, mask: Tensor | np.ndarray) -> None:
        """Freeze episodes that have ended, until they are reset.

        Args:
            mask: (B,) bool, the rows.

        Raises:
            ValueError: if the mask has another shape.
            TypeError: if the mask is not boolean.
        """
        self._alive = self._alive & ~self._mask(mask)
        self._any_ended = True

    def _advance(
        self, mean: Tensor, log_variance: Tensor, features: Tensor, running: Rows | None, generator: torch.Generator | None
    ) -> None:
        """Advance M by action features in every running episode and sample its next z."""
        if self.world.mdnrnn.extras.maskable:
            lstm, mean = self._filled(mean, features, running)
        else:
            lstm = self.world.mdnrnn.advance(self._z, features, self._lstm)
        if running is None:
            self._z = draw_latent(mean, log_variance, generator=generator or self._seeds.streams)
        elif generator is None:  # a stream advances in every row
            parts = (running.put(self._z.clone(), part) for part in (mean, log_variance))
            self._z = torch.where(running.mask.unsqueeze(-1), draw_latent(*parts, generator=self._seeds.streams), self._z)
        else:
            self._z = running.put(self._z.clone(), draw_latent(mean, log_variance, generator=generator))
        if running is not None:
            kept = running.mask.unsqueeze(-1)
            lstm = State(*(torch.where(kept, new, old) for new, old in zip(lstm, self._lstm, strict=True)))
        self._lstm = lstm

    def _filled(self, mean: Tensor, action: Tensor, running: Rows | None) -> tuple[State, Tensor]:
        """Advance M by action features and return its state and ``mean`` with M's expectation of what is missing."""
        model, observed = self.world.mdnrnn, ~mean.isnan()
        check_maskable(model, observed)
        action = with_indicators(model, action, self._observed)
        self._observed = observed if running is None else running.put(torch.ones_like(self._observed), observed)
        if bool(observed.all()):
            return model.advance(self._z, action, self._lstm), mean
        prediction, lstm = model.step(self._z, action, self._lstm)
        filled = fill_step(model, prediction.latent, mean if running is None else running.put(self._z.clone(), mean))
        return lstm, filled if running is None else running.take(filled)

    def _begin(self, mean: Tensor, log_variance: Tensor, generator: torch.Generator | None) -> None:
        """Begin the episodes of the rows that were reset, with M's state zero."""
        rows = Rows(self._new)
        self._new, self._any_new = torch.zeros_like(self._new), False
        if rows.count == 0:
            return
        streams = self._seeds.begin(rows)
        if self.world.mdnrnn.extras.maskable:
            check_maskable(self.world.mdnrnn, ~rows.take(mean).isnan())
            self._observed = rows.put(self._observed.clone(), ~rows.take(mean).isnan())
            mean = torch.where(mean.isnan(), 0.0, mean)  # nothing is known before the first observation
        z = draw_latent(rows.take(mean), rows.take(log_variance), generator=generator or streams)
        zeros = self.world.mdnrnn.initial_state(rows.count)
        self._z = rows.put(self._z.clone(), z)  # clones: earlier states are the caller's
        self._lstm = State(*(rows.put(old.clone(), new, dim=1) for old, new in zip(self._lstm, zeros, strict=True)))
        self._seeds.adopt(rows, streams)

    def _mask(self, mask: Tensor | np.ndarray) -> Tensor:
        rows = torch.as_tensor(mask, device=self._alive.device)
        if rows.dtype != torch.bool:
            raise TypeError(f"mask: expected booleans, got {rows.dtype}")
        if rows.shape != self._alive.shape:
            raise ValueError(f"mask: expected shape ({self.num_episodes},), got {tuple(rows.shape)}")
        return rows


def _take_rows(observation: Value, mask: Tensor) -> Value:
    """Select rows of a batch of arrays or tensors, which stay what they are, on their device."""
    rows = mask.cpu()
    return map_leaves(
        lambda leaf: leaf[rows.to(leaf.device)] if isinstance(leaf, Tensor) else np.asarray(leaf)[rows.numpy()], observation
    )


def primed_states(mdnrnn: MDNRNN, z: Tensor, action: Tensor, state: State | None = None) -> Iterator[State]:
    """Iterate over M's states along recorded steps: before the first, and after each.

    Args:
        mdnrnn: M.
        z: (B, T, D), or more steps, which are ignored.
        action: (B, T, A) action features, or (B, T, A + E) with M's extra inputs; see `worldmodel.models.fill_missing`.
        state: state before the first step; zeros if None.

    Yields:
        T + 1 states; number t has consumed (z_0, a_0) .. (z_{t-1}, a_{t-1}).
    """
    state = mdnrnn.initial_state(len(z)) if state is None else state
    yield state
    for t in range(action.shape[1]):
        state = mdnrnn.advance(z[:, t], action[:, t], state)
        yield state


def check_finite(observation: Value, *, rows: Tensor | Sequence[int] | None = None, may_lack: bool = False) -> None:
    """Raise if a number in a batch of observations (B, ...) is NaN, infinite, or beyond the range of float32.

    Args:
        observation: arrays or tensors.
        rows: (B,) numbers of the rows, for the message; counted from 0 if None.
        may_lack: accept NaN.

    Raises:
        ValueError: naming the row.
    """
    for path, leaf in leaf_values(observation).items():
        values = as_numbers(leaf, f"observation at {path!r}" if path else "observation")
        if not values.is_floating_point() or values.ndim == 0:
            continue
        finite = ~values.isinf() if may_lack else values.isfinite()
        finite = finite.flatten(1).all(dim=1) if values.ndim > 1 else finite
        if not bool(finite.all()):
            row = int(finite.int().argmin())
            number = row if rows is None else int(rows[row])
            raise ValueError(f"observation: expected finite numbers, got NaN or infinity in row {number}")
        check_float32_range(values, f"observation at {path!r}" if path else "observation")
