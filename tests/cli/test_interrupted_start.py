"""Ctrl-C while the program starts: exit code 130 and one line, whichever library is being imported."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import worldmodel
from worldmodel.starting import is_program

ROOT = Path(worldmodel.__file__).parents[1]  # of a clone, or site-packages
SCRIPT = "import sys\nfrom worldmodel.cli.main import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
COLLECT = "collect --env CartPole-v1 --episodes 1 --out data"
INTERRUPT = """import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except BaseException:
    raise ImportError("as some libraries do")
"""

posix = pytest.mark.skipif(os.name == "nt", reason="os.kill ends a process there instead of interrupting it")


@pytest.fixture
def start(tmp_path):
    """Return a function that runs Python with modules of its own before all others, and a shell's handling of Ctrl-C."""

    def call(command, **modules):
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(source)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
        try:
            return subprocess.run(
                [sys.executable, *command],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                start_new_session=True,  # `os.killpg(0, ...)` of a module reaches the program and its workers only
            )
        finally:
            signal.signal(signal.SIGINT, before)

    return call


@posix
@pytest.mark.parametrize(
    ("words", "module"),
    [
        ("--help", "gymnasium"),
        ("info", "gymnasium"),
        ("info", "tyro"),
        ("info", "torch"),
        (COLLECT, "torch"),
        (COLLECT, "numpy"),
    ],
)
def test_ctrl_c_during_an_import_is_exit_code_130_and_one_line(start, tmp_path, words, module):
    done = start(["-m", "worldmodel", *words.split()], **{module: INTERRUPT})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ninterrupted before anything was done\n")
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == [f"{module}.py"]


@posix
def test_the_installed_script_and_the_scripts_of_a_clone_do_the_same(start, tmp_path):
    (tmp_path / "worldmodel").write_text(SCRIPT)
    scripts = [path for path in [ROOT / "scripts" / "collect.py"] if path.exists()]
    for path in (tmp_path / "worldmodel", *scripts):
        done = start([str(path), "--help"], gymnasium=INTERRUPT)
        assert (done.returncode, done.stderr) == (130, "\ninterrupted before anything was done\n")


@posix
def test_ctrl_c_after_the_result_is_silent(start):
    late = "import atexit, os, signal\natexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    done = start(["-m", "worldmodel", "store", "verify", "nowhere"], sitecustomize=late)
    assert done.returncode == 130
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr


@posix
@pytest.mark.slow
def test_ctrl_c_while_worker_processes_start_prints_no_traceback(start):
    interrupt = "import os, signal, sys\nif 'forkserver' in ' '.join(sys.orig_argv):\n    os.killpg(0, signal.SIGINT)\n"
    done = start(["-m", "worldmodel", *COLLECT.split(), "--workers", "1"], sitecustomize=interrupt)
    expected = "\ninterrupted. Finished episodes are kept; the same command resumes the collection.\n"
    assert (done.returncode, done.stdout, done.stderr) == (130, "", expected)


@posix
def test_another_program_that_uses_the_library_gets_the_interruption(start):
    done = start(["-c", "import signal, worldmodel; assert signal.getsignal(2) is signal.default_int_handler"])
    assert (done.returncode, done.stderr) == (0, "")


@posix
def test_a_command_in_the_background_of_a_shell_ignores_ctrl_c(start):
    code = "import signal, sys; signal.signal(2, signal.SIG_IGN); sys.argv = ['-m']"
    code += "; import worldmodel; print(int(signal.getsignal(2)))"
    assert start(["-c", code, "-m", "worldmodel"]).stdout == f"{int(signal.SIG_IGN)}\n"


@pytest.mark.parametrize(
    ("words", "command_line", "expected"),
    [
        (["-m"], ["python", "-W", "error", "-m", "worldmodel", "info"], True),
        (["-m"], ["python", "-m", "pytest"], False),
        (["/usr/bin/worldmodel", "info"], ["python", "/usr/bin/worldmodel", "info"], True),
        (["worldmodel.exe"], ["python.exe", "worldmodel.exe"], True),
        (["train.py", "worldmodel"], ["python", "train.py", "worldmodel"], False),
        (["/usr/bin/worldmodel"], ["python", "-c", "from multiprocessing.spawn import spawn_main"], False),  # a worker process
        ([str(ROOT / "scripts" / "collect.py")], ["python", str(ROOT / "scripts" / "collect.py")], True),
        ([""], ["python"], False),
        ([], [], False),
    ],
)
def test_only_the_program_is_taken_for_the_program(words, command_line, expected):
    assert is_program(words, command_line) is expected
