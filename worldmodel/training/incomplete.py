"""Data in which numbers are missing: what M must see of it, and which first observations can begin a dream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from worldmodel.data import EpisodeCollection, joined_missing
from worldmodel.mixtures import LatentLayout
from worldmodel.models import MDNRNN, ExtraInputs, maskable_columns

TIMED_EPISODES = 500  # whose steps give the usual time
Missing = Mapping[str, Sequence[int]]


def missing_in(episodes: EpisodeCollection, tests: EpisodeCollection | None) -> Missing:
    """Return the numbers of the observation that may be missing in training or test data, by leaf."""
    return joined_missing(each.missing for each in (episodes, tests) if each is not None)


def extra_inputs(episodes: EpisodeCollection, layout: LatentLayout, missing: Missing) -> ExtraInputs:
    """Return the extra inputs of a new M."""
    return ExtraInputs(maskable=maskable_columns(layout, missing), usual_time=usual_time(episodes))


def usual_time(episodes: EpisodeCollection) -> float | None:
    """Return the median time of a step in seconds, of at most `TIMED_EPISODES` episodes; None if it is not recorded."""
    if not episodes.reads_time:
        return None
    count = min(len(episodes), TIMED_EPISODES)
    chosen = [episodes.read(number * len(episodes) // count).elapsed for number in range(count)]
    return float(np.median(np.concatenate([each for each in chosen if each is not None])))


def require_inputs(model: MDNRNN, layout: LatentLayout, missing: Missing, data: Sequence[EpisodeCollection | None]) -> None:
    """Raise if numbers may be missing that a trained M knows only as complete; leave out times that it does not see.

    Raises:
        ValueError: naming the number.
    """
    for episodes in data:
        if episodes is not None and not model.extras.sees_time:
            episodes.reads_time = False
    unknown = sorted(set(maskable_columns(layout, missing)) - set(model.extras.maskable))
    if unknown:
        part = next(part for part in layout.parts if part.start <= unknown[0] < part.stop)
        raise ValueError(
            f"initial: expected a world model of data in which {part.name or 'the observation'!r} may be missing, got one of "
            "complete data; train a new one, or fill the data (missing='interpolate')"
        )


def complete_starts(mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first observations (N, D) that are complete; if none is, all, with means in place of what is missing."""
    complete = ~mean.isnan().any(dim=-1)
    if bool(complete.any()):
        return mean[complete], log_variance[complete]
    known = torch.where(mean.isnan(), mean.nanmean(dim=0), mean)
    return known.nan_to_num(0.0), log_variance
