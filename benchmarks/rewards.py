"""Reward heads on processes whose reward is known exactly: atoms, rare events, several modes, and one checkpoint for all heads.

The state is x' = 0.8 x + 0.6 e with x_0 standard normal, seen as it is, and actions are uniform in [-1, 1]. Every process is
fitted with `fit`'s defaults (hidden size 64, 1,500 updates) and scored on 300 new episodes of 200 steps (rare: 3,000):

- sparse (r = 1 or 0) and rare (100 or 0): R2 of the expected reward against the true one; for rare also its mean where the
  truth is between 60 and 80, and the standard deviation of returns of dreams that pay sampled rewards;
- car (3.2 or -0.1): largest distance of the randomised probability integral transform from the uniform distribution;
- smooth: the excess of the reward's likelihood over the exact one, and that of a plain Gaussian head;
- switching: two hidden regimes with a rare reward: the excess of z's likelihood, with and without a reward head.

For each fit, the held-out loss of each head in the kept weights minus the smallest of the run (its regret) is reported.

    OMP_NUM_THREADS=1 python benchmarks/rewards.py --out results/rewards
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from harness import write_result
from torch import Tensor

from worldmodel.data import Episode, EpisodeStore
from worldmodel.dream import Dreams, RandomActions
from worldmodel.mixtures import MixedDistribution
from worldmodel.models import MDNRNNConfig, SequenceBatch, WorldModel
from worldmodel.training import TrainingConfig, fit

TEST_EPISODES, STEPS, DREAMS, TEST_SEED = 300, 200, 20_000, 1_000_000
EPISODES = {"sparse": 400, "rare": 2000, "car": 400, "smooth": 400, "switching": 400}
ODDS = {"sparse": (-5.0, 2.0), "rare": (-6.0, 1.5), "car": (-2.2, 1.0), "switching": (-6.0, 1.5)}  # of the higher reward
REWARDS = {"sparse": (0.0, 1.0), "rare": (0.0, 100.0), "car": (-0.1, 3.2), "switching": (0.0, 100.0)}
STAY, SD = 0.97, np.array([0.15, 0.25])  # of the switching process
ROTATIONS = [0.97 * np.array([[math.cos(w), -math.sin(w)], [math.sin(w), math.cos(w)]]) for w in (0.35, -0.35)]
PUSHES = [np.array([0.3, 0.0]), np.array([0.0, -0.3])]


def simulate(name: str, episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample observations (N, T + 1, D) float32, actions (N, T) float32 and rewards (N, T)."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (episodes, STEPS)).astype(np.float32)
    dim = 2 if name == "switching" else 1
    y = np.empty((episodes, STEPS + 1, dim))
    y[:, 0], regime = rng.standard_normal((episodes, dim)), rng.random(episodes) < 0.5
    for t in range(STEPS):
        noise = rng.standard_normal((episodes, dim))
        if dim == 1:
            y[:, t + 1] = 0.8 * y[:, t] + 0.6 * noise
            continue
        means = [y[:, t] @ turn.T + action[:, t, None] * push for turn, push in zip(ROTATIONS, PUSHES, strict=True)]
        y[:, t + 1] = np.where(regime[:, None], means[1], means[0]) + SD * noise
        regime ^= rng.random(episodes) >= STAY
    y = y.astype(np.float32)
    x = y[:, :-1, 0].astype(np.float64)
    if name == "smooth":
        mean, sd = smooth(x, action)
        return y, action, mean + sd * rng.standard_normal(mean.shape)
    low, high = REWARDS[name]
    return y, action, np.where(rng.random(x.shape) < probability(name, x, action), high, low)


def probability(name: str, x: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Probability of the higher reward."""
    offset, slope = ODDS[name]
    return 1 / (1 + np.exp(-(offset + slope * (x + action))))


