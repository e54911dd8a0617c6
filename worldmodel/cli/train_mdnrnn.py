"""Train M on one or several stores of episodes, also V if it is not a VAE, and write a world model directory."""

from __future__ import annotations

import argparse

import worldmodel as wm
from worldmodel.cli.options import add_device, add_fields, choose_device, parse_with_preset, program, read_fields, run_config
from worldmodel.models import Vision
from worldmodel.runtime import keep_freed_memory

FROM_DATA = ("termination_head",)  # `fit` reads this from the data


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--data", nargs="+", required=True, help="directories written by scripts/collect.py, all of one environment"
    )
    parser.add_argument("--out", required=True, help="directory for the world model; the training state is in OUT/training")
    parser.add_argument(
        "--initial", help="world model directory to start from; its sizes are kept and the options for them ignored"
    )
    parser.add_argument("--vision", help="directory written by scripts/train_vae.py; required for images")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard scalars (extra: tensorboard)")
    parser.add_argument(
        "--resume", action="store_true", help="resume even with --overwrite; an interrupted run is resumed anyway"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in OUT")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split, the weights and the batches")
    add_device(parser)
    add_fields(parser, wm.MDNRNNConfig, leave_out=FROM_DATA)
    add_fields(parser, wm.DataConfig, leave_out=("layout",))
    add_fields(parser, wm.TrainingConfig)
    return parse_with_preset(parser, "train_mdnrnn")


@program(resume="The same command, without --overwrite, resumes the training.")
def main() -> None:
    """Run the command."""
    args = parse_arguments()
    keep_freed_memory()
    device = choose_device(args.device)
    initial = wm.WorldModel.from_pretrained(args.initial, device=device) if args.initial else None
    world = wm.fit(
        args.data,
        out=args.out,
        config=None if initial else wm.MDNRNNConfig(**read_fields(args, wm.MDNRNNConfig)),
        data_config=wm.DataConfig(**read_fields(args, wm.DataConfig)),
        training_config=wm.TrainingConfig(**read_fields(args, wm.TrainingConfig)),
        vision=Vision.from_pretrained(args.vision) if args.vision else None,
        initial=initial,
        seed=args.seed,
        device=device,
        run=run_config(args),
    )
    print_summary(world, args.out)


def print_summary(world: wm.WorldModel, out: str) -> None:
    """Print held-out losses, baselines and calibration."""
    training, baselines = world.provenance["training"], world.provenance["baselines"]
    print("held-out negative log-likelihood, nats per dimension of z")
    rows = {"this model": training["best_metrics"].get("nll_per_dim"), **baselines}
    for name, value in rows.items():
        print(f"  {name.replace('_', ' '):<16}  {'-' if value is None else format(value, '.3f')}")
    for name, scores in (world.provenance.get("calibration") or {}).items():
        print(f"termination {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in scores.items()))
    print(f"updates {training['updates']}, best at {training['best_update']}, {training['seconds']:.1f} s")
    print(f"world model: {out}")
