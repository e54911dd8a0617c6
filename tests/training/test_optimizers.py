"""Muon for matrices and Adam for all other parameters: steps, and resuming."""

import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from test_training import CONFIG, assert_same_run, make_model, run, walks  # noqa: F401
from torch import nn

from worldmodel.runtime import RunConfig
from worldmodel.training import TrainingConfig, make_optimizer, orthogonalize

MUON = replace(CONFIG, optimizer="muon")


def gradients(shape, steps=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def follow(optimizer, parameter, steps):
    for gradient in steps:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(16, 40), (64, 16), (48, 48)])
def test_the_step_of_a_matrix_has_equal_singular_values_of_the_size_of_adams_step(shape):
    left, _, right = torch.linalg.svd(gradients(shape, 1)[0], full_matrices=False)
    steps = [left @ torch.diag(torch.logspace(0, -1, min(shape))) @ right]  # singular values from 1 to 0.1
    before = nn.Parameter(torch.zeros(shape))
    moved = follow(make_optimizer("muon", [before], learning_rate=0.1), before, steps)
    values = torch.linalg.svdvals(moved) / (0.1 * 0.2 * math.sqrt(max(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert (moved * steps[0]).sum() < 0  # downhill


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs PyTorch 2.9 or later")
@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 1e-6), ("float32", 2e-2)])
@pytest.mark.parametrize("shape", [(16, 40), (64, 16), (48, 48)])
def test_a_matrix_moves_as_under_pytorchs_muon(shape, precision, tolerance):
    one, two = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
    ours = make_optimizer("muon", [one], learning_rate=0.1, precision=precision)
    theirs = torch.optim.Muon([two], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")  # in bfloat16
    steps = gradients(shape, 5)
    ours_moved, theirs_moved = follow(ours, one, steps), follow(theirs, two, steps)
    assert (ours_moved - theirs_moved).norm() < tolerance * theirs_moved.norm()


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(16, 5, 4, 4), (64, 16, 2, 3)])
def test_a_kernel_moves_as_the_matrix_of_its_rows(shape, precision):
    kernel, matrix = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape).flatten(1))
    one, two = (make_optimizer("muon", [p], learning_rate=0.1, precision=precision) for p in (kernel, matrix))
    steps = gradients(shape)
    moved = follow(one, kernel, [step.to(memory_format=torch.channels_last) for step in steps])
    assert torch.equal(moved.flatten(1), follow(two, matrix, [step.flatten(1) for step in steps]))


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(512, 256, 1, 2), (1024, 16, 8, 5)])
def test_each_place_of_a_large_kernel_moves_as_a_matrix_of_its_own(shape, precision):
    kernel, steps = nn.Parameter(torch.zeros(shape)), gradients(shape)
    moved = follow(make_optimizer("muon", [kernel], learning_rate=0.1, precision=precision), kernel, steps)
    for i, j in ((0, 0), (shape[2] - 1, shape[3] - 1)):
        matrix = nn.Parameter(torch.zeros(shape[:2]))
        optimizer = make_optimizer("muon", [matrix], learning_rate=0.1, precision=precision)
        alone = follow(optimizer, matrix, [step[:, :, i, j] for step in steps])
        assert (moved[:, :, i, j] - alone).norm() < 1e-2 * alone.norm()


@pytest.mark.parametrize("shape", [(16, 40), (64, 16), (48, 48)])
def test_orthogonalize_keeps_singular_vectors(shape):
    left, values, right = torch.linalg.svd(gradients(shape, 1)[0].double(), full_matrices=False)
    found = left.T @ orthogonalize(left @ torch.diag(values) @ right, torch.float64) @ right.T
    assert (found - torch.diag(found.diagonal())).abs().max() < 1e-10  # diagonal in the same vectors
    assert bool((orthogonalize(torch.zeros(shape), torch.float32) == 0).all())


@pytest.mark.parametrize("shape", [(7,), (1, 64), (64, 15), (15, 15), (2, 3, 4, 4), (15, 3, 4, 4)])
def test_other_parameters_move_as_under_adam(shape):
    one, two = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(shape))
    mixed = make_optimizer("muon", [nn.Parameter(torch.ones(20, 20)), one], learning_rate=0.1)
    adam = torch.optim.Adam([two], lr=0.1)
    assert torch.equal(follow(mixed, one, gradients(shape)), follow(adam, two, gradients(shape)))


def test_the_learning_rate_of_the_group_applies_to_both():
    matrix, vector = nn.Parameter(torch.ones(20, 20)), nn.Parameter(torch.ones(5))
    optimizer = make_optimizer("muon", [matrix, vector], learning_rate=0.1)
    optimizer.param_groups[0]["lr"] = 0.0
    matrix.grad, vector.grad = torch.randn(20, 20), torch.randn(5)
    optimizer.step()
    assert bool((matrix == 1).all())
    assert bool((vector == 1).all())
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert bool((matrix != 1).any())
    assert bool((vector != 1).all())


def test_a_closure_is_called_with_gradients():
    matrix = nn.Parameter(torch.eye(20))
    optimizer = make_optimizer("muon", [matrix], learning_rate=0.1)

    def closure():
        optimizer.zero_grad()
        loss = matrix.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 20
    assert optimizer.step(closure) < 20


@pytest.mark.parametrize("at", [8, 30])
def test_ctrl_c_and_resuming_with_muon_equals_an_uninterrupted_run(walks, tmp_path, at):  # noqa: F811
    def stop(progress):
        if progress.done == at:
            os.kill(os.getpid(), signal.SIGINT)

    def model():
        return make_model(hidden_size=16)

    result, trained = run(walks, tmp_path / "whole", model=model(), config=MUON)
    with pytest.raises(KeyboardInterrupt):
        run(walks, tmp_path / "parts", model=model(), config=MUON, run=RunConfig(on_progress=stop))
    parts = run(walks, tmp_path / "parts", model=model(), config=MUON)
    assert_same_run(tmp_path / "parts", *parts, (tmp_path / "whole", result, trained))
    _, by_adam = run(walks, tmp_path / "adam", model=model())
    assert not torch.equal(by_adam.lstm.weight_hh_l0, trained.lstm.weight_hh_l0)


def test_a_run_with_muon_is_not_resumed_with_adam(walks, tmp_path):  # noqa: F811
    model = make_model(hidden_size=16)
    run(walks, tmp_path, model=model, config=replace(MUON, num_updates=6))
    with pytest.raises(ValueError, match="optimizer"):
        run(walks, tmp_path, model=model, config=replace(CONFIG, num_updates=6))


def test_unknown_names_raise():
    with pytest.raises(ValueError, match=r"optimizer: expected one of .*, got 'sgd'"):
        TrainingConfig(optimizer="sgd")
    with pytest.raises(ValueError, match=r"optimizer: expected one of .*, got 'sgd'"):
        make_optimizer("sgd", [nn.Parameter(torch.ones(2))], learning_rate=0.1)
