"""``worldmodel reproduce doom`` and ``reproduce car-racing``."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from tyro.conf import OmitArgPrefixes as Flat

import worldmodel as wm
from worldmodel import plots  # its functions are imported at their first use: the help needs no extra
from worldmodel.cli.options import Command, DeviceOutput, Result
from worldmodel.data import Episode
from worldmodel.dream import Agent
from worldmodel.envs import DOOM_ACTIONS
from worldmodel.experiments import CAR_RACING_LOOP, DOOM, LoopExperiment, LoopPreset, Preset, Reproduction, small, small_loop
from worldmodel.runtime import command_line, has_extra, keep_freed_memory, require_extras, source_commit
from worldmodel.spaces import map_leaves, stack_values

FILM_STEPS = 700  # of the dream and of the real episode: 20 seconds at Doom's 35 steps per second
EPISODES_SHOWN = 10  # number of held-out episodes in the pictures
FRAMES_APART = 10  # steps between the frames from which the latents in use are found
UNDER_WAY = 60  # steps after which an episode has left its start, and a car is still on its road


@dataclass(frozen=True, kw_only=True)
class Experiment(Command):
    """An experiment that takes hours.

    Args:
        out: output directory; the same command resumes an interrupted run.
        seed: seed of the complete run.
        workers: worker processes for the real environment.
        video: write films (extra: video).
        output: device and output.
    """

    RESUME = "The same command resumes the experiment."

    out: str
    scale: Literal["small", "paper"] = "paper"
    seed: int = 0
    workers: int = 2
    video: bool = True
    output: Flat[DeviceOutput] = field(default_factory=DeviceOutput)


@dataclass(frozen=True, kw_only=True)
class Reproduce(Experiment):
    """An experiment of Ha & Schmidhuber (2018).

    Args:
        scale: small takes about 15 minutes on two cores.
        episodes: an earlier collection by worldmodel collect --preset with the same seed; None: OUT/episodes.
    """

    PRESET: ClassVar[Preset]
    ACTION_NAMES: ClassVar[tuple[str, ...] | None] = None

    episodes: str | None = None

    def run(self) -> Result:
        """Run the experiment."""
        require_drawing(video=self.video)
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
class CarRacing(Experiment):
    """CarRacing by dreaming alone: rounds of collecting with the best agent so far, training M, and PPO in short dreams.

    The paper's agent learns in the real environment. OUT holds the table (table.md), the score of each episode (results.json),
    pictures and films.

    Args:
        scale: small runs two rounds with fewer numbers.
        workers: worker processes for the final test.
    """

    PRESET: ClassVar[LoopPreset] = CAR_RACING_LOOP

    def run(self) -> Result:
        """Run the experiment."""
        require_drawing(video=self.video)
        keep_freed_memory()
        device = self.output.choose_device()
        preset = small_loop(self.PRESET) if self.scale == "small" else self.PRESET
        experiment = LoopExperiment(preset, Path(self.out), seed=self.seed, device=device, workers=self.workers)
        about = {"command": command_line(), "commit": source_commit() or "unknown", "device": str(device)}
        results = experiment.run(about=about)
        plots.save_figure(plots.draw_rounds(results["rounds"]), experiment.out / "curves.png")
        world = experiment.world()
        draw_pictures(world, experiment.held_out_episodes(EPISODES_SHOWN), experiment.out)
        if self.video:
            dreams = wm.Dreams(world, 1, temperature=preset.config.temperature, precision="auto")
            draw_films(dreams, experiment.controller(), experiment.agent_episode(), experiment.out, seed=self.seed)
        text = f"{(experiment.out / 'table.md').read_text(encoding='utf-8')}\neverything: {experiment.out}"
        return Result(text, results | {"out": str(experiment.out)})


def require_drawing(*, video: bool) -> None:
    """Raise before anything is done if a package for pictures or films is missing."""
    needed = ("plots", "video") if video else ("plots",)
    require_extras(*needed, advice="or give --no-video" if video and has_extra("plots") else "")


def draw(experiment: Reproduction, temperature: float, *, video: bool) -> None:
    """Draw learning curves, pictures of held-out random episodes, and films of one dream and one real episode."""
    plots.save_figure(plots.draw_learning(learning(experiment, temperature)), experiment.out / "curves.png")
    world = experiment.world()
    draw_pictures(world, experiment.held_out_episodes(EPISODES_SHOWN), experiment.out)
    if video:
        rules: dict[str, Any] = {"termination": experiment.preset.termination, "precision": experiment.preset.dream_precision}
        dreams = wm.Dreams(world, 1, temperature=temperature, **rules)
        episode = experiment.agent_episode(temperature)
        draw_films(dreams, experiment.controller(temperature), episode, experiment.out, seed=experiment.seed)


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


def draw_pictures(world: wm.WorldModel, episodes: list[Episode], out: Path) -> None:
    """Draw reconstructions by V, traversals of its latents, and a dream next to the real episode."""
    vision = plots.image_vision(world)
    middle = [_step_of(episode, len(episode) * (1 + k) // (1 + len(episodes))) for k, episode in enumerate(episodes)]
    some = [_step_of(episode, t) for episode in episodes for t in range(0, len(episode) + 1, FRAMES_APART)]
    under_way = min(UNDER_WAY // FRAMES_APART, len(some) - 1)
    longest = max(episodes, key=len)
    prefix = len(longest) // 2  # M is primed on the first half of the episode
    found = {
        "reconstructions": plots.reconstructions(vision, stack_values(middle)),
        "latents": plots.traversals(vision, stack_values(some), around=under_way),
        "dream": plots.dream_strip(world, longest, prefix=prefix),
    }
    for name, picture in found.items():
        plots.save_image(picture, out / f"{name}.png", enlarge=1 if name == "latents" else 2)


def draw_films(dreams: wm.Dreams, agent: Agent, episode: Episode, out: Path, *, seed: int) -> None:
    """Write films of the agent in a dream, and in the real environment next to the reconstruction by V."""
    plots.write_video(out / "dream.mp4", plots.dream_frames(dreams, agent, horizon=FILM_STEPS, seed=seed))
    plots.write_video(out / "reality.mp4", itertools.islice(plots.real_frames(dreams.world, episode), FILM_STEPS))


def _step_of(episode: Episode, step: int) -> Any:
    return map_leaves(lambda leaf: leaf[step], episode.observations)
