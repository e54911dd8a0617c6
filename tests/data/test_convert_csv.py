"""CSV files to stores: what is found, what is assumed, bad rows by file and line, memory, and interruptions."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from gymnasium import spaces
from recorded_files import write_csv

from worldmodel.data import Columns, ConversionConfig, EpisodeStore, describe_conversion, from_csv
from worldmodel.data.formats import csv_files

RUN = Columns(episode="run")


def test_a_table_becomes_episodes_of_vectors_and_choices(tmp_path):
    lines = write_csv(tmp_path / "log.csv")
    store = from_csv(tmp_path / "log.csv", tmp_path / "s")
    table = np.array([[float(cell) for cell in line.split(",")] for line in lines[1:]])
    assert store.lengths.tolist() == [19] * 4
    assert store.episode_ids.tolist() == [0, 1, 2, 3]
    episode, rows = store.read(2), table[table[:, 0] == 2]
    np.testing.assert_array_equal(episode.observations["state"], rows[:, 2:4])
    np.testing.assert_array_equal(episode.observations["gear"], rows[:, 4])
    np.testing.assert_array_equal(episode.actions, rows[:-1, 5:6])
    np.testing.assert_array_equal(episode.rewards, rows[:-1, 6])
    assert episode.terminations.tolist() == [False] * 18 + [True]
    said = describe_conversion(store)
    for text in (
        "episode: run",
        "termination: done",
        "time: time",
        "gear      choice of 3: 0, 1, 2",
        "dropped the last action",
    ):
        assert text in said


@pytest.mark.parametrize("size", [50, 700, 10**6])
def test_the_size_of_the_pieces_that_are_read_changes_nothing(tmp_path, monkeypatch, size):
    write_csv(tmp_path / "log.csv")
    expected = from_csv(tmp_path / "log.csv", tmp_path / "s").fingerprint
    monkeypatch.setattr(csv_files, "CHUNK_BYTES", size)
    assert from_csv(tmp_path / "log.csv", tmp_path / "t").fingerprint == expected


@pytest.mark.parametrize("form", ["quotes", "semicolons", "blank lines", "Windows", "byte order mark", "text"])
def test_other_ways_to_write_the_same_table_give_the_same_store(tmp_path, form):
    write_csv(tmp_path / "log.csv")
    expected = from_csv(tmp_path / "log.csv", tmp_path / "s").fingerprint
    text = (tmp_path / "log.csv").read_text(encoding="utf-8")
    lines = text.splitlines()
    changed = {
        "quotes": "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in lines),
        "semicolons": text.replace(",", ";"),
        "blank lines": text.replace("\n", "\n\n"),
        "Windows": text.replace("\n", "\r\n"),
        "byte order mark": "\ufeff" + text,
        "text": "\n".join([lines[0], *(line[:-1] + ("true" if line[-1] == "1" else "false") for line in lines[1:])]),
    }[form]
    (tmp_path / "other.csv").write_text(changed, encoding="utf-8", newline="")
    assert from_csv(tmp_path / "other.csv", tmp_path / "t").fingerprint == expected


def test_each_file_of_a_directory_begins_an_episode_in_natural_order(tmp_path):
    (tmp_path / "logs").mkdir()
    for number in (2, 10, 1):
        (tmp_path / "logs" / f"run{number}.csv").write_text("x,y\n" + f"{number}.5,0.5\n" * 3, encoding="utf-8")
    store = from_csv(tmp_path / "logs", tmp_path / "s")
    assert [e.observations[0, 0] for e in store] == [1.5, 2.5, 10.5]


def test_many_files_are_identified_by_their_number_size_and_checksum(tmp_path, monkeypatch):
    monkeypatch.setattr("worldmodel.data.formats.files.MOST_FILES", 2)
    (tmp_path / "logs").mkdir()
    for number in range(3):
        (tmp_path / "logs" / f"{number}.csv").write_text("x,y\n1.5,0.5\n2.5,0.5\n", encoding="utf-8")
    assert from_csv(tmp_path / "logs", tmp_path / "s").recipe["conversion"]["arguments"]["source"][:2] == [3, 60]
    (tmp_path / "logs" / "1.csv").write_text("x,y\n1.5,0.5\n2.5,0.6\n", encoding="utf-8")
    with pytest.raises(FileExistsError, match="expected source"):
        from_csv(tmp_path / "logs", tmp_path / "s")


def test_episodes_may_have_names_and_times_may_be_dates(tmp_path):
    rows = [f"{name},2026-05-01T12:00:{s:02d}.250,{s}.5" for name in ("walk", "7", "run") for s in (1, 2, 3, 9, 10)]
    (tmp_path / "log.csv").write_text("trial,time,x\n" + "\n".join(rows), encoding="utf-8")
    store = from_csv(tmp_path / "log.csv", tmp_path / "s", config=ConversionConfig(max_gap=5.0))
    assert store.lengths.tolist() == [2, 1] * 3


def test_the_last_row_may_lack_action_and_reward(tmp_path):
    (tmp_path / "log.csv").write_text("x,action,reward\n0.5,1.5,2\n1.5,2.5,3\n2.5,,\n", encoding="utf-8")
    store = from_csv(tmp_path / "log.csv", tmp_path / "s")
    assert store.read(0).actions.tolist() == [[1.5], [2.5]]
    assert "dropped" not in describe_conversion(store)


def changed(row, column, value):
    def change(lines):
        cells = lines[row].split(",")
        cells[column] = value
        lines[row] = ",".join(cells)

    return change


BAD = {
    "text": (changed(10, 2, "abc"), "line 11: expected a number in 'position', got 'abc'"),
    "infinity": (changed(10, 2, "inf"), "line 11: expected finite numbers in 'position', got inf"),
    "repeated time": (changed(10, 1, "0.8"), "line 11: expected ascending times in 'time', got a repeated time"),
    "unsorted time": (changed(10, 1, "0.3"), "line 11: expected ascending times in 'time', got 0.3 after 0.8"),
    "bad date": (changed(10, 1, "noon"), "line 11: expected a number or a date .* got 'noon'"),
    "a word for a date": (changed(10, 1, "today"), "line 11: expected a number or a date .* got 'today'"),
    "no time": (changed(10, 1, "NaT"), "line 11: expected a number or a date .* got 'NaT'"),
    "a date among numbers": (changed(10, 1, "2026-05-01"), "line 11: expected a number in 'time', as in the lines before"),
    "a number of Python": (changed(10, 2, "1_000"), "line 11: expected a number in 'position', got '1_000'"),
    "a cell too many": (lambda lines: lines.__setitem__(-1, lines[-1] + ",7"), r"line 81: expected 8 cells, got 9$"),
    "half an episode": (changed(10, 0, "0.5"), r"line 11: expected the name of an episode in 'run', .* got 0\.5$"),
    "other episode": (changed(10, 0, "9"), "line 12: .* got run 0 again"),
    "early end": (changed(10, 7, "1"), "line 11: expected termination and truncation only in the last row"),
    "half an end": (changed(10, 7, "0.5"), "line 11: expected 0 or 1 in 'done', got 0.5"),
    "missing cell": (lambda lines: lines.__setitem__(30, "1,2,3"), "line 31: expected 8 cells, got 3"),
    "cut short": (lambda lines: lines.__setitem__(-1, lines[-1][:20]), "line 81: .* got 4; the file may be cut short"),
    "missing column": (changed(0, 0, "rum"), "expected a column 'run', got 'rum', 'time'"),
    "two columns of a name": (changed(0, 7, "gear"), "line 1: expected a header with different names"),
    "no header": (lambda lines: lines.__delitem__(0), "line 1: expected a header"),
    "no rows": (lambda lines: lines.__delitem__(slice(1, None)), "expected at least one episode"),
    "one row": (lambda lines: lines.__delitem__(slice(2, 21)), "line 2: expected at least two rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_and_nothing_is_written(tmp_path, name):
    change, message = BAD[name]
    lines = write_csv(tmp_path / "log.csv")
    change(lines)
    (tmp_path / "log.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"log\.csv.*{message}") as raised:
        from_csv(tmp_path / "log.csv", tmp_path / "s", columns=RUN)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_an_unknown_unit_of_time_is_refused():
    with pytest.raises(ValueError, match="time_unit: expected one of s, ms, us, ns, got 'minutes'"):
        ConversionConfig(time_unit="minutes")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"x,y\n1,2\n\xff\xfe,3\n")
    with pytest.raises(ValueError, match="expected text in UTF-8"):
        from_csv(tmp_path / "log.csv", tmp_path / "s")


def test_a_test_set_takes_the_spaces_of_another_conversion(tmp_path):
    write_csv(tmp_path / "may.csv")
    write_csv(tmp_path / "june.csv", steps=7)
    may = from_csv(tmp_path / "may.csv", tmp_path / "may")
    assert from_csv(tmp_path / "june.csv", tmp_path / "other").action_space != may.action_space
    june = from_csv(tmp_path / "june.csv", tmp_path / "june", config=ConversionConfig(like=tmp_path / "may"))
    assert (june.observation_space, june.action_space) == (may.observation_space, may.action_space)


def test_a_choice_that_the_spaces_lack_is_refused_and_nothing_is_left(tmp_path):
    lines = write_csv(tmp_path / "may.csv")
    from_csv(tmp_path / "may.csv", tmp_path / "may")
    changed(50, 4, "7")(lines)
    (tmp_path / "june.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"episode 2 observations gear: expected a value of .*, got 7"):
        from_csv(tmp_path / "june.csv", tmp_path / "june", config=ConversionConfig(like=tmp_path / "may"))
    assert not (tmp_path / "june").exists()


def test_a_column_with_a_single_fraction_is_of_real_numbers(tmp_path):
    rows = ["0,1,4", "0,2.5,5", "1,3,6", "1,4,7"]
    (tmp_path / "log.csv").write_text("episode,x,y\n" + "\n".join(rows), encoding="utf-8")
    store = from_csv(tmp_path / "log.csv", tmp_path / "s")
    assert store.observation_space["x"].dtype == np.float64
    assert store.observation_space["y"] == spaces.Discrete(4, start=4)


def test_a_killed_conversion_is_continued_to_the_same_store(tmp_path):
    write_csv(tmp_path / "log.csv", episodes=200)
    expected = from_csv(tmp_path / "log.csv", tmp_path / "whole")
    code = """if True:
    import os, signal, sys
    from worldmodel.data import from_csv
    from worldmodel.data.formats import conversion
    from worldmodel.data.store import EpisodeStore
    conversion.SHARD_BYTES = 4096
    append, calls = EpisodeStore.append, []
    def counted(self, episodes):
        append(self, episodes)
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    EpisodeStore.append = counted
    from_csv(sys.argv[1], sys.argv[2])
    """
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "log.csv", tmp_path / "s"], env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    part = EpisodeStore.open(tmp_path / "s")
    assert 0 < len(part) < len(expected)
    assert "interrupted" in part.unfinished
    store = from_csv(tmp_path / "log.csv", tmp_path / "s")
    assert store.fingerprint == expected.fingerprint
    assert store.unfinished is None


def test_a_complete_conversion_is_returned_as_it_is(tmp_path, monkeypatch):
    write_csv(tmp_path / "log.csv")
    first = from_csv(tmp_path / "log.csv", tmp_path / "s")
    monkeypatch.setattr(csv_files.CsvSource, "pieces", None)
    assert from_csv(tmp_path / "log.csv", tmp_path / "s").fingerprint == first.fingerprint
