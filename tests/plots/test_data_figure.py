"""The figure of a store."""

from dataclasses import replace

import numpy as np
import pytest
from toy_data import walking_episode, write_store

from worldmodel.data import EpisodeStore, from_arrays, summarise_store
from worldmodel.evaluation import OpenLoop
from worldmodel.plots import draw_open_loop, draw_store


def mixed_store(path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 30, 12)
    observations = {
        "front": [rng.integers(0, 255, (n + 1, 16, 16, 3), dtype=np.uint8) for n in lengths],
        "wrist": [rng.integers(0, 255, (n + 1, 16, 12), dtype=np.uint8) for n in lengths],
        "q": [rng.normal(size=(n + 1, 30)) for n in lengths],
        "gear": [rng.integers(0, 3, n + 1) for n in lengths],
        "mass": [np.full(n + 1, 1.5) for n in lengths],
        "speed": [rng.normal(size=n + 1) for n in lengths],
        "level": [rng.choice([0.5, 1.5], n + 1) for n in lengths],
    }
    ends = [np.arange(n) == (n - 1 if n % 2 else -1) for n in lengths]
    actions = [rng.normal(size=(n, 6)) for n in lengths]
    return from_arrays(observations, actions, [rng.normal(size=n) for n in lengths], out=path, terminations=ends)


def test_a_summary_has_lengths_rewards_ends_kinds_and_frames(tmp_path):
    store = mixed_store(tmp_path / "s")
    found = summarise_store(store)
    assert found.lengths.tolist() == store.lengths.tolist()
    assert len(found.rewards) == store.num_steps
    assert found.ends == {
        "terminated": int((store.lengths % 2).sum()),
        "truncated": int((store.lengths % 2 == 0).sum()),
        "no end": 0,
    }
    kinds = {number.name: number.found["kind"] for number in found.observation}
    assert (kinds["gear"], kinds["mass"], kinds["speed"], kinds["q[29]"]) == ("choice", "constant", "real", "real")
    assert kinds["level"] == "real, few values"
    assert {name: frames.shape for name, frames in found.frames.items()} == {"front": (10, 16, 16, 3), "wrist": (10, 16, 12, 3)}
    assert summarise_store(store, num_episodes=3).num_sampled == 3


def test_the_figure_names_constants_choices_and_gaps_and_has_a_strip_of_frames_for_each_camera(tmp_path):
    figure = draw_store(mixed_store(tmp_path / "s"))
    lengths, rewards, actions, ends, ranges, notes, *strips = figure.axes
    assert lengths.get_title().startswith("12 episodes")
    assert "returns" in rewards.get_title()
    assert actions.get_title() == "actions; 2 more"
    assert [label.get_text() for label in ends.get_xticklabels()] == ["terminated", "truncated", "no end"]
    labels = [label.get_text() for label in ranges.get_yticklabels()]
    assert "gear: choice of 3: 0, 1, 2" in labels
    assert "10 more" in ranges.get_title(loc="left")
    assert "constant: mass" in notes.texts[0].get_text()
    assert "perhaps choices: level" in notes.texts[0].get_text()
    assert [axes.get_title(loc="left") for axes in strips] == ["front", "wrist"]
    figure.draw_without_rendering()


def test_the_figure_of_a_store_without_actions_and_rewards_says_so(tmp_path):
    figure = draw_store(from_arrays(np.arange(20.0)[:, None], out=tmp_path / "s"))
    assert [axes.texts[0].get_text() for axes in figure.axes[1:3]] == ["none recorded"] * 2


def test_missing_episodes_are_counted(tmp_path):
    store = write_store(tmp_path / "s", [walking_episode(number, 5) for number in (0, 1, 5)])
    assert "3 episodes are missing between 0 and 5" in draw_store(store).axes[5].texts[0].get_text()


def test_an_empty_store_is_refused(tmp_path):
    store = mixed_store(tmp_path / "s")
    empty = EpisodeStore.create(tmp_path / "e", observation_space=store.observation_space, action_space=store.action_space)
    with pytest.raises(ValueError, match="expected at least one episode, got none"):
        summarise_store(empty)


def test_the_figure_of_forecasts_has_a_panel_for_each_score():
    line = np.linspace(0.1, 1, 5)
    options = {"error": line, "crps": line / 2, "coverage": np.full(5, 0.88), "nominal": 0.9}
    options |= {"repeat_last_error": 2 * line, "repeat_last_crps": line, "crps_by_number": {}, "num_forecasts": 3}
    result = OpenLoop(**options, choice_error=line / 9, repeat_last_choice_error=line / 3)
    figure = draw_open_loop(result)
    titles = ["root mean squared error", "CRPS", "wrong choices, share", "share within the interval"]
    assert [axes.get_title() for axes in figure.axes] == titles
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), line / 2)
    assert len(draw_open_loop(replace(result, choice_error=None)).axes) == 3
