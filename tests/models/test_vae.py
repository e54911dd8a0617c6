"""V for images: shapes, layouts, loss, precision, saving, learning."""

import json
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn import functional
from toy_images import COLOUR, GREY, MIXED, DotEnv, dot_store, random_images

import worldmodel as wm
from worldmodel.dream import Reality
from worldmodel.models import MDNRNN, ConvVAE, FrameBatch, VAEConfig
from worldmodel.spaces import leaf_values


def make_vae(space=COLOUR, seed=0, **config):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ConvVAE(space, VAEConfig(**{"latent_size": 6, **config})).eval()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(64, 64, 3), (3, 40, 30), (96, 120), (20, 33, 1), (2, 16, 16)], ids=str)
@pytest.mark.parametrize("leading", [(), (1,), (2, 3)], ids=str)
def test_any_image_is_encoded_and_decoded_in_its_own_shape(shape, leading):
    space = spaces.Box(0, 255, shape, np.uint8)
    vision, images = make_vae(space), random_images(space, leading)
    mean, log_variance = vision.encode(images)
    assert mean.shape == log_variance.shape == (*leading, 6)
    assert mean.isfinite().all()
    assert log_variance.isfinite().all()
    back = vision.decode(mean)
    assert back.shape == images.shape
    assert back.dtype == torch.uint8


def test_the_network_has_the_parameters_of_the_paper():
    vision = make_vae(spaces.Box(0, 255, (64, 64, 3), np.uint8), latent_size=32)
    shapes = [tuple(layer.weight.shape) for layer in (*vision.convolutions, *vision.deconvolutions)]
    assert shapes[:4] == [(32, 3, 4, 4), (64, 32, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4)]
    assert shapes[4:] == [(1024, 128, 5, 5), (128, 64, 5, 5), (64, 32, 6, 6), (32, 3, 6, 6)]
    assert sum(parameter.numel() for parameter in vision.parameters()) == 4_348_547  # as the paper counts them


def test_outputs_equal_those_of_plain_torch_layers():
    space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    vision, images = make_vae(space), random_images(space, (2,))
    x = torch.as_tensor(images).permute(0, 3, 1, 2) / 255
    for layer in vision.convolutions:
        x = layer(x).relu()
    features = x.permute(0, 2, 3, 1).flatten(1)
    mean, log_variance = vision.encode(images)
    torch.testing.assert_close(mean, vision.mean_head(features))
    torch.testing.assert_close(log_variance, vision.log_variance_head(features))
    y = vision.expand(mean)[:, :, None, None]
    for layer in vision.deconvolutions[:-1]:
        y = layer(y).relu()
    y = vision.deconvolutions[-1](y).sigmoid().permute(0, 2, 3, 1)
    torch.testing.assert_close(vision.decode_images(mean), y)


def test_channels_first_and_last_are_the_same_image():
    last = spaces.Box(0, 255, (40, 30, 3), np.uint8)
    first = spaces.Box(0, 255, (3, 40, 30), np.uint8)
    images = random_images(last, (2,))
    one, other = make_vae(last), make_vae(first)
    other.load_state_dict(one.state_dict())
    z = one.encode(images)[0]
    torch.testing.assert_close(other.encode(images.transpose(0, 3, 1, 2))[0], z)
    assert torch.equal(other.decode(z), one.decode(z).permute(0, 3, 1, 2))


def test_a_cropped_area_is_ignored_and_decodes_to_black():
    space = spaces.Box(0, 255, (96, 96, 3), np.uint8)
    vision, images = make_vae(space, crop_bottom=12, crop_left=5), random_images(space, (2,))
    changed = images.copy()
    changed[:, 84:], changed[:, :, :5] = 0, 7
    assert torch.equal(vision.encode(images)[0], vision.encode(changed)[0])
    changed[:, 70, 20] ^= 255
    assert not torch.equal(vision.encode(images)[0], vision.encode(changed)[0])
    back = vision.decode(vision.encode(images)[0])
    assert (back[:, 84:] == 0).all()
    assert (back[:, :, :5] == 0).all()
    assert (back[:, :84, 5:] > 0).any(dim=-1).all()


