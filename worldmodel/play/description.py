"""What a page needs to know of a world beside its networks: how to draw it, its controls, and its environment."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces

from worldmodel.agents import Controller
from worldmodel.mixtures import PartKind
from worldmodel.models import WorldModel
from worldmodel.play.controls import base_name, controls_of
from worldmodel.spaces import find_images, leaves

CLASSIC = {"CartPole": 4, "Pendulum": 3, "MountainCar": 2, "MountainCarContinuous": 2, "Acrobot": 6}  # numbers observed
FPS = {"CartPole": 50, "Acrobot": 15, "DoomTakeCover": 35, "CarRacing64": 50, "CarRacingIndicators64": 50}  # steps a second
DEFAULT_FPS, LEAST_FPS = 30, 10
MAX_CURVES = 16  # numbers of an observation that are drawn as curves
SLIDER_REACH = 3.0  # of z: beyond it are few samples of a VAE's prior; further, if start states spread further


def describe(world: WorldModel, controller: Controller | None, *, title: str | None = None) -> dict[str, Any]:
    """Return title, drawing, controls, sliders and environment of a world, as JSON-serialisable data.

    Raises:
        ValueError: if V has no decoder, or neither keys nor a controller can act in the action space.
    """
    if not world.vision.has_decoder:
        raise ValueError(
            f"decoder: expected a V with a decoder, got {type(world.vision).__name__} without; a page shows what V decodes"
        )
    recipe = recipe_of(world)
    env = str(recipe["env"]) if recipe else ""
    controls = controls_of(world.action_space, env)
    if controls is None and controller is None:
        raise ValueError(
            "action_space: expected a Discrete of at most 10 actions or a Box of at most 4 numbers, which keys can control, "
            f"got {world.action_space}; export a controller with it, which acts instead (--controller)"
        )
    repeat = int(recipe.get("action_repeat", 1)) if recipe else 1
    return {
        "title": title or env.rpartition(":")[2] or "A world",
        "subtitle": f"{env or 'Environment not recorded'}; {world.mdnrnn.latent_size} latent numbers, "
        f"LSTM of {world.mdnrnn.config.hidden_size} units",
        "fps": max(LEAST_FPS, FPS.get(base_name(env), DEFAULT_FPS) / repeat),
        "controls": controls,
        "view": view_of(world, env),
        "sliders": sliders_of(world),
        "environment": recipe,
    }


def recipe_of(world: WorldModel) -> dict[str, Any] | None:
    """Return how the environment of a world's data is built; None if the data do not say."""
    recipes = [one for one in world.provenance.get("recipes", []) if one.get("env")]
    if not recipes:
        return None
    names = ("env", "env_kwargs", "wrappers", "action_repeat")  # a limit of the steps was of the collection
    chosen = {name: recipes[0][name] for name in names if recipes[0].get(name)}
    return {**chosen, "leave_out": list(world.left_out)}


def view_of(world: WorldModel, env: str) -> dict[str, Any]:
    """Return how observations are drawn: as classic control, as an image, or as curves of numbers."""
    space = world.observation_space
    name, images = base_name(env), find_images(space)
    if isinstance(space, spaces.Box) and space.shape == (CLASSIC.get(name),):
        return {"kind": "classic", "name": name, "leaf": "observation", "numbers": []}
    numbers = []
    for path, leaf in leaves(space):
        if path in {image.path for image in images}:
            continue
        count = 1
        for size in leaf.shape or ():
            count *= size
        label = path or "observation"
        names = [label if count == 1 else f"{label}[{index}]" for index in range(count)]
        numbers += [{"name": each, "leaf": leaf_name(path), "index": index} for index, each in enumerate(names)]
    if not images:
        return {"kind": "numbers", "numbers": numbers[:MAX_CURVES]}
    first = images[0]
    image = {
        "leaf": leaf_name(first.path),
        "height": first.height,
        "width": first.width,
        "channels": first.channels,
        "channels_first": first.channel_axis == 0,
    }
    return {"kind": "image", "image": image, "numbers": numbers[:MAX_CURVES]}


def leaf_name(path: str) -> str:
    """Return the name of a leaf of an observation in the exported files."""
    return f"observation/{path}".rstrip("/")


def sliders_of(world: WorldModel) -> list[dict[str, Any]]:
    """Return index and range of the latent numbers of images: three standard deviations of the prior or of start states."""
    columns = world.layout.columns(PartKind.IMAGE)
    mean = world.start_mean.double().cpu()
    variance = world.start_log_variance.double().cpu().exp().mean(dim=0) + mean.var(dim=0, correction=0)
    reach = SLIDER_REACH * variance.clamp(min=0.01).sqrt()
    centre = torch.where(mean.isfinite(), mean, 0.0).mean(dim=0)
    bounds = zip((centre - reach).tolist(), (centre + reach).tolist(), strict=True)
    ranges = [(round(min(low, -SLIDER_REACH), 3), round(max(high, SLIDER_REACH), 3)) for low, high in bounds]
    return [{"index": index, "low": ranges[index][0], "high": ranges[index][1]} for index in columns]
