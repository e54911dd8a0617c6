r"""C, the paper's controller on (z, h), in dreams and in the real environment.

The controller is :math:`a = W [z, h] + b`, or :math:`a = W \tanh(V [z, h] + d) + b` with a hidden layer, then tanh scaled to
the bounds for a Box, argmax for a discrete choice. `worldmodel.agents.evolution` searches its weights.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.data import RandomPolicy
from worldmodel.models import FEATURE_KINDS, FeatureKind, State, WorldModel, feature_size, latent_features
from worldmodel.runtime import files
from worldmodel.spaces import FlatSpace, Value, map_leaves, space_from_json, space_to_json, stack_values, to_numpy

CONTROLLER_FORMAT, CONTROLLER_VERSION = "worldmodel.controller", 1
CONTROLLER_FILE, WEIGHTS_FILE = "controller.json", "controller.safetensors"


class Controller(nn.Module):
    """A small policy on an agent's features. It is called in dreams; `LatentPolicy` takes it to the real environment.

    Args:
        size: F, number of features; see `feature_size`.
        action_space: what it may do.
        features: the kind of features it takes: "z", "zh" or "zhc".
        bias: whether it has the terms b and d (the authors' Doom controller has none).
        hidden_size: units of a hidden layer of tanh, as the authors' code has it by choice; None is linear, as in the paper.
        ordered: the choices of a Discrete space lie on a line, and one output chooses by equal parts of the range of tanh, as
            the authors' Doom controller does by thirds; otherwise each choice has an output, and the largest wins.
        generator: on the CPU; draws the weights of the hidden layer from N(0, 1/F), as from all zeros no small step changes
            what it does. All other weights are 0, and without a generator these are too.

    Raises:
        ValueError: if a size is below 1 or ``features`` is unknown.
    """

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
            raise ValueError(f"ordered: expected False but for a Discrete action space, got True for {action_space}")
        if size < 1 or features not in FEATURE_KINDS:
            raise ValueError(f"size, features: expected >= 1 and one of 'z', 'zh', 'zhc', got {size} and {features!r}")
        if hidden_size is not None and hidden_size < 1:
            raise ValueError(f"hidden_size: expected None or an integer >= 1, got {hidden_size}")
        self.size, self.hidden_size, self.bias, self.ordered = size, hidden_size, bias, ordered
        self.features: FeatureKind = features
        self.action_features = FlatSpace(action_space)
        sizes = [size, *([] if hidden_size is None else [hidden_size]), 1 if ordered else self.action_features.size]
        layers = (nn.utils.skip_init(nn.Linear, *pair, bias=bias) for pair in itertools.pairwise(sizes))
        self.layers = nn.ModuleList(layers)  # `skip_init` draws from no global state
        nn.utils.vector_to_parameters(torch.zeros(self.num_parameters), self.parameters())
        if hidden_size is not None and generator is not None:
            hidden = self.layers[0]
            assert isinstance(hidden, nn.Linear)
            nn.init.normal_(hidden.weight, std=size**-0.5, generator=generator)

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
                f"features: expected (..., {self.size}) of kind {self.features!r}, got {tuple(features.shape)}; give it what "
                f"LatentState.features({self.features!r}) returns, or train a controller on the features that you have: "
                "evolve(..., features=...)"
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

    def decide(self, outputs: Tensor) -> Value:
        """Turn the last layer's outputs (..., A), or (..., 1) where choices are ordered, into nested tensors of actions."""
        space = self.action_features.space
        if not self.ordered:
            return self.action_features.unflatten(self.action_features.squash(outputs))
        assert isinstance(space, gym.spaces.Discrete)
        part = (outputs[..., 0].tanh() + 1) / 2 * int(space.n)
        return part.long().clamp(max=int(space.n) - 1) + int(space.start)

    def check_world(self, world: WorldModel) -> None:
        """Refuse a world model that this controller was not made for.

        Raises:
            ValueError: naming the feature size or the action space that differs.
        """
        expected = feature_size(world, self.features)
        if self.size != expected:
            raise ValueError(
                f"controller: expected one on the world model's {expected} features ({self.features}), got {self.size}"
            )
        if self.action_features.space != world.action_space:
            raise ValueError(f"controller: expected action space {world.action_space}, got {self.action_features.space}")

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the controller as a directory of JSON and safetensors.

        Raises:
            FileExistsError: if ``path`` holds something that may not be replaced.
        """
        directory = files.prepare_directory(path, marker=CONTROLLER_FILE, format=CONTROLLER_FORMAT, overwrite=overwrite)
        files.save_tensors(directory / WEIGHTS_FILE, self.state_dict())
        content = {
            "weights_sha256": files.digest(directory / WEIGHTS_FILE),
            "size": self.size,
            "features": self.features,
            "bias": self.bias,
            "hidden_size": self.hidden_size,
            "ordered": self.ordered,
            "action_space": space_to_json(self.action_features.space),
        }
        files.write_json(directory / CONTROLLER_FILE, content, format=CONTROLLER_FORMAT, version=CONTROLLER_VERSION)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | torch.device = "cpu") -> Controller:
        """Open a directory that `save_pretrained` wrote.

        Raises:
            FileNotFoundError: if there is no controller in ``path``.
            ValueError: if it is damaged, not ours, or of a newer version.
        """
        path = Path(path)
        content = files.read_json(path / CONTROLLER_FILE, format=CONTROLLER_FORMAT, version=CONTROLLER_VERSION)
        weights, _ = files.load_tensors(path / WEIGHTS_FILE)
        try:
            if files.digest(path / WEIGHTS_FILE) != content["weights_sha256"]:
                raise ValueError(
                    "the digest of the weights is not the one recorded; one of the two files was changed or replaced"
                )
            sizes = {name: content[name] for name in ("size", "features", "bias")}
            action_space = space_from_json(content["action_space"])
            sizes |= {"hidden_size": content.get("hidden_size"), "ordered": content.get("ordered", False)}
            controller = cls(action_space=action_space, **sizes)
            controller.load_state_dict(weights)
        except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: expected a whole controller, got a damaged one: {error}") from error
        return controller.to(device)


class LatentPolicy:
    """A controller in the real environment: encodes each observation, advances M once per step, acts on the same features.

    A policy for `collect` and `rollouts`, where its ``reset`` starts an episode: M's state is zero again.

    Args:
        world: V and M.
        controller: features (1, F) -> a batch of one action; its attribute ``features`` says which kind.
        exploration: probability with which a step's action is a random one instead; M takes in the action that was taken.
        description: what it is called in a data set's recipe, before a digest of the weights of both; so other weights are
            another recipe.

    Raises:
        ValueError: if the controller does not belong to the world, or ``exploration`` is no probability.
    """

    def __init__(self, world: WorldModel, controller: Controller, *, exploration: float = 0.0, description: str = "controller"):
        controller.check_world(world)
        if not 0 <= exploration <= 1:
            raise ValueError(f"exploration: expected a probability from 0 to 1, got {exploration}")
        self.world, self.controller, self.exploration = world, controller, exploration
        self.description = f"{description} {files.digest_tensors(controller.state_dict())[:8]}{world.fingerprint[:8]}"
        if exploration:
            self.description += f", {exploration:g} of its actions random"
            self._random = RandomPolicy(world.action_space)
        self._generator = torch.Generator(world.device)
        self._state: State | None = None
        self._last: tuple[Tensor, Tensor] | None = None

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode with a fresh state of M; draws of z follow from ``rng``."""
        self._generator.manual_seed(int(rng.integers(2**63)))
        self._state, self._last = self.world.mdnrnn.initial_state(1), None
        if self.exploration:
            self._random.reset(rng)
            self._rng = rng

    @torch.inference_mode()
    def __call__(self, observation: Value) -> Any:
        """Choose the action for one observation.

        Raises:
            RuntimeError: if the episode was not begun with `reset`.
        """
        if self._state is None:
            raise RuntimeError("LatentPolicy: expected reset(rng) before the first observation of an episode, got none")
        if self._last is not None:  # h now takes in the step that led here, once
            self._state = self.world.mdnrnn.advance(*self._last, self._state)
        z = self.world.encode(stack_values([observation]), generator=self._generator)
        if self.exploration and self._rng.random() < self.exploration:
            action = self._random(observation)
            self._last = z, self.world.action_features.flatten(stack_values([action]))
            return action
        batch = self.controller(latent_features(z, self._state, self.controller.features))
        self._last = z, self.world.action_features.flatten(batch)
        return to_numpy(map_leaves(lambda leaf: leaf[0], batch))
