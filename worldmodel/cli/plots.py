"""The picture that a command leaves next to its result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldmodel.cli.options import Flag, SearchRun
from worldmodel.runtime import Listener, Progress, Ranks, has_extra, write_bytes


@dataclass(frozen=True, kw_only=True)
class PlotOptions:
    """Pictures.

    Args:
        no_plots: leave no picture.
    """

    no_plots: Flag = False

    def draw(self, path: str | Path, drawing: str, *arguments: Any, **keywords: Any) -> list[str]:
        """Write a figure, and return the line of output that says so; without matplotlib, the line says what is missing.

        Args:
            path: of the PNG file.
            drawing: name of the function of `worldmodel.plots` that makes the figure.
            arguments: of the function.
            keywords: of the function.
        """
        if self.no_plots or not Ranks.current().leads:
            return []
        if not has_extra("plots"):
            return ["picture: none, as matplotlib is not installed (the extra plots)"]
        from worldmodel import plots

        plots.save_figure(getattr(plots, drawing)(*arguments, **keywords), path)
        return [f"picture: {path}"]


class Curve:
    """The progress records of a search, in a file next to its output, which a resumed search continues.

    Args:
        path: of the file, JSON lines.
        resumes: whether earlier records are kept.
    """

    def __init__(self, path: Path, *, resumes: bool):
        self._path = path
        self._rows: dict[int, dict[str, float]] = {}
        if resumes and path.is_file():
            for line in path.read_bytes().splitlines():
                self._add(line)

    @classmethod
    def beside(cls, log: Path, run: SearchRun) -> Curve:
        """Return the records of the search with this log, which they lie next to."""
        return cls(log.with_suffix(".jsonl"), resumes=log.exists() and (run.resume or not run.overwrite))

    @property
    def rows(self) -> list[dict[str, float]]:
        """The records in order."""
        return [self._rows[done] for done in sorted(self._rows)]

    def listener(self, following: Listener | None) -> Listener:
        """Return a listener that keeps every record, and passes it on."""

        def keep(progress: Progress) -> None:
            self._rows[progress.done] = {"done": progress.done, **progress.metrics}
            write_bytes(self._path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
            if following is not None:
                following(progress)

        return keep

    def _add(self, line: bytes) -> None:
        """Add a line of the file; a damaged one is left out, as a picture is not worth an error."""
        try:
            row = json.loads(line)
            self._rows[int(row["done"])] = {str(name): float(value) for name, value in row.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return
