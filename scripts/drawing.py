"""The pictures and films of an experiment of the paper."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

import worldmodel as wm
from worldmodel.experiments import Reproduction
from worldmodel.plots import draw_learning, pictures, save_figure, save_image, write_video

FILM_STEPS = 700  # of the dream and of the agent in reality: 20 seconds at Doom's 35 steps a second
EPISODES_SHOWN = 10  # held-out ones, of which pictures are made ...
FRAMES_APART = 10  # ... and on so many steps of which it is measured which latents are in use
UNDER_WAY = 60  # steps after which an episode has left its start, and a car is still on its road


def draw(experiment: Reproduction, temperature: float, *, video: bool) -> None:
    """Learning curves, pictures of held-out random episodes, and films of one dream and of the agent in reality."""
    save_figure(draw_learning(learning(experiment, temperature)), experiment.out / "curves.png")
    draw_pictures(experiment)
    if video:
        draw_films(experiment, temperature)


def learning(experiment: Reproduction, temperature: float) -> dict[str, tuple[Path, str, str]]:
    """The logs of V, of M, of the searches, and of one improvement by PPO: directory, quantity, unit."""
    out, preset = experiment.out, experiment.preset
    logs = {
        "V": (out / "vae" / "training", "squared_error", "update"),
        "M": (out / "world" / "training", "nll_per_dim", "update"),
    }
    for tau in preset.temperatures:
        logs[f"controller, tau {tau:g}"] = (out / f"temperature-{tau:g}", "return", "generation")
    if preset.ppo is not None:
        logs[f"PPO, tau {temperature:g}"] = (out / f"temperature-{temperature:g}" / "ppo", "terminations_per_1000", "iteration")
    return logs


def draw_pictures(experiment: Reproduction) -> None:
    """What V makes of frames, what its latents do, and a dream beside reality."""
    world, episodes = experiment.world(), experiment.held_out_episodes(EPISODES_SHOWN)
    frames = [episode.observations[len(episode) * (1 + k) // (1 + len(episodes))] for k, episode in enumerate(episodes)]
    some = np.concatenate([episode.observations[::FRAMES_APART] for episode in episodes])
    under_way = min(UNDER_WAY // FRAMES_APART, len(some) - 1)
    longest = max(episodes, key=len)
    prefix = len(longest) // 2  # a scene in full swing, and M knows what came before
    found = {
        "reconstructions": pictures.reconstructions(pictures.image_vision(world), np.stack(frames)),
        "latents": pictures.traversals(pictures.image_vision(world), some, around=under_way),
        "dream": pictures.dream_strip(world, longest, prefix=prefix),
    }
    for name, picture in found.items():
        save_image(picture, experiment.out / f"{name}.png", enlarge=1 if name == "latents" else 2)


def draw_films(experiment: Reproduction, temperature: float) -> None:
    """A dream of the agent, and the agent in reality beside what V sees."""
    out, world, controller = experiment.out, experiment.world(), experiment.controller(temperature)
    rules = {"termination": experiment.preset.termination, "precision": experiment.preset.dream_precision}
    dreams = wm.Dreams(world, 1, temperature=temperature, **rules)
    write_video(out / "dream.mp4", pictures.dream_frames(dreams, controller, horizon=FILM_STEPS, seed=experiment.seed))
    lived = pictures.real_frames(world, experiment.agent_episode(temperature))
    write_video(out / "reality.mp4", itertools.islice(lived, FILM_STEPS))
