"""Play the real episodes of an evaluation in workers: some episodes in lockstep per task."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from worldmodel.data import EnvConfig, EnvMaker, env_maker
from worldmodel.dream import RandomActions, Reality, Reward, Scores, score
from worldmodel.models import WorldModel
from worldmodel.rng import derive_seed
from worldmodel.runtime import Kept, Listener, Progress, StepWatch, WorkerConfig

EPISODES_A_TASK = 16  # played in lockstep; fixed, so that results do not depend on the number of workers


@dataclass(frozen=True)
class Stage:
    """V, M, an agent on them, and the environment that it plays in.

    Args:
        world: V and M, on the CPU.
        agent: on the CPU; None plays random actions.
        env: the environment.
        reward: replaces the environment's reward.
        seed: of the episodes.
        horizon: longest episode, in steps.
    """

    world: WorldModel
    agent: Any
    env: EnvConfig
    reward: Reward | None
    seed: int
    horizon: int


def play(
    world: WorldModel,
    agent: Any,
    env: str | EnvMaker | EnvConfig,
    *,
    episodes: int,
    reward: Reward | None,
    seed: int,
    horizon: int,
    workers: WorkerConfig,
    on_progress: Listener,
) -> Scores:
    """Score an agent in real episodes that workers play, on the CPU.

    The episodes are those of `Reality` with this seed. The noise of V and random actions are drawn for `EPISODES_A_TASK`
    episodes at a time.

    Args:
        world: V and M.
        agent: an agent; None plays random actions.
        env: id, constructor, or `EnvConfig`.
        episodes: number of episodes.
        reward: replaces the environment's reward.
        seed: of the episodes.
        horizon: longest episode, in steps.
        workers: who plays.
        on_progress: gets a record whenever some episodes are finished.

    Raises:
        RuntimeError: if the environment raises, or workers are lost as often as their configuration allows; names the episodes.
    """
    config = EnvConfig.of(env)
    config = replace(config, env=env_maker(config.env))
    player = agent.to("cpu") if isinstance(agent, nn.Module) else agent
    stage = Stage(world.to("cpu"), player, config, reward, seed, horizon)
    tasks = range(-(-episodes // EPISODES_A_TASK))
    parts: dict[int, Scores] = {}
    with contextlib.closing(workers.run(_Player(Kept(stage), episodes), tasks)) as results:
        for number, attempts, outcome in results:
            first = number * EPISODES_A_TASK
            if isinstance(outcome, str):
                last = min(first + EPISODES_A_TASK, episodes) - 1
                raise RuntimeError(f"env: expected to play episodes {first} to {last}, got {attempts} times: {outcome}")
            parts[number] = outcome
            done = sum(len(part.returns) for part in parts.values())
            on_progress(Progress("evaluate", done, episodes, "episode"))
    fields = (np.concatenate([getattr(parts[number], name) for number in tasks]) for name in ("returns", "lengths"))
    return Scores(*fields)


class _Player:
    """Plays the episodes of a task in a worker."""

    def __init__(self, stage: Kept[Stage], episodes: int):
        self._stage, self._episodes = stage, episodes

    def run(self, task: int, watch: StepWatch) -> Scores:
        """Play `EPISODES_A_TASK` episodes, or those that are left."""
        stage, first = self._stage.value, task * EPISODES_A_TASK
        count = min(EPISODES_A_TASK, self._episodes - first)
        reality = Reality(stage.world, stage.env, count, first=first, seed=stage.seed, reward=stage.reward, watch=watch)
        seed = derive_seed(stage.seed, task)
        with contextlib.closing(reality):
            agent = RandomActions(stage.world, generator=reality.generator(seed)) if stage.agent is None else stage.agent
            return score(reality, agent, horizon=stage.horizon, seed=seed)

    def close(self) -> None:
        """Release nothing; each task closes its environments."""
