"""Pictures of a world of images: reconstructions, the effect of each latent, and a dream next to the real episode.

All pictures are (height, width, 3) uint8; `worldmodel.plots.report.save_image` writes them, and
`worldmodel.plots.video.write_video` makes a film of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.data import Episode
from worldmodel.dream import Dreams, Policy
from worldmodel.evaluation import replay
from worldmodel.models import IN_USE, Vision, WorldModel
from worldmodel.spaces import Value, leaf_values, map_leaves

GAP = 2  # white pixels between the pictures of a grid


def image_vision(world: WorldModel) -> Vision:
    """Return V of a world of images.

    Raises:
        ValueError: if V does not encode and decode images.
    """
    if world.vision.image_layout is None or not world.vision.has_decoder:
        raise ValueError(f"world: expected a V that encodes and decodes images, got a {type(world.vision).__name__}")
    return world.vision


def colour(vision: Vision, observations: Value) -> np.ndarray:
    """The images of observations (N, ...) as (N, H, W, 3) uint8; where there are not three channels, the first as grey."""
    layout = vision.image_layout
    assert layout is not None, "a V of images, as `image_vision` returns it"
    images = torch.as_tensor(leaf_values(observations)[layout.path]).cpu()
    return layout.to_rgb(images.reshape(-1, *layout.shape)).contiguous().numpy()


def grid(rows: Sequence[np.ndarray], *, gap: int = GAP) -> np.ndarray:
    """Lay rows of pictures (N, H, W, 3) out as one picture, with white gaps."""
    n, height, width, _ = rows[0].shape
    canvas = np.full((len(rows) * (height + gap) - gap, n * (width + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = picture
    return canvas


def reconstructions(vision: Vision, observations: Value) -> np.ndarray:
    """Originals above what V makes of them, by the mean of z; observations (N, ...)."""
    mean, _ = vision.encode(observations)
    return grid([colour(vision, observations), colour(vision, vision.decode(mean))])


def traversals(
    vision: Vision,
    observations: Value,
    *,
    around: int | None = None,
    most: int | None = None,
    steps: int = 7,
    reach: float = 3.0,
    rows: int = 16,
) -> np.ndarray:
    """What each used latent of the image does: a row each, an observation with that latent from -reach to reach.

    Args:
        vision: V.
        observations: (N, ...), over which the use of a latent is measured; those that vary most come first.
        around: number of the observation that is changed; None takes the middle one.
        most: so many latents at most; None shows all in use.
        steps: pictures in a row.
        reach: in standard deviations of the prior, which has mean 0 and variance 1: one episode may hardly move a latent.
        rows: at most; what is left stands in further columns, to the right.
    """
    mean, _ = vision.encode(observations)
    observation = mean[len(mean) // 2 if around is None else around]
    variance = mean[:, : vision.image_latent_size].var(dim=0, correction=0)
    order = variance.argsort(descending=True)[:most].tolist()
    used = [d for d in order if variance[d] > IN_USE] or order[:1]
    strips = []
    for d in used:
        z = observation.repeat(steps, 1)
        z[:, d] = torch.linspace(-reach, reach, steps, device=z.device)
        strips.append(colour(vision, vision.decode(z)))
    columns = [grid(strips[first : first + rows]) for first in range(0, len(strips), rows)]
    height = columns[0].shape[0]
    filled = [np.pad(column, ((0, height - len(column)), (0, 0), (0, 0)), constant_values=255) for column in columns]
    return grid([np.stack(filled)], gap=4 * GAP)


def dream_strip(
    world: WorldModel,
    episode: Episode,
    *,
    prefix: int = 0,
    every: int = 5,
    pictures: int = 10,
    temperature: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """What really happened above a dream from the same start under the same actions, every few steps.

    Args:
        world: V and M.
        episode: the real episode.
        prefix: real steps that prime M before the dream begins.
        every: steps between pictures.
        pictures: how many, where the episode and the dream last so long.
        temperature: of the dream.
        seed: of the dream.
    """
    vision = image_vision(world)
    rollout = replay(Dreams(world, 1, temperature=temperature), episode, prefix=prefix, horizon=every * pictures, seed=seed)
    shown = np.arange(0, int(rollout.lengths[0]) + 1, every)[:pictures]
    real = map_leaves(lambda leaf: leaf[prefix + shown], episode.observations)
    dreamed = world.decode(rollout.z[0, torch.as_tensor(shown, device=rollout.z.device)])
    return grid([colour(vision, real), colour(vision, dreamed)])


def dream_frames(dreams: Dreams, policy: Policy, *, horizon: int, seed: int) -> np.ndarray:
    """One dream of a policy, decoded: (T, H, W, 3)."""
    rollout = dreams.variant(num_dreams=1).rollout(policy, horizon, generator=dreams.generator(seed))
    return colour(image_vision(dreams.world), dreams.world.decode(rollout.z[0, : int(rollout.lengths[0]) + 1]))


def real_frames(world: WorldModel, episode: Episode, *, at_once: int = 256) -> Iterator[np.ndarray]:
    """The frames of a real episode, each beside what V makes of it."""
    vision = image_vision(world)
    for first in range(0, len(episode) + 1, at_once):
        part: Any = map_leaves(lambda leaf, first=first: leaf[first : first + at_once], episode.observations)
        mean: Tensor = vision.encode(part)[0]
        for real, seen in zip(colour(vision, part), colour(vision, vision.decode(mean)), strict=True):
            yield grid([np.stack([real, seen])])
