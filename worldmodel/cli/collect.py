"""Collect real episodes from a Gymnasium environment into a store. The same command resumes an interrupted collection."""

from __future__ import annotations

import argparse
import time

import worldmodel as wm
from worldmodel.agents import load_agent
from worldmodel.cli.options import (
    add_device,
    add_encoder,
    add_environment,
    choose_device,
    environment,
    open_vision,
    parse_with_preset,
    program,
    run_config,
)
from worldmodel.data import POLICIES
from worldmodel.models import Encoder
from worldmodel.runtime import Progress


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", required=True, help='Gymnasium id, e.g. CartPole-v1, or "module:Id-v0" of another package')
    parser.add_argument(
        "--out", required=True, help="directory of the store; an earlier collection there with the same options is continued"
    )
    parser.add_argument("--episodes", type=int, required=True, help="number of episodes in the finished store")
    parser.add_argument(
        "--policy",
        default="random",
        choices=(*POLICIES, "controller"),
        help="repeat holds an action for 1..10 steps, repeat-long for 1..100; sweep: Discrete only; brownian: Box only; "
        "controller: the agent of --controller",
    )
    parser.add_argument("--model", help="world model directory, for --policy controller")
    parser.add_argument("--controller", help="controller directory, for --policy controller")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0: none; the result is the same")
    parser.add_argument("--seed", type=int, default=0, help="seed; episode k depends on (seed, k) only")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier store in OUT; anything else there is an error"
    )
    add_environment(parser)
    add_encoder(parser, required=False)
    add_device(parser)
    return parse_with_preset(parser, "collect")


def choose_policy(args: argparse.Namespace) -> str | wm.LatentPolicy:
    """Return the name of the policy, or the agent of ``--controller`` as a policy."""
    if args.policy != "controller":
        return args.policy
    if not (args.model and args.controller):
        raise ValueError(
            "--policy controller: expected --model and --controller too, got " + str([args.model, args.controller])
        )
    device = choose_device(args.device)
    world = wm.WorldModel.from_pretrained(args.model, device=device)
    return wm.LatentPolicy(world, load_agent(args.controller, device=device))


@program(resume="Finished episodes are kept; the same command resumes the collection.")
def main() -> None:
    """Run the command."""
    args = parse_arguments()
    began, steps = time.monotonic(), 0

    def count(progress: Progress) -> None:
        nonlocal steps
        steps = int(progress.metrics["steps"])

    store = wm.collect(
        environment(args),
        out=args.out,
        num_episodes=args.episodes,
        policy=choose_policy(args),
        seed=args.seed,
        workers=args.workers,
        encoder=Encoder(open_vision(args), dtype=args.dtype, precision=args.precision) if args.vision else None,
        run=run_config(args, count),
    )
    print(f"episodes     {len(store)}")
    print(f"steps        {store.num_steps}")
    print(f"mean length  {store.lengths.mean():.1f} +- {store.lengths.std():.1f}")
    print(f"steps/s      {steps / (time.monotonic() - began):,.0f}")
    print(f"failures     {len(store.failures)}")
    for failure in store.failures:
        print(f"  episode {failure['episode_id']} (seed {failure['seed']}): {failure['error']}")
    print(f"store: {store.path}")
