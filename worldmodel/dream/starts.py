"""Start states for dreams: the first frames of real episodes, or later frames with M primed on the preceding steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from worldmodel.data import EpisodeCollection, EpisodeStore
from worldmodel.dream.agent import LatentState
from worldmodel.dream.tracking import primed_states
from worldmodel.models import (
    EncodedSteps,
    FeatureKind,
    State,
    WorldModel,
    draw_latent,
    encode_episodes,
    encoded_form,
    fill_missing,
    latent_features,
    require_world,
)
from worldmodel.rng import Streams, box_muller
from worldmodel.runtime import check_integer, check_integers, check_numbers
from worldmodel.spaces import known_leaves

MAX_PREFIXES = 2_000  # largest number of episodes that prime M; terminated ones may come in addition, where these are rare
PARALLEL_EPISODES = 64  # episodes of similar lengths that prime M in one batch
MIN_EPISODES = 0.02  # share of the episodes; times that fewer episodes reach get less than an equal share of the starts


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Which states of real episodes a `StartBank` takes.

    Args:
        num_states: N; without the states before terminations if no episode terminated.
        first_frames: share of first frames, as in `StartBank.of`.
        before_ends: share of states shortly before a termination, of episodes that terminated and were not truncated; the rest
            is spread over all steps of all episodes.
        nearest: smallest number of steps before a termination, because in the last steps no action helps; in shorter
            episodes, their first step is used.
        farthest: largest number of steps before a termination.
        even: "steps" samples steps uniformly; "times" samples the time since the episode's start uniformly, for agents that
            survive longer than the episodes in the data, if late times differ from early ones.

    Raises:
        ValueError: naming the field that is out of range.
        TypeError: naming the field that is not an integer.
    """

    num_states: int = 10_000
    first_frames: float = 0.1
    before_ends: float = 0.3
    nearest: int = 8
    farthest: int = 50
    even: Literal["steps", "times"] = "steps"

    def __post_init__(self) -> None:
        """Check every field."""
        check_integers(self, dict.fromkeys(("num_states", "nearest", "farthest"), 1))
        check_numbers(self, dict.fromkeys(("first_frames", "before_ends"), "(-inf, inf)"))
        shares = self.first_frames, self.before_ends
        if not (min(shares) >= 0 and sum(shares) <= 1):
            raise ValueError(f"first_frames, before_ends: expected two parts of one, got {shares[0]} and {shares[1]}")
        if self.nearest > self.farthest:
            raise ValueError(f"nearest, farthest: expected nearest <= farthest, got {self.nearest} and {self.farthest}")
        if self.even not in ("steps", "times"):
            raise ValueError(f"even: expected 'steps' or 'times', got {self.even!r}")


