"""From episodes to batches: split, windows, masks, samples, and both ways of reading."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_data import ACTION, OBSERVATION, labelled_episode, write_store

from worldmodel.data import EpisodeCollection, EpisodeStore, permuted, split_episodes
from worldmodel.models import StateNormalizer, encode_all, encoded_bytes
from worldmodel.spaces import FlatSpace
from worldmodel.training import SequenceData, WindowSampler

LENGTHS = [1, 2, 5, 8, 9, 16, 17, 40]


def sampler(lengths=LENGTHS, **options):
    options = {"window": 8, "batch_size": 4, "seed": 3} | options
    return WindowSampler(np.arange(len(lengths)), np.array(lengths), **options)


def windows(source, epoch):
    """Return all windows of an epoch as rows (episode, start, stop, burn)."""
    batches = [source.batch(epoch, index) for index in range(source.num_batches(epoch))]
    return [tuple(row) for b in batches for row in np.stack([b.episode, b.start, b.stop, b.burn], axis=1).tolist()]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    episodes = [labelled_episode(i, steps, terminated=i % 2 == 0) for i, steps in enumerate(LENGTHS)]
    return write_store(tmp_path_factory.mktemp("data") / "store", episodes)


class NoisyVision(StateNormalizer):
    """A V whose posterior has a standard deviation of 1."""

    def encode(self, observation):
        mean, _ = super().encode(observation)
        return mean, torch.zeros_like(mean)


def sequence_data(store, vision=None, *, resident=False, **options):
    episodes = EpisodeCollection([store])
    vision, action = vision or StateNormalizer(OBSERVATION), FlatSpace(ACTION)
    steps = encode_all(episodes, vision, action) if resident else None
    return SequenceData(episodes, sampler(episodes.lengths, **options), vision, action, resident=steps)


# The permutation


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 1000, 4097])
def test_permuted_is_a_bijection(size):
    assert np.array_equal(np.sort(permuted(np.arange(size), size, key=(5, 1))), np.arange(size))


def test_permuted_depends_on_the_key_and_mixes():
    first, second = (permuted(np.arange(1000), 1000, key=key) for key in ((0, 0), (0, 1)))
    assert (first == second).mean() < 0.02
    assert (first == np.arange(1000)).mean() < 0.02
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.15


def test_permuted_looks_up_single_positions_of_huge_permutations():
    size = 2**40 + 7
    positions = np.array([0, 1, size - 1])
    found = permuted(positions, size, key=(1,))
    assert len(set(found.tolist())) == 3
    assert ((found >= 0) & (found < size)).all()
    assert permuted(positions[1:2], size, key=(1,))[0] == found[1]


# The split


@pytest.mark.parametrize(
    ("num_episodes", "fraction", "held_out"),
    [(1, 0.5, 0), (2, 0.1, 1), (2, 0.9, 1), (3, 0.1, 1), (100, 0.1, 10), (10, 0.0, 0), (1, 0.0, 0), (5, 0.99, 4)],
)
def test_both_sets_of_a_split_hold_an_episode(num_episodes, fraction, held_out):
    train, test = split_episodes(num_episodes, test_fraction=fraction, seed=0)
    assert len(test) == held_out
    assert sorted([*train, *test]) == list(range(num_episodes))
    assert len(train) >= 1


def test_a_split_depends_on_the_seed_and_is_random():
    first, again, other = (split_episodes(100, test_fraction=0.1, seed=seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert first != list(range(90, 100))


@pytest.mark.parametrize(("num_episodes", "fraction", "seed"), [(0, 0.1, 0), (5, 1.0, 0), (5, -0.1, 0), (5, 0.1, -1)])
def test_split_rejects_numbers_out_of_range(num_episodes, fraction, seed):
    with pytest.raises(ValueError, match=r"(num_episodes|test_fraction|seed): expected"):
        split_episodes(num_episodes, test_fraction=fraction, seed=seed)


# The sampler


def test_batches_are_a_pure_function_of_seed_epoch_and_index():
    one, two = sampler(), sampler()
    forth = [(epoch, index) for epoch in range(3) for index in range(one.num_batches(epoch))]
    expected = {which: one.batch(*which) for which in forth}
    for which in reversed(forth):
        for name in ("episode", "start", "stop", "burn"):
            assert np.array_equal(getattr(two.batch(*which), name), getattr(expected[which], name))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("window", "burn_in", "batch_size"), [(8, 0, 4), (8, 3, 4), (1, 2, 5), (100, 10, 3), (7, 20, 1000)])
def test_every_step_counts_exactly_once_per_epoch(window, burn_in, batch_size, shuffle):
    source = sampler(window=window, burn_in=burn_in, batch_size=batch_size, shuffle=shuffle)
    for epoch in range(4):
        counts = [np.zeros(length, dtype=int) for length in LENGTHS]
        for episode, start, stop, burn in windows(source, epoch):
            assert 0 <= start < start + burn + 1 <= stop <= LENGTHS[episode]
            assert stop - start - burn <= window
            counts[episode][start + burn : stop] += 1
        assert all((count == 1).all() for count in counts)


def test_burn_in_is_as_long_as_the_episode_allows():
    for _, start, _, burn in windows(sampler(burn_in=5), 0):
        assert burn == 5 or start == 0
    assert {burn for *_, burn in windows(sampler(burn_in=5), 0)} >= {0, 5}
    assert {burn for *_, burn in windows(sampler(), 0)} == {0}


def test_offsets_and_order_change_with_epoch_and_seed():
    first = windows(sampler(), 0)
    assert first != windows(sampler(), 1)
    assert sorted(first) != sorted(windows(sampler(), 1))
    assert first != windows(sampler(seed=4), 0)
    assert first != sorted(first)


def test_every_step_of_a_long_episode_can_begin_a_window():
    source = sampler([40], batch_size=100)
    starts = {start % 8 for epoch in range(60) for _, start, _, _ in windows(source, epoch) if start > 0}
    assert starts == set(range(8))


def test_unshuffled_windows_come_in_order_and_begin_at_zero():
    assert windows(sampler([3, 17], shuffle=False), 5) == [(0, 0, 3, 0), (1, 0, 8, 0), (1, 8, 16, 0), (1, 16, 17, 0)]


def test_the_sampler_needs_memory_for_episodes_not_for_steps():
    lengths = np.full(1000, 10**7)
    tracemalloc.start()
    try:
        source = WindowSampler(np.arange(1000), lengths, window=64, batch_size=64)
        source.batch(0, source.num_batches(0) - 1)
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()


def test_the_sampler_rejects_arguments_out_of_range():
    with pytest.raises(ValueError, match="window: expected an integer >= 1"):
        sampler(window=0)
    with pytest.raises(ValueError, match="burn_in: expected an integer >= 0"):
        sampler(burn_in=-1)
    with pytest.raises(ValueError, match="episodes: expected at least one"):
        sampler([])
    with pytest.raises(IndexError, match="index: expected a batch in"):
        sampler().batch(0, sampler().num_batches(0))
    with pytest.raises(IndexError, match="index: expected a batch in"):
        sampler().batch(0, -1)


# Batches


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("burn_in", [0, 3])
def test_batches_hold_the_steps_of_their_windows(store, resident, burn_in):
    data = sequence_data(store, resident=resident, burn_in=burn_in)
    for index in range(data.num_batches(2)):
        which, batch = data.sampler.batch(2, index), data.batch(2, index)
        for row in range(len(which.episode)):
            episode, start, stop, burn = (int(getattr(which, n)[row]) for n in ("episode", "start", "stop", "burn"))
            length, t = stop - start, torch.arange(start, stop + 1)
            assert batch.z[row, : length + 1].tolist() == [[episode, x] for x in t.tolist()]
            assert batch.action[row, :length].argmax(dim=-1).tolist() == (t[:-1] % 3).tolist()
            assert batch.reward[row, :length].tolist() == (100 * episode + t[:-1]).tolist()
            expected_end = (t[:-1] == LENGTHS[episode] - 1) & (episode % 2 == 0)  # odd ones are truncated, not terminated
            assert batch.terminated[row, :length].tolist() == expected_end.tolist()
            assert batch.mask[row].tolist() == [burn <= x < length for x in range(batch.mask.shape[1])]
            assert (batch.z[row, length:] == batch.z[row, length]).all()  # padding repeats, finite and harmless


def test_mask_counts_every_step_of_the_data_once(store):
    data = sequence_data(store, burn_in=2)
    assert sum(batch.weight for batch in data.epoch(0)) == sum(LENGTHS)


@pytest.mark.parametrize("vision", [StateNormalizer, NoisyVision])
def test_resident_and_streamed_batches_are_equal(store, vision):
    resident, streamed = (sequence_data(store, vision(OBSERVATION), resident=r, burn_in=3) for r in (True, False))
    for epoch in range(2):
        pairs = zip(*(d.epoch(epoch, generator=torch.Generator().manual_seed(1)) for d in (resident, streamed)), strict=True)
        for one, two in pairs:
            assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in vars(one))


def test_latents_are_one_sample_per_observation_and_new_in_each_batch(store):
    data = sequence_data(store, NoisyVision(OBSERVATION), resident=True)
    generator = torch.Generator().manual_seed(0)
    one, two = (data.batch(0, 0, generator=generator) for _ in range(2))
    again = data.batch(0, 0, generator=torch.Generator().manual_seed(0))
    exact = sequence_data(store).batch(0, 0)
    assert one.z.shape == (4, one.mask.shape[1] + 1, 2)  # target at t and input at t + 1 are the same element
    assert not torch.isclose(one.z, two.z).any()
    assert torch.equal(one.z, again.z)
    assert 0.5 < (one.z - exact.z).std() < 1.5


def test_global_seed_does_not_matter(store):
    data = sequence_data(store, NoisyVision(OBSERVATION))
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        drawn.append(data.batch(0, 0, generator=torch.Generator().manual_seed(0)).z)
    assert torch.equal(*drawn)


def test_encode_all_works_in_pieces(store, monkeypatch):
    episodes, vision, action = EpisodeCollection([store]), StateNormalizer(OBSERVATION), FlatSpace(ACTION)
    whole = encode_all(episodes, vision, action)
    monkeypatch.setattr("worldmodel.models.encoded.ENCODE_BYTES", 80)
    pieces = encode_all(episodes, vision, action)
    assert all(torch.equal(getattr(whole, name), getattr(pieces, name)) for name in vars(whole))
    size = sum(x.numel() * x.element_size() for x in vars(whole).values())
    assert size <= encoded_bytes(episodes, vision, action) < 1.2 * size


# Several stores


def test_a_collection_is_its_stores_one_after_the_other(store, tmp_path):
    other = write_store(tmp_path / "other", [labelled_episode(50, 4), labelled_episode(51, 6)])
    both = EpisodeCollection([store, other])
    assert len(both) == len(LENGTHS) + 2
    assert both.lengths.tolist() == [*LENGTHS, 4, 6]
    assert both.read(len(LENGTHS)).observations[0, 0] == 50
    assert both.read(len(LENGTHS) + 1, 2, 5).observations[:, 1].tolist() == [2, 3, 4, 5]
    assert both.read(len(LENGTHS) - 1).observations[0, 0] == len(LENGTHS) - 1


def test_an_empty_store_among_others_changes_nothing(store, tmp_path):
    empty = write_store(tmp_path / "empty", [])
    both = EpisodeCollection([empty, store])
    assert both.read(0).observations[0, 0] == 0
    assert both.lengths.tolist() == LENGTHS


def test_fingerprint_is_of_the_content(store, tmp_path):
    other = write_store(tmp_path / "other", [labelled_episode(50, 4)])
    prints = {
        EpisodeCollection(stores).fingerprint for stores in ([store], [other], [store, other], [EpisodeStore.open(store.path)])
    }
    assert len(prints) == 3


def test_a_collection_rejects_no_stores_no_episodes_and_different_spaces(store, tmp_path):
    with pytest.raises(ValueError, match="stores: expected at least one, got none"):
        EpisodeCollection([])
    with pytest.raises(ValueError, match=r"empty: expected at least one episode to train on, got none"):
        EpisodeCollection([write_store(tmp_path / "empty", [])])
    foreign = write_store(tmp_path / "foreign", [], observation_space=spaces.Box(0.0, 1.0, (3,), np.float32))
    with pytest.raises(ValueError, match=r"foreign: expected observation_space Box.* as in .*store, got Box"):
        EpisodeCollection([store, foreign])


class HalvingVision(NoisyVision):
    """A V whose posterior has standard deviations of 1 and 1/2."""

    def encode(self, observation):
        mean, log_variance = super().encode(observation)
        return mean, log_variance + torch.tensor([0.0, -2 * math.log(2.0)])


@pytest.mark.parametrize("resident", [False, True])
def test_the_entropy_of_vs_samples_is_that_of_normal_distributions_and_unknown_without_noise(store, resident):
    data = sequence_data(store, HalvingVision(OBSERVATION), resident=resident)
    unit = 0.5 * math.log(2 * math.pi * math.e)
    assert data.posterior_entropy() == pytest.approx(unit - 0.5 * math.log(2.0))
    assert data.posterior_entropy([0]) == pytest.approx(unit)
    assert sequence_data(store, resident=resident).posterior_entropy() is None
