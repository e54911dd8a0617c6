"""``worldmodel play`` and ``worldmodel export --page``."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from gymnasium import spaces
from toy_worlds import random_world

import worldmodel
from worldmodel.play import PageExport, included_worlds
from worldmodel.play import server as server_module

pytest.importorskip("aiohttp", reason="needs worldmodel[play]")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to another process")
def test_play_without_a_run_lists_the_worlds_and_serves_the_included_one_until_interrupted(tmp_path):
    random_world().save_pretrained(tmp_path / "runs" / "mine")
    command = [sys.executable, "-m", "worldmodel", "play", "--no-browser", "--port", "0"]
    library = str(Path(worldmodel.__file__).parent.parent)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": library}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stdout.readline() for _ in range(4)]
            assert lines[:3] == ["worlds:\n", "  cartpole (included)\n", "  runs/mine\n"]
            playing = r"playing cartpole \(included\) at (http://127.0.0.1:\d+/) \(Ctrl-C stops\)"
            (address,) = re.findall(playing, lines[3])
            with urllib.request.urlopen(address) as answer:
                assert b"Play in a dream" in answer.read()
        finally:
            process.send_signal(signal.SIGINT)
            try:
                last = process.communicate(timeout=60)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert (last, process.returncode) == ("stopped\n", 0)
    assert not (tmp_path / "cache").exists()


def test_the_browser_is_opened_at_the_printed_address(run, monkeypatch):
    asked = []
    monkeypatch.setattr("webbrowser.open", asked.append)

    async def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(server_module.asyncio.Event, "wait", stopped)
    code, printed, _ = run("play cartpole --port 0")
    assert code == 0
    assert [address in printed for address in asked] == [True]
    run("play cartpole --port 0 --no-browser")
    assert len(asked) == 1


def test_what_cannot_be_played_is_one_line(tmp_path, run, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = run(f"play cartpole --no-browser --port {port}")[2]
    assert said == f"error: port: expected a free one, got {port}, which is in use; choose another one (--port)\n"
    random_world(spaces.MultiBinary(2)).save_pretrained(tmp_path / "binary")
    random_world().save_pretrained(tmp_path / "damaged")
    (weights,) = (tmp_path / "damaged").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8])
    for words, text in (
        ("play nowhere", "nowhere: expected a world model directory, a page, or an included world (cartpole)"),
        ("play --controller mine", "--controller: expected RUN, the world of the controller, got none"),
        ("play --trust-env", "--trust-env: expected RUN, the run that is trusted, got none"),
        ("play --port 70000", "port: expected at most 65535, got 70000"),
        ("play --port -1", "port"),
        ("play binary", "action_space: expected a Discrete of at most 10 actions"),
        ("play damaged", weights.name),
        ("export binary", "--onnx, --page: expected one of them, with the directory to write, got neither"),
        ("export binary --page a --onnx b", "--onnx, --page: expected one of them, with the directory to write, got both"),
        ("export binary --page a --no-decoder", "--no-decoder: expected with --onnx only"),
        ("export binary --page a", "action_space: expected a Discrete of at most 10 actions"),
        ("export damaged --page a", weights.name),
    ):
        code, _, said = run(f"{words} --no-browser" if words.startswith("play") else words)
        assert (code, said.count("\n")) == (2, 1), said
        assert text in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["binary", "damaged"]
    monkeypatch.setattr("worldmodel.runtime.extras.has_extra", lambda extra: False)
    assert "expected the extra play, which is not installed" in run("play")[2]


def test_the_page_that_was_written_is_described(tmp_path, run, monkeypatch):
    random_world().save_pretrained(tmp_path / "world")
    asked = []

    def export(world, directory, *, controller, card, overwrite):
        asked.append((directory, controller, card.licence, overwrite))
        return PageExport(directory=tmp_path / "page", errors={"step": 2e-7}, sizes={"step.onnx": 9}, total=14_500_000)

    monkeypatch.setattr("worldmodel.cli.export.export_page", export)
    code, printed, _ = run(f"export {tmp_path}/world --page {tmp_path}/page --licence mit --overwrite")
    assert (code, asked) == (0, [(f"{tmp_path}/page", None, "mit", True)])
    assert "step.onnx" in printed
    assert f"page: {tmp_path}/page, 14.5 MB" in printed
    assert f"python -m http.server --directory {tmp_path}/page" in printed
    code, printed, _ = run(f"export {tmp_path}/world --page {tmp_path}/page --json")
    assert json.loads(printed)["total_bytes"] == 14_500_000


def test_nothing_to_play_is_said(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("worldmodel.cli.play.included_worlds", list)
    assert "RUN: expected a world model directory, got none" in run("play --no-browser")[2]
    assert included_worlds()
