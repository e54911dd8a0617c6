"""What the programs that reproduce an experiment of the paper share: options, bars, pictures, a summary."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from bars import StageBars
from command import add_device, choose_device

import worldmodel as wm
from worldmodel import pictures
from worldmodel.machine import fast_precision, keep_freed_memory
from worldmodel.presets import Preset, in_precision, small
from worldmodel.report import draw_learning, save_figure, save_image
from worldmodel.reproduction import Reproduction
from worldmodel.video import write_video

FILM_STEPS = 700  # of the dream and of the agent in reality: 20 seconds at Doom's 35 steps a second
UNITS = {"collect": "episode", "train": "update", "encode": "episode", "probe": "policy"}  # by a stage's first word
UNITS |= {"search": "generation", "PPO": "iteration", "test": "episode"}


def parse_arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", required=True, help="directory for everything; run again, it goes on")
    parser.add_argument("--scale", choices=("small", "paper"), default="paper", help="small takes minutes; see presets.py")
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
        in_precision(small(preset) if args.scale == "small" else preset, fast_precision(device)),
        Path(args.out),
        seed=args.seed,
        device=device,
        num_workers=args.workers,
        episodes=args.episodes,
        action_names=action_names,
        on_progress=lambda stage, *news: bars.show(stage, *news, unit=UNITS[stage.split()[0]]),
    )
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    about = {"command": shlex.join(["python", *sys.argv]), "commit": git.stdout.strip() or "unknown", "device": str(device)}
    results = experiment.run(about=about)
    bars.close()
    best = results["best_temperature"]
    draw(experiment, best, video=args.video)
    print((experiment.out / "probe.txt").read_text())
    print((experiment.out / "table.md").read_text())
    print(f"seconds  {sum(results['seconds'].values()):.0f}\neverything: {experiment.out}")


def draw(experiment: Reproduction, temperature: float, *, video: bool) -> None:
    """Learning curves, pictures, and films of one dream and of the agent in reality."""
    out, world, episode = experiment.out, experiment.world(), experiment.agent_episode(temperature)
    logs = {
        "V": (out / "vae" / "training", "squared_error", "update"),
        "M": (out / "world" / "training", "nll_per_dim", "update"),
    }
    for tau in experiment.preset.temperatures:
        logs[f"controller, tau {tau:g}"] = (out / f"temperature-{tau:g}", "return", "generation")
    if experiment.preset.ppo is not None:
        logs[f"PPO, tau {temperature:g}"] = (out / f"temperature-{temperature:g}" / "ppo", "terminations_per_1000", "iteration")
    save_figure(draw_learning(logs), out / "curves.png")
    shown = episode.observations[np.linspace(0, len(episode), 10).astype(int)]
    save_image(pictures.reconstructions(pictures.eye(world), shown), out / "reconstructions.png")
    save_image(pictures.traversals(pictures.eye(world), episode.observations), out / "latents.png")
    save_image(pictures.dream_strip(world, episode), out / "dream.png")
    if video:
        rules = {"termination": experiment.preset.termination, "precision": experiment.preset.dream_precision}
        dreams = wm.Dreams(world, 1, temperature=temperature, **rules)
        controller = experiment.controller(temperature)
        frames = pictures.dream_frames(dreams, controller, horizon=FILM_STEPS, seed=experiment.seed)
        write_video(out / "dream.mp4", frames)
        lived = (frame for _, frame in zip(range(FILM_STEPS), pictures.real_frames(world, episode), strict=False))
        write_video(out / "reality.mp4", lived)
