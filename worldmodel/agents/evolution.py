"""Resumable evolutionary search over agents, in dreams or in the real environment.

A strategy (`worldmodel.agents.strategies`) proposes weight vectors, a population (`worldmodel.agents.population`) evaluates
their fitness, and the centre of the search is tested every few generations.

A strategy is a function of its seed and of the fitness it was given. So the log of a search holds the fitness of all
generations and the tests, but no state of any library; a search resumes by replaying them.
"""

from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.agents.controller import Controller, ControllerConfig
from worldmodel.agents.population import DreamPopulation, Population, RealPopulation
from worldmodel.agents.registry import copy_for_training
from worldmodel.agents.search_log import SearchLog
from worldmodel.agents.shared_population import SharedPopulation
from worldmodel.agents.strategies import METHODS, Method, OpenAIESConfig, make_strategy
from worldmodel.dream import Agent, Dreams, usual_horizon
from worldmodel.models import WorldModel
from worldmodel.rng import SEARCH_STREAM, derive_seed
from worldmodel.runtime import (
    Progress,
    Ranks,
    RunConfig,
    check_integer,
    check_integers,
    check_numbers,
    check_same_run,
    explains_keywords,
    files,
    interrupt_between_steps,
    jsonable,
    keeps_threads,
    require_extras,
    set_threads,
)

