"""Train V for observations with several images: a `ConvVAE` for each, and the standardisation of all other numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.data import EpisodeCollection, split_episodes
from worldmodel.models import VISION_FILE, VISION_FILES, Cameras, VAEConfig
from worldmodel.runtime import RunConfig, check_integer, choose_device, led, runs, single_writer
from worldmodel.spaces import find_images, leaf_values, leaves
from worldmodel.training.config import FrameConfig, TrainingConfig
from worldmodel.training.fit_vision import train_vae

RUN_FILE, CAMERAS = "train_cameras.json", "cameras"
OUTPUTS = (RUN_FILE, *VISION_FILES.outputs, CAMERAS, ".*.tmp")
RUN: dict[str, Any] = {"marker": RUN_FILE, "format": "worldmodel.train_cameras", "version": 1, "replaces": OUTPUTS}


@led
@single_writer(result=VISION_FILE)
def train_cameras(
    data: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    config: VAEConfig | None = None,
    frame_config: FrameConfig | None = None,
    training_config: TrainingConfig | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    run: RunConfig | None = None,
) -> Cameras:
    """Train a V for each image of the observations, with the same sizes and updates, and write them as one V.

    Args:
        data: path of a store, or several of the same environment.
        out: directory for V; the V of each camera goes to ``out/cameras/NUMBER``.
        config: sizes and loss of each camera's V.
        frame_config: batches of frames.
        training_config: how to train each.
        seed: see `train_vae`; each camera has its own.
        device: where V and its training are.
        run: see `train_vae`; the stages are "train V of CAMERA".

    Returns:
        V, on ``device``, in evaluation mode.

    Raises:
        ValueError: if the observations hold no image, an argument is out of range, or a resumed run was started with others.
        FileExistsError: if ``out`` holds something that may not be replaced.
        KeyboardInterrupt: on Ctrl-C, after the state has been saved; the same call resumes.
    """
    frame_config, training_config = frame_config or FrameConfig(), training_config or TrainingConfig()
    config, run, device = config or VAEConfig(), run or RunConfig(), choose_device(device)
    seed = check_integer(seed, "seed", least=0)
    episodes = EpisodeCollection.open(data, min_length=frame_config.min_length, leave_out=frame_config.leave_out)
    space = episodes.observation_space
    paths = [image.path for image in find_images(space)]
    if not paths:
        raise ValueError(f"data: expected observations with images, got {space}")
    arguments = {
        "data_fingerprint": episodes.fingerprint,
        "seed": seed,
        "config": vars(config),
        "frame_config": frame_config.identity(),
        "training_config": training_config.identity(),
    }
    directory = runs.prepare_run(out, arguments, run=run, **RUN)
    if (directory / VISION_FILE).is_file():
        return Cameras.from_pretrained(directory, device=device)
    visions = []
    with run.reporter() as report:
        for number, path in enumerate(paths):
            others = [other for other, _ in leaves(space) if other != path]
            vision = train_vae(
                data,
                out=directory / CAMERAS / str(number),
                config=config,
                frame_config=replace(frame_config, leave_out=(*frame_config.leave_out, *others)),
                training_config=training_config,
                seed=seed + number,
                device=device,
                run=run.within(report, f"train V of {path or 'image'}"),
            )
            visions.append(vision)
    cameras = Cameras(space, visions)
    _fit_vectors(cameras, episodes, split_episodes(len(episodes), test_fraction=frame_config.test_fraction, seed=seed)[0])
    trained = {path: vision.provenance for path, vision in zip(paths, visions, strict=True)}
    cameras.to(device).eval().write(directory, provenance={**arguments, "cameras": trained})
    return cameras


def _fit_vectors(cameras: Cameras, episodes: EpisodeCollection, which: np.ndarray) -> None:
    """Fit the standardisation of all numbers but the images to the episodes ``which``."""
    if cameras.vectors is None:
        return
    kept = {path for path, _ in leaves(cameras.vectors.observation_space)}
    read = (leaf_values(episodes.read(int(index)).observations) for index in which)
    cameras.vectors.fit({path: each[path] for path in each if path in kept} for each in read)