def test_leaves_other_than_the_image_are_standardised_and_follow_its_latents():
    vision = make_vae(MIXED)
    rng = np.random.default_rng(0)
    batch = {
        "screen": random_images(COLOUR, (50,)),
        "speed": rng.normal(7, 3, size=(50, 2)).astype(np.float32),
        "gear": rng.integers(3, size=50),
    }
    vision.vectors.fit([{"speed": batch["speed"], "gear": batch["gear"]}])
    assert vision.latent_size == 6 + 2 + 3
    mean, log_variance = vision.encode(batch)
    assert mean.shape == (50, 11)
    torch.testing.assert_close(mean[:, 9:].mean(dim=0), torch.zeros(2), rtol=0, atol=1e-5)
    assert torch.equal(mean[:, 6:9], torch.eye(3)[batch["gear"]])  # choices are one-hot, and leaves in the order of their names
    assert log_variance[:, :6].isfinite().all()
    assert (log_variance[:, 6:] == -torch.inf).all()
    back = vision.decode(mean)
    np.testing.assert_allclose(back["speed"], batch["speed"], rtol=1e-4)
    assert (back["gear"].numpy() == batch["gear"]).all()
    assert back["screen"].shape == batch["screen"].shape
    torch.testing.assert_close(vision.encode({key: leaf[3] for key, leaf in batch.items()})[0], mean[3])


@pytest.mark.parametrize("free_bits", ["total", "dimension"])
@pytest.mark.parametrize("tolerance", [0.0, 1e-4, 0.5, 50.0])
@pytest.mark.parametrize("weight", [0.0, 30.0])
def test_the_loss_is_the_formula(weight, tolerance, free_bits):
    vision = make_vae(kl_tolerance=tolerance, free_bits=free_bits, large_error_weight=weight)
    batch = FrameBatch(torch.as_tensor(random_images(COLOUR, (5,))))
    loss, metrics = vision.loss(batch, generator=generator())
    mean, log_variance = vision.encode(batch.image)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    costly = kl.sum(dim=1).clamp(min=6 * tolerance).mean()
    if free_bits == "dimension":
        costly = kl.mean(dim=0).clamp(min=tolerance).sum()
    z = mean + posterior.stddev * torch.empty_like(mean).normal_(generator=generator())
    difference = vision.decode_images(z) - vision.small_images(batch.image)
    error = difference.square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(loss, error.mean() + weight * difference.pow(4).sum(dim=(1, 2, 3)).mean() + costly)
    torch.testing.assert_close(metrics["kl"], kl.sum(dim=1).mean())
    torch.testing.assert_close(metrics["squared_error"], error.mean())
    pixels = 255 * functional.mse_loss(vision.decode_images(z), vision.small_images(batch.image)).sqrt()
    torch.testing.assert_close(metrics["error_per_pixel"], pixels)


def test_dimensions_in_use_are_those_whose_mean_varies():
    vision = make_vae()
    with torch.no_grad():
        vision.mean_head.weight[:4] = 0  # these four are constant over images
        vision.mean_head.weight[4:] *= 100
    _, metrics = vision.loss(FrameBatch(torch.as_tensor(random_images(COLOUR, (20,)))), generator=generator())
    assert metrics["dimensions_in_use"] == 2


@pytest.mark.parametrize(("free_bits", "tolerance"), [("total", 0.75), ("dimension", 0.25)])
def test_with_latents_keeps_the_given_latents_and_makes_the_others_constant(free_bits, tolerance):
    vision, others = make_vae(MIXED, free_bits=free_bits, kl_tolerance=0.25), torch.arange(6) / 10
    fewer = vision.with_latents(torch.tensor([1, 4]), others)
    assert fewer.config == VAEConfig(latent_size=2, free_bits=free_bits, kl_tolerance=tolerance)
    assert fewer.latent_size == vision.latent_size - 4
    observations = {path: np.asarray(leaf) for path, leaf in vision.decode(torch.randn(3, vision.latent_size)).items()}
    for part, whole in zip(fewer.encode(observations), vision.encode(observations), strict=True):
        torch.testing.assert_close(part, torch.cat([whole[:, [1, 4]], whole[:, 6:]], dim=1))
    latents = torch.randn(5, 2)
    whole = others.repeat(5, 1).index_copy(1, torch.tensor([1, 4]), latents)
    torch.testing.assert_close(fewer.decode_images(latents), vision.decode_images(whole))


def test_the_loss_depends_on_the_generator_only():
    vision, batch = make_vae(), FrameBatch(torch.as_tensor(random_images(COLOUR, (5,))))
    torch.manual_seed(1)
    one = vision.loss(batch, generator=generator())[0]
    torch.manual_seed(2)
    assert torch.equal(one, vision.loss(batch, generator=generator())[0])
    assert not torch.equal(one, vision.loss(batch, generator=generator(3))[0])


def test_autocast_changes_little_and_keeps_the_loss_in_float32():
    vision, batch = make_vae(), FrameBatch(torch.as_tensor(random_images(COLOUR, (5,))))
    exact = vision.loss(batch, generator=generator())[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = vision.loss(batch, generator=generator())[0]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.01, atol=0)


