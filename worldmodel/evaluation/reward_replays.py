"""Compare sums of dreamed and real rewards under recorded actions: whether a search in dreams has anything to learn from.

Windows of real episodes are replayed open loop: M is primed on all that comes before a window, then dreams under the recorded
actions without seeing the observations again. Over few steps a good M pays what the real environment paid. The horizon at which
the correlation falls is about the longest dream in which an agent should learn. Unlike `worldmodel.evaluation.probe` it needs
no further real episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.data import EpisodeCollection, EpisodeStore
from worldmodel.dream import Dreams, StartBank
from worldmodel.models import WorldModel, encode_episodes, encoded_form
from worldmodel.runtime import check_integer
from worldmodel.spaces import known_leaves

HORIZONS = (1, 5, 10, 20, 40)
MAX_EPISODES = 100  # that the windows come from


@dataclass(frozen=True)
class RewardReplays:
    """Sums of rewards over the first steps of windows, in reality and in dreams.

    Args:
        horizons: numbers of steps.
        real: mean real sum for each horizon.
        dreamed: mean dreamed sum.
        correlation: correlation of the two over the windows; 0 if one of them is constant.
        num_windows: number of windows.
    """

    horizons: tuple[int, ...]
    real: tuple[float, ...]
    dreamed: tuple[float, ...]
    correlation: tuple[float, ...]
    num_windows: int

    def to_json(self) -> dict[str, Any]:
        """Return all numbers as JSON-serialisable data."""
        return asdict(self)

    def __str__(self) -> str:
        """Format as a table."""
        rows = zip(self.horizons, self.real, self.dreamed, self.correlation, strict=True)
        lines = [f"{'steps':>5}{'real':>10}{'dreamed':>10}{'correlation':>13}"]
        return "\n".join([*lines, *(f"{h:>5}{real:>10.3g}{dreamed:>10.3g}{c:>13.2f}" for h, real, dreamed, c in rows)])


@torch.no_grad()
def replay_rewards(
    world: WorldModel,
    data: str | Path | Sequence[str | Path],
    *,
    horizons: Sequence[int] = HORIZONS,
    num_windows: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
) -> RewardReplays:
    """Replay windows of real episodes in dreams and compare the sums of their rewards.

    Args:
        world: V and M, with a reward head.
        data: path of a store of its environment, or several, of observations or encoded by its V; best of episodes that M was
            not trained on.
        horizons: numbers of steps, ascending; windows are as long as the largest, and episodes with fewer steps are left out.
        num_windows: number of windows.
        temperature: of the dreams.
        seed: seed of windows and dreams.

    Raises:
        ValueError: if there is no reward head, no episode is long enough, or a number is out of range.
    """
    num_windows = check_integer(num_windows, "num_windows", least=1)
    horizons = tuple(check_integer(horizon, "horizons", least=1) for horizon in horizons)
    if world.mdnrnn.reward_head is None:
        raise ValueError("world: expected a world model that predicts rewards, got one without a reward head")
    stores = [EpisodeStore.open(path) for path in ([data] if isinstance(data, (str, Path)) else data)]
    episodes = EpisodeCollection(stores, leave_out=known_leaves(stores[0].observation_space, world.left_out))
    long_enough = np.flatnonzero(episodes.lengths >= max(horizons))
    if len(long_enough) == 0:
        raise ValueError(f"horizons: expected at most the longest episode, {episodes.lengths.max()} steps, got {max(horizons)}")
    rng = np.random.default_rng(seed)
    chosen = rng.choice(long_enough, min(len(long_enough), MAX_EPISODES), replace=False)
    which = np.sort(rng.integers(len(chosen), size=num_windows))
    at = np.array([rng.integers(episodes.lengths[chosen[k]] - max(horizons) + 1) for k in which])
    order = np.argsort(at, kind="stable")
    real, dreamed = _sums(world, episodes, chosen, which[order], at[order], max(horizons), temperature, seed)
    columns = [horizon - 1 for horizon in horizons]
    pairs = [(real[:, column], dreamed[:, column]) for column in columns]
    return RewardReplays(
        horizons,
        tuple(float(one.mean()) for one, _ in pairs),
        tuple(float(other.mean()) for _, other in pairs),
        tuple(float(np.corrcoef(one, other)[0, 1]) if min(one.std(), other.std()) > 0 else 0.0 for one, other in pairs),
        num_windows,
    )


def _sums(
    world: WorldModel,
    episodes: EpisodeCollection,
    chosen: np.ndarray,
    which: np.ndarray,
    at: np.ndarray,
    steps: int,
    temperature: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative real and dreamed rewards (N, steps) of windows of episodes ``chosen[which]`` that start at ``at``, sorted."""
    encoded = encoded_form(episodes.stores, world.vision)
    reader = world.vision if encoded is None else encoded.to(world.device)
    read = [encode_episodes([episodes.read(int(index))], reader, world.action_features) for index in chosen]
    generator = torch.Generator(world.device).manual_seed(seed)
    bank = StartBank.within(world, read, which, at, generator)
    dreams = Dreams(world, len(which), temperature=temperature)
    actions = torch.stack([read[k].action[t : t + steps] for k, t in zip(which, at, strict=True)])  # (N, steps, A)
    real = torch.stack([read[k].reward[t : t + steps] for k, t in zip(which, at, strict=True)])
    state, rewards = bank.in_order(generator), []
    for step in range(steps):
        state, reward, _ = dreams.step_features(state, actions[:, step], generator=generator)
        rewards.append(reward)
    return real.cumsum(dim=1).double().cpu().numpy(), torch.stack(rewards, dim=1).cumsum(dim=1).double().cpu().numpy()
