r"""Initial components of a mixture, fitted to training data in closed form.

With random initial weights, all components start near 0 with a scale of 1, and gradients do the rest. That is slow where the
mean depends on its inputs with large coefficients, and some components never win a target: the mixture ends in a local
optimum with fewer components. Here the head starts from a *mixture of linear regressions* on its features:

1. least trimmed squares finds one regression after the other, each on the steps that none before explains;
2. what remains gets wide components: k-means clusters of the residuals. In one dimension k-means is solved exactly by dynamic
   programming (Wang & Song 2011), here over `NUM_QUANTILES` quantiles: the cost of a cluster of sorted points is a difference
   of prefix sums;
3. a few steps of EM, in which each component gets its own regression and the weights depend on the features.

If EM is too expensive, all components share one ridge regression and start at the clusters of its residuals.

A choice, such as the atoms of a reward, starts from a multinomial logistic regression.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_QUANTILES = 200  # a cluster has at least one of them, so that a few outliers do not get a component of their own
SMALLEST_SCALE = 0.1  # of a component in EM, in the units of the target
LEAST_SCALE = 3e-3  # of an initial component with a weight of at least `LEAST_WEIGHT`
LEAST_WEIGHT = 0.01  # of a component whose standard deviation tells how little noise there is
SMALLEST_RIDGE = 1e-6
EM_ITERATIONS = 14
EM_OPERATIONS = 2e10  # multiplications that EM may take; at larger sizes the components share their regression
LLOYD_ITERATIONS = 30
PEEL_STEPS = 4_096  # rows on which the regressions are found; EM then uses all
PEEL_ITERATIONS = 8
GATES_FROM = 4  # steps of EM before the weights depend on the features
GATE_RIDGE, LARGEST_STEP = 1e-5, 8.0
NEWTON_STEPS, NEWTON_OPERATIONS = 12, 5e9  # of the regression of a choice, and multiplications that it may take
EVENTS_PER_COEFFICIENT = 10  # of that regression, at least
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
NUM_ANCHORS = 8
INLIER = 3.5
MIN_REST, MAX_REST = 20, 2  # fewest unexplained rows that get components of their own, and the number of these
WIDER = 1.5  # scale of a copied component, relative to the original


@dataclass(frozen=True)
class Components:
    """Mixtures of linear regressions, one per dimension.

    Args:
        log_weights: (K, D) biases of the logits.
        gate: (K, D, F) coefficients of the features in the logits.
        gate_coupling: (K, D, D) coefficients of the target's earlier dimensions there; zeros unless autoregressive.
        bias: (K, D) of the means.
        weight: (K, D, F) coefficients of the features in the means.
        coupling: (K, D, D) coefficients of the target's earlier dimensions there; zeros unless autoregressive.
        log_scale: (K, D) of the residuals.
        spread: (D,) smallest standard deviation of the residuals of a component that has a weight of at least `LEAST_WEIGHT`.
    """

    log_weights: Tensor
    gate: Tensor
    gate_coupling: Tensor
    bias: Tensor
    weight: Tensor
    coupling: Tensor
    log_scale: Tensor
    spread: Tensor


@torch.no_grad()
def fit_components(
    features: Tensor, target: Tensor, ridge: Tensor, num_components: int, *, autoregressive: bool = False
) -> Components:
    """Fit a mixture of linear regressions to each dimension of the target.

    Args:
        features: (N, F).
        target: (N, D).
        ridge: (F,) penalty of the squared coefficient of each feature, if it has unit variance, relative to the steps.
        num_components: K.
        autoregressive: whether the regressions of dimension d see the target's dimensions before d.
    """
    n, d = target.shape
    seen, x = features.detach().double(), target.detach().double()
    affordable = EM_ITERATIONS * num_components * d * n * (features.shape[1] + autoregressive * d) ** 2 <= EM_OPERATIONS
    seen = torch.cat([seen, x], dim=1) if autoregressive else seen
    f, parts = features.shape[1], []
    penalty = torch.cat([ridge.double(), x.new_full((d,), SMALLEST_RIDGE)])
    gram = None if affordable else _moments(seen, x)
    for j in range(d):
        used = f + j * autoregressive
        if gram is None:
            parts.append(_fit_dimension(seen[:, :used], x[:, j], penalty[:used], num_components))
        else:
            parts.append(_cluster_residuals(seen[:, :used], x[:, j], penalty[:used], num_components, *gram, j))
    logits, means = (
        torch.stack([torch.nn.functional.pad(part[i], (0, f + d - part[i].shape[1] + 1)) for part in parts], dim=1)
        for i in (0, 1)
    )  # (K, D, F + D + 1), where the bias comes first
    log_scale, spread = (torch.stack([part[i] for part in parts], dim=-1) for i in (2, 3))
    split = [part for each in (logits, means) for part in (each[..., 0], each[..., 1 : f + 1], each[..., f + 1 :])]
    return Components(*(part.to(target.dtype) for part in (*split, log_scale, spread)))


def _moments(inputs: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return covariances of the inputs (N, F) with each other, and with the targets (N, D): (F, F) and (F, D)."""
    centred = inputs - inputs.mean(dim=0)
    return centred.T @ centred / len(x), centred.T @ (x - x.mean(dim=0)) / len(x)


