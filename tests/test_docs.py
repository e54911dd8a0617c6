"""The pages under docs/ are run: their Python blocks one after the other, with smaller numbers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
SMALLER = {"num_episodes=500": "num_episodes=60", "num_episodes=100,": "num_episodes=5,", "num_updates=600": "num_updates=60"}
SMALLER |= {"range(100)": "range(3)", "total_timesteps=25_000": "total_timesteps=2_048", "range(25)": "range(2)"}
SMALLER |= {"generations=10": "generations=2", "max_rounds=3": "max_rounds=1", "first_episodes=300": "first_episodes=40"}
EXTRAS = {  # word in a block: the package it needs, and the extra that brings it
    "stable_baselines3": ("stable_baselines3", "sb3"),
    "torchrl": ("torchrl", "torchrl"),
    "rgb_array": ("pygame", "classic-control"),
}


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_run_in_order(page, tmp_path):
    program = "\n".join(blocks(page))
    for word, (package, extra) in EXTRAS.items():
        if word in program:
            pytest.importorskip(package, reason=f"needs worldmodel[{extra}]")
    for number, smaller in SMALLER.items():
        program = program.replace(number, smaller)
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "-W", "error", "program.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr


def test_every_number_that_is_made_smaller_is_there():
    programs = "\n".join(block for page in PAGES for block in blocks(page))
    assert not [number for number in SMALLER if number not in programs]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_block_is_short(page):
    assert max((len(block.splitlines()) for block in blocks(page)), default=0) <= 16


def test_the_readme_names_every_page():
    readme = (ROOT / "README.md").read_text()
    assert not [page.name for page in PAGES if f"docs/{page.name}" not in readme]
