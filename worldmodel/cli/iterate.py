"""The loop of the paper: collect with the latest controller, train M, train a controller in its dreams, evaluate it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import worldmodel as wm
from worldmodel.agents import ControllerConfig, OpenAIESConfig
from worldmodel.cli.options import (
    add_device,
    add_environment,
    add_fields,
    choose_device,
    environment,
    program,
    read_fields,
    run_config,
)
from worldmodel.experiments import Round, summarize

PARTS = ("mdnrnn", "data_config", "training_config", "controller", "search")  # configurations with options of their own
FROM_DATA = ("termination_head",)  # `fit` reads this from the data
LOOPS = ("openai_es", "target")  # fields of a search that are options of their own, or of the loop
PATIENCE = ("patience",)  # of M's training; the option is that of the controller's search
STAGES = ("collect", "train", "dream", "evaluate")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", required=True, help='Gymnasium id, or "module:Id-v0" of another package')
    parser.add_argument("--out", required=True, help="output directory; the same command resumes an interrupted run")
    parser.add_argument("--target", type=float, help="mean real return at which to stop; None: run all rounds")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in OUT")
    parser.add_argument("--seed", type=int, default=0, help="seed of the complete run")
    add_environment(parser)
    add_device(parser)
    defaults = wm.IterationConfig()
    add_fields(parser, wm.IterationConfig, leave_out=PARTS)
    add_fields(parser, ControllerConfig, leave_out=("hidden_size",))
    add_fields(parser, ControllerConfig, leave_out=("features", "bias", "ordered"), prefix="controller_")
    add_fields(parser, wm.SearchConfig, leave_out=LOOPS, defaults=asdict(defaults.search))
    add_fields(parser, OpenAIESConfig, prefix="es_")
    add_fields(parser, wm.MDNRNNConfig, leave_out=FROM_DATA, defaults=asdict(defaults.mdnrnn))
    add_fields(parser, wm.DataConfig, leave_out=("layout",), defaults=asdict(defaults.data_config))
    add_fields(parser, wm.TrainingConfig, leave_out=PATIENCE, defaults=asdict(defaults.training_config))
    return parser.parse_args()


def read_config(args: argparse.Namespace) -> wm.IterationConfig:
    """Build the configuration from the options."""
    climbing = OpenAIESConfig(**read_fields(args, OpenAIESConfig, prefix="es_"))
    kind = read_fields(args, ControllerConfig, leave_out=("hidden_size",)) | {"hidden_size": args.controller_hidden_size}
    return wm.IterationConfig(
        **read_fields(args, wm.IterationConfig, leave_out=PARTS),
        controller=ControllerConfig(**kind),
        search=wm.SearchConfig(**read_fields(args, wm.SearchConfig, leave_out=LOOPS), openai_es=climbing),
        mdnrnn=wm.MDNRNNConfig(**read_fields(args, wm.MDNRNNConfig)),
        data_config=wm.DataConfig(**read_fields(args, wm.DataConfig)),
        training_config=wm.TrainingConfig(**read_fields(args, wm.TrainingConfig, leave_out=PATIENCE)),
    )


@program(resume="The same command, without --overwrite, resumes the run.")
def main() -> None:
    """Run the command."""
    args = parse_arguments()
    torch.set_num_threads(1)  # small matrices: a second thread gains little, and costs much on a busy machine
    began = time.monotonic()
    rounds = wm.iterate(
        environment(args),
        out=args.out,
        target=args.target,
        config=read_config(args),
        seed=args.seed,
        device=choose_device(args.device),
        run=run_config(args),
    )
    report(rounds, args.out, target=args.target, seed=args.seed, seconds=time.monotonic() - began)


def report(rounds: Sequence[Round], out: str | Path, *, target: float | None, seed: int, seconds: float) -> None:
    """Write OUT/summary.json and print the table."""
    summary = {"seed": seed, "seconds": seconds, **summarize(rounds, target=target)}
    path = Path(out) / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    _print_table(rounds, summary)
    print(f"summary      {path}")


def _print_table(rounds: Sequence[Round], summary: dict[str, Any]) -> None:
    stages = "".join(f"{stage + ' s':>12}" for stage in STAGES)
    print(f"\n{'round':<6}{'dream score':>18}{'real score':>18}{'random':>18}{stages}")
    for round_ in rounds:
        scores = [f"{scores.mean:.1f} +- {scores.std:.1f}" for scores in (round_.dream, round_.real, round_.random)]
        seconds = "".join(f"{round_.seconds[stage]:>12.1f}" for stage in STAGES)
        print(f"{round_.number:<6}{scores[0]:>18}{scores[1]:>18}{scores[2]:>18}{seconds}")
    episodes, target = len(rounds[0].real.returns), summary["target"]
    print(
        f"mean +- standard deviation; real scores over {episodes} episodes; target {target}; {summary['seconds']:.0f} s in all"
    )
    print(f"best round   {summary['best_round']}, by other episodes than those of the table")
    print(f"world model  {summary['world_model']}\ncontroller   {summary['controller']}")
