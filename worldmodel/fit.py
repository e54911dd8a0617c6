"""From stores of episodes to a world model in one call: fit V, train M, keep the start states, write the directory."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel import baselines, checkpoint, training
from worldmodel.mdnrnn import MDNRNN, DataStatistics, MDNRNNConfig, SequenceBatch
from worldmodel.sequences import (
    RESIDENT_BYTES,
    EpisodeCollection,
    SequenceData,
    WindowSampler,
    encode_all,
    encoded_bytes,
    split_episodes,
)
from worldmodel.spaces import FlatSpace, Value, map_leaves
from worldmodel.store import EpisodeStore
from worldmodel.training import TrainingProgress, TrainingConfig
from worldmodel.vision import StateNormalizer
from worldmodel.world import WorldModel

FIT_FORMAT, FIT_VERSION, FIT_FILE = "worldmodel.fit", 1, "fit.json"
MAX_START_STATES = 10_000
STATISTICS_BATCHES = 500  # the data's statistics and the baselines are computed on so many batches at most


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How episodes become batches.

    Args:
        window: T, steps of a window that count in the loss.
        burn_in: steps before a window that warm up the LSTM without counting.
        batch_size: B, windows in a batch.
        test_fraction: part of the episodes that is held out.

    Raises:
        ValueError: naming the field that is out of range.
    """

    window: int = 64
    burn_in: int = 0
    batch_size: int = 64
    test_fraction: float = 0.1

    def __post_init__(self) -> None:
        """Check every field."""
        for name, least in {"window": 1, "burn_in": 0, "batch_size": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected an integer >= {least}, got {getattr(self, name)}")
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"test_fraction: expected a number in [0, 1), got {self.test_fraction}")


def fit(
    data: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
    data_config: DataConfig | None = None,
    training_config: TrainingConfig | None = None,
    initial: WorldModel | None = None,
    resident: bool | None = None,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    **mdnrnn: Any,
) -> WorldModel:
    """Train a world model on one or several stores of episodes and write it as a directory.

    Args:
        data: path of a store, or several of the same environment.
        out: directory for the world model; its training state goes to ``out/training``.
        seed: seed of the split, the initial weights, the batches and everything drawn in training.
        device: where model, data and training are.
        data_config: windows and batches.
        training_config: how to train.
        initial: a world model to start from; its V, its sizes and its weights are kept. None starts anew.
        resident: keep the encoded data on the device (fast, for what fits) or read windows from disk as they come (any size); None
            decides by size.
        resume: go on with an interrupted run in ``out``; its arguments must be the same.
        overwrite: replace an earlier run in ``out``.
        tensorboard: write TensorBoard scalars too (extra ``tensorboard``).
        on_progress: called every few updates.
        **mdnrnn: fields of `MDNRNNConfig` other than the two that follow from the data.

    Returns:
        The world model, on ``device``, in evaluation mode.

    Raises:
        ValueError: if the data are empty or of another environment than ``initial``, an argument is out of range, or a resumed run had
            others.
        FileExistsError: if ``out`` holds something that may not be replaced.
        KeyboardInterrupt: on Ctrl-C, with a state saved from which ``resume`` goes on.
    """
    data_config, training_config = data_config or DataConfig(), training_config or TrainingConfig()
    paths = [data] if isinstance(data, (str, Path)) else list(data)
    episodes = EpisodeCollection([EpisodeStore.open(path) for path in paths])
    directory = _prepare(Path(out), resume=resume, overwrite=overwrite)
    train_episodes, test_episodes = split_episodes(len(episodes), test_fraction=data_config.test_fraction, seed=seed)
    world = _build_world(episodes, train_episodes, initial, seed, torch.device(device), mdnrnn)
    train_data, test_data = _sequence_data(episodes, (train_episodes, test_episodes), world, data_config, seed, resident)
    if initial is None:
        world.mdnrnn.set_statistics(DataStatistics.of(_statistics_batches(train_data)))
    scores = _baselines(world.mdnrnn, train_data, test_data)
    result = training.train(
        world.mdnrnn,
        train_data,
        out=directory / "training",
        config=training_config,
        seed=seed,
        test_data=test_data,
        fingerprint=episodes.fingerprint,
        resume=resume,
        tensorboard=tensorboard,
        on_progress=on_progress,
    )
    world.provenance = {
        "recipes": [store.recipe for store in episodes.stores],
        "data_fingerprint": episodes.fingerprint,
        "num_episodes": len(episodes),
        "num_steps": int(episodes.lengths.sum()),
        "seed": seed,
        "data_config": asdict(data_config),
        "training_config": asdict(training_config),
        "training": asdict(result),
        "baselines": scores,
    }
    world.write(directory)
    return world


