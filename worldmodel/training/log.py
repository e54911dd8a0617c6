"""Log of a run: JSON rows in ``metrics.jsonl``, and TensorBoard scalars if requested."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldmodel.runtime import files, missing_extra, naming

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Append-only log of a run; a context manager.

    Args:
        out: directory of the run.
        update: update at which the run resumes; removes later rows, as the run writes them again.
        tensorboard: also write scalars for TensorBoard.

    Raises:
        ImportError: if ``tensorboard`` is True and TensorBoard is not installed.
    """

    def __init__(self, out: Path, update: int, *, tensorboard: bool = False):
        self._writer: Any = _tensorboard_writer(out, update) if tensorboard else None
        kept = [row for row in read_metrics(out) if row["update"] <= update]
        path = out / METRICS_FILE
        files.write_bytes(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._path = path
        self._file = open(path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115 (closed in __exit__)

    def write(self, update: int, values: Mapping[str, float]) -> None:
        """Append one row and flush the file."""
        with naming(self._path):
            self._file.write(json.dumps({"update": update, **values}) + "\n")
            self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, update)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            with naming(self._path):  # after an error of `write`, closing tries to write again
                self._file.close()
        finally:
            if self._writer is not None:
                self._writer.close()


def read_metrics(out: str | Path) -> list[dict[str, float]]:
    """Read the rows of a run, in order; an empty list if it has no log.

    Args:
        out: directory of the run; for a run of `fit`, its subdirectory ``training``.

    Returns:
        Dictionaries with ``update`` and the metrics of that update. Leaves out a last row that is
        incomplete, and damaged rows with a warning.
    """
    path = Path(out) / METRICS_FILE
    try:
        lines = files.read_bytes(path).split(b"\n")[:-1]  # a kill can cut the last row
    except FileNotFoundError:
        return []
    rows = [_parse_row(line, path) for line in lines]
    kept = [row for row in rows if row is not None]
    if len(kept) < len(rows):
        warnings.warn(f"{path}: left out {len(rows) - len(kept)} damaged lines of the log", UserWarning, stacklevel=2)
    return kept


def _parse_row(line: bytes, path: Path) -> dict[str, float] | None:
    try:
        row = files.parse_json(line, path)
    except files.InvalidFileError:
        return None
    return row if isinstance(row, dict) and type(row.get("update")) is int else None


def _tensorboard_writer(out: Path, update: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise missing_extra("tensorboard") from error
    return SummaryWriter(str(out), purge_step=update + 1)
