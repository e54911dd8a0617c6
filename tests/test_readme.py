"""The README fits on a page, names every package, and its shell commands run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SMALLER = {  # options put behind those of the README; the last one counts
    "collect.py": "--episodes 60",
    "train_mdnrnn.py": "--num-updates 60 --hidden-size 16",
    "dream.py": "--num-dreams 32 --horizon 20",
    "train_controller.py": "--population 4 --rollouts 4 --generations 3 --horizon 30",
    "evaluate.py": "--episodes 3 --num-dreams 8",
}


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


def test_five_shell_commands_of_the_readme_run(tmp_path):
    shell = "\n".join(re.findall(r"^```bash\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE))
    lines = [line for line in shell.splitlines() if line.startswith("python scripts/")]
    assert [Path(line.split()[1]).name for line in lines] == list(SMALLER)
    for line in lines:
        _, script, *options = shlex.split(line)
        command = [sys.executable, str(ROOT / script), *options, *SMALLER[Path(script).name].split()]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
    assert (tmp_path / "dreams.npz").is_file()