def _prepare(out: Path, *, resume: bool, overwrite: bool) -> Path:
    """Make or check the output directory, which is known by its ``fit.json``."""
    if resume and (out / FIT_FILE).is_file():
        checkpoint.read_json(out / FIT_FILE, format=FIT_FORMAT, version=FIT_VERSION)
        return out
    checkpoint.prepare_directory(out, marker=FIT_FILE, overwrite=overwrite)
    checkpoint.write_json(out / FIT_FILE, {"training": "training"}, format=FIT_FORMAT, version=FIT_VERSION)
    return out


def _build_world(
    episodes: EpisodeCollection,
    train_episodes: np.ndarray,
    initial: WorldModel | None,
    seed: int,
    device: torch.device,
    mdnrnn: dict[str, Any],
) -> WorldModel:
    """V fitted to the training episodes, M with fresh weights, and the start states; or ``initial``'s V and M."""
    if initial is not None:
        initial.check_spaces(episodes.observation_space, episodes.action_space, source="data")
        if mdnrnn:
            raise ValueError(f"mdnrnn: expected no model sizes beside an initial world model, got {mdnrnn}")
        vision, model = copy.deepcopy(initial.vision), copy.deepcopy(initial.mdnrnn)
    else:
        vision = StateNormalizer(episodes.observation_space).fit(_observations(episodes, train_episodes))
        config = MDNRNNConfig(latent_size=vision.latent_size, action_size=FlatSpace(episodes.action_space).size, **mdnrnn)
        with torch.random.fork_rng(devices=[]):  # torch's initialisers take no generator: borrow the global one and give it back
            torch.manual_seed(seed)
            model = MDNRNN(config)
    vision = vision.cpu()
    first = range(min(len(episodes), MAX_START_STATES))
    parts = [vision.encode(map_leaves(lambda leaf: leaf[:1], episodes.read(i, 0, 1).observations)) for i in first]
    mean, log_variance = (torch.cat(part) for part in zip(*parts, strict=True))
    return WorldModel(vision, model, episodes.action_space, start_mean=mean, start_log_variance=log_variance).to(device)


def _observations(episodes: EpisodeCollection, which: np.ndarray) -> Iterator[Value]:
    """Yield the observations of whole episodes, one episode at a time."""
    for index in which:
        yield episodes.read(int(index)).observations


def _sequence_data(
    episodes: EpisodeCollection,
    split: tuple[np.ndarray, np.ndarray],
    world: WorldModel,
    config: DataConfig,
    seed: int,
    resident: bool | None,
) -> tuple[SequenceData, SequenceData | None]:
    """Training and held-out batches; the latter None where the split holds nothing out."""
    if resident is None:
        resident = encoded_bytes(episodes, world.vision, world.action_features) <= RESIDENT_BYTES
    steps = encode_all(episodes, world.vision, world.action_features) if resident else None

    def batches(which: np.ndarray, shuffle: bool) -> SequenceData | None:
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
        return SequenceData(episodes, sampler, world.vision, world.action_features, resident=steps)

    train = batches(split[0], shuffle=True)
    assert train is not None
    return train, batches(split[1], shuffle=False)


def _statistics_batches(data: SequenceData, seed: int = 0) -> Iterator[SequenceBatch]:
    """A bounded number of batches, always the same, for statistics of the data."""
    generator = torch.Generator(data.action_space.low.device).manual_seed(seed)
    return itertools.islice(data.epoch(0, generator=generator), STATISTICS_BATCHES)


def _baselines(model: MDNRNN, train: SequenceData, test: SequenceData | None) -> dict[str, float]:
    floor = model.config.min_scale * model.change_scale
    return baselines.baseline_nll(_statistics_batches(train), _statistics_batches(test or train), min_scale=floor)
