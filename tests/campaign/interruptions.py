"""Kills and a full disk at each file operation of each stage: the same call again must give the undisturbed result."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from campaign.operations import Counter, FullFrom, KillAt, install
from campaign.stages import STAGES, Stage
from campaign.trials import Trial, forked


class Expected:
    """Undisturbed result and number of operations of each stage, found when they are needed."""

    def __init__(self, inputs: Path, work: Path):
        self.inputs, self._work, self._found = inputs, work, {}

    def of(self, name: str) -> tuple[str, int]:
        """Return the digest and the number of file operations of a stage."""
        if name not in self._found:
            out, stage = self._work / f"undisturbed-{name}", STAGES[name]

            def measure() -> str:
                counter = Counter()
                install(counter)
                stage.run(self.inputs, out)
                return f"{counter.count} {stage.digest(out)}"

            end = forked(measure)
            if end.kind != "done":
                raise RuntimeError(f"{name}: expected the undisturbed stage to end, got {end}")
            count, digest = end.text.split()
            self._found[name] = digest, int(count)
        return self._found[name]


def _again(stage: Stage, inputs: Path, out: Path, digest: str) -> str | None:
    def resume() -> str:
        stage.run(inputs, out)
        return stage.digest(out)

    end = forked(resume)
    if end.kind != "done":
        return f"the same call again: {end.kind}: {end.text}"
    return None if end.text == digest else "the same call again gives another result, silently"


def _trial(kind: str, name: str, number: int, expected: Expected) -> Trial:
    stage, (digest, _) = STAGES[name], expected.of(name)

    def run(work: Path) -> str | None:
        out = work / "out"

        def disturbed() -> str:
            install(KillAt(number) if kind == "kill" else FullFrom(number))
            stage.run(expected.inputs, out)
            return ""

        end = forked(disturbed)
        if kind == "kill" and (found := end.unless("killed", "done")):
            return found
        if kind == "full disk" and end.kind != "done":
            if end.kind != "error" or "No space left" not in end.text:
                return f"full disk: expected an OSError of a full disk, got {end.kind}: {end.text}"
            if "out" not in end.text:
                return f"full disk: the message names no file: {end.text}"
        return _again(stage, expected.inputs, out, digest)

    return Trial(f"{name}, operation {number}", run)


def trials(kind: str, seed: int, inputs: Path, work: Path) -> Iterator[Trial]:
    """Yield trials of all stages in turn; within a stage each operation once, in random order.

    Args:
        kind: "kill" or "full disk".
        seed: of the order.
        inputs: what the stages read.
        work: a directory for the undisturbed results.
    """
    rng, expected = random.Random(seed), Expected(inputs, work)
    names = [name for name in STAGES if name != "from_minari" or (inputs / "minari").exists()]
    left: dict[str, list[int]] = {}
    while True:
        yielded = False
        for name in names:
            if name not in left:
                left[name] = rng.sample(range(1, expected.of(name)[1] + 1), expected.of(name)[1])
            if left[name]:
                yield _trial(kind, name, left[name].pop(), expected)
                yielded = True
        if not yielded:
            return


def clear(path: Path) -> None:
    """Remove a directory."""
    shutil.rmtree(path, ignore_errors=True)