SEARCH_FORMAT, SEARCH_VERSION = "worldmodel.search", 1
SEARCH_FILE = "search.safetensors"  # usual name of a log
IMPROVEMENT = 0.01  # relative to the best test; a smaller one counts as no progress


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Numbers of a search by `evolve`.

    Args:
        generations: largest number of generations.
        population: candidates in a generation.
        sigma: standard deviation of the candidates' weights; for CMA-ES, its initial value.
        method: "cma" (CMA-ES, extra ``search``), or "openai-es" for thousands of weights.
        openai_es: settings of OpenAI-ES.
        test_every: generations between tests.
        test_dreams: dreams in a test, or real episodes for a search in the real environment.
        patience: stop after this many consecutive tests that do not improve on the best by 1 %; None never does.
        target: stop when a test after a generation reaches this mean return; None never does.

    Raises:
        ValueError: naming the field that is out of range.
        TypeError: naming the field of another type.
    """

    generations: int = 100
    population: int = 64
    sigma: float = 0.1
    method: Method = "cma"
    openai_es: OpenAIESConfig = field(default_factory=OpenAIESConfig)
    test_every: int = 3
    test_dreams: int = 1024
    patience: int | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        """Check every field; NumPy's numbers become Python's, as in the log."""
        least = {"generations": 1, "population": 2, "test_every": 1, "test_dreams": 1, "patience": 1}
        check_integers(self, least, optional=("patience",))
        check_numbers(self, {"sigma": "(0, inf)", "target": "(-inf, inf)"}, optional=("target",))
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        if self.method == "openai-es" and self.population % 2:
            raise ValueError(f"population: expected an even number for openai-es, got {self.population}")
        object.__setattr__(self, "sigma", float(self.sigma))
        if self.target is not None:
            object.__setattr__(self, "target", float(self.target))

    def require_packages(self) -> None:
        """Raise if the method needs a package that is not installed.

        Raises:
            ImportError: naming the extra that brings it.
        """
        if self.method == "cma":
            require_extras("search", advice="or use method='openai-es' (--method openai-es)")


@explains_keywords
@keeps_threads
def evolve(
    worlds: Dreams | RealPopulation,
    agent: Agent | ControllerConfig | None = None,
    *,
    config: SearchConfig | None = None,
    horizon: int | None = None,
    seed: int = 0,
    log: str | Path | None = None,
    run: RunConfig | None = None,
) -> Any:
    """Search the weights of an agent, in dreams only or in the real environment.

    The centre of the search is tested at the start and every few generations, always on the same episodes, and the best centre
    is returned. The score of the best candidate of a generation is biased by its selection; that of the centre is not. The
    paper's CarRacing search is a `RealPopulation` with 16 rollouts, ``test_every=25`` and the other defaults.

    Several processes of a `torch.distributed` group can call this function together: each evaluates its share of the candidates
    (`worldmodel.agents.shared_population`), rank 0 writes the log and reports, and all return the same agent.

    Args:
        worlds: dreams, whose number is the population times the dreams of each candidate; or a `RealPopulation`.
        agent: the agent to start from, an nn.Module whose parameters are searched; it is not modified. Or the kind of a
            `Controller`, which starts with zero weights and a random hidden layer; the default kind if None.
        config: numbers of the search; the defaults if None.
        horizon: longest episode, in steps; None: the limit of the environment, or of the world model's data for dreams.
        seed: seed of the search and of the episodes.
        log: a file that is replaced after each generation, from which an interrupted search resumes.
        run: resume or overwrite the search in ``log``, and report progress; the defaults if None. Each generation is one record
            of stage "search", with the metrics best, mean and best_test (and test after a test), and the best agent so far as
            result. Generations that the log holds are not reported again.

    Returns:
        The agent of the best test, on the device of the world.

    Raises:
        ValueError: if a number is out of range, there are no rewards or constant ones, the agent was not made for this world,
            or ``log`` holds another search.
        TypeError: if ``agent`` is not an agent with parameters, or a number is not an integer.
        FileExistsError: if ``log`` exists and may be neither resumed nor overwritten.
        KeyboardInterrupt: after the generation in which Ctrl-C was pressed.
    """
    config, run = config or SearchConfig(), run or RunConfig()
    if horizon is None:
        horizon = usual_horizon(worlds.world) if isinstance(worlds, Dreams) else worlds.time_limit()
    horizon, seed = check_integer(horizon, "horizon", least=1), check_integer(seed, "seed", least=0)
    config.require_packages()
    evaluator: Population = DreamPopulation(worlds, config.population) if isinstance(worlds, Dreams) else worlds
    ranks = Ranks.current()
    if not ranks.alone:
        evaluator = SharedPopulation(evaluator, ranks)
    if not ranks.leads:
        log, run = None, RunConfig(progress=False)
    start = _make_start(agent, evaluator.world, seed)
    kept = SearchLog(None if log is None else Path(log), SEARCH_FORMAT, SEARCH_VERSION)
    search = _Search(evaluator, config, start, horizon=horizon, seed=seed, log=kept)
    search.start(run)
    with interrupt_between_steps() as requested, run.reporter() as report:
        while not search.finished:
            progress = search.advance()
            report(progress)
            if ranks.agree(requested.is_set()):
                where = "" if log is None else f"; {log} holds them"
                raise KeyboardInterrupt(f"interrupted after {progress.done} generations{where}")
    return search.best


def _make_start(agent: Agent | ControllerConfig | None, world: WorldModel, seed: int) -> Any:
    """Return the agent that the search starts from, on the device of the world."""
    if agent is None or isinstance(agent, ControllerConfig):
        generator = torch.Generator().manual_seed(derive_seed(seed, SEARCH_STREAM, 0, 1))
        return copy_for_training(Controller.for_world(world, agent, generator), world).to(world.device)
    checked = copy_for_training(agent, world)
    if not isinstance(checked, nn.Module) or not any(True for _ in checked.parameters()):
        raise TypeError(
            f"agent: expected an agent that is an nn.Module with parameters to search, got {type(agent).__name__}; pass a "
            "ControllerConfig to search a controller"
        )
    return checked.to(world.device)


@dataclass
class _Table:
    """Results so far: the test of the start, and for each generation the fitness (P,) and the test, if any."""

    start_test: float
    fitness: list[np.ndarray] = field(default_factory=list)
    tests: list[float | None] = field(default_factory=list)


class _Search:
    """State of a search; ``best`` is the agent of the best test so far."""

    def __init__(self, evaluator: Population, config: SearchConfig, start: Any, *, horizon: int, seed: int, log: SearchLog):
        self._evaluator, self._config, self._agent, self._log = evaluator, config, start, log
        self._horizon, self._seed, self._device = horizon, seed, evaluator.world.device
        weights = nn.utils.parameters_to_vector(start.parameters()).detach().double().cpu().numpy()
        self._strategy = make_strategy(
            config.method, weights, sigma=config.sigma, population=config.population, seed=seed, openai_es=config.openai_es
        )
        self.best = copy.deepcopy(start)
        self._stale = 0

    @property
    def finished(self) -> bool:
        """Whether all generations are done, the target is reached, or ``patience`` is exhausted."""
        config = self._config
        patience = math.inf if config.patience is None else config.patience
        reached = config.target is not None and any(test is not None and test >= config.target for test in self._table.tests)
        return reached or len(self._table.fitness) >= config.generations or self._stale >= patience

    def start(self, run: RunConfig) -> None:
        """Test the start, or replay the log."""
        self._identity, ranks = self._make_identity(), Ranks.current()
        earlier = ranks.share(_read_log(self._log) if self._log.prepare(run) else None)
        if earlier is not None:
            tensors, content = earlier
            self._replay(tensors, content, run.threads)
        else:
            set_threads(None, run.threads, self._log.path or "this search")
            self._table = _Table(self._test(self.best, "the start"))
            self._best_test = self._table.start_test

    def advance(self) -> Progress:
        """Do one generation."""
        config, number = self._config, len(self._table.fitness) + 1
        candidates = self._tensor(self._strategy.ask())
        seed = derive_seed(self._seed, SEARCH_STREAM, number)
        name = f"generation {number}"
        fitness = self._evaluator.fitness(self._agent, candidates, horizon=self._horizon, seed=seed, name=name)
        self._strategy.tell(fitness)
        test = None
        if number % config.test_every == 0 or number == config.generations:
            test = self._test(self._centre(), name)
        self._record(fitness, test)
        self._write()
        metrics = {"best": fitness.max().item(), "mean": fitness.mean().item(), "best_test": self._best_test}
        metrics |= {} if test is None else {"test": test}
        return Progress("search", number, config.generations, "generation", metrics, self.best)

    def _make_identity(self) -> dict[str, Any]:
        """Return the arguments of the search as the log records them."""
        config = asdict(self._config)
        identity = {
            **{name: config[name] for name in ("generations", "population")},
            "horizon": self._horizon,
            **{name: config[name] for name in ("sigma", "method", "openai_es", "test_every", "test_dreams")},
            **{name: config[name] for name in ("patience", "target")},
            "seed": self._seed,
            **self._evaluator.recipe(),
            "world": self._evaluator.world.fingerprint,
            "start": files.digest_tensors(self.best.state_dict()),
            "features": getattr(self.best, "features", None),
        }
        made: dict[str, Any] = jsonable(identity)  # NumPy's numbers are the same search
        return made

    def _record(self, fitness: np.ndarray, test: float | None) -> None:
        self._table.fitness.append(fitness)
        self._table.tests.append(test)
        if test is None:
            return
        self._stale = 0 if test > self._best_test + IMPROVEMENT * abs(self._best_test) else self._stale + 1
        if test > self._best_test:
            self.best, self._best_test = copy.deepcopy(self._centre()), test

    def _test(self, agent: Any, name: str) -> float:
        seed = derive_seed(self._seed, SEARCH_STREAM, 0)  # no generation has the number 0
        episodes = self._config.test_dreams
        return self._evaluator.test(agent, episodes=episodes, horizon=self._horizon, seed=seed, name=name)

    def _centre(self) -> Any:
        nn.utils.vector_to_parameters(self._tensor(self._strategy.mean), self._agent.parameters())
        return self._agent

    def _tensor(self, weights: np.ndarray) -> Tensor:
        return torch.as_tensor(weights, dtype=torch.float32, device=self._device)

    def _write(self) -> None:
        """Replace the log atomically."""
        tests = [math.nan if test is None else test for test in [self._table.start_test, *self._table.tests]]
        tensors = {
            "fitness": torch.as_tensor(np.stack(self._table.fitness), dtype=torch.float64),
            "tests": torch.tensor(tests, dtype=torch.float64),
        }
        table, threads = files.digest_tensors(tensors), torch.get_num_threads()
        self._log.write(tensors, {"search": self._identity, "centre": self._digest(), "table": table, "threads": threads})

    def _replay(self, tensors: dict[str, Tensor], content: dict[str, Any], threads: int | None) -> None:
        """Repeat all asks and tells of the log, so that the strategy has the same state, to the bit."""
        path = str(self._log.path)
        check_same_run(content["search"], self._identity, path)
        set_threads(content.get("threads"), threads, path)
        start_test, *tests = tensors["tests"].tolist()
        self._table, self._best_test = _Table(start_test), start_test
        for fitness, test in zip(tensors["fitness"].numpy(), tests, strict=True):
            self._strategy.ask()
            self._strategy.tell(fitness)
            self._record(fitness, None if math.isnan(test) else test)
        if self._digest() != content["centre"]:
            raise ValueError(
                f"{path}: expected the replay to reach the weights of the interrupted search, got others; another version of "
                "cma, NumPy or this library wrote it: start the search again (--overwrite)"
            )

    def _digest(self) -> str:
        return hashlib.sha256(self._strategy.mean.tobytes()).hexdigest()


def _read_log(log: SearchLog) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the table and the arguments of a search from its log; raise ValueError if it is damaged."""
    tensors, content = log.read()
    digest = files.digest_tensors(tensors)
    complete = {"search", "centre"} <= content.keys() and {"fitness", "tests"} <= tensors.keys()
    if not complete or content.get("table", digest) != digest:  # old logs have no digest
        raise ValueError(
            f"{log.path}: expected the log of a search as it was written, got a damaged one; start the search again "
            "(--overwrite)"
        )
    return tensors, content
