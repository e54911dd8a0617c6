"""Small changes of source files, for mutation testing: one operator, comparison, constant, default or sign each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAIRS = [
    *((ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq)),
    *((ast.Is, ast.IsNot), (ast.In, ast.NotIn), (ast.And, ast.Or), (ast.BitAnd, ast.BitOr)),
]
SWAPS: dict[type[ast.AST], type[ast.AST]] = {a: b for one, other in PAIRS for a, b in ((one, other), (other, one))}
SWAPS |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult}


@dataclass(frozen=True)
class Mutant:
    """One change: the place, the source of the node before and after, and how often that change came earlier in its line."""

    file: str
    line: int
    code: str
    before: str
    after: str
    index: int

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """Identity without the line number, which an edit of other lines moves."""
        return self.file, self.code, self.before, self.after, self.index


def mutants(path: Path) -> Iterator[tuple[Mutant, bytes, range | None]]:
    """Yield each mutant of a file with the whole changed source, and the lines whose tests it meets (None: all tests)."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    data = source.encode()
    tree = ast.parse(source)
    skipped = {id(part) for node in ast.walk(tree) for part in _skipped_parts(node)}
    seen: dict[tuple[str, str, str], int] = {}
    for node, where in _nodes(tree):
        if id(node) in skipped or not hasattr(node, "end_col_offset"):
            continue
        first = starts[node.lineno - 1] + node.col_offset
        last = starts[node.end_lineno - 1] + node.end_col_offset
        before, code = data[first:last].decode(), lines[node.lineno - 1].strip()
        for after in _changes(node):
            index = seen[(code, before, after)] = seen.get((code, before, after), -1) + 1
            mutant = Mutant(str(path.relative_to(ROOT)), node.lineno, code, before, after, index)
            yield mutant, data[:first] + f"({after})".encode() + data[last:], where


def _nodes(tree: ast.Module) -> Iterator[tuple[ast.AST, range | None]]:
    """Yield all nodes, each with the lines of its statement; for the header of a function, the lines of the function."""
    waiting: list[tuple[ast.AST, range | None]] = [(tree, None)]
    while waiting:
        node, where = waiting.pop()
        if isinstance(node, ast.FunctionDef):
            where = range(node.body[0].lineno, node.end_lineno + 1)
        elif isinstance(node, ast.ClassDef):
            where = None
        elif isinstance(node, ast.stmt) and where is not None:
            body = getattr(node, "body", None)
            where = range(node.lineno, body[0].lineno if body else node.end_lineno + 1)
        yield node, where
        waiting += [(child, where) for child in ast.iter_child_nodes(node)]


def _skipped_parts(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of annotations, imports, raised errors and f-strings, in which a change means nothing or is only text."""
    roots = [getattr(node, name, None) for name in ("annotation", "returns")]
    if isinstance(node, ast.JoinedStr | ast.Raise | ast.ImportFrom):
        roots.append(node)
    if isinstance(node, ast.keyword) and node.arg in ("strict", "stacklevel"):
        roots.append(node.value)
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
        if isinstance(node.value, float) and node.value != 0:
            yield repr(node.value * 2)
