"""Held-out likelihood of one process whose actions are recorded in four units: all must agree.

An oscillator x'' = -x - 0.1 x' + a is observed every 0.1 s with noise 0.01 on position and velocity.
Its actions are uniform in [-2, 2]. They are recorded in a Box(-2, 2); multiplied by 500 in an unbounded
Box; with 1,500 added in an unbounded Box; and in a Box(-1e4, 1e4). The observations are the same.

    python benchmarks/units.py --out results/units
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from harness import write_result

from worldmodel.data import Episode, EpisodeCollection, EpisodeStore
from worldmodel.models import MDNRNNConfig, WorldModel, encode_episodes
from worldmodel.runtime import RunConfig
from worldmodel.training import DataConfig, TrainingConfig, fit

TARGET = 0.05  # nats per dimension, largest difference between the four
STEP, NOISE, STEPS = 0.1, 0.01, 200
ENTROPY = 0.5 * math.log(2 * math.pi * math.e) + math.log(NOISE)  # nats per dimension, of the observations
OBSERVATION = spaces.Box(-np.inf, np.inf, (2,), np.float64)


class Units(NamedTuple):
    """A declared action space and the unit of the recorded actions: offset + factor * a."""

    space: spaces.Box
    factor: float = 1.0
    offset: float = 0.0


UNBOUNDED = spaces.Box(-np.inf, np.inf, (1,), np.float32)
UNITS = {
    "Box(-2, 2)": Units(spaces.Box(-2.0, 2.0, (1,), np.float32)),
    "times 500, unbounded": Units(UNBOUNDED, factor=500.0),
    "plus 1,500, unbounded": Units(UNBOUNDED, offset=1500.0),
    "Box(-1e4, 1e4)": Units(spaces.Box(-1e4, 1e4, (1,), np.float32)),
}


def episode(units: Units, number: int, seed: int) -> Episode:
    """Return an episode of 200 steps; position and velocity start standard normal."""
    rng = np.random.default_rng([seed, number])
    action = rng.uniform(-2, 2, STEPS)
    states = [rng.standard_normal(2)]
    for a in action:
        x, v = states[-1]
        states.append(np.array([x + STEP * v, v + STEP * (-x - 0.1 * v + a)]) + NOISE * rng.standard_normal(2))
    last = np.arange(STEPS) == STEPS - 1
    return Episode(
        observations=np.stack(states),
        actions=(units.offset + units.factor * action[:, None]).astype(np.float32),
        rewards=np.zeros(STEPS),
        terminations=np.zeros(STEPS, dtype=bool),
        truncations=last,
        episode_id=number,
    )


def write(path: Path, units: Units, *, num_episodes: int, seed: int) -> Path:
    """Write a store of episodes."""
    store = EpisodeStore.create(path, observation_space=OBSERVATION, action_space=units.space)
    store.append([episode(units, number, seed) for number in range(num_episodes)])
    return path


@torch.no_grad()
def held_out_nll(world: WorldModel, path: Path) -> float:
    """Return the mean negative log-likelihood of the observations, in nats per dimension of the observations' units."""
    episodes = EpisodeCollection.open(path)
    total, count = 0.0, 0
    for index in range(len(episodes)):
        steps = encode_episodes([episodes.read(index)], world.vision, world.action_features)
        z, action = steps.mean.unsqueeze(0), steps.action.unsqueeze(0)
        prediction, _ = world.mdnrnn(z[:, :-1], action)
        total -= prediction.latent.log_prob(z[:, 1:]).sum().item()
        count += action.shape[1]
    scale = world.vision.get_buffer("scale")
    return total / count / world.vision.latent_size + scale.log().mean().item()


def run(units: Units, seed: int, folder: Path, *, updates: int, train_episodes: int, test_episodes: int) -> float:
    """Train on one store and return the held-out negative log-likelihood on another."""
    train = write(folder / "train", units, num_episodes=train_episodes, seed=seed)
    test = write(folder / "test", units, num_episodes=test_episodes, seed=seed + 1_000)
    world = fit(
        train,
        out=folder / "world",
        config=MDNRNNConfig(hidden_size=64),
        data_config=DataConfig(),
        training_config=TrainingConfig(num_updates=updates),
        seed=seed,
        run=RunConfig(progress=False),
    )
    return held_out_nll(world, test)


def main() -> int:
    """Run all units for all seeds and write result.json and result.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for result.json and result.md")
    parser.add_argument("--updates", type=int, default=1500, help="training updates of each model (default: 1500)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of data and training (default: 0 1 2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, differences = [], []
    for seed in arguments.seeds:
        found = {}
        for name, units in UNITS.items():
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                nll = run(units, seed, Path(folder), updates=arguments.updates, train_episodes=400, test_episodes=300)
            found[name] = nll
            rows.append(
                {
                    "seed": seed,
                    "units": name,
                    "nll_per_dim": nll,
                    "excess": nll - ENTROPY,
                    "seconds": time.perf_counter() - began,
                }
            )
            print(f"seed {seed}  {name:24s} {nll:.4f} nats per dimension, {nll - ENTROPY:+.4f} above the entropy", flush=True)
        differences.append(max(found.values()) - min(found.values()))
    write_result(
        arguments.out,
        {"target": TARGET, "entropy": ENTROPY, "differences": differences, "rows": rows},
        markdown=to_markdown(rows, arguments.seeds, differences),
    )
    print(f"largest difference between the four: {max(differences):.4f} nats per dimension (target: {TARGET})")
    return 0 if max(differences) <= TARGET else 1


def to_markdown(rows: list[dict[str, float]], seeds: list[int], differences: list[float]) -> str:
    """Format the rows as a Markdown table, in nats per dimension."""
    lines = [
        "# One process, actions in four units",
        "",
        f"Held-out NLL in nats per dimension of the observations; the entropy is {ENTROPY:.4f}. Target: the four differ by at "
        f"most {TARGET}.",
        "",
        f"| actions | {' | '.join(f'seed {seed}' for seed in seeds)} |",
        "|---|" + "---|" * len(seeds),
    ]
    for name in UNITS:
        own = [row["nll_per_dim"] for row in rows if row["units"] == name]
        lines.append(f"| {name} | {' | '.join(f'{nll:.4f}' for nll in own)} |")
    lines.append(f"| largest difference | {' | '.join(f'{difference:.4f}' for difference in differences)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
