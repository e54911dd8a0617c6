"""The plan of the house, checked: imports point down, files and functions stay short, the package does not print."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "worldmodel"

FLOORS = [
    {
        "version", "streams", "seeding", "reparameterization", "mixture", "membership", "spaces", "checkpoint", "episode",
        "interrupt", "strategies", "machine", "images", "packing", "video", "optimizers", "training_config",
    },
    {
        "policies", "shards", "store", "workers", "rollouts", "collect", "environments",
        "vision", "vae", "encoding", "lstm", "mdn", "fused", "mdnrnn", "fast_step", "batches", "calibration", "sequences",
        "baselines", "metrics",
        "testing.recording", "testing.inspection", "testing.trial", "testing.autoreset", "testing.contracts", "testing.checker",
    },
    {
        "world", "features", "starts", "training", "fit", "vae_training", "batched", "scores", "dream", "dream_options",
        "rendering",
    },
    {
        "controller", "choices", "reality", "population", "evolution", "ppo", "imagination", "envs", "latent_env",
        "adapters.minari", "adapters.sb3", "adapters.torchrl",
    },
    {"evaluation", "pictures", "reproduction", "results", "probe", "presets", "rounds", "iteration", "report"},
]  # fmt: skip
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
OPTIONAL = {
    "minari": "adapters/minari.py",
    "stable_baselines3": "adapters/sb3.py",
    "torchrl": "adapters/torchrl.py",
    "tensordict": "adapters/torchrl.py",
    "torch.utils.tensorboard": "metrics.py",
    "matplotlib": "report.py",
    "cma": "strategies.py",
    "vizdoom": "environments.py",
    "zstandard": "packing.py",
    "imageio_ffmpeg": "video.py",
}
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_SCRIPT = 400, 40, 100

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path) -> set[str]:
    """Modules of this package that a file imports."""
    return {name.removeprefix("worldmodel.") for name in imported(path) if name.startswith("worldmodel.")} & set(FLOOR)


def functions(path: Path) -> list[tuple[str, int]]:
    """Functions of a file with their lengths in lines, docstrings not counted."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            found.append((node.name, (node.end_lineno or 0) - first.lineno + 1))
    return found


def test_every_module_has_a_floor():
    assert {module_name(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_down(path):
    above = {name for name in ours(path) if FLOOR[name] > FLOOR[module_name(path)]}
    assert not above, f"{module_name(path)} on floor {FLOOR[module_name(path)]} imports {above} from above"


def test_imports_have_no_cycle():
    waiting = {module_name(path): ours(path) for path in FILES}
    while waiting:
        ready = {name for name, needs in waiting.items() if not needs & set(waiting)}
        assert ready, f"a cycle among {sorted(waiting)}"
        waiting = {name: needs for name, needs in waiting.items() if name not in ready}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stay_short(path):
    assert len(path.read_text().splitlines()) <= LONGEST_SCRIPT


@pytest.mark.parametrize("path", FILES + SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_stay_short(path):
    assert not [(name, lines) for name, lines in functions(path) if lines > LONGEST_FUNCTION]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_the_package_never_prints(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize(("library", "home"), OPTIONAL.items())
def test_a_library_that_only_one_file_needs_is_imported_there_alone(library, home):
    users = {
        str(path.relative_to(PACKAGE)) for path in FILES if any(f"{name}.".startswith(f"{library}.") for name in imported(path))
    }
    assert users == {home}


def test_there_is_no_drawer_for_odds_and_ends():
    assert not {path.stem for path in FILES} & {"utils", "common", "misc", "helpers", "util", "helper"}


def test_nothing_unpickles_a_file():
    """Only workers.py unpickles, what its own parent process sent."""
    pattern = re.compile(r"torch\.load\(|pickle\.load|np\.load\(.*allow_pickle=True|\beval\(|\bexec\(")
    found = {module_name(path) for path in FILES if pattern.search(path.read_text().replace(".eval()", ""))}
    assert found == {"workers"}


def test_public_names_are_all_there():
    import worldmodel

    assert all(hasattr(worldmodel, name) for name in worldmodel.__all__)
    assert len(set(worldmodel.__all__)) == len(worldmodel.__all__)
