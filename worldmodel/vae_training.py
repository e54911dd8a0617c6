"""From stores of episodes to a trained V for images, in one call.

Frames are dealt in random order as a pure function of (seed, epoch, number of the batch), like windows are for M. Neighbouring
frames are stored together, so they are read as windows of `WINDOW` steps, many windows of random episodes at a time (a *pool*),
and dealt in random order from there: reading stays cheap, and a batch holds about one frame of each window (of large frames
more, as a pool holds fewer windows of them, to stay below `POOL_BYTES`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel import checkpoint, training
from worldmodel.sequences import EpisodeCollection, WindowSampler, permuted, split_episodes
from worldmodel.spaces import leaf_values, leaves
from worldmodel.training import TrainingProgress
from worldmodel.training_config import TrainingConfig
from worldmodel.vae import IN_USE, VISION_FILE, VISION_WEIGHTS, ConvVAE, FrameBatch, VAEConfig, divergence
from worldmodel.world import check_device

RUN_FILE = "train_vae.json"
OUTPUTS = (RUN_FILE, VISION_FILE, VISION_WEIGHTS, "training", ".*.tmp")
RUN: dict[str, Any] = {"marker": RUN_FILE, "format": "worldmodel.train_vae", "version": 1, "replaces": OUTPUTS}
WINDOW = 64  # steps that are read together
POOL_BATCHES = 64  # batches' worth of frames that are in memory at once: 200 MB of 64x64 colour at 256 a batch ...
POOL_BYTES = 2**30  # ... and of large frames fewer, from fewer windows


@dataclass(frozen=True, kw_only=True)
class FrameConfig:
    """How frames become batches.

    Args:
        batch_size: images in a batch.
        test_fraction: part of the episodes that is held out.
        min_length: episodes of fewer steps are left out.

    Raises:
        ValueError: naming the field that is out of range.
    """

    batch_size: int = 256
    test_fraction: float = 0.05
    min_length: int = 1

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("batch_size", "min_length"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"test_fraction: expected a number in [0, 1), got {self.test_fraction}")


class FrameData:
    """Batches of single frames for training and evaluation.

    Args:
        episodes: where the frames are.
        which: (n,) indices of the episodes to use.
        path: of the image in the observation space.
        batch_size: images in a batch; where fewer are left of a pool, they wait for another epoch, and where a pool is smaller
            (see `POOL_BYTES`), it is the batch.
        seed: of the order.
        shuffle: False reads the frames in order, for evaluation, where all count: a pool is a batch, of about as many.
        device: where the batches are.
    """

    def __init__(
        self,
        episodes: EpisodeCollection,
        which: np.ndarray,
        *,
        path: str,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        device: torch.device | str = "cpu",
    ):
        self._episodes, self._path, self._batch_size, self._seed = episodes, path, batch_size, seed
        self._shuffle, self._device = shuffle, device
        space = dict(leaves(episodes.observation_space))[path]
        self._shape = space.shape or ()
        frames = min((POOL_BATCHES if shuffle else 1) * batch_size, POOL_BYTES // math.prod(self._shape))
        windows = max(1, frames // WINDOW)
        lengths = episodes.lengths[which]
        self._sampler = WindowSampler(which, lengths, window=WINDOW, batch_size=windows, seed=seed, shuffle=shuffle)
        self._counted: tuple[int, np.ndarray] | None = None
        self._pool: tuple[tuple[int, int], torch.Tensor] | None = None

    def num_batches(self, epoch: int) -> int:
        """Number of batches in an epoch; it varies a little, as the windows do."""
        return int(self._ends(epoch)[-1])

    def batch(self, epoch: int, index: int, *, generator: torch.Generator | None = None) -> FrameBatch:
        """Assemble batch ``index`` of ``epoch``; nothing is drawn."""
        ends = self._ends(epoch)
        if not 0 <= index < ends[-1]:
            raise IndexError(f"index: expected a batch in [0, {ends[-1]}), got {index}")
        number = int(np.searchsorted(ends, index, side="right"))
        frames = self._frames(epoch, number)
        if not self._shuffle:
            return FrameBatch(frames.to(self._device))
        first = (index - (int(ends[number - 1]) if number else 0)) * self._batch_size
        positions = np.arange(first, min(first + self._batch_size, len(frames)))
        drawn = permuted(positions, len(frames), key=(self._seed, epoch, number))
        return FrameBatch(frames[torch.as_tensor(drawn)].to(self._device))

    def _ends(self, epoch: int) -> np.ndarray:
        """Running total of the batches of each pool."""
        if self._counted is None or self._counted[0] != epoch:
            pools = [self._sampler.batch(epoch, number) for number in range(self._sampler.num_batches(epoch))]
            frames = [int((pool.stop - pool.start + self._is_last(pool.episode, pool.stop)).sum()) for pool in pools]
            self._counted = epoch, np.cumsum([self._batches(count) for count in frames])
        return self._counted[1]

    def _batches(self, frames: int) -> int:
        """Of a pool of so many frames."""
        return max(1, frames // self._batch_size) if self._shuffle else 1

    def _is_last(self, episode: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Whether windows reach the end of their episodes: only they bring the frame after their last step."""
        last: np.ndarray = stop == self._episodes.lengths[episode]
        return last

    def _frames(self, epoch: int, number: int) -> torch.Tensor:
        """The frames of a pool; the latest one is kept."""
        if self._pool is None or self._pool[0] != (epoch, number):
            self._pool = None  # two pools never lie in memory at once
            pool = self._sampler.batch(epoch, number)
            ends = np.cumsum(pool.stop - pool.start + self._is_last(pool.episode, pool.stop))
            frames, first = np.empty((ends[-1], *self._shape), np.uint8), 0
            for *which, end in zip(pool.episode, pool.start, pool.stop, ends, strict=True):
                observations = self._episodes.read(*(int(part) for part in which)).observations
                frames[first:end] = leaf_values(observations)[self._path][: end - first]
                first = end
            self._pool = (epoch, number), torch.from_numpy(frames)
        return self._pool[1]


