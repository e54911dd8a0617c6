"""``worldmodel info``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tyro.conf import OmitArgPrefixes as Flat

from worldmodel.cli.options import Command, Output, Result
from worldmodel.runtime import (
    EXTRAS,
    describe_machine,
    fast_precision,
    formats_in,
    has_extra,
    parse_json,
    read_bytes,
    read_runs,
    source_commit,
    versions,
)


@dataclass(frozen=True, kw_only=True)
class Info(Command):
    """Print versions, devices and the extras found; with RUN, say how a run was made.

    Args:
        run_directory: output directory of a run.
        output: output.
    """

    run_directory: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    output: Flat[Output] = field(default_factory=Output)

    def run(self) -> Result:
        """Describe the installation or the run."""
        data = installation() if self.run_directory is None else run_record(self.run_directory)
        return Result("\n".join(_lines(data)), data)


def installation() -> dict[str, Any]:
    """Return versions, machine, devices and extras."""
    devices = {"cpu": f"{torch.get_num_threads()} threads, fastest precision {fast_precision(torch.device('cpu'))}"}
    for number in range(torch.cuda.device_count()):
        devices[f"cuda:{number}"] = torch.cuda.get_device_name(number)
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return {
        "versions": versions(),
        "commit": source_commit() or "an installed package, no checkout",
        "machine": describe_machine(),
        "devices": devices,
        "extras": {name: "found" if has_extra(name) else "missing" for name in EXTRAS},
    }


def run_record(directory: str) -> dict[str, Any]:
    """Return how a run was made, and the files of the library in its directory.

    Raises:
        ValueError: if the directory holds no record of a run.
    """
    path = Path(directory)
    if not path.is_dir():
        raise FileNotFoundError(f"{directory}: expected the output directory of a run, got no directory")
    calls, files = read_runs(path), formats_in(path)
    if not calls and not files:
        raise ValueError(f"{directory}: expected the output directory of a run, got one without files of this library")
    calls = calls or ["not recorded: made by an earlier version"]  # type: ignore[list-item]
    about: dict[str, Any] = {"run": str(path), "files": files}
    contents = [content for content in _contents(path).values() if content is not None]
    threads = next((content["threads"] for content in contents if "threads" in content), None)
    warnings = [text for content in contents for text in _warnings(content)]
    about |= {} if threads is None else {"threads": threads}
    about |= {"warnings": warnings} if warnings else {}
    return about | {"made by": calls}


def _contents(path: Path) -> dict[str, dict[str, Any] | None]:
    """Read the JSON files of this library in a directory, by name; None stands for a damaged one."""
    found: dict[str, dict[str, Any] | None] = {}
    for file in sorted(path.glob("*.json")):
        try:
            content = parse_json(read_bytes(file), file)
        except (OSError, ValueError):
            found[file.name] = None
            continue
        if isinstance(content, dict) and str(content.get("format", "")).startswith("worldmodel."):
            found[file.name] = content
    return found


def _warnings(content: dict[str, Any]) -> list[str]:
    """Return the warnings of the training that made a model."""
    provenance = content.get("provenance")
    found = provenance.get("warnings") if isinstance(provenance, dict) else None
    return [str(text) for text in found] if isinstance(found, list) else []


def _lines(data: Any, indent: str = "") -> list[str]:
    """Format nested data, one number or word per line, without what is not known (the commit of an installed package)."""
    if not isinstance(data, dict):
        return [f"{indent}{data}"]
    data = {name: value for name, value in data.items() if value is not None}
    lines = []
    plain = [name for name, value in data.items() if not isinstance(value, dict | list)]
    width = max(map(len, plain), default=0) + 2
    for name, value in data.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *_lines(value, indent + "  ")]
        elif isinstance(value, list):
            lines.append(f"{indent}{name}")
            for one in value:
                lines += [*_lines(one, indent + "  "), ""]
        else:
            lines.append(f"{indent}{name:{width}}{value}")
    return lines
