"""Compare the ranking of fixed policies in dreams with their ranking in the real environment.

A search in dreams finds what dreams reward. The probe tests before the search whether reality rewards the same. Its policies
need no training: each action held constant, uniformly random actions, random actions with short and long holds, and sweeps
from the first choice to the last and back. Dreams that do not distinguish these policies, or rank them differently, are not
ready, whatever their likelihood.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from worldmodel.agents import centred_ranks
from worldmodel.data import CyclicPolicy, EnvConfig, EnvMaker, Episode, EpisodeFailure, RandomPolicy, RepeatPolicy, rollouts
from worldmodel.data import Policy as RealPolicy
from worldmodel.dream import (
    CyclicActions,
    Dreams,
    Policy,
    RandomActions,
    RepeatedActions,
    Scores,
    check_action_repeat,
    format_spread,
    score,
    time_limit,
)
from worldmodel.evaluation.config import EvaluationConfig
from worldmodel.models import WorldModel, require_world
from worldmodel.rng import EVALUATION_STREAM, PROBE_STREAM, derive_seed
from worldmodel.runtime import Progress, RunConfig, WorkerConfig, explains_keywords

Dreamed = Callable[[WorldModel, torch.Generator], Policy]
MOST_ACTIONS = 10  # of a Discrete space, each of which is a policy
HOLDS = {"repeated": 10, "long holds": 100}  # longest hold of random actions; agents hold actions for longer than random play
READY = 0.5  # minimum rank correlation of a dream that ranks policies as reality does; a convention
SWEEPS = (20, 60, 100)  # steps for which the first and the last choice are held in turn, as by good Doom agents


@dataclass(frozen=True)
class FixedPolicy:
    """A policy that needs no training, for reality and dreams; ``dreamed`` makes the latter from a generator."""

    real: RealPolicy
    dreamed: Dreamed


def fixed_policies(action_space: gym.Space, names: Sequence[str] | None = None) -> dict[str, FixedPolicy]:
    """Return the policies of a probe by their names.

    Args:
        action_space: of a Discrete one the actions are held for ever if they are `MOST_ACTIONS` at most, and the first and the
            last in turn; of a Box its centre and its corners along each axis; others have random policies alone.
        names: of the actions of a Discrete space; "always 0" and so on if None.

    Raises:
        ValueError: if there are not as many names as actions.
    """
    held: dict[str, Any] = {}
    sweeps: dict[str, FixedPolicy] = {}
    if isinstance(action_space, spaces.Discrete):
        start, count = int(action_space.start), int(action_space.n)
        if names and len(names) != count:
            raise ValueError(f"names: expected one for each of {count} actions, got {list(names)}")
        if count <= MOST_ACTIONS:
            held = {f"always {names[i] if names else start + i}": start + i for i in range(count)}
        if count > 1:
            sweeps = {f"sweeps of {hold}": _cyclic([start, start + count - 1], hold) for hold in SWEEPS}
    elif isinstance(action_space, spaces.Box) and action_space.is_bounded() and len(action_space.shape) == 1:
        low, high = action_space.low, action_space.high
        centre = _centre(low, high)
        held["centre"] = centre
        for axis in range(len(centre)):
            for name, bounds in (("low", low), ("high", high)):
                corner = centre.copy()
                corner[axis] = bounds[axis]
                held[f"axis {axis} {name}"] = corner
    found = {name: _cyclic([action]) for name, action in held.items()}
    found["uniform"] = FixedPolicy(RandomPolicy(action_space), _uniform)
    for name, max_repeat in HOLDS.items():
        found[name] = FixedPolicy(RepeatPolicy(action_space, max_repeat=max_repeat), _repeated(max_repeat))
    return found | sweeps


def _centre(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Middle of two bounds in their own dtype, in which their sum may overflow."""
    if np.issubdtype(low.dtype, np.integer):
        return low // 2 + high // 2 + (low % 2 + high % 2) // 2
    return low / 2 + high / 2


def _cyclic(actions: Sequence[Any], hold: int = 1) -> FixedPolicy:
    return FixedPolicy(CyclicPolicy(actions, hold), lambda world, generator: CyclicActions(actions, hold))


def _uniform(world: WorldModel, generator: torch.Generator) -> Policy:
    return RandomActions(world, generator=generator)


def _repeated(max_repeat: int) -> Dreamed:
    return lambda world, generator: RepeatedActions(world, generator=generator, max_repeat=max_repeat)


