"""``worldmodel quickstart``."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium as gym
from tyro.conf import OmitArgPrefixes as Flat

import worldmodel as wm
from worldmodel.cli.iterate import report
from worldmodel.cli.options import Command, Result, Run
from worldmodel.data import EpisodeFailure, rollouts
from worldmodel.experiments import best_round
from worldmodel.rng import EVALUATION_STREAM, derive_seed
from worldmodel.runtime import require_extras


@dataclass(frozen=True, kw_only=True)
class Quickstart(Command):
    """Train an agent for CartPole only in the dreams of a world model, and score it in the real environment.

    Args:
        env: Gymnasium id; the defaults were chosen for CartPole-v1.
        out: output directory; the same command resumes an interrupted run.
        max_rounds: maximum number of rounds.
        seed: seed of the complete run.
        output: device, earlier runs and output.
    """

    RESUME = "The same command resumes the run."

    env: str = "CartPole-v1"
    out: str = "runs/quickstart"
    max_rounds: int = 5
    seed: int = 0
    output: Flat[Run] = field(default_factory=Run)

    def run(self) -> Result:
        """Train, score and draw."""
        require_extras("search", "plots")
        from worldmodel.plots import draw_report, save_figure  # after the check of its extra

        began = time.monotonic()
        target = gym.spec(self.env).reward_threshold
        rounds = wm.iterate(
            self.env,
            out=self.out,
            target=target,
            config=wm.IterationConfig(max_rounds=self.max_rounds),
            seed=self.seed,
            device=self.output.choose_device(threads=1),  # small matrices: a second thread gains little
            run=self.output.config(),
        )
        best = best_round(rounds)
        world = wm.WorldModel.from_pretrained(best.directory / "world")
        policy = wm.LatentPolicy(world, wm.Controller.from_pretrained(best.directory / "controller"))
        (played,) = rollouts(self.env, policy, episode_ids=[0], seed=derive_seed(self.seed, EVALUATION_STREAM))
        if isinstance(played, EpisodeFailure):
            raise RuntimeError(f"env: expected an episode to finish, got {played}")
        figure = Path(self.out) / "report.png"
        save_figure(draw_report(rounds, played, target=target), figure)
        found = report(rounds, self.out, target=target, seed=self.seed, seconds=time.monotonic() - began)
        return Result(f"{found.text}\nfigure       {figure}", found.data | {"figure": str(figure)})
