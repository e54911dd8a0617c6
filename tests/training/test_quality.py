"""Trainings that end in a bad state say so."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import worldmodel as wm
from worldmodel.models import MDNRNN, MDNRNNConfig, SequenceBatch
from worldmodel.training import TrainingQualityWarning, TrainingResult, quality

GOOD = TrainingResult(updates=1000, best_update=900, best_metrics={"nll_per_dim": 0.5}, seconds=1.0)


@pytest.mark.parametrize(
    ("in_use", "size", "bad"), [(0, 8, True), (1, 8, False), (3, 32, True), (4, 32, False), (0, 1, True), (1, 1, False)]
)
def test_a_v_with_few_latents_in_use_has_collapsed(in_use, size, bad):
    found = quality.vision_problems(in_use, size)
    assert bool(found) == bad
    if bad:
        assert f"{in_use} of {size} latents" in found[0]


def test_latents_in_use_are_those_whose_mean_varies_more_than_a_hundredth_of_the_total():
    mean = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.3, 0.01, 0.0])
    log_variance = torch.tensor([-3.0, 0.0, 0.0, 0.0]).expand(5000, 4)
    assert quality.latents_in_use(mean, log_variance) == 2


@pytest.mark.parametrize(("own", "linear", "bad"), [(1.0, 0.5, True), (0.5, 0.5, False), (0.505, 0.5, False)])
def test_an_m_worse_than_a_linear_gaussian_is_told(own, linear, bad):
    assert bool(quality.model_problems({"nll_per_dim": own}, {"linear_gaussian": linear})) == bad
    assert quality.model_problems({"nll_per_dim": own}, {}) == []


@pytest.mark.parametrize(("best", "updates", "bad"), [(200, 1000, True), (400, 1000, False), (200, 400, False)])
def test_a_loss_that_rises_from_the_first_evaluation_on_is_told(best, updates, bad):
    result = TrainingResult(updates=updates, best_update=best, best_metrics={}, seconds=1.0)
    assert bool(quality.loss_problems(result, evaluate_every=200)) == bad


@pytest.mark.parametrize(("bias", "bad"), [(-2.1972, False), (-8.0, True), (3.0, True)])
def test_a_termination_head_worse_than_the_base_rate_is_told(bias, bad):
    model = MDNRNN(2, 1, MDNRNNConfig(hidden_size=3)).eval()
    with torch.no_grad():
        model.termination_head.weight.zero_()
        model.termination_head.bias.fill_(bias)
    ended = torch.arange(400).reshape(4, 100) % 10 == 0  # a rate of 0.1, log-odds -2.197
    batch = SequenceBatch(
        z=torch.zeros(4, 101, 2), action=torch.zeros(4, 100, 1), reward=torch.zeros(4, 100), terminated=ended,
        mask=torch.ones(4, 100, dtype=torch.bool),
    )  # fmt: skip
    assert bool(quality.termination_problems(model, [batch])) == bad


@pytest.mark.parametrize(("updates", "held_out", "judged"), [(199, True, False), (200, True, True), (200, False, False)])
def test_short_trainings_and_those_without_held_out_data_are_not_judged(updates, held_out, judged):
    assert quality.judge(TrainingResult(updates, updates, {}, 1.0), held_out=held_out) == judged


def bad_fit(path, **training):
    wm.collect("CartPole-v1", out=path / "data", num_episodes=20, seed=0)
    config = wm.TrainingConfig(num_updates=200, evaluate_every=100, learning_rate=1e-6, final_learning_rate=1e-7, **training)
    small = wm.MDNRNNConfig(hidden_size=4, num_components=1)
    return wm.fit(path / "data", out=path / "world", config=small, training_config=config)


def test_a_bad_fit_warns_and_its_directory_keeps_the_warning(tmp_path):
    with pytest.warns(TrainingQualityWarning, match=r"M predicts worse than a linear Gaussian: .* see docs/"):
        world = bad_fit(tmp_path)
    (message,) = [one for one in world.provenance["warnings"] if "linear Gaussian" in one]
    assert f"{world.provenance['training']['best_metrics']['nll_per_dim']:.3f}" in message
    assert wm.WorldModel.from_pretrained(tmp_path / "world").provenance["warnings"] == world.provenance["warnings"]


def test_a_good_fit_says_nothing(tmp_path):
    wm.collect("CartPole-v1", out=tmp_path / "data", num_episodes=100, seed=0)
    config = wm.TrainingConfig(num_updates=600, learning_rate=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainingQualityWarning)
        world = wm.fit(tmp_path / "data", out=tmp_path / "world", training_config=config)
    assert "warnings" not in world.provenance


def test_a_program_prints_warnings_on_one_line():
    code = (
        "import warnings\nfrom worldmodel.cli import main\n"
        "warnings.showwarning = main.show_warning\nwarnings.warn('two\\n lines')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "warning: two lines\n"


def test_the_pages_that_warnings_name_exist():
    from pathlib import Path

    root = Path(__file__).parents[2]
    for message in (*quality.vision_problems(0, 8), *quality.model_problems({"nll_per_dim": 1.0}, {"linear_gaussian": 0.0})):
        page = message.rpartition("see ")[2]
        assert (root / page).is_file(), page
    assert np.isfinite(quality.MARGIN)
