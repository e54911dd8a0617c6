"""Ablation of M's defaults: held-out losses without each of them, in three environments."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from harness import write_result

import worldmodel as wm

ENVIRONMENTS = {"CartPole-v1": 1000, "Pendulum-v1": 100, "Acrobot-v1": 40}  # id: random episodes, about 20,000 steps each
VARIANTS = {
    "defaults": {},
    "predict_change=False": {"predict_change": False},
    "skip=False": {"skip": False},
    "both False": {"predict_change": False, "skip": False},
    "min_scale=0.001": {"min_scale": 0.001},
    "min_scale=0.1": {"min_scale": 0.1},
}
TERMS = ("nll_per_dim", "reward_nll", "termination_loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--updates", type=int, default=600, help="optimiser steps of each run")
    parser.add_argument("--seeds", type=int, default=2, help="runs per variant")
    parser.add_argument("--environments", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS), help="Gymnasium ids")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="fields that are not defaults")
    parser.add_argument("--out", required=True, help="directory for result.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for env in args.environments:
            data = Path(directory) / env
            wm.collect(env, out=data, num_episodes=ENVIRONMENTS[env], seed=0)
            for variant in args.variants:
                runs = [
                    train(data, Path(directory) / f"{env}-{variant}-{seed}", args.updates, seed, VARIANTS[variant])
                    for seed in range(args.seeds)
                ]
                means = {term: float(np.mean([run[term] for run in runs])) if term in runs[0] else None for term in TERMS}
                rows.append({"env": env, "variant": variant, **means, "runs": runs})
                print(f"{env:<12} {variant:<22}" + "".join(f"{means[term] or 0.0:>10.3f}" for term in TERMS), flush=True)
    write_result(args.out, {"updates": args.updates, "seeds": args.seeds, "rows": rows})


def train(data: Path, out: Path, updates: int, seed: int, fields: dict[str, object]) -> dict[str, float]:
    """Train one model and return its best held-out losses."""
    config, training = wm.MDNRNNConfig(hidden_size=64, **fields), wm.TrainingConfig(num_updates=updates)
    world = wm.fit(data, out=out, config=config, seed=seed, training_config=training)
    return world.provenance["training"]["best_metrics"]


if __name__ == "__main__":
    main()
