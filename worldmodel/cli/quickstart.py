"""The main job on CartPole: random rollouts, a world model, a controller trained only in its dreams, its score in reality."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import gymnasium as gym
import torch
from bars import StageBars
from command import add_device, choose_device, run
from loop import report, show_stages

import worldmodel as wm
from worldmodel.data import rollouts
from worldmodel.experiments import best_round
from worldmodel.plots import draw_report, save_figure
from worldmodel.rng import EVALUATION_STREAM, derive_seed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="Gymnasium id; the numbers here were chosen on CartPole-v1")
    parser.add_argument("--out", default="runs/quickstart", help="directory for everything; run again, it goes on")
    parser.add_argument("--max-rounds", type=int, default=5, help="rounds of the loop at most")
    parser.add_argument("--overwrite", action="store_true", help="start anew where OUT holds an earlier run")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    add_device(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # the matrices are small: a second thread gains little, and costs much on a busy machine
    began = time.monotonic()
    target = gym.spec(args.env).reward_threshold
    bars = StageBars()
    rounds = wm.iterate(
        args.env,
        out=args.out,
        target=target,
        config=wm.IterationConfig(max_rounds=args.max_rounds),
        seed=args.seed,
        device=choose_device(args.device),
        overwrite=args.overwrite,
        on_progress=show_stages(bars),
    )
    bars.close()
    best = best_round(rounds)
    world = wm.WorldModel.from_pretrained(best.directory / "world")
    policy = wm.LatentPolicy(world, wm.Controller.from_pretrained(best.directory / "controller"))
    (episode,) = rollouts(args.env, policy, episode_ids=[0], seed=derive_seed(args.seed, EVALUATION_STREAM))
    figure = Path(args.out) / "report.png"
    save_figure(draw_report(rounds, episode, target=target), figure)
    report(rounds, args.out, target=target, seed=args.seed, seconds=time.monotonic() - began)
    print(f"figure       {figure}")


if __name__ == "__main__":
    run(main, resume="The same command goes on where it stopped.")
