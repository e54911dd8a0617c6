r"""C, the paper's linear controller on (z, h), and its search by CMA-ES over a population of dreams.

The controller is :math:`a = W [z, h] + b`, then tanh scaled to the bounds for a Box, argmax for a discrete choice. Having few
parameters it needs no gradient: CMA-ES (Hansen 2006, by the ``cma`` package) proposes a population of weight vectors, all of them times
their rollouts are *one* batch of dreams, and every candidate meets the same start states and the same random numbers, so that
candidates differ by what they do and not by their luck.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cma
import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from worldmodel import checkpoint
from worldmodel.dream import Dreams, FeatureKind, latent_features
from worldmodel.mdnrnn import State
from worldmodel.spaces import FlatSpace, Value, map_leaves, space_from_json, space_to_json, to_numpy
from worldmodel.world import WorldModel

CONTROLLER_FORMAT, CONTROLLER_VERSION = "worldmodel.controller", 1
IMPROVEMENT = 0.01  # of the best test, which a test must exceed to count as progress
CONTROLLER_FILE, WEIGHTS_FILE = "controller.json", "controller.safetensors"


def feature_size(world: WorldModel, features: FeatureKind) -> int:
    """Number of features of a kind: D for "z", plus H for "zh", plus 2 H for "zhc"."""
    config = world.mdnrnn.config
    return config.latent_size + {"z": 0, "zh": 1, "zhc": 2}[features] * config.hidden_size


class LinearController(nn.Module):
    """A linear policy on an agent's features. It is called in dreams; `LatentPolicy` takes it to the real environment.

    Args:
        size: F, number of features; see `feature_size`.
        action_space: what it may do.
        features: the kind of features it takes: "z", "zh" or "zhc".
        bias: whether it has the term b (the authors' Doom controller has none).

    Raises:
        ValueError: if ``size`` is below 1 or ``features`` is unknown.
    """

    def __init__(self, size: int, action_space: gym.Space, *, features: FeatureKind = "zh", bias: bool = True):
        super().__init__()
        if size < 1 or features not in ("z", "zh", "zhc"):
            raise ValueError(f"size, features: expected >= 1 and one of 'z', 'zh', 'zhc', got {size} and {features!r}")
        self.features: FeatureKind = features
        self.action_features = FlatSpace(action_space)
        self.linear = nn.Linear(size, self.action_features.size, bias=bias)
        nn.utils.vector_to_parameters(torch.zeros(self.num_parameters), self.parameters())

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def forward(self, features: Tensor) -> Value:
        """Choose actions: features (..., F) -> nested tensors (..., *action shape).

        Raises:
            ValueError: if the features are of another size, naming both.
        """
        if features.shape[-1] != self.linear.in_features:
            raise ValueError(f"features: expected (..., {self.linear.in_features}) of kind {self.features!r}, got {tuple(features.shape)}")
        return self.action_features.unflatten(self.action_features.squash(self.linear(features)))

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the controller as a directory of JSON and safetensors.

        Raises:
            FileExistsError: if ``path`` holds something that may not be replaced.
        """
        directory = checkpoint.prepare_directory(path, marker=CONTROLLER_FILE, overwrite=overwrite)
        checkpoint.save_tensors(directory / WEIGHTS_FILE, self.state_dict())
        content = {
            "size": self.linear.in_features,
            "features": self.features,
            "bias": self.linear.bias is not None,
            "action_space": space_to_json(self.action_features.space),
        }
        checkpoint.write_json(directory / CONTROLLER_FILE, content, format=CONTROLLER_FORMAT, version=CONTROLLER_VERSION)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | torch.device = "cpu") -> LinearController:
        """Open a directory that `save_pretrained` wrote.

        Raises:
            FileNotFoundError: if there is no controller in ``path``.
            ValueError: if it is damaged, not ours, or of a newer version.
        """
        path = Path(path)
        content = checkpoint.read_json(path / CONTROLLER_FILE, format=CONTROLLER_FORMAT, version=CONTROLLER_VERSION)
        weights, _ = checkpoint.load_tensors(path / WEIGHTS_FILE)
        try:
            action_space = space_from_json(content["action_space"])
            controller = cls(content["size"], action_space, features=content["features"], bias=content["bias"])
            controller.load_state_dict(weights)
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: expected a whole controller, got a damaged one: {error}") from error
        return controller.to(device)