def test_encoding_in_parts_equals_encoding_at_once(monkeypatch):
    vision, images = make_vae(), random_images(COLOUR, (7,))
    expected = vision.encode(images)
    back = vision.decode(expected[0])
    monkeypatch.setattr("worldmodel.models.vae.ENCODE_IMAGES", 3)
    torch.testing.assert_close(vision.encode(images), expected)
    assert (vision.decode(expected[0]).int() - back.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(0, 1, (64, 64, 3), np.float32), r"observation '': expected images as uint8 .*, got floats of"),
        (spaces.Dict({"screen": COLOUR, "depth": spaces.Box(0, 1, (64, 64, 1), np.float32)}), "observation 'depth': .* floats"),
        (spaces.Dict({"screen": COLOUR, "depth": spaces.Box(0, 1, (64, 64), np.float32)}), "observation 'depth': .* floats"),
        (spaces.Box(0, 255, (64,), np.uint8), "expected one image, a Box of uint8 .*, got 0 in"),
        (spaces.Dict({"left": COLOUR, "right": COLOUR}), "got 2 in"),
    ],
)
def test_a_space_without_exactly_one_image_raises(space, message):
    with pytest.raises(ValueError, match=message):
        ConvVAE(space)


def test_frames_of_another_size_or_dtype_raise():
    vision = make_vae()
    with pytest.raises(ValueError, match=r"expected frames of shape \(24, 20, 3\), got \(2, 20, 24, 3\)"):
        vision.encode(np.zeros((2, 20, 24, 3), np.uint8))
    with pytest.raises(ValueError, match=r"expected uint8 frames, got torch\.float32"):
        vision.encode(np.zeros((2, 24, 20, 3), np.float32))
    with pytest.raises(ValueError, match=r"z: expected shape \(..., 6\), got \(2, 5\)"):
        vision.decode(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="expected a leaf 'screen'"):
        make_vae(MIXED).encode({"speed": np.zeros(2)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"latent_size": 0}, "latent_size: expected an integer >= 1"),
        ({"kl_tolerance": -1}, "kl_tolerance: expected a finite number >= 0"),
        ({"large_error_weight": math.inf}, "large_error_weight: expected a finite number >= 0"),
        ({"free_bits": "none"}, "free_bits: expected 'total' or 'dimension'"),
        ({"crop_top": -1}, "crop_top: expected an integer >= 0"),
    ],
)
def test_a_configuration_out_of_range_raises(config, message):
    with pytest.raises(ValueError, match=message):
        VAEConfig(**config)


def test_a_crop_that_leaves_nothing_raises():
    with pytest.raises(ValueError, match="crop: expected at least one row and one column to remain"):
        make_vae(crop_top=20, crop_bottom=4)


# Saving


@pytest.mark.parametrize("space", [COLOUR, GREY, MIXED], ids=["colour", "grey", "mixed"])
def test_a_saved_v_is_the_same_v(space, tmp_path):
    vision = make_vae(space, kl_tolerance=0.1)
    vision.save_pretrained(tmp_path / "v")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    back = ConvVAE.from_pretrained(tmp_path / "v")
    assert torch.equal(torch.get_rng_state(), state)
    assert back.fingerprint == vision.fingerprint
    assert back.config == vision.config
    assert back.observation_space == space


def test_fingerprints_differ_if_encodings_differ():
    found = [make_vae(), make_vae(seed=1), make_vae(crop_top=2), make_vae(spaces.Box(0, 255, (20, 24, 3), np.uint8))]
    assert len({vision.fingerprint for vision in found}) == 4
    assert (
        make_vae(kl_tolerance=0.0, min_nats=0.1).fingerprint == make_vae().fingerprint
    )  # these fields change only the training


def write_content(directory, content):
    """Write vision.json without a checksum, as earlier versions did."""
    kept = {name: value for name, value in content.items() if name != "sha256"}
    (directory / "vision.json").write_text(json.dumps(kept), encoding="utf-8")


def test_a_v_of_format_version_1_opens(tmp_path):
    make_vae().save_pretrained(tmp_path / "v")
    content = json.loads((tmp_path / "v" / "vision.json").read_text())
    write_content(tmp_path / "v", content | {"version": 1, "fingerprint": "another"})
    assert ConvVAE.from_pretrained(tmp_path / "v").fingerprint == make_vae().fingerprint


