"""Shared parts of the benchmarks: a timer, a description of the machine, and a writer of results.

Compare times only within one run: machines differ, and other work on a machine adds to every time. So the variants of a
benchmark take turns, each keeps its fastest time, and results are ratios to a peer or to a limit in the same run.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # as in /proc/cpuinfo


def fastest(
    works: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    calls: int = 1,
    warm_up: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    shuffle: bool = False,
) -> dict[str, float]:
    """Time functions in turns and return the seconds of the fastest call of each.

    Args:
        works: name -> function.
        repeats: number of turns of each function.
        calls: calls that are timed together in one turn.
        warm_up: calls before them that are not timed.
        clock: `time.perf_counter`, or `time.process_time` for CPU time.
        shuffle: whether the order within a round is random (seed 0).
    """
    best = dict.fromkeys(works, float("inf"))
    rng = np.random.default_rng(0)
    for _ in range(repeats):
        for name in rng.permutation(list(works)).tolist() if shuffle else works:
            work = works[name]
            for _ in range(warm_up):
                work()
            began = clock()
            for _ in range(calls):
                work()
            best[name] = min(best[name], (clock() - began) / calls)
    return best


def header() -> dict[str, Any]:
    """Describe a run: its command, machine, versions and commit."""
    return {"command": shlex.join(["python", *sys.argv]), **machine()}


def machine() -> dict[str, Any]:
    """Describe the machine and the code: CPU model and flags, cores, threads, versions, commit."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {
        "cpu": facts.get("model name", platform.processor()),
        "flags": [flag for flag in FLAGS if flag in facts.get("flags", "").split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
    }


def commit() -> str | None:
    """Return the commit of this code, with ``-dirty`` if files have changed since; None without git."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(git, capture_output=True, encoding="utf-8", check=False, cwd=Path(__file__).parent)
    return found.stdout.strip() if found.returncode == 0 else None


def write_result(out: str | Path, content: Mapping[str, Any], *, markdown: str | None = None) -> None:
    """Write OUT/result.json, and OUT/result.md if there is text for it, both with the header.

    Args:
        out: directory, made if absent.
        content: JSON-serialisable results.
        markdown: the results as text.
    """
    out, about = Path(out), header()
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps({**about, **content}, indent=2) + "\n", encoding="utf-8")
    if markdown is not None:
        facts = "\n".join(f"- {name}: {value}" for name, value in about.items())
        (out / "result.md").write_text(f"{markdown.rstrip()}\n\n{facts}\n", encoding="utf-8")


def print_row(row: Mapping[str, Any]) -> None:
    """Print one result as a line of JSON that ends with the header."""
    print(json.dumps({**row, **header()}), flush=True)
