"""The structure of the library, checked: levels of packages, sizes, namespaces, and what only some files may do.

The levels are read from docs/architecture.md.
"""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "worldmodel"
PAGE = ROOT / "docs" / "architecture.md"

OPTIONAL = {  # library -> the one file that imports it
    "aiohttp": "play/server.py",
    "av": "data/formats/video.py",
    "cma": "agents/strategies.py",
    "distributed": "runtime/cluster.py",
    "h5py": "data/formats/hdf5.py",
    "huggingface_hub": "runtime/hub.py",
    "imageio_ffmpeg": "plots/video.py",
    "matplotlib": "plots/report.py",
    "minari": "adapters/minari.py",
    "onnx": "sharing/onnx_export.py",
    "onnxruntime": "sharing/onnx_export.py",
    "pyarrow": "data/formats/parquet.py",
    "stable_baselines3": "adapters/sb3.py",
    "tensordict": "adapters/torchrl.py",
    "torch.utils.tensorboard": "training/log.py",
    "torchrl": "adapters/torchrl.py",
    "tqdm": "runtime/progress.py",
    "vizdoom": "envs/paper.py",
    "zstandard": "data/compression.py",
}
FACADES = {"__init__.py", "environments.py"}  # may import names from submodules of any package
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS, MAX_FIELDS = 400, 50, 10, 20
TOP_LEVEL_NAMES = range(20, 33)


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


FILES = sorted(PACKAGE.rglob("*.py"), key=relative)
MODULES = [path for path in FILES if path.name != "__init__.py"]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES + SCRIPTS}

each_file = pytest.mark.parametrize("path", FILES, ids=relative)
each_package = pytest.mark.parametrize("package", PACKAGES)


def read_levels(page: str) -> dict[str, int]:
    """Level of each package and of each file outside packages, from the block of the page."""
    (block,) = re.findall(r"```levels\n(.*?)```", page, flags=re.DOTALL)
    rows = [line.split() for line in block.splitlines()]
    names = [name for _, *listed in rows for name in listed]
    assert len(set(names)) == len(names)
    return {name: int(level) for level, *listed in rows for name in listed}


LEVELS = read_levels(PAGE.read_text())


def node_of(path: Path) -> str:
    """Package of a file, or its own name if it is in none."""
    return Path(relative(path)).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, str]]:
    """Every import of a file as (module, name); the name is empty for ``import module``."""
    found = []
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}: expected absolute imports"
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


def imports_of_nodes(path: Path) -> list[tuple[str, str, str]]:
    """Imports from this library as (package or file, module inside it, name)."""
    found = []
    for module, name in imports(path):
        parts = module.split(".")
        if parts[0] != "worldmodel":
            continue
        if len(parts) == 1 and name in LEVELS:
            parts, name = [*parts, name], ""
        found.append((parts[1] if len(parts) > 1 else "", ".".join(parts[2:]), name))
    return found


def submodules(package: str) -> set[str]:
    """Names of the modules and packages directly in a package ("" for the top level)."""
    folder = PACKAGE / package
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    return files | {path.parent.name for path in folder.glob("*/__init__.py")}


def namespace(package: str) -> set[str]:
    """Public names of a package."""
    module = importlib.import_module(f"worldmodel.{package}".rstrip("."))
    return set(getattr(module, "__all__", ()))


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(TREES[path]) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its ``def`` to its end, without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def public_functions(path: Path) -> list[tuple[str, ast.FunctionDef, bool]]:
    """Public functions and methods (constructors too) of a file: name, function, whether it is a method with self or cls."""
    found = []
    for node in TREES[path].body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            found.append((node.name, node, False))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and (method.name == "__init__" or not method.name.startswith("_")):
                    static = any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in method.decorator_list)
                    found.append((f"{node.name}.{method.name}", method, not static))
    return found


def num_arguments(function: ast.FunctionDef, is_method: bool) -> int:
    """Number of arguments without self; ``*args`` and ``**options`` count as one each."""
    given = function.args
    named = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs) - is_method
    return named + (given.vararg is not None) + (given.kwarg is not None)


def dataclass_fields(path: Path) -> dict[str, int]:
    """Number of fields of each dataclass in a file."""
    found = {}
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(one) for one in node.decorator_list):
            fields = [
                one for one in node.body if isinstance(one, ast.AnnAssign) and "ClassVar" not in ast.unparse(one.annotation)
            ]
            found[node.name] = len(fields)
    return found


def test_every_package_and_file_has_a_level():
    assert set(LEVELS) == submodules("")


def test_the_levels_are_read_from_the_page():
    assert read_levels("```levels\n2  b c\n1  a\n```") == {"b": 2, "c": 2, "a": 1}


@each_file
def test_imports_point_to_lower_levels(path):
    if relative(path) == "__init__.py":
        return  # top-level names are imported from all levels, on first use
    node = node_of(path)
    others = {to for to, _, _ in imports_of_nodes(path) if to not in ("", node)}
    wrong = {to for to in others if LEVELS[to] >= LEVELS[node]}
    assert not wrong, f"{node} is on level {LEVELS[node]} and imports {sorted(wrong)}, which is not below"


