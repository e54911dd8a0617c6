"""Several cameras: several images of one Dict observation, each with its own V."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

import worldmodel as wm
from worldmodel.data import ConversionConfig, from_arrays
from worldmodel.evaluation import likelihood, open_loop
from worldmodel.models import Cameras, ConvVAE, Vision
from worldmodel.plots import colour
from worldmodel.spaces import map_leaves
from worldmodel.training import FrameConfig, train_cameras

VAE = wm.VAEConfig(latent_size=3)
TRAINING = wm.TrainingConfig(num_updates=3, evaluate_every=3)
SPACE = spaces.Dict(
    {
        "arm": spaces.Box(-1, 1, (2,), np.float32),
        "front": spaces.Box(0, 255, (16, 16, 3), np.uint8),
        "wrist": spaces.Box(0, 255, (12, 20), np.uint8),
    }
)


def cameras(seed=0):
    torch.manual_seed(seed)
    visions = [
        ConvVAE(spaces.Dict({name: SPACE[name]}), wm.VAEConfig(latent_size=size)) for name, size in (("front", 3), ("wrist", 2))
    ]
    return Cameras(SPACE, visions)


def observations(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "arm": rng.uniform(-1, 1, (count, 2)).astype(np.float32),
        "front": rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8),
        "wrist": rng.integers(0, 256, (count, 12, 20), dtype=np.uint8),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    episodes = [observations(12, seed) for seed in range(6)]
    arrays = {name: [episode[name] for episode in episodes] for name in SPACE}
    actions = [np.random.default_rng(seed).uniform(-1, 1, (11, 1)) for seed in range(6)]
    return from_arrays(arrays, actions, out=tmp_path_factory.mktemp("cameras") / "s").path


def test_z_is_the_latents_of_each_camera_and_then_the_numbers():
    vision, seen = cameras(), observations(5)
    mean, log_variance = vision.encode(seen)
    assert mean.shape == log_variance.shape == (5, 7)
    for part, name, columns in ((0, "front", slice(0, 3)), (1, "wrist", slice(3, 5))):
        own = vision.visions[part].encode({name: seen[name]})
        torch.testing.assert_close(mean[:, columns], own[0])
        torch.testing.assert_close(log_variance[:, columns], own[1])
    torch.testing.assert_close(mean[:, 5:], torch.as_tensor(seen["arm"]))
    back = vision.decode(mean)
    assert {name: tuple(leaf.shape) for name, leaf in back.items()} == {
        "arm": (5, 2),
        "front": (5, 16, 16, 3),
        "wrist": (5, 12, 20),
    }
    torch.testing.assert_close(back["arm"], torch.as_tensor(seen["arm"]))


def test_leading_dimensions_are_kept():
    vision, seen = cameras(), observations(6)
    flat, _ = vision.encode(seen)
    nested, _ = vision.encode(map_leaves(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), seen))
    torch.testing.assert_close(nested.reshape(6, 7), flat)


def test_a_saved_v_of_cameras_opens_and_encodes_the_same(tmp_path):
    vision, seen = cameras(), observations(4)
    vision.save_pretrained(tmp_path / "v")
    opened = Vision.from_pretrained(tmp_path / "v")
    assert isinstance(opened, Cameras)
    assert opened.fingerprint == vision.fingerprint
    torch.testing.assert_close(opened.encode(seen)[0], vision.encode(seen)[0])


def test_the_images_of_space_and_vs_must_be_the_same():
    front = ConvVAE(spaces.Dict({"front": SPACE["front"]}), VAE)
    with pytest.raises(ValueError, match=r"expected one V for each image \['front', 'wrist'\]"):
        Cameras(SPACE, [front])
    whole = ConvVAE(spaces.Dict({"arm": SPACE["arm"], "wrist": SPACE["wrist"]}), VAE)
    with pytest.raises(ValueError, match="expected a V of the image 'wrist' alone"):
        Cameras(SPACE, [front, whole])


def test_a_single_v_for_several_images_is_refused_with_the_fix():
    with pytest.raises(ValueError, match=r"got 2 in .*train one V per image with train_cameras"):
        ConvVAE(SPACE, VAE)


def test_a_world_of_two_cameras_is_trained_dreams_and_is_scored(store, tmp_path):
    vision = train_cameras(
        store, out=tmp_path / "v", config=VAE, frame_config=FrameConfig(batch_size=8), training_config=TRAINING
    )
    assert [v.layout.path for v in vision.visions] == ["front", "wrist"]
    again = train_cameras(
        store, out=tmp_path / "v", config=VAE, frame_config=FrameConfig(batch_size=8), training_config=TRAINING
    )
    assert again.fingerprint == vision.fingerprint
    config = wm.MDNRNNConfig(hidden_size=8)
    world = wm.fit(store, out=tmp_path / "w", vision=vision, config=config, training_config=TRAINING)
    assert [(part.name, part.kind.value, part.size) for part in world.layout.parts[:2]] == [
        ("front", "image", 3),
        ("wrist", "image", 3),
    ]
    world = wm.WorldModel.from_pretrained(tmp_path / "w")
    dreams = wm.Dreams(world, 4)
    start = dreams.start(generator=dreams.generator(0))
    shown = world.decode(start.z)
    assert shown["front"].shape == (4, 16, 16, 3)
    assert colour(world.vision, shown).shape == (4, 16, 36, 3)
    assert "nll_per_dim" in likelihood(world, store).nats
    assert np.isfinite(open_loop(world, store, 2, 5, num_dreams=19).crps).all()
    encoded = wm.encode_store(store, vision=vision, out=tmp_path / "encoded")
    scores = [likelihood(world, path).nats["nll_per_dim"] for path in (store, encoded.path)]
    assert abs(scores[0] - scores[1]) < 0.5


def test_train_vae_trains_a_v_for_each_camera(store, tmp_path, run):
    words = f"train-vae --data {store} --out {tmp_path / 'v'} --latent-size 2 --num-updates 2 --evaluate-every 2 --batch-size 8"
    code, out, _ = run(words)
    assert code == 0
    assert "camera front" in out
    assert "camera wrist" in out
    assert isinstance(Vision.from_pretrained(tmp_path / "v"), Cameras)


def test_frames_of_other_sizes_are_averaged_at_conversion(tmp_path):
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8).repeat(3, axis=0) * 3
    store = from_arrays(image.repeat(2, 1).repeat(2, 2), out=tmp_path / "s", config=ConversionConfig(resize=8))
    np.testing.assert_array_equal(store.read(0).observations, image)
