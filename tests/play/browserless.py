"""Run the page's JavaScript modules under node, without a browser."""

import json
import shutil
import subprocess

import pytest

from worldmodel.play.site import WEB

NODE = shutil.which("node")
OLDEST = 18


def run_node(tmp_path, script, *words):
    """Run a module of JavaScript that imports the page's modules from "./web/"; return what it prints as JSON."""
    if NODE is None:
        pytest.skip("needs node")
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version[1:].split(".")[0]) < OLDEST:
        pytest.skip(f"needs node {OLDEST} or later, got {version}")
    if not (tmp_path / "web").exists():
        (tmp_path / "package.json").write_text('{"type": "module"}')
        shutil.copytree(WEB, tmp_path / "web")
    path = tmp_path / "script.js"
    path.write_text(script)
    done = subprocess.run([NODE, path, *map(str, words)], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
