"""Score a controller in the real environment, in dreams, and against random play; or score fixed policies (--probe)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import worldmodel as wm
from worldmodel.agents import load_agent
from worldmodel.cli.options import (
    add_device,
    add_dreams,
    add_environment,
    choose_device,
    environment,
    parse_with_preset,
    program,
)
from worldmodel.evaluation import Evaluation, EvaluationConfig, Probe
from worldmodel.runtime import write_bytes


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
    agent = load_agent(args.controller, device=world.device)
    evaluation = wm.evaluate(agent, world, env=environment(args), config=evaluation_config(args), seed=args.seed)
    content = {name: getattr(evaluation, name).to_json() for name in ("real", "dream", "random")}
    return evaluation, {"temperature": args.temperature[0], "seed": args.seed, **content}


def score_fixed_policies(args: argparse.Namespace, world: wm.WorldModel) -> tuple[Probe, dict[str, Any]]:
    """Score fixed policies; return their scores and the content of ``--out``."""
    found = wm.probe(
        world,
        env=environment(args),
        temperatures=args.temperature,
        config=evaluation_config(args),
        seed=args.seed,
        workers=args.workers,
    )
    return found, {"seed": args.seed, **found.to_json()}


def evaluation_config(args: argparse.Namespace) -> EvaluationConfig:
    """Build the configuration that both kinds of scores share."""
    return EvaluationConfig(
        num_episodes=args.episodes,
        num_dreams=args.num_dreams,
        temperature=args.temperature[0],
        termination=args.termination,
        precision=args.precision,
    )


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
