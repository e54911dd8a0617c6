"""Pendulum and Acrobot by the public API: collect, fit, search in dreams, evaluate in reality.

    OMP_NUM_THREADS=1 python benchmarks/environments.py --env Pendulum-v1 --seeds 0 1 2

Prints one line of JSON per seed.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import torch
from harness import print_row

import worldmodel as wm

RECIPES = {
    "Pendulum-v1": {"episodes": 200, "updates": 1200, "hidden": 64, "rollouts": 8, "generations": 40, "sigma": 0.5},
    "Acrobot-v1": {"episodes": 100, "updates": 800, "hidden": 32, "rollouts": 4, "generations": 9, "sigma": 0.3},
}
HORIZON = {"Pendulum-v1": 200, "Acrobot-v1": 500}  # steps, the time limits of the environments
POPULATION = 32


def run(env: str, policy: str, seed: int, out: Path) -> dict[str, object]:
    """Collect, fit, search in dreams and evaluate; return scores with standard errors."""
    recipe, times = RECIPES[env], [time.monotonic()]
    wm.collect(env, out=out / "data", num_episodes=recipe["episodes"], policy=policy, seed=seed)
    times.append(time.monotonic())
    world = wm.fit(
        out / "data",
        out=out / "world",
        seed=seed,
        training_config=wm.TrainingConfig(num_updates=recipe["updates"], learning_rate=1e-2, clip_norm=10.0),
        config=wm.MDNRNNConfig(hidden_size=recipe["hidden"], num_components=3),
    )
    times.append(time.monotonic())
    controller = wm.evolve(
        wm.Dreams(world, POPULATION * recipe["rollouts"]),
        config=wm.SearchConfig(
            generations=recipe["generations"], population=POPULATION, sigma=recipe["sigma"], test_dreams=128
        ),
        horizon=HORIZON[env],
        seed=seed,
    )
    times.append(time.monotonic())
    result = wm.evaluate(
        controller, world, env=env, seed=10**6 + seed, config=wm.EvaluationConfig(num_episodes=100, num_dreams=256)
    )
    times.append(time.monotonic())
    scores = {
        name: [round(getattr(result, name).mean, 1), round(getattr(result, name).standard_error, 1)]
        for name in ("real", "dream", "random")
    }
    seconds = [round(after - before, 1) for before, after in itertools.pairwise(times)]
    return {"env": env, "policy": policy, "seed": seed, **scores, "seconds": seconds, "version": wm.__version__}


def main() -> None:
    """Print a line per seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=list(RECIPES), required=True)
    parser.add_argument("--policy", default="repeat", help="of the collection: repeat (actions held 1 to 10 steps) or random")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as out:
            print_row(run(arguments.env, arguments.policy, seed, Path(out)))


if __name__ == "__main__":
    main()
