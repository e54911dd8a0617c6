"""Dreams of choices and of constants against the process that made the data.

- **goal**: a point in a Dict with a goal and a task that are drawn at reset and then constant. Measured: the largest movement
  of goal and task over 200 dreamed steps, at several temperatures.
- **chain**: a Markov chain of five states. Measured: the total variation between the transition matrix and that of 20,000
  dreams of 30 steps, weighted by visits, and whether every dreamed z is one-hot.

    python benchmarks/layout.py --out results/layout
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from harness import write_result

from worldmodel.data import Episode, EpisodeStore
from worldmodel.dream import Dreams
from worldmodel.models import MDNRNNConfig, WorldModel
from worldmodel.training import TrainingConfig, fit

ACTION = spaces.Box(-1.0, 1.0, (1,), np.float32)
CHAIN = np.array(
    [
        [0.70, 0.10, 0.10, 0.05, 0.05],
        [0.05, 0.10, 0.75, 0.05, 0.05],
        [0.30, 0.02, 0.08, 0.50, 0.10],
        [0.25, 0.25, 0.20, 0.10, 0.20],
        [0.02, 0.02, 0.02, 0.04, 0.90],
    ]
)
GOAL_SPACE = spaces.Dict(
    {"goal": spaces.Box(-1.0, 1.0, (2,)), "point": spaces.Box(-4.0, 4.0, (1,)), "task": spaces.Discrete(3)}
)
TEMPERATURES = (0.0, 0.5, 1.0, 2.0)
TARGET_TV = 0.015


def chain_episode(rng: np.random.Generator, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return states (steps + 1,) and actions of a chain from a uniform start."""
    state = np.empty(steps + 1, dtype=np.int64)
    state[0] = rng.integers(5)
    for t in range(steps):
        state[t + 1] = rng.choice(5, p=CHAIN[state[t]])
    return state, rng.uniform(-1, 1, (steps, 1)).astype(np.float32)


def goal_episode(rng: np.random.Generator, steps: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return observations and actions of a point with a goal and a task."""
    action = rng.uniform(-1, 1, (steps, 1)).astype(np.float32)
    point = np.zeros((steps + 1, 1), dtype=np.float32)
    point[0] = rng.normal()
    for t in range(steps):
        point[t + 1] = np.clip(0.9 * point[t] + 0.3 * action[t] + 0.05 * rng.normal(), -4, 4)
    goal = np.tile(rng.uniform(-1, 1, 2).astype(np.float32), (steps + 1, 1))
    return {"goal": goal, "point": point, "task": np.full(steps + 1, rng.integers(3))}, action


def train(path: Path, space: gym.Space, process: Callable, *, episodes: int, steps: int, updates: int, seed: int) -> WorldModel:
    """Fit a world model to new episodes of a process."""
    rng = np.random.default_rng([seed, episodes])
    store = EpisodeStore.create(path / "data", observation_space=space, action_space=ACTION)
    made = []
    for number in range(episodes):
        observations, actions = process(rng, steps)
        last = np.arange(steps) == steps - 1
        made.append(
            Episode(
                observations=observations,
                actions=actions,
                rewards=np.zeros(steps),
                terminations=last & False,
                truncations=last,
                episode_id=number,
            )
        )
    store.append(made)
    return fit(
        path / "data",
        out=path / "world",
        config=MDNRNNConfig(hidden_size=64, reward_head=False),
        training_config=TrainingConfig(num_updates=updates),
        seed=seed,
    )


def measure_goal(world: WorldModel, *, num_dreams: int, horizon: int, precision: str) -> dict[str, float]:
    """Return the largest movement of goal and task in dreams, for each temperature."""
    moved = {}
    copied = world.layout.columns("episode_constant", "constant")
    for tau in TEMPERATURES:
        dreams = Dreams(world, num_dreams, temperature=tau, precision=precision)
        z = dreams.rollout(lambda features: torch.zeros(len(features), 1), horizon, generator=dreams.generator(0)).z
        moved[f"moved at {tau:g}"] = (z[:, :, copied] - z[:, :1, copied]).abs().max().item()
    return {"copied": len(copied), **moved}


def measure_chain(world: WorldModel, *, num_dreams: int, horizon: int, precision: str) -> dict[str, float]:
    """Return the total variation of the transitions of dreams, and the share of z that are one-hot."""
    dreams = Dreams(world, num_dreams, precision=precision)
    z = dreams.rollout(lambda features: torch.zeros(len(features), 1), horizon, generator=dreams.generator(0)).z
    one_hot = ((z == 1).sum(dim=-1) == 1) & ((z == 0) | (z == 1)).all(dim=-1)
    state = world.decode(z)
    counts = torch.zeros(5, 5, dtype=torch.float64)
    pairs = (5 * state[:, :-1] + state[:, 1:]).reshape(-1)
    counts += torch.bincount(pairs, minlength=25).reshape(5, 5)
    visits = counts.sum(dim=1)
    distance = 0.5 * (counts / visits.unsqueeze(1) - torch.from_numpy(CHAIN)).abs().sum(dim=1)
    return {"tv": ((visits / visits.sum()) * distance).sum().item(), "one-hot": one_hot.double().mean().item()}


def entropy_rate() -> float:
    """Entropy of a transition of the chain, in nats, under the distribution of the states in episodes of 100 steps."""
    share, total = np.full(5, 0.2), np.zeros(5)
    for _ in range(100):
        total += share / 100
        share = share @ CHAIN
    return float(-(total[:, None] * CHAIN * np.log(CHAIN)).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for result.json and result.md")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of data, weights and batches")
    parser.add_argument("--updates", type=int, default=1500, help="optimiser steps of each model")
    parser.add_argument("--dreams", type=int, default=20_000, help="dreams of the chain")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory)
            goal = train(path / "g", GOAL_SPACE, goal_episode, episodes=400, steps=200, updates=args.updates, seed=seed)
            space = spaces.Discrete(5)
            chain = train(path / "c", space, chain_episode, episodes=1000, steps=100, updates=args.updates, seed=seed)
        nats = chain.provenance["training"]["best_metrics"]["nats_per_choice"]
        for precision in ("float32", "bfloat16"):
            row = {"seed": seed, "precision": precision}
            row |= measure_goal(goal, num_dreams=1000, horizon=200, precision=precision)
            row |= measure_chain(chain, num_dreams=args.dreams, horizon=30, precision=precision)
            row |= {"nats per choice": nats, "entropy": entropy_rate()}
            rows.append(row)
            print(row, flush=True)
    lines = ["# Dreams of choices and constants", "", f"Target: movement 0, total variation at most {TARGET_TV}.", ""]
    lines += ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    write_result(args.out, {"target_tv": TARGET_TV, "rows": rows}, markdown="\n".join(lines))


if __name__ == "__main__":
    main()
