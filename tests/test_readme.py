"""What the README says is run: its Python blocks one after the other, and its commands with smaller numbers; or parsed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SMALLER = {  # options put behind those of the README; the last one counts
    "collect.py": "--episodes 60",
    "train_mdnrnn.py": "--num-updates 60 --hidden-size 16",
    "dream.py": "--num-dreams 32 --horizon 20",
    "train_controller.py": "--population 4 --rollouts 4 --generations 3 --horizon 30",
    "evaluate.py": "--episodes 3 --num-dreams 8",
}

SHORTER = {"num_updates=800": "num_updates=100", "generations=20": "generations=3"}
SHORTER |= {"num_updates=12_000": "num_updates=4", "num_updates=2_500": "num_updates=4"}
SHORTER |= {
    '"data/game", num_episodes=1000': '"data/game", num_episodes=8',
    "(1.0, 1.15))": "(1.0,), config=wm.EvaluationConfig(num_episodes=2, num_dreams=4))",
}
MY_GAME = f"""import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import gymnasium
gymnasium.register("MyGame-v0", entry_point="toy_images:DotEnv")
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(command: list[str], directory: Path) -> str:
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_files_that_the_readme_names_are_there():
    named = re.findall(r"(?:scripts|examples|benchmarks|docs|results|dev|tests)/[\w/.]+\.(?:py|md|png)", README)
    assert named
    assert not [name for name in named if "<" not in name and not (ROOT / name).exists()]


@pytest.mark.slow
def test_python_blocks_of_the_readme_run_in_order(tmp_path):
    program = "\n".join(blocks("python"))
    for number, smaller in SHORTER.items():
        assert number in program
        program = program.replace(number, smaller)
    (tmp_path / "program.py").write_text(MY_GAME + program)
    printed = run([sys.executable, "-W", "error", "program.py"], tmp_path)
    assert "reality" in printed


def test_commands_of_the_readme_that_take_too_long_to_run_are_parsed(parse):
    shell = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    commands = [*shell, *re.findall(r"`(python scripts/[^`]*)`", README)]
    assert len(commands) >= 10
    for command in commands:
        _, script, *options = shlex.split(command)
        parse(Path(script).name, options)


def test_shell_commands_of_the_readme_run(tmp_path):
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("python scripts/")]
    assert len(commands) == len(SMALLER)
    for command in commands:
        _, script, *options = shlex.split(command)
        name = Path(script).name
        run([sys.executable, str(ROOT / script), *options, *SMALLER[name].split()], tmp_path)
    assert (tmp_path / "dreams.npz").exists()
