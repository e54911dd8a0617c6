"""``worldmodel export``: what it finds in a run, and one line for what cannot be exported."""

import pytest
import torch
from toy_worlds import random_world

from worldmodel.agents import Controller
from worldmodel.cli.export import find


def test_the_world_and_the_controller_of_a_run_are_found(tmp_path):
    world = random_world()
    world.save_pretrained(tmp_path / "world")
    assert find(str(tmp_path), None) == (str(tmp_path / "world"), None)
    assert find(str(tmp_path / "world"), None) == (str(tmp_path / "world"), None)
    Controller.for_world(world, generator=torch.Generator().manual_seed(0)).save_pretrained(tmp_path / "controller")
    assert find(str(tmp_path), None) == (str(tmp_path / "world"), str(tmp_path / "controller"))
    assert find(str(tmp_path), "mine")[1] == "mine"


def test_what_cannot_be_exported_is_one_line(tmp_path, run):
    pytest.importorskip("onnxscript", reason="needs worldmodel[onnx]")
    random_world().save_pretrained(tmp_path / "world")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    code, _, said = run(f"export {tmp_path}/world --onnx {tmp_path}/photos")
    assert (code, said.count("\n")) == (2, 1)
    assert "expected an empty directory, got one with other files" in said
    code, _, said = run(f"export {tmp_path}/photos --onnx {tmp_path}/out")
    assert (code, said.count("\n")) == (2, 1)
    assert "expected a world model directory" in said
    (weights,) = (tmp_path / "world").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8])
    code, _, said = run(f"export {tmp_path}/world --onnx {tmp_path}/out")
    assert (code, said.count("\n")) == (2, 1)
    assert weights.name in said
    assert not (tmp_path / "out").exists()
