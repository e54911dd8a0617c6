"""Search a controller by evolution, in dreams or in the real environment (--env), and write it as a directory."""

from __future__ import annotations

import argparse
from pathlib import Path

import worldmodel as wm
from worldmodel.agents import CONTROLLER_FILE, CONTROLLER_FORMAT, SEARCH_FILE, Generation, OpenAIESConfig, RealPopulation
from worldmodel.cli.options import (
    add_device,
    add_dreams,
    add_environment,
    add_fields,
    choose_device,
    parse_with_preset,
    program,
    read_fields,
    show,
)
from worldmodel.dream import score, time_limit, usual_horizon
from worldmodel.runtime import Reporter, prepare_directory

NO_OPTIONS = ("worlds", "openai_es", "initial", "seed", "log", "resume", "on_generation")
DEFAULTS = {"population": 32, "generations": 50, "patience": 3, "horizon": None, "test_dreams": None}
TEST_DREAMS, TEST_EPISODES = 1024, 64


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="world model directory")
    parser.add_argument(
        "--out", required=True, help=f"directory of the controller; the state of the search is in OUT.{SEARCH_FILE}"
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of the dreams; above 1 they are more random than M predicts"
    )
    add_dreams(parser)
    parser.add_argument("--env", help="Gymnasium id; search in this real environment instead of dreams")
    parser.add_argument("--workers", type=int, default=0, help="worker processes for --env; 0: none; the result is the same")
    add_environment(parser)
    parser.add_argument("--rollouts", type=int, default=8, help="dreams, or real episodes, per candidate")
    parser.add_argument("--initial", help="directory of a controller to start from; its architecture is kept")
    parser.add_argument("--resume", action="store_true", help="resume an interrupted search in OUT, with the same options")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier controller in OUT")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search and of its episodes")
    add_fields(parser, wm.evolve, leave_out=NO_OPTIONS, defaults=DEFAULTS)
    add_fields(parser, OpenAIESConfig)
    add_device(parser)
    return parse_with_preset(parser, "train_controller")


def prepare(args: argparse.Namespace) -> Path:
    """Prepare OUT before the search, and return the path of the search's log."""
    log = Path(args.out).with_name(f"{Path(args.out).name}.{SEARCH_FILE}")  # next to OUT, which holds only a controller
    if args.resume and log.exists():  # --overwrite took effect when this search started
        return log
    if log.exists() and not args.overwrite:
        raise FileExistsError(
            f"{log}: expected no earlier search, got one; pass --resume to resume it, or --overwrite to start again"
        )
    prepare_directory(args.out, marker=CONTROLLER_FILE, format=CONTROLLER_FORMAT, overwrite=args.overwrite)
    if args.overwrite:
        log.unlink(missing_ok=True)
    return log


@program(
    resume="OUT holds the best controller tested so far; if none was tested, it is unchanged. "
    "The same command with --resume resumes the search."
)
def main() -> None:
    """Run the command."""
    args = parse_arguments()
    device = choose_device(args.device)
    world = wm.WorldModel.from_pretrained(args.model, device=device)
    kind = {"temperature": args.temperature, "termination": args.termination, "precision": args.precision}
    dreams = wm.Dreams(world, args.population * args.rollouts, **kind)
    worlds: wm.Dreams | RealPopulation = dreams
    options = {"max_steps": args.max_steps, "env_kwargs": args.env_kwargs}
    if args.env:
        worlds = RealPopulation(world, args.env, rollouts=args.rollouts, num_workers=args.workers, **options)
    if args.horizon is None:
        args.horizon = time_limit(args.env, **options) if args.env else usual_horizon(world)
    if args.test_dreams is None:
        args.test_dreams = TEST_EPISODES if args.env else TEST_DREAMS
    args.initial = wm.Controller.from_pretrained(args.initial, device=device) if args.initial else None
    log = prepare(args)
    with Reporter() as bars:

        def report(generation: Generation) -> None:
            metrics = {"best": generation.best, "mean": generation.mean, "best_test": generation.best_test}
            show(bars, "search", generation.number, generation.total, "generation", **metrics)
            if generation.test is not None:  # save the best so far, in case the search is interrupted
                generation.controller.save_pretrained(args.out, overwrite=True)

        config = OpenAIESConfig(**read_fields(args, OpenAIESConfig))
        controller = wm.evolve(worlds, openai_es=config, log=log, on_generation=report, **read_fields(args, wm.evolve))
    controller.save_pretrained(args.out, overwrite=True)
    print(f"parameters    {controller.num_parameters}")
    if args.env:
        print(wm.evaluate(controller, world, env=args.env, num_episodes=TEST_EPISODES, seed=args.seed, **options))
    elif world.mdnrnn.reward_head is not None:
        scores = score(dreams.variant(num_dreams=1024), controller, horizon=args.horizon, seed=args.seed)
        print(f"dream return  {scores} at temperature {args.temperature:g}")
    print(f"controller: {args.out}")
