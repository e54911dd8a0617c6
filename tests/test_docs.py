"""Every page, README and docs/**/*.md: its code runs, its commands parse, its links lead somewhere."""

import os
import re
import shlex
from pathlib import Path

import pytest
from pages import DOCS, ROOT, blocks, program, runs, shell_commands

from worldmodel.cli import main as commands_of_the_program
from worldmodel.cli.parsing import UsageError, parse

PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
MOST_LINES = 40  # of a block of Python

SMALLER = {  # text in blocks of Python, and what a test runs instead
    "num_updates=100": "num_updates=20",
    "num_updates=350": "num_updates=4",
    "num_updates=400, warmup_updates=50": "num_updates=4, warmup_updates=1",
    "num_updates=500": "num_updates=20",
    "num_updates=600": "num_updates=20",
    "num_updates=800": "num_updates=20",
    "ensemble=5": "ensemble=2",
    'plan-pendulum", num_episodes=200': 'plan-pendulum", num_episodes=20',
    "num_episodes=1000": "num_episodes=60",
    "num_episodes=500": "num_episodes=60",
    "num_episodes=100,": "num_episodes=20,",
    "EvaluationConfig(num_episodes=5, num_dreams=5)": "EvaluationConfig(num_episodes=1, num_dreams=1)",
    "EvaluationConfig(num_episodes=10)": "EvaluationConfig(num_episodes=1, num_dreams=8)",
    "EvaluationConfig(num_episodes=20)": "EvaluationConfig(num_episodes=3, num_dreams=8)",
    "EvaluationConfig(num_episodes=30, num_dreams=256)": "EvaluationConfig(num_episodes=3, num_dreams=16)",
    "EvaluationConfig(num_episodes=100)": "EvaluationConfig(num_episodes=5, num_dreams=16)",
    "env=env, seed=1)": "env=env, seed=1, config=wm.EvaluationConfig(num_episodes=3, num_dreams=8))",
    "temperatures=(1.0, 1.15)))": "temperatures=(1.0,), config=wm.EvaluationConfig(num_episodes=2, num_dreams=4)))",
    "horizon=20, candidates=128": "horizon=3, candidates=8",
    "generations=10": "generations=2, test_dreams=32",
    "generations=20": "generations=2, test_dreams=32",
    "horizon=500": "horizon=30",
    "horizon=200": "horizon=30",
    "num_dreams=256": "num_dreams=64",
    "num_dreams=1024": "num_dreams=128",
    "Dreams(world, 512)": "Dreams(world, 64)",
    "range(100)": "range(3)",
    "range(25)": "range(2)",
    "total_timesteps=25_000": "total_timesteps=2_048",
    '"CartPole-v1",\n    out="runs/loop"': 'wm.EnvConfig("CartPole-v1", max_steps=30),\n    out="runs/loop"',
    "max_rounds=3": "max_rounds=1, search=search, rollouts=2, validation_episodes=2, test_episodes=2",
    "first_episodes=300": "first_episodes=40",
    "iterations=20, horizon=50, test_every=10, test_dreams=64": "iterations=2, horizon=10, test_every=1, test_dreams=8",
}
EXTRAS = {  # word in a block: the package it needs, and the extra that brings it
    "stable_baselines3": ("stable_baselines3", "sb3"),
    "torchrl": ("torchrl", "torchrl"),
    "adapters.minari": ("minari", "minari"),
    "to_parquet": ("pyarrow", "formats"),
    "onnxruntime": ("onnxscript", "onnx"),
    "rgb_array": ("pygame", "classic-control"),
}
MY_GAME = f"""import sys
sys.path.insert(0, {str(next((ROOT / "tests").rglob("toy_images.py")).parent)!r})
import gymnasium
gymnasium.register("MyGame-v0", entry_point="toy_images:DotEnv", max_episode_steps=100)
"""

every_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """Every shell command of a page, in blocks and inline, split into words."""
    inline = re.findall(r"`((?:python|pip|worldmodel) [^`]*)`", prose(page))
    return [words for code in [*blocks(page, "bash", "sh"), *inline] for words in shell_commands(code)]


def contents(page: Path) -> list[str]:
    """Pages in the tables of contents of a page."""
    return [line for code in blocks(page, "{toctree}") for line in code.splitlines() if line and line[0] != ":"]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and MyST give to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, page in zip(NAMES, PAGES, strict=True) if blocks(page, "python")])
def test_the_code_blocks_run_in_order(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "my_games.py").write_text(blocks(DOCS / "how_to" / "add_an_environment.md", "python")[0])
    code = program(ROOT / name, SMALLER)
    for word, (package, extra) in EXTRAS.items():
        if word in code:
            pytest.importorskip(package, reason=f"needs worldmodel[{extra}]")
    result = runs(MY_GAME * ("MyGame-v0" in code) + code, tmp_path)
    assert result.returncode == 0, result.stderr


