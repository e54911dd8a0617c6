"""Two minutes of the fault campaign, and tests that it finds faults."""

import os
from pathlib import Path

import pytest

from campaign import stages
from campaign.operations import FullFrom, KillAt, install
from campaign.report import KINDS, campaign, text
from campaign.trials import forked

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def test_a_process_reports_its_end():
    def fails():
        raise KeyError("here")

    assert forked(lambda: "fine") == forked(lambda: "fine")
    assert forked(fails).kind == "raw"
    assert forked(lambda: os._exit(3)).kind == "crash"
    assert forked(lambda: max(iter(lambda: 0, 1)), seconds=0.5).kind == "hang"


def test_operations_are_counted_killed_and_refused(tmp_path):
    def write() -> str:
        with open(tmp_path / "file", "wb") as file:
            file.write(b"0123456789")
        os.replace(tmp_path / "file", tmp_path / "other")
        return ""

    def disturbed(fault):
        return forked(lambda: install(fault) or write())

    assert disturbed(KillAt(2)).kind == "killed"
    assert (tmp_path / "file").read_bytes() == b"01234"
    assert disturbed(KillAt(4)).kind == "killed"
    assert (tmp_path / "file").read_bytes() == b"0123456789"
    assert "No space left" in disturbed(FullFrom(2)).text
    assert disturbed(KillAt(3)).kind == "killed"  # the close, which writes what is buffered
    assert disturbed(KillAt(5)).kind == "done"


def test_a_stage_that_loses_data_is_found(tmp_path, monkeypatch):
    def careless(inputs: Path, out: Path) -> None:
        if out.exists() and len(list(out.iterdir())) == 1:
            raise FileExistsError(f"{out}: holds something else")
        out.mkdir(exist_ok=True)
        for name in ("a", "b"):
            (out / name).write_text("1", encoding="utf-8")

    stage = stages.Stage(careless, lambda out: (out / "a").read_text("utf-8") + (out / "b").read_text("utf-8"))
    monkeypatch.setattr(stages, "make_inputs", lambda path: None)
    monkeypatch.setattr("campaign.report.make_inputs", lambda path: None)
    monkeypatch.setattr("campaign.interruptions.STAGES", {"careless": stage})
    _, findings = campaign(30, seed=0, work=tmp_path / "work", kinds=["kills"])
    assert any("holds something else" in one.problem for one in findings)


@pytest.mark.slow
def test_two_minutes_of_all_kinds_of_faults_find_nothing(tmp_path):
    counts, findings = campaign(120, seed=0, work=tmp_path / "work")
    print(text(counts, findings))
    assert findings == [], text(counts, findings)
    assert list(counts) == list(KINDS)
    assert min(counts.values()) > 0
