"""Fitness of a population of agents: in one batch of dreams, or in real episodes over worker processes.

In both all candidates of a generation get the same start states and common random numbers, so only their actions differ.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.agents.controller import Controller
from worldmodel.data import EnvConfig, EnvMaker, env_maker
from worldmodel.dream import Agent, Dreams, LatentState, Reality, Reward, Scores, check_rewards, reward_name, score, time_limit
from worldmodel.models import State, WorldModel, require_world
from worldmodel.rng import derive_seed, episode_seed
from worldmodel.runtime import Kept, Listener, Progress, StepWatch, WorkerConfig, check_integer
from worldmodel.spaces import Value, map_leaves

EPISODES_A_TASK = 16  # real episodes of a test that are played in lockstep; fixed, so that results do not depend on the workers


class Population(Protocol):
    """Scores candidates: the interface of dreams and of the real environment to `evolve`."""

    @property
    def world(self) -> WorldModel:
        """The world model whose states the candidates act on."""

    def recipe(self) -> dict[str, Any]:
        """Return everything that the scores depend on, as JSON-serialisable data."""

    def fitness(self, agent: Any, candidates: Tensor, *, horizon: int, seed: int, name: str) -> np.ndarray:
        """Mean return (P,) of each candidate (P, N), weights of agents like ``agent``; ``name`` is for errors."""

    def test(self, agent: Any, *, episodes: int, horizon: int, seed: int, name: str) -> float:
        """Mean return of one agent over ``episodes`` episodes."""


class DreamPopulation:
    """Dreams as a population: P groups of dreams with common random numbers.

    Args:
        dreams: the world, the temperature and the number of dreams: P times the number for each candidate.
        population: P.

    Raises:
        ValueError: if there are no rewards or constant ones, there is one temperature per dream, or P does not divide their
            number.
    """

    def __init__(self, dreams: Dreams, population: int):
        check_rewards(dreams.world, dreams.reward)
        if dreams.batch_size % population:
            raise ValueError(f"population: expected a divisor of the number of dreams {dreams.batch_size}, got {population}")
        if isinstance(dreams.temperature, Tensor) and dreams.temperature.ndim > 0:
            raise ValueError("dreams: expected one temperature for all, got one per dream, which favours some candidates")
        self.world, self._dreams, self._population = dreams.world, dreams.variant(num_groups=population), population

    def recipe(self) -> dict[str, Any]:
        """Return everything that the scores depend on, as JSON-serialisable data."""
        return dreams_recipe(self._dreams)

    def fitness(self, agent: Any, candidates: Tensor, *, horizon: int, seed: int, name: str) -> np.ndarray:
        """Mean return (P,) of each candidate, all in one batch."""
        policy = ControllerBatch(agent, candidates) if type(agent) is Controller else AgentGroups(agent, candidates)
        dreams, groups = self._dreams, len(candidates)
        if groups != self._population:  # a rank's share; common random numbers do not depend on the number of groups
            dreams = dreams.variant(num_dreams=dreams.batch_size // self._population * groups, num_groups=groups)
        returns, _ = dreams.score(policy, horizon, generator=dreams.generator(seed))
        return returns.reshape(len(candidates), -1).mean(dim=1).cpu().numpy()

    def test(self, agent: Any, *, episodes: int, horizon: int, seed: int, name: str) -> float:
        """Mean return of one agent over ``episodes`` dreams."""
        dreams = self._dreams.variant(num_dreams=episodes)
        returns, _ = dreams.score(agent, horizon, generator=dreams.generator(seed))
        return returns.mean().item()


def dreams_recipe(dreams: Dreams) -> dict[str, Any]:
    """Return everything that the scores of dreams depend on, except their world, as JSON-serialisable data."""
    later: dict[str, Any] = {} if dreams.reward is None else {"reward": dreams.reward.name}
    if dreams.reward_mode != "expected":
        later["reward_mode"] = dreams.reward_mode
    if dreams.member_per != "dream":
        later["member_per"] = dreams.member_per
    if dreams.penalty is not None:
        later["penalty"] = asdict(dreams.penalty)
    return {
        "worlds": "dreams",
        "num_dreams": dreams.batch_size,
        "temperature": torch.as_tensor(dreams.temperature, dtype=torch.float64).tolist(),
        "termination": dreams.termination,
        "precision": dreams.precision,
        **later,  # left out where they have the value that they had in earlier versions
    }


class ControllerBatch:
    """P controllers as one policy on features for P groups of R dreams, with batched matrix products.

    Args:
        controller: a controller of the same kind.
        candidates: (P, N) their weights, in the order of ``controller.parameters()``.
    """

    def __init__(self, controller: Controller, candidates: Tensor):
        self.features = controller.features
        self._decide, self._population = controller.decide, len(candidates)
        split = iter(torch.split(candidates, [parameter.numel() for parameter in controller.parameters()], dim=1))
        self._layers: list[tuple[Tensor, Tensor]] = []
        for layer in controller.layers:
            assert isinstance(layer, nn.Linear)
            shape = (len(candidates), layer.out_features, layer.in_features)
            weight = next(split).reshape(shape).transpose(1, 2).contiguous()  # (P, F, A)
            bias = next(split).unsqueeze(1) if controller.bias else candidates.new_zeros(len(candidates), 1, shape[1])
            self._layers.append((bias, weight))

    def __call__(self, features: Tensor) -> Value:
        """Choose actions for features (P * R, F)."""
        outputs = features.reshape(self._population, -1, features.shape[-1])  # (P, R, F)
        for number, (bias, weight) in enumerate(self._layers):
            outputs = torch.baddbmm(bias, torch.tanh(outputs) if number else outputs, weight)
        outputs = outputs.reshape(features.shape[0], -1)  # (P * R, A)
        return self._decide(outputs)


class AgentGroups:
    """P copies of an agent as one agent for P groups of R dreams; each copy acts on its own group.

    Args:
        agent: an agent that is an nn.Module.
        candidates: (P, N) weights of the copies, in the order of ``agent.parameters()``.
    """

    def __init__(self, agent: Any, candidates: Tensor):
        self._copies = [copy.deepcopy(agent) for _ in candidates]
        for one, weights in zip(self._copies, candidates, strict=True):
            nn.utils.vector_to_parameters(weights, one.parameters())

    def reset(self, num_episodes: int) -> None:
        """Begin R = ``num_episodes`` / P episodes with each copy."""
        for one in self._copies:
            one.reset(num_episodes // len(self._copies))

    def act(self, state: LatentState) -> Value:
        """Choose actions for P * R states."""
        size, actions = len(state.z) // len(self._copies), []
        for number, one in enumerate(self._copies):
            rows = slice(number * size, (number + 1) * size)
            lstm = State(*(part[:, rows] for part in state.lstm))
            actions.append(one.act(LatentState(state.z[rows], lstm, state.alive[rows])))
        return map_leaves(lambda *leaf: torch.cat([torch.as_tensor(part) for part in leaf]), *actions)

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Raise: a population is not saved.

        Raises:
            TypeError: always.
        """
        raise TypeError("agent: expected a single agent, got a population; save one of its candidates")


