"""Streams depend on seed, episode and call only, and pass tests of randomness."""

import numpy as np
import pytest
import torch
from scipy import stats

from worldmodel.mixtures import GaussianMixture
from worldmodel.rng import BatchRows, Streams, fill_bernoulli, fill_exponential, fill_normal, fill_uniform

DISTRIBUTIONS = {
    "uniform_": stats.uniform(),
    "exponential_": stats.expon(),
    "normal_": stats.norm(),
}


def streams(rows, *, first=0, episodes=0):
    return Streams(torch.arange(first, first + rows), episodes)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", [(1, 400_000), (400_000, 1), (1000, 4, 100), (20_000, 19)])
def test_numbers_follow_their_distribution(name, shape):
    numbers = getattr(streams(shape[0]), name)(torch.empty(shape))
    assert numbers.isfinite().all()
    assert stats.kstest(numbers.flatten().numpy(), DISTRIBUTIONS[name].cdf).pvalue > 1e-3


def test_uniform_numbers_are_never_0_or_1():
    numbers = streams(4000).uniform_(torch.empty(4000, 10_000))  # each possible number five times
    assert numbers.min() > 0
    assert numbers.max() < 1


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 64])
def test_neighbours_of_every_kind_are_uncorrelated(lag):
    """Neighbours within a call, and by row, call and episode; also their squares."""
    rows, n = 1024, 256
    source = streams(rows)
    draws = torch.stack([source.normal_(torch.empty(rows, n)) for _ in range(lag + 1)])
    other = streams(rows, episodes=lag).normal_(torch.empty(rows, n))
    first = draws[0]
    pairs = [(first[:, :-lag], first[:, lag:]), (first[:-lag], first[lag:]), (first, draws[lag]), (first, other)]
    for one, two in pairs:
        for power in (1, 2):
            a, b = one.flatten().double() ** power, two.flatten().double() ** power
            correlation = np.corrcoef(a.numpy(), b.numpy())[0, 1]
            assert abs(correlation) < 4.5 / len(a) ** 0.5


def test_bits_of_one_row_are_balanced():
    """Each of the 23 bits of a uniform number is 1 with probability 1/2, over many calls."""
    source = streams(1, first=12345)
    numbers = torch.stack([source.uniform_(torch.empty(1, 1)) for _ in range(20_000)]).flatten()
    bits = (numbers * 2**23).long().unsqueeze(1) >> torch.arange(23) & 1
    assert (bits.double().mean(dim=0) - 0.5).abs().max() < 4.5 * 0.5 / 20_000**0.5


def test_two_million_numbers_collide_as_often_as_random_ones():
    numbers = streams(2048).uniform_(torch.empty(2048, 1024)).flatten()
    n, possible = numbers.numel(), 2**23
    distinct = possible * (1 - np.exp(-n / possible))
    deviation = (possible * np.exp(-n / possible) * (1 - (1 + n / possible) * np.exp(-n / possible))) ** 0.5
    assert abs(numbers.unique().numel() - distinct) < 4.5 * deviation


def test_a_row_is_the_same_alone_and_among_many():
    many, alone = streams(100), streams(1, first=42)
    for shape in [(3,), (5, 4), ()]:
        together = many.normal_(torch.empty(100, *shape))
        assert torch.equal(together[42:43], alone.normal_(torch.empty(1, *shape)))


def test_a_row_continues_from_a_given_counter():
    one, other = streams(4), streams(4)
    for source in (one, other):
        source.uniform_(torch.empty(4, 3))
    fresh = Streams(torch.tensor([7, 3]), torch.tensor([0, 2]))
    one.counter = one.counter.index_copy(0, torch.tensor([1, 3]), fresh.counter)
    after, undisturbed = one.uniform_(torch.empty(4, 6)), other.uniform_(torch.empty(4, 6))
    assert torch.equal(after[::2], undisturbed[::2])
    assert torch.equal(after[1:2], streams(1, first=7).uniform_(torch.empty(1, 6)))
    assert torch.equal(after[3:4], streams(1, first=3, episodes=2).uniform_(torch.empty(1, 6)))


