"""Train V and M on one or several stores of episodes and write a world model directory."""

from __future__ import annotations

import argparse

from command import Bar, add_device, choose_device, run

import worldmodel as wm


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--data", nargs="+", required=True, help="directories that scripts/collect.py wrote, of one environment"
    )
    parser.add_argument("--out", required=True, help="directory for the world model; its training state goes to OUT/training")
    parser.add_argument("--hidden-size", type=int, default=128, help="H of the LSTM")
    parser.add_argument("--num-layers", type=int, default=1, help="stacked LSTM layers")
    parser.add_argument("--num-components", type=int, default=5, help="K of the mixtures")
    parser.add_argument(
        "--factorization", choices=[f.value for f in wm.Factorization], default="per_dimension", help="of the mixture"
    )
    parser.add_argument(
        "--noise-type", choices=[n.value for n in wm.NoiseType], default="diagonal", help="covariance of the components"
    )
    parser.add_argument("--window", type=int, default=64, help="steps of a training sequence")
    parser.add_argument("--burn-in", type=int, default=0, help="steps before a sequence that warm up the LSTM without counting")
    parser.add_argument("--batch-size", type=int, default=64, help="sequences in a batch")
    parser.add_argument("--test-fraction", type=float, default=0.1, help="part of the episodes that is held out")
    parser.add_argument("--updates", type=int, default=2000, help="optimiser steps")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="Adam's peak rate; a cosine leads to 1e-5")
    parser.add_argument("--warmup", type=int, default=0, help="updates of linear warm-up")
    parser.add_argument("--clip-norm", type=float, default=10.0, help="largest norm of the gradient")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of matrix products")
    parser.add_argument(
        "--patience", type=int, help="stop after so many evaluations (one every 200 updates) without improvement"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard scalars (extra: tensorboard)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in OUT; give the same options")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in OUT")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split, the weights and the batches")
    add_device(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with Bar("train", "update") as bar:
        world = wm.fit(
            args.data,
            out=args.out,
            seed=args.seed,
            device=choose_device(args.device),
            data_config=wm.DataConfig(
                window=args.window, burn_in=args.burn_in, batch_size=args.batch_size, test_fraction=args.test_fraction
            ),
            training_config=wm.TrainingConfig(
                num_updates=args.updates,
                learning_rate=args.learning_rate,
                warmup_updates=args.warmup,
                clip_norm=args.clip_norm,
                precision=args.precision,
                patience=args.patience,
            ),
            resume=args.resume,
            overwrite=args.overwrite,
            tensorboard=args.tensorboard,
            on_progress=lambda p: bar.show(
                p.update, p.num_updates, nll_per_dim=p.metrics["nll_per_dim"], held_out=p.test_metrics.get("nll_per_dim")
            ),
            hidden_size=args.hidden_size,
            num_layers=args.num_layers,
            num_components=args.num_components,
            factorization=args.factorization,
            noise_type=args.noise_type,
        )
    print_summary(world, args.out)


def print_summary(world: wm.WorldModel, out: str) -> None:
    training, baselines = world.provenance["training"], world.provenance["baselines"]
    print("held-out negative log-likelihood, nats per dimension of z")
    rows = {"this model": training["best_metrics"].get("nll_per_dim"), **baselines}
    for name, value in rows.items():
        print(f"  {name.replace('_', ' '):<16}  {'-' if value is None else format(value, '.3f')}")
    print(f"updates {training['updates']}, best at {training['best_update']}, {training['seconds']:.1f} s")
    print(f"world model: {out}")


if __name__ == "__main__":
    run(main, resume="The same command with --resume goes on.")
