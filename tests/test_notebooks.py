"""The notebooks of the documentation are text, run as they are, and show committed pictures."""

import re
import subprocess
import sys

import pytest
from pages import DOCS

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.py"))

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_three_notebooks():
    assert len(NOTEBOOKS) == 3


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_without_warnings_and_draws_its_pictures(notebook, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="needs worldmodel[plots]")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(DOCS.parent))
    result = subprocess.run(
        [sys.executable, "-W", "error", str(notebook)], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.glob("*.png")} == set(pictures(notebook))


@each_notebook
def test_a_notebook_shows_pictures_that_are_committed(notebook):
    assert pictures(notebook)
    assert not [name for name in pictures(notebook) if not (DOCS / "images" / name).is_file()]


@each_notebook
def test_a_notebook_alternates_text_and_code_under_a_title(notebook):
    cells = re.split(r"^# %%", notebook.read_text(), flags=re.MULTILINE)[1:]
    assert re.match(r" \[markdown\]\n# # \w", cells[0])
    assert sum(cell.startswith(" [markdown]") for cell in cells) >= 4
    assert sum(cell.startswith("\n") for cell in cells) >= 4


def pictures(notebook):
    """Return the names of the pictures that a notebook shows."""
    return re.findall(r"\]\(\.\./images/([\w.]+)\)", notebook.read_text())
