"""The paper's loop: collect with the latest controller, train M anew, train a controller in its dreams, look at reality."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict

import torch
from bars import StageBars
from command import add_device, add_environment, choose_device, run
from fields import add_fields, read_fields
from loop import report, show_stages

import worldmodel as wm
from worldmodel.agents import OpenAIESConfig

PARTS = ("mdnrnn", "data_config", "training_config", "openai_es")  # configurations with options of their own
FROM_DATA = ("latent_size", "action_size", "termination_head")  # what `fit` finds out by itself
PATIENCE = ("patience",)  # of M's training; here it is that of the controller's search


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", required=True, help='Gymnasium id, or "module:Id-v0" of another package')
    parser.add_argument("--out", required=True, help="directory for everything; run again, it goes on")
    parser.add_argument("--target", type=float, help="mean real return at which to stop; None goes on")
    parser.add_argument("--overwrite", action="store_true", help="start anew where OUT holds an earlier run")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    add_environment(parser)
    add_device(parser)
    defaults = wm.IterationConfig()
    add_fields(parser, wm.IterationConfig, leave_out=PARTS)
    add_fields(parser, OpenAIESConfig, prefix="es_")
    add_fields(parser, wm.MDNRNNConfig, leave_out=FROM_DATA, defaults=defaults.mdnrnn)
    add_fields(parser, wm.DataConfig, defaults=asdict(defaults.data_config))
    add_fields(parser, wm.TrainingConfig, leave_out=PATIENCE, defaults=asdict(defaults.training_config))
    return parser.parse_args()


def read_config(args: argparse.Namespace) -> wm.IterationConfig:
    return wm.IterationConfig(
        **read_fields(args, wm.IterationConfig),
        openai_es=OpenAIESConfig(**read_fields(args, OpenAIESConfig, prefix="es_")),
        mdnrnn=read_fields(args, wm.MDNRNNConfig),
        data_config=wm.DataConfig(**read_fields(args, wm.DataConfig)),
        training_config=wm.TrainingConfig(**read_fields(args, wm.TrainingConfig, leave_out=PATIENCE)),
    )


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # the matrices are small: a second thread gains little, and costs much on a busy machine
    began, bars = time.monotonic(), StageBars()
    rounds = wm.iterate(
        args.env,
        out=args.out,
        target=args.target,
        config=read_config(args),
        seed=args.seed,
        device=choose_device(args.device),
        max_steps=args.max_steps,
        env_kwargs=args.env_kwargs,
        overwrite=args.overwrite,
        on_progress=show_stages(bars),
    )
    bars.close()
    report(rounds, args.out, target=args.target, seed=args.seed, seconds=time.monotonic() - began)


if __name__ == "__main__":
    without = " without --overwrite" if "--overwrite" in sys.argv else ""  # with it, it would begin anew
    run(main, resume=f"The same command{without} goes on where it stopped.")
