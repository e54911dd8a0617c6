"""Score planners on a world model of random data: real return against decisions per second of processor time.

    python benchmarks/planning.py --env Pendulum-v1 --seeds 0 1 2 --out runs/planning '{"horizon": 20, "candidates": 128}'

Each argument is the JSON of a `PlannerConfig`. The real episodes are planned for as one batch, on one thread; the rate is
that of one episode alone, as on a robot. ``--value agent`` evolves an agent in dreams, and learns its value there, the terminal
value of all plans; ``--value random`` learns that of random actions, which are held. ``--centred`` replaces the rewards of
plans and value by those of `centred`. The method "torchrl" is the CEM of TorchRL on the same dreams.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import worldmodel as wm
from worldmodel.agents import LatentValue, Planner, PlannerConfig, SearchConfig, ValueConfig, fit_value, load_agent
from worldmodel.dream import (
    Agent,
    LatentState,
    Reality,
    RepeatedActions,
    RewardFunction,
    StartBank,
    StartConfig,
    score,
    time_limit,
)

DECISIONS = 30  # of one episode, whose rate is measured
SEARCH = SearchConfig(population=16, generations=8)
DREAMS = 128  # of each generation


def centred(observation: torch.Tensor, action: torch.Tensor, next_observation: torch.Tensor) -> torch.Tensor:
    """Reward of CartPole, less away from the middle: its track ends at 2.4, which no random episode reaches."""
    return 1 - (next_observation[:, 0] / 2.4).square()


def world_of(arguments: argparse.Namespace, out: Path, seed: int) -> wm.WorldModel:
    """Collect random play and train M."""
    data = out / "data"
    if not data.exists():
        wm.collect(arguments.env, out=data, num_episodes=arguments.episodes, policy=arguments.policy, seed=seed)
    training = wm.TrainingConfig(num_updates=arguments.updates, learning_rate=1e-2)
    return wm.fit(data, out=out / "world", config=wm.MDNRNNConfig(hidden_size=64), training_config=training, seed=seed)


def agent_of(arguments: argparse.Namespace, world: wm.WorldModel, out: Path, seed: int) -> Agent:
    """Evolve an agent in dreams."""
    if (out / "agent").exists():
        return load_agent(out / "agent")
    horizon = min(arguments.horizon, time_limit(arguments.env) or arguments.horizon)
    agent = wm.evolve(wm.Dreams(world, DREAMS), config=SEARCH, horizon=horizon, seed=seed)
    agent.save_pretrained(out / "agent")
    return agent


def value_of(arguments: argparse.Namespace, world: wm.WorldModel, out: Path, seed: int) -> LatentValue:
    """Learn the value of an agent in dreams that start in the data."""
    dreams = wm.Dreams(world, 128, reward=reward_of(arguments))
    if arguments.value == "random":
        agent: Agent = RepeatedActions(world, generator=dreams.generator(seed), max_repeat=40)
    else:
        agent = agent_of(arguments, world, out, seed)
        print(json.dumps({"seed": seed, "agent of the value": row(world, agent, arguments, seed)}), flush=True)
    where = StartConfig(num_states=2000, nearest=2, farthest=arguments.farthest)
    starts = StartBank.along(world, out / "data", config=where, seed=seed)
    return fit_value(agent, dreams, starts, config=ValueConfig(features="z"), seed=seed)


def reward_of(arguments: argparse.Namespace) -> RewardFunction | None:
    """Return the reward function that replaces M's rewards, if any."""
    return centred if arguments.centred else None


class TorchRLPlanner:
    """TorchRL's CEM as an agent: a plan from scratch at every step."""

    def __init__(self, world: wm.WorldModel, config: dict[str, Any], seed: int):
        from torchrl.modules import CEMPlanner

        from worldmodel.adapters.torchrl import StatelessTorchRLEnv

        torch.manual_seed(seed)
        self._env = StatelessTorchRLEnv(world)
        elites = max(2, config["candidates"] // 10)
        self._planner = CEMPlanner(self._env, config["horizon"], config["iterations"], config["candidates"], elites)

    def reset(self, num_episodes: int) -> None:
        """Nothing is kept from step to step."""

    def act(self, state: LatentState) -> torch.Tensor:
        """Plan for every episode."""
        return self._planner(self._env.state(state))["action"]

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Not needed here."""
        raise NotImplementedError


def planner_of(text: str, world: wm.WorldModel, value: LatentValue | None, seed: int, reward: RewardFunction | None) -> Agent:
    """Make the planner that a JSON text describes."""
    config = json.loads(text)
    if config.get("method") == "torchrl":
        return TorchRLPlanner(world, config, seed)
    config |= {} if value is None else {"discount": 0.99}
    return Planner(world, PlannerConfig(**config), terminal_value=value, reward=reward, seed=seed)


def rate_alone(planner: Agent, world: wm.WorldModel, env: str) -> float:
    """Return the decisions per second of processor time for one episode."""
    reality, seconds = Reality(world, env, 1, seed=0), []
    state = reality.start(generator=reality.generator(0))
    planner.reset(1)
    for _ in range(DECISIONS):
        start = time.process_time()
        action = planner.act(state)
        seconds.append(time.process_time() - start)
        state, _, _ = reality.step(state, action, generator=reality.generator(0))
        if not bool(state.alive.all()):
            break
    reality.close()
    return 1 / sorted(seconds)[len(seconds) // 2]


def row(world: wm.WorldModel, agent: Agent, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Score an agent in real episodes."""
    reality = Reality(world, arguments.env, arguments.plays, seed=seed + 100)
    scores = score(reality, agent, horizon=time_limit(arguments.env), seed=seed)
    reality.close()
    return {"mean": round(scores.mean, 2), "standard_error": round(scores.standard_error, 2), "lowest": scores.returns.min()}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--policy", default="random")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--updates", type=int, default=800)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--value", choices=("agent", "random"), help="give plans a terminal value")
    parser.add_argument("--farthest", type=int, default=20, help="steps before terminations at which it is learnt, at most")
    parser.add_argument("--centred", action="store_true")
    parser.add_argument("--horizon", type=int, default=300, help="steps of the dreams in which it is evolved")
    parser.add_argument("--plays", type=int, default=20, help="real episodes")
    parser.add_argument("configs", nargs="+")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        out = arguments.out / f"{arguments.env}-{seed}"
        begin = time.process_time()
        world, value = world_of(arguments, out, seed), None
        if arguments.value:
            value = value_of(arguments, world, out, seed)
        print(f"prepared in {time.process_time() - begin:.0f} s", flush=True)
        for text in arguments.configs:
            planner = planner_of(text, world, value, seed, reward_of(arguments))
            rate = round(rate_alone(planner, world, arguments.env), 1)
            print(json.dumps({"seed": seed, "config": text, "rate": rate, **row(world, planner, arguments, seed)}), flush=True)


if __name__ == "__main__":
    main()
