"""Figures of what the programs do, and the pictures that commands leave."""

import json

import numpy as np
import pytest
from toy_data import walking_episode, write_store
from toy_worlds import random_world, walk_world

from worldmodel.cli import plots as command_plots
from worldmodel.dream import Scores
from worldmodel.evaluation import Evaluation, Probe
from worldmodel.plots import draw_components, draw_evaluation, draw_probe, draw_search, draw_training_run, save_figure


def scores(mean, number=20):
    return Scores(mean + np.arange(number) / number, np.full(number, 7))


def lines_of(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_a_training_has_a_panel_for_each_term(tmp_path):
    rows = [{"update": u, "train/loss": 1 / u, "train/nll_per_dim": 2 / u, "learning_rate": 1.0} for u in (10, 20, 30)]
    rows[1]["test/loss"] = 0.7
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    left, right = draw_training_run(tmp_path).axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("loss", "nll per dim")
    found = lines_of(left)
    np.testing.assert_allclose(found["training"], [(10, 0.1), (20, 0.05), (30, 1 / 30)])
    np.testing.assert_allclose(found["held out"], [(20, 0.7)])
    with pytest.raises(ValueError, match="expected the log of a training, got none"):
        draw_training_run(tmp_path / "none")


def test_a_search_draws_what_its_records_have():
    rows = [{"done": 1, "best": 3.0, "mean": 1.0}, {"done": 2, "best": 4.0, "mean": 2.0, "test": 2.5, "best_test": 2.5}]
    found = lines_of(draw_search(rows, unit="generation").axes[0])
    np.testing.assert_allclose(found["best candidate"], [(1, 3), (2, 4)])
    np.testing.assert_allclose(found["test of the centre"], [(2, 2.5)])


def test_an_evaluation_draws_all_returns_and_their_means():
    left, right = draw_evaluation(Evaluation(scores(3.0), scores(5.0), scores(1.0), 1.2)).axes
    found = lines_of(left)
    assert set(found) == {"dream (temperature 1.2)", "reality", "random in reality"}
    assert found["reality"][-1].tolist() == [3.95, 1.0]
    assert [text.get_text() for text in right.get_xticklabels()] == [
        "dream\n(temperature 1.2)",
        "reality",
        "random\nin reality",
    ]


def test_a_probe_draws_a_panel_for_each_temperature(tmp_path):
    names = ("still", "left", "right")
    real = {name: scores(k) for k, name in enumerate(names)}
    probe = Probe(real, {tau: {name: scores(tau * k) for k, name in enumerate(names)} for tau in (0.5, 1.0)})
    figure = draw_probe(probe)
    assert [axes.get_title() for axes in figure.axes] == [
        "temperature 0.5, rank correlation 1.00",
        "temperature 1, rank correlation 1.00",
    ]
    save_figure(figure, tmp_path / "probe.png")
    assert (tmp_path / "probe.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("noise_type", ["diagonal", "full"])
def test_the_components_of_a_density_add_up_to_it(noise_type):
    axes = draw_components(random_world(noise_type=noise_type, num_components=3)).axes
    for panel in axes:
        total, *parts = [line.get_ydata() for line in panel.get_lines() if len(line.get_ydata()) > 2]
        np.testing.assert_allclose(total, np.sum(parts, axis=0), rtol=0.1)
        step = np.diff(panel.get_lines()[0].get_xdata()).mean()
        assert 0.9 < total.sum() * step < 1.1


# Pictures of the commands


@pytest.fixture
def trained(tmp_path, run):
    store = write_store(tmp_path / "data", [walking_episode(k, 20) for k in range(12)])

    def call(*options):
        small = ["--hidden-size", "8", "--num-updates", "12", "--evaluate-every", "6", "--device", "cpu"]
        return run(["train-mdnrnn", "--data", str(store.path), "--out", str(tmp_path / "m"), *small, *options])

    return call


def test_a_training_leaves_its_pictures(trained, tmp_path):
    code, out, _ = trained()
    assert code == 0
    for name in ("curves.png", "components.png"):
        assert f"picture: {tmp_path / 'm' / 'training' / name}" in out
        assert (tmp_path / "m" / "training" / name).read_bytes()[:4] == b"\x89PNG"
    assert trained("--overwrite")[0] == 0  # the pictures are its own


def test_no_picture_without_matplotlib_or_with_no_plots(trained, tmp_path, monkeypatch):
    assert "picture: " not in trained("--no-plots")[1]
    monkeypatch.setattr(command_plots, "has_extra", lambda extra: False)
    code, out, _ = trained("--overwrite")
    assert code == 0
    assert "picture: none, as matplotlib is not installed (the extra plots)" in out
    assert not list((tmp_path / "m").rglob("*.png"))


def test_searches_leave_a_picture_that_a_resumed_search_continues(tmp_path, run):
    walk_world().save_pretrained(tmp_path / "world")
    words = ["train-controller", "--model", str(tmp_path / "world"), "--out", str(tmp_path / "c"), "--horizon", "10"]
    small = ["--population", "4", "--rollouts", "2", "--generations", "3", "--test-dreams", "8", "--device", "cpu"]
    code, out, _ = run([*words, *small])
    assert code == 0
    assert f"picture: {tmp_path / 'c.search.png'}" in out
    rows = [json.loads(line) for line in (tmp_path / "c.search.jsonl").read_text().splitlines()]
    assert [row["done"] for row in rows] == [1, 2, 3]
    (tmp_path / "c.search.jsonl").write_text((tmp_path / "c.search.jsonl").read_text() + "[[[\n{}\n")
    assert run([*words, *small])[0] == 0  # damaged lines are no obstacle
