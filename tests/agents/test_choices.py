"""Distributions over a controller's actions, against SciPy, torch.distributions and counts of samples."""

import numpy as np
import pytest
import scipy.stats
import torch
from gymnasium import spaces

from worldmodel.agents import Controller, make_choices

OUTPUTS = torch.tensor([[-1.3], [-0.2], [0.0], [0.4], [2.0]], dtype=torch.float64)


def controller(space, *, ordered=False):
    return Controller(2, space, ordered=ordered)


def rows(choices, output, n):
    return choices.draw(output.expand(n, -1), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("breadth", [0.3, 1.0])
def test_ordered_choices_are_parts_of_a_logistic_distribution(n, breadth):
    choices = make_choices(controller(spaces.Discrete(n), ordered=True), breadth)
    bounds = np.arctanh(2 * np.arange(1, n) / n - 1)
    below = scipy.stats.logistic.cdf((bounds - OUTPUTS.numpy()) / breadth)
    expected = np.diff(below, axis=1, prepend=0.0, append=1.0)
    assert np.allclose(choices.log_probs(OUTPUTS).exp().numpy(), expected, atol=1e-7)  # except for the smallest probability


def test_unordered_choices_are_a_softmax():
    outputs = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    choices = make_choices(controller(spaces.Discrete(3)), 0.5)
    expected = torch.distributions.Categorical(logits=outputs / 0.5)
    choice = torch.tensor([0, 2, 1, 1])
    assert torch.allclose(choices.log_prob(outputs, choice), expected.log_prob(choice))
    assert torch.allclose(choices.entropy(outputs), expected.entropy())


@pytest.mark.parametrize("ordered", [True, False])
def test_in_the_limit_of_no_noise_the_likeliest_choice_is_the_controllers(ordered):
    space = spaces.Discrete(4, start=2)
    one = controller(space, ordered=ordered)
    outputs = torch.randn(200, 1 if ordered else 4, generator=torch.Generator().manual_seed(2))
    choices = make_choices(one, 1e-3)
    decided = one.decide(outputs)
    assert torch.equal(choices.log_probs(outputs).argmax(dim=1) + 2, decided)
    assert torch.equal(choices.features(decided - 2), one.action_features.flatten(decided))


@pytest.mark.parametrize("ordered", [True, False])
def test_samples_have_the_documented_probabilities(ordered):
    n = 40_000
    choices = make_choices(controller(spaces.Discrete(3), ordered=ordered), 0.5)
    output = torch.tensor([[0.4]] if ordered else [[0.4, -0.1, 0.2]])
    expected = choices.log_probs(output).exp()[0].double().numpy()
    counts = np.bincount(rows(choices, output, n).numpy(), minlength=3)
    assert scipy.stats.chisquare(counts, expected / expected.sum() * n).pvalue > 1e-3


def test_gradients_of_ordered_choices_are_exact_and_finite_far_out():
    choices = make_choices(controller(spaces.Discrete(3), ordered=True), 0.5)
    assert torch.autograd.gradcheck(choices.log_probs, (OUTPUTS.clone().requires_grad_(),))
    far = torch.tensor([[-80.0], [80.0]], requires_grad=True)
    choices.log_probs(far).sum().backward()
    assert torch.isfinite(far.grad).all()


def test_box_choices_are_normal_before_they_are_squashed():
    one = controller(spaces.Box(np.array([-1.0, 0.0]), np.array([3.0, 1.0]), dtype=np.float64))
    choices = make_choices(one, 0.7)
    output = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    drawn = rows(choices, output, 20_000)
    for column in range(2):
        assert scipy.stats.kstest((drawn[:, column] - output[0, column]).numpy() / 0.7, "norm").pvalue > 1e-3
    normal = scipy.stats.norm(output.numpy(), 0.7)
    assert np.allclose(choices.log_prob(output.expand(5, -1), drawn[:5]), normal.logpdf(drawn[:5]).sum(axis=1))
    assert np.allclose(choices.entropy(output), normal.entropy().sum())
    assert torch.allclose(choices.features(drawn), one.action_features.flatten(one.decide(drawn)))


@pytest.mark.parametrize("space", [spaces.Discrete(1), spaces.MultiBinary(2), spaces.Tuple([spaces.Discrete(2)])])
def test_other_action_spaces_are_rejected(space):
    with pytest.raises(ValueError, match="agent: expected a Discrete action space of at least two actions, or a Box"):
        make_choices(controller(space), 0.5)


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (3,)), spaces.Discrete(3)], ids=["box", "discrete"])
def test_each_state_may_have_a_breadth_of_its_own(space):
    shared = make_choices(controller(space), 0.5)
    outputs = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    breadth = torch.rand(5, shared.num_breadths, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) + 0.2
    choices = shared.with_breadth(breadth)
    if isinstance(space, spaces.Box):
        expected = torch.distributions.Independent(torch.distributions.Normal(outputs, breadth), 1)
    else:
        expected = torch.distributions.Categorical(logits=outputs / breadth)
    choice = choices.draw(outputs, torch.Generator().manual_seed(5))
    assert torch.allclose(choices.log_prob(outputs, choice), expected.log_prob(choice))
    assert torch.allclose(choices.entropy(outputs), expected.entropy())
    assert not torch.allclose(shared.log_prob(outputs, choice), expected.log_prob(choice))  # it is a copy
