"""How a run was made, in run.json."""

import json

import pytest
from toy_data import labelled_episode, write_store

import worldmodel as wm
from worldmodel.runtime import RunConfig, provenance, read_runs, record_run

SMALL = {
    "config": wm.MDNRNNConfig(hidden_size=4, num_components=2),
    "data_config": wm.DataConfig(window=4, batch_size=4),
    "training_config": wm.TrainingConfig(num_updates=2, evaluate_every=2),
}


def test_a_run_records_command_versions_commit_and_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance.sys, "argv", ["/usr/bin/worldmodel", "collect", "--out", "a b"])
    wm.collect("CartPole-v1", out=tmp_path / "data", num_episodes=2)
    (call,) = read_runs(tmp_path / "data")
    assert call["command"] == "worldmodel collect --out 'a b'"
    assert {"python", "worldmodel", "torch", "gymnasium"} <= set(call["versions"])
    assert call["machine"]["cores"] >= 1
    assert "commit" in call


def test_a_call_from_the_same_place_is_recorded_once_and_another_one_is_added(tmp_path, monkeypatch):
    for _ in range(2):
        record_run(tmp_path)
    assert len(read_runs(tmp_path)) == 1
    monkeypatch.setattr(provenance.sys, "argv", ["other"])
    record_run(tmp_path)
    assert [call["command"] for call in read_runs(tmp_path)][1:] == ["other"]


@pytest.mark.filterwarnings("ignore:.*expected at least 20 episodes")  # so few are meant
def test_a_fit_records_itself_and_starts_again_with_overwrite(tmp_path):
    write_store(tmp_path / "data", [labelled_episode(number, 6) for number in range(6)])
    for _ in range(2):
        wm.fit(tmp_path / "data", out=tmp_path / "world", run=RunConfig(overwrite=True), **SMALL)
    assert len(read_runs(tmp_path / "world")) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": "other"}'])
def test_a_damaged_record_never_stops_a_run(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    assert read_runs(tmp_path) == []
    record_run(tmp_path)
    assert len(json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["calls"]) == 1


def test_a_directory_with_nothing_but_a_record_is_empty(tmp_path):
    record_run(tmp_path)
    assert len(wm.collect("CartPole-v1", out=tmp_path, num_episodes=1)) == 1
