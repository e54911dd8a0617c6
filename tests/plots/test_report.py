"""The figure of a report, and the quickstart script."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from toy_data import walking_episode
from toy_worlds import walk_world

import worldmodel as wm
from worldmodel.data import rollouts
from worldmodel.plots import draw_report, draw_trajectory, save_figure

ROOT = Path(__file__).parents[2]
SMALL = {"max_rounds": 2, "first_episodes": 6, "controller_episodes": 3, "rollouts": 2}


@pytest.mark.parametrize("test_fraction", [0.2, 0.0])
def test_the_figure_shows_every_round_and_the_real_episode(tmp_path, test_fraction):
    config = wm.IterationConfig(
        **SMALL,
        mdnrnn=wm.MDNRNNConfig(hidden_size=4, num_components=2),
        data_config=wm.DataConfig(window=8, batch_size=8, test_fraction=test_fraction),
        training_config=wm.TrainingConfig(num_updates=20, evaluate_every=10),
        search=wm.SearchConfig(population=4, generations=2, test_dreams=4),
        validation_episodes=2,
        test_episodes=2,
    )
    rounds = wm.iterate(
        wm.EnvConfig("CartPole-v1", kwargs={"max_episode_steps": 12}), out=tmp_path / "loop", config=config, seed=1
    )
    (episode,) = rollouts("CartPole-v1", "random", episode_ids=[0], seed=9)
    figure = draw_report(rounds, episode, target=10.0, horizon=6)
    training, *trajectory, scores = figure.axes
    labels = [text.get_text() for text in training.get_legend().get_texts()]
    assert {"round 1, training", "round 2, training", "repeat last", "linear gaussian"} <= set(labels)
    held_out = next(line for line in training.lines if line.get_label() == "round 1, held out")
    assert list(held_out.get_xdata()) == ([10, 20] if test_fraction else [])
    for dimension, panel in enumerate(trajectory):
        real = next(line for line in panel.lines if line.get_label() == "reality")
        np.testing.assert_allclose(real.get_ydata(), episode.observations[:7, dimension], atol=1e-5)
    assert [text.get_text() for text in scores.texts] == ["round 1", "round 2"]
    save_figure(figure, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_dreams_are_drawn_until_they_end_and_reality_to_its_end():
    world = walk_world()
    with torch.no_grad():
        world.mdnrnn.termination_head.weight.zero_()
        world.mdnrnn.termination_head.bias.fill_(50.0)  # every dream ends with its first step
    figure, panels = plt.subplots(2)
    episode = walking_episode(0, 30)
    draw_trajectory(panels, world, episode, horizon=20, seed=0)
    for dimension, panel in enumerate(panels):
        lines = {line.get_label(): np.asarray(line.get_ydata(), dtype=float) for line in panel.lines}
        np.testing.assert_allclose(lines["reality"], episode.observations[:21, dimension], atol=1e-5)
        assert np.isfinite(lines["dream at temperature 0"]).sum() == 2
        (band,) = panel.collections
        assert band.get_paths()[0].vertices[:, 0].max() == 1
    plt.close(figure)


@pytest.mark.slow
def test_the_quickstart_reaches_its_target_and_writes_the_documented_files(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "quickstart.py"), "--seed", "0", "--out", "out"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "real score" in result.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    best = summary["rounds"][summary["best_round"] - 1]
    assert len(best["real"]["returns"]) == 100
    assert best["real"]["mean"] >= 475
    assert (tmp_path / "out" / "report.png").stat().st_size > 10_000
    assert wm.WorldModel.from_pretrained(tmp_path / summary["world_model"]).mdnrnn.config.hidden_size == 64
