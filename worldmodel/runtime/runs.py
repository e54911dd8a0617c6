"""Identity of a run: describe its arguments as JSON and compare them with those of an earlier run."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.runtime.files import prepare_directory, read_json, write_json


# Modules that moved since files were written which name their contents: new name -> the name that files keep.
RECORDED_MODULES = {
    "worldmodel.agents.controller": "worldmodel.controller",
    "worldmodel.agents.evolution": "worldmodel.evolution",
    "worldmodel.agents.policy_gradient": "worldmodel.ppo",
    "worldmodel.data.policies": "worldmodel.policies",
    "worldmodel.envs.dream_env": "worldmodel.envs",
    "worldmodel.envs.latent_env": "worldmodel.latent_env",
    "worldmodel.envs.paper": "worldmodel.environments",
}


def describe(thing: Any) -> str:
    """Return a stable name for an id, a policy or a constructor: itself, its ``description``, or its qualified name."""
    if isinstance(thing, str):
        return thing
    description = getattr(thing, "description", None)
    if isinstance(description, str):
        return description
    if isinstance(thing, functools.partial):
        return f"{describe(thing.func)}(*{jsonable(thing.args)}, **{jsonable(thing.keywords)})"
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{RECORDED_MODULES.get(named.__module__, named.__module__)}.{named.__qualname__}"


def jsonable(value: Any) -> Any:
    """Return ``value`` as JSON keeps it, with names for what JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return jsonable(value.tolist())
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    return describe(value)


def prepare_run(
    path: str | Path,
    arguments: Mapping[str, Any],
    *,
    marker: str,
    format: str,
    version: int,
    replaces: Sequence[str],
    resume: bool,
    overwrite: bool,
) -> Path:
    """Make the output directory of a long run, known by a file with its arguments, or check that the run in it had the same.

    Args:
        path: the directory.
        arguments: JSON-able record of what the run depends on.
        marker: name of the file that they are written to.
        format: its format name.
        version: its version.
        replaces: see `prepare_directory`.
        resume: go on with a run that is there.
        overwrite: replace a run that is there, unless ``resume`` is set.

    Returns:
        The directory.

    Raises:
        FileExistsError: if ``path`` holds something that may not be replaced.
        ValueError: if the run to resume had other arguments.
    """
    path = Path(path)
    if not (path / marker).is_file() or (overwrite and not resume):
        prepare_directory(path, marker=marker, format=format, overwrite=overwrite, replaces=replaces)
        write_json(path / marker, arguments, format=format, version=version)
        return path
    if not resume:
        raise FileExistsError(
            f"{path}: already holds a run; pass resume (--resume) to go on with it, or overwrite (--overwrite) to replace it"
        )
    earlier = read_json(path / marker, format=format, version=version)
    for name, value in json.loads(json.dumps(dict(arguments))).items():
        if earlier.get(name) != value:
            expected, given = difference(earlier.get(name), value)
            raise ValueError(
                f"{name}: expected {expected}, with which the run in {path} was started, got {given}; resume with the same "
                "arguments, choose another directory, or pass overwrite (--overwrite) to start anew"
            )
    return path


def difference(earlier: Any, given: Any) -> tuple[Any, Any]:
    """Of two records, nested or not, only the entries that differ; anything else as it is."""
    if not isinstance(earlier, dict) or not isinstance(given, dict):
        return earlier, given
    names = [name for name in earlier | given if earlier.get(name) != given.get(name)]
    pairs = {name: difference(earlier.get(name), given.get(name)) for name in names}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}
