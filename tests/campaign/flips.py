"""Flipped bits, truncations and crafted content in every kind of file: detected by an error of this library, or harmless."""

import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from campaign.stages import STAGES
from campaign.trials import Trial, forked

KINDS = ("save_pretrained", "collect", "fit", "encode_store", "train_vae", "evolve", "iterate")


def _flip(data: bytes, rng: random.Random) -> bytes:
    position = rng.randrange(len(data))
    return data[:position] + bytes([data[position] ^ (1 << rng.randrange(8))]) + data[position + 1 :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


FAULTS: dict[str, Callable[[bytes, random.Random], bytes]] = {"flip": _flip, "cut": _cut}


def _crafted(data: bytes, rng: random.Random) -> bytes:
    """Return content that a stranger might send."""
    return rng.choice(
        [
            lambda: b"[" * 100_000,
            lambda: b'{"a":' * 100_000,
            lambda: b"",
            lambda: b"\xff\xfe" + data,
            lambda: b"null",
            lambda: b"1e999",
            lambda: struct.pack("<Q", 2**63) + data[8:],
            lambda: struct.pack("<Q", 8) + b"[[[[[[[[" + data[8:],
            lambda: _other_number(data, rng),
            lambda: _other_value(data, rng),
            lambda: data + data,
        ]
    )()


def _other_number(data: bytes, rng: random.Random) -> bytes:
    """Replace one number of the text, if there is any."""
    places = [i for i in range(len(data)) if 48 <= data[i] <= 57 and not 48 <= data[i - 1] <= 57]
    if not places:
        return b"{}"
    first = rng.choice(places)
    last = first
    while last < len(data) and 48 <= data[last] <= 57:
        last += 1
    return data[:first] + rng.choice([b"-1", b"0", b"100000000", b"1e308", b"9" * 30, b"NaN", b'"7"', b"[]"]) + data[last:]


def _other_value(data: bytes, rng: random.Random) -> bytes:
    try:
        content = json.loads(data)
        key = rng.choice(sorted(content))
    except (ValueError, TypeError, IndexError):
        return b"{" + data
    content[key] = rng.choice([None, [], {}, "", -1, 10**30, True, [[]], "\u0000", {"format": "x"}])
    return json.dumps(content).encode()


def _files(out: Path) -> list[Path]:
    return sorted(path for path in out.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def trials(kind: str, seed: int, inputs: Path, work: Path) -> Iterator[Trial]:
    """Yield trials over all stages and kinds of files; ``kind`` is "flip" or "crafted"."""
    rng = random.Random(seed)
    results: dict[str, str] = {}
    number = 0
    while True:
        for name in KINDS:
            stage, whole = STAGES[name], work / f"whole-{name}"
            if name not in results:

                def make(stage=stage, whole=whole) -> str:
                    stage.run(inputs, whole)
                    return stage.digest(whole)

                end = forked(make)
                if end.kind != "done":
                    raise RuntimeError(f"{name}: expected the stage to end, got {end}")
                results[name] = end.text
            by_kind: dict[str, list[Path]] = {}
            for path in _files(whole):
                by_kind.setdefault(path.suffix, []).append(path.relative_to(whole))
            suffix = rng.choice(sorted(by_kind))
            file = rng.choice(by_kind[suffix])
            fault = "crafted" if kind == "crafted" else rng.choice(["flip", "flip", "flip", "cut"])
            number += 1
            yield _trial(name, file, fault, random.Random(f"{seed} {number}"), results[name], inputs, whole, number)


def _trial(name: str, file: Path, fault: str, rng: random.Random, digest: str, inputs: Path, whole: Path, number: int) -> Trial:
    stage = STAGES[name]

    def run(work: Path) -> str | None:
        out = work / "out"
        shutil.copytree(whole, out)
        data = (out / file).read_bytes()
        if not data:
            return None
        (out / file).write_bytes(_crafted(data, rng) if fault == "crafted" else FAULTS[fault](data, rng))
        limited = forked(lambda: _in_limited_memory(lambda: stage.digest(out)), 60)
        if limited.kind == "done" and limited.text != digest:
            return f"reading gives another result, silently ({file})"
        if found := limited.unless("done", "error"):
            return f"reading {file}: {found}"

        def resume() -> str:
            stage.run(inputs, out)
            return stage.digest(out)

        again = forked(lambda: _in_limited_memory(resume), 60)
        if again.kind == "done" and again.text != digest:
            return f"the same call again gives another result, silently ({file})"
        found = again.unless("done", "error")
        return f"the same call again with {file}: {found}" if found else None

    return Trial(f"{name}, {fault} number {number} in {file}", run)


def _in_limited_memory(function: Callable[[], str]) -> str:
    """Call a function with 3 GiB more than there is now, so that a file that asks for much raises a MemoryError."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 3 * 2**30, resource.RLIM_INFINITY))
    return function()
