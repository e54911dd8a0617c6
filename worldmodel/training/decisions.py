"""What `fit` decides where its configuration leaves something open: from the data, or from the run that it resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from worldmodel.data import EpisodeCollection
from worldmodel.mixtures import LatentLayout
from worldmodel.models import AUTO_LATENT_HEAD, DEFAULT_LATENT_HEAD, DEFAULT_OUTCOME_SIZE, MDNRNN, MDNRNNConfig
from worldmodel.runtime import RunConfig, files
from worldmodel.training.config import TrainingConfig
from worldmodel.training.head_choice import has_choice
from worldmodel.training.reward_atoms import with_reward_fields

FIT_FORMAT, FIT_VERSION, FIT_FILE = "worldmodel.fit", 1, "fit.json"


def decide(
    config: MDNRNNConfig | None, episodes: EpisodeCollection, out: Path, run: RunConfig, *, numbers_missing: bool = False
) -> MDNRNNConfig:
    """Decide the fields of M's configuration that depend on the data.

    If ``numbers_missing``, the latent head is one that knows the distribution of missing numbers given the others.
    """
    config = config or MDNRNNConfig()
    if numbers_missing and config.latent_head == AUTO_LATENT_HEAD:
        config = replace(config, latent_head=DEFAULT_LATENT_HEAD)
    if not any(store.recipe.get("rewards", True) for store in episodes.stores):
        config = replace(config, reward_head=False)  # none were recorded
    if config.termination_head is None:
        config = replace(config, termination_head=any_terminates(episodes))
    record = _record(out, run)
    resumed = record.get("mdnrnn")
    if resumed and config.latent_head == AUTO_LATENT_HEAD and not record.get("latent_head_choice"):  # of an earlier version
        config = replace(config, latent_head=resumed.get("latent_head", DEFAULT_LATENT_HEAD))
    if resumed and config.min_scale is None and not record.get("sigma_floors"):
        config = replace(config, min_scale=resumed.get("min_scale"))
    if config.outcome_size is None:
        config = replace(config, outcome_size=resumed.get("outcome_size", 0) if resumed else DEFAULT_OUTCOME_SIZE)
    return with_reward_fields(config, episodes, resumed=resumed)


def _record(out: Path, run: RunConfig) -> dict[str, Any]:
    """Return the record of the run to resume, an empty one if there is none."""
    if run.overwrite or not run.resume or not (out / FIT_FILE).is_file():
        return {}
    return files.read_json(out / FIT_FILE, format=FIT_FORMAT, version=FIT_VERSION)


def with_rate(config: TrainingConfig, model: MDNRNN, out: Path, run: RunConfig) -> TrainingConfig:
    """Decide the learning rate; a resumed run keeps its own, as earlier versions had another default."""
    rate = _record(out, run).get("training_config", {}).get("learning_rate")
    config = config if config.learning_rate is not None else replace(config, learning_rate=rate)
    return config.resolve(hidden_size=model.config.hidden_size)


def left_open(config: MDNRNNConfig | None, layout: LatentLayout) -> dict[str, bool]:
    """Return what a new M's configuration leaves to the data: the choice of the latent head, and the floors of its sigmas."""
    if config is None:
        return {"latent_head_choice": False, "sigma_floors": False}
    return {"latent_head_choice": has_choice(config, layout), "sigma_floors": config.min_scale is None}


def any_terminates(episodes: EpisodeCollection) -> bool:
    """Return whether any episode terminates."""
    return any(bool(episodes.read(i, int(episodes.lengths[i]) - 1).terminations[-1]) for i in range(len(episodes)))
