"""Train M, and V where it is no VAE, on one or several stores of episodes and write a world model directory."""

from __future__ import annotations

import argparse

from bars import Bar
from command import add_device, choose_device, parse_with_preset, run
from fields import add_fields, read_fields

import worldmodel as wm
from worldmodel.runtime import keep_freed_memory

FROM_DATA = ("latent_size", "action_size", "termination_head")  # what `fit` finds out by itself


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--data", nargs="+", required=True, help="directories that scripts/collect.py wrote, of one environment"
    )
    parser.add_argument("--out", required=True, help="directory for the world model; its training state goes to OUT/training")
    parser.add_argument(
        "--initial", help="world model directory to start from; its sizes are kept, their options have no effect"
    )
    parser.add_argument("--vision", help="directory that scripts/train_vae.py wrote; images need one")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard scalars (extra: tensorboard)")
    calibrate = "make the termination's p right on the held-out episodes"
    parser.add_argument("--calibrate", action=argparse.BooleanOptionalAction, default=False, help=calibrate)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in OUT; give the same options")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in OUT")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split, the weights and the batches")
    add_device(parser)
    add_fields(parser, wm.MDNRNNConfig, leave_out=FROM_DATA)
    add_fields(parser, wm.DataConfig)
    add_fields(parser, wm.TrainingConfig)
    return parse_with_preset(parser, "train_mdnrnn")


def main() -> None:
    args = parse_arguments()
    keep_freed_memory()
    device = choose_device(args.device)
    initial = wm.WorldModel.from_pretrained(args.initial, device=device) if args.initial else None
    with Bar("train", "update") as bar:
        world = wm.fit(
            args.data,
            out=args.out,
            seed=args.seed,
            device=device,
            data_config=wm.DataConfig(**read_fields(args, wm.DataConfig)),
            training_config=wm.TrainingConfig(**read_fields(args, wm.TrainingConfig)),
            vision=wm.ConvVAE.from_pretrained(args.vision) if args.vision else None,
            initial=initial,
            resume=args.resume,
            overwrite=args.overwrite,
            tensorboard=args.tensorboard,
            calibrate=args.calibrate,
            on_progress=lambda p: bar.show(
                p.update, p.num_updates, nll_per_dim=p.metrics["nll_per_dim"], held_out=p.test_metrics.get("nll_per_dim")
            ),
            **({} if initial else read_fields(args, wm.MDNRNNConfig)),
        )
    print_summary(world, args.out)


def print_summary(world: wm.WorldModel, out: str) -> None:
    training, baselines = world.provenance["training"], world.provenance["baselines"]
    print("held-out negative log-likelihood, nats per dimension of z")
    rows = {"this model": training["best_metrics"].get("nll_per_dim"), **baselines}
    for name, value in rows.items():
        print(f"  {name.replace('_', ' '):<16}  {'-' if value is None else format(value, '.3f')}")
    for name, scores in (world.provenance.get("calibration") or {}).items():
        print(f"termination {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in scores.items()))
    print(f"updates {training['updates']}, best at {training['best_update']}, {training['seconds']:.1f} s")
    print(f"world model: {out}")


if __name__ == "__main__":
    run(main, resume="The same command with --resume goes on.")
