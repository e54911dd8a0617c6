"""V: vectors are normalised, encoded without noise and decoded; a new V is one file."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_data import walking_episode, write_store
from toy_images import DotEnv, dot_store
from toy_worlds import random_world

from worldmodel.dream import Dreams
from worldmodel.envs import DreamVectorEnv
from worldmodel.models import ConvVAE, MDNRNNConfig, StateNormalizer, VAEConfig, Vision, WorldModel, draw_latent
from worldmodel.plots import pictures
from worldmodel.spaces import FlatSpace, image_layout, leaf_values
from worldmodel.training import DataConfig, TrainingConfig, fit

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


def test_statistics_are_saved_with_the_weights():
    one, other = StateNormalizer(BOX).fit([observations(50)]), StateNormalizer(BOX)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.encode(observations(5))[0], other.encode(observations(5))[0])


@pytest.mark.parametrize("batches", [[], [np.zeros(0, np.int64)]])
def test_fitting_to_no_observations_raises(batches):
    with pytest.raises(ValueError, match="observations: expected at least one, got none"):
        StateNormalizer(spaces.Discrete(3)).fit(batches)


def test_latents_have_the_given_mean_and_variance():
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


# A V defined in this file

FITTING = {
    "config": MDNRNNConfig(hidden_size=4, num_components=2),
    "data_config": DataConfig(window=6, batch_size=4, test_fraction=0.25),
    "training_config": TrainingConfig(num_updates=2, evaluate_every=2),
}


class NoisyScaler(Vision):
    """Divides a vector by one number and adds noise."""

    def __init__(self, observation_space, noise=-4.0):
        super().__init__()
        self.flat_space, self.noise = FlatSpace(observation_space), noise
        self.latent_size = self.flat_space.size
        self.register_buffer("scale", torch.ones(()))

    @property
    def observation_space(self):
        return self.flat_space.space

    def encode(self, observation):
        mean = self.flat_space.flatten(observation) / self.scale
        return mean, torch.full_like(mean, self.noise)

    def decode(self, z):
        return self.flat_space.unflatten(z * self.scale)

    def fit(self, observations):
        self.scale.fill_(max(float(np.abs(batch).max()) for batch in observations))
        return self

    def config_to_json(self):
        return {"noise": self.noise}


class MeanImage(Vision):
    """Encodes the mean brightness of an image."""

    latent_size = 1

    def __init__(self, observation_space):
        super().__init__()
        self._space = observation_space
        self.image_layout_ = image_layout(observation_space)
        self.register_buffer("unit", torch.tensor(255.0))

    observation_space = property(lambda self: self._space)
    image_layout = property(lambda self: self.image_layout_)

    def encode(self, observation):
        mean = torch.as_tensor(observation).float().flatten(-3).mean(dim=-1, keepdim=True) / self.unit
        return mean, torch.full_like(mean, -torch.inf)

    def decode(self, z):
        grey = (z * self.unit).clamp(0, 255).to(torch.uint8)
        return grey[..., None, None].expand(*z.shape[:-1], *self._space.shape).contiguous()


def walks(path):
    return write_store(path, [walking_episode(i, 5 + 3 * i) for i in range(8)]).path


def test_a_new_v_is_saved_and_opened_by_its_class_name(tmp_path):
    vision = NoisyScaler(BOX, noise=-3.0).fit([observations(9)])
    vision.provenance = {"made": "here"}
    vision.save_pretrained(tmp_path / "v")
    back = Vision.from_pretrained(tmp_path / "v")
    assert type(back) is NoisyScaler
    assert (back.noise, back.provenance) == (-3.0, {"made": "here"})
    assert back.fingerprint == vision.fingerprint
    assert not back.training
    with pytest.raises(ValueError, match="v: expected a ConvVAE, got a NoisyScaler"):
        ConvVAE.from_pretrained(tmp_path / "v")


def test_a_v_of_an_unknown_class_is_rejected_by_name(tmp_path):
    NoisyScaler(BOX).save_pretrained(tmp_path / "v")
    content = json.loads((tmp_path / "v" / "vision.json").read_text())
    del content["sha256"]
    (tmp_path / "v" / "vision.json").write_text(json.dumps(content | {"class": "Elsewhere"}))
    message = r"v: vision: expected one of the registered classes .*'NoisyScaler'.*, got 'Elsewhere'; import the module"
    with pytest.raises(ValueError, match=message):
        Vision.from_pretrained(tmp_path / "v")


def test_the_file_of_a_vae_still_names_no_class(tmp_path):
    ConvVAE(spaces.Box(0, 255, (24, 20, 3), np.uint8), VAEConfig(latent_size=2)).save_pretrained(tmp_path / "v")
    content = json.loads((tmp_path / "v" / "vision.json").read_text())
    assert [name for name in content if not name.startswith("weights") and name != "sha256"] == [
        "format",
        "version",
        "config",
        "observation_space",
        "fingerprint",
        "provenance",
    ]
    assert type(Vision.from_pretrained(tmp_path / "v")) is ConvVAE


@pytest.mark.parametrize("given", ["trained", "class"])
def test_a_world_with_a_new_v_is_fitted_saved_opened_dreamed_and_decoded(tmp_path, given):
    path = walks(tmp_path / "data")
    trained = NoisyScaler(walking_episode(0, 5) and spaces.Box(-np.inf, np.inf, (2,), np.float32))
    trained.scale.fill_(2.0)
    world = fit(path, out=tmp_path / "world", vision=trained if given == "trained" else NoisyScaler, **FITTING)
    assert isinstance(world.vision, NoisyScaler)
    assert (world.vision.scale == 2.0) == (given == "trained")
    assert (world.start_log_variance == -4.0).all()
    opened = WorldModel.from_pretrained(tmp_path / "world")
    assert opened.fingerprint == world.fingerprint
    dreams = Dreams(opened, 3)
    actions = opened.action_features.sample(3, generator=torch.Generator().manual_seed(0))
    state, _, _ = dreams.step(dreams.start(generator=dreams.generator(0)), actions, generator=dreams.generator(1))
    torch.testing.assert_close(opened.decode(state.z), state.z * opened.vision.scale)
    again = fit(path, out=tmp_path / "again", vision=trained if given == "trained" else NoisyScaler, **FITTING)
    assert again.fingerprint == world.fingerprint


def test_a_class_that_is_not_fitted_in_one_pass_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="vision: expected a class that is fitted in one pass, got ConvVAE; train it"):
        fit(walks(tmp_path / "data"), out=tmp_path / "world", vision=ConvVAE, **FITTING)
    with pytest.raises(NotImplementedError, match="MeanImage cannot be fitted in one pass"):
        MeanImage(DotEnv.observation_space).fit([])


def test_a_new_v_of_images_is_fitted_on_and_drawn(tmp_path):
    store = dot_store(tmp_path / "data")
    world = fit(store.path, out=tmp_path / "world", vision=MeanImage(store.observation_space), **FITTING)
    vision = pictures.image_vision(world)
    frames = store.read(0).observations
    assert pictures.reconstructions(vision, frames).ndim == 3
    assert pictures.traversals(vision, frames, steps=3).ndim == 3
    assert pictures.dream_strip(world, store.read(0), every=2, pictures=2).shape[-1] == 3


def test_a_v_without_a_decoder_raises_on_decode():
    class Blind(NoisyScaler):
        decode = Vision.decode

    world = random_world()
    assert world.vision.has_decoder
    world.vision = Blind(world.observation_space)
    assert not world.vision.has_decoder
    with pytest.raises(ValueError, match="expected a V with a decoder, got Blind"):
        DreamVectorEnv(world, 1, observation="decoded")
    with pytest.raises(NotImplementedError, match="Blind has no decoder"):
        world.decode(torch.zeros(2))
