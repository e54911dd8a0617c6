"""The search of a controller by evolution, in dreams or in the real environment; killed at any moment, it goes on.

A strategy (`worldmodel.agents.strategies`) proposes a population of weight vectors, a population (`worldmodel.agents.population`) says what
each of them earns, and the centre of the search is tested every few generations.

Strategies are functions of their seed and of what they are told. So the whole state of a search is the table of fitness it has
seen, and resuming is telling it again: the log of a search holds that table and the tests, and no state of any library.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.agents.controller import Controller
from worldmodel.agents.population import DreamPopulation, Population, RealPopulation
from worldmodel.agents.strategies import Method, OpenAIESConfig, make_strategy
from worldmodel.dream import Dreams
from worldmodel.models import FeatureKind, feature_size
from worldmodel.rng import SEARCH_STREAM, derive_seed
from worldmodel.runtime import files, interrupt_between_steps, jsonable

SEARCH_FORMAT, SEARCH_VERSION = "worldmodel.search", 1
SEARCH_FILE = "search.safetensors"  # usual name of a log
IMPROVEMENT = 0.01  # of the best test, which a test must exceed to count as progress


@dataclass(frozen=True)
class Generation:
    """What one generation of the search found; all returns are of dreams, or of real episodes where it searches in reality.

    Args:
        number: generations done.
        total: generations in all.
        best: highest mean return of a candidate over its rollouts.
        mean: mean return over all candidates.
        test: mean return of the search's centre over the test episodes; None in generations without a test.
        best_test: highest test so far, the start's included.
        controller: the controller of that test, which the search would return if it ended here.
    """

    number: int
    total: int
    best: float
    mean: float
    test: float | None
    best_test: float
    controller: Controller


def evolve(
    worlds: Dreams | RealPopulation,
    *,
    generations: int = 100,
    population: int = 64,
    horizon: int = 1000,
    sigma: float = 0.1,
    method: Method = "cma",
    openai_es: OpenAIESConfig | None = None,
    features: FeatureKind = "zh",
    hidden_size: int | None = None,
    bias: bool = True,
    ordered: bool = False,
    initial: Controller | None = None,
    test_every: int = 3,
    test_dreams: int = 1024,
    patience: int | None = None,
    target: float | None = None,
    seed: int = 0,
    log: str | Path | None = None,
    resume: bool = False,
    on_generation: Callable[[Generation], None] | None = None,
) -> Controller:
    """Search a controller, in dreams only or in the real environment.

    The centre of the search is tested at the start and every few generations on fresh episodes, always the same ones, and the
    best centre is returned: a candidate that won a generation was also lucky, its centre is not. The paper's CarRacing search
    is a `RealPopulation` with 16 rollouts, ``test_every=25`` and the other defaults.

    Args:
        worlds: dreams, whose number is ``population`` times the rollouts of each candidate; or a `RealPopulation`.
        generations: generations at most.
        population: candidates in a generation.
        horizon: longest episode, in steps.
        sigma: standard deviation of the candidates' weights; CMA-ES only starts with it.
        method: "cma" (CMA-ES, extra ``cma``), or "openai-es" for thousands of weights.
        openai_es: how OpenAI-ES climbs; its defaults if None.
        features: what the controller sees: "z", "zh" or "zhc".
        hidden_size: units of the controller's hidden layer; None for a linear one.
        bias: whether the controller has a bias.
        ordered: whether one output of the controller chooses among the actions; see `Controller`.
        initial: a controller to start from, whose kind is then taken; if None, zero weights and a hidden layer at random.
        test_every: generations between tests.
        test_dreams: dreams in a test; real episodes where the search is in reality.
        patience: stop after so many tests in a row that do not improve on the best by 1 %; None never stops early.
        target: stop once a test after a generation has this mean return, such as the highest that there is; None never does.
        seed: seed of the search and of the episodes.
        log: a file that is replaced after each generation, from which an interrupted search goes on.
        resume: go on from ``log`` if it is there. The generations that it holds are not reported again.
        on_generation: called after each generation.

    Returns:
        The controller of the best test, on the device of the world.

    Raises:
        ValueError: if a number is out of range, the world has no reward head, ``initial`` is not of this world, or ``log`` is
            of another search.
        FileExistsError: if ``log`` exists and is not to be resumed.
        KeyboardInterrupt: after the generation in which Ctrl-C came.
    """
    plan = _Plan(
        generations,
        population,
        horizon,
        sigma,
        method,
        openai_es or OpenAIESConfig(),
        test_every,
        test_dreams,
        patience,
        target,
        seed,
    )
    evaluator: Population = DreamPopulation(worlds, plan.population) if isinstance(worlds, Dreams) else worlds
    world = evaluator.world
    if initial is None:
        generator = torch.Generator().manual_seed(derive_seed(seed, SEARCH_STREAM, 0, 1))
        size, space = feature_size(world, features), world.action_space
        kind: dict[str, Any] = {"features": features, "bias": bias, "hidden_size": hidden_size, "ordered": ordered}
        initial = Controller(size, space, generator=generator, **kind)
    initial.check_world(world)
    search = _Search(evaluator, plan, copy.deepcopy(initial).to(world.device), None if log is None else Path(log))
    search.start(resume)
    with interrupt_between_steps() as requested:
        while not search.finished:
            generation = search.advance()
            if on_generation is not None:
                on_generation(generation)
            if requested.is_set():
                kept = "" if log is None else f"; {log} holds them"
                raise KeyboardInterrupt(f"interrupted after {generation.number} generations{kept}")
    return search.best


@dataclass(frozen=True)
class _Plan:
    """The numbers of a search, checked."""

    generations: int
    population: int
    horizon: int
    sigma: float
    method: str
    openai_es: OpenAIESConfig
    test_every: int
    test_dreams: int
    patience: int | None
    target: float | None
    seed: int

    def __post_init__(self) -> None:
        """Check every number; those of NumPy become Python's, as the log holds them."""
        if not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma: expected a positive finite number, got {self.sigma}")
        for name in ("generations", "population", "horizon", "test_every", "test_dreams", "patience", "seed"):
            value, least = getattr(self, name), {"population": 2, "seed": 0}.get(name, 1)
            if name == "patience" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
            object.__setattr__(self, name, int(value))
        object.__setattr__(self, "sigma", float(self.sigma))
        if self.target is not None:
            if not math.isfinite(self.target):
                raise ValueError(f"target: expected None or a finite number, got {self.target}")
            object.__setattr__(self, "target", float(self.target))


