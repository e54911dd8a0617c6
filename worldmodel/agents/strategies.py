r"""Gradient-free searches over weights with an ask-and-tell interface: CMA-ES and OpenAI-ES.

CMA-ES (Hansen 2006, by the ``cma`` package) learns a full covariance. It suits up to some hundreds
of weights; its cost grows with the square of their number.

OpenAI-ES (Salimans et al. 2017, arXiv:1703.03864) suits thousands of weights. It samples candidates
in mirrored pairs from a normal distribution of fixed standard deviation sigma and ascends the
gradient of their expected fitness,

.. math:: g = \frac{1}{P \sigma} \sum_i u_i \epsilon_i.

Both maximise fitness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from worldmodel.runtime import check_numbers, missing_extra

Method = Literal["cma", "openai-es"]
METHODS = ("cma", "openai-es")


class Strategy(Protocol):
    """Ask-and-tell search; a pure function of its seed and of the fitness it is given."""

    @property
    def mean(self) -> np.ndarray:
        """(N,) float64, centre of the search."""

    def ask(self) -> np.ndarray:
        """Propose candidates (P, N), float64."""

    def tell(self, fitness: np.ndarray) -> None:
        """Update the search with the fitness (P,) of the candidates of the last `ask`.

        Raises:
            ValueError: if a fitness is NaN; see `check_fitness`.
        """


@dataclass(frozen=True, kw_only=True)
class OpenAIESConfig:
    """Step sizes of OpenAI-ES.

    Args:
        learning_rate: learning rate of Adam; about the step of each weight in a generation.
        weight_decay: factor of the weights that is subtracted from the gradient.

    Raises:
        ValueError: if a field is out of range.
        TypeError: if a field is not a number.
    """

    learning_rate: float = 0.03
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Validate every field."""
        check_numbers(self, {"learning_rate": "(0, inf)", "weight_decay": "[0, inf)"})