class RealPopulation:
    """The real environment as a population: real episodes for every candidate, as the paper trains its CarRacing controller.

    M only provides the state that the agents act on. A candidate's episodes are played in lockstep, on the CPU, and the result
    does not depend on the number of workers.

    Args:
        world: V and M.
        env: id, constructor, or `EnvConfig`.
        rollouts: episodes of each candidate of a generation; the same ones for all candidates.
        workers: number of worker processes, or a `WorkerConfig`; 0 plays in this process.
        reward: a function that replaces the environment's reward; see `worldmodel.dream.rewards`.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if there is no such environment, its spaces are not the world model's, or a number is out of range.
    """

    def __init__(
        self,
        world: WorldModel,
        env: str | EnvMaker | EnvConfig,
        *,
        rollouts: int = 4,
        workers: int | WorkerConfig = 0,
        reward: Reward | None = None,
    ):
        require_world(world)
        config, self._workers = EnvConfig.of(env), WorkerConfig.of(workers)
        self._env = config
        self.world, self._rollouts = world, check_integer(rollouts, "rollouts", least=1)
        described = config.recipe()
        self._recipe = {"worlds": described.pop("env"), "rollouts": self._rollouts, **described}
        self._recipe |= {} if reward is None else {"reward": reward_name(reward)}
        self._stage = Kept(_Stage(copy.deepcopy(world).cpu(), replace(config, env=env_maker(config.env)), reward))
        self._stage.value.reality(1, 0).close()  # raises now if the environment cannot be made

    def time_limit(self) -> int:
        """Return the longest episode of the environment in steps; see `worldmodel.dream.time_limit`."""
        return time_limit(self._env)

    def recipe(self) -> dict[str, Any]:
        """Return everything that the scores depend on, as JSON-serialisable data."""
        return self._recipe

    def fitness(self, agent: Any, candidates: Tensor, *, horizon: int, seed: int, name: str) -> np.ndarray:
        """Mean return (P,) of each candidate.

        Raises:
            RuntimeError: if an environment raises or a worker dies; names the generation, the candidate and the seeds.
        """
        tasks = [_Task(row, self._rollouts, seed, f"{name}, candidate {p}") for p, row in enumerate(candidates.cpu())]
        return np.array([scores.returns for scores in self._play(agent, tasks, horizon)]).mean(axis=1)

    def test(self, agent: Any, *, episodes: int, horizon: int, seed: int, name: str) -> float:
        """Mean return of one agent over ``episodes`` real episodes; raises as `fitness` does."""
        return self.score(agent, episodes=episodes, horizon=horizon, seed=seed, name=f"the test of {name}").mean

    def score(
        self,
        agent: Agent,
        *,
        episodes: int,
        horizon: int,
        seed: int,
        name: str,
        on_progress: Listener | None = None,
    ) -> Scores:
        """Score one agent over ``episodes`` real episodes; raises as `fitness` does.

        ``on_progress`` gets a record of stage ``name``, in episodes, whenever some are finished.
        """
        parameters = list(agent.parameters()) if isinstance(agent, nn.Module) else []
        weights = nn.utils.parameters_to_vector(parameters).detach().cpu() if parameters else None
        sizes = [min(EPISODES_A_TASK, episodes - first) for first in range(0, episodes, EPISODES_A_TASK)]
        tasks = [_Task(weights, size, derive_seed(seed, part), name) for part, size in enumerate(sizes)]
        parts = self._play(agent, tasks, horizon, on_progress)
        return Scores(*(np.concatenate([getattr(part, field) for part in parts]) for field in ("returns", "lengths")))

    def _play(
        self,
        agent: Agent,
        tasks: list[_Task],
        horizon: int,
        on_progress: Listener | None = None,
    ) -> list[Scores]:
        """Play the episodes of each task; return their scores."""
        agent = copy.deepcopy(agent)
        runner = _Runner(self._stage, agent.cpu() if isinstance(agent, nn.Module) else agent, tasks, horizon)
        numbers, total = range(len(tasks)), sum(task.episodes for task in tasks)
        played: dict[int, Scores] = {}
        with contextlib.closing(self._workers.run(runner, numbers)) as results:
            for number, attempts, outcome in results:
                if isinstance(outcome, str):
                    task = tasks[number]
                    seeds = ", ".join(str(episode_seed(task.seed, k)) for k in range(task.episodes))
                    raise RuntimeError(
                        f"{task.name}: expected its episodes (seeds {seeds}) to be played, got {attempts} times: {outcome}"
                    )
                played[number] = outcome
                if on_progress is not None:
                    done = sum(len(scores.returns) for scores in played.values())
                    on_progress(Progress(tasks[number].name, done, total, "episode"))
        return [played[number] for number in numbers]