def smooth(x: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the smooth reward."""
    return np.sin(2 * (x + action)), 0.1 * (1 + 0.5 * np.tanh(x + action))


def switching_nll(y: np.ndarray, action: np.ndarray) -> float:
    """Exact negative log-likelihood per step and dimension, by the forward algorithm over the regimes."""
    y, action, total = y.astype(np.float64), action.astype(np.float64), 0.0
    log_belief = np.log(np.full((len(y), 2), 0.5))
    move = np.log(np.array([[STAY, 1 - STAY], [1 - STAY, STAY]]))
    for t in range(action.shape[1]):
        for s in range(2):
            z = (y[:, t + 1] - y[:, t] @ ROTATIONS[s].T - action[:, t, None] * PUSHES[s]) / SD
            log_belief[:, s] += (-0.5 * z**2 - np.log(SD) - 0.5 * math.log(2 * math.pi)).sum(axis=1)
        evidence = np.logaddexp(log_belief[:, 0], log_belief[:, 1])
        total -= evidence.sum()
        log_belief = log_belief - evidence[:, None]
        log_belief = np.logaddexp(log_belief[:, :1] + move[0], log_belief[:, 1:] + move[1])
    return total / (action.size * y.shape[-1])


def write_store(path: Path, y: np.ndarray, action: np.ndarray, reward: np.ndarray) -> Path:
    """Write episodes as a store."""
    store = EpisodeStore.create(
        path,
        observation_space=spaces.Box(-np.inf, np.inf, y.shape[2:], np.float32),
        action_space=spaces.Box(-1, 1, (1,), np.float32),
    )
    ends = np.zeros(STEPS, dtype=bool)
    cut = np.arange(STEPS) == STEPS - 1
    rows = zip(y, action[..., None], reward.astype(np.float64), strict=True)
    store.append(
        [
            Episode(observations=o, actions=a, rewards=r, terminations=ends, truncations=cut, episode_id=k)
            for k, (o, a, r) in enumerate(rows)
        ]
    )
    return path


@torch.no_grad()
def predict(world: WorldModel, y: np.ndarray, action: np.ndarray, reward: np.ndarray) -> tuple[Any, SequenceBatch]:
    """M's prediction at every step of new episodes."""
    z = world.encode(torch.as_tensor(y))
    none = torch.zeros(action.shape, dtype=torch.bool)
    features = world.action_features.flatten(action[..., None])
    batch = SequenceBatch(z, features, torch.as_tensor(reward, dtype=torch.float32), none, ~none)
    return world.mdnrnn(z[:, :-1], features)[0], batch


def pit_distance(distribution: Any, reward: Tensor, seed: int) -> float:
    """Kolmogorov-Smirnov distance of the randomised probability integral transform from the uniform distribution."""
    x = reward.unsqueeze(-1)
    mass = distribution.mass(x) if isinstance(distribution, MixedDistribution) else torch.zeros_like(reward)
    uniform = torch.rand(reward.shape, generator=torch.Generator().manual_seed(seed))
    values = (distribution.cdf(x)[..., 0] - uniform * mass).flatten().sort().values.double()
    grid = torch.arange(len(values), dtype=torch.float64) / len(values)
    return float(torch.maximum(values - grid, grid + 1 / len(values) - values).max())


def regrets(directory: Path) -> dict[str, float]:
    """Held-out loss of each head in the kept weights, minus its own minimum over the run."""
    rows = [json.loads(line) for line in (directory / "training" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    best = json.loads((directory / "world.json").read_text(encoding="utf-8"))["provenance"]["training"]["best_metrics"]
    smallest = {name: min(row[f"test/{name}"] for row in rows if f"test/{name}" in row) for name in best if name != "loss"}
    return {name: best[name] - value for name, value in smallest.items()}


def run(name: str, seed: int, fields: dict[str, Any], updates: int, directory: Path) -> dict[str, Any]:
    """Fit one process and score it."""
    data = directory / f"{name}-{seed}"
    if not data.exists():
        write_store(data, *simulate(name, EPISODES[name], seed))
    out = Path(tempfile.mkdtemp(dir=directory))
    began = time.process_time()
    config = MDNRNNConfig(hidden_size=64, **fields)
    world = fit(data, out=out, config=config, training_config=TrainingConfig(num_updates=updates), seed=seed)
    row: dict[str, Any] = {"process": name, "seed": seed, "cpu_seconds": time.process_time() - began, "fields": fields}
    row |= {"best_update": world.provenance["training"]["best_update"], "regrets": regrets(out)}
    row["config"] = {key: getattr(world.mdnrnn.config, key) for key in ("reward_atoms", "reward_components", "latent_head")}
    episodes = 10 * TEST_EPISODES if name == "rare" else TEST_EPISODES  # enough steps with a high expected reward
    y, action, reward = simulate(name, episodes, seed + TEST_SEED)
    prediction, batch = predict(world, y, action, reward)
    if name == "switching":
        nll = -prediction.latent.log_prob(batch.z[:, 1:]).double().mean() / 2
        scale = world.vision.scale.double().log().mean()  # densities of z, not of the observation
        row["latent_excess"] = float(nll + scale) - switching_nll(y, action)
    with torch.no_grad():
        found = prediction.outcome(batch.z[:, 1:]).reward
    if found is not None:
        row |= score_reward(name, seed, world, found, batch, (y, action, reward))
    return row


def score_reward(name: str, seed: int, world: WorldModel, predicted: Any, batch: SequenceBatch, truth: Any) -> dict[str, Any]:
    """Compare predicted rewards with the true distribution."""
    y, action, reward = truth
    x = y[:, :-1, 0].astype(np.float64)
    expected = predicted.expectation()[..., 0].double().numpy()
    nll = float(-predicted.log_prob(batch.reward.unsqueeze(-1)).double().mean())
    if name == "smooth":
        mean, sd = smooth(x, action)
        exact = float((0.5 * ((reward - mean) / sd) ** 2 + np.log(sd)).mean() + 0.5 * math.log(2 * math.pi))
    else:
        (low, high), p = REWARDS[name], probability(name, x, action)
        mean = low + (high - low) * p
        exact = float(-np.where(reward == high, np.log(p), np.log1p(-p)).mean())
    row = {"r2": float(1 - ((expected - mean) ** 2).sum() / ((mean - mean.mean()) ** 2).sum()), "reward_excess": nll - exact}
    row |= {
        "mean": float(expected.mean()),
        "true_mean": float(mean.mean()),
        "pit": pit_distance(predicted, batch.reward, 0),
    }
    if name in ("rare", "switching"):
        tail = (mean >= 60) & (mean <= 80)
        row |= {"tail_steps": int(tail.sum()), "tail_expected": float(expected[tail].mean()) if tail.any() else None}
    if name == "rare":
        row |= spread(name, seed, world)
    return row


def spread(name: str, seed: int, world: WorldModel) -> dict[str, float]:
    """Standard deviation of the returns of real episodes, and of dreams with sampled and with expected rewards."""
    row = {"real_sd": float(simulate(name, DREAMS, seed + 2 * TEST_SEED)[2].sum(axis=1).std())}
    for mode in ("sampled", "expected"):
        dreams = Dreams(world, DREAMS, reward_mode=mode)
        generator = dreams.generator(seed)
        returns, _ = dreams.score(RandomActions(world, generator=generator), STEPS, generator=generator)
        row[f"{mode}_sd"] = float(returns.std())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for result.json")
    parser.add_argument("--processes", nargs="+", default=list(EPISODES), choices=list(EPISODES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument(
        "--only", action="store_true", help="leave out the models without a reward head and with a plain Gaussian"
    )
    parser.add_argument("--fields", type=json.loads, default={}, help="fields of MDNRNNConfig, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for process in args.processes:
            variants = [args.fields]
            if process == "switching" and not args.only:
                variants.append({**args.fields, "reward_head": False})
            if process == "smooth" and not args.only:
                variants.append({**args.fields, "reward_components": 1})
            for seed in args.seeds:
                for fields in variants:
                    rows.append(run(process, seed, fields, args.updates, Path(name)))
                    print(json.dumps(rows[-1]), flush=True)
    write_result(args.out, {"rows": rows})


if __name__ == "__main__":
    sys.exit(main())
