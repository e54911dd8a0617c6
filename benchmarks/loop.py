"""`iterate` on harder environments: real scores of agents that are trained only in dreams.

    OMP_NUM_THREADS=1 python benchmarks/loop.py --env Pendulum-v1 --seeds 0 1 2

Prints one line of JSON per seed: the rounds, the round with the best validation score, and the
processor time. With --out, the runs are kept and an interrupted run resumes. Its times then cover
only the last call.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import print_row

import worldmodel as wm
from worldmodel.dream import Scores
from worldmodel.experiments import best_round

SHARED = {
    "max_rounds": 4,
    "first_policy": "repeat",
    "exploration": 0.1,
    "controller": wm.ControllerConfig(features="z", hidden_size=16),
}
SEARCH = wm.SearchConfig(population=32, sigma=0.5, patience=None, test_dreams=128)
RECIPES: dict[str, dict[str, Any]] = {
    "Pendulum-v1": {
        **SHARED,
        "first_episodes": 150,
        "controller_episodes": 30,
        "mdnrnn": wm.MDNRNNConfig(hidden_size=32, num_components=3),
        "training_config": wm.TrainingConfig(num_updates=1000, learning_rate=1e-2, clip_norm=10.0),
        "rollouts": 8,
        "search": replace(SEARCH, generations=90),
    },
    "LunarLander-v3": {
        **SHARED,
        "first_episodes": 300,
        "controller_episodes": 50,
        "mdnrnn": wm.MDNRNNConfig(hidden_size=64, num_components=3),
        "training_config": wm.TrainingConfig(num_updates=1200, learning_rate=1e-2, clip_norm=10.0),
        "rollouts": 4,
        "search": replace(SEARCH, generations=40),
    },
}
TARGETS = {"Pendulum-v1": -200.0, "LunarLander-v3": 200.0}  # validation score at which a run stops


def run(env: str, seed: int, out: Path) -> dict[str, Any]:
    """Run `iterate` and return its rounds and the best round's unbiased score."""
    began, cpu = time.monotonic(), time.process_time()
    rounds = wm.iterate(env, out=out, target=TARGETS[env], config=wm.IterationConfig(**RECIPES[env]), seed=seed)
    best = best_round(rounds)
    names = ("validation", "real", "dream")
    table = [{name: _score(getattr(one, name)) for name in names} for one in rounds]
    return {
        "env": env,
        "seed": seed,
        "best_round": best.number,
        "real": _score(best.real),
        "random": _score(best.random),
        "rounds": table,
        "cpu_seconds": round(time.process_time() - cpu),
        "wall_seconds": round(time.monotonic() - began),
        "version": wm.__version__,
    }


def _score(scores: Scores) -> list[float]:
    """Return mean and standard error."""
    return [round(scores.mean, 1), round(scores.standard_error, 1)]


def main() -> None:
    """Print a line per seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=list(RECIPES), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="directory for the runs, OUT/ENV-SEED; a temporary one if absent")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            out = (arguments.out or Path(temporary)) / f"{arguments.env}-{seed}"
            print_row(run(arguments.env, seed, out))


if __name__ == "__main__":
    main()