class _Population:
    """P controllers as one policy for P groups of R dreams."""

    def __init__(self, controller: LinearController, candidates: Tensor):
        self.features = controller.features
        self._action_features = controller.action_features
        split = candidates.split([parameter.numel() for parameter in controller.parameters()], dim=1)
        p, out, size = candidates.shape[0], controller.linear.out_features, controller.linear.in_features
        self._weight = split[0].reshape(p, out, size).transpose(1, 2).contiguous()  # (P, F, A)
        self._bias = split[1].unsqueeze(1) if len(split) > 1 else candidates.new_zeros(p, 1, out)  # (P, 1, A)

    def __call__(self, features: Tensor) -> Value:
        grouped = features.reshape(self._weight.shape[0], -1, features.shape[-1])  # (P, R, F)
        outputs = torch.baddbmm(self._bias, grouped, self._weight).reshape(features.shape[0], -1)  # (P * R, A)
        return self._action_features.unflatten(self._action_features.squash(outputs))


@dataclass(frozen=True)
class Generation:
    """What one generation of the search found; all returns are of dreams.

    Args:
        number: generations done.
        total: generations in all.
        best: highest mean return of a candidate over its rollouts.
        mean: mean return over all candidates.
        test: mean return of the search's centre over the test dreams; None in generations without a test.
        best_test: highest test so far, whose controller is kept.
    """

    number: int
    total: int
    best: float
    mean: float
    test: float | None
    best_test: float


def evolve(
    dreams: Dreams,
    *,
    generations: int = 100,
    population: int = 64,
    horizon: int = 1000,
    sigma: float = 0.1,
    features: FeatureKind = "zh",
    bias: bool = True,
    initial: LinearController | None = None,
    test_every: int = 3,
    test_dreams: int = 1024,
    patience: int | None = None,
    seed: int = 0,
    on_generation: Callable[[Generation], None] | None = None,
) -> LinearController:
    """Search a linear controller by CMA-ES, in dreams only.

    The centre of the search is tested every few generations on fresh dreams, always the same ones, and the best centre is returned:
    a candidate that won a generation was also lucky, its centre is not.

    Args:
        dreams: the world, the temperature and the number of dreams, which is ``population`` times the rollouts of each candidate.
        generations: generations at most.
        population: candidates in a generation.
        horizon: longest dream, in steps.
        sigma: initial standard deviation of the weights.
        features: what the controller sees: "z", "zh" or "zhc".
        bias: whether the controller has a bias.
        initial: a controller to start from, whose ``features`` and ``bias`` are then taken; zero weights if None.
        test_every: generations between tests.
        test_dreams: dreams in a test.
        patience: stop after so many tests in a row that do not improve on the best by 1 %; None never stops early.
        seed: seed of the search and of the dreams.
        on_generation: called after each generation.

    Returns:
        The controller of the best test, on the device of the world.

    Raises:
        ValueError: if a number is out of range.
    """
    world = dreams.world
    _check_search(dreams, generations=generations, population=population, test_every=test_every, test_dreams=test_dreams)
    controller = copy.deepcopy(initial) or LinearController(feature_size(world, features), world.action_space, features=features, bias=bias)
    controller = controller.to(world.device)
    search = _search(controller, sigma, population, seed)
    grouped, tests = dreams.variant(num_groups=population), dreams.variant(num_dreams=test_dreams)
    best_test, best, stale = -math.inf, copy.deepcopy(controller), 0
    for number in range(1, generations + 1):
        candidates = search.ask()
        policy = _Population(controller, _vector(candidates, world.device))
        returns, _ = grouped.score(policy, horizon, generator=dreams.generator(_generation_seed(seed, number)))
        fitness = returns.reshape(population, -1).mean(dim=1)
        search.tell(candidates, (-fitness).tolist())
        test = None
        if number % test_every == 0 or number == generations:
            nn.utils.vector_to_parameters(_vector(search.mean, world.device), controller.parameters())
            test = tests.score(controller, horizon, generator=dreams.generator(_generation_seed(seed, 0)))[0].mean().item()
            stale = 0 if test > best_test + IMPROVEMENT * abs(best_test) else stale + 1
            if test > best_test:
                best_test, best = test, copy.deepcopy(controller)
        if on_generation is not None:
            on_generation(Generation(number, generations, fitness.max().item(), fitness.mean().item(), test, best_test))
        if patience is not None and stale >= patience:
            break
    return best


