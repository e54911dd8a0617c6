"""Mutation testing: a seeded sample of small changes of the package, each against the tests of its package.

    python benchmarks/mutation.py --out results/mutation.jsonl --sample 400

A mutant replaces one operator, comparison, constant, default or sign. It is caught if a test fails, or the tests take ten times
as long as without it. Each mutant is tested in a copy of the package, so the sources do not change, and runs can share a disk.
The file of results has one line per mutant; the same command continues where it stopped.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mixtures", "models", "dream", "data", "spaces", "training", "evaluation")
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
SECONDS = 600  # for the tests of one mutant


@dataclass(frozen=True)
class Mutant:
    """One change: the place, and the source of the node before and after."""

    file: str
    line: int
    column: int
    before: str
    after: str


def mutants(path: Path) -> Iterator[tuple[Mutant, str]]:
    """Yield each mutant of a file with the whole changed source."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    data = source.encode()
    tree = ast.parse(source)
    annotations = {id(part) for node in ast.walk(tree) for part in _annotation_parts(node)}
    for node in ast.walk(tree):
        if id(node) in annotations or not hasattr(node, "end_col_offset"):
            continue
        first = starts[node.lineno - 1] + node.col_offset
        last = starts[node.end_lineno - 1] + node.end_col_offset
        before = data[first:last].decode()
        for after in _changes(node):
            changed = (data[:first] + f"({after})".encode() + data[last:]).decode()
            try:
                ast.parse(changed)
            except SyntaxError:
                continue
            yield Mutant(str(path.relative_to(ROOT)), node.lineno, node.col_offset, before, after), changed


def _annotation_parts(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of annotations, subscripts of types and f-strings, in which a change means nothing or is only text."""
    roots = [getattr(node, name, None) for name in ("annotation", "returns")]
    if isinstance(node, (ast.JoinedStr, ast.Raise, ast.ImportFrom)):
        roots.append(node)
    for root in roots:
        if isinstance(root, ast.AST):
            yield from ast.walk(root)


def _changes(node: ast.AST) -> Iterator[str]:
    """Yield the source of each change of a node."""
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS and not isinstance(node.left, ast.Constant | ast.JoinedStr):
        yield ast.unparse(ast.BinOp(node.left, SWAPS[type(node.op)](), node.right))
    elif isinstance(node, ast.BoolOp):
        yield ast.unparse(ast.BoolOp(SWAPS[type(node.op)](), node.values))
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPS:
        yield ast.unparse(ast.Compare(node.left, [SWAPS[type(node.ops[0])]()], node.comparators))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield ast.unparse(node.operand)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield repr(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield repr(node.value + 1)
        if isinstance(node.value, float):
            yield repr(node.value * 2)


def sample(size: int, seed: int, packages: tuple[str, ...]) -> list[tuple[Mutant, str]]:
    """Return a random sample, the same for the same sources and seed."""
    files = [path for package in packages for path in sorted((ROOT / "worldmodel" / package).glob("*.py"))]
    every = [found for path in files if path.name != "__init__.py" for found in mutants(path)]
    return random.Random(seed).sample(every, min(size, len(every)))


def survives(mutant: Mutant, changed: str) -> bool:
    """Return whether the tests of its package pass with a mutant."""
    package = Path(mutant.file).parts[1]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        ignore = shutil.ignore_patterns("__pycache__")
        for name in ("worldmodel", "tests", "scripts"):
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", copy)
        (copy / mutant.file).write_text(changed, encoding="utf-8")
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not cuda"]
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", *options, str(copy / "tests" / package)]
        try:
            ended = subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=False, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return ended.returncode == 0


def main() -> None:
    """Test the mutants of the sample that have no result yet, then print the share that was caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one per mutant")
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", nargs="+", choices=PACKAGES, default=PACKAGES)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.out.read_text(encoding="utf-8").splitlines() if arguments.out.exists() else []
    results = [json.loads(line) for line in lines]
    done = {(one["file"], one["line"], one["column"], one["after"]) for one in results}
    started = time.monotonic()
    with open(arguments.out, "a", encoding="utf-8") as file:
        for mutant, changed in sample(arguments.sample, arguments.seed, tuple(arguments.packages)):
            if (mutant.file, mutant.line, mutant.column, mutant.after) in done:
                continue
            if time.monotonic() - started > arguments.minutes * 60:
                break
            result = {**asdict(mutant), "survived": survives(mutant, changed)}
            results.append(result)
            file.write(json.dumps(result) + "\n")
            file.flush()
    alive = [one for one in results if one["survived"]]
    print(f"{len(results) - len(alive)} of {len(results)} mutants caught")
    for one in alive:
        print(f"survived: {one['file']}:{one['line']}: {one['before']!r} -> {one['after']!r}")


if __name__ == "__main__":
    main()
