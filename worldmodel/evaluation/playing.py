"""Play the real episodes of an evaluation in workers: some episodes in lockstep per task."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from worldmodel.data import EnvConfig, EnvMaker, env_maker
from worldmodel.dream import Agent, RandomActions, Reality, Reward, Scores, score
from worldmodel.models import WorldModel
from worldmodel.rng import derive_seed
from worldmodel.runtime import Kept, Listener, Progress, StepWatch, WorkerConfig

EPISODES_A_TASK = 16  # played in lockstep; fixed, so that results do not depend on the number of workers


@dataclass(frozen=True)
class Stage:
    """What all episodes of an evaluation share.

    Args:
        world: V and M, on the CPU.
        agent: on the CPU.
        env: the environment, with a constructor that can be pickled.
        reward: replaces the environment's reward.
        episodes: number of episodes.
        seed: of the episodes.
        horizon: longest episode, in steps.
    """

    world: WorldModel
    agent: Agent
    env: EnvConfig
    reward: Reward | None
    episodes: int
    seed: int
    horizon: int

    @classmethod
    def of(cls, world: WorldModel, agent: Agent, env: str | EnvMaker | EnvConfig, **numbers: Any) -> Stage:
        """Copy V, M and an agent to the CPU."""
        world, agent = copy.deepcopy((world, agent))  # together, as the agent may hold the world
        player = agent.to("cpu") if isinstance(agent, nn.Module) else agent
        config = EnvConfig.of(env)
        return cls(world.to("cpu"), player, replace(config, env=env_maker(config.env)), **numbers)


def play(stage: Kept[Stage], *, at_random: bool = False, workers: WorkerConfig, on_progress: Listener | None = None) -> Scores:
    """Score an agent in real episodes that workers play, on the CPU.

    The episodes are those of `Reality` with this seed. The noise of V and random actions are drawn for `EPISODES_A_TASK`
    episodes at a time.

    Args:
        stage: what is played.
        at_random: play random actions instead of the agent's.
        workers: who plays.
        on_progress: gets a record whenever some episodes are finished.

    Raises:
        RuntimeError: if the environment raises, or workers are lost as often as their configuration allows; names the episodes.
    """
    episodes = stage.value.episodes
    tasks = range(-(-episodes // EPISODES_A_TASK))
    parts: dict[int, Scores] = {}
    with contextlib.closing(workers.run(_Player(stage, at_random), tasks)) as results:
        for number, attempts, outcome in results:
            first = number * EPISODES_A_TASK
            if isinstance(outcome, str):
                last = min(first + EPISODES_A_TASK, episodes) - 1
                raise RuntimeError(f"env: expected to play episodes {first} to {last}, got {attempts} times: {outcome}")
            parts[number] = outcome
            if on_progress is not None:
                on_progress(Progress("evaluate", sum(len(part.returns) for part in parts.values()), episodes, "episode"))
    return Scores(*(np.concatenate([getattr(parts[number], name) for number in tasks]) for name in ("returns", "lengths")))


class _Player:
    """Plays the episodes of a task in a worker."""

    def __init__(self, stage: Kept[Stage], at_random: bool):
        self._stage, self._at_random = stage, at_random

    def run(self, task: int, watch: StepWatch) -> Scores:
        """Play `EPISODES_A_TASK` episodes, or those that are left."""
        stage, first = self._stage.value, task * EPISODES_A_TASK
        count = min(EPISODES_A_TASK, stage.episodes - first)
        reality = Reality(stage.world, stage.env, count, first=first, seed=stage.seed, reward=stage.reward, watch=watch)
        seed = derive_seed(stage.seed, task)
        with contextlib.closing(reality):
            by_chance = RandomActions(stage.world, generator=reality.generator(seed))
            return score(reality, by_chance if self._at_random else stage.agent, horizon=stage.horizon, seed=seed)

    def close(self) -> None:
        """Release nothing; each task closes its environments."""
