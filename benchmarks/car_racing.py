"""Processor time of a step of CarRacing: Gymnasium's, drawn faster, and not drawn. One thread, interleaved.

python benchmarks/car_racing.py [--steps 300] [--seeds 3]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from gymnasium.envs.box2d.car_racing import CarRacing

from worldmodel.envs.car_racing import FastCarRacing


def main() -> None:
    """Print milliseconds per step and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    times = {"original": 0.0, "faster": 0.0, "not drawn": 0.0}
    for seed in range(options.seeds):
        envs = dict(zip(times, (CarRacing(), FastCarRacing(), FastCarRacing()), strict=True))
        for env in envs.values():
            env.reset(seed=seed)
        envs["not drawn"].drawing = False
        rng = np.random.default_rng(seed)
        for step in range(options.steps):
            if step % 10 == 0:
                action = np.array([rng.uniform(-0.5, 0.5), rng.uniform(0, 0.3), 0.0], dtype=np.float32)
            for name, env in envs.items():
                began = time.process_time()
                env.step(action)
                times[name] += time.process_time() - began
    count = options.steps * options.seeds
    for name, seconds in times.items():
        print(f"{name:<10} {1e3 * seconds / count:6.3f} ms per step, {times['original'] / seconds:5.1f} times as fast")


if __name__ == "__main__":
    main()
