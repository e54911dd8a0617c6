"""The main job on CartPole: random rollouts, a world model, a controller trained only in its dreams, its score in reality."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import gymnasium as gym
import torch
from command import Bar, add_device, choose_device, run

import worldmodel as wm
from worldmodel.evaluation import EVALUATION_STREAM
from worldmodel.iteration import StageProgress
from worldmodel.report import draw_report, save_figure
from worldmodel.rollouts import derive_seed

UNITS = {"collect": "episode", "train": "update", "dream": "generation", "evaluate": "step"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="Gymnasium id; the numbers here were chosen on CartPole-v1")
    parser.add_argument("--out", default="runs/quickstart", help="directory for everything; run again, it goes on")
    parser.add_argument("--max-rounds", type=int, default=5, help="rounds of the loop at most")
    parser.add_argument("--overwrite", action="store_true", help="start anew where OUT holds an earlier run")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    add_device(parser)
    return parser.parse_args()


class StageBars:
    """One bar for each stage of each round, the earlier ones left as they ended."""

    def __init__(self) -> None:
        self._stage: tuple[int, str] | None = None
        self._bar: Bar | None = None

    def show(self, progress: StageProgress) -> None:
        """Move the bar of the stage that runs."""
        if self._stage != (progress.round, progress.stage) or self._bar is None:
            self.close()
            self._stage = (progress.round, progress.stage)
            self._bar = Bar(f"round {progress.round}: {progress.stage:<8}", UNITS[progress.stage])
        self._bar.show(progress.done, progress.total, **progress.facts)

    def close(self) -> None:
        """Leave the last bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # the matrices are small: a second thread gains little, and costs much on a busy machine
    began = time.monotonic()
    target = gym.spec(args.env).reward_threshold
    bars = StageBars()
    rounds = wm.iterate(
        args.env,
        out=args.out,
        target=target,
        config=wm.IterationConfig(max_rounds=args.max_rounds),
        seed=args.seed,
        device=choose_device(args.device),
        overwrite=args.overwrite,
        on_progress=bars.show,
    )
    bars.close()
    out, best = Path(args.out), wm.best_round(rounds)
    world = wm.WorldModel.from_pretrained(best.directory / "world")
    policy = wm.LatentPolicy(world, wm.Controller.from_pretrained(best.directory / "controller"))
    (episode,) = wm.rollouts(args.env, policy, episode_ids=[0], seed=derive_seed(args.seed, EVALUATION_STREAM))
    save_figure(draw_report(rounds, episode, target=target), out / "report.png")
    summary = {"seed": args.seed, "seconds": time.monotonic() - began, **wm.summarize(rounds, target=target)}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print_table(rounds, summary)
    print(f"figure       {out / 'report.png'}\nsummary      {out / 'summary.json'}")


def print_table(rounds: list[wm.Round], summary: dict[str, object]) -> None:
    stages = "".join(f"{stage + ' s':>12}" for stage in UNITS)
    print(f"\n{'round':<6}{'dream score':>16}{'real score':>16}{'random':>16}{stages}")
    for round_ in rounds:
        scores = [f"{scores.mean:.1f} +- {scores.std:.1f}" for scores in (round_.dream, round_.real, round_.random)]
        seconds = "".join(f"{round_.seconds[stage]:>12.1f}" for stage in UNITS)
        print(f"{round_.number:<6}{scores[0]:>16}{scores[1]:>16}{scores[2]:>16}{seconds}")
    episodes, target = len(rounds[0].real.returns), summary["target"]
    print(
        f"mean +- standard deviation; real scores over {episodes} episodes; target {target}; {summary['seconds']:.0f} s in all"
    )
    print(f"world model  {summary['world_model']}\ncontroller   {summary['controller']}")


if __name__ == "__main__":
    run(main, resume="The same command goes on where it stopped.")
