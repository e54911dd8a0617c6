"""A user's program, for the type checker: it is checked against the installed package, and never run."""

from __future__ import annotations

import numpy as np
import torch

import worldmodel as wm
from worldmodel.data import Episode
from worldmodel.dream import LatentState, LatentTracker, Scores
from worldmodel.mixtures import GaussianMixture
from worldmodel.runtime import Progress, RunConfig


class Still:
    """An agent that always takes the first action."""

    def reset(self, num_episodes: int) -> None:
        """Start episodes."""

    def act(self, state: LatentState) -> torch.Tensor:
        """Choose actions."""
        return torch.zeros(state.z.shape[0], dtype=torch.int64)

    def save_pretrained(self, path: str, *, overwrite: bool = False) -> None:
        """Write nothing."""


def show(progress: Progress) -> None:
    """Print progress."""
    print(progress.stage, progress.done)


def loop(out: str) -> float:
    """Collect, train, dream and evaluate."""
    store: wm.EpisodeStore = wm.collect("CartPole-v1", out=f"{out}/data", num_episodes=10, run=RunConfig(on_progress=show))
    episode: Episode = store.read(0)
    first: np.ndarray = episode.rewards
    training = wm.TrainingConfig(num_updates=10)
    world: wm.WorldModel = wm.fit(
        store.path, out=f"{out}/world", config=wm.MDNRNNConfig(hidden_size=8), training_config=training
    )
    dreams = wm.Dreams(world, 16, temperature=1.1)
    agent = wm.evolve(dreams, config=wm.SearchConfig(generations=1), horizon=20)
    scores: Scores = wm.evaluate(agent, world, env="CartPole-v1").real
    tracker = LatentTracker(world)
    mixture: GaussianMixture = GaussianMixture(torch.zeros(1, 1), torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))
    return scores.mean + float(first.sum()) + float(mixture.log_prob(torch.zeros(1, 2)).sum()) + len(repr(tracker))