@each_file
def test_only_programs_import_the_top_level_namespace(path):
    """A name taken from ``worldmodel`` may come from any level."""
    uses = [name for to, _, name in imports_of_nodes(path) if to == "" and name != "__version__"]
    assert not uses or node_of(path) == "cli"


def test_modules_import_each_other_without_a_cycle():
    names = {".".join(Path(relative(path)).with_suffix("").parts): path for path in MODULES}
    waiting = {}
    for module, path in names.items():
        targets = imports_of_nodes(path)
        candidates = {
            ".".join(filter(None, parts)) for to, inner, name in targets for parts in ((to, inner), (to, inner, name))
        }
        waiting[module] = (candidates & set(names)) - {module}
    while waiting:
        ready = {module for module, needs in waiting.items() if not needs & set(waiting)}
        assert ready, f"a cycle among {sorted(waiting)}"
        waiting = {module: needs for module, needs in waiting.items() if module not in ready}


@each_file
def test_a_package_uses_others_through_their_namespace(path):
    if relative(path) in FACADES:
        return
    for to, inner, name in imports_of_nodes(path):
        if to in PACKAGES and to != node_of(path):
            allowed = {"", *submodules(to)} if not name else set() if inner else namespace(to) | submodules(to)
            got = f"worldmodel.{to}{'.' + inner if inner else ''}: {name or 'import'}"
            assert (name or inner) in allowed, f"{got}: expected a public name, imported from the package, or a module of it"


@each_file
def test_a_module_uses_its_own_package_through_modules(path):
    """Taking a name from the own package's namespace could import this module again."""
    if path.name == "__init__.py":
        return
    own = [name for to, inner, name in imports_of_nodes(path) if to == node_of(path) and to in PACKAGES and name and not inner]
    assert not set(own) - submodules(node_of(path))


@each_file
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_only_call_a_program(path):
    assert len(path.read_text().splitlines()) <= 10
    assert {module for module, _ in imports(path)} == {"sys", "worldmodel.cli.main"}


@each_file
def test_functions_are_short(path):
    long = {function.name: code_lines(function) for function in functions(path)}
    assert not {name: lines for name, lines in long.items() if lines > MAX_FUNCTION_LINES}


@each_file
def test_public_functions_take_few_arguments(path):
    """`fit` has two kinds of data and the size of an ensemble, which makes two arguments more than others have."""
    numbers = {name: num_arguments(function, is_method) for name, function, is_method in public_functions(path)}
    assert not {name: number for name, number in numbers.items() if number > MAX_ARGUMENTS + 2 * (name == "fit")}


@each_file
def test_dataclasses_have_few_fields(path):
    assert not {name: number for name, number in dataclass_fields(path).items() if number > MAX_FIELDS}


@pytest.mark.parametrize("package", ["", *PACKAGES])
def test_no_public_name_is_also_a_module(package):
    """``import worldmodel.x`` must give the module."""
    assert not namespace(package) & submodules(package)


@pytest.mark.parametrize("package", ["", *PACKAGES])
def test_names_for_type_checkers_are_those_that_load(package):
    path = PACKAGE / package / "__init__.py"
    typed = {}
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for one in node.body:
                assert isinstance(one, ast.ImportFrom)
                for alias in one.names:
                    assert alias.asname == alias.name, f"{alias.name}: expected `import {alias.name} as {alias.name}`"
                    typed[alias.name] = one.module
    assert set(typed) == namespace(package)
    module = importlib.import_module(f"worldmodel.{package}".rstrip("."))
    for name, home in typed.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)


def test_the_top_level_has_about_25_names():
    assert len(namespace("")) in TOP_LEVEL_NAMES


@pytest.mark.parametrize("package", ["", *PACKAGES])
def test_every_package_has_a_docstring_with_an_example_that_works(package):
    name = f"worldmodel.{package}".rstrip(".")
    text = importlib.import_module(name).__doc__ or ""
    example = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    assert example.examples
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert result.failed == 0, "".join(report)


def test_importing_the_library_does_not_import_torch():
    code = "import sys, worldmodel; print([name for name in ('torch', 'matplotlib', 'tqdm') if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert printed == "[]\n"


@pytest.mark.parametrize(("library", "home"), OPTIONAL.items())
def test_a_library_that_one_file_needs_is_imported_only_there(library, home):
    users = set()
    for path in FILES:
        names = {f"{module}.{name}".rstrip(".") for module, name in imports(path)}
        if any(f"{name}.".startswith(f"{library}.") for name in names):
            users.add(relative(path))
    assert users == {home}


@each_file
def test_only_programs_print(path):
    calls = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)]
    prints = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not prints or node_of(path) == "cli"


def test_nothing_unpickles_a_file():
    """Only processes that this library started unpickle, and only what the one that started them sent."""
    pattern = re.compile(r"torch\.load\(|pickle\.load|np\.load\(.*allow_pickle=True|\beval\(|\bexec\(")
    found = {relative(path) for path in FILES if pattern.search(path.read_text().replace(".eval()", ""))}
    assert found == {"runtime/kept.py", "runtime/ranks.py", "runtime/remote.py", "runtime/workers.py"}


def test_no_file_is_a_collection_of_unrelated_code():
    assert not {path.stem for path in FILES} & {"utils", "common", "misc", "helpers", "util", "helper"}