@dataclass(frozen=True)
class Probe:
    """Scores of fixed policies; its text is a table.

    Args:
        real: scores in reality by the policy's name.
        dreams: by temperature, likewise.
    """

    real: Mapping[str, Scores]
    dreams: Mapping[float, Mapping[str, Scores]]

    def rank_correlation(self, temperature: float) -> float:
        """Return Spearman's correlation of the mean scores in dreams and in reality; 1 if the ranks are equal."""
        dreamed = [self.dreams[temperature][name].mean for name in self.real]
        ranks = [centred_ranks(np.array(means)) for means in ([scores.mean for scores in self.real.values()], dreamed)]
        if min(rank.std() for rank in ranks) == 0:
            return 0.0  # equal scores rank nothing
        return float(np.corrcoef(ranks)[0, 1])

    def unready(self) -> list[float]:
        """Return the temperatures with a rank correlation below `READY`."""
        return [tau for tau in self.dreams if self.rank_correlation(tau) < READY]

    def to_json(self) -> dict[str, Any]:
        """Return all scores as JSON-serialisable data."""
        dreams = [
            {
                "temperature": temperature,
                "rank_correlation": self.rank_correlation(temperature),
                "policies": {name: scores.to_json() for name, scores in found.items()},
            }
            for temperature, found in self.dreams.items()
        ]
        return {"real": {name: scores.to_json() for name, scores in self.real.items()}, "dreams": dreams}

    def __str__(self) -> str:
        width = max(len("rank correlation"), *map(len, self.real))
        columns = {"reality": self.real, **{f"dream, tau {tau:g}": found for tau, found in self.dreams.items()}}
        rows = [" " * width + "".join(f"{name:>24}" for name in columns)]
        for name in self.real:
            cells = (format_spread(found[name].mean, found[name].standard_error) for found in columns.values())
            rows.append(f"{name:<{width}}" + "".join(f"{cell:>24}" for cell in cells))
        correlations = "".join(f"{self.rank_correlation(tau):>24.2f}" for tau in self.dreams)
        rows.append(f"{'rank correlation':<{width}}{'':>24}{correlations}")
        if self.unready():
            where = ", ".join(f"{tau:g}" for tau in self.unready())
            rows.append(f"not ready at tau {where}: below {READY}, a dream does not rank policies as reality does")
        return "\n".join(rows)


@explains_keywords
def probe(
    world: WorldModel,
    *,
    env: str | EnvMaker | EnvConfig,
    temperatures: Sequence[float] | None = None,
    config: EvaluationConfig | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
    workers: int | WorkerConfig = 0,
    run: RunConfig | None = None,
) -> Probe:
    """Score fixed policies in dreams at several temperatures and in reality.

    Args:
        world: the world model.
        env: id, constructor, or `EnvConfig` of the real environment. Its ``max_steps`` limits real and dreamed episodes; 1000
            steps if neither it nor the environment has a limit.
        temperatures: tau of the dreams, in place of the one of ``config``.
        config: numbers of episodes of each policy, and how to dream.
        names: see `fixed_policies`.
        seed: seed of all; the real episodes are those that `evaluate` plays.
        workers: worker processes for the real episodes; 0 plays in this process.
        run: how progress is shown. Stage "probe", in scores.

    Raises:
        ValueError: if world and environment do not belong together, the world has no reward head, or a number is out of range.
        RuntimeError: if the environment raises; names the episode.
    """
    require_world(world)
    config, pool, real_env = config or EvaluationConfig(), WorkerConfig.of(workers), EnvConfig.of(env)
    if world.mdnrnn.reward_head is None:
        raise ValueError("world: expected a world model that predicts rewards, got one without a reward head")
    if config.reward is not None:
        raise ValueError("reward: expected None for a probe, which compares M's rewards with real ones, got a reward function")
    check_action_repeat(world, real_env)
    with contextlib.closing(real_env.make()) as built:
        world.check_spaces(built.observation_space, built.action_space, source="env")
    policies = fixed_policies(world.action_space, names)
    horizon, taus = time_limit(real_env), (config.temperature,) if temperatures is None else temperatures
    real_env, episodes_seed = replace(real_env, max_steps=horizon), derive_seed(seed, EVALUATION_STREAM)
    real: dict[str, Scores] = {}
    dreams: dict[float, dict[str, Scores]] = {tau: {} for tau in taus}
    with (run or RunConfig()).reporter() as report:
        for number, (name, policy) in enumerate(policies.items(), start=1):
            ids = range(config.num_episodes)
            real[name] = _real_scores(rollouts(real_env, policy.real, episode_ids=ids, seed=episodes_seed, workers=pool))
            for tau in taus:
                worlds = Dreams(
                    world, config.num_dreams, temperature=tau, termination=config.termination, precision=config.precision
                )
                dreamed = policy.dreamed(world, worlds.generator(derive_seed(seed, PROBE_STREAM)))
                dreams[tau][name] = score(worlds, dreamed, horizon=horizon, seed=seed)
            each = 1 + len(taus)
            report(Progress("probe", number * each, len(policies) * each, "score"))
    return Probe(real, dreams)


def _real_scores(episodes: Iterable[Episode | EpisodeFailure]) -> Scores:
    """Return the scores of episodes in the order of their ids."""
    played: dict[int, tuple[float, int]] = {}
    for episode in episodes:
        if isinstance(episode, EpisodeFailure):
            raise RuntimeError(
                f"env: expected to play episode {episode.episode_id} (seed {episode.seed}), but that failed: {episode.error}"
            )
        played[episode.episode_id] = float(episode.rewards.sum()), len(episode)
    returns, lengths = zip(*(played[number] for number in sorted(played)), strict=True)
    return Scores(np.array(returns), np.array(lengths))