def _check_search(dreams: Dreams, **numbers: int) -> None:
    for name, value in numbers.items():
        least = 2 if name == "population" else 1
        if value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {value}")
    if dreams.batch_size % numbers["population"]:
        raise ValueError(f"population: expected a divisor of the number of dreams {dreams.batch_size}, got {numbers['population']}")
    if isinstance(dreams.temperature, Tensor) and dreams.temperature.ndim > 0:
        raise ValueError("dreams: expected one temperature for all, got one per dream, which would favour some candidates")


def _search(controller: LinearController, sigma: float, population: int, seed: int) -> cma.CMAEvolutionStrategy:
    """Set up CMA-ES around the controller's weights, silent, without files, and drawing from its own generator."""
    rng = np.random.default_rng(seed)
    options = {
        "popsize": population,
        "randn": lambda *shape: rng.standard_normal(shape),
        "seed": np.nan,  # leave NumPy's global state alone
        "verbose": -10,  # quiet, and no signals file is read
        "verb_log": 0,
    }
    weights = nn.utils.parameters_to_vector(controller.parameters()).detach().double().cpu().numpy()
    return cma.CMAEvolutionStrategy(weights, sigma, options)


def _generation_seed(seed: int, generation: int) -> int:
    """Seed of a generation's dreams; generation 0 stands for the tests."""
    return int(np.random.SeedSequence([seed, generation]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _vector(weights: np.ndarray | list[np.ndarray], device: torch.device) -> Tensor:
    return torch.as_tensor(np.asarray(weights), dtype=torch.float32, device=device)


class LatentPolicy:
    """A controller in the real environment: encodes each observation, advances M once per step, acts on the same features.

    A policy for `collect` and `rollouts`, where its ``reset`` starts an episode: M's state is zero again.

    Args:
        world: V and M.
        controller: features (1, F) -> a batch of one action; its attribute ``features`` says which kind.
        description: what it is called in a data set's recipe.
    """

    def __init__(self, world: WorldModel, controller: LinearController, *, description: str = "controller"):
        expected = feature_size(world, controller.features)
        if controller.linear.in_features != expected:
            raise ValueError(f"controller: expected one on {expected} features ({controller.features}), got {controller.linear.in_features}")
        if controller.action_features.space != world.action_space:
            raise ValueError(f"controller: expected action space {world.action_space}, got {controller.action_features.space}")
        self.world, self.controller, self.description = world, controller, description
        self._generator = torch.Generator(world.device)
        self._state: State | None = None
        self._last: tuple[Tensor, Tensor] | None = None

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode with a fresh state of M; draws of z follow from ``rng``."""
        self._generator.manual_seed(int(rng.integers(2**63)))
        self._state, self._last = self.world.mdnrnn.initial_state(1), None

    @torch.no_grad()
    def __call__(self, observation: Value) -> Any:
        """Choose the action for one observation.

        Raises:
            RuntimeError: if the episode was not begun with `reset`.
        """
        if self._state is None:
            raise RuntimeError("LatentPolicy: expected reset(rng) before the first observation of an episode, got none")
        if self._last is not None:  # h now takes in the step that led here, once
            self._state = self.world.mdnrnn.advance(*self._last, self._state)
        z = self.world.encode(map_leaves(lambda leaf: np.asarray(leaf)[None], observation), generator=self._generator)
        action = self.controller(latent_features(z, self._state, self.controller.features))
        self._last = z, self.world.action_features.flatten(action)
        return to_numpy(map_leaves(lambda leaf: leaf[0], action))
