"""Batches of frames for V, and resuming its training."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_data import labelled_episode, write_store
from toy_images import COLOUR, MIXED, dot_store

import worldmodel as wm
from worldmodel.data import Episode, EpisodeCollection, split_episodes
from worldmodel.models import IN_USE, divergence
from worldmodel.training import FrameData, frames, train_vae

SMALL = {"config": wm.VAEConfig(latent_size=3), "frame_config": wm.FrameConfig(batch_size=8, test_fraction=0.25)}


def config(num_updates=4, **fields):
    return wm.TrainingConfig(**{"num_updates": num_updates, "evaluate_every": 2, "max_test_batches": 2, **fields})


def numbered_store(path, lengths):
    """Write a store whose frames are filled with their own number."""
    store = wm.EpisodeStore.create(path, observation_space=COLOUR, action_space=spaces.Discrete(2))
    first = 0
    for episode_id, length in enumerate(lengths):
        last = np.arange(length) == length - 1
        frames = np.broadcast_to(np.arange(first, first + length + 1)[:, None, None, None], (length + 1, *COLOUR.shape))
        first += length + 1
        store.append(
            [
                Episode(
                    observations=frames.astype(np.uint8),
                    actions=np.zeros(length, np.int64),
                    rewards=np.zeros(length),
                    terminations=last,
                    truncations=last & False,
                    episode_id=episode_id,
                )
            ]
        )
    return EpisodeCollection([store])


def frames_of(data, epoch):
    return [number for batch in numbers(data, epoch) for number in batch]


def numbers(data, epoch):
    return [data.batch(epoch, index).image[:, 0, 0, 0].tolist() for index in range(data.num_batches(epoch))]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "WINDOW", 4)
    monkeypatch.setattr(frames, "POOL_BATCHES", 4)
    episodes = numbered_store(tmp_path / "numbered", [3, 4, 30, 1, 57, 9])  # 110 frames
    return FrameData(episodes, np.arange(6), path="", batch_size=5, seed=3)


def test_an_epoch_holds_every_frame_at_most_once_and_nearly_all_frames(data):
    for epoch in range(3):
        dealt = frames_of(data, epoch)
        assert len(set(dealt)) == len(dealt)
        assert set(dealt) <= set(range(110))
        assert len(dealt) > 85


def test_frames_are_shuffled_over_episodes_and_again_in_each_epoch(data):
    one, other = frames_of(data, 0), frames_of(data, 1)
    assert one != other
    assert len({number // 10 for number in one[:5]}) > 2


def test_a_batch_is_a_function_of_seed_epoch_and_index(data):
    expected = [numbers(data, 0), numbers(data, 1)]
    again = FrameData(data._episodes, np.arange(6), path="", batch_size=5, seed=3)
    last = again.num_batches(1) - 1
    assert again.batch(1, last).image[:, 0, 0, 0].tolist() == expected[1][last]
    assert numbers(again, 0) == expected[0]
    assert numbers(FrameData(data._episodes, np.arange(6), path="", batch_size=5, seed=4), 0) != expected[0]
    with pytest.raises(IndexError, match="expected a batch in"):
        data.batch(0, 100)


def test_held_out_frames_are_in_order(data):
    held_out = FrameData(data._episodes, np.array([1, 5]), path="", batch_size=8, seed=0, shuffle=False)
    assert frames_of(held_out, 0)[:5] == [4, 5, 6, 7, 8]
    assert numbers(held_out, 0) == numbers(held_out, 7)


def test_every_held_out_frame_is_read_for_any_batch_size(tmp_path):
    dot_store(tmp_path / "data", 8)
    episodes = EpisodeCollection.open(tmp_path / "data")
    for batch_size in (1, 40, 48, 100):
        held_out = FrameData(episodes, np.arange(8), path="", batch_size=batch_size, seed=0, shuffle=False)
        seen = sum(len(held_out.batch(0, index).image) for index in range(held_out.num_batches(0)))
        assert seen == episodes.lengths.sum() + len(episodes)


def test_fewer_frames_than_a_batch_are_one_batch(data):
    few = FrameData(data._episodes, np.array([3]), path="", batch_size=8, seed=0)
    assert few.num_batches(0) == 1
    assert sorted(numbers(few, 0)[0]) == [40, 41]


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_resumed_training_gives_the_same_v_as_an_uninterrupted_one(tmp_path, optimizer):
    settings = config(optimizer=optimizer)
    dot_store(tmp_path / "data", 8)
    whole = train_vae(tmp_path / "data", out=tmp_path / "whole", training_config=settings, **SMALL)

    def stop(progress):
        raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="pulled the plug"):
        train_vae(
            tmp_path / "data", out=tmp_path / "cut", training_config=settings, **SMALL, run=wm.RunConfig(on_progress=stop)
        )
    with pytest.raises(FileExistsError, match="expected no earlier run, got one"):
        train_vae(tmp_path / "data", out=tmp_path / "cut", training_config=settings, **SMALL, run=wm.RunConfig(resume=False))
    resumed = train_vae(tmp_path / "data", out=tmp_path / "cut", training_config=settings, **SMALL)
    assert resumed.fingerprint == whole.fingerprint
    assert resumed.provenance["training"]["best_metrics"] == whole.provenance["training"]["best_metrics"]
    again = train_vae(tmp_path / "data", out=tmp_path / "cut", training_config=settings, **SMALL)
    assert again.fingerprint == whole.fingerprint
    assert whole.provenance["training"]["updates"] == 4
    assert wm.ConvVAE.from_pretrained(tmp_path / "whole").provenance["data_fingerprint"]


def test_resuming_with_other_arguments_raises(tmp_path):
    dot_store(tmp_path / "data", 4)
    train_vae(tmp_path / "data", out=tmp_path / "v", training_config=config(1), **SMALL)
    with pytest.raises(ValueError, match="expected seed 0, as in the run that is there, got 1"):
        train_vae(tmp_path / "data", out=tmp_path / "v", training_config=config(1), seed=1, **SMALL)


def test_weights_depend_on_the_seed_and_not_on_the_global_seed(tmp_path):
    dot_store(tmp_path / "data", 4)
    found = []
    for number, seed in enumerate([0, 0, 1]):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        vision = train_vae(tmp_path / "data", out=tmp_path / f"{number}", training_config=config(4), seed=seed, **SMALL)
        assert torch.equal(torch.get_rng_state(), before)
        found.append((vision.fingerprint, vision.provenance["training"]["best_metrics"]))
    assert found[0] == found[1] != found[2]


def test_training_continues_from_an_initial_v(tmp_path):
    dot_store(tmp_path / "data", 4)
    first = train_vae(tmp_path / "data", out=tmp_path / "a", training_config=config(1), **SMALL)
    slow = config(1, learning_rate=1e-12, final_learning_rate=0)
    second = train_vae(tmp_path / "data", out=tmp_path / "b", training_config=slow, initial=first)
    torch.testing.assert_close(second.mean_head.weight, first.mean_head.weight)
    with pytest.raises(ValueError, match="config: expected None with an initial V"):
        train_vae(tmp_path / "data", out=tmp_path / "c", initial=first, **SMALL)


def test_a_pool_of_large_frames_holds_fewer_frames(data, monkeypatch):
    monkeypatch.setattr(frames, "POOL_BYTES", 8 * COLOUR.shape[0] * COLOUR.shape[1] * 3)
    small = FrameData(data._episodes, np.arange(6), path="", batch_size=5, seed=3)
    assert len(small._frames(0, 0)) <= 10 < len(data._frames(0, 0))  # two windows of 4 steps, each with at most one last frame
    dealt = frames_of(small, 0)
    assert len(set(dealt)) == len(dealt) > 55


@pytest.mark.parametrize("kept", [1, 2])
def test_latents_with_little_kl_are_removed(tmp_path, kept):
    dot_store(tmp_path / "data", 8)
    settings = config(max_test_batches=1000)
    whole = train_vae(tmp_path / "data", out=tmp_path / "whole", training_config=settings, **SMALL)
    _, held_out = split_episodes(8, test_fraction=0.25, seed=0)
    episodes = EpisodeCollection.open(tmp_path / "data")
    data = FrameData(episodes, held_out, path="", batch_size=8, seed=0, shuffle=False)
    frames = torch.cat([data.batch(0, index).image for index in range(data.num_batches(0))])
    nats = divergence(*whole.encode(frames)).mean(dim=0)
    bound = nats.sort(descending=True).values[[kept - 1, kept]].mean().item() if kept > 1 else 1e9  # one latent always stays
    fewer = {**SMALL, "config": wm.VAEConfig(latent_size=3, min_nats=bound)}
    arguments = {"out": tmp_path / "fewer", "training_config": settings, **fewer}
    vision = train_vae(tmp_path / "data", **arguments)
    assert vision.latent_size == kept
    in_use = int((whole.encode(frames)[0].var(dim=0, correction=0) > IN_USE).sum())
    assert vision.provenance["latents"] == {"size": 3, "in_use": in_use, "kept": kept}
    assert whole.provenance["latents"] == {"size": 3, "in_use": in_use, "kept": 3}
    number = nats.topk(kept).indices.sort().values
    torch.testing.assert_close(vision.encode(frames)[0], whole.encode(frames)[0][:, number])
    assert train_vae(tmp_path / "data", **arguments).fingerprint == vision.fingerprint


def test_other_leaves_than_the_image_are_standardised_over_the_training_episodes(tmp_path):
    store = wm.EpisodeStore.create(tmp_path / "data", observation_space=MIXED, action_space=spaces.Discrete(2))
    rng, steps = np.random.default_rng(0), 20
    for episode_id in range(2):
        observations = {
            "screen": rng.integers(0, 256, (steps + 1, *COLOUR.shape), dtype=np.uint8),
            "speed": rng.normal(5 + 9 * episode_id, 2, (steps + 1, 2)).astype(np.float32),
            "gear": rng.integers(3, size=steps + 1),
        }
        made = labelled_episode(episode_id, steps)
        parts = {name: getattr(made, name) for name in ("rewards", "terminations", "truncations", "episode_id")}
        store.append([Episode(observations=observations, actions=made.actions % 2, **parts)])
    vision = train_vae(tmp_path / "data", out=tmp_path / "v", training_config=config(1), **SMALL)
    ((train,), _) = split_episodes(2, test_fraction=0.25, seed=0)
    mean, _ = vision.encode(store.read(int(train)).observations)
    torch.testing.assert_close(mean[:, 6:].mean(dim=0), torch.zeros(2), rtol=0, atol=1e-5)
    assert (mean[:, 3:6].sum(dim=1) == 1).all()  # a choice is one-hot


def test_data_without_an_image_raise(tmp_path):
    write_store(tmp_path / "data", [labelled_episode(0, 3)])
    with pytest.raises(ValueError, match="observation_space: expected one image"):
        train_vae(tmp_path / "data", out=tmp_path / "v")