def test_a_damaged_v_raises(tmp_path):
    make_vae().save_pretrained(tmp_path / "v")
    make_vae(seed=1).save_pretrained(tmp_path / "w")
    other = json.loads((tmp_path / "w" / "vision.json").read_text(encoding="utf-8"))
    (tmp_path / "w" / other["weights"]).replace(tmp_path / "v" / other["weights"])
    names = {name: other[name] for name in ("weights", "weights_sha256")}
    write_content(tmp_path / "v", json.loads((tmp_path / "v" / "vision.json").read_text(encoding="utf-8")) | names)
    with pytest.raises(ValueError, match="expected a complete V, got a damaged one: the fingerprint is not the one recorded"):
        ConvVAE.from_pretrained(tmp_path / "v")
    content = json.loads((tmp_path / "v" / "vision.json").read_text())
    del content["config"]
    write_content(tmp_path / "v", content)
    with pytest.raises(ValueError, match="damaged one: KeyError: 'config'"):
        ConvVAE.from_pretrained(tmp_path / "v")
    with pytest.raises(FileNotFoundError, match=r"vision.json: expected a worldmodel.vision file, found none"):
        ConvVAE.from_pretrained(tmp_path)


# End to end: collect, V, M, dream, reality


def test_v_learns_to_reconstruct_brightness():
    levels = torch.linspace(20, 230, 16).round().to(torch.uint8)
    batch = FrameBatch(levels.reshape(16, 1, 1, 1).expand(16, *COLOUR.shape))
    vision, noise = make_vae(kl_tolerance=0.1), generator()
    optimizer = torch.optim.Adam(vision.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        vision.loss(batch, generator=noise)[0].backward()
        optimizer.step()
    seen = vision.decode(vision.encode(batch.image)[0]).float()
    error = (seen - batch.image).square().mean()
    assert error < 0.5 * levels.float().var()


def test_a_world_of_images_is_fitted_saved_dreamed_and_compared_with_reality(tmp_path):
    dot_store(tmp_path / "data")
    vision = make_vae()
    training = wm.TrainingConfig(num_updates=2, evaluate_every=2)
    data_config = wm.DataConfig(window=8, batch_size=4, test_fraction=0.2)
    world = wm.fit(
        tmp_path / "data",
        out=tmp_path / "world",
        vision=vision,
        data_config=data_config,
        training_config=training,
        config=wm.MDNRNNConfig(hidden_size=8),
    )
    back = wm.WorldModel.from_pretrained(tmp_path / "world")
    assert back.fingerprint == world.fingerprint
    assert back.vision.fingerprint == vision.fingerprint
    assert (back.start_log_variance > -torch.inf).all()
    dreams = wm.Dreams(back, 3)
    rollout = dreams.rollout(lambda features: torch.ones(3, dtype=torch.int64), 4, generator=dreams.generator(0))
    pictures = back.decode(rollout.z)
    assert pictures.shape == (3, rollout.z.shape[1], 24, 20, 3)
    assert pictures.dtype == torch.uint8
    reality = Reality(back, DotEnv, 2, seed=0)
    state = reality.start(generator=reality.generator(0))
    state, _, _ = reality.step(state, torch.ones(2, dtype=torch.int64), generator=reality.generator(1))
    assert state.z.shape == (2, 6)
    primed = dreams.start_from(random_images(COLOUR, (3,)), torch.ones(2, dtype=torch.int64), generator=dreams.generator(0))
    assert primed.z.shape == (3, 6)


def test_worlds_with_different_vs_have_different_fingerprints():
    def world(**config):
        vision = make_vae(**config)
        model = MDNRNN(6, 3, wm.MDNRNNConfig(hidden_size=4))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.1)
        start = torch.zeros(1, 6)
        return wm.WorldModel(vision, model, spaces.Discrete(3), start_mean=start, start_log_variance=start.clone())

    assert world().fingerprint == world().fingerprint
    assert len({world().fingerprint, world(kl_tolerance=0.2).fingerprint, world(seed=1).fingerprint}) == 3


def test_fit_on_images_without_a_v_raises(tmp_path):
    dot_store(tmp_path / "data", 2)
    with pytest.raises(ValueError, match=r"vision: expected a trained V, as the observations are images .*train_vae"):
        wm.fit(tmp_path / "data", out=tmp_path / "world")


def test_a_v_of_another_space_raises(tmp_path):
    dot_store(tmp_path / "data", 2)
    with pytest.raises(ValueError, match="vision: expected a V of the observation space"):
        wm.fit(tmp_path / "data", out=tmp_path / "world", vision=make_vae(GREY))
    assert leaf_values(make_vae(GREY).decode(torch.zeros(6)))[""].shape == (24, 20)
