"""Agents for worlds of choices and goals, trained only in dreams of random play, and their scores in the real environment.

Each case collects random episodes, fits a world model, improves a controller by PPO in its dreams, and plays real
episodes. ``cpu_seconds`` is the processor time of one process with one thread: of M (with V), and of the agent (start
states, training and tests). Their sum has to stay below 600 s. Collecting and the real episodes are not counted.

- lake: FrozenLake-v1, slippery. Mean return of 2,000 episodes; the best policy has 0.744 within 100 steps.
- taxi: Taxi-v4. Mean return of 1,000 episodes; the best policy has 7.93.
- door: MiniGrid-DoorKey-5x5-v0 without its mission and fully observed (needs minigrid). Share of 1,000 episodes that reach
  the goal.
- maze: PointMaze_UMaze-v3, a goal in a Dict that is drawn for each episode (needs gymnasium-robotics). Share of 200
  episodes with ``info["success"]`` at any step.

    OMP_NUM_THREADS=1 python benchmarks/discrete_agents.py --cases lake taxi --out results/discrete_agents
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from harness import write_result

import worldmodel as wm
from worldmodel.agents import Controller, ControllerConfig, PPOConfig, ppo
from worldmodel.data import EnvConfig, EpisodeStore
from worldmodel.dream import DreamPrecision, Dreams, RewardFunction, StartBank, StartConfig
from worldmodel.evaluation import EvaluationConfig, evaluate
from worldmodel.models import MDNRNNConfig
from worldmodel.runtime import RunConfig
from worldmodel.spaces import Value
from worldmodel.training import DataConfig, TrainingConfig, fit

GOAL_RADIUS, FAR_PENALTY = 0.45, 12.0  # of PointMaze, whose positions are from -1.5 to 1.5
EXTENT, CELL = 1.6, 0.1


class UntilSuccess(gym.Wrapper):
    """End an episode at the first success, with reward 1; all other rewards are 0. So the return tells whether it succeeded."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step; a success is what the environment's info says, or a positive reward if it says nothing."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        success = bool(info.get("success", float(reward) > 0))
        return observation, float(success), terminated or success, truncated, info


def at_goal_near_data(data: Path) -> RewardFunction:
    """Reward of PointMaze: 1 within 0.45 of the goal, and -12 more than a cell of 0.1 away from all recorded positions."""
    episodes = EpisodeStore.open(data)
    seen = torch.cat([torch.as_tensor(episode.observations["observation"][:, :2]) for episode in episodes])

    def cells(position: torch.Tensor) -> torch.Tensor:
        return ((position + EXTENT) / CELL).long().clamp(0, int(2 * EXTENT / CELL) - 1)

    near = torch.zeros(*[int(2 * EXTENT / CELL)] * 2)
    near[tuple(cells(seen).T)] = 1
    near = torch.nn.functional.max_pool2d(near[None], 3, stride=1, padding=1)[0]

    def reward(before: Value, action: Value, after: Value) -> torch.Tensor:
        position = after["observation"][:, :2]
        at_goal = (position - after["desired_goal"]).norm(dim=-1) <= GOAL_RADIUS
        return at_goal.float() - FAR_PENALTY * (1 - near[tuple(cells(position).T)])

    return reward


