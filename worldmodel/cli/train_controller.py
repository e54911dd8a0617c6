"""Search a controller by evolution, in dreams or in the real environment (--env), and write it as a directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from bars import Bar
from command import add_device, add_dreams, add_environment, choose_device, parse_with_preset, run
from fields import add_fields, read_fields

import worldmodel as wm
from worldmodel.agents import CONTROLLER_FILE, CONTROLLER_FORMAT, SEARCH_FILE, Generation, OpenAIESConfig, RealPopulation
from worldmodel.dream import score, time_limit, usual_horizon
from worldmodel.runtime import prepare_directory

NO_OPTIONS = ("worlds", "openai_es", "initial", "seed", "log", "resume", "on_generation")
DEFAULTS = {"population": 32, "generations": 50, "patience": 3, "horizon": None, "test_dreams": None}
TEST_DREAMS, TEST_EPISODES = 1024, 64


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="world model directory")
    parser.add_argument("--out", required=True, help=f"directory for the controller; the search's state is OUT.{SEARCH_FILE}")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the dreams; above 1 they are harder than M thinks")
    add_dreams(parser)
    parser.add_argument("--env", help="Gymnasium id: search in this real environment, not in dreams")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes for --env; 0 plays in this one; the result is the same"
    )
    add_environment(parser)
    parser.add_argument("--rollouts", type=int, default=8, help="dreams, or real episodes, of each candidate")
    parser.add_argument("--initial", help="controller directory to start from, whose kind is kept")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted search in OUT; give the same options")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier controller in OUT")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search and of its episodes")
    add_fields(parser, wm.evolve, leave_out=NO_OPTIONS, defaults=DEFAULTS)
    add_fields(parser, OpenAIESConfig)
    add_device(parser)
    return parse_with_preset(parser, "train_controller")


def prepare(args: argparse.Namespace) -> Path:
    """Make OUT ready before the work, not after it, and return the path of the search's log."""
    log = Path(args.out).with_name(f"{Path(args.out).name}.{SEARCH_FILE}")  # beside OUT, which holds a controller and no more
    if args.resume and log.exists():  # whatever was to be overwritten was so when this search began
        return log
    if log.exists() and not args.overwrite:
        raise FileExistsError(f"{log}: expected no search yet, got one; --resume goes on with it, --overwrite starts anew")
    prepare_directory(args.out, marker=CONTROLLER_FILE, format=CONTROLLER_FORMAT, overwrite=args.overwrite)
    if args.overwrite:
        log.unlink(missing_ok=True)
    return log


def main() -> None:
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
    with Bar("search", "generation") as bar:

        def report(generation: Generation) -> None:
            facts = {"best": generation.best, "mean": generation.mean, "best_test": generation.best_test}
            bar.show(generation.number, generation.total, **facts)
            if generation.test is not None:  # what is best so far is kept, whatever comes
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


if __name__ == "__main__":
    kept = "OUT holds the best controller tested so far; if none was, what it held before"
    run(main, resume=f"{kept}; the same command with --resume goes on.")
