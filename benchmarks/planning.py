"""Score planners on a world model of random data: real return against decisions per second of processor time.

    python benchmarks/planning.py --env Pendulum-v1 --episodes 200 --updates 800 --out runs/planning '{"horizon": 30}'

Each argument is the JSON of a `PlannerConfig`. Twenty real episodes are planned for as one batch, on one thread.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import worldmodel as wm
from worldmodel.agents import Planner, PlannerConfig
from worldmodel.dream import Reality, score, time_limit

EPISODES = 20


def world_of(env: str, out: Path, episodes: int, updates: int, seed: int) -> wm.WorldModel:
    wm.collect(env, out=out / "data", num_episodes=episodes, seed=seed)
    size, training = wm.MDNRNNConfig(hidden_size=64), wm.TrainingConfig(num_updates=updates, learning_rate=1e-2)
    return wm.fit(out / "data", out=out / "world", config=size, training_config=training, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--updates", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("configs", nargs="+")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = world_of(arguments.env, arguments.out, arguments.episodes, arguments.updates, arguments.seed)
    for text in arguments.configs:
        planner = Planner(world, PlannerConfig(**json.loads(text)), seed=arguments.seed)
        reality = Reality(world, arguments.env, EPISODES, seed=arguments.seed + 100)
        start = time.process_time()
        scores = score(reality, planner, horizon=time_limit(arguments.env), seed=arguments.seed)
        rate = scores.lengths.sum() / (time.process_time() - start)
        reality.close()
        print(f"{text}  {scores}  {rate:.0f} decisions per second of processor time", flush=True)


if __name__ == "__main__":
    main()
