"""What the programs that run the loop share: a bar for each stage, the table of rounds, the summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bars import StageBars

from worldmodel.experiments import Round, StageProgress, summarize

UNITS = {"collect": "episode", "train": "update", "dream": "generation", "evaluate": "step"}


def show_stages(bars: StageBars) -> Callable[[StageProgress], None]:
    """Feed the loop's reports to bars, one for each stage of each round."""
    return lambda p: bars.show(f"round {p.round}: {p.stage:<8}", p.done, p.total, p.facts, unit=UNITS[p.stage])


def report(rounds: Sequence[Round], out: str | Path, *, target: float | None, seed: int, seconds: float) -> None:
    """Write OUT/summary.json and print the table."""
    summary = {"seed": seed, "seconds": seconds, **summarize(rounds, target=target)}
    path = Path(out) / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    _print_table(rounds, summary)
    print(f"summary      {path}")


def _print_table(rounds: Sequence[Round], summary: dict[str, Any]) -> None:
    stages = "".join(f"{stage + ' s':>12}" for stage in UNITS)
    print(f"\n{'round':<6}{'dream score':>18}{'real score':>18}{'random':>18}{stages}")
    for round_ in rounds:
        scores = [f"{scores.mean:.1f} +- {scores.std:.1f}" for scores in (round_.dream, round_.real, round_.random)]
        seconds = "".join(f"{round_.seconds[stage]:>12.1f}" for stage in UNITS)
        print(f"{round_.number:<6}{scores[0]:>18}{scores[1]:>18}{scores[2]:>18}{seconds}")
    episodes, target = len(rounds[0].real.returns), summary["target"]
    print(
        f"mean +- standard deviation; real scores over {episodes} episodes; target {target}; {summary['seconds']:.0f} s in all"
    )
    print(f"best round   {summary['best_round']}, by other episodes than those of the table")
    print(f"world model  {summary['world_model']}\ncontroller   {summary['controller']}")