@dataclass(frozen=True)
class Case:
    """An environment, its budgets, and the score that is aimed at.

    Args:
        env: id.
        target: smallest score that counts as solved.
        episodes: episodes of random play.
        test_episodes: real episodes that are played.
        success: whether the score is the share of episodes that succeed, else the mean return.
        register: module whose import registers the environment.
        leave_out: see `EnvConfig`.
        wrappers: names of wrappers, "module:class".
        policy: of the random play; see `worldmodel.data.policies`.
        action_repeat: see `EnvConfig`.
        max_steps: see `EnvConfig`.
        model: fields of `MDNRNNConfig`.
        data: fields of `DataConfig`.
        training: fields of `TrainingConfig`.
        controller: kind of the agent.
        starts: fields of `StartConfig`.
        dreams: parallel dreams.
        precision: of the dreams.
        temperature: of the dreams; 0 for environments without chance.
        ppo: fields of `PPOConfig`.
        reward: makes a reward function from the data, which replaces M's reward in dreams; see `worldmodel.dream.rewards`.
    """

    env: str
    target: float
    episodes: int
    test_episodes: int
    success: bool = False
    register: str | None = None
    leave_out: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()
    policy: str = "random"
    action_repeat: int = 1
    max_steps: int | None = None
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    starts: dict[str, Any] = field(default_factory=dict)
    dreams: int = 512
    precision: DreamPrecision = "float32"
    temperature: float = 1.0
    ppo: dict[str, Any] = field(default_factory=dict)
    reward: Callable[[Path], RewardFunction] | None = None


