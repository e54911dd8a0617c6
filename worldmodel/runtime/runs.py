"""Runs: how they are started, resumed and reported, and whether two runs are the same.

A long run records its arguments as JSON. A later call with the same output resumes it only if it has the same arguments.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from worldmodel.runtime.directories import is_being_replaced, prepare_directory, remove_temporaries
from worldmodel.runtime.extras import require_extras
from worldmodel.runtime.files import read_json, write_json
from worldmodel.runtime.integers import check_integers
from worldmodel.runtime.locks import locked
from worldmodel.runtime.numbers import check_flags
from worldmodel.runtime.progress import Listener, Progress, Reporter
from worldmodel.runtime.provenance import record_run
from worldmodel.runtime.threads import check_threads, set_threads

P = ParamSpec("P")
R = TypeVar("R")
THREADS = "threads"  # in the record of a run; not one of its arguments

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


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a long run starts, resumes and reports.

    Args:
        resume: continue an interrupted run in the output directory, and return a complete one as it is. False refuses a
            directory that holds a run.
        overwrite: replace an earlier run of the same kind and start again, whatever ``resume`` says.
        tensorboard: also write TensorBoard scalars, where the run has a log (extra ``tensorboard``).
        progress: show tqdm bars on stderr if that is a terminal.
        on_progress: called with every progress record.
        threads: number of torch's threads; None keeps that of a run that is resumed, else torch's own. Another number gives
            results with other last bits, so a run is not resumed with one.
        break_lock: write to a directory that a process on another host has locked. Only after a crash of that host: two
            writers destroy each other's files.

    Raises:
        TypeError: if a flag is not a boolean.
        ImportError: if TensorBoard is requested and not installed.
        TypeError: if ``threads`` is not an integer.
        ValueError: if it is below 1.
    """

    resume: bool = True
    overwrite: bool = False
    tensorboard: bool = False
    progress: bool = True
    on_progress: Listener | None = None
    threads: int | None = None
    break_lock: bool = False

    def __post_init__(self) -> None:
        """Check the fields; raise now if TensorBoard is missing, before anything is written."""
        check_flags(self, "resume", "overwrite", "tensorboard", "progress", "break_lock")
        check_integers(self, {"threads": 1}, optional=("threads",))
        if self.tensorboard:
            require_extras("tensorboard")

    def reporter(self) -> Reporter:
        """Make the context manager that shows and passes on progress records."""
        return Reporter(bars=self.progress, listener=self.on_progress)

    def within(self, report: Listener, stage: str = "{}") -> RunConfig:
        """Make the configuration of a run inside this one, which reports through ``report`` and is always resumed.

        Args:
            report: receives the records of the inner run.
            stage: format of the stage's name; "{}" stands for the inner run's own.
        """

        def passed_on(progress: Progress) -> None:
            report(replace(progress, stage=stage.format(progress.stage)))

        return replace(self, resume=True, overwrite=False, progress=False, on_progress=passed_on)


def check_same_run(
    earlier: Mapping[str, Any], given: Mapping[str, Any], source: str | Path, *, error: type[Exception] = ValueError
) -> None:
    """Raise unless an earlier run, recorded as JSON, had the same arguments as this one.

    Args:
        earlier: the record that was read from a file; an entry "version" is ignored.
        given: JSON-serialisable arguments of this run.
        source: file or directory of the record, for the message.
        error: class of the exception.

    Raises:
        ValueError: or another ``error``, naming the first argument that differs and both values.
    """
    wanted = json.loads(json.dumps(dict(given)))
    for name in sorted({*wanted, *earlier} - {"version"}):
        there, here = earlier.get(name), wanted.get(name)
        if not _same(there, here):
            expected, got = difference(there, here)
            raise error(
                f"{source}: expected {name} {expected}, as in the run that is there, got {got}; use the same arguments, choose "
                "another output, or overwrite (--overwrite) to start again"
            )


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
    run: RunConfig,
    error: type[Exception] = ValueError,
    result: str | None = None,
) -> Path:
    """Make the output directory of a long run, or check that the run in it has the same arguments.

    Args:
        path: the directory.
        arguments: JSON-serialisable record of the arguments that the run depends on.
        marker: name of the file that they are written to.
        format: its format name.
        version: its version.
        replaces: see `prepare_directory`.
        run: whether a run that is there is resumed, replaced or refused.
        error: class of the exception if its arguments are others.
        result: name of a file that a complete run has, which is only opened.

    The number of torch's threads is recorded, too, and set to that of a run that is resumed; see `set_threads`.

    Returns:
        The directory.

    Raises:
        FileExistsError: if ``path`` holds something that may not be replaced.
        ValueError: or another ``error``, if the run to resume had other arguments.
    """
    path = Path(path)
    if run.overwrite or not (path / marker).is_file() or is_being_replaced(path / marker, format):
        prepare_directory(path, marker=marker, format=format, overwrite=run.overwrite, replaces=replaces)
        threads = set_threads(None, run.threads, path)
        write_json(path / marker, {**arguments, THREADS: threads}, format=format, version=version)
        record_run(path)
        return path
    if not run.resume:
        raise FileExistsError(
            f"{path}: expected no earlier run, got one; resume it (RunConfig(resume=True)) or replace it (--overwrite)"
        )
    earlier = dict(read_json(path / marker, format=format, version=version))
    threads = earlier.pop(THREADS, None)  # runs of earlier versions have no record
    check_same_run(earlier, arguments, path, error=error)
    complete = result is not None and (path / result).is_file()
    (check_threads if complete else set_threads)(threads, run.threads, path)
    remove_temporaries(path)
    record_run(path)
    return path


def single_writer(*, result: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a long function, so that no other process writes to its output directory while it runs.

    Args:
        result: name of a file that a complete run has; such a run is only read, and not locked.

    Returns:
        A decorator of functions with the keyword arguments ``out`` and ``run`` (or ``overwrite`` and ``break_lock``), which
        then raise a `LockedError` if another process writes to ``out``.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def alone(*args: P.args, **kwargs: P.kwargs) -> R:
            given: Any = inspect.signature(function).bind(*args, **kwargs).arguments
            out, run = Path(given["out"]), given.get("run") or RunConfig(break_lock=given.get("break_lock", False))
            overwrite = run.overwrite or given.get("overwrite", False)
            complete = result is not None and not overwrite and (out / result).is_file()
            if complete or (out.exists() and not out.is_dir()) or (out.is_symlink() and not out.exists()):
                return function(*args, **kwargs)  # reads, or raises
            with locked(out, break_lock=run.break_lock):
                return function(*args, **kwargs)

        return alone

    return decorate


def difference(earlier: Any, given: Any) -> tuple[Any, Any]:
    """Reduce two records, nested or not, to the entries that differ; anything else stays as it is."""
    if not isinstance(earlier, dict) or not isinstance(given, dict):
        return earlier, given
    names = [name for name in earlier | given if not _same(earlier.get(name), given.get(name))]
    pairs = {name: difference(earlier.get(name), given.get(name)) for name in names}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; unlike in Python, True is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
