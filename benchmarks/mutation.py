"""Mutation testing: a seeded sample of small changes of the library, each against the tests of its package.

    python benchmarks/mutation.py --out build/mutation.jsonl --sample 400

A mutant replaces one operator, comparison, constant, default or sign. It is caught if a test fails, or if its tests take ten
times as long as without it. For each package, its tests run once under coverage.py (`pip install coverage`); a mutant then
meets only the tests that execute its statement, those of its module and then the fastest first, in a fork, until one fails. A
statement that runs at import (a default of a dataclass, a constant) meets all tests of the package. The tests run in a copy of
the sources, so the sources may change meanwhile. The file of results has one line per mutant; the same command continues where
it stopped, and `--again` tests the survivors a second time. A quick run before it, for a few files and tests:
`--modules worldmodel/data/noise.py --tests tests/data/test_noise.py`. The sample is chosen by digests of the mutants, so that
an edit of one function leaves the rest of the sample as it is. Texts of errors, `strict=` of zip and `stacklevel=` are left
alone.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from mutants import ROOT, Mutant, mutants

PACKAGES = ("mixtures", "models", "dream", "data", "spaces", "training", "evaluation")
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not cuda"]
BROKEN = 99  # exit code of a fork that an error here ended
SLOWER = 10  # times as long as without the mutant
MIN_SECONDS = 60


Job = tuple[Mutant, str, "range | None"]


def sample(size: int, seed: int, packages: tuple[str, ...]) -> list[Job]:
    """Return a random sample, the same for the same sources and seed, sorted by package."""
    files = [path for package in PACKAGES for path in sorted((ROOT / "worldmodel" / package).rglob("*.py"))]
    every = [found for path in files if path.name != "__init__.py" for found in mutants(path)]
    every.sort(key=lambda found: hashlib.sha256(repr((seed, *found[0].key)).encode()).digest())
    valid = ((mutant, changed.decode(), where) for mutant, changed, where in every if _is_valid(changed))
    chosen = [found for found in islice(valid, size) if _package(found[0]) in packages]
    return sorted(chosen, key=lambda found: packages.index(_package(found[0])))


def _is_valid(source: bytes) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _package(mutant: Mutant) -> str:
    return Path(mutant.file).parts[1]


class Tests:
    """Runs chosen tests of a copy of the sources in forks of this process."""

    def __init__(self, folder: Path, files: Sequence[str] = ()):
        self.folder, self._files = folder, files
        self._found: dict[str, tuple[dict[str, float], dict[str, dict[int, set[str]]]]] = {}
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("worldmodel", "tests", "scripts", "examples", "docs"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
            shutil.copy(ROOT / name, folder)
        for name in ("coverage", "gymnasium", "numpy", "pytest", "safetensors", "scipy.stats", "torch", "torch._dynamo"):
            __import__(name)

    def run(self, package: str, jobs: list[Job], report: Callable[[Mutant, bool, int], None]) -> None:
        """Report of each mutant of a package whether its tests pass, and how many there were.

        Mutants in functions replace the code of the functions in forks of one process that has collected the tests. The others,
        and those that no test executes in its own process, need a new import.
        """
        seconds, lines = self._of(package)
        inside, outside = [], []
        for mutant, changed, where in jobs:
            covered = lines.get(mutant.file, {})
            chosen = set().union(*(covered.get(line, set()) for line in where or ()))
            known = set().union(*covered.values())
            own = f"/test_{Path(mutant.file).stem}.py::"
            order = sorted(chosen or seconds, key=lambda name: (own not in name, name not in known, seconds[name]))
            in_body = where is not None and mutant.line >= where.start  # a default in the header is no part of the code
            (inside if chosen and in_body else outside).append((mutant, changed, order))
        if inside:

            def each(session: Any) -> None:
                for mutant, changed, order in inside:
                    report(mutant, self._survives(mutant, changed, order, lambda *all: _in_session(session, *all)), len(order))

            if self._fork(lambda: self._pytest(package, [InPlaceOfTests(each)]), math.inf) != 0:
                raise RuntimeError(f"{package}: expected all its mutants to be run, see {self.folder / 'log'}")
        for mutant, changed, order in outside:
            again = lambda *all: self._pytest(package, [InPlaceOfTests(lambda session: _only(session, all[-1]))])  # noqa: E731
            report(mutant, self._survives(mutant, changed, order, again), len(order))

    def _survives(self, mutant: Mutant, changed: str, order: list[str], run: Callable[[Path, str, list[str]], int]) -> bool:
        path = self.folder / mutant.file
        original = path.read_text(encoding="utf-8")
        path.write_text(changed, encoding="utf-8")
        limit = max(MIN_SECONDS, SLOWER * sum(self._found[_package(mutant)][0][name] for name in order))
        try:
            code = self._fork(lambda: run(path, original, order), limit)
            if code == BROKEN:
                raise RuntimeError(f"{mutant}: expected its tests to run, see {self.folder / 'log'}")
            return code == 0
        finally:
            path.write_text(original, encoding="utf-8")

    def _of(self, package: str) -> tuple[dict[str, float], dict[str, dict[int, set[str]]]]:
        """Return the duration of each test of a package, and the tests that execute each line."""
        if package not in self._found:
            result = self.folder / f"{package}.json"
            if self._fork(lambda: self._measure(package, result), math.inf) != 0:
                raise RuntimeError(f"{package}: expected its tests to pass without a mutant")
            seconds, lines = json.loads(result.read_text(encoding="utf-8"))
            by_line = {file: {int(line): set(names) for line, names in found.items()} for file, found in lines.items()}
            self._found[package] = seconds, by_line
        return self._found[package]

    def _measure(self, package: str, result: Path) -> int:
        import coverage

        measured = coverage.Coverage(data_file=None, include=[str(self.folder / "worldmodel" / "*")])
        measured.start()
        durations = Durations(measured)
        code = self._pytest(package, [durations])
        measured.stop()
        data = measured.get_data()
        lines = {}
        for file in data.measured_files():
            contexts = data.contexts_by_lineno(file)
            lines[str(Path(file).relative_to(self.folder))] = {n: [one for one in contexts[n] if one] for n in contexts}
        result.write_text(json.dumps([durations.seconds, lines]), encoding="utf-8")
        return code

    def _pytest(self, package: str, plugins: list[Any]) -> int:
        import pytest
        import torch

        torch.set_num_threads(1)
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        os.environ["PYTHONPATH"] = str(self.folder)
        temporary = f"--basetemp={self.folder / 'temporary'}"
        chosen = [str(self.folder / name) for name in self._files or [f"tests/{package}"]]
        return int(pytest.main([*OPTIONS, temporary, *chosen], plugins=plugins))

    def _fork(self, function: Callable[[], int], seconds: float) -> int:
        """Return the exit code of a function in a fork, without its output; 1 if it takes too long."""
        pid = os.fork()
        if pid == 0:
            code = BROKEN
            try:
                os.setsid()
                quiet = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                for stream in (1, 2):
                    os.dup2(quiet, stream)
                code = function()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        ends = time.monotonic() + seconds
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > ends:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # workers that a failed test left
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class InPlaceOfTests:
    """Plugin of pytest: calls a function with the collected session instead of running all tests."""

    def __init__(self, function: Callable[[Any], object]):
        self._function = function

    def pytest_runtestloop(self, session: Any) -> bool:
        """Call the function; raises `Failed` of the session if a test failed."""
        self._function(session)
        return True


def _only(session: Any, order: list[str]) -> None:
    """Run these tests, in this order."""
    from _pytest.main import pytest_runtestloop

    items = {one.nodeid: one for one in session.items}
    session.items = [items[name] for name in order]
    pytest_runtestloop(session)


def _in_session(session: Any, path: Path, original: str, order: list[str]) -> int:
    """Run these tests with the present content of a file; return 1 if one failed."""
    replace_functions(path, original, path.read_text(encoding="utf-8"))
    try:
        _only(session, order)
    except session.Failed:
        return 1
    return int(session.testsfailed > 0)


def replace_functions(path: Path, original: str, changed: str) -> None:
    """Give all functions of a file the code of its changed source, which has the same functions; wrapped ones too."""
    before, after = ([*_codes(compile(source, str(path), "exec"))] for source in (original, changed))
    codes = {_place(old): new for old, new in zip(before, after, strict=True) if old != new}
    for one in gc.get_objects():
        if type(one) is types.FunctionType and one.__code__.co_filename == str(path) and _place(one.__code__) in codes:
            one.__code__ = codes[_place(one.__code__)]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _place(code: types.CodeType) -> tuple[str, int]:
    return code.co_name, code.co_firstlineno


class Durations:
    """Plugin of pytest: duration of each test, and its name as the context of the coverage."""

    def __init__(self, measured: Any):
        self.seconds: dict[str, float] = {}
        self._measured = measured

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Begin a test; one before may have ended the trace."""
        self._measured.stop()
        self._measured.start()
        self._measured.switch_context(nodeid)
        self.seconds[nodeid] = -time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """End a test."""
        self._measured.switch_context("")
        self.seconds[nodeid] += time.monotonic()


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the results so far: the last one of each mutant."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list({_key(one): one for one in map(json.loads, lines)}.values())


