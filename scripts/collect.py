"""Collect real episodes from a Gymnasium environment into a store; run it again to go on where it stopped."""

from __future__ import annotations

import argparse
import json
import sys
import time

import gymnasium as gym
from tqdm import tqdm

from worldmodel.collect import Progress, collect
from worldmodel.policies import POLICIES
from worldmodel.store import EpisodeStore


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", required=True, help='Gymnasium id, e.g. CartPole-v1, or "module:Id-v0" of another package')
    parser.add_argument(
        "--out", required=True, help="directory of the store; absent, empty, or an earlier run of the same recipe"
    )
    parser.add_argument("--episodes", type=int, required=True, help="how many episodes the store shall hold")
    parser.add_argument(
        "--policy", default="random", choices=POLICIES, help="uniform; held 1..10 steps; random walk (Box actions)"
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="processes; 0 runs in this one. The result is the same (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="episode k depends on (seed, k) only (default: 0)")
    parser.add_argument(
        "--max-steps", type=int, help="truncate an episode after so many steps (default: as the environment does)"
    )
    parser.add_argument(
        "--env-kwargs", type=json.loads, default={}, metavar="JSON", help='arguments of the environment, {"key": 1}'
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier store at --out; nothing else is ever replaced"
    )
    return parser.parse_args()


def main() -> int:
    """Collect, with a progress bar, and print a summary."""
    arguments = parse_arguments()
    start, last = time.monotonic(), Progress(episodes=0, total=arguments.episodes, steps=0, failures=0)
    with tqdm(total=arguments.episodes, unit="episode") as bar:

        def show(progress: Progress) -> None:
            nonlocal last
            last, bar.n = progress, progress.episodes
            rate = progress.steps / (time.monotonic() - start)
            bar.set_postfix_str(f"{rate:,.0f} steps/s, {progress.failures} failures", refresh=False)
            bar.update(0)

        try:
            store = collect(
                arguments.env,
                out=arguments.out,
                num_episodes=arguments.episodes,
                policy=arguments.policy,
                seed=arguments.seed,
                num_workers=arguments.workers,
                max_steps=arguments.max_steps,
                env_kwargs=arguments.env_kwargs,
                overwrite=arguments.overwrite,
                on_progress=show,
            )
        except (ValueError, TypeError, OSError, RuntimeError, gym.error.Error) as error:
            bar.close()
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            bar.close()
            print(f"interrupted; what is whole is in {arguments.out}, the same command goes on", file=sys.stderr)
            return 130
    print_summary(store, last.steps / (time.monotonic() - start))
    return 0


def print_summary(store: EpisodeStore, steps_per_second: float) -> None:
    """Print what the store holds now."""
    print(f"episodes     {len(store)}")
    print(f"steps        {store.num_steps}")
    print(f"mean length  {store.lengths.mean():.1f} ± {store.lengths.std():.1f}")
    print(f"steps/s      {steps_per_second:,.0f}")
    print(f"failures     {len(store.failures)}")
    for failure in store.failures:
        print(f"  episode {failure['episode_id']} (seed {failure['seed']}): {failure['error']}")
    print(f"path         {store.path}")


if __name__ == "__main__":
    sys.exit(main())
