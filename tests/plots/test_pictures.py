"""Pictures and videos of an image world model."""

import builtins
import errno
import os

import numpy as np
import pytest
import torch
from gymnasium import spaces
from matplotlib import image
from matplotlib.figure import Figure
from test_vae import make_vae
from toy_images import COLOUR, GREY, DotEnv, random_images
from toy_worlds import random_world

import worldmodel as wm
from worldmodel.data import rollouts
from worldmodel.dream import RandomActions
from worldmodel.models import MDNRNN
from worldmodel.plots import (
    colour,
    dream_frames,
    dream_strip,
    grid,
    real_frames,
    reconstructions,
    save_figure,
    save_image,
    traversals,
    write_video,
)


@pytest.fixture
def world():
    vision = make_vae()
    model = MDNRNN(6, 3, wm.MDNRNNConfig(hidden_size=4, termination_head=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    start = torch.zeros(3, 6)
    return wm.WorldModel(vision, model, spaces.Discrete(3), start_mean=start, start_log_variance=start.clone())


@pytest.fixture
def episode():
    return next(rollouts(DotEnv, episode_ids=[0], seed=0))


def test_a_grid_lays_rows_out_with_white_gaps():
    pictures = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 5, 3), np.uint8)
    picture = grid([pictures[:3], pictures[3:]])
    assert picture.shape == (3 + 2 + 3, 5 + 2 + 5 + 2 + 5, 3)
    assert (picture[:3, :5] == 0).all()
    assert (picture[5:, 14:] == 5).all()
    assert (picture[3:5] == 255).all()
    assert (picture[:, 5:7] == 255).all()


@pytest.mark.parametrize("space", [COLOUR, GREY, spaces.Box(0, 255, (3, 24, 20), np.uint8)], ids=str)
def test_originals_stand_above_their_reconstructions(space):
    vision, images = make_vae(space), random_images(space, (4,))
    picture = reconstructions(vision, images)
    assert picture.shape == (2 * 24 + 2, 4 * 22 - 2, 3)
    assert (picture[:24, :20] == colour(vision, images)[0]).all()
    assert (picture[26:, :20] == colour(vision, vision.decode(vision.encode(images)[0]))[0]).all()


def test_a_row_shows_the_effect_of_one_used_latent():
    vision = make_vae()
    with torch.no_grad():
        vision.mean_head.weight[:4] = 0  # not in use
        vision.mean_head.weight[4:] *= 100
    images = random_images(COLOUR, (20,))
    picture = traversals(vision, images, steps=5, reach=2.0)
    assert picture.shape == (2 * 26 - 2, 5 * 22 - 2, 3)
    means = vision.encode(images)[0]
    z = means[10].repeat(5, 1)
    z[:, means.var(dim=0).argmax()] = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])  # in units of the prior
    expected = colour(vision, vision.decode(z))
    assert all((picture[:24, 22 * i : 22 * i + 20] == expected[i]).all() for i in range(5))
    assert (picture[:24, :20] != picture[:24, -20:]).any()


def test_all_used_latents_are_shown_in_columns():
    vision, images = make_vae(), random_images(COLOUR, (20,))
    with torch.no_grad():
        vision.mean_head.weight *= 100
    column = 3 * 22 - 2
    picture = traversals(vision, images, steps=3, rows=4)
    assert picture.shape == (4 * 26 - 2, 2 * column + 8, 3)
    assert (picture[:, column : column + 8] == 255).all()
    assert (picture[: 2 * 26 - 2, column + 8 :] == traversals(vision, images, steps=3)[4 * 26 :]).all()
    assert (picture[2 * 26 :, column + 8 :] == 255).all()  # six latents
    assert traversals(vision, images, steps=3, most=2).shape == (2 * 26 - 2, column, 3)
    middle, other = traversals(vision, images, most=1, around=10), traversals(vision, images, most=1, around=3)
    assert (middle == traversals(vision, images, most=1)).all()
    assert (middle != other).any()


def test_a_strip_shows_reality_above_a_dream_from_the_same_start(world, episode):
    picture = dream_strip(world, episode, every=3, pictures=3)
    assert picture.shape == (2 * 24 + 2, 3 * 22 - 2, 3)
    assert (picture[:24, 22:42] == episode.observations[3]).all()
    assert (dream_strip(world, episode, every=3, pictures=3, seed=1)[26:] != picture[26:]).any()


def test_frames_of_a_dream_and_of_an_episode_become_videos(world, episode, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    dreams = wm.Dreams(world, 8)
    frames = dream_frames(dreams, RandomActions(world, generator=dreams.generator(1)), horizon=6, seed=0)
    assert frames.shape == (7, 24, 20, 3)
    assert write_video(tmp_path / "dream.mp4", frames) == 7
    assert write_video(tmp_path / "real.mp4", real_frames(world, episode, at_once=4), enlarge=3) == len(episode) + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dream.mp4", "real.mp4"]
    assert b"ftyp" in (tmp_path / "dream.mp4").read_bytes()[:16]


def test_a_real_frame_stands_next_to_its_reconstruction(world, episode):
    frames = list(real_frames(world, episode, at_once=4))
    assert (frames[5][:, :20] == episode.observations[5]).all()
    assert (frames[5][:, 22:] == world.vision.decode(world.vision.encode(episode.observations[5])[0]).numpy()).all()


def test_invalid_frames_raise_and_leave_no_file(tmp_path, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(ValueError, match="expected at least one frame, got none"):
        write_video(tmp_path / "v.mp4", [])
    with pytest.raises(ValueError, match="expected equal shapes"):
        write_video(tmp_path / "v.mp4", [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)])
    for frame in (np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"frames: expected uint8 of shape \(H, W, 3\) or \(H, W\), got"):
            write_video(tmp_path / "v.mp4", [frame])
    real_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "imageio_ffmpeg":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'worldmodel\[video\]'"):
        write_video(tmp_path / "v.mp4", [np.zeros((8, 8, 3), np.uint8)])
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_saved(tmp_path):
    picture = random_images(COLOUR, ())
    save_image(picture, tmp_path / "p.png", enlarge=2)
    found = (255 * image.imread(tmp_path / "p.png")[..., :3]).round().astype(np.uint8)
    assert (found == picture.repeat(2, axis=0).repeat(2, axis=1)).all()


def test_a_picture_that_cannot_be_written_leaves_the_old_one_and_names_its_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    figure = Figure()
    save_figure(figure, tmp_path / "p.png")
    old = (tmp_path / "p.png").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: save_image(random_images(COLOUR, ()), tmp_path / "p.png"),
        lambda: save_figure(figure, tmp_path / "p.png"),
    ):
        with pytest.raises(OSError, match=r"p\.png"):
            write()
        assert (tmp_path / "p.png").read_bytes() == old


def test_a_world_without_images_is_rejected(episode):
    with pytest.raises(ValueError, match="expected a V that encodes and decodes images"):
        dream_strip(random_world(), episode)