@dataclass
class _Table:
    """All that a search was told: the test of its start, and for each generation the fitness (P,) and the test, if any."""

    start_test: float
    fitness: list[np.ndarray] = field(default_factory=list)
    tests: list[float | None] = field(default_factory=list)


class _Search:
    """A search and where it stands; the controller ``best`` is that of the best test so far."""

    def __init__(self, evaluator: Population, plan: _Plan, start: Controller, log: Path | None):
        self._evaluator, self._plan, self._controller, self._log = evaluator, plan, start, log
        self._device = evaluator.world.device
        weights = nn.utils.parameters_to_vector(start.parameters()).detach().double().cpu().numpy()
        self._strategy = make_strategy(
            plan.method, weights, sigma=plan.sigma, population=plan.population, seed=plan.seed, openai_es=plan.openai_es
        )
        self.best = copy.deepcopy(start)
        self._stale = 0

    @property
    def finished(self) -> bool:
        """Whether all generations are done, the target is reached, or patience is at its end."""
        patience = math.inf if self._plan.patience is None else self._plan.patience
        reached = self._plan.target is not None and any(
            test is not None and test >= self._plan.target for test in self._table.tests
        )
        return reached or len(self._table.fitness) >= self._plan.generations or self._stale >= patience

    def start(self, resume: bool) -> None:
        """Test the start, or tell the strategy again what the log says."""
        identity = {
            **asdict(self._plan),
            **self._evaluator.recipe(),
            "world": self._evaluator.world.fingerprint,
            "start": files.digest_tensors(self.best.state_dict()),
            "features": self.best.features,
        }
        self._identity = jsonable(identity)  # NumPy's numbers are the same search
        if self._log is not None and self._log.exists():
            if not resume:
                raise FileExistsError(f"{self._log}: already holds a search; resume it or choose another file")
            self._replay(self._log)
        else:
            self._table = _Table(self._test(self.best, "the start"))
            self._best_test = self._table.start_test
            if self._log is not None:
                self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._log is not None:
            files.remove_temporaries(self._log.parent, name=self._log.name)

    def advance(self) -> Generation:
        """Do one generation."""
        plan, number = self._plan, len(self._table.fitness) + 1
        candidates = self._tensor(self._strategy.ask())
        seed = derive_seed(plan.seed, SEARCH_STREAM, number)
        name = f"generation {number}"
        fitness = self._evaluator.fitness(self._controller, candidates, horizon=plan.horizon, seed=seed, name=name)
        self._strategy.tell(fitness)
        test = None
        if number % plan.test_every == 0 or number == plan.generations:
            test = self._test(self._centre(), name)
        self._record(fitness, test)
        self._write()
        best, mean = fitness.max().item(), fitness.mean().item()
        return Generation(number, plan.generations, best, mean, test, self._best_test, self.best)

    def _record(self, fitness: np.ndarray, test: float | None) -> None:
        self._table.fitness.append(fitness)
        self._table.tests.append(test)
        if test is None:
            return
        self._stale = 0 if test > self._best_test + IMPROVEMENT * abs(self._best_test) else self._stale + 1
        if test > self._best_test:
            self.best, self._best_test = copy.deepcopy(self._centre()), test

    def _test(self, controller: Controller, name: str) -> float:
        plan = self._plan
        seed = derive_seed(plan.seed, SEARCH_STREAM, 0)  # no generation has the number 0
        return self._evaluator.test(controller, episodes=plan.test_dreams, horizon=plan.horizon, seed=seed, name=name)

    def _centre(self) -> Controller:
        nn.utils.vector_to_parameters(self._tensor(self._strategy.mean), self._controller.parameters())
        return self._controller

    def _tensor(self, weights: np.ndarray) -> Tensor:
        return torch.as_tensor(weights, dtype=torch.float32, device=self._device)

    def _write(self) -> None:
        """Write what was told so far; a reader sees the file before or after this generation."""
        if self._log is None:
            return
        tests = [math.nan if test is None else test for test in [self._table.start_test, *self._table.tests]]
        tensors = {
            "fitness": torch.as_tensor(np.stack(self._table.fitness), dtype=torch.float64),
            "tests": torch.tensor(tests, dtype=torch.float64),
        }
        content = {"format": SEARCH_FORMAT, "version": SEARCH_VERSION, "search": self._identity, "centre": self._digest()}
        content["table"] = files.digest_tensors(tensors)
        files.save_tensors(self._log, tensors, {"log": json.dumps(content)})

    def _replay(self, path: Path) -> None:
        """Ask and tell again; the strategy then stands where it stood, to the bit."""
        tensors, content = _read_log(path)
        for name, given in json.loads(json.dumps(self._identity)).items():
            there = content["search"].get(name)
            if there != given:
                raise ValueError(
                    f"{path}: expected {name} {there}, with which this search was started, got {given}; "
                    "resume with the same, or search with another log"
                )
        start_test, *tests = tensors["tests"].tolist()
        self._table, self._best_test = _Table(start_test), start_test
        for fitness, test in zip(tensors["fitness"].numpy(), tests, strict=True):
            self._strategy.ask()
            self._strategy.tell(fitness)
            self._record(fitness, None if math.isnan(test) else test)
        if self._digest() != content["centre"]:
            raise ValueError(
                f"{path}: expected to come to the weights of the search that was interrupted, got others; "
                "another version of cma, NumPy or this library wrote it: start the search anew"
            )

    def _digest(self) -> str:
        return hashlib.sha256(self._strategy.mean.tobytes()).hexdigest()


def _read_log(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The table of a log and what it says of the search; whole, or a ValueError."""
    tensors, metadata = files.load_tensors(path)
    try:
        content = json.loads(metadata.get("log", "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected the log of a search, got a damaged or foreign file ({error})") from error
    files.check_stamp(content, path, format=SEARCH_FORMAT, version=SEARCH_VERSION)
    digest = files.digest_tensors(tensors)
    whole = {"search", "centre"} <= content.keys() and {"fitness", "tests"} <= tensors.keys()
    if not whole or content.get("table", digest) != digest:  # logs of before the digest have none
        raise ValueError(f"{path}: expected the log of a search as it was written, got a damaged one; start the search anew")
    return tensors, content
