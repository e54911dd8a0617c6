"""How much of a dream holds in reality: the same controller scored in both, and a real trajectory replayed in the dream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from gymnasium.wrappers import TimeLimit
from torch import Tensor

from worldmodel.batched import Policy, Rollout
from worldmodel.controller import Controller
from worldmodel.dream import DEFAULT_HORIZON, DreamPrecision, Dreams, RandomActions, TerminationRule
from worldmodel.episode import Episode
from worldmodel.features import FeatureKind
from worldmodel.reality import Reality
from worldmodel.rollouts import EVALUATION_STREAM, EnvMaker, derive_seed, make_env
from worldmodel.scores import Scores, score
from worldmodel.spaces import Value, map_leaves
from worldmodel.world import WorldModel


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


def time_limit(
    env: str | EnvMaker,
    max_steps: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[Callable[[gym.Env], gym.Env]] = (),
) -> int:
    """Longest episode: ``max_steps`` or the limit that the environment is made with, whichever is less; 1000 without one.

    Raises:
        ValueError: if there is no such environment.
    """
    with contextlib.closing(make_env(env, env_kwargs, wrappers)) as built:
        limits = [max_steps, None if built.spec is None else built.spec.max_episode_steps]
        while isinstance(built, gym.Wrapper):  # a constructor's environment may have a limit without a spec that says so
            if isinstance(built, TimeLimit):
                limits.append(built._max_episode_steps)
            built = built.env
    return min((limit for limit in limits if limit is not None), default=DEFAULT_HORIZON)


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
        controller: a `Controller` or any callable, features (B, F) -> actions.
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
        RuntimeError: if the environment raises; names the episode.
    """
    if isinstance(controller, Controller):
        controller.check_world(world)
    dreams = Dreams(world, num_dreams, temperature=temperature, termination=termination, precision=precision)
    episodes = derive_seed(seed, EVALUATION_STREAM)
    reality = Reality(world, env, num_episodes, seed=episodes, max_steps=max_steps, env_kwargs=env_kwargs, wrappers=wrappers)
    with contextlib.closing(reality):
        horizon = time_limit(env, max_steps, env_kwargs, wrappers)
        real = score(reality, controller, horizon=horizon, seed=seed, on_step=on_step)
        by_chance = RandomActions(world, generator=reality.generator(seed))
        random = score(reality, by_chance, horizon=horizon, seed=seed)
    return Evaluation(real, score(dreams, controller, horizon=horizon, seed=seed), random, temperature)


class _Recorded:
    """A policy for dreams that plays recorded actions (T, ...), the same in every dream, whatever the features."""

    features: FeatureKind = "z"

    def __init__(self, actions: Value):
        self._actions, self._t = actions, 0

    def __call__(self, features: Tensor) -> Value:
        t, self._t = self._t, self._t + 1
        return map_leaves(
            lambda leaf: torch.as_tensor(leaf[t], device=features.device).expand(len(features), *leaf.shape[1:]), self._actions
        )


def replay(dreams: Dreams, episode: Episode, *, prefix: int = 0, horizon: int | None = None, seed: int = 0) -> Rollout:
    """Dream under the actions of a real episode, from the same start, without seeing its observations again (open loop).

    Args:
        dreams: the dreams, all under the same actions.
        episode: the real episode.
        prefix: real steps that prime the LSTM before the dream begins.
        horizon: steps to dream; to the end of the episode if None.
        seed: seed of the dreams.

    Returns:
        A rollout that begins at ``episode.observations[prefix]``.

    Raises:
        ValueError: if the episode has no step after the prefix or does not fit the world's spaces, or ``horizon`` is below 1.
    """
    if not 0 <= prefix < len(episode):
        raise ValueError(f"prefix: expected from 0 to below the episode's length {len(episode)}, got {prefix}")
    left = len(episode) - prefix
    steps = left if horizon is None else min(left, horizon)
    generator = dreams.generator(seed)
    start = dreams.start_from(
        map_leaves(lambda leaf: leaf[: prefix + 1], episode.observations),
        map_leaves(lambda leaf: leaf[:prefix], episode.actions),
        generator=generator,
    )
    recorded = _Recorded(map_leaves(lambda leaf: leaf[prefix:], episode.actions))
    return dreams.rollout(recorded, steps, generator=generator, start=start)