def _cluster_residuals(
    inputs: Tensor, x: Tensor, ridge: Tensor, num_components: int, covariance: Tensor, with_target: Tensor, j: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fit one regression for all components, and cluster its residuals; arguments and result are those of `_fit_dimension`."""
    f = inputs.shape[1]
    variance = covariance.diagonal()[:f]
    varies = variance > 1e-12  # constant inputs get no coefficient
    matrix = covariance[:f, :f] + torch.diag(torch.where(varies, ridge * variance, 1.0))
    slope = torch.linalg.solve(matrix, torch.where(varies, with_target[:f, j], 0.0))
    residual = x - inputs @ slope
    log_weights, bias, log_scale = cluster(residual, num_components)
    means = torch.cat([bias.unsqueeze(1), slope.expand(num_components, -1)], dim=1)
    logits = torch.zeros_like(means)
    logits[:, 0] = log_weights
    return logits, means, log_scale, residual.std()


def _fit_dimension(inputs: Tensor, x: Tensor, ridge: Tensor, num_components: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fit one target (N,) on inputs (N, F): logits and means (K, 1 + F), the bias first, log-scales (K,) and the spread ()."""
    design, centre, spread = _standardised(inputs)  # (N, F + 1)
    ridge = torch.nn.functional.pad(ridge, (0, 1), value=SMALLEST_RIDGE)  # of the constant
    solution, log_scale, log_weights = _peel(design[:PEEL_STEPS], x[:PEEL_STEPS], ridge, num_components)
    gates = torch.zeros_like(solution)
    gates[:, -1] = log_weights
    for number in range(EM_ITERATIONS):
        deviation = (x - (design @ solution.T).T) / log_scale.exp().unsqueeze(1)  # (K, N)
        posterior = ((design @ gates.T).T - 0.5 * deviation.square() - log_scale.unsqueeze(1)).softmax(dim=0)
        solution = torch.stack([_ridge(design, x, ridge, each) for each in posterior])
        mass = posterior.sum(dim=1)
        square = (posterior * (x - (design @ solution.T).T).square()).sum(dim=1) / mass.clamp(min=1e-9)
        sure = mass >= LEAST_WEIGHT * len(x)  # else a component could collapse on a few rows
        log_scale = torch.where(sure, square.sqrt().clamp(min=LEAST_SCALE), square.sqrt().clamp(min=SMALLEST_SCALE)).log()
        if number < GATES_FROM or num_components == 1:
            gates[:, -1] = ((mass + 0.01 * len(x)) / (len(x) * (1 + 0.01 * num_components))).log()
        else:
            gates = _newton(gates, design[:PEEL_STEPS], posterior[:, :PEEL_STEPS], ridge)
    weights = [each[:, :-1] / spread for each in (gates, solution)]
    biases = [each[:, -1:] - weight @ centre.unsqueeze(1) for each, weight in zip((gates, solution), weights, strict=True)]
    logits, means = (torch.cat(pair, dim=1) for pair in zip(biases, weights, strict=True))
    return logits, means, log_scale, torch.where(sure, square.sqrt(), torch.inf).min()


def _newton(gates: Tensor, design: Tensor, posterior: Tensor, ridge: Tensor) -> Tensor:
    """One Newton step of multinomial logistic regression of responsibilities (K, N), its largest change of a logit bounded."""
    k, f = gates.shape
    p = (design @ gates.T).T.softmax(dim=0)  # (K, N)
    penalty = (GATE_RIDGE + ridge) * len(design)
    slope = (p - posterior) @ design + gates * penalty
    hessian = torch.empty(k, f, k, f, dtype=design.dtype, device=design.device)
    for i in range(k):
        for j in range(i + 1):
            curvature = p[i] * (float(i == j) - p[j])
            block = (design * curvature.unsqueeze(1)).T @ design  # symmetric
            hessian[i, :, j] = hessian[j, :, i] = block
    matrix = hessian.reshape(k * f, k * f) + torch.diag(penalty.repeat(k))
    step = torch.linalg.solve(matrix, slope.flatten()).reshape(k, f)
    largest = (design @ step.T).abs().max()
    return gates - step * (LARGEST_STEP / largest).clamp(max=1.0)


def _peel(design: Tensor, x: Tensor, ridge: Tensor, num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find regressions one after the other, each on the rows that none before explains: (K, F + 1), log-scales, log-weights.

    Each is a regression of least trimmed squares (Rousseeuw 1984): it fits the quarter of the rows that it explains best, from
    the best of several intercepts; then it takes all rows within `INLIER` deviations.
    """
    left = torch.ones(len(x), dtype=torch.bool, device=x.device)
    found: list[tuple[Tensor, Tensor, float]] = []
    while not found or (len(found) < num_components and int(left.sum()) > max(2 * len(design.T), len(x) // 200)):
        rows, y = design[left], x[left]
        best = min((_trimmed(rows, y, ridge, start) for start in _starts(rows, y, ridge)), key=lambda fit: float(fit[1]))
        solution, scale = best
        for _ in range(PEEL_ITERATIONS):
            residual = (y - rows @ solution).abs()
            near = residual < INLIER * scale
            solution = _ridge(rows[near], y[near], ridge)
            scale = (y[near] - rows[near] @ solution).square().mean().sqrt().clamp(min=1e-3)
        near = (y - rows @ solution).abs() < INLIER * scale
        found.append((solution, scale, float(near.sum())))
        left[left.nonzero()[near, 0]] = False
    found += _of_the_rest(found, design[left], x[left], num_components - len(found))
    mass = x.new_tensor([each[2] for each in found]).clamp(min=1.0)
    scale = torch.stack([each[1] for each in found])
    return torch.stack([each[0] for each in found]), scale.log(), (mass / mass.sum()).log()


def _of_the_rest(
    found: list[tuple[Tensor, Tensor, float]], design: Tensor, x: Tensor, missing: int
) -> list[tuple[Tensor, Tensor, float]]:
    """Return the missing components: clusters of the rows that no regression explains, then wider copies of the heaviest.

    Without components for the rest, EM would widen the regressions until they explain it.
    """
    heaviest = sorted(found, key=lambda fit: -fit[2])
    extra: list[tuple[Tensor, Tensor, float]] = []
    if missing > 0 and len(x) >= MIN_REST:
        shared = heaviest[0][0]
        log_weights, means, log_scales = cluster(x - design @ shared, min(missing, MAX_REST))
        for log_weight, mean, log_scale in zip(log_weights, means, log_scales, strict=True):
            solution = shared.clone()
            solution[-1] += mean
            extra.append((solution, log_scale.exp(), len(x) * log_weight.exp().item()))
    for i in range(missing - len(extra)):
        solution, scale, mass = heaviest[i % len(heaviest)]
        extra.append((solution, WIDER ** (1 + i // len(heaviest)) * scale, mass))
    return extra


def _starts(rows: Tensor, y: Tensor, ridge: Tensor) -> Iterator[Tensor]:
    """Yield solutions to start from: one slope with several intercepts, and fits of the rows around several rows."""
    shared = _ridge(rows, y, ridge)
    residual = y - rows @ shared
    for level in LEVELS:
        start = shared.clone()
        start[-1] += torch.quantile(residual, level)
        yield start
    for i in range(NUM_ANCHORS):
        distance = (rows - rows[i * len(rows) // NUM_ANCHORS]).square().sum(dim=1)
        near = distance <= torch.quantile(distance, 0.25)
        yield _ridge(rows[near], y[near], ridge)


def _trimmed(rows: Tensor, y: Tensor, ridge: Tensor, solution: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the quarter of the rows that is fitted best, from a start: solution and scale."""
    for _ in range(PEEL_ITERATIONS):
        residual = (y - rows @ solution).abs()
        near = residual <= residual.kthvalue(1 + (len(y) - 1) // 4).values  # as for the quantile, which sorts
        solution = _ridge(rows[near], y[near], ridge)
    residual = (y - rows @ solution).abs()
    return solution, (torch.quantile(residual, 0.25) / 0.3186).clamp(min=1e-3)  # 0.3186: this quantile of a standard normal


def _ridge(design: Tensor, x: Tensor, ridge: Tensor, row_weight: Tensor | None = None) -> Tensor:
    """Ridge regression, weighted if ``row_weight`` (N,) is given: (F,)."""
    weighted, total = design, x.new_tensor(float(max(1, len(x))))
    if row_weight is not None:
        weighted, total = design * row_weight.unsqueeze(1), row_weight.sum().clamp(min=1.0)
    return torch.linalg.solve(weighted.T @ design + torch.diag(ridge * total), weighted.T @ x)


def cluster(x: Tensor, num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster numbers (N,) by optimal k-means of their quantiles: log-weights, means and log-scales, (K,) each, sorted."""
    place = (torch.arange(NUM_QUANTILES, dtype=x.dtype, device=x.device) + 0.5) / NUM_QUANTILES
    points = torch.quantile(x, place)
    centred = points - points.mean()
    total, square = (torch.nn.functional.pad(values.cumsum(0), (1, 0)) for values in (centred, centred.square()))
    index = torch.arange(len(total), device=x.device)
    size = (index - index.unsqueeze(1)).to(x.dtype)  # of the cluster (begin, end)
    spread = square - square.unsqueeze(1) - (total - total.unsqueeze(1)).square() / size.clamp(min=1)
    cost = torch.where(size > 0, spread.clamp(min=0), torch.inf)
    best, choices = cost[0], []
    for _ in range(1, num_components):
        best, begin = (best.unsqueeze(1) + cost).min(dim=0)
        choices.append(begin)
    bounds = [len(points)]
    for begin in reversed(choices):
        bounds.insert(0, int(begin[bounds[0]]))
    parts = [points[begin:end] for begin, end in zip([0, *bounds], bounds, strict=False)]
    weight = torch.stack([x.new_tensor(len(part) / len(points)) for part in parts])
    scale = torch.stack([part.std(correction=0) for part in parts]).clamp(min=SMALLEST_SCALE)
    return weight.log(), torch.stack([part.mean() for part in parts]), scale.log()


@torch.no_grad()
def fit_choice(features: Tensor, index: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a choice by multinomial logistic regression: biases (C,) and coefficients (C, F) of the logits.

    It uses as many rows as are affordable. All coefficients are 0 if fewer than `EVENTS_PER_COEFFICIENT` of these rows per
    coefficient are not the most frequent choice, as the regression would overfit (Peduzzi et al. 1996).

    Args:
        features: (N, F).
        index: (N,) int64, what was chosen.
        frequencies: (C,) positive, of each choice, where the fit starts.
    """
    size = len(frequencies) * (features.shape[1] + 1)
    n = min(len(features), int(NEWTON_OPERATIONS / NEWTON_STEPS / size**2))
    design, centre, spread = _standardised(features[:n].detach().double())
    logits = torch.nn.functional.pad(frequencies.double().log().unsqueeze(1), (features.shape[1], 0))  # (C, F + 1)
    chosen = torch.nn.functional.one_hot(index[:n], len(frequencies)).T.to(design.dtype)  # (C, N)
    if n - chosen.sum(dim=1).max() >= EVENTS_PER_COEFFICIENT * size:
        for _ in range(NEWTON_STEPS):
            logits = _newton(logits, design, chosen, design.new_full(design.shape[1:], SMALLEST_RIDGE))
    weight = logits[:, :-1] / spread
    return (logits[:, -1] - weight @ centre).to(features.dtype), weight.to(features.dtype)


def _standardised(inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs (N, F) with mean 0 and unit variance and a last column of ones, (N, F + 1), and both statistics (F,)."""
    centre, spread = inputs.mean(dim=0), inputs.std(dim=0, correction=0)
    spread = torch.where(spread > 1e-6, spread, torch.inf)  # constant inputs get no coefficient
    return torch.cat([(inputs - centre) / spread, inputs.new_ones(len(inputs), 1)], dim=1), centre, spread


@torch.no_grad()
def fit_joint_components(features: Tensor, target: Tensor, ridge: Tensor, num_components: int) -> Components:
    """Fit a mixture over vectors: one regression for all components, and k-means of its residuals.

    The clusters start far apart: each at the point that is farthest from the ones before. Returns `Components` whose weights
    are the same for all dimensions.
    """
    shared = fit_components(features, target, ridge, 1)
    residual = target - features @ shared.weight[0].T - shared.bias[0]
    edges = residual.new_tensor([0.5 / NUM_QUANTILES, 1 - 0.5 / NUM_QUANTILES])
    low, high = torch.quantile(residual, edges, dim=0)
    points = residual.clamp(low, high)  # outliers must not become clusters
    starts = [points.mean(dim=0)]
    for _ in range(1, num_components):
        distance = torch.stack([(points - start).square().sum(dim=1) for start in starts]).amin(dim=0)
        starts.append(points[distance.argmax()])
    mean, (n, d) = torch.stack(starts), points.shape
    for _ in range(LLOYD_ITERATIONS):
        member = torch.nn.functional.one_hot(torch.cdist(points, mean).argmin(dim=1), num_components).to(points.dtype)  # (N, K)
        count = member.sum(dim=0).unsqueeze(1)
        mean = torch.where(count > 0, member.T @ points / count.clamp(min=1), mean)
    square = member.T @ points.square() / count.clamp(min=1) - mean.square()
    log_weights = ((count + 0.01 * n) / (n * (1 + 0.01 * num_components))).log().expand(-1, d)
    weight, log_scale = shared.weight.expand(num_components, -1, -1), square.clamp(min=SMALLEST_SCALE**2).sqrt().log()
    none = weight.new_zeros(num_components, d, d)
    zeros = torch.zeros_like(weight)
    return Components(log_weights, zeros, none, mean + shared.bias, weight, none, log_scale, log_scale.exp().amin(dim=0))
