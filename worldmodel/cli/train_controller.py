"""Search a controller by evolution, in dreams or in the real environment (--env), and write it as a directory."""

from __future__ import annotations

import argparse
from pathlib import Path

import worldmodel as wm
from worldmodel.agents import (
    CONTROLLER_FILE,
    CONTROLLER_FORMAT,
    SEARCH_FILE,
    ControllerConfig,
    OpenAIESConfig,
    RealPopulation,
    load_agent,
)
from worldmodel.cli.options import (
    add_device,
    add_dreams,
    add_environment,
    add_fields,
    choose_device,
    environment,
    parse_with_preset,
    program,
    read_fields,
    run_config,
)
from worldmodel.dream import score, time_limit, usual_horizon
from worldmodel.evaluation import EvaluationConfig
from worldmodel.runtime import Progress, prepare_directory

DEFAULTS = {"population": 32, "generations": 50, "patience": 3, "test_dreams": None}
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
    parser.add_argument(
        "--resume", action="store_true", help="resume even with --overwrite; an interrupted search is resumed anyway"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier controller in OUT")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search and of its episodes")
    parser.add_argument("--horizon", type=int, help="longest episode, in steps; None: the limit of the environment")
    add_fields(parser, wm.SearchConfig, leave_out=("openai_es",), defaults=DEFAULTS)
    add_fields(parser, ControllerConfig)
    add_fields(parser, OpenAIESConfig)
    add_device(parser)
    return parse_with_preset(parser, "train_controller")


def prepare(args: argparse.Namespace) -> Path:
    """Prepare OUT before the search, and return the path of the search's log."""
    log = Path(args.out).with_name(f"{Path(args.out).name}.{SEARCH_FILE}")  # next to OUT, which holds only a controller
    if log.exists() and (args.resume or not args.overwrite):  # --overwrite took effect when this search started
        return log
    prepare_directory(args.out, marker=CONTROLLER_FILE, format=CONTROLLER_FORMAT, overwrite=args.overwrite)
    return log


@program(
    resume="OUT holds the best controller tested so far; if none was tested, it is unchanged. "
    "The same command, without --overwrite, resumes the search."
)
def main() -> None:
    """Run the command."""
    args = parse_arguments()
    device = choose_device(args.device)
    world = wm.WorldModel.from_pretrained(args.model, device=device)
    kind = {"temperature": args.temperature, "termination": args.termination, "precision": args.precision}
    dreams = wm.Dreams(world, args.population * args.rollouts, **kind)
    worlds: wm.Dreams | RealPopulation = dreams
    if args.env:
        worlds = RealPopulation(world, environment(args), rollouts=args.rollouts, workers=args.workers)
    if args.horizon is None:
        args.horizon = time_limit(environment(args)) if args.env else usual_horizon(world)
    if args.test_dreams is None:
        args.test_dreams = TEST_EPISODES if args.env else TEST_DREAMS
    climbing = OpenAIESConfig(**read_fields(args, OpenAIESConfig))
    config = wm.SearchConfig(**read_fields(args, wm.SearchConfig, leave_out=("openai_es",)), openai_es=climbing)
    start = load_agent(args.initial, device=device) if args.initial else ControllerConfig(**read_fields(args, ControllerConfig))
    log = prepare(args)

    def save(progress: Progress) -> None:
        if "test" in progress.metrics:  # save the best so far, in case the search is interrupted
            progress.result.save_pretrained(args.out, overwrite=True)

    run = run_config(args, save)
    controller = wm.evolve(worlds, start, config=config, horizon=args.horizon, seed=args.seed, log=log, run=run)
    controller.save_pretrained(args.out, overwrite=True)
    print(f"parameters    {controller.num_parameters}")
    if args.env:
        tested = EvaluationConfig(num_episodes=TEST_EPISODES)
        print(wm.evaluate(controller, world, env=environment(args), config=tested, seed=args.seed))
    elif world.mdnrnn.reward_head is not None:
        scores = score(dreams.variant(num_dreams=1024), controller, horizon=args.horizon, seed=args.seed)
        print(f"dream return  {scores} at temperature {args.temperature:g}")
    print(f"controller: {args.out}")