@every_page
def test_python_blocks_are_short_and_compile(page):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")
        assert len(block.splitlines()) <= MOST_LINES, block


@pytest.mark.parametrize("text", SMALLER)
def test_every_text_that_is_made_smaller_occurs(text):
    assert any(text in block for page in PAGES for block in blocks(page, "python"))


@every_page
def test_shell_commands_are_valid(page):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for name, *arguments in commands(page):
        if name == "make":
            assert set(arguments) <= set(targets)
        elif name == "worldmodel":
            check_command(arguments)
        elif name == "python" and arguments[0] == "-c":
            compile(arguments[1], str(page), "exec")
        elif name == "python" and arguments[0] == "-m":
            assert arguments[1] in ("worldmodel", "sphinx", "http.server")
        elif name == "python":
            source = (ROOT / arguments[0]).read_text()
            assert not [option for option in arguments[1:] if option.startswith("--") and f'"{option}"' not in source]
        else:
            assert name in ("pip", "pytest", "jupytext"), f"no test for the command {name}"


def check_command(words: list[str]) -> None:
    """Parse a command of the program without running it; an error is a `UsageError` or an exit."""
    if words[0] == "--print-completion":
        assert words[1] in commands_of_the_program.SHELLS
    elif words[-1] != "--help" and words[0] != "--version":
        name = commands_of_the_program.find(words)
        if options := words[len(name.split()) :]:  # without any, it is only named
            parse(commands_of_the_program.load(name), options, name=name)


@pytest.mark.parametrize("words", ["colect --out a", "collect --no-such-option", "store look"])
def test_a_command_that_does_not_exist_would_be_noticed(words):
    with pytest.raises((SystemExit, UsageError)):
        check_command(shlex.split(words))


@every_page
def test_extras_that_a_page_installs_exist(page):
    extras = set(re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE))
    named = [name for names in re.findall(r"install [^`\n]*\[([\w,-]+)\]'", page.read_text()) for name in names.split(",")]
    assert set(named) <= extras


@every_page
def test_a_page_installs_from_a_clone_or_a_wheel_as_the_name_is_on_no_index(page):
    assert not [
        words for words in commands(page) if words[0] == "pip" and any(re.fullmatch(r"worldmodel(\[.*)?", w) for w in words)
    ]


def test_the_page_of_extras_lists_every_extra():
    project = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = re.findall(r"^([\w-]+) = \[", project, flags=re.MULTILINE)
    listed = re.findall(r"^\| `([\w-]+)` \|", (DOCS / "how_to" / "extras.md").read_text(), flags=re.MULTILINE)
    assert set(listed) == set(extras)


@every_page
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{link}: expected a file, got nothing at {target}"
        assert not anchor or anchor in anchors(target), f"{link}: expected one of {sorted(anchors(target))}"


@every_page
def test_files_that_a_page_names_exist(page):
    folders = "scripts|examples|benchmarks|docs|results|dev|tests|worldmodel"
    named = re.findall(rf"\b(?:{folders})/[\w/.-]+\.(?:py|md|png|json|toml)\b", page.read_text())
    folders_named = re.findall(r"`(results/\w+)`", page.read_text())
    assert not [name for name in named + folders_named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES[1:], ids=NAMES[1:])
def test_pages_link_no_markdown_outside_of_the_documentation(page):
    """Sphinx makes links to other files downloads, but warns of Markdown files that are not among its pages."""
    targets = [(page.parent / link).resolve() for link in re.findall(r"\]\(([^)\s#]+\.md)", prose(page)) if ":" not in link]
    assert not [target for target in targets if not target.is_relative_to(DOCS)]


def test_the_index_links_every_page_and_has_it_in_a_table_of_contents():
    index = DOCS / "index.md"
    pages = {page.relative_to(DOCS).as_posix() for page in PAGES[1:] if page != index}
    inside = {page for page in pages if page.startswith("api/") and page != "api/index.md"}
    linked = {link for link in re.findall(r"\]\(([^)#]+\.md)\)", prose(index)) if not link.startswith("..")}
    assert linked == pages - inside
    assert sorted(f"{name}.md" for name in contents(index) if not name.startswith("notebooks/")) == sorted(linked)
    assert sorted(f"api/{name}.md" for name in contents(DOCS / "api" / "index.md")) == sorted(inside)


def test_every_package_has_a_page_of_the_reference():
    packages = {path.parent.name for path in (ROOT / "worldmodel").glob("*/__init__.py")}
    assert packages
    assert packages == set(contents(DOCS / "api" / "index.md"))