@dataclass(frozen=True)
class StartBank:
    """N start states for dreams.

    Args:
        mean: (N, D) mean of V's posterior of the frame at which the dream begins.
        log_variance: (N, D) its log-variance.
        lstm: M's state, (num_layers, N, H) each, which has consumed everything before that frame.
    """

    mean: Tensor
    log_variance: Tensor
    lstm: State

    @classmethod
    def of(cls, world: WorldModel) -> StartBank:
        """Use the first frames that are saved with the world model; M's state is zero."""
        require_world(world)
        return cls(world.start_mean, world.start_log_variance, world.mdnrnn.initial_state(len(world.start_mean)))

    @classmethod
    @torch.no_grad()
    def after_prefixes(cls, world: WorldModel, data: str | Path, length: int) -> StartBank:
        """Prime M with the first ``length`` steps of real episodes; the dream begins at the next frame.

        The samples of z that prime M are the same in every call.

        Args:
            world: V and M.
            data: path of a store of the world model's environment.
            length: steps of the prefix, at least 1.

        Raises:
            ValueError: if ``length`` is below 1, no episode is that long, or the data are of another environment.
        """
        length = check_integer(length, "prefix_length", least=1)
        episodes = _open(world, data)
        world.check_spaces(episodes.observation_space, episodes.action_space, source=str(data))
        long_enough = [index for index, steps in enumerate(episodes.lengths) if steps > length]
        if not long_enough:
            raise ValueError(
                f"prefix_length: expected fewer steps than the longest episode of {data} has, {episodes.lengths.max()}, "
                f"got {length}"
            )
        count = min(len(long_enough), MAX_PREFIXES)
        chosen = [long_enough[number * len(long_enough) // count] for number in range(count)]
        steps = encode_episodes([episodes.read(i, 0, length) for i in chosen], world.vision, world.action_features)
        mean, log_variance = (part.reshape(count, length + 1, -1) for part in (steps.mean, steps.log_variance))
        z = draw_latent(mean, log_variance, generator=torch.Generator(world.device).manual_seed(0))
        action = steps.action.reshape(count, length, -1)
        filled = fill_missing(world.mdnrnn, z, action, generator=torch.Generator(world.device).manual_seed(0))
        *_, lstm = primed_states(world.mdnrnn, filled.z, filled.action)
        return cls(torch.where(filled.observed, mean, filled.z)[:, -1], log_variance[:, -1], lstm)

    @classmethod
    def along(
        cls,
        world: WorldModel,
        data: str | Path | Sequence[str | Path],
        *,
        config: StartConfig | None = None,
        seed: int = 0,
    ) -> StartBank:
        """Take states from anywhere in real episodes, with M primed on all preceding steps.

        Such dreams cover situations that are common in episodes but rare in dreams from first frames. States shortly before a
        termination give an agent something to learn.

        Args:
            world: V and M.
            data: path of a store of the world model's environment, or several, of observations or encoded by its V.
            config: which states, and how many.
            seed: seed of all samples.

        Raises:
            ValueError: if a number is out of range, or the data are of another environment or encoded by another V.
        """
        config = config or StartConfig()
        episodes = _open(world, data)
        encoded = encoded_form(episodes.stores, world.vision)
        observed = episodes.observation_space if encoded is None else world.observation_space
        world.check_spaces(observed, episodes.action_space, source=str(data))
        vision = world.vision if encoded is None else encoded.to(world.device)
        rng, generator = np.random.default_rng(seed), torch.Generator(world.device).manual_seed(seed)
        num_first = int(config.first_frames * config.num_states)
        chosen, which, at = _choose_states(episodes, config, config.num_states - num_first, rng)
        parts = [_first_frames(world, num_first, rng)]
        for first in range(0, len(chosen), PARALLEL_EPISODES):
            group = chosen[first : first + PARALLEL_EPISODES]
            steps = [encode_episodes([episodes.read(int(each))], vision, world.action_features) for each in group]
            here = np.flatnonzero((which >= first) & (which < first + len(group)))
            parts.append(cls.within(world, steps, which[here] - first, at[here], generator))
        return cls(
            torch.cat([part.mean for part in parts]),
            torch.cat([part.log_variance for part in parts]),
            State(*(torch.cat(states, dim=1) for states in zip(*(part.lstm for part in parts), strict=True))),
        )

    @classmethod
    @torch.no_grad()
    def within(
        cls, world: WorldModel, episodes: Sequence[EncodedSteps], which: np.ndarray, at: np.ndarray, generator: torch.Generator
    ) -> StartBank:
        """Take given steps of encoded episodes, with M primed on all that comes before.

        Args:
            world: V and M.
            episodes: episodes of one world model's V.
            which: (N,) index of an episode for each state.
            at: (N,) its step.
            generator: source of the samples of z that prime M.

        Returns:
            The states, sorted by step; of equal steps in the given order.
        """
        order = np.argsort(at, kind="stable")
        which, at = which[order], at[order]
        mean, log_variance, action = (
            pad_sequence([getattr(episode, name) for episode in episodes], batch_first=True)
            for name in ("mean", "log_variance", "action")
        )
        z = draw_latent(mean, log_variance, generator=generator)
        kept = [world.mdnrnn.initial_state(0)]
        filled = fill_missing(world.mdnrnn, z, action)
        mean = torch.where(filled.observed, mean, filled.z)
        for t, lstm in enumerate(islice(primed_states(world.mdnrnn, filled.z, filled.action), int(at.max(initial=-1)) + 1)):
            rows = torch.as_tensor(which[at == t], device=world.device)
            kept.append(State(lstm.h[:, rows], lstm.c[:, rows]))
        rows, steps = (torch.as_tensor(part, device=world.device) for part in (which, at))
        states = State(*(torch.cat(parts, dim=1) for parts in zip(*kept, strict=True)))
        return cls(mean[rows, steps], log_variance[rows, steps], states)

    def __len__(self) -> int:
        """Return N."""
        return len(self.mean)

    def features(self, kind: FeatureKind, noise: Tensor) -> Tensor:
        """Features of each state, with standard normal ``noise`` (N, D) for V's sample: (N, F)."""
        z, lstm = self.take(torch.arange(len(self), device=noise.device), noise)
        return latent_features(z, lstm, kind)

    def take(self, index: Tensor, noise: Tensor) -> tuple[Tensor, State]:
        """Select states by ``index`` (B,), with standard normal ``noise`` (B, D) for V's sample: z (B, D) and M's state."""
        z = self.mean[index] + (0.5 * self.log_variance[index]).exp() * noise
        return z, State(self.lstm.h[:, index], self.lstm.c[:, index])

    def sample(self, batch_size: int, generator: torch.Generator) -> LatentState:
        """Sample start states for B dreams."""
        index = torch.randint(len(self), (batch_size,), generator=generator, device=self.mean.device)
        noise = self.mean.new_empty(batch_size, self.mean.shape[1]).normal_(generator=generator)
        return LatentState(*self.take(index, noise), torch.ones_like(index, dtype=torch.bool))

    def in_order(self, generator: torch.Generator) -> LatentState:
        """Start one dream at each state: N running dreams."""
        index = torch.arange(len(self), device=self.mean.device)
        z, lstm = self.take(index, torch.empty_like(self.mean).normal_(generator=generator))
        return LatentState(z, lstm, torch.ones_like(index, dtype=torch.bool))

    def draw(self, streams: Streams, batch_size: int) -> tuple[Tensor, State]:
        """Sample a start state for each of B rows: z (B, D) and M's state."""
        size = self.mean.shape[1]
        uniform = streams.uniform_(self.mean.new_empty(batch_size, 1 + size + size % 2))  # one call: each has a fixed cost
        index = (uniform[:, 0] * len(self)).long()  # (B,); uniform < 1, so never N
        return self.take(index, box_muller(uniform[:, 1:])[:, :size])


def _open(world: WorldModel, data: str | Path | Sequence[str | Path]) -> EpisodeCollection:
    """Open stores without the leaves that the world model's data lack."""
    require_world(world)
    stores = [EpisodeStore.open(path) for path in ([data] if isinstance(data, (str, Path)) else data)]
    episodes = EpisodeCollection(stores, leave_out=known_leaves(stores[0].observation_space, world.left_out))
    episodes.reads_time = episodes.reads_time and world.mdnrnn.extras.sees_time
    return episodes


def _shares(lengths: np.ndarray, even: str) -> np.ndarray:
    """Weight of a step by its time t since the episode's start, (longest,): 1, or 1 / (number of episodes that reach t)."""
    if even == "steps":
        return np.ones(lengths.max())
    alive = len(lengths) - np.searchsorted(np.sort(lengths), np.arange(lengths.max()), side="right")  # longer than t
    return 1 / np.maximum(alive, MIN_EPISODES * len(lengths))


def _choose_states(
    episodes: EpisodeCollection, config: StartConfig, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose ``count`` states that are not first frames.

    Returns:
        Indices of the episodes that prime M, sorted by length; for each state the position of its episode among these, and its
        step.
    """
    lengths, before_ends = episodes.lengths, int(config.before_ends * config.num_states)
    chosen = _choose_episodes(lengths, config.even, MAX_PREFIXES, rng)
    shares = _shares(lengths[chosen], config.even)
    which, at = _choose_anywhere(lengths[chosen], shares, count - before_ends, rng)
    which = chosen[which]
    if before_ends:
        ends = _choose_terminated(episodes, chosen, config, rng)
        if len(ends):
            dying, back = _choose_before_ends(lengths[ends], shares, before_ends, (config.nearest, config.farthest), rng)
            which, at = np.concatenate([which, ends[dying]]), np.concatenate([at, lengths[ends[dying]] - back])
            chosen = np.concatenate([chosen, np.setdiff1d(ends, chosen)])
            chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
    place = np.zeros(len(lengths), dtype=np.int64)
    place[chosen] = np.arange(len(chosen))
    return chosen, place[which], at


def _choose_episodes(lengths: np.ndarray, even: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Choose at most ``count`` episodes that prime M, sorted by length; for "times", long episodes are more likely."""
    likely = None if even == "steps" else np.cumsum(_shares(lengths, even))[lengths - 1]
    share = None if likely is None else likely / likely.sum()
    chosen = rng.choice(len(lengths), min(len(lengths), count), replace=False, p=share)
    return chosen[np.argsort(lengths[chosen], kind="stable")]


def _choose_terminated(
    episodes: EpisodeCollection, chosen: np.ndarray, config: StartConfig, rng: np.random.Generator
) -> np.ndarray:
    """Return those of the chosen episodes that terminated, and if these are few, more that did."""
    terminated = episodes.terminated()
    ends = chosen[terminated[chosen]]
    others = np.setdiff1d(np.flatnonzero(terminated), chosen)
    missing = math.ceil(config.before_ends * MAX_PREFIXES) - len(ends)
    if missing <= 0 or not len(others):
        return ends
    return np.concatenate([ends, others[_choose_episodes(episodes.lengths[others], config.even, missing, rng)]])


def _choose_anywhere(
    lengths: np.ndarray, shares: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose steps among episodes of these lengths: episode and step; a step at time t in proportion to ``shares[t]``."""
    upto = np.cumsum(shares)  # (longest,)
    last = np.cumsum(upto[lengths - 1])  # (episodes,)
    drawn = rng.random(count) * last[-1]
    which = np.searchsorted(last, drawn, side="right").clip(max=len(lengths) - 1)
    within = drawn - last[which] + upto[lengths[which] - 1]
    return which, np.minimum(np.searchsorted(upto, within, side="right"), lengths[which] - 1)


def _choose_before_ends(
    lengths: np.ndarray, shares: np.ndarray, count: int, reach: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose episodes by their ends, an end at time t in proportion to ``shares[t]``, and numbers of steps before them."""
    ends = shares[np.minimum(lengths, len(shares)) - 1]
    which = rng.choice(len(lengths), count, p=ends / ends.sum())
    least, most = (np.minimum(bound, lengths[which]) for bound in reach)
    return which, rng.integers(least, most, endpoint=True)


def _first_frames(world: WorldModel, count: int, rng: np.random.Generator) -> StartBank:
    """Sample ``count`` of the first frames that are saved with the world model."""
    index = torch.as_tensor(rng.integers(len(world.start_mean), size=count), device=world.device)
    return StartBank(world.start_mean[index], world.start_log_variance[index], world.mdnrnn.initial_state(count))
