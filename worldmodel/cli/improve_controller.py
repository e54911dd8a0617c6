"""Improve a controller by PPO in short dreams that start within real episodes, and write it as a directory."""

from __future__ import annotations

import argparse

import worldmodel as wm
from worldmodel.agents import CONTROLLER_FILE, CONTROLLER_FORMAT, load_agent
from worldmodel.cli.options import (
    add_device,
    add_dreams,
    add_fields,
    choose_device,
    parse_with_preset,
    program,
    read_fields,
)
from worldmodel.dream import StartBank, score, usual_horizon
from worldmodel.runtime import Progress, RunConfig, prepare_directory


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="world model directory")
    parser.add_argument("--controller", required=True, help="directory of the controller to improve")
    parser.add_argument("--data", required=True, help="store of the episodes in which dreams start, encoded or not")
    parser.add_argument("--out", required=True, help="directory for the improved controller")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of the dreams; above 1 they are more random than M predicts"
    )
    add_dreams(parser)
    parser.add_argument("--num-dreams", type=int, default=1024, help="number of short dreams")
    parser.add_argument(
        "--whole-horizon",
        type=int,
        help="maximum length of a complete test dream; None: the time limit of the data's environment",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier controller in OUT")
    parser.add_argument("--seed", type=int, default=0, help="seed of starts and dreams")
    add_fields(parser, wm.PPOConfig)
    add_fields(parser, StartBank.along, leave_out=("world", "data", "seed"))
    add_device(parser)
    return parse_with_preset(parser, "improve_controller")


@program(resume="OUT holds the best controller tested so far; if none was tested, it is unchanged.")
def main() -> None:
    """Run the command."""
    args = parse_arguments()
    world = wm.WorldModel.from_pretrained(args.model, device=choose_device(args.device))
    controller = load_agent(args.controller, device=world.device)
    kind = {"temperature": args.temperature, "termination": args.termination, "precision": args.precision}
    dreams = wm.Dreams(world, args.num_dreams, **kind)
    horizon = args.whole_horizon or usual_horizon(world)
    config = wm.PPOConfig(**read_fields(args, wm.PPOConfig))
    starts = StartBank.along(
        world, args.data, seed=args.seed, **read_fields(args, StartBank.along, leave_out=("world", "data", "seed"))
    )
    prepare_directory(args.out, marker=CONTROLLER_FILE, format=CONTROLLER_FORMAT, overwrite=args.overwrite)

    def save(progress: Progress) -> None:
        if "test" in progress.metrics:  # save the best so far, in case the run is interrupted
            progress.result.save_pretrained(args.out, overwrite=True)

    best = wm.ppo(controller, dreams, starts, config=config, horizon=horizon, seed=args.seed, run=RunConfig(on_progress=save))
    for name, one in (("before", controller), ("after", best)):
        scores = score(dreams.variant(num_dreams=1024), one, horizon=horizon, seed=args.seed + 1)
        print(f"dream return {name:6}  {scores} at temperature {args.temperature:g}")
    print(f"controller: {args.out}")
