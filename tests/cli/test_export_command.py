"""``worldmodel export``: what it finds in a run, and one line for what cannot be exported."""

import json
from pathlib import Path

import pytest
import torch
from toy_worlds import random_world

from worldmodel.agents import Controller
from worldmodel.cli.export import Export, scores_text
from worldmodel.play import parts_of_run
from worldmodel.runtime import command_line, record_run


def test_the_world_and_the_controller_of_a_run_are_found(tmp_path):
    world, run = random_world(), tmp_path / "round-2"
    world.save_pretrained(run / "world")
    assert parts_of_run(str(run)) == (run / "world", None)
    assert parts_of_run(str(run / "world")) == (run / "world", None)
    Controller.for_world(world, generator=torch.Generator().manual_seed(0)).save_pretrained(run / "controller")
    assert parts_of_run(str(run)) == (run / "world", run / "controller")
    assert parts_of_run(str(run), "mine") == (run / "world", Path("mine"))
    assert parts_of_run(str(tmp_path)) == (tmp_path, None)
    (tmp_path / "summary.json").write_text('{"best_round": 2}')
    assert parts_of_run(str(tmp_path)) == (run / "world", run / "controller")  # the best round of a loop
    for other in ('{"best_round": 3}', '{"best_round": null}', "{}", "[]", "{"):
        (tmp_path / "summary.json").write_text(other)
        assert parts_of_run(str(tmp_path)) == (tmp_path, None)


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


def test_the_card_of_a_page_names_the_command_the_scores_and_the_licence(tmp_path):
    world = random_world()
    world.save_pretrained(tmp_path / "round-1" / "world")
    record_run(tmp_path / "round-1" / "world")
    scores = {"mean": 2.0, "std": 1.0, "standard_error": 1.0, "returns": [1.0, 3.0], "lengths": [1, 3]}
    (tmp_path / "round-1" / "scores.json").write_text(json.dumps({"real": scores, "seconds": {}}), encoding="utf-8")
    (tmp_path / "other.json").write_text(json.dumps({"random": scores}), encoding="utf-8")
    card = Export(run_directory="unused", licence="mit").card(world, tmp_path / "round-1" / "world")
    assert card.licence == "mit"
    assert card.facts["command"] == f"`{command_line()}`"
    assert card.scores.splitlines()[1:] == ["real   2.0 +- 1.0 (2 episodes, standard error 1.0)"]
    other = Export(run_directory="unused", scores=str(tmp_path / "other.json")).card(world, tmp_path / "round-1" / "world")
    assert (other.scores.splitlines()[1][:6], other.licence) == ("random", "unknown")
    for content in ('{"real": 1}', "[]", "{}"):
        (tmp_path / "other.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"other\.json: expected"):
            scores_text(tmp_path / "other.json")
