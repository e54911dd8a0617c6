"""Train an agent for CartPole only in the dreams of a world model, and score it in the real environment."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import gymnasium as gym
import torch

import worldmodel as wm
from worldmodel.cli.iterate import report
from worldmodel.cli.options import add_device, choose_device, program, run_config
from worldmodel.data import EpisodeFailure, rollouts
from worldmodel.experiments import best_round
from worldmodel.plots import draw_report, save_figure
from worldmodel.rng import EVALUATION_STREAM, derive_seed


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="Gymnasium id; the defaults were chosen for CartPole-v1")
    parser.add_argument(
        "--out", default="runs/quickstart", help="output directory; the same command resumes an interrupted run"
    )
    parser.add_argument("--max-rounds", type=int, default=5, help="maximum number of rounds")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in OUT")
    parser.add_argument("--seed", type=int, default=0, help="seed of the complete run")
    add_device(parser)
    return parser.parse_args()


@program(resume="The same command resumes the run.")
def main() -> None:
    """Run the command."""
    args = parse_arguments()
    torch.set_num_threads(1)  # small matrices: a second thread gains little, and costs much on a busy machine
    began = time.monotonic()
    target = gym.spec(args.env).reward_threshold
    rounds = wm.iterate(
        args.env,
        out=args.out,
        target=target,
        config=wm.IterationConfig(max_rounds=args.max_rounds),
        seed=args.seed,
        device=choose_device(args.device),
        run=run_config(args),
    )
    best = best_round(rounds)
    world = wm.WorldModel.from_pretrained(best.directory / "world")
    policy = wm.LatentPolicy(world, wm.Controller.from_pretrained(best.directory / "controller"))
    (played,) = rollouts(args.env, policy, episode_ids=[0], seed=derive_seed(args.seed, EVALUATION_STREAM))
    if isinstance(played, EpisodeFailure):
        raise RuntimeError(f"env: expected an episode to finish, got {played}")
    figure = Path(args.out) / "report.png"
    save_figure(draw_report(rounds, played, target=target), figure)
    report(rounds, args.out, target=target, seed=args.seed, seconds=time.monotonic() - began)
    print(f"figure       {figure}")
