"""Measure ensembles: how far a search exploits its dreams with and without one, held-out likelihood, and speed.

    python benchmarks/ensembles.py exploitation --seeds 0 1 2 --out runs/ensembles
    python benchmarks/ensembles.py speed

``exploitation`` collects random episodes, fits a single model and an ensemble to them, evolves a controller in whole dreams of
each, with several penalties, and compares its score in these dreams (without the penalty) with that in the real environment.
``speed`` compares the members of an ensemble one after the other with one batched product for all of them.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from harness import fastest, print_row
from torch import Tensor, nn

import worldmodel as wm
from worldmodel.agents import ControllerConfig, SearchConfig, evolve
from worldmodel.dream import Dreams, Reality
from worldmodel.evaluation import likelihood
from worldmodel.rng import EVALUATION_STREAM, derive_seed

MEMBERS, EPISODES = 5, 50


def worlds_of(arguments: argparse.Namespace, seed: int) -> dict[str, wm.WorldModel]:
    """Collect data, and fit a single model and an ensemble."""
    out = arguments.out / f"seed-{seed}"
    wm.collect(arguments.env, out=out / "data", num_episodes=arguments.episodes, seed=seed)
    wm.collect(arguments.env, out=out / "test", num_episodes=20, seed=seed + 1000)
    size = wm.MDNRNNConfig(hidden_size=arguments.hidden, latent_head="MixtureHead")
    windows = wm.DataConfig(window=32, batch_size=32)
    training = wm.TrainingConfig(num_updates=arguments.updates, evaluate_every=100)
    options = {"config": size, "data_config": windows, "training_config": training, "seed": seed}
    return {
        "single": wm.fit(out / "data", out=out / "single", **options),
        "ensemble": wm.fit(out / "data", out=out / "ensemble", ensemble=MEMBERS, **options),
    }


def exploit(world: wm.WorldModel, arguments: argparse.Namespace, seed: int, penalty: float) -> dict[str, Any]:
    """Evolve a controller in whole dreams of a world, and score it in plain dreams and in reality, from the same starts."""
    horizon, generations = arguments.horizon, arguments.generations
    search = SearchConfig(population=128, generations=generations, sigma=0.5, test_every=generations, test_dreams=32)
    dreams = Dreams(world, 128 * arguments.rollouts, penalty=penalty)
    agent = evolve(dreams, ControllerConfig(features="z", hidden_size=8), config=search, horizon=horizon, seed=seed)
    env = wm.EnvConfig(arguments.env, max_steps=horizon)
    reality = Reality(world, env, EPISODES, seed=derive_seed(seed, EVALUATION_STREAM))
    plain = Dreams(world, EPISODES)
    start = reality.start(generator=reality.generator(seed))
    rollout = plain.rollout(agent, horizon, generator=plain.generator(seed), start=start)
    real, _ = reality.score(agent, horizon, generator=reality.generator(seed))
    reality.close()
    gap = rollout.returns - real
    return {
        "dream": rollout.returns.mean().item(),
        "real": real.mean().item(),
        "gap": gap.mean().item(),
        "gap_error": gap.std().item() / math.sqrt(EPISODES),
        "uncertainty": None if rollout.uncertainty is None else rollout.uncertainty.mean().item(),
    }


def exploitation(arguments: argparse.Namespace) -> None:
    """Compare a single model with an ensemble at several penalties."""
    for seed in arguments.seeds:
        worlds = worlds_of(arguments, seed)
        for name, world in worlds.items():
            nats = likelihood(world, arguments.out / f"seed-{seed}" / "test")
            print_row({"seed": seed, "world": name, "nats": nats.nats, "errors": nats.standard_errors})
        for name, weight in (("single", 0.0), *(("ensemble", weight) for weight in arguments.weights)):
            found = exploit(worlds[name], arguments, seed, weight)
            print_row({"seed": seed, "world": name, "penalty": weight, **found})


class BatchedLSTM(nn.Module):
    """K LSTMs as one, with batched products, and their linear heads; for the comparison of speed only."""

    def __init__(self, members: int, inputs: int, hidden: int, outputs: int):
        super().__init__()
        scale = 1 / math.sqrt(hidden)
        self.inputs = nn.Parameter(scale * torch.randn(members, inputs, 4 * hidden))
        self.recurrent = nn.Parameter(scale * torch.randn(members, hidden, 4 * hidden))
        self.bias = nn.Parameter(torch.zeros(members, 1, 4 * hidden))
        self.head = nn.Parameter(scale * torch.randn(members, hidden, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Turn x (K, B, T, I) into outputs (K, B, T, O)."""
        k, b, t, _ = x.shape
        gates = torch.baddbmm(self.bias, x.flatten(1, 2), self.inputs).unflatten(1, (b, t))
        h = c = x.new_zeros(k, b, self.recurrent.shape[1])
        found = []
        for step in range(t):
            i, f, g, o = torch.baddbmm(gates[:, :, step], h, self.recurrent).chunk(4, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            found.append(h)
        return torch.bmm(torch.stack(found, dim=2).flatten(1, 2), self.head).unflatten(1, (b, t))


class SingleLSTM(nn.Module):
    """One LSTM with a linear head."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.lstm, self.head = nn.LSTM(inputs, hidden, batch_first=True), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Turn x (B, T, I) into outputs (B, T, O)."""
        return self.head(self.lstm(x)[0])


def updates_of(hidden: int, *, batch: int = 64, window: int = 64, inputs: int = 4, outputs: int = 45) -> dict[str, Any]:
    """Time an update (forward, backward) of all members, one after the other and as one batched product."""
    torch.manual_seed(0)
    singles = [SingleLSTM(inputs, hidden, outputs) for _ in range(MEMBERS)]
    together = BatchedLSTM(MEMBERS, inputs, hidden, outputs)
    x = torch.randn(MEMBERS, batch, window, inputs)

    def one_by_one() -> None:
        for model, own in zip(singles, x, strict=True):
            model(own).square().mean().backward()

    def batched() -> None:
        together(x).square().mean().backward()

    works = {"one after the other": one_by_one, "batched": batched}
    return fastest(works, repeats=5, calls=2, warm_up=1, clock=time.process_time)


def speed(arguments: argparse.Namespace) -> None:
    """Compare the trainings, and dreams of a single model with those of an ensemble."""
    for hidden in (32, 64, 128, 256):
        seconds = updates_of(hidden)
        print_row({"hidden": hidden, "seconds": seconds, "ratio": seconds["batched"] / seconds["one after the other"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("exploitation", "speed"))
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--out", type=Path, default=Path("runs/ensembles"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--horizon", type=int, default=100)
    parser.add_argument("--rollouts", type=int, default=1)
    parser.add_argument("--generations", type=int, default=15)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    {"exploitation": exploitation, "speed": speed}[arguments.part](arguments)


if __name__ == "__main__":
    main()
