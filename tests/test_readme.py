"""The README fits on a page, names every package, and shows five shell commands."""

import re

from pages import ROOT, blocks, is_run, shell_commands

PAGE = ROOT / "README.md"
README = PAGE.read_text()
COMMANDS = ["collect", "train-mdnrnn", "dream", "train-controller", "evaluate"]


def test_the_readme_has_at_most_150_lines():
    assert len(README.splitlines()) <= 150


def test_the_readme_names_every_package():
    packages = {path.parent.name for path in (ROOT / "worldmodel").glob("*/__init__.py")}
    assert packages
    assert not {name for name in packages if f"`{name}`" not in README}


def test_the_readme_cites_the_version_of_the_library():
    version = re.search(r'__version__ = "(.*)"', (ROOT / "worldmodel" / "version.py").read_text())
    assert version
    assert f"version = {{{version[1]}}}" in README


def test_the_readme_shows_five_shell_commands():
    shown = [words[1] for code in blocks(PAGE, "bash") for words in shell_commands(code) if is_run(words)]
    assert shown == COMMANDS  # test_docs.py runs them


def test_the_animated_dream_is_small():
    (name,) = re.findall(r"\(([\w/]+\.gif)\)", README)
    assert 10_000 < (ROOT / name).stat().st_size < 1_500_000
