"""Run the campaign: every kind of fault gets its share of the time."""

import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from campaign import flips, interruptions, others
from campaign.stages import make_inputs
from campaign.trials import Trial, forked

KINDS: dict[str, Callable[[int, Path, Path], Iterator[Trial]]] = {
    "kills": functools.partial(interruptions.trials, "kill"),
    "full disk": functools.partial(interruptions.trials, "full disk"),
    "flips": functools.partial(flips.trials, "flip"),
    "crafted files": functools.partial(flips.trials, "crafted"),
    "two writers": others.two_writers,
    "bad environments": others.bad_environments,
    "random spaces": others.random_spaces,
}
SHARES = {"random spaces": 3}  # of the time; 1 for the others


@dataclass(frozen=True)
class Finding:
    """A trial that went wrong; `python -m campaign --seed SEED --kind KIND` reaches it again."""

    kind: str
    seed: int
    trial: str
    problem: str


def campaign(seconds: float, *, seed: int, work: Path, kinds: list[str] | None = None) -> tuple[dict[str, int], list[Finding]]:
    """Run trials for about ``seconds`` and return their numbers by kind, and what went wrong."""
    inputs, chosen = work / "inputs", kinds or list(KINDS)
    inputs.mkdir(parents=True)
    end = forked(lambda: make_inputs(inputs) or "", 300)
    if end.kind != "done":
        raise RuntimeError(f"inputs: {end}")
    counts, findings = dict.fromkeys(chosen, 0), []
    spent = dict.fromkeys(chosen, 0.0)
    running = {kind: KINDS[kind](seed, inputs, _new(work / kind.replace(" ", "-"))) for kind in chosen}
    started = time.monotonic()
    while running and time.monotonic() - started < seconds:
        kind = min(running, key=lambda name: spent[name] / SHARES.get(name, 1))  # the least served
        began = time.monotonic()
        try:
            trial = next(running[kind], None)
        except RuntimeError as error:  # an undisturbed stage fails
            findings.append(Finding(kind, seed, "no fault", str(error)))
            trial = None
        if trial is None:
            del running[kind]
            continue
        place = _new(work / "trial")
        problem = trial.run(place)
        shutil.rmtree(place, ignore_errors=True)
        counts[kind] += 1
        spent[kind] += time.monotonic() - began
        if problem is not None:
            findings.append(Finding(kind, seed, trial.name, problem))
    return counts, findings


def _new(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def text(counts: dict[str, int], findings: list[Finding]) -> str:
    """Return a table of the counts, and the findings."""
    rows = [f"{'kind of fault':<20}{'trials':>8}{'findings':>10}"]
    for kind, count in counts.items():
        rows.append(f"{kind:<20}{count:>8}{sum(one.kind == kind for one in findings):>10}")
    return "\n".join([*rows, *(f"{one.kind} (seed {one.seed}): {one.trial}: {one.problem}" for one in findings)])


def write(path: Path, counts: dict[str, int], findings: list[Finding]) -> None:
    """Write the counts and the findings as JSON."""
    content = {"trials": counts, "findings": [asdict(one) for one in findings]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
