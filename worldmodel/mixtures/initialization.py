r"""Initial components of a mixture that cover the targets of the training data.

With random initial weights, all components start near 0 with a scale of 1. Some of them never win a target and die: the
mixture ends in a local optimum with fewer components. Here each component starts on a cluster of the targets instead.

In one dimension, k-means is solved exactly by dynamic programming (Wang & Song 2011) over `NUM_QUANTILES` quantiles of the
data: the cost of a cluster of sorted points is a difference of prefix sums. A cluster has at least one quantile, so that a
few outliers do not get a component of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_QUANTILES = 200
SMALLEST_SCALE = 0.1  # of an initial component, in the units of the target
LLOYD_ITERATIONS = 30


def clusters_per_dimension(x: Tensor, num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster each dimension on its own.

    Args:
        x: (N, D) targets.
        num_components: K.

    Returns:
        Log-weights, means and log-scales of the clusters, (K, D) each; the means ascend.
    """
    place = (torch.arange(NUM_QUANTILES, dtype=torch.float64) + 0.5) / NUM_QUANTILES
    points = torch.quantile(x.detach().cpu().double(), place, dim=0)  # (Q, D), sorted
    parts = [_cluster_sorted(points[:, d], num_components) for d in range(x.shape[1])]
    return tuple(torch.stack(part, dim=1).to(x) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def _cluster_sorted(points: Tensor, num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Optimal k-means of sorted points (Q,): log-weights, means and log-scales (K,) each."""
    zero = points.new_zeros(1)
    centred = points - points.mean()
    total, square = (torch.cat([zero, values.cumsum(0)]) for values in (centred, centred.square()))
    index = torch.arange(len(total))
    size = (index - index.unsqueeze(1)).double()  # (begin, end)
    spread = square - square.unsqueeze(1) - (total - total.unsqueeze(1)).square() / size.clamp(min=1)
    cost = torch.where(size > 0, spread.clamp(min=0), torch.inf)
    best, choices = cost[0], []
    for _ in range(1, num_components):
        best, begin = (best.unsqueeze(1) + cost).min(dim=0)
        choices.append(begin)
    ends = [len(points)]
    for begin in reversed(choices):
        ends.append(int(begin[ends[-1]]))
    bounds = [0, *reversed(ends)]
    parts = [points[begin:end] for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]
    weight = torch.tensor([len(part) / len(points) for part in parts], dtype=torch.float64)
    mean = torch.stack([part.mean() for part in parts])
    scale = torch.stack([part.std(correction=0) for part in parts]).clamp(min=SMALLEST_SCALE)
    return weight.log(), mean, scale.log()


def clusters_of_vectors(x: Tensor, num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster vectors by k-means, from starts that are far apart (each the point farthest from the ones before).

    Args:
        x: (N, D) targets.
        num_components: K.

    Returns:
        Log-weights (K,), means (K, D) and log-scales (K, D) of the clusters.
    """
    low, high = (torch.quantile(x.double(), q, dim=0) for q in (0.5 / NUM_QUANTILES, 1 - 0.5 / NUM_QUANTILES))
    points = x.double().clamp(low, high)  # outliers must not become clusters
    starts = [points.mean(dim=0)]
    for _ in range(1, num_components):
        distance = torch.stack([(points - start).square().sum(dim=1) for start in starts]).amin(dim=0)
        starts.append(points[distance.argmax()])
    mean = torch.stack(starts)
    for _ in range(LLOYD_ITERATIONS):
        member = torch.nn.functional.one_hot(torch.cdist(points, mean).argmin(dim=1), num_components).double()  # (N, K)
        count = member.sum(dim=0).unsqueeze(1)
        mean = torch.where(count > 0, member.T @ points / count.clamp(min=1), mean)
    scale = (member.T @ points.square() / count.clamp(min=1) - mean.square()).clamp(min=SMALLEST_SCALE**2).sqrt()
    weight = (count[:, 0] + 0.01 * len(x)) / (len(x) * (1 + 0.01 * num_components))
    return weight.log().to(x), mean.to(x), scale.log().to(x)
