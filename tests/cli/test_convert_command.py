"""`worldmodel convert` and `worldmodel store inspect --plot`."""

import json

import numpy as np
import pytest
from recorded_files import bars, write_csv, write_lerobot, write_video

from worldmodel.data import EpisodeStore


def test_a_table_is_converted_and_what_was_assumed_is_printed(tmp_path, run):
    write_csv(tmp_path / "log.csv")
    code, out, err = run(f"convert {tmp_path / 'log.csv'} --out {tmp_path / 's'}")
    assert (code, err) == (0, "")
    for text in (
        "observation Dict",
        "gear      choice of 3: 0, 1, 2",
        "termination: done",
        "episodes  4",
        f"store: {tmp_path / 's'}",
    ):
        assert text in out
    code, out, _ = run(f"convert {tmp_path / 'log.csv'} --out {tmp_path / 's'} --json")
    assert json.loads(out)["fingerprint"] == EpisodeStore.open(tmp_path / "s").fingerprint


def test_options_name_columns_and_split(tmp_path, run):
    lines = write_csv(tmp_path / "log.csv")
    lines[10] = lines[10].replace(lines[10].split(",")[2], "")
    (tmp_path / "log.csv").write_text("\n".join(lines), encoding="utf-8")
    words = f"convert {tmp_path / 'log.csv'} --out {tmp_path / 's'} --episode run --observation position speed --reward reward"
    code, _, err = run(f"{words} --missing error")
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "line 11: expected a number in 'position', got none" in err
    assert run(f"{words} --missing split --max-steps 8 --dtype float32")[0] == 0
    store = EpisodeStore.open(tmp_path / "s")
    assert store.observation_space.shape == (2,)
    assert store.observation_space.dtype == np.float32
    assert store.lengths.max() == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("convert nothing.csv --out s", "nothing.csv: expected a file or a directory, got nothing"),
        ("convert log.csv --out s --time-unit minutes", "--time-unit: expected one of 's', 'ms', 'us', 'ns', got 'minutes'"),
        ("convert log.csv --out s --observation height", "expected a column 'height', got 'run', 'time'"),
        ("convert log.csv --out s --video front", "--video: expected different CAMERA=FILE"),
        ("convert --out s", "SOURCE: expected a file or a directory, got none"),
        ("convert odd.bin --out s", "odd.bin: expected a file that ends in one of .csv"),
    ],
)
def test_what_cannot_be_converted_is_one_line(tmp_path, run, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "log.csv")
    (tmp_path / "odd.bin").write_bytes(b"1")
    code, out, err = run(words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "s").exists()


def test_formats_are_found_by_name_or_content(tmp_path, run):
    pytest.importorskip("av", reason="needs worldmodel[formats]")
    pytest.importorskip("pyarrow", reason="needs worldmodel[formats]")
    write_lerobot(tmp_path / "lerobot")
    write_video(tmp_path / "film.mp4", bars(12))
    assert run(f"convert {tmp_path / 'lerobot'} --out {tmp_path / 'a'} --resize 16")[0] == 0
    assert EpisodeStore.open(tmp_path / "a").observation_space["images.front"].shape == (16, 16, 3)
    assert run(f"convert {tmp_path / 'film.mp4'} --out {tmp_path / 'b'}")[0] == 0
    assert EpisodeStore.open(tmp_path / "b").lengths.tolist() == [11]
    (tmp_path / "t.csv").write_text("action,x\n" + "0.5,1.5\n" * 12, encoding="utf-8")
    words = f"convert {tmp_path / 't.csv'} --video front={tmp_path / 'film.mp4'} wrist={tmp_path / 'film.mp4'}"
    assert run(f"{words} --out {tmp_path / 'c'}")[0] == 0
    assert sorted(EpisodeStore.open(tmp_path / "c").observation_space) == ["front", "wrist", "x"]


def test_a_store_goes_to_parquet_and_minari_and_comes_back(tmp_path, run, monkeypatch):
    pytest.importorskip("pyarrow", reason="needs worldmodel[formats]")
    pytest.importorskip("minari", reason="needs worldmodel[minari]")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    write_csv(tmp_path / "log.csv")
    run(f"convert {tmp_path / 'log.csv'} --out {tmp_path / 's'}")
    expected = EpisodeStore.open(tmp_path / "s").fingerprint
    for middle in (f"{tmp_path / 's.parquet'}", "minari:toy/log-v0"):
        assert run(f"convert {tmp_path / 's'} --out {middle}")[0] == 0
        out = tmp_path / f"back{len(middle)}"
        assert run(f"convert {middle} --out {out}")[0] == 0
        assert EpisodeStore.open(out).fingerprint == expected
    assert "expected a file that ends in .parquet" in run(f"convert {tmp_path / 's'} --out {tmp_path / 'x'}")[2]


def test_inspect_draws_and_describes_a_converted_store(tmp_path, run):
    pytest.importorskip("matplotlib", reason="needs worldmodel[plots]")
    write_csv(tmp_path / "log.csv")
    run(f"convert {tmp_path / 'log.csv'} --out {tmp_path / 's'}")
    code, out, _ = run(f"store inspect {tmp_path / 's'} --plot {tmp_path / 's.png'}")
    assert code == 0
    assert "gear      choice of 3: 0, 1, 2" in out
    assert "dropped the last action" in out
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(run(f"store inspect {tmp_path / 's'} --json")[1])["episodes"] == 4
