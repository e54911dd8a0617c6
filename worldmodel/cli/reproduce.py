"""What the programs that reproduce an experiment of the paper share: options, bars, a summary."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

from bars import StageBars
from command import add_device, choose_device
from drawing import draw

from worldmodel.experiments import Preset, Reproduction, small
from worldmodel.runtime import keep_freed_memory

UNITS = {"collect": "episode", "train": "update", "encode": "episode", "probe": "policy"}  # by a stage's first word
UNITS |= {"search": "generation", "PPO": "iteration", "test": "episode"}


def parse_arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", required=True, help="directory for everything; run again, it goes on")
    parser.add_argument(
        "--scale", choices=("small", "paper"), default="paper", help="small takes some 15 minutes for Doom and 45 for CarRacing"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    parser.add_argument(
        "--episodes", type=Path, help="an earlier collection by collect.py --preset with the same seed; None: OUT/episodes"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes for the real environment")
    parser.add_argument("--video", action=argparse.BooleanOptionalAction, default=True, help="make films (extra: video)")
    add_device(parser)
    return parser.parse_args()


def reproduce(args: argparse.Namespace, preset: Preset, action_names: tuple[str, ...] | None = None) -> None:
    if args.video and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ImportError("--video: imageio-ffmpeg is not installed: pip install worldmodel[video], or give --no-video")
    keep_freed_memory()
    bars, device = StageBars(), choose_device(args.device)
    experiment = Reproduction(
        small(preset) if args.scale == "small" else preset,
        Path(args.out),
        seed=args.seed,
        device=device,
        num_workers=args.workers,
        episodes=args.episodes,
        action_names=action_names,
        commit=commit(),
        on_progress=lambda stage, *news: bars.show(stage, *news, unit=UNITS[stage.split()[0]]),
    )
    results = experiment.run(about={"command": shlex.join(["python", *sys.argv]), "device": str(device)})
    bars.close()
    best = results["best_temperature"]
    draw(experiment, best, video=args.video)
    print((experiment.out / "probe.txt").read_text())
    print((experiment.out / "table.md").read_text())
    print(f"seconds  {sum(stage['seconds'] for stage in results['stages'].values()):.0f}\neverything: {experiment.out}")


def commit() -> str:
    """Of this code, with ``-dirty`` where it was changed since."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    said = subprocess.run(git, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return said.stdout.strip() or "unknown"
