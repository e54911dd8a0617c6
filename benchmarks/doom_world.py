"""Train and write the Doom world of `worlds/doom`: the paper's experiment, much shortened.

The preset `worldmodel.experiments.DOOM` takes about 2.6 hours on two idle cores. This program starts from V and M of::

    worldmodel reproduce doom --scale small --out runs/doom-small
    python benchmarks/doom_world.py --small runs/doom-small --out runs/doom

trains that M on more episodes, searches one agent in its dreams, rounds the weights to float16, and scores the agent on what is
shipped. `shortened` has every number that differs from the preset. An interrupted run resumes with the same command.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import replace
from pathlib import Path

import worldmodel as wm
from worldmodel.agents import load_agent
from worldmodel.envs import DOOM_ACTIONS
from worldmodel.evaluation import Evaluation
from worldmodel.experiments import DOOM, Preset, Reproduction
from worldmodel.models import Vision
from worldmodel.runtime import Progress, RunConfig, command_line, files, keep_freed_memory, source_commit
from worldmodel.sharing import save_compact

TEMPERATURE = 1.0
TITLE = "Doom: Take Cover"
LICENCE = "bsd-3-clause"  # of Freedoom, whose pictures V has learned
TEST_EPISODES, TEST_DREAMS = 100, 512


def shortened(numbers: argparse.Namespace) -> Preset:
    """Return the preset with fewer episodes, updates, iterations and dreams, and shorter windows."""
    dynamics, improvement = DOOM.dynamics, DOOM.improvement
    assert improvement is not None
    return replace(
        DOOM,
        num_episodes=numbers.episodes,  # 10,000 in the preset
        dynamics=replace(
            dynamics,
            data=replace(dynamics.data, window=numbers.window, resident=True),  # 1,000
            training=replace(dynamics.training, num_updates=numbers.updates, evaluate_every=100),  # 2,000
        ),
        search=replace(DOOM.search, population=32, test_dreams=TEST_DREAMS),  # 64, 1,024
        rollouts=8,  # 16
        improvement=replace(
            improvement,
            ppo=replace(improvement.ppo, iterations=numbers.iterations, test_every=50, test_dreams=256),  # 300, 75, 512
            starts=replace(improvement.starts, num_states=5_000),  # 10,000
        ),
        temperatures=(TEMPERATURE,),  # five, and three agents at the best one
        searches=1,
    )


def show(progress: Progress) -> None:
    """Print every 25th record, and the last one of a stage."""
    if progress.done % 25 == 0 or progress.done == progress.total:
        metrics = " ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
        print(f"{time.strftime('%T')} {progress.stage} {progress.done} of {progress.total} {metrics}", flush=True)


def train_further(experiment: Reproduction, small: Path) -> None:
    """Train the M of the small experiment on all episodes."""
    with experiment.stages.timed("train M"):
        wm.fit(
            experiment.out / "encoded",
            vision=Vision.from_pretrained(experiment.out / "vae"),
            out=experiment.out / "world",
            initial=wm.WorldModel.from_pretrained(small / "world"),
            data_config=experiment.preset.dynamics.data,
            training_config=experiment.preset.dynamics.training,
            seed=experiment.seed,
            run=experiment.run_config,
        )


def ship(experiment: Reproduction, directory: Path, *, workers: int) -> Evaluation:
    """Write world and agent with float16 weights, and a model card with their scores."""
    world, agent = experiment.world(), experiment.controller(TEMPERATURE)
    world.provenance |= {"command": command_line(), "commit": source_commit() or "unknown"}
    rounded = save_compact(world, directory, agent=agent, overwrite=True)
    scores = wm.evaluate(
        load_agent(directory / "controller"),
        rounded,
        env=experiment.env,
        config=wm.EvaluationConfig(num_episodes=TEST_EPISODES, num_dreams=TEST_DREAMS, termination="sample", precision="auto"),
        seed=experiment.seed,
        workers=workers,
        run=experiment.run_config,
    )
    kinds = {kind: getattr(scores, kind).to_json() for kind in ("real", "dream", "random")}
    files.write_json(directory / "scores.json", kinds, format="worldmodel.scores", version=1)
    save_compact(world, directory, agent=agent, title=TITLE, scores=scores, licence=LICENCE, overwrite=True)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--small", type=Path, required=True, help="directory of the small experiment")
    parser.add_argument("--out", type=Path, required=True, help="directory of the experiment")
    parser.add_argument("--data", type=Path, help="an earlier collection by worldmodel collect --preset doom")
    parser.add_argument("--ship", type=Path, default=Path("worlds/doom"), help="directory of the world that is shipped")
    parser.add_argument("--episodes", type=int, default=1_009, help="random episodes")
    parser.add_argument("--updates", type=int, default=400, help="updates of M")
    parser.add_argument("--window", type=int, default=400, help="longest sequence that M is trained on")
    parser.add_argument("--iterations", type=int, default=120, help="iterations of PPO")
    parser.add_argument("--workers", type=int, default=2, help="processes for the real game")
    args = parser.parse_args()
    keep_freed_memory()
    experiment = Reproduction(
        shortened(args),
        args.out,
        workers=args.workers,
        episodes=args.data,
        action_names=DOOM_ACTIONS,
        commit=source_commit() or "unknown",
        run_config=RunConfig(progress=False, on_progress=show, threads=1),
    )
    if not (experiment.out / "vae").exists():
        shutil.copytree(args.small / "vae", experiment.out / "vae")
    experiment.collect()
    experiment.encode()
    train_further(experiment, args.small)
    experiment.search(TEMPERATURE)
    print(ship(experiment, args.ship, workers=args.workers))


if __name__ == "__main__":
    main()
