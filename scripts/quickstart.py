"""The main job on CartPole: random rollouts, a world model, a controller trained only in its dreams, and how it does in reality."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import gymnasium as gym

import worldmodel as wm
from command import Bar, add_device, choose_device, run
from worldmodel.iteration import EVALUATION_SEED, StageProgress
from worldmodel.report import draw_report, save_figure

UNITS = {"collect": "episode", "train": "update", "dream": "generation", "evaluate": "step"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="Gymnasium id; the numbers here were chosen on CartPole-v1")
    parser.add_argument("--out", default="runs/quickstart", help="directory for everything; run again, it goes on where it stopped")
    parser.add_argument("--max-rounds", type=int, default=5, help="rounds of the loop at most")
    parser.add_argument("--overwrite", action="store_true", help="start anew where OUT holds an earlier run")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    add_device(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    began = time.monotonic()
    target = gym.spec(args.env).reward_threshold
    bars: dict[tuple[int, str], Bar] = {}

    def show(progress: StageProgress) -> None:
        key = (progress.round, progress.stage)
        if key not in bars:
            for bar in bars.values():
                bar.close()
            bars[key] = Bar(f"round {progress.round}: {progress.stage:<8}", UNITS[progress.stage])
        bars[key].show(progress.done, progress.total, **progress.facts)

    rounds = wm.iterate(
        args.env,
        out=args.out,
        target=target,
        config=wm.IterationConfig(max_rounds=args.max_rounds),
        seed=args.seed,
        device=choose_device(args.device),
        overwrite=args.overwrite,
        on_progress=show,
    )
    for bar in bars.values():
        bar.close()
    out, best = Path(args.out), max(rounds, key=lambda round_: round_.real.mean)
    world = wm.WorldModel.from_pretrained(best.directory / "world")
    controller = wm.LinearController.from_pretrained(best.directory / "controller")
    policy = wm.LatentPolicy(world, controller)
    (episode,) = wm.rollouts(args.env, policy, episode_ids=[0], seed=EVALUATION_SEED + args.seed)
    save_figure(draw_report(rounds, episode, target=target), out / "report.png")
    summary = {
        "env": args.env,
        "seed": args.seed,
        "target": target,
        "reached": target is not None and best.real.mean >= target,
        "seconds": time.monotonic() - began,
        "world_model": str(best.directory / "world"),
        "controller": str(best.directory / "controller"),
        "rounds": [round_.to_json() for round_ in rounds],
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print_table(rounds, summary, out)


def print_table(rounds: list[wm.Round], summary: dict[str, object], out: Path) -> None:
    stages = list(UNITS)
    print(f"\n{'round':<6}{'dream score':>18}{'real score':>18}{'random':>16}" + "".join(f"{stage + ' s':>12}" for stage in stages))
    for round_ in rounds:
        scores = [f"{scores.mean:.1f} +- {scores.std:.1f}" for scores in (round_.dream, round_.real, round_.random)]
        seconds = "".join(f"{round_.seconds[stage]:>12.1f}" for stage in stages)
        print(f"{round_.number:<6}{scores[0]:>18}{scores[1]:>18}{scores[2]:>16}{seconds}")
    print(f"real scores are over {len(rounds[0].real.returns)} episodes; target {summary['target']}; {summary['seconds']:.0f} s in all")
    for name, path in {
        "world model": summary["world_model"],
        "controller": summary["controller"],
        "figure": out / "report.png",
        "summary": out / "summary.json",
    }.items():
        print(f"{name:<12} {path}")


if __name__ == "__main__":
    run(main, resume="The same command goes on where it stopped.")
