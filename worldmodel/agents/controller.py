r"""C, the paper's controller on (z, h): an agent with one linear layer, or with a hidden layer.

Its outputs are :math:`y = W [z, h] + b`, or :math:`y = W \tanh(V [z, h] + d) + b` with a hidden layer. The action is tanh of
them scaled to the bounds for a Box, and their argmax for a discrete action. `worldmodel.agents.evolution` searches the weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from worldmodel.agents.registry import register_agent
from worldmodel.dream import LatentState
from worldmodel.models import FEATURE_KINDS, FeatureKind, Origin, WorldModel, feature_size
from worldmodel.runtime import (
    ModelFiles,
    check_flags,
    check_integers,
    choose_device,
    file_errors,
    files,
    float32_default,
    local_path,
)
from worldmodel.spaces import FlatSpace, Value, json_features, space_from_json, space_to_json

CONTROLLER_FORMAT, CONTROLLER_VERSION = "worldmodel.controller", 2  # version 1 has weights of a fixed name
CONTROLLER_FILE = "controller.json"
CONTROLLER_FILES = ModelFiles(marker=CONTROLLER_FILE, stem="controller", format=CONTROLLER_FORMAT, version=CONTROLLER_VERSION)


@dataclass(frozen=True, kw_only=True)
class ControllerConfig:
    """Kind of a `Controller`.

    Args:
        features: kind of features that it acts on: "z", "zh" or "zhc".
        hidden_size: units of a hidden layer of tanh, an option of the authors' code; None is linear, as in the paper.
        bias: whether it has the terms b and d (the authors' Doom controller has none).
        ordered: the actions of a Discrete space are ordered, and one output chooses by equal parts of the range of tanh, as the
            authors' Doom controller does by thirds; otherwise each action has an output, and the largest wins.

    Raises:
        ValueError: if ``features`` is unknown or ``hidden_size`` is below 1.
        TypeError: if ``hidden_size`` is not an integer, or a flag not a boolean.
    """

    features: FeatureKind = "zh"
    hidden_size: int | None = None
    bias: bool = True
    ordered: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        if self.features not in FEATURE_KINDS:
            raise ValueError(f"features: expected 'z', 'zh' or 'zhc', got {self.features!r}")
        check_integers(self, {"hidden_size": 1}, optional=("hidden_size",))
        check_flags(self, "bias", "ordered")


@register_agent(CONTROLLER_FILE)
class Controller(nn.Module):
    """A small agent that acts on features: one linear layer, or two.

    Args:
        size: F, number of features; see `feature_size`.
        action_space: space of its actions.
        features: see `ControllerConfig`.
        bias: see `ControllerConfig`.
        hidden_size: see `ControllerConfig`.
        ordered: see `ControllerConfig`.
        generator: on the CPU; samples the weights of the hidden layer from N(0, 1/F), because from all zeros no small step
            changes the actions. All other weights are 0, and without a generator these are too.

    Raises:
        ValueError: if a size is below 1 or ``features`` is unknown.

    Attributes:
        origin: the world model for which it was made or in which `evolve` or `ppo` trained it; None if it is unknown. In
            another world model its features would mean something else, and it is refused.
    """

    origin: Origin | None = None

    @float32_default()
    def __init__(
        self,
        size: int,
        action_space: gym.Space[Any],
        *,
        features: FeatureKind = "zh",
        bias: bool = True,
        hidden_size: int | None = None,
        ordered: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if ordered and not isinstance(action_space, gym.spaces.Discrete):
            raise ValueError(f"ordered: expected False except for a Discrete action space, got True for {action_space}")
        if size < 1 or features not in FEATURE_KINDS:
            raise ValueError(f"size, features: expected >= 1 and one of 'z', 'zh', 'zhc', got {size} and {features!r}")
        if hidden_size is not None and hidden_size < 1:
            raise ValueError(f"hidden_size: expected None or an integer >= 1, got {hidden_size}")
        self.size, self.hidden_size, self.bias, self.ordered = size, hidden_size, bias, ordered
        self.features: FeatureKind = features
        self.action_features = FlatSpace(action_space)
        sizes = [size, *([] if hidden_size is None else [hidden_size]), 1 if ordered else self.action_features.size]
        layers = (nn.utils.skip_init(nn.Linear, *pair, bias=bias) for pair in itertools.pairwise(sizes))
        self.layers = nn.ModuleList(layers)  # `skip_init` uses no global random state
        nn.utils.vector_to_parameters(torch.zeros(self.num_parameters), self.parameters())
        if hidden_size is not None and generator is not None:
            hidden = self.layers[0]
            assert isinstance(hidden, nn.Linear)
            nn.init.normal_(hidden.weight, std=size**-0.5, generator=generator)

    @classmethod
    def for_world(
        cls, world: WorldModel, config: ControllerConfig | None = None, generator: torch.Generator | None = None
    ) -> Controller:
        """Make a controller for a world's features and actions, on the CPU; the world is its ``origin``.

        Args:
            world: the world model.
            config: its kind; the defaults if None.
            generator: see `Controller`.
        """
        config = config or ControllerConfig()
        controller = cls(
            feature_size(world, config.features),
            world.action_space,
            features=config.features,
            bias=config.bias,
            hidden_size=config.hidden_size,
            ordered=config.ordered,
            generator=generator,
        )
        controller.origin = Origin.of(world)  # also for a training of one's own, such as gradients through `imagine`
        return controller

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    def outputs(self, features: Tensor) -> Tensor:
        """The last layer's outputs (..., A) for features (..., F), with gradients; `FlatSpace.squash` takes them.

        Raises:
            ValueError: if the features are of another size, naming both.
        """
        if features.shape[-1] != self.size:
            raise ValueError(
                f"features: expected (..., {self.size}) of kind {self.features!r}, got {tuple(features.shape)}; pass "
                f"LatentState.features({self.features!r}), or train a controller on other features: "
                "evolve(..., ControllerConfig(features=...))"
            )
        outputs = features
        for layer in self.layers[:-1]:
            outputs = torch.tanh(layer(outputs))
        return self.layers[-1](outputs)

    @torch.no_grad()
    def forward(self, features: Tensor) -> Value:
        """Choose actions: features (..., F) -> nested tensors (..., *action shape).

        Raises:
            ValueError: if the features are of another size, naming both.
        """
        return self.decide(self.outputs(features))

    def reset(self, num_episodes: int) -> None:
        """Do nothing: a controller has no state."""

    def act(self, state: LatentState) -> Value:
        """Choose a batch of actions for B states."""
        return self(state.features(self.features))

    def decide(self, outputs: Tensor) -> Value:
        """Turn the last layer's outputs (..., A), or (..., 1) if the actions are ordered, into nested tensors of actions."""
        space = self.action_features.space
        if not self.ordered:
            return self.action_features.unflatten(self.action_features.squash(outputs))
        assert isinstance(space, gym.spaces.Discrete)
        part = (outputs[..., 0].tanh() + 1) / 2 * int(space.n)
        return part.long().clamp(max=int(space.n) - 1) + int(space.start)

    @torch.no_grad()
    def scale_inputs(self, factor: Tensor) -> None:
        """Multiply the weights of each feature by ``factor`` (F,), which has the effect of multiplying the features."""
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        first.weight *= factor

    @torch.no_grad()
    def shrink_outputs(self, divisor: Tensor) -> None:
        """Divide the outputs by a number, (), by dividing the weights of the last layer."""
        for parameter in self.layers[-1].parameters():
            parameter.div_(divisor)

    def check_world(self, world: WorldModel) -> None:
        """Raise unless this controller was made for the features and actions of a world model.

        Raises:
            ValueError: naming the feature size or the action space that differs, or the part of the world model in which the
                controller was trained.
        """
        expected = feature_size(world, self.features)
        if self.size != expected:
            raise ValueError(
                f"controller: expected one on the world model's {expected} features ({self.features}), got {self.size}"
            )
        if self.action_features.space != world.action_space:
            raise ValueError(f"controller: expected action space {world.action_space}, got {self.action_features.space}")
        if self.origin is not None:
            self.origin.check(world, self.features, name="controller")

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the controller as a directory of JSON and safetensors.

        Raises:
            FileExistsError: if ``path`` holds something that may not be replaced.
        """
        content = {
            "size": self.size,
            "features": self.features,
            "bias": self.bias,
            "hidden_size": self.hidden_size,
            "ordered": self.ordered,
            "action_space": space_to_json(self.action_features.space),
            **({} if self.origin is None else {"origin": asdict(self.origin)}),
        }
        CONTROLLER_FILES.save(path, content, self.state_dict(), overwrite=overwrite)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | torch.device = "cpu") -> Controller:
        """Open a directory that `save_pretrained` wrote.

        Raises:
            FileNotFoundError: if there is no controller in ``path``.
            ValueError: if it is damaged, of another format, or of a newer version.
        """
        path, device = local_path(path), choose_device(device)
        saved = CONTROLLER_FILES.read(path)
        content = saved.content
        with file_errors(path, "an undamaged controller"):
            weights = saved.weights()
            files.check_weights(weights, most=float("inf"))
            _check_shapes(content, saved.shapes)
            sizes = {name: content[name] for name in ("size", "features", "bias")}
            action_space = space_from_json(content["action_space"])
            sizes |= {"hidden_size": content.get("hidden_size"), "ordered": content.get("ordered", False)}
            controller = cls(action_space=action_space, **sizes)
            controller.load_state_dict(weights)
            controller.origin = Origin(**content["origin"]) if content.get("origin") is not None else None
        return controller.to(device)


def _check_shapes(content: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless the sizes in the JSON are those of the weights, before anything of these sizes is made."""
    last = f"layers.{0 if content.get('hidden_size') is None else 1}.weight"
    outputs = 1 if content.get("ordered", False) else json_features(content["action_space"])
    expected = (content["size"], outputs)
    found = (shapes["layers.0.weight"][1], shapes[last][0])
    hidden = content.get("hidden_size") in (None, shapes["layers.0.weight"][0])
    if found != expected or not hidden:
        raise ValueError(f"sizes: expected {expected} by the JSON, got {found} in the weights")
