"""Search a linear controller by CMA-ES, in dreams only, and write it as a directory."""

from __future__ import annotations

import argparse

from command import Bar, add_device, add_termination, choose_device, run

import worldmodel as wm
from worldmodel.checkpoint import prepare_directory
from worldmodel.controller import CONTROLLER_FILE, CONTROLLER_FORMAT
from worldmodel.dream import usual_horizon
from worldmodel.evaluation import score


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="world model directory")
    parser.add_argument("--out", required=True, help="directory for the controller")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of the dreams; above 1 they are harder than the model thinks"
    )
    add_termination(parser)
    parser.add_argument("--features", choices=("z", "zh", "zhc"), default="zh", help="what the controller sees")
    parser.add_argument("--population", type=int, default=32, help="candidates in a generation")
    parser.add_argument("--rollouts", type=int, default=8, help="dreams of each candidate")
    parser.add_argument("--generations", type=int, default=50, help="generations at most")
    parser.add_argument(
        "--patience", type=int, default=3, help="stop after so many tests (one every 3 generations) without 1 %% of progress"
    )
    parser.add_argument("--sigma", type=float, default=0.1, help="initial standard deviation of the weights")
    parser.add_argument("--horizon", type=int, help="longest dream in steps (None: the limit of the environment, else 1000)")
    parser.add_argument("--initial", help="controller directory to start from")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier controller in OUT")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search and of the dreams")
    add_device(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    device = choose_device(args.device)
    world = wm.WorldModel.from_pretrained(args.model, device=device)
    initial = wm.LinearController.from_pretrained(args.initial, device=device) if args.initial else None
    dreams = wm.Dreams(world, args.population * args.rollouts, temperature=args.temperature, termination=args.termination)
    horizon = usual_horizon(world) if args.horizon is None else args.horizon
    prepare_directory(  # before the work, not after it
        args.out, marker=CONTROLLER_FILE, format=CONTROLLER_FORMAT, overwrite=args.overwrite
    )
    with Bar("dream", "generation") as bar:

        def report(generation: wm.Generation) -> None:
            facts = {"best": generation.best, "mean": generation.mean, "best_test": generation.best_test}
            bar.show(generation.number, generation.total, **facts)
            if generation.test is not None:  # what is best so far is kept, whatever comes
                generation.controller.save_pretrained(args.out, overwrite=True)

        controller = wm.evolve(
            dreams,
            generations=args.generations,
            population=args.population,
            horizon=horizon,
            sigma=args.sigma,
            features=args.features,
            initial=initial,
            patience=args.patience,
            seed=args.seed,
            on_generation=report,
        )
    controller.save_pretrained(args.out, overwrite=True)
    scores = score(dreams.variant(num_dreams=1024), controller, horizon=horizon, seed=args.seed)
    print(f"parameters    {controller.num_parameters}")
    print(f"dream return  {scores} at temperature {args.temperature:g}")
    print(f"controller: {args.out}")


if __name__ == "__main__":
    run(
        main,
        resume="OUT holds the best controller tested so far, if any was; --initial OUT starts from it.",
    )