CASES = {
    "lake": Case(
        "FrozenLake-v1",
        target=0.70,
        episodes=20000,
        test_episodes=2000,
        model={"hidden_size": 16},
        data={"window": 16, "batch_size": 128},
        training={"num_updates": 1500, "learning_rate": 2e-2},
        controller=ControllerConfig(features="z"),
        ppo={"iterations": 100, "test_every": 25},
    ),
    # The observation is the complete state, and there is no chance. Without a bias the policy is a table, so that an action
    # which is wrong in most states stays likely where it has not been tried.
    "taxi": Case(
        "Taxi-v4",
        target=7.5,
        episodes=1500,
        test_episodes=1000,
        model={"hidden_size": 128, "memory": False},
        data={"window": 8, "batch_size": 128, "resident": True},
        training={"num_updates": 1000, "learning_rate": 1e-2, "precision": "auto"},
        controller=ControllerConfig(features="z", bias=False),
        starts={"first_frames": 0.2, "before_ends": 0.5, "nearest": 1, "farthest": 50},
        dreams=256,
        precision="auto",
        temperature=0.0,
        ppo={"iterations": 200, "discount": 0.95, "critic_learning_rate": 3e-3, "entropy": 0.02, "test_every": 100},
    ),
    # `FullyObsWrapper` shows all cells, so the observation is the complete state here, too. M has to learn what happens in one
    # of 500 steps, when a key opens the door: Muon learns it in 800 updates, Adam not in 400.
    "door": Case(
        "MiniGrid-DoorKey-5x5-v0",
        target=0.9,
        episodes=300,
        test_episodes=1000,
        success=True,
        register="minigrid",
        leave_out=("mission",),
        wrappers=("minigrid.wrappers:FullyObsWrapper",),
        max_steps=250,
        model={"hidden_size": 128, "memory": False},
        data={"window": 8, "batch_size": 64, "resident": True},
        training={"num_updates": 1000, "learning_rate": 6e-3, "optimizer": "muon", "precision": "auto"},
        controller=ControllerConfig(features="z", hidden_size=64),
        starts={"num_states": 5000, "first_frames": 0.2, "before_ends": 0.6, "nearest": 1, "farthest": 50},
        dreams=256,
        precision="auto",
        temperature=0.0,
        ppo={"iterations": 100, "discount": 0.97, "critic_learning_rate": 3e-3, "entropy": 0.01, "test_every": 50},
    ),
    # The reward keeps the agent where the data are: M does not know exactly where a fast ball hits a wall, and without it the
    # agent of the dreams goes through the inner wall.
    "maze": Case(
        "PointMaze_UMaze-v3",
        target=0.9,
        episodes=1000,
        test_episodes=200,
        success=True,
        register="gymnasium_robotics",
        leave_out=("achieved_goal",),  # the position again
        policy="repeat",
        action_repeat=5,
        model={"hidden_size": 128, "num_layers": 2, "memory": False, "latent_head": "AutoregressiveHead"},
        data={"window": 8, "batch_size": 128},
        training={"num_updates": 1500, "learning_rate": 6e-3, "optimizer": "muon"},
        controller=ControllerConfig(features="z", hidden_size=64),
        starts={"before_ends": 0.0},
        dreams=512,
        ppo={"iterations": 300, "steps": 16, "horizon": 60, "discount": 0.97, "test_every": 50, "test_dreams": 128},
        reward=at_goal_near_data,
    ),
}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a function and its processor time in seconds."""
    began = time.process_time()
    return work(), time.process_time() - began


def run(name: str, seed: int, data: Path, out: Path, *, progress: bool) -> dict[str, Any]:
    """Run one case with one seed."""
    case, quiet = CASES[name], RunConfig(progress=progress)
    if case.register is not None:
        module = importlib.import_module(case.register)
        if name == "maze":
            gym.register_envs(module)
    wrappers = [getattr(importlib.import_module(module), kind) for module, kind in (each.split(":") for each in case.wrappers)]
    env = EnvConfig(
        case.env, leave_out=case.leave_out, action_repeat=case.action_repeat, max_steps=case.max_steps, wrappers=wrappers
    )
    wm.collect(env, out=data, num_episodes=case.episodes, policy=case.policy, seed=seed, run=quiet)
    row: dict[str, Any] = {"case": name, "env": case.env, "seed": seed, "episodes": case.episodes, "target": case.target}
    world, model_seconds = timed(
        lambda: fit(
            data,
            out=out,
            config=MDNRNNConfig(**case.model),
            data_config=DataConfig(**case.data),
            training_config=TrainingConfig(**case.training),
            seed=seed,
            run=quiet,
        )
    )
    row |= {"losses": world.provenance["training"]["best_metrics"], "best_update": world.provenance["training"]["best_update"]}

    def learn() -> Controller:
        reward = None if case.reward is None else case.reward(data)
        dreams = Dreams(world, case.dreams, precision=case.precision, temperature=case.temperature, reward=reward)
        starts = StartBank.along(world, data, config=StartConfig(**case.starts), seed=seed)
        agent = Controller.for_world(world, case.controller, torch.Generator().manual_seed(seed))
        return ppo(agent, dreams, starts, config=PPOConfig(**case.ppo), seed=seed, run=quiet)

    agent, agent_seconds = timed(learn)
    row["cpu_seconds"] = {"model": model_seconds, "agent": agent_seconds, "sum": model_seconds + agent_seconds}
    played = replace(env, wrappers=[*wrappers, *([UntilSuccess] if case.success else [])])
    test = EvaluationConfig(num_episodes=case.test_episodes, num_dreams=256, temperature=case.temperature)
    scores = evaluate(agent, world, env=played, config=test, seed=seed, run=quiet)
    returns = {key: getattr(scores, key).returns for key in ("real", "dream", "random")}
    row |= {key: float(np.mean(values)) for key, values in returns.items()}
    return row | {"standard_error": float(np.std(returns["real"]) / len(returns["real"]) ** 0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="directory; each case gets a folder in it, written after each seed",
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--keep", type=Path, help="directory for data and worlds; a temporary one by default")
    parser.add_argument("--progress", action="store_true", help="show progress bars")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = args.keep or Path(temporary)
        for name in args.cases:
            rows = []
            for seed in args.seeds:
                rows.append(run(name, seed, root / f"{name}-{seed}-data", root / f"{name}-{seed}", progress=args.progress))
                print(json.dumps(rows[-1]), flush=True)
                write_result(args.out / name, {"rows": rows}, markdown=f"{__doc__}\n{table(rows)}")


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a table in Markdown."""
    lines = ["| case | seed | real | target | dream | random | CPU seconds: M, agent |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        cpu, score = row["cpu_seconds"], f"{row['real']:.3f} ± {row['standard_error']:.3f}"
        lines.append(
            f"| {row['env']} | {row['seed']} | {score} | {row['target']} | {row['dream']:.3f} | {row['random']:.3f} "
            f"| {cpu['model']:.0f}, {cpu['agent']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
