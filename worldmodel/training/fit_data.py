"""Data of `fit`: stores opened, test data checked, and batches of windows for training and testing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from worldmodel.data import Episode, EpisodeCollection
from worldmodel.models import MDNRNN, Vision, encode_all, encoded_bytes
from worldmodel.spaces import FlatSpace
from worldmodel.training.config import DataConfig
from worldmodel.training.reward_atoms import check_rewards_of, read_rewards
from worldmodel.training.windows import RESIDENT_BYTES, SequenceData, WindowSampler

Split = tuple[np.ndarray, np.ndarray]  # episodes for training and held-out ones


def open_data(data: str | Path | Sequence[str | Path], config: DataConfig) -> EpisodeCollection:
    """Open stores, without the episodes and leaves that a configuration leaves out."""
    return EpisodeCollection.open(data, min_length=config.min_length, leave_out=config.leave_out)


def check_tests(tests: EpisodeCollection, episodes: EpisodeCollection, model: MDNRNN) -> dict[str, str]:
    """Return the record of test data that fit the training data.

    Raises:
        ValueError: if the spaces differ, or the model has no density for a reward of the test data.
    """
    EpisodeCollection([episodes.stores[0], *tests.stores])  # raises if the spaces differ
    if model.config.reward_head:
        check_rewards_of(model.config.reward_atoms, model.config.reward_components, read_rewards(tests))
    return {"test_fingerprint": tests.fingerprint}


def held_out(episodes: EpisodeCollection, split: Split, tests: EpisodeCollection | None) -> Iterator[Episode]:
    """Iterate over the test data, or the held-out episodes if there are none."""
    if tests is not None:
        return (tests.read(index) for index in range(len(tests)))
    return (episodes.read(int(index)) for index in split[1])


def sequence_data(
    episodes: EpisodeCollection,
    split: Split,
    reader: Vision,
    action_space: FlatSpace,
    config: DataConfig,
    seed: int,
    *,
    tests: EpisodeCollection | None = None,
) -> tuple[SequenceData, SequenceData | None]:
    """Return the batches of training and of the test data or the held-out episodes; None if there is neither."""
    train = _batches(episodes, split[0], reader, action_space, config, seed, shuffle=True)
    assert train is not None
    if tests is not None:
        return train, _batches(tests, np.arange(len(tests)), reader, action_space, config, seed, shuffle=False)
    return train, _batches(episodes, split[1], reader, action_space, config, seed, shuffle=False, resident=train)


def _batches(
    episodes: EpisodeCollection,
    which: np.ndarray,
    reader: Vision,
    action_space: FlatSpace,
    config: DataConfig,
    seed: int,
    *,
    shuffle: bool,
    resident: SequenceData | None = None,
) -> SequenceData | None:
    """Return batches of some episodes; ``resident`` has the encodings of all, if they are kept."""
    if len(which) == 0:
        return None
    sampler = WindowSampler(
        which,
        episodes.lengths[which],
        window=config.window,
        burn_in=config.burn_in,
        batch_size=config.batch_size,
        seed=seed,
        shuffle=shuffle,
    )
    if resident is not None:
        return SequenceData(episodes, sampler, reader, action_space, resident=resident.resident)
    keeps = config.resident
    if keeps is None:
        keeps = encoded_bytes(episodes, reader, action_space) <= RESIDENT_BYTES
    steps = encode_all(episodes, reader, action_space) if keeps else None
    return SequenceData(episodes, sampler, reader, action_space, resident=steps)
