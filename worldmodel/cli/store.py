"""``worldmodel store inspect``, ``verify`` and ``repair``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes as Flat

from worldmodel.cli.options import Command, Flag, Output, Result
from worldmodel.data import EpisodeStore, Problem, describe_conversion, repair, verify
from worldmodel.runtime import require_extras

StorePath = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]


@dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """Print a summary of a store of episodes; of a converted one, what was found and assumed, too.

    Args:
        path: directory of the store.
        plot: also draw lengths, rewards, actions, ranges, constants, choices, gaps and frames to this PNG file.
        output: output.
    """

    path: StorePath
    plot: str | None = None
    output: Flat[Output] = field(default_factory=Output)

    def run(self) -> Result:
        """Inspect."""
        if self.plot is not None:
            require_extras("plots")
        store = EpisodeStore.open(self.path)
        data = summary(store)
        listed = {name: value for name, value in data.items() if name != "conversion" and value is not None}
        width = max(map(len, listed)) + 2
        lines = [f"{name.replace('_', ' '):{width}}{value}" for name, value in listed.items()]
        if "conversion" in data:
            lines.append(describe_conversion(store))
        if self.plot is not None:
            from worldmodel.plots import draw_store, save_figure

            save_figure(draw_store(store), self.plot)
            lines.append(f"plot: {self.plot}")
        return Result("\n".join(lines), data | ({} if self.plot is None else {"plot": self.plot}))


@dataclass(frozen=True, kw_only=True)
class Verify(Command):
    """Read every byte of a store and list the problems; exit code 1 if there is one.

    Args:
        path: directory of the store.
        output: output.
    """

    path: StorePath
    output: Flat[Output] = field(default_factory=Output)

    def run(self) -> Result:
        """Verify."""
        problems = verify(self.path)
        text = "\n".join([*map(describe, problems), f"{len(problems)} problems"])
        return Result(text, {"problems": [to_json(one) for one in problems]}, exit_code=1 if problems else 0)


@dataclass(frozen=True, kw_only=True)
class Repair(Command):
    """Keep undamaged episodes, move damaged files to the folder damaged/, and rewrite the manifest.

    Args:
        path: directory of the store.
        break_lock: repair although a process on another host has locked the store; only after a crash of that host.
        output: output.
    """

    path: StorePath
    break_lock: Flag = False
    output: Flat[Output] = field(default_factory=Output)

    def run(self) -> Result:
        """Repair."""
        problems = repair(self.path, break_lock=self.break_lock)
        text = "\n".join([*map(describe, problems), f"{len(problems)} problems" + (" repaired" if problems else "")])
        return Result(text, {"repaired": [to_json(one) for one in problems]})


def summary(store: EpisodeStore) -> dict[str, Any]:
    """Return the content of a store, JSON-serialisable."""
    data: dict[str, Any] = {"episodes": len(store), "steps": store.num_steps}
    if store.unfinished is not None:
        data["unfinished"] = store.unfinished
    if len(store):
        lengths = store.lengths
        data["lengths"] = f"{lengths.min()} to {lengths.max()}, mean {lengths.mean():.1f}"
    if store.machines:
        data["machines"] = ", ".join(store.machines)
    spaces = {"observation_space": str(store.observation_space), "action_space": str(store.action_space)}
    return data | spaces | store.recipe | {"failures": len(store.failures), "fingerprint": store.fingerprint}


def describe(problem: Problem) -> str:
    """Describe a problem in one line."""
    lost = f"; lost episodes: {list(problem.episode_ids)}" if problem.episode_ids else ""
    return f"{problem.kind:10} {problem.shard}: {problem.detail}{lost}"


def to_json(problem: Problem) -> dict[str, Any]:
    """Return a problem as JSON-serialisable data."""
    ids = [int(one) for one in problem.episode_ids]
    return {"kind": problem.kind, "shard": problem.shard, "detail": problem.detail, "episode_ids": ids}
