"""Collect real episodes from a Gymnasium environment into a store; the same command goes on where it stopped."""

from __future__ import annotations

import argparse
import time

from bars import Bar
from command import add_device, add_environment, choose_device, parse_with_preset, run
from encoder import add_encoder, open_vision

import worldmodel as wm
from worldmodel.data import POLICIES, CollectionProgress
from worldmodel.models import Encoder


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", required=True, help='Gymnasium id, e.g. CartPole-v1, or "module:Id-v0" of another package')
    parser.add_argument(
        "--out", required=True, help="directory of the store; absent, empty, or an earlier run of the same recipe"
    )
    parser.add_argument("--episodes", type=int, required=True, help="how many episodes the store shall hold")
    parser.add_argument(
        "--policy",
        default="random",
        choices=(*POLICIES, "controller"),
        help="uniform; held 1..10 steps; held 1..100; sweeps (Discrete); random walk (Box); a trained controller",
    )
    parser.add_argument("--model", help="world model directory, for --policy controller")
    parser.add_argument("--controller", help="controller directory, for --policy controller")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 runs in this one; the result is the same")
    parser.add_argument("--seed", type=int, default=0, help="episode k depends on (seed, k) only")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier store at --out; nothing else is ever replaced"
    )
    add_environment(parser)
    add_encoder(parser, required=False)
    add_device(parser)
    return parse_with_preset(parser, "collect")


def choose_policy(args: argparse.Namespace) -> str | wm.LatentPolicy:
    if args.policy != "controller":
        return args.policy
    if not (args.model and args.controller):
        raise ValueError(
            "--policy controller: expected --model and --controller too, got " + str([args.model, args.controller])
        )
    device = choose_device(args.device)
    world = wm.WorldModel.from_pretrained(args.model, device=device)
    return wm.LatentPolicy(world, wm.Controller.from_pretrained(args.controller, device=device))


def main() -> None:
    args = parse_arguments()
    began, steps = time.monotonic(), 0
    with Bar("collect", "episode") as bar:

        def show(progress: CollectionProgress) -> None:
            nonlocal steps
            steps = progress.steps
            bar.show(
                progress.episodes, progress.total, steps_per_s=steps / (time.monotonic() - began), failures=progress.failures
            )

        store = wm.collect(
            args.env,
            out=args.out,
            num_episodes=args.episodes,
            policy=choose_policy(args),
            seed=args.seed,
            num_workers=args.workers,
            max_steps=args.max_steps,
            env_kwargs=args.env_kwargs,
            encoder=Encoder(open_vision(args), dtype=args.dtype, precision=args.precision) if args.vision else None,
            overwrite=args.overwrite,
            on_progress=show,
        )
    print(f"episodes     {len(store)}")
    print(f"steps        {store.num_steps}")
    print(f"mean length  {store.lengths.mean():.1f} +- {store.lengths.std():.1f}")
    print(f"steps/s      {steps / (time.monotonic() - began):,.0f}")
    print(f"failures     {len(store.failures)}")
    for failure in store.failures:
        print(f"  episode {failure['episode_id']} (seed {failure['seed']}): {failure['error']}")
    print(f"store: {store.path}")


if __name__ == "__main__":
    run(main, resume="What is whole is kept; the same command goes on.")
