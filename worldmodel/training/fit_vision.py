"""Train V for images on stores of episodes.

Frames are dealt in random order as a pure function of (seed, epoch, number of the batch), like windows are for M. Neighbouring
frames are stored together, so they are read as windows of `WINDOW` steps, many windows of random episodes at a time (a *pool*),
and dealt in random order from there: reading stays cheap, and a batch holds about one frame of each window (of large frames
more, as a pool holds fewer windows of them, to stay below `POOL_BYTES`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.data import EpisodeCollection, split_episodes
from worldmodel.models import IN_USE, VISION_FILE, VISION_FILES, ConvVAE, FrameBatch, VAEConfig, divergence
from worldmodel.runtime import (
    RunConfig,
    check_integer,
    choose_device,
    explains_keywords,
    keeps_threads,
    led,
    runs,
    single_writer,
)
from worldmodel.spaces import leaf_values
from worldmodel.training import loop, quality
from worldmodel.training.config import FrameConfig, TrainingConfig
from worldmodel.training.frames import FrameData
from worldmodel.training.sharing import share_frames

RUN_FILE = "train_vae.json"
OUTPUTS = (RUN_FILE, *VISION_FILES.outputs, "training", ".*.tmp")
RUN: dict[str, Any] = {"marker": RUN_FILE, "format": "worldmodel.train_vae", "version": 1, "replaces": OUTPUTS}
RUN["result"] = VISION_FILE  # of a complete run


@explains_keywords
@keeps_threads
@led
@single_writer(result=VISION_FILE)
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
    run: RunConfig | None = None,
) -> ConvVAE:
    """Train V on the frames of one or several stores of episodes and write it as a directory.

    Args:
        data: path of a store, or several of the same environment.
        out: directory for V; its training state goes to ``out/training``.
        config: sizes and loss.
        frame_config: batches of frames.
        training_config: how to train.
        initial: a V to start from, with its sizes and weights; None starts from random weights.
        seed: >= 0, of the split, the initial weights, the order of the frames and everything drawn in training.
        device: where V and its training are; "auto": an NVIDIA GPU if there is one, else the CPU.
        run: whether a run in ``out`` is resumed or replaced (a complete one is returned as it is), its log, and how progress is
            shown; see `train`. The stage is "train V".

    Returns:
        V, on ``device``, in evaluation mode.

    Raises:
        ValueError: if the observations hold no image or several (see `train_cameras`), an argument is out of range, or a
            resumed run was started with others.
        NonFiniteLossError: if training diverged.
        FileExistsError: if ``out`` holds something that may not be replaced.
        KeyboardInterrupt: on Ctrl-C, after the state has been saved; the same call resumes.
    """
    frame_config, training_config, run = frame_config or FrameConfig(), training_config or TrainingConfig(), run or RunConfig()
    if training_config.calibrate:
        raise ValueError("calibrate: expected False, as V has no termination probabilities, got True; give it to fit")
    device, seed = choose_device(device), check_integer(seed, "seed", least=0)
    episodes = EpisodeCollection.open(data, min_length=frame_config.min_length, leave_out=frame_config.leave_out)
    vision = _new_vae(episodes, config, initial, seed)
    arguments: dict[str, Any] = {"data_fingerprint": episodes.fingerprint, "seed": seed, "device": torch.device(device).type}
    arguments |= {"config": asdict(vision.config), "frame_config": frame_config.identity()}
    arguments |= {"training_config": training_config.identity(), "initial": None if initial is None else initial.fingerprint}
    directory = runs.prepare_run(out, arguments, run=run, **RUN)
    if (directory / VISION_FILE).is_file():
        return ConvVAE.from_pretrained(directory, device=device)
    split = split_episodes(len(episodes), test_fraction=frame_config.test_fraction, seed=seed)
    if initial is None:
        _fit_vectors(vision, episodes, split[0])
    options = {"path": vision.layout.path, "batch_size": frame_config.batch_size, "seed": seed, "device": device}
    train_data, test_data = _frame_data(episodes, split, options)
    share_frames(vision, episodes, split[0], frame_config, training_config, options)
    with run.reporter() as report:
        result = loop.train(
            vision.to(device),
            train_data,
            out=directory / "training",
            config=training_config,
            seed=seed,
            test_data=test_data,
            fingerprint=episodes.fingerprint,
            run=run.within(report, "train V"),
        )
    most, there = training_config.max_test_batches, torch.device(device)
    seen = loop.held_out_batches(test_data or train_data, most, seed=seed, device=there)
    vision, latents = _without_idle_latents(vision.eval(), seen)
    provenance: dict[str, Any] = {**arguments, "training": asdict(result), "latents": latents}
    if quality.judge(result, held_out=test_data is not None):
        problems = quality.vision_problems(latents["in_use"], latents["size"])
        quality.record(problems + quality.loss_problems(result, evaluate_every=training_config.evaluate_every), provenance)
    vision.write(directory, provenance=provenance)
    return vision


def _new_vae(episodes: EpisodeCollection, config: VAEConfig | None, initial: ConvVAE | None, seed: int) -> ConvVAE:
    if initial is not None:
        if config is not None:
            raise ValueError("config: expected None with an initial V, which has its own")
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
    """Fit the standardisation of the vector part of the observations to the episodes ``which``."""
    if vision.vectors is not None:
        observations = (leaf_values(episodes.read(int(index)).observations) for index in which)
        vision.vectors.fit({path: each[path] for path in each if path != vision.layout.path} for each in observations)


def _frame_data(
    episodes: EpisodeCollection, split: tuple[np.ndarray, np.ndarray], options: Mapping[str, Any]
) -> tuple[FrameData, FrameData | None]:
    """Return training and held-out frames; the latter is None if the split holds nothing out."""
    train, test = split
    held_out = FrameData(episodes, test, shuffle=False, **options) if len(test) else None
    return FrameData(episodes, train, **options), held_out


@torch.no_grad()
def _without_idle_latents(vision: ConvVAE, batches: Iterable[FrameBatch]) -> tuple[ConvVAE, dict[str, int]]:
    """Remove the latents with a KL below `VAEConfig.min_nats` on these images; the one with the largest KL always stays.

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