def train_vae(
    data: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    config: VAEConfig | None = None,
    frame_config: FrameConfig | None = None,
    training_config: TrainingConfig | None = None,
    initial: ConvVAE | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    on_progress: Callable[[TrainingProgress], None] | None = None,
) -> ConvVAE:
    """Train V on the frames of one or several stores of episodes and write it as a directory.

    Args:
        data: path of a store, or several of the same environment.
        out: directory for V; its training state goes to ``out/training``.
        config: sizes and loss.
        frame_config: batches of frames.
        training_config: how to train.
        initial: a V to start from, with its sizes and weights; None starts anew.
        seed: >= 0, of the split, the initial weights, the order of the frames and everything drawn in training.
        device: where V and its training are.
        resume: go on with the run in ``out``, if there is one, with the same arguments; a complete one is returned as it is.
        overwrite: replace an earlier run in ``out``.
        tensorboard: write TensorBoard scalars too (extra ``tensorboard``).
        on_progress: called every few updates.

    Returns:
        V, on ``device``, in evaluation mode.

    Raises:
        ValueError: if the observations hold no image, an argument is out of range, or a resumed run was started with others.
        NonFiniteLossError: if training diverged.
        FileExistsError: if ``out`` holds something that may not be replaced.
        KeyboardInterrupt: on Ctrl-C, with a state saved from which ``resume`` goes on.
    """
    frame_config, training_config = frame_config or FrameConfig(), training_config or TrainingConfig()
    check_device(device)
    episodes = EpisodeCollection.open(data, min_length=frame_config.min_length)
    vision = _new_vae(episodes, config, initial, seed)
    arguments: dict[str, Any] = {"data_fingerprint": episodes.fingerprint, "seed": seed, "device": torch.device(device).type}
    arguments |= {"config": asdict(vision.config), "frame_config": asdict(frame_config)}
    arguments |= {"training_config": asdict(training_config), "initial": None if initial is None else initial.fingerprint}
    directory = checkpoint.prepare_run(out, arguments, resume=resume, overwrite=overwrite, **RUN)
    if (directory / VISION_FILE).is_file():
        return ConvVAE.from_pretrained(directory, device=device)
    split = split_episodes(len(episodes), test_fraction=frame_config.test_fraction, seed=seed)
    if initial is None:
        _fit_vectors(vision, episodes, split[0])
    options = {"path": vision.layout.path, "batch_size": frame_config.batch_size, "seed": seed, "device": device}
    train_data, test_data = _frame_data(episodes, split, options)
    result = training.train(
        vision.to(device),
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
    most, there = training_config.max_test_batches, torch.device(device)
    seen = training.held_out_batches(test_data or train_data, most, seed=seed, device=there)
    vision, latents = _without_idle_latents(vision.eval(), seen)
    vision.write(directory, provenance={**arguments, "training": asdict(result), "latents": latents})
    return vision


def _new_vae(episodes: EpisodeCollection, config: VAEConfig | None, initial: ConvVAE | None, seed: int) -> ConvVAE:
    if initial is not None:
        if config is not None:
            raise ValueError("config: expected none beside an initial V, which brings its own")
        if initial.observation_space != episodes.observation_space:
            expected, actual = episodes.observation_space, initial.observation_space
            raise ValueError(f"initial: expected a V of the observation space {expected}, got one of {actual}")
    with torch.random.fork_rng(devices=[]):  # torch's initialisers take no generator: borrow the CPU's and give it back
        torch.default_generator.manual_seed(seed)
        vision = ConvVAE(episodes.observation_space, config if initial is None else initial.config)
    if initial is not None:
        vision.load_state_dict(initial.state_dict())
    return vision


def _fit_vectors(vision: ConvVAE, episodes: EpisodeCollection, which: np.ndarray) -> None:
    """Standardise what stands beside the image, over the episodes ``which``."""
    if vision.vectors is not None:
        observations = (leaf_values(episodes.read(int(index)).observations) for index in which)
        vision.vectors.fit({path: each[path] for path in each if path != vision.layout.path} for each in observations)


def _frame_data(
    episodes: EpisodeCollection, split: tuple[np.ndarray, np.ndarray], options: Mapping[str, Any]
) -> tuple[FrameData, FrameData | None]:
    """Training and held-out frames; the latter None where the split holds nothing out."""
    train, test = split
    held_out = FrameData(episodes, test, shuffle=False, **options) if len(test) else None
    return FrameData(episodes, train, **options), held_out


@torch.no_grad()
def _without_idle_latents(vision: ConvVAE, batches: Iterable[FrameBatch]) -> tuple[ConvVAE, dict[str, int]]:
    """V without the latents that say less than `VAEConfig.min_nats` of these images; the one that says most stays always.

    Returns:
        V, and the number of latents that it had (``size``), of those in use (a posterior mean whose variance over these images
        is above `IN_USE`) and of those ``kept``.
    """
    found = [vision.encode_images(batch.image) for batch in batches]
    mean, log_variance = (torch.cat(part) for part in zip(*found, strict=True))
    nats = divergence(mean, log_variance).mean(dim=0)
    kept = (nats >= nats.max().clamp(max=vision.config.min_nats)).nonzero()[:, 0]
    in_use = int((mean.var(dim=0, correction=0) > IN_USE).sum())
    latents = {"size": len(nats), "in_use": in_use, "kept": len(kept)}
    return vision.with_latents(kept, mean.mean(dim=0)) if len(kept) < len(nats) else vision, latents
