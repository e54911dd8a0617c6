"""Excess of the likelihood over the exact Kalman filter, where rows of the data are missing at random.

The process is the one called Kalman in processes.py: a noisy position whose velocity is hidden. A share of the observations is
missing, in training and test episodes, the first ones included. The exact density of the observed rows is that of a Kalman
filter that skips its correction where nothing was observed.

    python benchmarks/missing_values.py --out results/missing_values
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from harness import write_result
from processes import NUM_TEST, NUM_TRAIN, TARGET, TEST_SEED, Kalman, episodes

from worldmodel.data import Episode, EpisodeStore
from worldmodel.models import MDNRNNConfig, SequenceBatch, WorldModel
from worldmodel.training import TrainingConfig, fit


def filter_log_prob(process: Kalman, y: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Exact log p of each observed row given the observed rows before it, in nats; 0 where y is missing.

    Args:
        process: the parameters.
        y: (B, T + 1, 1); NaN where a row is missing.
        action: (B, T).

    Returns:
        (B, T).
    """
    matrix = np.array([[process.position_decay, process.velocity_decay], [0.0, process.velocity_decay]])
    noise = process.velocity_sd**2 * np.ones((2, 2))
    mean, covariance = np.zeros((len(y), 2)), np.tile(np.diag([1.0, 0.0]), (len(y), 1, 1))
    found = []
    for t in range(y.shape[1]):
        seen, variance = ~np.isnan(y[:, t, 0]), covariance[:, 0, 0] + process.seen_sd**2
        error = np.where(seen, y[:, t, 0] - mean[:, 0], 0.0)
        found.append(np.where(seen, -0.5 * (error**2 / variance + np.log(2 * math.pi * variance)), 0.0))
        gain = np.where(seen, 1 / variance, 0.0)[:, None] * covariance[:, :, 0]
        mean = mean + gain * error[:, None]
        covariance = covariance - gain[:, :, None] * covariance[:, None, 0, :]
        if t < action.shape[1]:
            mean = mean @ matrix.T + process.push * action[:, t, None]
            covariance = matrix @ covariance @ matrix.T + noise
    return np.stack(found[1:], axis=1)


def incomplete(process: Kalman, count: int, seed: int, share: float) -> list[Episode]:
    """Sample episodes, and remove a share of the rows at random."""
    rng, whole = np.random.default_rng([seed, 1]), episodes(process, count, seed)
    return [
        replace(one, observations=np.where(rng.random((len(one) + 1, 1)) < share, np.nan, one.observations).astype(np.float32))
        for one in whole
    ]


def write_store(path: Path, data: list[Episode]) -> Path:
    """Write a store in which the observation may be missing."""
    box = spaces.Box(-np.inf, np.inf, (1,), np.float32), spaces.Box(-1, 1, (1,), np.float32)
    recipe = {"missing": {"": [0]}}
    EpisodeStore.create(path, observation_space=box[0], action_space=box[1], recipe=recipe).append(data)
    return path


@torch.no_grad()
def excess(world: WorldModel, process: Kalman, data: list[Episode]) -> dict[str, float]:
    """Compare M with the exact filter, in nats per observed row."""
    y, action = np.stack([e.observations for e in data]), np.stack([e.actions for e in data])
    exact = filter_log_prob(process, y.astype(np.float64), action[..., 0].astype(np.float64)).sum(axis=1)
    z, _ = world.vision.encode(torch.from_numpy(y))
    ends, _ = world.vision.encode(torch.tensor([[0.0], [1.0]]))
    volume = math.log(ends[1].item() - ends[0].item())  # of one unit of the observations, in units of z
    mask = torch.ones(action.shape[:2], dtype=torch.bool)
    batch = SequenceBatch(z, torch.from_numpy(action), torch.zeros(mask.shape), ~mask, mask)
    losses = (
        world.mdnrnn.eval().step_losses(batch, generator=torch.Generator().manual_seed(0)).latent.double().sum(dim=1).numpy()
    )
    count = (~np.isnan(y[:, 1:, 0])).sum(axis=1)
    gap = losses - volume * count + exact  # (episodes,)
    mean = gap.sum() / count.sum()
    se = (gap - mean * count).std() * math.sqrt(len(gap)) / count.sum()
    return {"entropy": -exact.sum() / count.sum(), "excess": mean, "se": se}


def measure(share: float, seed: int, updates: int, out: Path) -> dict[str, Any]:
    """Fit a world model to incomplete episodes and compare it with the exact filter."""
    process = Kalman()
    store = write_store(out / "data", incomplete(process, NUM_TRAIN, seed, share))
    began = time.process_time()
    config, training = MDNRNNConfig(hidden_size=64), TrainingConfig(num_updates=updates)
    world = fit(store, out=out / "world", config=config, training_config=training, seed=seed)
    seconds = time.process_time() - began
    found = excess(world, process, incomplete(process, NUM_TEST, TEST_SEED + seed, share))
    best = world.provenance["training"]["best_update"]
    return {"share": share, "seed": seed, **found, "best_update": best, "cpu_seconds": round(seconds, 1)}


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Format the rows as a Markdown table."""
    lines = [
        "# Excess over the exact filter with missing rows",
        "",
        f"Nats per observed row on {NUM_TEST} new episodes, with standard errors over episodes. Target: at most {TARGET}.",
        "",
        "| missing | seed | entropy | excess | best update | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['share']:.0%} | {row['seed']} | {row['entropy']:.4f} | {row['excess']:.4f} ± {row['se']:.4f} "
        f"| {row['best_update']} | {row['cpu_seconds']:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure the excess of every share and seed, and write result.json and result.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for result.json and result.md")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.3], help="of the rows that are missing (default: 0.3)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of data and training (default: 0 1 2)")
    parser.add_argument("--updates", type=int, default=1500, help="updates of each fit (default: 1500)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for share in arguments.shares:
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(share, seed, arguments.updates, Path(folder)))
            print(rows[-1], flush=True)
            write_result(arguments.out, {"target": TARGET, "rows": rows}, markdown=to_markdown(rows))
    return 0 if all(row["excess"] <= TARGET for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