@dataclass(frozen=True)
class _Stage:
    """V and M on the CPU, and the environment that episodes are played in."""

    world: WorldModel
    env: EnvConfig
    reward: Reward | None = None

    def reality(self, episodes: int, seed: int, watch: StepWatch | None = None) -> Reality:
        return Reality(self.world, self.env, episodes, seed=seed, watch=watch, reward=self.reward)


@dataclass(frozen=True)
class _Task:
    """Episodes to be played in lockstep, by an agent with these weights (N,), if it has any; the name is for errors."""

    weights: Tensor | None
    episodes: int
    seed: int
    name: str


class _Runner:
    """Plays tasks, in this process or in a worker; tasks with the same episodes share their environments."""

    def __init__(self, stage: Kept[_Stage], agent: Any, tasks: list[_Task], horizon: int):
        self._stage, self._agent, self._tasks, self._horizon = stage, agent, tasks, horizon
        self._reality: Reality | None = None
        self._episodes: tuple[int, int] | None = None

    def run(self, number: int, watch: StepWatch) -> Scores:
        """Play the episodes of a task; on any error the environments are closed."""
        task = self._tasks[number]
        if self._reality is None or self._episodes != (task.episodes, task.seed):
            self.close()
            self._reality = self._stage.value.reality(task.episodes, task.seed, watch)
            self._episodes = task.episodes, task.seed
        if task.weights is not None:
            nn.utils.vector_to_parameters(task.weights, self._agent.parameters())
        try:
            return score(self._reality, self._agent, horizon=self._horizon, seed=task.seed)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the environments."""
        reality, self._reality = self._reality, None
        if reality is not None:
            reality.close()
