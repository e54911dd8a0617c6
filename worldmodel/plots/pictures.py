"""Pictures of image world models: reconstructions, latent traversals, dreams next to real episodes.

All pictures are (height, width, 3) uint8. `worldmodel.plots.save_image` writes one as PNG;
`worldmodel.plots.write_video` writes a sequence of them as a video.
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
    """Return V of an image world model.

    Raises:
        ValueError: if V does not encode and decode images.
    """
    if world.vision.image_layout is None or not world.vision.has_decoder:
        raise ValueError(f"world: expected a V that encodes and decodes images, got a {type(world.vision).__name__}")
    return world.vision


def colour(vision: Vision, observations: Value) -> np.ndarray:
    """Convert the images of observations (N, ...) to RGB, (N, H, W, 3) uint8; several cameras side by side."""
    assert vision.image_layouts, "expected a V for images, as `image_vision` returns it"
    found, images = leaf_values(observations), []
    for layout in vision.image_layouts:
        image = torch.as_tensor(found[layout.path]).cpu()
        images.append(layout.to_rgb(image.reshape(-1, *layout.shape)).contiguous().numpy())
    height = max(image.shape[1] for image in images)
    padded = [np.pad(image, ((0, 0), (0, height - image.shape[1]), (0, 0), (0, 0))) for image in images]
    return padded[0] if len(padded) == 1 else np.concatenate(padded, axis=2)


def grid(rows: Sequence[np.ndarray], *, gap: int = GAP) -> np.ndarray:
    """Arrange rows of pictures (N, H, W, 3) as one picture, with white gaps of ``gap`` pixels."""
    n, height, width, _ = rows[0].shape
    canvas = np.full((len(rows) * (height + gap) - gap, n * (width + gap) - gap, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = picture
    return canvas


def reconstructions(vision: Vision, observations: Value) -> np.ndarray:
    """Draw observations (N, ...) above their reconstructions from the mean of z."""
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
    """Draw one row per used latent of the image, with that latent varied in one observation.

    Latents are sorted by the variance of their mean over the observations, largest first. A latent
    counts as used if this variance exceeds `worldmodel.models.IN_USE`.

    Args:
        vision: V.
        observations: (N, ...), over which the variance is measured.
        around: index of the observation that is varied; None takes the middle one.
        most: maximum number of latents; None shows all used ones.
        steps: pictures per row.
        reach: range of the latent, in standard deviations of the prior N(0, 1).
        rows: maximum number of rows; further latents go to further columns, on the right.
    """
    mean, _ = vision.encode(observations)
    observation = mean[len(mean) // 2 if around is None else around]
    variance = mean[:, : vision.image_latent_size].var(dim=0, correction=0)
    order = variance.argsort(descending=True)[:most].tolist()
    used = [d for d in order if variance[d] > IN_USE] or order[:1]
    strips = []
    for d in used:
        z = observation.repeat(steps, 1)
        z[:, d] = torch.linspace(-reach, reach, steps, dtype=z.dtype, device=z.device)
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
    """Draw a real episode above a dream with the same start and the same actions.

    Args:
        world: V and M.
        episode: the real episode.
        prefix: number of real steps that prime M before the dream starts.
        every: steps between two pictures.
        pictures: maximum number of pictures; fewer if the episode or the dream is shorter.
        temperature: temperature of the dream.
        seed: seed of the dream.
    """
    vision = image_vision(world)
    rollout = replay(Dreams(world, 1, temperature=temperature), episode, prefix=prefix, horizon=every * pictures, seed=seed)
    shown = np.arange(0, int(rollout.lengths[0]) + 1, every)[:pictures]
    real = map_leaves(lambda leaf: leaf[prefix + shown], episode.observations)
    dreamed = world.decode(rollout.z[0, torch.as_tensor(shown, device=rollout.z.device)])
    return grid([colour(vision, real), colour(vision, dreamed)])


def dream_frames(dreams: Dreams, policy: Policy, *, horizon: int, seed: int) -> np.ndarray:
    """Return the decoded frames of one dream under a policy: (T, H, W, 3) uint8."""
    rollout = dreams.variant(num_dreams=1).rollout(policy, horizon, generator=dreams.generator(seed))
    return colour(image_vision(dreams.world), dreams.world.decode(rollout.z[0, : int(rollout.lengths[0]) + 1]))


def real_frames(world: WorldModel, episode: Episode, *, at_once: int = 256) -> Iterator[np.ndarray]:
    """Yield real frames next to their reconstructions, encoding ``at_once`` frames at a time."""
    vision = image_vision(world)
    for first in range(0, len(episode) + 1, at_once):
        part: Any = map_leaves(lambda leaf, first=first: leaf[first : first + at_once], episode.observations)
        mean: Tensor = vision.encode(part)[0]
        for real, reconstructed in zip(colour(vision, part), colour(vision, vision.decode(mean)), strict=True):
            yield grid([np.stack([real, reconstructed])])
