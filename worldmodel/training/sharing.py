"""What `fit` and `train_vae` send the other ranks, so that each takes its rows of every batch (see `shared_loss`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.data import EpisodeCollection
from worldmodel.models import MDNRNN, ConvVAE, Vision, encode_all
from worldmodel.runtime import Ranks, choose_device
from worldmodel.spaces import FlatSpace
from worldmodel.training import loop
from worldmodel.training.config import DataConfig, FrameConfig, TrainingConfig
from worldmodel.training.frames import FrameData
from worldmodel.training.windows import SequenceData, WindowSampler


def share_training(model: MDNRNN, data: SequenceData, config: DataConfig, training: TrainingConfig, seed: int) -> None:
    """Make the other ranks take part in the training of M that rank 0 begins now.

    Raises:
        ValueError: if a rank has other data or versions, or numbers of the observation may be missing.
    """
    ranks, device = Ranks.current(), model.change_scale.device.type
    if ranks.alone:
        return
    if model.extras.maskable:
        raise ValueError(
            "data: expected complete observations with several ranks, as each would weigh what was observed in its rows, got "
            "missing ones; train in one process, or fill the data (missing='interpolate')"
        )
    parts = copy.deepcopy(model).cpu(), copy.deepcopy(data.vision).cpu(), data.action_space
    keeps = data.resident is not None
    ranks.start_job(partial(_train_share, parts, _paths(data.episodes), data.sampler, keeps, config, training, seed, device))
    ranks.require_same({"data": data.episodes.fingerprint})


def share_frames(
    vision: ConvVAE,
    episodes: EpisodeCollection,
    which: np.ndarray,
    config: FrameConfig,
    training: TrainingConfig,
    options: Mapping[str, Any],
) -> None:
    """Make the other ranks take part in the training of V that rank 0 begins now.

    Args:
        vision: V, as it is before the training.
        episodes: all episodes.
        which: those to train on.
        config: which leaves are left out.
        training: how to train.
        options: of `FrameData`.

    Raises:
        ValueError: if a rank has other data or versions, or the loss is not an average over images.
    """
    ranks = Ranks.current()
    if ranks.alone:
        return
    if vision.config.free_bits != "total":
        raise ValueError(
            f"free_bits: expected 'total' with several ranks, got {vision.config.free_bits!r}, which needs averages over the "
            "batch; train in one process"
        )
    options = dict(options) | {"device": torch.device(options["device"]).type}
    ranks.start_job(
        partial(_train_share_of_frames, copy.deepcopy(vision).cpu(), _paths(episodes), which, config, training, options)
    )
    ranks.require_same({"data": episodes.fingerprint})


def _train_share(
    parts: tuple[MDNRNN, Vision, FlatSpace],
    paths: list[Path],
    sampler: WindowSampler,
    keeps: bool,
    config: DataConfig,
    training: TrainingConfig,
    seed: int,
    device_type: str,
) -> None:
    """Take part in the training of M."""
    model, reader, action_space = parts
    device = choose_device(device_type)
    episodes = EpisodeCollection.open(paths, min_length=config.min_length, leave_out=config.leave_out)
    episodes.reads_time = episodes.reads_time and model.extras.sees_time
    Ranks.current().require_same({"data": episodes.fingerprint})
    reader = reader.to(device).eval()
    steps = encode_all(episodes, reader, action_space) if keeps else None
    data = SequenceData(episodes, sampler, reader, action_space, resident=steps)
    loop.follow(model.to(device), data, config=training, seed=seed)


def _train_share_of_frames(
    vision: ConvVAE,
    paths: list[Path],
    which: np.ndarray,
    config: FrameConfig,
    training: TrainingConfig,
    options: Mapping[str, Any],
) -> None:
    """Take part in the training of V."""
    episodes = EpisodeCollection.open(paths, min_length=config.min_length, leave_out=config.leave_out)
    Ranks.current().require_same({"data": episodes.fingerprint})
    data = FrameData(episodes, which, **options)
    loop.follow(vision.to(options["device"]), data, config=training, seed=options["seed"])


def _paths(episodes: EpisodeCollection) -> list[Path]:
    return [store.path for store in episodes.stores]
