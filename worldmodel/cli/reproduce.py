"""Reproduce an experiment of Ha & Schmidhuber (2018): tables, learning curves, pictures and films in one directory."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

import worldmodel as wm
from worldmodel.cli.options import add_device, choose_device, program
from worldmodel.envs import DOOM_ACTIONS
from worldmodel.experiments import CAR_RACING, DOOM, Preset, Reproduction, small
from worldmodel.plots import draw_learning, pictures, save_figure, save_image, write_video
from worldmodel.runtime import keep_freed_memory

FILM_STEPS = 700  # of the dream and of the real episode: 20 seconds at Doom's 35 steps per second
EPISODES_SHOWN = 10  # number of held-out episodes in the pictures
FRAMES_APART = 10  # steps between the frames from which the latents in use are found
UNDER_WAY = 60  # steps after which an episode has left its start, and a car is still on its road


@program(resume="The same command resumes the experiment.")
def doom() -> None:
    """Reproduce the Doom experiment of Ha & Schmidhuber (2018): train in dreams only, then play the real game.

    Controllers are found by CMA-ES and improved by PPO, both in dreams. OUT holds the table (table.md), the score of each
    episode (results.json), learning curves, pictures and films. The same command resumes an interrupted experiment.
    """
    reproduce(parse_arguments(doom.__doc__), DOOM, DOOM_ACTIONS)


@program(resume="The same command resumes the experiment.")
def car_racing() -> None:
    """Reproduce the CarRacing experiment of Ha & Schmidhuber (2018), except that the controller is searched in dreams.

    M therefore also predicts the reward. OUT holds the table (table.md), the score of each episode (results.json), learning
    curves, pictures and films. The same command resumes an interrupted experiment.
    """
    reproduce(parse_arguments(car_racing.__doc__), CAR_RACING)


def parse_arguments(description: str | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", required=True, help="output directory; the same command resumes an interrupted run")
    parser.add_argument(
        "--scale",
        choices=("small", "paper"),
        default="paper",
        help="small takes about 15 minutes for Doom and 45 for CarRacing",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the complete run")
    parser.add_argument(
        "--episodes", type=Path, help="an earlier collection by collect.py --preset with the same seed; None: OUT/episodes"
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes for the real environment")
    parser.add_argument("--video", action=argparse.BooleanOptionalAction, default=True, help="write films (extra: video)")
    add_device(parser)
    return parser.parse_args()


def reproduce(args: argparse.Namespace, preset: Preset, action_names: tuple[str, ...] | None = None) -> None:
    """Run an experiment and print its tables."""
    if args.video and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ImportError("--video: imageio-ffmpeg is not installed: pip install worldmodel[video], or give --no-video")
    keep_freed_memory()
    device = choose_device(args.device)
    experiment = Reproduction(
        small(preset) if args.scale == "small" else preset,
        Path(args.out),
        seed=args.seed,
        device=device,
        workers=args.workers,
        episodes=args.episodes,
        action_names=action_names,
        commit=commit(),
    )
    results = experiment.run(about={"command": shlex.join(["python", *sys.argv]), "device": str(device)})
    best = results["best_temperature"]
    draw(experiment, best, video=args.video)
    print((experiment.out / "probe.txt").read_text())
    print((experiment.out / "table.md").read_text())
    print(f"seconds  {sum(stage['seconds'] for stage in results['stages'].values()):.0f}\neverything: {experiment.out}")


def commit() -> str:
    """Return the commit of this code, with ``-dirty`` if files have changed since."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    said = subprocess.run(git, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return said.stdout.strip() or "unknown"


def draw(experiment: Reproduction, temperature: float, *, video: bool) -> None:
    """Draw learning curves, pictures of held-out random episodes, and films of one dream and one real episode."""
    save_figure(draw_learning(learning(experiment, temperature)), experiment.out / "curves.png")
    draw_pictures(experiment)
    if video:
        draw_films(experiment, temperature)


def learning(experiment: Reproduction, temperature: float) -> dict[str, tuple[Path, str, str]]:
    """List the logs of V, M, the searches, and one improvement by PPO: directory, quantity, unit."""
    out, preset = experiment.out, experiment.preset
    logs = {
        "V": (out / "vae" / "training", "squared_error", "update"),
        "M": (out / "world" / "training", "nll_per_dim", "update"),
    }
    for tau in preset.temperatures:
        logs[f"controller, tau {tau:g}"] = (out / f"temperature-{tau:g}", "return", "generation")
    if preset.improvement is not None:
        logs[f"PPO, tau {temperature:g}"] = (out / f"temperature-{temperature:g}" / "ppo", "terminations_per_1000", "iteration")
    return logs


def draw_pictures(experiment: Reproduction) -> None:
    """Draw reconstructions by V, traversals of its latents, and a dream next to the real episode."""
    world, episodes = experiment.world(), experiment.held_out_episodes(EPISODES_SHOWN)
    middle = [episode.observations[len(episode) * (1 + k) // (1 + len(episodes))] for k, episode in enumerate(episodes)]
    some = np.concatenate([episode.observations[::FRAMES_APART] for episode in episodes])
    under_way = min(UNDER_WAY // FRAMES_APART, len(some) - 1)
    longest = max(episodes, key=len)
    prefix = len(longest) // 2  # M is primed on the first half of the episode
    found = {
        "reconstructions": pictures.reconstructions(pictures.image_vision(world), np.stack(middle)),
        "latents": pictures.traversals(pictures.image_vision(world), some, around=under_way),
        "dream": pictures.dream_strip(world, longest, prefix=prefix),
    }
    for name, picture in found.items():
        save_image(picture, experiment.out / f"{name}.png", enlarge=1 if name == "latents" else 2)


def draw_films(experiment: Reproduction, temperature: float) -> None:
    """Write films of the agent in a dream, and in the real environment next to the reconstruction by V."""
    out, world, controller = experiment.out, experiment.world(), experiment.controller(temperature)
    termination, precision = experiment.preset.termination, experiment.preset.dream_precision
    dreams = wm.Dreams(world, 1, temperature=temperature, termination=termination, precision=precision)
    write_video(out / "dream.mp4", pictures.dream_frames(dreams, controller, horizon=FILM_STEPS, seed=experiment.seed))
    frames = pictures.real_frames(world, experiment.agent_episode(temperature))
    write_video(out / "reality.mp4", itertools.islice(frames, FILM_STEPS))
