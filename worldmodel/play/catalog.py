"""The worlds that can be played: those included in the package, and the runs in a directory."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from worldmodel.agents import CONTROLLER_FILE, Controller
from worldmodel.models import WORLD_FILE, WorldModel
from worldmodel.play.page import PAGE_FILE, export_world, read_world
from worldmodel.play.site import SITE_FORMAT, SITE_VERSION, WORLDS_FILE
from worldmodel.runtime import files, local_path, parse_json, read_bytes
from worldmodel.version import __version__

INCLUDED = Path(__file__).parent / "worlds"
DEPTH, MOST_DIRECTORIES, MOST_RUNS = 5, 5_000, 50  # of the search for runs
SUMMARY_FILE = "summary.json"  # of a run of `iterate` by the program
SKIPPED = ("node_modules", "site-packages", "training", "data")


@dataclass(frozen=True, kw_only=True)
class Playable:
    """A world that can be played.

    Args:
        id: its name in addresses.
        title: its name for people.
        directory: of its exported files, which may not exist yet.
        world: directory of the world model, or None if only exported files are at hand.
        controller: directory of its controller, or None.
        trusted: whether its environment may be built with code that the world names; see `worldmodel.play.companion`.
    """

    id: str
    title: str
    directory: Path
    world: Path | None = None
    controller: Path | None = None
    trusted: bool = False

    @property
    def ready(self) -> bool:
        """Whether it is exported."""
        return (self.directory / PAGE_FILE).is_file()

    def prepare(self) -> dict[str, Any]:
        """Export the world if necessary, check its files and return the content of ``page.json``.

        Raises:
            FileNotFoundError, ValueError: if a file is missing or damaged.
            ImportError: if it must be exported and the extra onnx is not installed.
        """
        if not self.ready and self.world is not None:
            export_world(
                WorldModel.from_pretrained(self.world),
                self.directory,
                controller=None if self.controller is None else Controller.from_pretrained(self.controller),
            )
        return read_world(self.directory)


def included_worlds() -> list[Playable]:
    """Return the worlds in the package."""
    found = sorted(file.parent for file in INCLUDED.glob(f"[!.]*/{PAGE_FILE}"))
    return [Playable(id=folder.name, title=f"{folder.name} (included)", directory=folder) for folder in found]


def open_run(run: str, controller: str | None = None, *, trusted: bool = False) -> Playable:
    """Find what there is to play in a directory.

    Args:
        run: what `parts_of_run` takes, a page that `export_page` wrote, or the name of an included world.
        controller: directory of a controller; without it the one that ``run`` holds, if any.
        trusted: see `Playable`.

    Raises:
        FileNotFoundError: if there is none of these.
    """
    named = {each.id: each for each in included_worlds()}
    if run in named and not Path(run).exists():
        return named[run]
    path = local_path(run)
    if (path / PAGE_FILE).is_file():
        return Playable(id="run", title=path.name or run, directory=path, trusted=trusted)
    if (path / WORLDS_FILE).is_file():
        listed = files.read_json(path / WORLDS_FILE, format=SITE_FORMAT, version=SITE_VERSION)["worlds"][0]
        return Playable(id="run", title=listed["title"], directory=path / listed["path"], trusted=trusted)
    world, agent = parts_of_run(run, controller)
    if not (world / WORLD_FILE).is_file():
        raise FileNotFoundError(
            f"{run}: expected a world model directory, a page, or an included world ({', '.join(named)}), got none of them"
        )
    return replace(_of_run(world, agent, title=run, id="run"), trusted=trusted)


def parts_of_run(run: str, controller: str | None = None) -> tuple[Path, Path | None]:
    """Find the world model and the controller of a run.

    Args:
        run: a world model, a directory with the directories "world" and "controller", or a run of `iterate`, of which the best
            round is taken; or ``hf://user/name``.
        controller: directory of another controller.

    Returns:
        Their directories; None if there is no controller. The first is ``run`` itself if it is none of these.
    """
    path = local_path(run)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        best = path / f"round-{int(parse_json(read_bytes(path / SUMMARY_FILE), path)['best_round'])}"
        path = best if (best / "world" / WORLD_FILE).is_file() else path
    world = path
    if not (path / WORLD_FILE).is_file() and (path / "world" / WORLD_FILE).is_file():
        world = path / "world"
        if controller is None and (path / "controller" / CONTROLLER_FILE).is_file():
            return world, path / "controller"
    return world, None if controller is None else local_path(controller)


def local_runs(root: Path) -> list[Playable]:
    """Find world models below a directory, the latest first."""
    found = []
    for number, folder in enumerate(_directories(root)):
        if number >= MOST_DIRECTORIES:
            break
        if (folder / WORLD_FILE).is_file():
            found.append(folder)
    found.sort(key=lambda folder: (folder / WORLD_FILE).stat().st_mtime, reverse=True)
    runs = []
    for number, folder in enumerate(found[:MOST_RUNS], start=1):
        beside = folder.parent / "controller"
        paired = folder.name == "world" and (beside / CONTROLLER_FILE).is_file()
        title = Path(os.path.relpath(folder.parent if paired else folder, root)).as_posix()
        runs.append(_of_run(folder, beside if paired else None, title=title, id=f"run-{number}"))
    return runs


def cache_directory() -> Path:
    """Return the directory of exported runs: ``worldmodel/play`` in XDG_CACHE_HOME or in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worldmodel" / "play"


def _of_run(world: Path, controller: Path | None, *, title: str, id: str) -> Playable:
    """Return a run whose exported files are in the cache, under a digest of its own files and the library's version."""
    digest = hashlib.sha256(__version__.encode())
    for file in [world / WORLD_FILE, *([] if controller is None else [controller / CONTROLLER_FILE])]:
        digest.update(read_bytes(file))  # these hold the digests of the weights
    directory = cache_directory() / digest.hexdigest()[:24]
    return Playable(id=id, title=title, directory=directory, world=world, controller=controller)


def _directories(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    yield root
    if depth == 0:
        return
    try:
        children = sorted(Path(entry.path) for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    for child in children:
        if not child.name.startswith(".") and child.name not in SKIPPED and not (child / "pyvenv.cfg").exists():
            yield from _directories(child, depth - 1)
