"""Processes whose transition density is known exactly, and the excess of M's likelihood over it.

*Excess* is the held-out negative log-likelihood of M minus the exact one, in nats per dimension: what the model wastes. It
is averaged over complete episodes, from their first step, so that filters and M know the same. Its standard error is over
episodes. The observations are stored in float32, and the exact density is evaluated at the stored numbers.

    OMP_NUM_THREADS=1 python benchmarks/processes.py --out results/processes
    python benchmarks/processes.py --processes ball --seeds 0 --out /tmp/ball --latent-head MixtureHead
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from harness import write_result

from worldmodel.data import Episode, EpisodeStore
from worldmodel.models import MDNRNNConfig, SequenceBatch, WorldModel
from worldmodel.training import TrainingConfig, fit

NUM_TRAIN, NUM_TEST, NUM_STEPS = 400, 300, 200
TARGET = 0.02  # nats per dimension
LOG_TWO_PI = math.log(2 * math.pi)
TEST_SEED = 1_000_000  # is added to the seed of the training episodes


class Process(Protocol):
    """A process over vectors, with one action in [-1, 1] that is uniform and independent of everything."""

    dim: int

    def simulate(self, action: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sample observations (B, T + 1, D) for actions (B, T)."""
        ...

    def log_prob(self, y: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Exact log p(y_{t+1} | y_0..y_t, a_0..a_t) in nats, summed over D, of y (B, T + 1, D) and actions (B, T): (B, T)."""
        ...


@dataclasses.dataclass(frozen=True)
class Switching:
    """Two linear regimes, hidden: y' = M_s y + B_s a + noise."""

    stay: float = 0.97
    decay: float = 0.97
    angle: float = 0.35
    push: float = 0.3
    sd: tuple[float, float] = (0.15, 0.25)
    dim: int = 2

    def _mean(self, y: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Means of both regimes: (..., 2 regimes, 2)."""
        cos, sin = self.decay * math.cos(self.angle), self.decay * math.sin(self.angle)
        turn = np.array([[[cos, -sin], [sin, cos]], [[cos, sin], [-sin, cos]]])
        push = np.array([[self.push, 0.0], [0.0, -self.push]])
        return np.einsum("sij,...j->...si", turn, y) + push * action[..., None, None]

    def simulate(self, action: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """See `Process.simulate`."""
        count, steps = action.shape
        y, regime = [rng.standard_normal((count, 2))], rng.integers(2, size=count)
        for t in range(steps):
            mean = self._mean(y[-1], action[:, t])[np.arange(count), regime]
            y.append(mean + np.array(self.sd) * rng.standard_normal((count, 2)))
            regime = np.where(rng.random(count) < self.stay, regime, 1 - regime)
        return np.stack(y, axis=1)

    def log_prob(self, y: np.ndarray, action: np.ndarray) -> np.ndarray:
        """See `Process.log_prob`."""
        sd = np.array(self.sd)
        each = _normal(y[:, 1:, None], self._mean(y[:, :-1], action), sd).sum(axis=-1)  # (B, T, 2)
        belief, found = np.full((len(y), 2), 0.5), []
        for t in range(action.shape[1]):
            largest = each[:, t].max(axis=1, keepdims=True)
            joint = belief * np.exp(each[:, t] - largest)
            total = joint.sum(axis=1, keepdims=True)
            found.append((np.log(total) + largest)[:, 0])
            posterior = joint / total
            belief = self.stay * posterior + (1 - self.stay) * posterior[:, ::-1]
        return np.stack(found, axis=1)


@dataclasses.dataclass(frozen=True)
class Jump:
    """A mixture of two frequent steps, chosen by the action and the state, and two rare jumps."""

    sd: tuple[float, float, float, float] = (0.08, 0.12, 0.5, 0.5)
    shift: tuple[float, float, float, float] = (1.0, -1.0, 6.0, -6.0)
    rare: float = 0.015
    dim: int = 1

    def _parameters(self, x: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights and means: (..., 4) each."""
        p = 1 / (1 + np.exp(0.5 * x - 1.5 * action))
        frequent = 1 - 2 * self.rare
        weights = np.stack([frequent * p, frequent * (1 - p), np.full_like(p, self.rare), np.full_like(p, self.rare)], axis=-1)
        return weights, 0.9 * x[..., None] + np.array(self.shift)

    def simulate(self, action: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """See `Process.simulate`."""
        count, steps = action.shape
        x = [rng.standard_normal(count)]
        for t in range(steps):
            weights, means = self._parameters(x[-1], action[:, t])
            k = (rng.random((count, 1)) > weights.cumsum(axis=1)[:, :-1]).sum(axis=1)
            x.append(means[np.arange(count), k] + np.array(self.sd)[k] * rng.standard_normal(count))
        return np.stack(x, axis=1)[..., None]

    def log_prob(self, y: np.ndarray, action: np.ndarray) -> np.ndarray:
        """See `Process.log_prob`."""
        weights, means = self._parameters(y[:, :-1, 0], action)
        return _log_sum_exp(np.log(weights) + _normal(y[:, 1:], means, np.array(self.sd)))


@dataclasses.dataclass(frozen=True)
class Ball:
    """A ball between two walls: position and velocity, with noise on both, reflected at 0 and 1."""

    decay: float = 0.98
    push: float = 0.02
    velocity_sd: float = 0.02
    position_sd: float = 0.01
    dim: int = 2

    def simulate(self, action: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """See `Process.simulate`."""
        count, steps = action.shape
        y = [np.stack([rng.random(count), rng.uniform(-0.1, 0.1, count)], axis=1)]
        for t in range(steps):
            w = self.decay * y[-1][:, 1] + self.push * action[:, t] + self.velocity_sd * rng.standard_normal(count)
            u = y[-1][:, 0] + w + self.position_sd * rng.standard_normal(count)
            x = np.where(u < 0, -u, np.where(u > 1, 2 - u, u))
            y.append(np.stack([x, np.where((u < 0) | (u > 1), -w, w)], axis=1))
        return np.stack(y, axis=1)

    def log_prob(self, y: np.ndarray, action: np.ndarray) -> np.ndarray:
        """See `Process.log_prob`."""
        x, v = y[:, :-1, 0], y[:, :-1, 1]
        after, speed = y[:, 1:, 0], y[:, 1:, 1]
        images = [(after, speed), (-after, -speed), (2 - after, -speed)]
        return _log_sum_exp(
            np.stack(
                [
                    _normal(w, self.decay * v + self.push * action, self.velocity_sd) + _normal(u, x + w, self.position_sd)
                    for u, w in images
                ],
                axis=-1,
            )
        )


@dataclasses.dataclass(frozen=True)
class Kalman:
    """A noisy position, whose velocity is hidden."""

    velocity_decay: float = 0.98
    position_decay: float = 0.97
    push: float = 0.05
    velocity_sd: float = 0.05
    seen_sd: float = 0.1
    dim: int = 1

    def simulate(self, action: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """See `Process.simulate`."""
        count, steps = action.shape
        p, v = rng.standard_normal(count), np.zeros(count)
        seen = [p + self.seen_sd * rng.standard_normal(count)]
        for t in range(steps):
            v = self.velocity_decay * v + self.push * action[:, t] + self.velocity_sd * rng.standard_normal(count)
            p = self.position_decay * p + v
            seen.append(p + self.seen_sd * rng.standard_normal(count))
        return np.stack(seen, axis=1)[..., None]

    def log_prob(self, y: np.ndarray, action: np.ndarray) -> np.ndarray:
        """See `Process.log_prob`."""
        matrix = np.array([[self.position_decay, self.velocity_decay], [0.0, self.velocity_decay]])
        noise = self.velocity_sd**2 * np.ones((2, 2))  # the velocity's noise moves the position in the same step
        mean, covariance, found = np.zeros((len(y), 2)), np.diag([1.0, 0.0]), []
        for t in range(y.shape[1]):
            variance = covariance[0, 0] + self.seen_sd**2
            if t > 0:
                found.append(_normal(y[:, t, 0], mean[:, 0], math.sqrt(variance)))
            gain = covariance[:, 0] / variance
            mean = mean + gain * (y[:, t] - mean[:, :1])
            covariance = covariance - np.outer(gain, covariance[0])
            if t < action.shape[1]:
                mean = mean @ matrix.T + self.push * action[:, t, None]
                covariance = matrix @ covariance @ matrix.T + noise
        return np.stack(found, axis=1)


PROCESSES: dict[str, Process] = {
    "ball": Ball(),
    "jump": Jump(),
    "fine jump": Jump(sd=(0.01, 0.01, 0.5, 0.5)),
    "switching": Switching(),
    "kalman": Kalman(),
}


def _normal(x: np.ndarray, mean: np.ndarray, sd: np.ndarray | float) -> np.ndarray:
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * LOG_TWO_PI


def _log_sum_exp(x: np.ndarray) -> np.ndarray:
    largest = x.max(axis=-1, keepdims=True)
    return (np.log(np.exp(x - largest).sum(axis=-1, keepdims=True)) + largest)[..., 0]


def episodes(process: Process, count: int, seed: int, num_steps: int = NUM_STEPS) -> list[Episode]:
    """Sample episodes that end by truncation, without reward."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (count, num_steps)).astype(np.float32)
    y = process.simulate(action.astype(np.float64), rng).astype(np.float32)
    zeros, never, last = np.zeros(num_steps), np.zeros(num_steps, bool), np.arange(num_steps) == num_steps - 1
    return [
        Episode(
            observations=y[i], actions=action[i, :, None], rewards=zeros, terminations=never, truncations=last, episode_id=i
        )
        for i in range(count)
    ]


def write_store(path: Path, process: Process, *, count: int = NUM_TRAIN, seed: int = 0) -> Path:
    """Write a store of episodes of the process."""
    observation, action = spaces.Box(-np.inf, np.inf, (process.dim,), np.float32), spaces.Box(-1, 1, (1,), np.float32)
    store = EpisodeStore.create(path, observation_space=observation, action_space=action)
    store.append(episodes(process, count, seed))
    return path


@torch.no_grad()
def excess(world: WorldModel, process: Process, *, count: int = NUM_TEST, seed: int = TEST_SEED) -> dict[str, float]:
    """Compare M with the exact density on new episodes, in nats per dimension of the observation."""
    held_out = episodes(process, count, seed)
    y, action = np.stack([e.observations for e in held_out]), np.stack([e.actions for e in held_out])
    exact = process.log_prob(y.astype(np.float64), action[..., 0].astype(np.float64))
    z, _ = world.vision.encode(torch.from_numpy(y))
    after, _ = world.vision.encode(torch.from_numpy(y + np.float32(1)))
    volume = (after - z)[0, 0].double().log().sum()  # of one unit of the observations, in units of z
    features = world.action_features.flatten(torch.from_numpy(action))
    mask = torch.ones(action.shape[:2], dtype=torch.bool)
    losses = world.mdnrnn.eval().step_losses(SequenceBatch(z, features, torch.zeros(mask.shape), ~mask, mask))
    gap = ((losses.latent.double() - volume).numpy() + exact).mean(axis=1) / process.dim  # (episodes,)
    entropy = -exact.mean() / process.dim
    return {"entropy": entropy, "nll": entropy + gap.mean(), "excess": gap.mean(), "se": gap.std() / math.sqrt(count)}


@torch.no_grad()
def smallest_responsibility(world: WorldModel, process: Process, *, count: int = 50, seed: int = TEST_SEED) -> float:
    """Return the smallest mean responsibility of a component of M's mixtures, over components and dimensions."""
    held_out = episodes(process, count, seed)
    z, _ = world.vision.encode(torch.from_numpy(np.stack([e.observations for e in held_out])))
    features = world.action_features.flatten(torch.from_numpy(np.stack([e.actions for e in held_out])))
    latent = world.mdnrnn.eval()(z[:, :-1], features)[0].latent
    return latent.responsibilities(z[:, 1:]).mean(dim=(0, 1)).min().item()


def measure(name: str, seed: int, config: MDNRNNConfig, training: TrainingConfig, out: Path) -> dict[str, Any]:
    """Fit a world model to one process and compare it with the exact density."""
    process = PROCESSES[name]
    store = write_store(out / "data", process, seed=seed)
    began = time.process_time()
    world = fit(store, out=out / "world", config=config, training_config=training, seed=seed)
    seconds = time.process_time() - began
    found = excess(world, process, seed=TEST_SEED + seed)
    return {
        "process": name, "seed": seed, **found, "smallest_responsibility": smallest_responsibility(world, process),
        "head": world.mdnrnn.config.latent_head, "best_update": world.provenance["training"]["best_update"],
        "cpu_seconds": round(seconds, 1),
    }  # fmt: skip


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Format the rows as a Markdown table."""
    lines = [
        "# Excess over the exact density",
        "",
        f"Nats per dimension on {NUM_TEST} new episodes, with standard errors over episodes. Target: at most {TARGET}.",
        "",
        "| process | seed | entropy | excess | smallest responsibility | head | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['process']} | {row['seed']} | {row['entropy']:.4f} | {row['excess']:.4f} ± {row['se']:.4f} "
        f"| {row['smallest_responsibility']:.3f} | {row['head']} | {row['cpu_seconds']:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure the excess of every process and seed, and write result.json and result.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for result.json and result.md")
    parser.add_argument("--processes", nargs="+", choices=PROCESSES, default=list(PROCESSES), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of data and training (default: 0 1 2)")
    parser.add_argument("--latent-head", help="head of M (default: the library's)")
    parser.add_argument("--factorization", help="factorisation of MixtureHead (default: the library's)")
    parser.add_argument("--noise-type", help="noise of MixtureHead (default: the library's)")
    parser.add_argument("--min-scale", type=float, help="floor of sigma (default: the library's)")
    parser.add_argument("--learning-rate", type=float, help="peak (default: the library's)")
    parser.add_argument("--optimizer", default=TrainingConfig().optimizer, help="default: the library's")
    parser.add_argument("--updates", type=int, default=1500, help="updates of each fit (default: 1500)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ("latent_head", "factorization", "noise_type", "min_scale")
    chosen: dict[str, Any] = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    config, training = (
        MDNRNNConfig(hidden_size=64, **chosen),
        TrainingConfig(
            num_updates=arguments.updates,
            learning_rate=arguments.learning_rate or TrainingConfig().learning_rate,
            optimizer=arguments.optimizer,
        ),
    )
    rows = []
    for seed in arguments.seeds:
        for name in arguments.processes:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(name, seed, config, training, Path(folder)))
            print(rows[-1], flush=True)
            write_result(arguments.out, {"target": TARGET, "rows": rows}, markdown=to_markdown(rows))
    return 0 if all(row["excess"] <= TARGET for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
