"""Score a controller in the real environment, in the dream, and against random play; or fixed policies (--probe)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bars import Bar
from command import add_device, add_dreams, add_environment, choose_device, parse_with_preset, run

import worldmodel as wm
from worldmodel.evaluation import Evaluation, Probe
from worldmodel.runtime import write_bytes


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="world model directory")
    parser.add_argument("--controller", help="controller directory")
    parser.add_argument(
        "--probe", action="store_true", help="score fixed policies instead: does the dream rank them as reality does?"
    )
    parser.add_argument("--env", required=True, help="Gymnasium id")
    parser.add_argument("--episodes", type=int, default=100, help="real episodes")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes for --probe; 0 plays in this one; the result is the same"
    )
    parser.add_argument("--num-dreams", type=int, default=1024, help="dreamed episodes")
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0], help="of the dreams; several with --probe")
    add_dreams(parser)
    parser.add_argument("--out", help="JSON file for every episode's return and length")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the episodes, which are none of a collection's, and of the dreams"
    )
    add_environment(parser)
    add_device(parser)
    return parse_with_preset(parser, "evaluate")


def score_controller(args: argparse.Namespace, world: wm.WorldModel) -> tuple[Evaluation, dict[str, Any]]:
    if args.controller is None or len(args.temperature) != 1:
        raise ValueError("--controller, --temperature: expected a controller and one temperature, or --probe")
    controller = wm.Controller.from_pretrained(args.controller, device=world.device)
    with Bar("evaluate", "step") as bar:
        evaluation = wm.evaluate(
            controller,
            world,
            **options(args),
            temperature=args.temperature[0],
            on_step=lambda steps, alive: bar.show(steps, None, episodes_running=alive),
        )
    content = {name: getattr(evaluation, name).to_json() for name in ("real", "dream", "random")}
    return evaluation, {"temperature": args.temperature[0], "seed": args.seed, **content}


def score_fixed_policies(args: argparse.Namespace, world: wm.WorldModel) -> tuple[Probe, dict[str, Any]]:
    with Bar("probe", "score") as bar:
        found = wm.probe(world, **options(args), temperatures=args.temperature, num_workers=args.workers, on_policy=bar.show)
    return found, {"seed": args.seed, **found.to_json()}


def options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("env", "seed", "max_steps", "env_kwargs", "termination", "precision", "num_dreams")
    return {"num_episodes": args.episodes} | {name: getattr(args, name) for name in names}


def main() -> None:
    args = parse_arguments()
    if args.out and Path(args.out).exists() and not args.overwrite:
        raise FileExistsError(f"{args.out}: already there; pass --overwrite to replace it")
    world = wm.WorldModel.from_pretrained(args.model, device=choose_device(args.device))
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)  # now, and not when all is played
    found, content = (score_fixed_policies if args.probe else score_controller)(args, world)
    print(found)
    if args.out:
        write_bytes(args.out, (json.dumps(content, indent=2) + "\n").encode())
        print(f"scores: {args.out}")


if __name__ == "__main__":
    run(main)
