"""Results of an experiment: scores of its agents, the results table, and the time of each stage."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.dream import Scores
from worldmodel.experiments.presets import Preset
from worldmodel.runtime import files

SCORES_FORMAT, SCORES_VERSION = "worldmodel.scores", 1
STAGES_FILE, TABLE_FILE = "stages.json", "table.md"


@dataclass(frozen=True)
class Stages:
    """Time and commits of each stage of an experiment, stored in ``stages.json``.

    Args:
        directory: directory of the experiment.
        commit: commit of the running code.
    """

    directory: Path
    commit: str

    def read(self) -> dict[str, dict[str, Any]]:
        """Read ``seconds``, ``commits`` and ``complete`` of each stage, by its name."""
        path = self.directory / STAGES_FILE
        try:
            content = files.parse_json(files.read_bytes(path), path)
        except FileNotFoundError:
            return {}
        except files.InvalidFileError as error:
            warnings.warn(f"{error}; its seconds are counted anew", UserWarning, stacklevel=2)
            return {}
        return content if isinstance(content, dict) else {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure a block and add its time to a stage, unless the stage is complete."""
        began = time.monotonic()
        complete = False
        try:
            yield
            complete = True
        finally:
            stages = self.read()
            before = stages.get(stage, {"seconds": 0.0, "commits": [], "complete": False})
            if not before["complete"]:
                commits = list(dict.fromkeys([*before["commits"], self.commit]))
                seconds = before["seconds"] + time.monotonic() - began
                stages[stage] = {"seconds": seconds, "commits": commits, "complete": complete}
                files.write_bytes(self.directory / STAGES_FILE, (json.dumps(stages, indent=1) + "\n").encode())


def write_scores(path: Path, content: Mapping[str, Any]) -> None:
    """Write the scores of an agent or of a probe."""
    files.write_json(path, content, format=SCORES_FORMAT, version=SCORES_VERSION)


def read_scores(path: Path) -> dict[str, Any]:
    """Read a file that `write_scores` wrote."""
    content = files.read_json(path, format=SCORES_FORMAT, version=SCORES_VERSION)
    del content["version"]
    return content


def table(results: Mapping[str, Any], preset: Preset) -> str:
    """Format the results of an experiment as a Markdown table.

    Rows are agents by temperature, with their scores in dreams and in reality and the paper's score
    in reality. The temperature of the best agent has agents of further seeds. Two rows pool the
    agents of this temperature: with the first agent, and without it. The latter is unbiased by the
    choice of the temperature.

    Args:
        results: scores of all agents and of random play.
        preset: experiment, for the paper's scores and the threshold of `Preset.solved`.

    Returns:
        Markdown, ending in a newline.
    """
    lines = [
        "| temperature | score in the dream | score in reality | standard error | reality in the paper |",
        "|---|---|---|---|---|",
    ]
    agents, repeats = results["temperatures"], results["repeats"]
    rows = [(f"{row['temperature']:g}", row, preset.paper.get(row["temperature"], "-")) for row in agents]
    rows += [(f"{row['temperature']:g}, seed {row['seed']}", row, "-") for row in repeats]
    if repeats:
        best = next(row for row in agents if row["temperature"] == results["best_temperature"])
        rows.append((f"{best['temperature']:g}, {1 + len(repeats)} seeds", _pooled([best, *repeats]), "-"))
        rows.append((f"{best['temperature']:g}, without the first", _pooled(repeats), "-"))
    for name, row, paper in rows:
        lines.append(
            f"| {name} | {_cell(row['dream'])} | {_cell(row['real'])} | {row['real']['standard_error']:.0f} | {paper} |"
        )
    random = results["random"]
    lines.append(f"| random play | - | {_cell(random)} | {random['standard_error']:.0f} | {preset.paper.get(None, '-')} |")
    if preset.solved is not None:
        means = [row["real"]["mean"] for row in [*agents, *repeats]]
        count = sum(mean > preset.solved for mean in means)
        lines += ["", f"{count} of {len(means)} agents have a mean above {preset.solved:g} in reality, which counts as solved."]
    return "\n".join(lines) + "\n"


def _cell(scores: Mapping[str, Any]) -> str:
    return f"{scores['mean']:.0f} ± {scores['std']:.0f}"


def _pooled(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pool the episodes of several agents."""

    def joined(world: str) -> dict[str, Any]:
        parts = [Scores.from_json(row[world]) for row in rows]
        returns, lengths = ([getattr(part, name) for part in parts] for name in ("returns", "lengths"))
        return Scores(np.concatenate(returns), np.concatenate(lengths)).to_json()

    return {"dream": joined("dream"), "real": joined("real")}
