"""How a run was made: command, versions, commit and machine, in ``run.json``."""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from worldmodel.runtime.directories import RUN_FILE
from worldmodel.runtime.files import read_json, write_json
from worldmodel.version import __version__

RUN_FORMAT, RUN_VERSION = "worldmodel.run", 1
PACKAGES = ("torch", "gymnasium", "numpy", "safetensors", "cloudpickle", "zstandard", "tyro")
MOST_CALLS = 100  # of the calls that made a run, the first and the latest are kept


def record_run(directory: str | Path) -> None:
    """Add this call to ``run.json`` of an output directory; a call from the same place and machine is added once in a row.

    Args:
        directory: an existing directory.
    """
    path = Path(directory) / RUN_FILE
    call = describe_call()
    calls = read_runs(directory)
    if calls and {**calls[-1], "started": None} == {**call, "started": None}:
        return
    calls.append(call)
    if len(calls) > MOST_CALLS:
        calls = [calls[0], *calls[-MOST_CALLS + 1 :]]
    write_json(path, {"calls": calls}, format=RUN_FORMAT, version=RUN_VERSION)


def read_runs(directory: str | Path) -> list[dict[str, Any]]:
    """Return the calls that made a run, the first one first; none if there is no readable record."""
    try:
        return list(read_json(Path(directory) / RUN_FILE, format=RUN_FORMAT, version=RUN_VERSION)["calls"])
    except (OSError, ValueError, KeyError, TypeError):  # a record is never a precondition
        return []


def describe_call() -> dict[str, Any]:
    """Return command, versions, commit and machine of this process, JSON-serialisable."""
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        "versions": versions(),
        "commit": source_commit(),
        "machine": describe_machine(),
    }


def command_line() -> str:
    """Return the command of this process as a shell would read it, with the program's name instead of its path."""
    program, *arguments = sys.argv or [""]
    return shlex.join([Path(program).name or "python", *arguments])


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python, this library and the packages that it needs."""
    installed = {name: version for name in PACKAGES if (version := _version(name))}
    return {"python": platform.python_version(), "worldmodel": __version__, **installed}


@functools.cache
def source_commit() -> str | None:
    """Return the commit of this code, with ``-dirty`` if files have changed since; None if it is not a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed package may lie within another project's checkout
        return None
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(
            git, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False, cwd=root, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


@functools.cache
def describe_machine() -> dict[str, Any]:
    """Return operating system, processor and number of cores."""
    return {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count() or 1}


@functools.cache
def machine_name() -> str:
    """Return the network name and the processor of this machine: other processors round differently."""
    return f"{platform.node() or 'unknown'} ({_processor()})"


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _processor() -> str:
    """Return the model of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