def make_strategy(
    method: str, weights: np.ndarray, *, sigma: float, population: int, seed: int, openai_es: OpenAIESConfig
) -> Strategy:
    """Create a search that starts at ``weights``.

    Args:
        method: "cma" or "openai-es".
        weights: (N,) initial centre of the search.
        sigma: standard deviation of the candidates; CMA-ES adapts it.
        population: P, candidates per generation; even for OpenAI-ES.
        seed: seed of the candidates.
        openai_es: step sizes of OpenAI-ES.

    Raises:
        ValueError: if the method is unknown, or if the population is odd for OpenAI-ES.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if method == "cma":
        return CMAES(weights, sigma=sigma, population=population, seed=seed)
    return OpenAIES(weights, sigma=sigma, population=population, seed=seed, config=openai_es)


class CMAES:
    """CMA-ES of the ``cma`` package, without output and files, and with its own random generator.

    Args:
        weights: (N,) initial centre of the search.
        sigma: initial standard deviation of the candidates.
        population: P, candidates per generation.
        seed: seed of the candidates.

    Raises:
        ImportError: if ``cma`` is not installed.
    """

    def __init__(self, weights: np.ndarray, *, sigma: float, population: int, seed: int):
        try:
            import cma  # here, as it takes seconds to import
        except ImportError as error:
            raise missing_extra("search", advice="or use method='openai-es'") from error
        rng = np.random.default_rng(seed)
        options = {
            "popsize": population,
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": np.nan,  # leave NumPy's global state alone
            "verbose": -10,  # no output, and no signals file is read
            "verb_log": 0,
        }
        self._search: Any = cma.CMAEvolutionStrategy(weights, sigma, options)
        self._candidates: list[np.ndarray] = []

    @property
    def mean(self) -> np.ndarray:
        """(N,) float64, centre of the search."""
        return np.asarray(self._search.mean)

    def ask(self) -> np.ndarray:
        """Propose candidates (P, N), float64."""
        self._candidates = self._search.ask()
        return np.asarray(self._candidates)

    def tell(self, fitness: np.ndarray) -> None:
        """Update the search with the fitness (P,) of the last candidates."""
        self._search.tell(self._candidates, (-check_fitness(fitness, len(self._candidates))).tolist())  # ``cma`` minimises


class OpenAIES:
    """Evolution strategy of Salimans et al. (2017) with mirrored pairs, centred ranks and Adam.

    Args:
        weights: (N,) initial centre of the search.
        sigma: standard deviation of the candidates around the centre; constant.
        population: P, even; half of the candidates mirror the others.
        seed: seed of the candidates.
        config: step sizes; None means the defaults.

    Raises:
        ValueError: if ``population`` is odd.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's defaults, as in the authors' code

    def __init__(self, weights: np.ndarray, *, sigma: float, population: int, seed: int, config: OpenAIESConfig | None = None):
        if population % 2:
            raise ValueError(
                f"population: expected an even number for openai-es, which mirrors candidates in pairs, got {population}"
            )
        self._mean = np.array(weights, dtype=np.float64)
        self._sigma, self._population, self._config = sigma, population, config or OpenAIESConfig()
        self._rng = np.random.default_rng(seed)
        self._noise = np.zeros((population, self._mean.size))
        self._first, self._second, self._steps = np.zeros_like(self._mean), np.zeros_like(self._mean), 0

    @property
    def mean(self) -> np.ndarray:
        """(N,) float64, centre of the search."""
        return self._mean.copy()

    def ask(self) -> np.ndarray:
        """Propose candidates (P, N), float64; the second half mirrors the first."""
        noise = self._rng.standard_normal((self._population // 2, self._mean.size))
        self._noise = np.concatenate([noise, -noise])
        return self._mean + self._sigma * self._noise

    def tell(self, fitness: np.ndarray) -> None:
        """Ascend the estimated gradient by one step of Adam (Kingma & Ba 2015)."""
        ranks = centred_ranks(check_fitness(fitness, self._population))
        gradient = estimate_gradient(self._noise, ranks, self._sigma)
        gradient -= self._config.weight_decay * self._mean
        self._steps += 1
        self._first += (1 - self.BETA1) * (gradient - self._first)
        self._second += (1 - self.BETA2) * (gradient**2 - self._second)
        first = self._first / (1 - self.BETA1**self._steps)
        second = self._second / (1 - self.BETA2**self._steps)
        self._mean += self._config.learning_rate * first / (np.sqrt(second) + self.EPSILON)


def check_fitness(fitness: np.ndarray, population: int | None = None) -> np.ndarray:
    """Return the fitness of P candidates as float64 numbers, for every strategy.

    An infinite fitness ranks as expected. NaN has no rank: NumPy sorts it above all numbers, and CMA-ES does not notice it.

    Args:
        fitness: (P,).
        population: P; None allows any number.

    Raises:
        ValueError: if the shape differs, or a fitness is NaN; names the candidate.
    """
    values = np.asarray(fitness, dtype=np.float64)
    if values.ndim != 1 or len(values) != (len(values) if population is None else population):
        expected = "(P,)" if population is None else f"({population},)"
        raise ValueError(f"fitness: expected shape {expected}, got {values.shape}")
    if np.isnan(values).any():
        where = int(np.isnan(values).argmax())
        raise ValueError(f"fitness: expected numbers, got NaN for candidate {where}; give a failed candidate -inf, the worst")
    return values


def centred_ranks(fitness: np.ndarray) -> np.ndarray:
    """Replace fitness (P,) by ranks from -1/2 (worst) to 1/2 (best); ties share their mean.

    Raises:
        ValueError: if a fitness is NaN.
    """
    fitness = check_fitness(fitness)
    _, index, counts = np.unique(fitness, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts + 1) / 2  # mean rank of each value, from 0
    return ranks[index] / (len(fitness) - 1) - 0.5


def estimate_gradient(noise: np.ndarray, fitness: np.ndarray, sigma: float) -> np.ndarray:
    """Estimate the gradient of the expected fitness, without bias.

    The estimate is (1 / (P sigma)) sum_i fitness_i noise_i.

    Args:
        noise: (P, N) standard normal deviations of the candidates from the centre, in units of
            ``sigma``.
        fitness: (P,) fitness of the candidates.
        sigma: standard deviation of the candidates.

    Returns:
        (N,) gradient.
    """
    return fitness @ noise / (len(fitness) * sigma)
