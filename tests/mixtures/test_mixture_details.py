"""Arithmetic that only unusual shapes or values exercise."""

import math

import pytest
import torch
from scipy import stats

from worldmodel.mixtures import GaussianMixture, LatentLayout, LatentPart, MixtureDensityNetwork, PartKind, RewardHead
from worldmodel.mixtures.heads import sample_raw_mixture
from worldmodel.mixtures.latent_head import LatentHead
from worldmodel.mixtures.unchanged_head import UnchangedOrDensity


def test_a_reward_head_starts_from_the_frequencies_of_atoms_and_the_quantiles_of_the_rest():
    head = RewardHead(4, 0.01, num_components=5, atoms=(0.0, 1.0))
    head.set_base_rates(torch.tensor([7.0, 2.0, 1.0]))
    expected = torch.tensor([7.5, 2.5, 1.5]) / 11.5
    torch.testing.assert_close(head.linear.bias[:3], expected.log())
    means = head.linear.bias[3 + 5 : 3 + 10]
    torch.testing.assert_close(means.double(), torch.as_tensor(stats.norm.ppf([0.1, 0.3, 0.5, 0.7, 0.9])), atol=1e-6, rtol=0)


def test_the_mean_of_a_single_component_keeps_its_start():
    head = RewardHead(4, 0.01, num_components=1, atoms=(0.0,))
    before = head.linear.bias.detach().clone()
    head.set_base_rates(torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(head.linear.bias[2:], before[2:], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("components", "atoms", "kept"), [(1, (0.0,), True), (0, (0.0,), False), (5, (), True), (1, (), False)]
)
def test_only_reward_heads_with_a_floor_of_their_own_save_it(components, atoms, kept):
    assert ("log_floor" in RewardHead(4, 0.01, num_components=components, atoms=atoms).state_dict()) is kept


def test_scaling_moves_the_atom_of_no_change_too():
    density = GaussianMixture(torch.zeros(1, 1, 2), torch.full((1, 1, 2), 3.0), torch.zeros(1, 1, 2))
    distribution = UnchangedOrDensity(torch.tensor([[0.0, 1.0]]), density, torch.tensor([0.5, -2.0]))
    shift, scale = torch.tensor([1.0, 10.0]), torch.tensor([2.0, 3.0])
    moved = distribution.affine(shift, scale)
    torch.testing.assert_close(moved.expectation(), shift + scale * distribution.expectation())
    torch.testing.assert_close(moved.atom, torch.tensor([2.0, 4.0]))


def test_the_floor_of_a_mixture_density_network_is_a_thousandth():
    network = MixtureDensityNetwork(2, 3, 2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.head.linear.bias.fill_(-100.0)
    torch.testing.assert_close(network(torch.zeros(1, 2)).log_scale.exp(), torch.full((1, 2, 3), 1e-3))


def test_the_largest_uniform_number_chooses_no_component_without_weight():
    largest = 1 - 2.0**-24
    found = sample_raw_mixture(
        torch.tensor([0.0, -torch.inf]).reshape(1, 2, 1),
        torch.tensor([1.0, 5.0]).reshape(1, 2, 1),
        torch.full((1, 2, 1), -20.0),
        1e-6,
        temperature=1.0,
        uniform=torch.full((1, 1), largest),
        normal=torch.zeros(1, 1),
    )
    assert found.item() == 1.0


def test_a_head_without_raw_outputs_takes_no_random_numbers():
    class Head(LatentHead, registered=False):
        from_config = forward = None

        def numbers_per_sample(self):
            return 3

    head = Head()
    assert not head.supports_raw
    assert (head.num_uniforms, head.num_normals) == (0, 0)


def test_a_description_joins_and_counts_equal_choices():
    sizes, parts = (2, 2, 2, 3), []
    for number, size in enumerate(sizes):
        place = {"start": sum(sizes[:number]), "size": size, "path": "arm", "first": number, "count": 1}
        values = tuple(map(float, range(size)))
        parts.append(LatentPart(name=f"arm[{number}]", kind=PartKind.CHOICE, values=values, **place))
    lines = str(LatentLayout(tuple(parts))).splitlines()
    assert [line.partition("(x ")[2] for line in lines] == ["3)", ""]


def test_the_logarithm_of_the_floor_is_that_of_the_configuration():
    assert RewardHead(4, 0.25, num_components=2).log_floor.item() == pytest.approx(math.log(0.25))
