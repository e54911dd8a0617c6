"""Train V for images on one or several stores of episodes and write it as a directory."""

from __future__ import annotations

import argparse

import worldmodel as wm
from worldmodel.cli.options import add_device, add_fields, choose_device, parse_with_preset, program, read_fields, run_config
from worldmodel.runtime import keep_freed_memory


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--data", nargs="+", required=True, help="directories written by scripts/collect.py, all of one environment"
    )
    parser.add_argument("--out", required=True, help="directory for V; the training state is in OUT/training")
    parser.add_argument("--initial", help="directory of a V to start from; its sizes are kept and the options for them ignored")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard scalars (extra: tensorboard)")
    parser.add_argument(
        "--resume", action="store_true", help="resume even with --overwrite; an interrupted run is resumed anyway"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in OUT")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split, the weights and the order of the frames")
    add_device(parser)
    add_fields(parser, wm.VAEConfig)
    add_fields(parser, wm.FrameConfig)
    add_fields(parser, wm.TrainingConfig, leave_out=("calibrate",))
    return parse_with_preset(parser, "train_vae")


@program(resume="The same command, without --overwrite, resumes the training.")
def main() -> None:
    """Run the command."""
    args = parse_arguments()
    keep_freed_memory()
    initial = wm.ConvVAE.from_pretrained(args.initial) if args.initial else None
    vision = wm.train_vae(
        args.data,
        out=args.out,
        config=None if initial else wm.VAEConfig(**read_fields(args, wm.VAEConfig)),
        frame_config=wm.FrameConfig(**read_fields(args, wm.FrameConfig)),
        training_config=wm.TrainingConfig(**read_fields(args, wm.TrainingConfig)),
        initial=initial,
        seed=args.seed,
        device=choose_device(args.device),
        run=run_config(args),
    )
    training, latents = vision.provenance["training"], vision.provenance["latents"]
    print("held-out frames")
    for name, value in training["best_metrics"].items():
        print(f"  {name.replace('_', ' '):<18}  {value:.3f}")
    print(f"latents: {latents['size']}, in use over these frames {latents['in_use']}, kept {latents['kept']}")
    print(f"updates {training['updates']}, best at {training['best_update']}, {training['seconds']:.1f} s")
    print(f"V: {args.out}")
