"""How much of a dream holds in reality: the same controller scored in both, and a real trajectory replayed in the dream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from worldmodel.agents import check_agent
from worldmodel.data import EnvMaker
from worldmodel.dream import DreamPrecision, Dreams, Policy, RandomActions, Reality, Scores, TerminationRule, score, time_limit
from worldmodel.models import WorldModel
from worldmodel.rng import EVALUATION_STREAM, derive_seed


@dataclass(frozen=True)
class Evaluation:
    """A controller's scores, to be printed or read.

    Args:
        real: in the real environment.
        dream: in the dream it was evaluated in; a world model without a reward head returns 0.
        random: of uniformly random actions in the real environment.
        temperature: tau of the dream.
    """

    real: Scores
    dream: Scores
    random: Scores
    temperature: float

    def __str__(self) -> str:
        rows = {f"dream (temperature {self.temperature:g})": self.dream, "reality": self.real, "random in reality": self.random}
        width = max(len(name) for name in rows)
        return "\n".join(f"{name:<{width}}  {scores}" for name, scores in rows.items())


def evaluate(
    controller: Policy,
    world: WorldModel,
    *,
    env: str | EnvMaker,
    num_episodes: int = 100,
    seed: int = 0,
    max_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[Callable[[gym.Env], gym.Env]] = (),
    temperature: float = 1.0,
    termination: TerminationRule = "sample",
    precision: DreamPrecision = "float32",
    num_dreams: int = 1024,
    on_step: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a controller in the real environment, in the dream, and against random play.

    Args:
        controller: an agent, or a function of features (B, F); see `worldmodel.dream.as_agent`.
        world: the world model.
        env: id or constructor of the real environment.
        num_episodes: real episodes, for the controller and for random play alike.
        seed: seed of all episodes and dreams; its episodes are none that `collect` makes with the same seed.
        max_steps: cap on an episode's steps, real or dreamed; 1000 where neither this nor the environment says any.
        env_kwargs: arguments of the environment.
        wrappers: applied to the environment, in order.
        temperature: tau of the dream.
        termination: how the dream ends; see `Dreams`.
        precision: of the dream; see `Dreams`.
        num_dreams: dreamed episodes.
        on_step: called with the controller's real steps done and the number of its episodes that still run.

    Raises:
        ValueError: if controller, world and environment do not belong together.
        TypeError: if ``controller`` is neither an agent nor a function.
        RuntimeError: if the environment raises; names the episode.
    """
    controller = check_agent(controller, world)
    dreams = Dreams(world, num_dreams, temperature=temperature, termination=termination, precision=precision)
    episodes = derive_seed(seed, EVALUATION_STREAM)
    reality = Reality(world, env, num_episodes, seed=episodes, max_steps=max_steps, env_kwargs=env_kwargs, wrappers=wrappers)
    with contextlib.closing(reality):
        horizon = time_limit(env, max_steps, env_kwargs, wrappers)
        real = score(reality, controller, horizon=horizon, seed=seed, on_step=on_step)
        by_chance = RandomActions(world, generator=reality.generator(seed))
        random = score(reality, by_chance, horizon=horizon, seed=seed)
    return Evaluation(real, score(dreams, controller, horizon=horizon, seed=seed), random, temperature)