def _key(result: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(result[name] for name in ("file", "code", "before", "after", "index"))


def main() -> None:
    """Test the mutants of the sample that have no result yet, then print the share that was caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one per mutant")
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", nargs="+", choices=PACKAGES, default=PACKAGES)
    parser.add_argument("--again", action="store_true", help="test the survivors again")
    parser.add_argument("--modules", nargs="+", default=[""], help="only files whose path contains one of these")
    parser.add_argument(
        "--tests", nargs="+", default=[], help="only these test files; mutants that survive them are not recorded"
    )
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = {_key(one): one["survived"] for one in _read(arguments.out)}
    chosen = sample(arguments.sample, arguments.seed, tuple(arguments.packages))
    missing = [job for job in chosen if job[0].key not in done or (arguments.again and done[job[0].key])]
    missing = [job for job in missing if any(name in job[0].file for name in arguments.modules)]
    with tempfile.TemporaryDirectory() as folder, open(arguments.out, "a", encoding="utf-8") as file:

        def report(mutant: Mutant, survived: bool, count: int) -> None:
            if survived and arguments.tests:
                return
            file.write(json.dumps({**asdict(mutant), "tests": count, "survived": survived}) + "\n")
            file.flush()

        tests = Tests(Path(folder).resolve(), arguments.tests)
        for package in arguments.packages:
            if jobs := [job for job in missing if _package(job[0]) == package]:
                tests.run(package, jobs, report)
    present = {mutant.key for mutant, _, _ in chosen}
    caught = {_key(one) for one in _read(arguments.out)}
    for mutant, _, _ in missing:
        if mutant.key not in caught:
            print(f"not caught: {mutant.file}:{mutant.line}: {mutant.before} -> {mutant.after}")
    print(table([one for one in _read(arguments.out) if _key(one) in present]))


def table(results: list[dict[str, Any]]) -> str:
    """Return the counts by package and the list of the survivors."""
    rows = [f"{'package':<12}{'mutants':>8}{'caught':>8}"]
    for package in PACKAGES:
        found = [one["survived"] for one in results if Path(one["file"]).parts[1] == package]
        rows.append(f"{package:<12}{len(found):>8}{len(found) - sum(found):>8}")
    alive = [one for one in results if one["survived"]]
    rows.append(f"{'all':<12}{len(results):>8}{len(results) - len(alive):>8}")
    rows += [f"survived: {one['file']}:{one['line']}: {one['before']} -> {one['after']} in {one['code']}" for one in alive]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
