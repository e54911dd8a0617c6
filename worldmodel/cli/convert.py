"""``worldmodel convert``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes as Flat

from worldmodel.adapters import minari
from worldmodel.cli.options import Command, Result, RunOutput
from worldmodel.data import (
    Columns,
    ConversionConfig,
    EpisodeStore,
    describe_conversion,
    from_csv,
    from_hdf5,
    from_lerobot,
    from_parquet,
    from_video,
    to_parquet,
)

Format = Literal["auto", "csv", "parquet", "hdf5", "lerobot", "video", "minari", "store"]
SUFFIXES: dict[str, tuple[str, ...]] = {
    "csv": (".csv", ".tsv", ".txt"),
    "parquet": (".parquet", ".pq"),
    "hdf5": (".hdf5", ".h5", ".hdf"),
    "video": (".mp4", ".mkv", ".avi", ".mov", ".webm"),
}
MINARI = "minari:"  # before the id of a data set
READERS: dict[str, Callable[..., EpisodeStore]] = {
    "csv": from_csv,
    "parquet": from_parquet,
    "hdf5": from_hdf5,
    "lerobot": from_lerobot,
}


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Convert recorded data to a store, or a store to parquet or Minari.

    The command prints the spaces that it inferred, and what it assumed. All rows are checked before anything is written. The
    same command resumes an interrupted conversion.

    Args:
        source: files or a directory (CSV, parquet, HDF5, LeRobot, videos), a store, or minari:ID.
        out: directory of the store; if SOURCE is a store, a file that ends in .parquet, or minari:ID.
        format: format of SOURCE; auto: by its name or content.
        video: videos with a frame for each row of SOURCE, a CSV file: "CAMERA=FILE" or "CAMERA=DIRECTORY" for each camera.
        columns: names of the columns, keys or features.
        conversion: how rows become episodes.
        output: earlier runs and output.
    """

    RESUME = "The same command resumes the conversion."

    source: tyro.conf.Positional[tuple[str, ...]]
    out: str
    format: Format = "auto"
    video: tuple[str, ...] = ()
    columns: Flat[Columns] = field(default_factory=Columns)
    conversion: Flat[ConversionConfig] = field(default_factory=ConversionConfig)
    output: Flat[RunOutput] = field(default_factory=RunOutput)

    def run(self) -> Result:
        """Convert."""
        if not self.source:
            raise ValueError("SOURCE: expected a file or a directory, got none")
        kind = guess(self.source[0]) if self.format == "auto" else self.format
        if self.video and kind != "csv":
            raise ValueError(f"--video: expected a CSV file as SOURCE, whose rows the frames belong to, got {kind}")
        if kind == "store":
            return self._export()
        run = self.output.config()
        if kind == "minari":
            store = minari.from_minari(
                self.source[0].removeprefix(MINARI), self.out, overwrite=run.overwrite, break_lock=run.break_lock
            )
            return report(store)
        options: dict[str, Any] = {"columns": self.columns, "config": self.conversion, "run": run}
        source: Any = list(self.source) if len(self.source) > 1 else self.source[0]
        if kind == "parquet" and (self.columns, self.conversion) == (Columns(), ConversionConfig()):
            options |= {"columns": None, "config": None}  # restores what was exported
        if kind == "video" or self.video:
            table = source if self.video else None
            return report(from_video(cameras(self.video) if self.video else source, self.out, table=table, **options))
        return report(READERS[kind](source, self.out, **options))

    def _export(self) -> Result:
        """Write a store in another format."""
        store = EpisodeStore.open(self.source[0])
        if self.out.startswith(MINARI):
            minari.to_minari(store, self.out.removeprefix(MINARI))
        elif self.out.endswith(SUFFIXES["parquet"]):
            to_parquet(store, self.out, overwrite=self.output.config().overwrite, run=self.output.config())
        else:
            raise ValueError(f"--out: expected a file that ends in .parquet, or {MINARI}ID, for a store, got {self.out}")
        return Result(f"episodes  {len(store)}\nwritten: {self.out}", {"episodes": len(store), "out": self.out})


def guess(source: str) -> str:
    """Return the format of a source by its name and content.

    Raises:
        ValueError: if it is not known.
    """
    path = Path(source)
    if source.startswith(MINARI):
        return "minari"
    if (path / "meta" / "info.json").is_file():
        return "lerobot"
    if EpisodeStore.lies_in(path):
        return "store"
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    for kind, suffixes in SUFFIXES.items():
        if any(one.suffix.lower() in suffixes for one in inside):
            return kind
    if not path.exists():
        raise FileNotFoundError(f"{source}: expected a file or a directory, got nothing")
    known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    raise ValueError(f"{source}: expected a file that ends in one of {known}, LeRobot data, a store or {MINARI}ID (--format)")


def cameras(given: tuple[str, ...]) -> dict[str, str]:
    """Read "CAMERA=FILE" words.

    Raises:
        ValueError: if a word has no name, or one comes twice.
    """
    found: dict[str, str] = {}
    for word in given:
        name, mark, path = word.partition("=")
        if not mark or not name or name in found:
            raise ValueError(f"--video: expected different CAMERA=FILE, such as front=front.mp4, got {word!r}")
        found[name] = path
    return found


def report(store: EpisodeStore) -> Result:
    """Describe a store that was made: its spaces, what was found in the data, and what was assumed."""
    converted = store.recipe.get("conversion")
    lines = [describe_conversion(store)] if converted else []
    lines += [f"episodes  {len(store)}", f"steps     {store.num_steps}", f"store: {store.path}"]
    data = {"episodes": len(store), "steps": store.num_steps, "fingerprint": store.fingerprint, "store": str(store.path)}
    if converted:
        data |= {name: json.loads(json.dumps(converted[name])) for name in ("found", "assumed")}
    return Result("\n".join(lines), data)
