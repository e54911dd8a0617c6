"""The code blocks of a page as one program, for the tests of the documentation.

Blocks of Python and of shell run in the order of the page, in one process and one directory. So do the ``worldmodel`` commands
of a shell block, with small sizes and without workers: imports of other processes would take longer than the command. Only
commands that must have workers run in a process of their own.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

SMALLER = {  # command: options put behind those of the page; the last one counts
    "collect": "--episodes 60",
    "train-mdnrnn": "--num-updates 20 --hidden-size 16",
    "dream": "--num-dreams 32 --horizon 20",
    "train-controller": "--population 4 --rollouts 4 --generations 2 --horizon 30",
    "evaluate": "--episodes 3 --num-dreams 8",
    "iterate": "--first-episodes 20 --num-updates 20 --max-rounds 1 --generations 2 --population 4",
}
ONLY_PARSED = ("quickstart", "reproduce", "doom", "car-racing", "worldmodel play")  # too long, endless, or in need of a game
HEADER = """import subprocess, sys, warnings
from worldmodel.cli.main import main
warnings.filterwarnings("ignore", message="V has collapsed")  # it has a few updates here
def run(*words):
    if __name__ != "__main__":  # a worker of the page's own program imports it
        return
    if "--step-timeout" in words:  # needs workers, which import the main module
        subprocess.run([sys.executable, "-m", "worldmodel", *words], check=True)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            main(words)
    except SystemExit as stopped:
        assert not stopped.code, (words, stopped.code)
"""


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of some languages."""
    return [code for language, code in all_blocks(page) if language in languages]


def all_blocks(page: Path) -> list[tuple[str, str]]:
    """Return every code block of a page as (language, code)."""
    return re.findall(r"^```([^\s`]*)[^\n]*\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def shell_commands(block: str) -> list[list[str]]:
    """Return the commands of a shell block, split into words."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines for part in line.split("&&") if (words := shlex.split(part, comments=True))]


def is_run(words: list[str]) -> bool:
    """Return whether a test runs a command; otherwise it is only parsed."""
    return words[0] == "worldmodel" and not any(part in " ".join(words) for part in ONLY_PARSED)


def program(page: Path, smaller: dict[str, str]) -> str:
    """Return the blocks of a page as one Python program; ``smaller`` replaces texts of Python blocks."""
    parts = [HEADER]
    for language, code in all_blocks(page):
        if language == "python":
            for text, less in smaller.items():
                code = code.replace(text, less)
            parts.append(code)
        elif language in ("bash", "sh"):
            parts += [f"run(*{with_small_sizes(words)!r})" for words in shell_commands(code) if is_run(words)]
    return "\n".join(parts)


def with_small_sizes(words: list[str]) -> list[str]:
    """Return the words of a ``worldmodel`` command after the program's name, with small sizes."""
    alone = ["--workers", "0"] if "--workers" in words and "--step-timeout" not in words else []
    return [*words[1:], *SMALLER.get(words[1], "").split(), *alone]


def runs(program: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a directory with warnings as errors."""
    (directory / "program.py").write_text(program)
    command = [sys.executable, "-W", "error", "program.py"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # two threads on a busy core would wait for each other
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=900)
