"""The package on other systems: text is UTF-8, nothing needs POSIX, no file stays mapped, names are legal without case."""

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import worldmodel
from worldmodel.runtime import load_tensors, save_tensors

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    file for folder in ("worldmodel", "scripts", "examples", "benchmarks") for file in (ROOT / folder).rglob("*.py")
)
POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}
POSIX_NAMES = {  # of os, signal and time: absent on Windows or macOS
    *(
        "fork",
        "forkpty",
        "O_DIRECTORY",
        "O_NOFOLLOW",
        "O_CLOEXEC",
        "sched_getaffinity",
        "sched_setaffinity",
        "getuid",
        "getpgid",
    ),
    *("killpg", "setsid", "nice", "getpriority", "statvfs", "pread", "pwrite", "posix_fadvise", "posix_fallocate", "fchmod"),
    *("mkfifo", "sysconf", "getloadavg", "SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "alarm", "setitimer", "sigwait"),
    *("pthread_sigmask", "O_NONBLOCK", "WNOHANG", "fdatasync", "uname", "wait3", "wait4", "lockf", "SIGSTOP", "SIGCONT"),
}
GUARDS = re.compile(r"hasattr\(|getattr\(|sys\.platform|os\.name|AttributeError|ImportError")


def calls_without_encoding(source):
    """Return the lines that open or pass text without naming its encoding."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", "") if isinstance(node.func, ast.Attribute) else ""
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in keywords:
            continue
        position = 0 if name == "open" and owner not in ("", "io", "gzip", "codecs") else 1  # path.open(mode)
        mode = keywords.get("mode", node.args[position] if len(node.args) > position else ast.Constant("r"))
        opens = (
            name == "open"
            and (owner in ("", "io") or "mode" in keywords or not node.args)
            and owner not in ("os", "webbrowser")
        )
        if name in ("fdopen", "NamedTemporaryFile", "TemporaryFile") or (opens and isinstance(node.func, ast.Name)):
            binary = isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" in mode.value
            if not binary and name in ("open", "fdopen"):
                yield node.lineno
        elif name in ("read_text", "write_text") or (
            name in ("run", "Popen", "call", "check_call", "check_output") and {"text", "universal_newlines"} & keywords.keys()
        ):
            yield node.lineno


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("open(path)", True),
        ("open(path, 'a')", True),
        ("open(path, mode='w')", True),
        ("open(path, 'rb')", False),
        ("open(path, 'w', encoding='utf-8')", False),
        ("path.read_text()", True),
        ("path.write_text(text, encoding='utf-8')", False),
        ("subprocess.run(words, text=True)", True),
        ("subprocess.run(words, encoding='utf-8')", False),
        ("os.fdopen(3, 'w')", True),
        ("EpisodeStore.open(path)", False),
        ("os.open(path, flags)", False),
    ],
)
def test_the_search_for_missing_encodings_finds_them(line, found):
    assert bool(list(calls_without_encoding(line))) == found


def test_all_text_is_read_and_written_with_an_explicit_encoding():
    found = [f"{path.relative_to(ROOT)}:{line}" for path in SOURCES for line in calls_without_encoding(path.read_text("utf-8"))]
    assert found == []


def unguarded_posix(source):
    """Return uses of names that other systems lack, in functions that do not ask for them first."""
    tree = ast.parse(source)
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    for node in ast.walk(tree):
        imported = {alias.name for alias in getattr(node, "names", ())} if isinstance(node, ast.Import) else set()
        imported |= {node.module} if isinstance(node, ast.ImportFrom) else set()
        used = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("os", "signal")
        if not (imported & POSIX_MODULES or (used and node.attr in POSIX_NAMES)):
            continue
        scope = node
        while scope in parents and not isinstance(scope, (ast.FunctionDef, ast.Try, ast.If)):
            scope = parents[scope]
        around = scope if isinstance(scope, ast.FunctionDef) else parents.get(scope, scope)
        if not GUARDS.search(ast.get_source_segment(source, around) or source if around is not tree else ast.unparse(scope)):
            yield node.lineno


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import fcntl", True),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None", False),
        ("import os\ndef f():\n    os.fork()", True),
        ("import os\ndef f():\n    if hasattr(os, 'fork'):\n        os.fork()", False),
        ("import signal\ndef f():\n    return signal.SIGKILL", True),
        ("import signal\ndef f():\n    return getattr(signal, 'SIGKILL', signal.SIGTERM)", False),
    ],
)
def test_the_search_for_unguarded_posix_calls_finds_them(source, found):
    assert bool(list(unguarded_posix(source))) == found


def test_calls_that_only_posix_has_are_guarded():
    package = [path for path in SOURCES if path.is_relative_to(ROOT / "worldmodel")]
    found = [f"{path.relative_to(ROOT)}:{line}" for path in package for line in unguarded_posix(path.read_text("utf-8"))]
    assert found == []


WITHOUT_POSIX = """
import builtins, os, signal, sys, time
from pathlib import Path
import gymnasium, numpy, safetensors.torch, torch, tqdm, zstandard, cloudpickle, tyro  # these may use what they like

MODULES, NAMES = {modules!r}, {names!r}
KEPT = {{"sysconf", "uname", "getuid", "WNOHANG", "waitpid"}}  # other libraries and subprocess use them, on every POSIX system
imported = builtins.__import__

def refuse(name, globals=None, *rest, **options):
    if name in MODULES and (globals or {{}}).get("__name__", "").startswith("worldmodel"):
        raise ImportError(f"no module named {{name}}")
    return imported(name, globals, *rest, **options)

builtins.__import__ = refuse
for module in (os, signal):
    for name in NAMES - KEPT:
        if hasattr(module, name):
            delattr(module, name)

import worldmodel as wm
from worldmodel.data import EnvConfig
from worldmodel.models import MDNRNNConfig
from worldmodel.runtime.memory import private_memory, total_memory, used_fraction

if __name__ == "__main__":
    out = Path(sys.argv[1])
    wm.collect(EnvConfig("CartPole-v1", max_steps=10), out=out / "data", num_episodes=6)
    wm.collect(EnvConfig("CartPole-v1", max_steps=10), out=out / "data", num_episodes=8)
    world = wm.fit(
        out / "data",
        out=out / "world",
        config=MDNRNNConfig(hidden_size=4, num_components=1),
        training_config=wm.TrainingConfig(num_updates=3),
        device="cpu",
    )
    again = wm.WorldModel.from_pretrained(out / "world")
    assert again.fingerprint == world.fingerprint
    again.save_pretrained(out / "copy")
    again.save_pretrained(out / "copy", overwrite=True)
    print("done")
"""


def test_the_package_works_without_what_only_posix_has(tmp_path):
    script = tmp_path / "elsewhere.py"
    script.write_text(WITHOUT_POSIX.format(modules=POSIX_MODULES, names=POSIX_NAMES), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, encoding="utf-8", env=environment, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["done"], done.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at the mapped files of the process")
def test_tensors_that_were_read_do_not_keep_their_file_mapped(tmp_path):
    """Windows neither replaces nor deletes a file that is mapped."""
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(300, 300)})
    kept, _ = load_tensors(tmp_path / "a.safetensors")
    assert "a.safetensors" not in Path("/proc/self/maps").read_text("utf-8")
    save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(300, 300)})
    assert float(kept["x"].sum()) == 300 * 300


RESERVED = {"con", "prn", "aux", "nul", *(f"{name}{digit}" for name in ("com", "lpt") for digit in range(10))}


def test_files_of_the_repository_have_names_that_are_legal_and_distinct_without_case():
    git = ["git", "ls-files", "-z"]
    try:
        listed = subprocess.run(git, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no repository here")
    names = [name for name in listed if name]
    assert len({name.casefold() for name in names}) == len(names)
    parts = {part for name in names for part in Path(name).parts}
    assert not [part for part in parts if re.search(r'[<>:"|?*\\\x00-\x1f]|[. ]$', part)]
    assert not [part for part in parts if part.split(".")[0].casefold() in RESERVED]


def test_names_of_files_that_the_package_writes_are_legal_and_distinct_without_case():
    names = set()
    for found in pkgutil.walk_packages(worldmodel.__path__, "worldmodel."):
        if found.name.endswith("__main__") or found.name == "worldmodel.adapters.hardmaru":  # it reads others' files
            continue
        try:
            module = importlib.import_module(found.name)
        except ImportError:  # an extra is not installed
            continue
        for name, value in vars(module).items():
            if name.endswith(("_FILE", "_WEIGHTS")) and isinstance(value, str):
                names.add(value)
    assert len(names) > 10
    assert len({name.casefold() for name in names}) == len(names)
    names.discard("README.md")  # as the Hub calls a model card; no other name has capitals
    assert not [name for name in names if not re.fullmatch(r"[a-z0-9_.\-]+", name) or name.split(".")[0] in RESERVED]
