"""Fill what is missing in a recorded episode by samples that fit everything that was observed, before and after."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.data import Episode
from worldmodel.mixtures import categorical, marginal_log_prob, sample_given
from worldmodel.models import MDNRNN, State, WorldModel, encode_episodes, open_world
from worldmodel.runtime import check_integer
from worldmodel.spaces import Value, build_value, leaf_values, to_numpy

CANDIDATES = 32


@torch.no_grad()
def impute(
    world: WorldModel | str | Path, episode: Episode, num_samples: int = 1, *, candidates: int = CANDIDATES, seed: int = 0
) -> Value:
    """Sample the missing numbers of an episode.

    Each sample is drawn by a particle filter of its own (Gordon et al. 1993): candidates dream what is missing, weigh by the
    likelihood of what was observed next, and are resampled by these weights. So a sample fits what was observed before a gap
    and after it, and the samples are independent. With more candidates their distribution approaches p(missing | observed).
    M need not have seen incomplete data.

    Args:
        world: the world model, or its directory.
        episode: the episode; missing numbers are NaN. Actions are given.
        num_samples: N, number of samples.
        candidates: particles of each sample; 1 ignores what comes after a gap.
        seed: of all random numbers.

    Returns:
        N observations, nested like the observation space: arrays (N, L + 1, ...). Numbers that were observed are as they were.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if the latent head does not know the distribution of some numbers given others (`MixtureHead` does).
    """
    world, count = open_world(world), check_integer(num_samples, "num_samples", least=1)
    particles = check_integer(candidates, "candidates", least=1)
    generator = torch.Generator(world.device).manual_seed(check_integer(seed, "seed", least=0))
    episode = episode if world.mdnrnn.extras.sees_time else replace(episode, elapsed=None)
    steps = encode_episodes([episode], world.vision, world.action_features)
    z = _sample(world, steps.mean, steps.action, count, particles, generator)
    decoded, given = leaf_values(to_numpy(world.decode(z))), leaf_values(episode.observations)
    leaves = {path: _kept(np.asarray(given[path]), leaf) for path, leaf in decoded.items()}
    return build_value(world.observation_space, leaves)


def _sample(world: WorldModel, z: Tensor, action: Tensor, count: int, particles: int, generator: torch.Generator) -> Tensor:
    """Sample the missing numbers of z (L + 1, D): (count, L + 1, D)."""
    model, rows, observed = world.mdnrnn, count * particles, ~z.isnan()
    at = torch.randint(len(world.start_mean), (rows,), generator=generator, device=z.device)
    path = z.expand(rows, *z.shape).clone()
    path[:, 0] = torch.where(observed[0], z[0], world.start_mean[at])
    state, weight = model.initial_state(rows), z.new_zeros(count, particles)
    uncertain = not bool(observed[0].all())
    for t in range(len(action)):
        prediction, state = model.step(path[:, t], action[t].expand(rows, -1), state)
        target, seen = path[:, t + 1], observed[t + 1].expand(rows, -1)
        if uncertain:
            weight = weight + marginal_log_prob(prediction.latent, target, seen).reshape(count, particles)
        if not bool(observed[t + 1].all()):
            path[:, t + 1] = bounded(model, sample_given(prediction.latent, target, seen, generator=generator))
            uncertain = True
        if uncertain and _effective(weight) < particles / 2:
            chosen = _resample(weight, particles, generator)
            path, state = path[chosen], State(*(part[:, chosen] for part in state))
            weight = torch.zeros_like(weight)
    return path[_resample(weight, 1, generator)]


def bounded(model: MDNRNN, z: Tensor) -> Tensor:
    """Clip samples to the bounds of dreams."""
    return z.clamp(model.latent_low, model.latent_high)


def _effective(weight: Tensor) -> float:
    """Return the smallest effective number of particles, of log-weights (count, particles)."""
    return float((1 / weight.softmax(dim=-1).square().sum(dim=-1)).min())


def _resample(weight: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Draw particles of each sample by log-weights (count, particles): indices (count * number,)."""
    count, particles = weight.shape
    index = categorical(weight.unsqueeze(1).expand(count, number, particles), generator=generator)
    return (index + particles * torch.arange(count, device=weight.device).unsqueeze(1)).flatten()


def _kept(given: np.ndarray, filled: Any) -> np.ndarray:
    """Return sampled observations (N, L + 1, ...) with all numbers that were observed (L + 1, ...) as they were."""
    filled = np.asarray(filled)
    known = ~np.isnan(given) if given.dtype.kind == "f" else np.ones(given.shape, dtype=bool)
    return np.where(known, given, filled).astype(given.dtype)
