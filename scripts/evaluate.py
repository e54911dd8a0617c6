"""Score a controller in the real environment, in the dream, and against random play."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from command import Bar, add_device, add_environment, add_termination, choose_device, run

import worldmodel as wm
from worldmodel.checkpoint import write_bytes


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="world model directory")
    parser.add_argument("--controller", required=True, help="controller directory")
    parser.add_argument("--env", required=True, help="Gymnasium id")
    parser.add_argument("--episodes", type=int, default=100, help="real episodes")
    parser.add_argument("--num-dreams", type=int, default=1024, help="dreamed episodes")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the dreams")
    add_termination(parser)
    parser.add_argument("--out", help="JSON file for every episode's return and length")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the episodes, which are none of a collection's, and of the dreams"
    )
    add_environment(parser)
    add_device(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.out and Path(args.out).exists() and not args.overwrite:
        raise FileExistsError(f"{args.out}: already there; pass --overwrite to replace it")
    device = choose_device(args.device)
    world = wm.WorldModel.from_pretrained(args.model, device=device)
    controller = wm.Controller.from_pretrained(args.controller, device=device)
    with Bar("evaluate", "step") as bar:
        evaluation = wm.evaluate(
            controller,
            world,
            env=args.env,
            num_episodes=args.episodes,
            seed=args.seed,
            max_steps=args.max_steps,
            env_kwargs=args.env_kwargs,
            temperature=args.temperature,
            termination=args.termination,
            num_dreams=args.num_dreams,
            on_step=lambda steps, alive: bar.show(steps, None, episodes_running=alive),
        )
    print(evaluation)
    if args.out:
        content = {name: getattr(evaluation, name).to_json() for name in ("real", "dream", "random")}
        text = json.dumps({"temperature": args.temperature, "seed": args.seed, **content}, indent=2) + "\n"
        write_bytes(args.out, text.encode())
        print(f"scores: {args.out}")


if __name__ == "__main__":
    run(main)
