"""Atoms of the reward: the values that recur exactly in the data, which M predicts as such."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from worldmodel.data import EpisodeCollection
from worldmodel.models import MDNRNN, MDNRNNConfig, SequenceBatch
from worldmodel.spaces import check_float32_range

REWARD_COMPONENTS = 5  # of the mixture of the other rewards, in new fits
MIN_FRACTION, MIN_COUNT = 0.01, 50  # of the steps, and steps: of a value that is an atom
MOST_VALUES = 16  # if there are no more different values than this, all are atoms


def find_atoms(rewards: np.ndarray) -> tuple[float, ...]:
    """Find the rewards that recur exactly.

    A value is an atom if it makes up 1 % of the steps or more and occurs 50 times. If there are at most 16 different values,
    and at least twice as many steps as values, all are atoms.

    Args:
        rewards: (N,) rewards, compared as float32 numbers.

    Returns:
        The atoms in ascending order.
    """
    values, counts = np.unique(rewards.astype(np.float32) + np.float32(0), return_counts=True)  # -0 becomes 0
    if len(values) > MOST_VALUES or 2 * len(values) > len(rewards):
        values = values[(counts >= MIN_COUNT) & (counts >= MIN_FRACTION * len(rewards))]
    return tuple(values.tolist())


def with_reward_fields(
    config: MDNRNNConfig, episodes: EpisodeCollection, *, resumed: Mapping[str, Any] | None = None
) -> MDNRNNConfig:
    """Decide ``reward_atoms`` and ``reward_components`` where they are None, from all rewards of the data.

    Args:
        config: the configuration.
        episodes: the data.
        resumed: recorded configuration of M of the run that is resumed, if any; an earlier version's has the Gaussian head.

    Raises:
        ValueError: if ``reward_components`` is 0 and a reward of the data is none of ``reward_atoms``.
    """
    if not config.reward_head:
        return config
    if resumed is not None and not {"reward_atoms", "reward_components"} & set(resumed):
        return replace(config, reward_atoms=config.reward_atoms or (), reward_components=config.reward_components or 1)
    rewards = read_rewards(episodes)
    atoms = find_atoms(rewards) if config.reward_atoms is None else config.reward_atoms
    others = np.setdiff1d(rewards, np.array(atoms, dtype=np.float32))
    components = config.reward_components
    if components is None:
        components = REWARD_COMPONENTS if len(others) else 0
    check_rewards_of(atoms, components, others)
    return replace(config, reward_atoms=atoms, reward_components=components)


def check_rewards_of(atoms: tuple[float, ...] | None, components: int | None, rewards: np.ndarray) -> None:
    """Raise if M can predict its atoms only, and other rewards occur.

    Raises:
        ValueError: if ``components`` is 0 and a reward is none of ``atoms``; names it and the fix.
    """
    if components == 0:
        others = np.setdiff1d(rewards, np.array(atoms, dtype=np.float32))
        if len(others):
            raise ValueError(
                f"rewards: expected values of reward_atoms {atoms}, as the model has no density for others "
                f"(reward_components=0), got {others[0]}; fit a new model on all data, or set reward_components"
            )


def read_rewards(episodes: EpisodeCollection) -> np.ndarray:
    """Return the rewards of all episodes as float32 numbers.

    Raises:
        ValueError: if a reward is too large for float32; names the episode and the step.
    """
    rewards = []
    for index in range(len(episodes)):
        episode = episodes.read(index)
        check_float32_range(torch.as_tensor(episode.rewards), f"episode {episode.episode_id} rewards")
        rewards.append(episode.rewards.astype(np.float32))
    return np.concatenate(rewards)


@torch.no_grad()
def set_base_rates(model: MDNRNN, batches: Iterable[SequenceBatch]) -> None:
    """Set the initial probabilities of the reward head to the frequencies in batches, and its floor to their noise."""
    head = model.reward_head
    if head is None:
        return
    counts = torch.zeros(len(head.atoms) + 1, dtype=torch.float64, device=head.atoms.device)
    others = []
    for batch in batches:
        reward = batch.reward[batch.mask]
        equal = reward.unsqueeze(-1) == head.atoms  # (N, A)
        others.append(reward[~equal.any(dim=-1)])
        counts[:-1] += equal.sum(dim=0)
        counts[-1] += len(others[-1])
    head.set_base_rates(counts)
    head.set_floor(torch.cat(others), model.reward_scale)