def test_numbers_depend_on_seed_episode_and_call():
    first = streams(1).uniform_(torch.empty(1, 8))
    again = streams(1)
    assert torch.equal(again.uniform_(torch.empty(1, 8)), first)
    others = [again.uniform_(torch.empty(1, 8)), streams(1, first=1).uniform_(torch.empty(1, 8))]
    others += [streams(1, episodes=1).uniform_(torch.empty(1, 8)), streams(1, first=2**40).uniform_(torch.empty(1, 8))]
    assert not any(torch.isclose(first, other).any() for other in others)


def test_reserved_numbers_equal_those_of_one_call_and_are_used_in_order():
    whole = streams(4).uniform_(torch.empty(4, 9))
    source = streams(4)
    source.reserve(9)
    parts = [source.uniform_(torch.empty(4, 2, 2)).flatten(1), source.uniform_(torch.empty(4, 5))]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    after = source.uniform_(torch.empty(4, 3))  # none are left
    other = streams(4)
    other.uniform_(torch.empty(4, 9))
    assert torch.equal(after, other.uniform_(torch.empty(4, 3)))


def test_the_rest_of_a_reserve_is_dropped():
    source, other = streams(2), streams(2)
    source.reserve(5)
    source.uniform_(torch.empty(2, 3))
    source.reserve(4)
    other.uniform_(torch.empty(2, 1))
    assert torch.equal(source.uniform_(torch.empty(2, 4)), other.uniform_(torch.empty(2, 4)))


def test_numbers_are_pinned():
    """The numbers of a seed must never change."""
    pinned = [[0.8995528817176819, 0.9558950066566467], [0.932406485080719, 0.21254628896713257]]
    assert streams(2, first=5, episodes=1).uniform_(torch.empty(2, 2, dtype=torch.float64)).tolist() == pinned


def test_the_global_generator_is_neither_read_nor_advanced():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = streams(3).exponential_(torch.empty(3, 2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(streams(3).exponential_(torch.empty(3, 2)), first)


def test_fills_take_a_generator_or_streams():
    for fill, name in ((fill_uniform, "uniform_"), (fill_exponential, "exponential_"), (fill_normal, "normal_")):
        generator = torch.Generator().manual_seed(3)
        expected = getattr(torch.empty(4, 2), name)(generator=torch.Generator().manual_seed(3))
        assert torch.equal(fill(torch.empty(4, 2), generator), expected)
        assert torch.equal(fill(torch.empty(4, 2), streams(4)), getattr(streams(4), name)(torch.empty(4, 2)))


def test_a_mixture_sampled_by_streams_has_its_moments():
    mixture = GaussianMixture(
        torch.tensor([[0.2, 0.5], [0.8, 0.5]]).log().expand(200_000, 2, 2),
        torch.tensor([[-1.0, 0.0], [2.0, 3.0]]).expand(200_000, 2, 2),
        torch.tensor([[0.1, 0.5], [0.3, 1.0]]).log().expand(200_000, 2, 2),
    )
    z = mixture.sample(generator=streams(200_000))
    error = (mixture.variance()[0] / 200_000).sqrt()
    assert ((z.mean(dim=0) - mixture.expectation()[0]).abs() < 4.5 * error).all()
    torch.testing.assert_close(z.var(dim=0), mixture.variance()[0], rtol=0.02, atol=0)


@pytest.mark.parametrize("shape", [(3, 2), ()])
def test_a_batch_of_another_size_is_rejected(shape):
    with pytest.raises(ValueError, match="expected a first dimension of 4 streams"):
        streams(4).uniform_(torch.empty(shape))


def fill_half(tensor, source):
    return fill_bernoulli(tensor, 0.5, source)


@pytest.mark.parametrize("fill", [fill_uniform, fill_exponential, fill_normal, fill_half])
def test_rows_of_a_batch_get_the_numbers_that_the_batch_would_get(fill):
    whole = fill(torch.empty(7, 3), torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    part = fill(torch.empty(3, 3), BatchRows(generator, slice(2, 5), 7))
    assert torch.equal(part, whole[2:5])
    reference = torch.Generator().manual_seed(5)
    fill(torch.empty(7, 3), reference)
    assert torch.equal(generator.get_state(), reference.get_state())
