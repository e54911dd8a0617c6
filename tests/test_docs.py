"""Every page, README and docs/**/*.md: its Python runs, its commands parse, its links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
MOST_LINES = 30  # of a block of Python

SMALLER = {  # text in blocks of Python, and what a test runs instead
    "num_updates=500": "num_updates=60",
    "num_updates=600": "num_updates=60",
    "num_updates=800": "num_updates=100",
    "num_updates=1_200, warmup_updates=100": "num_updates=4",
    "num_updates=350": "num_updates=4",
    "num_episodes=500": "num_episodes=60",
    "num_episodes=1000": "num_episodes=300",
    "num_episodes=100,": "num_episodes=5,",
    "num_episodes=100)": "num_episodes=5, num_dreams=16)",
    "num_episodes=30, num_dreams=256": "num_episodes=3, num_dreams=16",
    "temperatures=(1.0, 1.15)))": "temperatures=(1.0,), config=wm.EvaluationConfig(num_episodes=2, num_dreams=4)))",
    "generations=10": "generations=2",
    "generations=20": "generations=2, test_dreams=32",
    "num_dreams=1024": "num_dreams=128",
    "range(100)": "range(3)",
    "range(25)": "range(2)",
    "total_timesteps=25_000": "total_timesteps=2_048",
    "max_rounds=3": "max_rounds=1",
    "first_episodes=300": "first_episodes=40",
}
EXTRAS = {  # word in a block: the package it needs, and the extra that brings it
    "stable_baselines3": ("stable_baselines3", "sb3"),
    "torchrl": ("torchrl", "torchrl"),
    "rgb_array": ("pygame", "classic-control"),
}
MY_GAME = f"""import sys
sys.path.insert(0, {str(next((ROOT / "tests").rglob("toy_images.py")).parent)!r})
import gymnasium
gymnasium.register("MyGame-v0", entry_point="toy_images:DotEnv")
"""

every_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def blocks(page: Path, *languages: str) -> list[str]:
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[list[str]]:
    """Every shell command of a page, in blocks and inline, split into words."""
    lines = "\n".join(blocks(page, "bash", "sh")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:python|pip) [^`]*)`", prose(page))
    return [words for line in lines for part in line.split("&&") if (words := shlex.split(part, comments=True))]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and MyST give to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, page in zip(NAMES, PAGES, strict=True) if blocks(page, "python")])
def test_python_blocks_run_in_order(name, tmp_path):
    program = "\n".join(blocks(ROOT / name, "python"))
    for word, (package, extra) in EXTRAS.items():
        if word in program:
            pytest.importorskip(package, reason=f"needs worldmodel[{extra}]")
    for text, smaller in SMALLER.items():
        program = program.replace(text, smaller)
    (tmp_path / "program.py").write_text(MY_GAME * ("MyGame-v0" in program) + program)
    command = [sys.executable, "-W", "error", "program.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
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
def test_shell_commands_are_valid(page, parse):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for program, *arguments in commands(page):
        if program == "make":
            assert set(arguments) <= set(targets)
        elif program == "python" and arguments[0].startswith("scripts/"):
            parse(Path(arguments[0]).name, arguments[1:])
        elif program == "python" and arguments[0] == "-c":
            compile(arguments[1], str(page), "exec")
        elif program == "python":
            source = (ROOT / arguments[0]).read_text()
            assert not [option for option in arguments[1:] if option.startswith("--") and f'"{option}"' not in source]
        else:
            assert program in ("pip", "pytest"), f"no test for the command {program}"


@every_page
def test_extras_that_a_page_installs_exist(page):
    extras = set(re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE))
    named = [name for names in re.findall(r"install -e '\.\[([\w,-]+)\]'", page.read_text()) for name in names.split(",")]
    assert set(named) <= extras


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
    linked = {link for link in re.findall(r"\]\(([^)#]+\.md)\)", prose(index)) if not link.startswith("..")}
    contents = [line for block in blocks(index, "{toctree}") for line in block.splitlines() if line and line[0] != ":"]
    assert linked == pages
    assert sorted(f"{name}.md" for name in contents) == sorted(pages)
