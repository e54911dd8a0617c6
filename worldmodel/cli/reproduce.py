"""``worldmodel reproduce doom`` and ``reproduce car-racing``."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from tyro.conf import OmitArgPrefixes as Flat

import worldmodel as wm
from worldmodel.cli.options import Command, DeviceOutput, Result
from worldmodel.envs import DOOM_ACTIONS
from worldmodel.experiments import CAR_RACING, DOOM, Preset, Reproduction, small
from worldmodel.plots import draw_learning, pictures, save_figure, save_image, write_video
from worldmodel.runtime import command_line, keep_freed_memory, require_extras, source_commit

FILM_STEPS = 700  # of the dream and of the real episode: 20 seconds at Doom's 35 steps per second
EPISODES_SHOWN = 10  # number of held-out episodes in the pictures
FRAMES_APART = 10  # steps between the frames from which the latents in use are found
UNDER_WAY = 60  # steps after which an episode has left its start, and a car is still on its road


@dataclass(frozen=True, kw_only=True)
class Reproduce(Command):
    """An experiment of Ha & Schmidhuber (2018).

    Args:
        out: output directory; the same command resumes an interrupted run.
        scale: small takes about 15 minutes for Doom and 45 for CarRacing, on two cores.
        seed: seed of the complete run.
        episodes: an earlier collection by worldmodel collect --preset with the same seed; None: OUT/episodes.
        workers: worker processes for the real environment.
        video: write films (extra: video).
        output: device and output.
    """

    RESUME = "The same command resumes the experiment."
    PRESET: ClassVar[Preset]
    ACTION_NAMES: ClassVar[tuple[str, ...] | None] = None

    out: str
    scale: Literal["small", "paper"] = "paper"
    seed: int = 0
    episodes: str | None = None
    workers: int = 2
    video: bool = True
    output: Flat[DeviceOutput] = field(default_factory=DeviceOutput)

    def run(self) -> Result:
        """Run the experiment."""
        require_extras(*(("video",) if self.video else ()), advice="or give --no-video")
        keep_freed_memory()
        device = self.output.choose_device()
        experiment = Reproduction(
            small(self.PRESET) if self.scale == "small" else self.PRESET,
            Path(self.out),
            seed=self.seed,
            device=device,
            workers=self.workers,
            episodes=Path(self.episodes) if self.episodes else None,
            action_names=self.ACTION_NAMES,
            commit=source_commit() or "unknown",
        )
        results = experiment.run(about={"command": command_line(), "device": str(device)})
        best = results["best_temperature"]
        draw(experiment, best, video=self.video)
        tables = [(experiment.out / name).read_text(encoding="utf-8") for name in ("probe.txt", "table.md")]
        seconds = sum(stage["seconds"] for stage in results["stages"].values())
        text = "\n".join([*tables, f"seconds  {seconds:.0f}", f"everything: {experiment.out}"])
        return Result(text, results | {"out": str(experiment.out)})


@dataclass(frozen=True, kw_only=True)
class Doom(Reproduce):
    """Reproduce the Doom experiment of Ha & Schmidhuber (2018): train in dreams only, then play the real game.

    Controllers are found by CMA-ES and improved by PPO, both in dreams. OUT holds the table (table.md), the score of each
    episode (results.json), learning curves, pictures and films.
    """

    PRESET = DOOM
    ACTION_NAMES = DOOM_ACTIONS


@dataclass(frozen=True, kw_only=True)
class CarRacing(Reproduce):
    """Reproduce the CarRacing experiment of Ha & Schmidhuber (2018), except that the controller is searched in dreams.

    M therefore also predicts the reward. OUT holds the table (table.md), the score of each episode (results.json), learning
    curves, pictures and films.
    """

    PRESET = CAR_RACING


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
