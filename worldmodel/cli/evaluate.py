"""Score a controller in the real environment, in dreams, and against random play; or score fixed policies (--probe)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import worldmodel as wm
from worldmodel.cli.options import (
    add_device,
    add_dreams,
    add_environment,
    choose_device,
    parse_with_preset,
    program,
    show,
)
from worldmodel.evaluation import Evaluation, Probe
from worldmodel.runtime import Reporter, write_bytes


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="world model directory")
    parser.add_argument("--controller", help="controller directory")
    parser.add_argument(
        "--probe", action="store_true", help="score fixed policies instead: do dreams rank them as the real environment does?"
    )
    parser.add_argument("--env", required=True, help="Gymnasium id")
    parser.add_argument("--episodes", type=int, default=100, help="number of real episodes")
    parser.add_argument("--workers", type=int, default=0, help="worker processes for --probe; 0: none; the result is the same")
    parser.add_argument("--num-dreams", type=int, default=1024, help="number of dreams")
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0], help="of the dreams; several with --probe")
    add_dreams(parser)
    parser.add_argument("--out", help="JSON file to write, with each episode's return and length")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the episodes, which differ from those of any collection, and of the dreams"
    )
    add_environment(parser)
    add_device(parser)
    return parse_with_preset(parser, "evaluate")


def score_controller(args: argparse.Namespace, world: wm.WorldModel) -> tuple[Evaluation, dict[str, Any]]:
    """Score ``--controller``; return its scores and the content of ``--out``."""
    if args.controller is None or len(args.temperature) != 1:
        raise ValueError("--controller, --temperature: expected a controller and one temperature, or --probe")
    controller = wm.Controller.from_pretrained(args.controller, device=world.device)
    with Reporter() as bars:
        evaluation = wm.evaluate(
            controller,
            world,
            **options(args),
            temperature=args.temperature[0],
            on_step=lambda steps, alive: show(bars, "evaluate", steps, None, "step", episodes_running=alive),
        )
    content = {name: getattr(evaluation, name).to_json() for name in ("real", "dream", "random")}
    return evaluation, {"temperature": args.temperature[0], "seed": args.seed, **content}


def score_fixed_policies(args: argparse.Namespace, world: wm.WorldModel) -> tuple[Probe, dict[str, Any]]:
    """Score fixed policies; return their scores and the content of ``--out``."""
    with Reporter() as bars:
        found = wm.probe(
            world,
            **options(args),
            temperatures=args.temperature,
            num_workers=args.workers,
            on_policy=lambda done, total: show(bars, "probe", done, total, "score"),
        )
    return found, {"seed": args.seed, **found.to_json()}


def options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that both kinds of scores share."""
    names = ("env", "seed", "max_steps", "env_kwargs", "termination", "precision", "num_dreams")
    return {"num_episodes": args.episodes} | {name: getattr(args, name) for name in names}


@program()
def main() -> None:
    """Run the command."""
    args = parse_arguments()
    if args.out and Path(args.out).exists() and not args.overwrite:
        raise FileExistsError(f"{args.out}: already there; pass --overwrite to replace it")
    world = wm.WorldModel.from_pretrained(args.model, device=choose_device(args.device))
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)  # fail now, not after playing
    found: Evaluation | Probe
    found, content = score_fixed_policies(args, world) if args.probe else score_controller(args, world)
    print(found)
    if args.out:
        write_bytes(args.out, (json.dumps(content, indent=2) + "\n").encode())
        print(f"scores: {args.out}")
