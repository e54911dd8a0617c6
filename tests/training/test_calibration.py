"""Calibration of the termination head: the fitted scale and shift, and the scores before and after."""

import dataclasses
import math

import pytest
import torch

from worldmodel.models import MDNRNN, MDNRNNConfig, SequenceBatch
from worldmodel.training import calibrate_termination, platt_scaling, termination_logits, termination_scores

N = 200_000


def draw(a, b, seed=0):
    """Sample log-odds x and terminations with the log-odds a x + b."""
    g = torch.Generator().manual_seed(seed)
    x = -3 + 2 * torch.randn(N, generator=g, dtype=torch.float64)
    return x, (torch.rand(N, generator=g, dtype=torch.float64) < (a * x + b).sigmoid()).double()


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.3, -2.0), (1.5, 2.3), (1.0, -math.log(10))])
def test_platt_scaling_finds_scale_and_shift(a, b):
    found = platt_scaling(*draw(a, b))
    assert found == pytest.approx((a, b), abs=0.06)


def test_the_scale_stays_positive_where_the_head_is_wrong():
    scale, _ = platt_scaling(*draw(-1.0, -2.0))
    assert 0 < scale < 0.01


def test_perfectly_separable_terminations_give_finite_numbers():
    x = torch.linspace(-1, 1, 100, dtype=torch.float64)
    scale, shift = platt_scaling(x, (x > 0.5).double())
    assert 1 < scale < 1e4
    assert math.isfinite(shift)


def test_scores_are_their_definitions():
    logits = torch.tensor([0.0, math.log(3), -math.log(3), math.log(3)], dtype=torch.float64)
    scores = termination_scores(logits, torch.tensor([1.0, 1, 1, 0], dtype=torch.float64))
    assert scores == pytest.approx(
        {
            "nll": (math.log(2) + math.log(4 / 3) + 2 * math.log(4)) / 4,
            "brier": (0.25 + 0.0625 + 2 * 0.5625) / 4,
            "recall": 1 / 3,
            "expected": 2.25,
            "observed": 3,
        }
    )


def make_model_and_batch(batch_size=200, steps=50, distort=(4.0, 8.0)):
    """Sample terminations with the log-odds 2 z_0 - 3 and a head with a wrong scale and shift, ``distort``."""
    torch.manual_seed(0)
    model = MDNRNN(2, 1, MDNRNNConfig(hidden_size=4)).eval()
    z = torch.randn(batch_size, steps + 1, 2)
    true = 2 * z[:, :-1, 0] - 3
    mask = torch.rand(batch_size, steps) < 0.8
    zeros = torch.zeros(batch_size, steps)
    with torch.no_grad():
        model.termination_head.weight.zero_()[0, 4] = 2 * distort[0]
        model.termination_head.bias.fill_(-3 * distort[0] + distort[1])
    return model, SequenceBatch(z, zeros.unsqueeze(-1), zeros, torch.rand(batch_size, steps) < true.sigmoid(), mask)


def test_calibration_fixes_a_distorted_head_and_changes_nothing_else():
    model, batch = make_model_and_batch()
    others = {name: value.clone() for name, value in model.state_dict().items() if "termination" not in name}
    report = calibrate_termination(model, [batch])
    assert report["fitted"]["scale"] == pytest.approx(1 / 4, rel=0.1)
    weight, bias = model.termination_head.weight[0, 4].item(), model.termination_head.bias.item()
    assert (weight, bias) == pytest.approx((2, -3), abs=0.25)
    assert report["after"]["nll"] < report["before"]["nll"] - 0.1
    assert report["after"]["expected"] == pytest.approx(report["after"]["observed"], rel=0.05)
    assert report["before"]["expected"] > 1.3 * report["before"]["observed"]
    assert all(torch.equal(value, others[name]) for name, value in model.state_dict().items() if "termination" not in name)
    assert termination_scores(*termination_logits(model, [batch]))["nll"] == pytest.approx(report["after"]["nll"], abs=0.005)


def test_scores_after_calibration_are_cross_validated():
    model, batch = make_model_and_batch()
    logits, ended = termination_logits(model, [batch])
    half = len(ended) // 2
    a, b = platt_scaling(logits[half:], ended[half:])
    c, d = platt_scaling(logits[:half], ended[:half])
    expected = termination_scores(torch.cat([a * logits[:half] + b, c * logits[half:] + d]), ended)
    assert calibrate_termination(model, [batch])["after"] == expected


def test_calibration_is_applied_only_if_it_helps_by_more_than_its_standard_error():
    model, batch = make_model_and_batch(distort=(1.0, 0.0))  # the true probabilities
    before = model.termination_head.weight.clone()
    report = calibrate_termination(model, [batch])
    assert report["gain"]["nll"] == pytest.approx(report["before"]["nll"] - report["after"]["nll"])
    assert report["gain"]["nll"] < report["gain"]["standard_error"]
    assert report["gain"]["applied"] == 0
    assert report["fitted"] == {"scale": 1.0, "shift": 0.0}
    assert torch.equal(model.termination_head.weight, before)
    helped = calibrate_termination(*[part if i == 0 else [part] for i, part in enumerate(make_model_and_batch())])
    assert helped["gain"]["applied"] == 1
    assert helped["gain"]["nll"] > helped["gain"]["standard_error"] > 0


def test_too_few_terminations_change_nothing():
    model, batch = make_model_and_batch(batch_size=4, steps=5)
    before = model.termination_head.weight.clone()
    report = calibrate_termination(model, [batch])
    assert torch.equal(model.termination_head.weight, before)
    assert report["fitted"] == {"scale": 1.0, "shift": 0.0}
    assert report["before"] == report["after"]


def test_steps_that_do_not_count_do_not_matter():
    one, batch = make_model_and_batch()
    other, _ = make_model_and_batch()
    changed = dataclasses.replace(batch, terminated=batch.terminated ^ ~batch.mask)
    assert calibrate_termination(one, [batch]) == calibrate_termination(other, [changed])


def test_a_model_without_a_termination_head_raises():
    model = MDNRNN(2, 1, MDNRNNConfig(hidden_size=4, termination_head=False))
    with pytest.raises(ValueError, match="expected a termination head"):
        calibrate_termination(model, [make_model_and_batch()[1]])
