"""V for vector observations: normalise, encode without noise, decode."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldmodel.models import StateNormalizer, draw_latent
from worldmodel.spaces import leaf_values

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
NESTED = spaces.Dict({"arm": BOX, "mode": spaces.Discrete(3), "lamps": spaces.MultiBinary(2)})


def observations(n, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 3)) * [1.0, 50.0, 0.01] + [0.0, 1000.0, -3.0]).astype(np.float32)


def test_a_fitted_normalizer_gives_mean_zero_and_deviation_one():
    data = observations(500)
    vision = StateNormalizer(BOX).fit([data])
    z, _ = vision.encode(data)
    torch.testing.assert_close(z.double().mean(dim=0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(z.double().std(dim=0, correction=0), torch.ones(3, dtype=torch.float64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("cuts", [[], [1], [7, 100, 101], [499]])
def test_statistics_match_numpy_however_the_data_are_cut(cuts):
    data = observations(500)
    vision = StateNormalizer(BOX).fit(np.split(data, cuts))
    np.testing.assert_allclose(vision.mean, data.astype(np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(vision.scale, data.astype(np.float64).std(axis=0), rtol=1e-5)


def test_statistics_keep_their_precision_far_from_zero():
    data = np.array([[4096.0, 1e6, 0.0], [4096.001953125, 1e6 + 0.125, 0.0]], dtype=np.float32)
    vision = StateNormalizer(BOX).fit([np.tile(data, (999, 1))] * 3)
    np.testing.assert_allclose(vision.scale[:2], [0.0009765625, 0.0625], rtol=1e-6)


def test_empty_batches_change_nothing():
    space, data = spaces.Discrete(3), np.arange(50) % 3
    whole = StateNormalizer(space).fit([data])
    holed = StateNormalizer(space).fit([data[:0], data[:20], data[:0], data[20:], data[:0]])
    torch.testing.assert_close(holed.mean, whole.mean)
    torch.testing.assert_close(holed.scale, whole.scale)


def test_a_constant_dimension_is_not_scaled_up():
    data = observations(50)
    data[:, 1] = 7.0
    vision = StateNormalizer(BOX).fit([data])
    assert vision.scale[1] == 1.0
    z, _ = vision.encode(data)
    assert (z[:, 1] == 0).all()


@pytest.mark.parametrize("leading", [(), (1,), (4, 1)], ids=str)
def test_encoding_keeps_leading_dimensions_and_has_no_noise(leading):
    vision = StateNormalizer(BOX).fit([observations(50)])
    observation = observations(4).reshape(4, 1, 3)[: max(1, int(np.prod(leading)))].reshape(*leading, 3)
    mean, log_variance = vision.encode(observation)
    assert mean.shape == log_variance.shape == (*leading, 3)
    assert (log_variance == -torch.inf).all()
    assert torch.equal(draw_latent(mean, log_variance), mean)


def test_decoding_gives_back_the_observation():
    rng = np.random.default_rng(0)
    batch = {
        "arm": observations(20),
        "mode": rng.integers(3, size=20),
        "lamps": rng.integers(2, size=(20, 2)).astype(np.int8),
    }
    vision = StateNormalizer(NESTED).fit([batch])
    assert vision.latent_size == 8
    back = leaf_values(vision.decode(vision.encode(batch)[0]))
    for path, leaf in leaf_values(batch).items():
        np.testing.assert_allclose(np.asarray(back[path]), leaf, rtol=1e-5, atol=1e-5)


def test_an_unfitted_normalizer_is_the_identity():
    data = observations(5)
    assert torch.equal(StateNormalizer(BOX).encode(data)[0], torch.from_numpy(data))


def test_statistics_travel_with_the_weights():
    one, other = StateNormalizer(BOX).fit([observations(50)]), StateNormalizer(BOX)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.encode(observations(5))[0], other.encode(observations(5))[0])


@pytest.mark.parametrize("batches", [[], [np.zeros(0, np.int64)]])
def test_fitting_to_nothing_is_refused(batches):
    with pytest.raises(ValueError, match="observations: expected at least one, got none"):
        StateNormalizer(spaces.Discrete(3)).fit(batches)


def test_latents_have_the_mean_and_variance_said():
    n = 100_000
    mean, log_variance = torch.tensor([1.0, -2.0]), torch.tensor([0.5, -3.0])
    draws = draw_latent(mean.expand(n, 2), log_variance.expand(n, 2), generator=torch.Generator().manual_seed(0))
    deviation = (0.5 * log_variance).exp()
    assert ((draws.mean(dim=0) - mean).abs() < 5 * deviation / n**0.5).all()
    assert ((draws.var(dim=0) / log_variance.exp() - 1).abs() < 5 * (2 / n) ** 0.5).all()


def test_latents_depend_on_the_generator_only():
    mean, log_variance = torch.zeros(4, 2), torch.zeros(4, 2)

    def draw(seed):
        return draw_latent(mean, log_variance, generator=torch.Generator().manual_seed(seed))

    torch.manual_seed(0)
    one = draw(1)
    torch.manual_seed(5)
    assert torch.equal(one, draw(1))
    assert not torch.equal(one, draw(2))


def test_gradients_reach_mean_and_log_variance_and_are_finite_without_noise():
    mean, log_variance = torch.zeros(3, requires_grad=True), torch.tensor([0.0, -4.0, -torch.inf], requires_grad=True)
    draw_latent(mean, log_variance, generator=torch.Generator().manual_seed(0)).sum().backward()
    assert torch.equal(mean.grad, torch.ones(3))
    assert torch.isfinite(log_variance.grad).all()
    assert (log_variance.grad[:2] != 0).all()
