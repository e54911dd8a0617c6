"""A planner on disk: its files, and its world model in a directory whose name contains the fingerprint of the world model.

A new world model is written next to the old one, then the planner's JSON, which names it, is replaced, then the old one is
removed. So the directory holds the old planner or the new one at every moment.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.models import WORLD_FILE, WorldModel
from worldmodel.runtime import InvalidFileError, ModelFiles, SavedModel, locked

PLANNER_FILE = "planner.json"
PLANNER_FILES = ModelFiles(marker=PLANNER_FILE, stem="planner", format="worldmodel.planner", version=1)
WORLD_DIRECTORY = "world"  # alone, the name in which earlier versions kept the world model


def save_planner(
    path: Path, content: Mapping[str, Any], weights: Mapping[str, Tensor], world: WorldModel, *, overwrite: bool
) -> None:
    """Write a planner.

    Args:
        path: its directory.
        content: the JSON; "directory" names that of the world model.
        weights: by name.
        world: the world model.
        overwrite: replace an earlier planner.

    Raises:
        FileExistsError: if ``path`` holds something that may not be replaced.
        LockedError: if another process writes to it.
    """
    if path.exists() and not path.is_dir():
        PLANNER_FILES.save(path, content, weights)  # raises: it is a file
    directory = path / content["directory"]
    with locked(path):
        unfinished = (path / PLANNER_FILE).is_file() and _is_unfinished(path)
        if overwrite and not unfinished and _has_planner(path):
            world.save_pretrained(directory, overwrite=True)
        PLANNER_FILES.save(path, content, weights, overwrite=overwrite or unfinished)
        world.save_pretrained(directory, overwrite=True)
        for other in path.iterdir():
            if _is_ours(other.name) and other != directory:
                with contextlib.suppress(OSError):  # a reader may have it open; the next write removes it
                    shutil.rmtree(other)


def read_planner(path: Path, device: str | torch.device) -> tuple[SavedModel, WorldModel]:
    """Read the files of a planner and its world model.

    Raises:
        FileNotFoundError: if a file is missing.
        InvalidFileError: if a file is damaged, of a newer version, or the world model is another one.
    """
    saved = PLANNER_FILES.read(path)
    try:
        world = WorldModel.from_pretrained(path / _directory(path, saved), device=device)
    except FileNotFoundError:  # it may have been replaced between the two
        saved = PLANNER_FILES.read(path)
        world = WorldModel.from_pretrained(path / _directory(path, saved), device=device)
    if saved.content.get("world") != world.fingerprint:
        raise InvalidFileError(
            f"{path}: expected the world model {saved.content.get('world')!r} that the planner was saved with, got "
            f"{world.fingerprint!r}; one of the two was changed or replaced"
        )
    return saved, world


def _directory(path: Path, saved: SavedModel) -> str:
    name = saved.content.get("directory", WORLD_DIRECTORY)
    if not isinstance(name, str) or not _is_ours(name):
        raise InvalidFileError(f"{path / PLANNER_FILE}: expected the name of a world model in this directory, got {name!r}")
    return name


def _is_ours(name: str) -> bool:
    return re.fullmatch(rf"{WORLD_DIRECTORY}(-[0-9a-f]{{1,16}})?", name) is not None


def _has_planner(path: Path) -> bool:
    """Return whether a directory holds a planner that can be read."""
    try:
        PLANNER_FILES.read(path)
    except (OSError, InvalidFileError):
        return False
    return True


def _is_unfinished(path: Path) -> bool:
    """Return whether a planner lacks its world model, as if it was killed while it was first written."""
    try:
        return not (path / _directory(path, PLANNER_FILES.read(path)) / WORLD_FILE).is_file()
    except (OSError, InvalidFileError):
        return False
