r"""C, the paper's linear controller on (z, h), and its search by CMA-ES over a population of dreams.

The controller is :math:`a = W [z, h] + b`, then tanh scaled to the bounds for a Box, argmax for a discrete choice. Having few
parameters it needs no gradient: CMA-ES (Hansen 2006, by the ``cma`` package) proposes a population of weight vectors, all of
them times their rollouts are *one* batch of dreams, and every candidate meets the same start states and the same random
numbers, so that candidates differ by what they do and not by their luck.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from worldmodel import checkpoint
from worldmodel.dream import Dreams
from worldmodel.features import FeatureKind, feature_size, latent_features
from worldmodel.mdnrnn import State
from worldmodel.rollouts import derive_seed
from worldmodel.spaces import FlatSpace, Value, map_leaves, space_from_json, space_to_json, to_numpy
from worldmodel.world import WorldModel

CONTROLLER_FORMAT, CONTROLLER_VERSION = "worldmodel.controller", 1
IMPROVEMENT = 0.01  # of the best test, which a test must exceed to count as progress
CONTROLLER_FILE, WEIGHTS_FILE = "controller.json", "controller.safetensors"


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

    def __init__(self, size: int, action_space: gym.Space[Any], *, features: FeatureKind = "zh", bias: bool = True):
        super().__init__()
        if size < 1 or features not in ("z", "zh", "zhc"):
            raise ValueError(f"size, features: expected >= 1 and one of 'z', 'zh', 'zhc', got {size} and {features!r}")
        self.features: FeatureKind = features
        self.action_features = FlatSpace(action_space)
        self.linear = nn.utils.skip_init(nn.Linear, size, self.action_features.size, bias=bias)  # draws from no global state
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
            raise ValueError(
                f"features: expected (..., {self.linear.in_features}) of kind {self.features!r}, got {tuple(features.shape)}"
            )
        return self.action_features.unflatten(self.action_features.squash(self.linear(features)))

    def check_world(self, world: WorldModel) -> None:
        """Refuse a world model that this controller was not made for.

        Raises:
            ValueError: naming the feature size or the action space that differs.
        """
        expected = feature_size(world, self.features)
        if self.linear.in_features != expected:
            raise ValueError(
                f"controller: expected one on the world model's {expected} features ({self.features}), "
                f"got {self.linear.in_features}"
            )
        if self.action_features.space != world.action_space:
            raise ValueError(f"controller: expected action space {world.action_space}, got {self.action_features.space}")

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the controller as a directory of JSON and safetensors.

        Raises:
            FileExistsError: if ``path`` holds something that may not be replaced.
        """
        directory = checkpoint.prepare_directory(path, marker=CONTROLLER_FILE, format=CONTROLLER_FORMAT, overwrite=overwrite)
        checkpoint.save_tensors(directory / WEIGHTS_FILE, self.state_dict())
        content = {
            "weights_sha256": checkpoint.digest(directory / WEIGHTS_FILE),
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
            if checkpoint.digest(path / WEIGHTS_FILE) != content["weights_sha256"]:
                raise ValueError(
                    "the digest of the weights is not the one recorded; one of the two files was changed or replaced"
                )
            action_space = space_from_json(content["action_space"])
            controller = cls(content["size"], action_space, features=content["features"], bias=content["bias"])
            controller.load_state_dict(weights)
        except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: expected a whole controller, got a damaged one: {error}") from error
        return controller.to(device)


class _Population:
    """P controllers as one policy for P groups of R dreams."""

    def __init__(self, controller: LinearController, candidates: Tensor):
        self.features = controller.features
        self._action_features = controller.action_features
        split = torch.split(candidates, [parameter.numel() for parameter in controller.parameters()], dim=1)
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
        best_test: highest test so far, the start's included.
        controller: the controller of that test, which the search would return if it ended here.
    """

    number: int
    total: int
    best: float
    mean: float
    test: float | None
    best_test: float
    controller: LinearController


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

    The centre of the search is tested at the start and every few generations on fresh dreams, always the same ones, and the
    best centre is returned: a candidate that won a generation was also lucky, its centre is not.

    Args:
        dreams: the world, the temperature and the number of dreams: ``population`` times the rollouts of each candidate.
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
        ValueError: if a number is out of range, the world has no reward head, or ``initial`` is not of this world.
    """
    world = dreams.world
    numbers = {"generations": generations, "population": population, "test_every": test_every, "test_dreams": test_dreams}
    _check_search(dreams, sigma, numbers if patience is None else {**numbers, "patience": patience})
    if initial is None:
        initial = LinearController(feature_size(world, features), world.action_space, features=features, bias=bias)
    initial.check_world(world)
    controller = copy.deepcopy(initial).to(world.device)
    search = _search(controller, sigma, population, seed)
    grouped = dreams.variant(num_groups=population)
    tests = _Tests(dreams.variant(num_dreams=test_dreams), horizon, seed, controller)
    for number in range(1, generations + 1):
        candidates = search.ask()
        policy = _Population(controller, _vector(candidates, world.device))
        returns, _ = grouped.score(policy, horizon, generator=dreams.generator(derive_seed(seed, number)))
        fitness = returns.reshape(population, -1).mean(dim=1)
        search.tell(candidates, (-fitness).tolist())
        test = None
        if number % test_every == 0 or number == generations:
            nn.utils.vector_to_parameters(_vector(search.mean, world.device), controller.parameters())
            test = tests.run(controller)
        if on_generation is not None:
            best, mean = fitness.max().item(), fitness.mean().item()
            on_generation(Generation(number, generations, best, mean, test, tests.best_test, tests.best))
        if patience is not None and tests.stale >= patience:
            break
    return tests.best


class _Tests:
    """Scores a search's centre, each time on the same dreams, and keeps the best; ``stale`` counts tests without progress."""

    def __init__(self, dreams: Dreams, horizon: int, seed: int, start: LinearController):
        self._dreams, self._horizon = dreams, horizon
        self._seed = derive_seed(seed, 0)  # no generation has the number 0
        self.best, self.best_test, self.stale = copy.deepcopy(start), self._score(start), 0

    def run(self, controller: LinearController) -> float:
        test = self._score(controller)
        self.stale = 0 if test > self.best_test + IMPROVEMENT * abs(self.best_test) else self.stale + 1
        if test > self.best_test:
            self.best, self.best_test = copy.deepcopy(controller), test
        return test

    def _score(self, controller: LinearController) -> float:
        returns, _ = self._dreams.score(controller, self._horizon, generator=self._dreams.generator(self._seed))
        return returns.mean().item()


def _check_search(dreams: Dreams, sigma: float, numbers: dict[str, int]) -> None:
    if dreams.world.mdnrnn.reward_head is None:
        raise ValueError(
            "dreams: expected a world model that predicts rewards, got one without a reward head; fit it with reward_head=True"
        )
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma: expected a positive finite number, got {sigma}")
    for name, value in numbers.items():
        least = 2 if name == "population" else 1
        if value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {value}")
    if dreams.batch_size % numbers["population"]:
        raise ValueError(
            f"population: expected a divisor of the number of dreams {dreams.batch_size}, got {numbers['population']}"
        )
    if isinstance(dreams.temperature, Tensor) and dreams.temperature.ndim > 0:
        raise ValueError("dreams: expected one temperature for all, got one per dream, which would favour some candidates")


def _search(controller: LinearController, sigma: float, population: int, seed: int) -> Any:
    """Set up CMA-ES around the controller's weights, silent, without files, and drawing from its own generator."""
    try:
        import cma  # here, as it takes seconds to import
    except ImportError as error:
        raise ImportError("cma is not installed: pip install worldmodel[cma]") from error
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


def _vector(weights: np.ndarray | list[np.ndarray], device: torch.device) -> Tensor:
    return torch.as_tensor(np.asarray(weights), dtype=torch.float32, device=device)


class LatentPolicy:
    """A controller in the real environment: encodes each observation, advances M once per step, acts on the same features.

    A policy for `collect` and `rollouts`, where its ``reset`` starts an episode: M's state is zero again.

    Args:
        world: V and M.
        controller: features (1, F) -> a batch of one action; its attribute ``features`` says which kind.
        description: what it is called in a data set's recipe, before a digest of the weights of both; so other weights are
            another recipe.

    Raises:
        ValueError: if the controller does not belong to the world.
    """

    def __init__(self, world: WorldModel, controller: LinearController, *, description: str = "controller"):
        controller.check_world(world)
        self.world, self.controller = world, controller
        self.description = f"{description} {checkpoint.digest_tensors(controller.state_dict())[:8]}{world.fingerprint[:8]}"
        self._generator = torch.Generator(world.device)
        self._state: State | None = None
        self._last: tuple[Tensor, Tensor] | None = None

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode with a fresh state of M; draws of z follow from ``rng``."""
        self._generator.manual_seed(int(rng.integers(2**63)))
        self._state, self._last = self.world.mdnrnn.initial_state(1), None

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
        z = self.world.encode(map_leaves(lambda leaf: np.asarray(leaf)[None], observation), generator=self._generator)
        action = self.controller(latent_features(z, self._state, self.controller.features))
        self._last = z, self.world.action_features.flatten(action)
        return to_numpy(map_leaves(lambda leaf: leaf[0], action))
