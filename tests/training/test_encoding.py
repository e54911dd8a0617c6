"""Encoded stores: contents, checks of V, and training of M on them."""

import shutil

import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_vae import make_vae
from toy_data import labelled_episode, write_store
from toy_images import COLOUR, MIXED, DotEnv, dot_store, random_images

import worldmodel as wm
from worldmodel.data import Episode, EpisodeCollection, EpisodeStore, verify
from worldmodel.models import EncodedObservations, Encoder, encoded_with
from worldmodel.models import encoded as encoded_module
from worldmodel.runtime import fast_precision
from worldmodel.training import encode, encode_store


@pytest.fixture
def frames(tmp_path):
    dot_store(tmp_path / "frames", 5)
    return tmp_path / "frames"


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-3)])
def test_an_encoded_store_holds_mean_and_log_variance_of_every_frame_and_all_else_unchanged(frames, tmp_path, dtype, tolerance):
    vision = make_vae()
    store = encode_store(frames, vision=vision, out=tmp_path / "z", dtype=dtype)
    assert encoded_with(store) == vision.fingerprint
    assert verify(tmp_path / "z") == []
    for source, encoded in zip(EpisodeStore.open(frames), store, strict=True):
        mean, log_variance = vision.encode(source.observations)
        np.testing.assert_allclose(encoded.observations["mean"], mean, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(encoded.observations["log_variance"], log_variance, rtol=tolerance, atol=tolerance)
        assert encoded.observations["mean"].dtype == dtype
        for name in ("actions", "rewards", "terminations", "truncations"):
            assert (getattr(source, name) == getattr(encoded, name)).all()
        assert (source.episode_id, source.seed) == (encoded.episode_id, encoded.seed)


def test_an_encoding_without_noise_is_stored_without_noise():
    form = EncodedObservations(3)
    mean, log_variance = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, -torch.inf, -3.0])
    written = form.to_observation(mean, log_variance)
    assert form.observation_space.contains(written)
    back = form.encode(written)
    torch.testing.assert_close(back[0], mean)
    torch.testing.assert_close(back[1], log_variance)


def test_long_episodes_are_encoded_in_pieces(frames, monkeypatch):
    vision, episode = make_vae(), EpisodeStore.open(frames).read(0)
    expected = Encoder(vision, dtype="float32").encode(episode)
    monkeypatch.setattr(encoded_module, "BATCH_FRAMES", 3)
    pieces = Encoder(vision, dtype="float32").encode(episode)
    np.testing.assert_allclose(pieces.observations["mean"], expected.observations["mean"], atol=1e-6)


def test_encoding_resumes_and_continues_with_added_episodes(frames, tmp_path, monkeypatch):
    vision = make_vae()
    whole = encode_store(frames, vision=vision, out=tmp_path / "whole")

    def stop(progress):
        assert progress.total == 5
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_store(frames, vision=vision, out=tmp_path / "cut", run=wm.RunConfig(on_progress=stop))
    assert len(EpisodeStore.open(tmp_path / "cut")) == 3
    calls = []
    resumed = encode_store(
        frames, vision=vision, out=tmp_path / "cut", run=wm.RunConfig(on_progress=lambda p: calls.append((p.done, p.total)))
    )
    assert calls == [(4, 5), (5, 5)]
    assert resumed.fingerprint == whole.fingerprint
    wm.collect(DotEnv, out=frames, num_episodes=7, seed=0)
    assert len(encode_store(frames, vision=vision, out=tmp_path / "cut")) == 7


def test_a_store_encoded_with_another_v_is_not_added_to(frames, tmp_path):
    encode_store(frames, vision=make_vae(), out=tmp_path / "z")
    with pytest.raises(FileExistsError, match="expected encoded_with "):
        encode_store(frames, vision=make_vae(seed=1), out=tmp_path / "z")
    other = encode_store(frames, vision=make_vae(seed=1), out=tmp_path / "z", run=wm.RunConfig(overwrite=True))
    assert encoded_with(other) == make_vae(seed=1).fingerprint


def test_bfloat16_encodes_nearly_the_same(frames):
    episode = EpisodeStore.open(frames).read(0)
    exact, rough = (Encoder(make_vae(), precision=name).encode(episode) for name in ("float32", "bfloat16"))
    assert not np.array_equal(exact.observations["mean"], rough.observations["mean"])
    np.testing.assert_allclose(exact.observations["mean"], rough.observations["mean"], atol=5e-3)
    chosen = Encoder(make_vae(), precision="auto")
    assert chosen.precision == fast_precision(torch.device("cpu"))


def test_wrong_arguments_are_rejected(frames, tmp_path):
    with pytest.raises(ValueError, match="dtype: expected one of"):
        Encoder(make_vae(), dtype="int8")
    with pytest.raises(ValueError, match="precision: expected"):
        Encoder(make_vae(), precision="float16")
    write_store(tmp_path / "vectors", [labelled_episode(0, 3)])
    with pytest.raises(ValueError, match="expected V's observation space"):
        encode_store(tmp_path / "vectors", vision=make_vae(), out=tmp_path / "z")
    encode_store(frames, vision=make_vae(), out=tmp_path / "z")
    with pytest.raises(ValueError, match="expected V's observation space"):
        encode_store(tmp_path / "z", vision=make_vae(), out=tmp_path / "zz")


def test_frames_are_never_replaced_by_their_own_encoding(frames, tmp_path):
    with pytest.raises(ValueError, match="out: expected another directory than that of the episodes"):
        encode_store(frames, vision=make_vae(), out=tmp_path / "z" / ".." / "frames", run=wm.RunConfig(overwrite=True))
    assert len(EpisodeStore.open(frames)) == 5


@pytest.mark.parametrize(
    "other",
    [{"length": 6}, {"reward": 2.0}, {"action": 1}, {"seed": 7}, {"episode_id": 3}],
    ids=lambda other: next(iter(other)),
)
def test_recordings_with_the_same_recipe_are_distinguished(tmp_path, other):
    for name, facts in (("a", {}), ("b", other)):
        length, reward = facts.get("length", 5), facts.get("reward", 1.0)
        store = EpisodeStore.create(
            tmp_path / name, observation_space=COLOUR, action_space=spaces.Discrete(2), recipe={"source": "my robot"}
        )
        ends = np.arange(length) == length - 1
        frames = random_images(COLOUR, (length + 1,))
        parts = {"actions": np.full(length, facts.get("action", 0)), "rewards": np.full(length, reward)}
        parts |= {"episode_id": facts.get("episode_id", 0), "seed": facts.get("seed", 5)}
        store.append([Episode(observations=frames, terminations=ends, truncations=ends & False, **parts)])
    encode_store(tmp_path / "a", vision=make_vae(), out=tmp_path / "z")
    with pytest.raises(FileExistsError, match=r"expected episodes of .*b, got an episode 0 that is not there or another"):
        encode_store(tmp_path / "b", vision=make_vae(), out=tmp_path / "z")
    assert len(encode_store(tmp_path / "a", vision=make_vae(), out=tmp_path / "z")) == 1


def test_ctrl_c_during_an_append_loses_nothing(frames, tmp_path, monkeypatch):
    written = EpisodeStore._write_manifest

    def interrupted(store, *args):
        monkeypatch.setattr(EpisodeStore, "_write_manifest", written)
        raise KeyboardInterrupt

    monkeypatch.setattr(encode, "FLUSH_STEPS", 1)
    whole = encode_store(frames, vision=make_vae(), out=tmp_path / "whole")

    def interrupt_later(progress):
        if progress.done == 2:
            monkeypatch.setattr(EpisodeStore, "_write_manifest", interrupted)

    with pytest.raises(KeyboardInterrupt):
        encode_store(frames, vision=make_vae(), out=tmp_path / "z", run=wm.RunConfig(on_progress=interrupt_later))
    assert verify(tmp_path / "z") == []
    assert encode_store(frames, vision=make_vae(), out=tmp_path / "z").fingerprint == whole.fingerprint


def with_free_disk(monkeypatch, free):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - free, free))


def shard_bytes(store):
    """Return the bytes of a store's shards, without headers."""
    return sum(shard.size - shard.offsets[0] for shard in store._index.shards)


def test_encoding_more_than_the_disk_can_hold_raises_before_anything_is_written(frames, tmp_path, monkeypatch):
    vision = make_vae()
    needed = shard_bytes(encode_store(frames, vision=vision, out=tmp_path / "whole"))
    with_free_disk(monkeypatch, needed - 1)
    message = r"free: expected 0\.00 GiB of free disk for 5 encoded episodes, got 0\.00 GiB; .* \(dtype, --dtype\)"
    with pytest.raises(OSError, match=message):
        encode_store(frames, vision=vision, out=tmp_path / "new" / "free")
    assert not (tmp_path / "new").exists()
    with_free_disk(monkeypatch, needed)
    assert len(encode_store(frames, vision=vision, out=tmp_path / "new" / "free")) == 5


def test_encoding_needs_disk_only_for_missing_episodes_and_counts_what_it_replaces(frames, tmp_path, monkeypatch):
    vision, out = make_vae(), tmp_path / "z"
    with_free_disk(monkeypatch, 10**6)
    encode_store(frames, vision=vision, out=out)
    with_free_disk(monkeypatch, 0)
    before = encode_store(frames, vision=vision, out=out).fingerprint  # nothing is missing
    assert len(encode_store(frames, vision=vision, out=out, run=wm.RunConfig(overwrite=True))) == 5
    larger = make_vae(latent_size=200)
    with pytest.raises(OSError, match="GiB of free disk for 5 encoded episodes"):
        encode_store(frames, vision=larger, out=out, run=wm.RunConfig(overwrite=True))
    assert EpisodeStore.open(out).fingerprint == before


# Collecting without frames


def test_collecting_with_a_v_more_than_the_disk_can_hold_raises(frames, tmp_path, monkeypatch):
    encoder = Encoder(make_vae(), dtype="float32")
    needed = shard_bytes(wm.collect(DotEnv, out=tmp_path / "whole", num_episodes=24, encoder=encoder))
    with_free_disk(monkeypatch, needed // 3)
    assert len(wm.collect(DotEnv, out=tmp_path / "few", num_episodes=4, encoder=encoder)) == 4
    with pytest.raises(OSError, match="GiB of free disk for 24 episodes, judging by 8 of them"):
        wm.collect(DotEnv, out=tmp_path / "many", num_episodes=24, encoder=encoder)
    assert not (tmp_path / "many").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_collecting_with_a_v_stores_what_encoding_would(frames, tmp_path, workers):
    vision = make_vae()
    expected = encode_store(frames, vision=vision, out=tmp_path / "z", dtype="float32")
    encoder = Encoder(vision, dtype="float32")
    store = wm.collect(DotEnv, out=tmp_path / "direct", num_episodes=5, seed=0, workers=workers, encoder=encoder)
    assert store.fingerprint == expected.fingerprint
    assert store.recipe == expected.recipe
    assert store.observation_space == encoder.observation_space


def test_collecting_resumes_only_with_the_same_v(tmp_path):
    def collect(num_episodes, seed=0):
        return wm.collect(DotEnv, out=tmp_path, num_episodes=num_episodes, seed=0, encoder=Encoder(make_vae(seed=seed)))

    collect(2)
    assert len(collect(3)) == 3
    with pytest.raises(FileExistsError, match="encoded_with"):
        collect(4, seed=1)
    with pytest.raises(FileExistsError, match="encoded_with"):
        wm.collect(DotEnv, out=tmp_path, num_episodes=4, seed=0)
    encoder = Encoder(make_vae(spaces.Box(0, 255, (20, 20, 3), np.uint8)))
    with pytest.raises(ValueError, match="expected V's observation space"):
        wm.collect(DotEnv, out=tmp_path / "other", num_episodes=1, encoder=encoder)


# Training M


def fit(data, out, *, resident=None, **options):
    config = wm.TrainingConfig(num_updates=3, evaluate_every=3)
    data_config = wm.DataConfig(window=8, batch_size=4, test_fraction=0.2, resident=resident)
    return wm.fit(data, out=out, data_config=data_config, training_config=config, **options)


def test_m_trains_on_encoded_episodes_as_on_frames(frames, tmp_path):
    vision = make_vae()
    encode_store(frames, vision=vision, out=tmp_path / "z", dtype="float32")
    from_frames = fit(frames, tmp_path / "a", vision=vision, config=wm.MDNRNNConfig(hidden_size=8))
    from_encoded = fit(tmp_path / "z", tmp_path / "b", vision=vision, config=wm.MDNRNNConfig(hidden_size=8))
    assert from_encoded.observation_space == COLOUR
    assert from_encoded.vision.fingerprint == vision.fingerprint
    for name, weight in from_frames.mdnrnn.state_dict().items():
        torch.testing.assert_close(from_encoded.mdnrnn.state_dict()[name], weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(from_encoded.start_mean, from_frames.start_mean)
    on_disk = fit(tmp_path / "z", tmp_path / "c", vision=vision, config=wm.MDNRNNConfig(hidden_size=8), resident=False)
    assert on_disk.fingerprint == from_encoded.fingerprint


def test_m_continues_training_on_encoded_episodes(frames, tmp_path):
    vision = make_vae()
    encode_store(frames, vision=vision, out=tmp_path / "z")
    first = fit(tmp_path / "z", tmp_path / "a", vision=vision, config=wm.MDNRNNConfig(hidden_size=8))
    second = fit(tmp_path / "z", tmp_path / "b", initial=first)
    assert second.vision.fingerprint == vision.fingerprint
    assert second.fingerprint != first.fingerprint


def test_encoded_episodes_with_another_v_or_none_are_rejected(frames, tmp_path):
    encode_store(frames, vision=make_vae(), out=tmp_path / "z")
    with pytest.raises(ValueError, match=r"expected the V that .* was encoded with \(\w{12}\), got one with fingerprint"):
        fit(tmp_path / "z", tmp_path / "a", vision=make_vae(seed=1))
    with pytest.raises(ValueError, match=r"was encoded with \(\w{12}\), got none; give that one"):
        fit(tmp_path / "z", tmp_path / "a")
    encode_store(frames, vision=make_vae(seed=1), out=tmp_path / "other")
    with pytest.raises(ValueError, match=r"expected the V that .*other was encoded with"):
        fit([tmp_path / "z", tmp_path / "other"], tmp_path / "a", vision=make_vae())
    assert not (tmp_path / "a").exists()


def test_vectors_next_to_the_image_have_no_noise(tmp_path):
    vision = make_vae(MIXED)
    store = EpisodeStore.create(tmp_path / "frames", observation_space=MIXED, action_space=spaces.Discrete(2))
    rng, steps = np.random.default_rng(0), labelled_episode(0, 12)
    observations = {
        "gear": rng.integers(3, size=13),
        "screen": rng.integers(0, 256, (13, *COLOUR.shape), dtype=np.uint8),
        "speed": rng.normal(size=(13, 2)).astype(np.float32),
    }
    names = ("rewards", "terminations", "truncations")
    parts = {name: getattr(steps, name) for name in names}
    store.append([Episode(observations=observations, actions=steps.actions % 2, **parts)])
    encode_store(tmp_path / "frames", vision=vision, out=tmp_path / "z")
    world = fit(tmp_path / "z", tmp_path / "world", vision=vision, config=wm.MDNRNNConfig(hidden_size=4))
    assert (world.start_log_variance[:, 6:] == -torch.inf).all()
    assert world.start_log_variance[:, :6].isfinite().all()
    assert wm.WorldModel.from_pretrained(tmp_path / "world").fingerprint == world.fingerprint


def test_short_episodes_are_left_out_on_request(tmp_path):
    write_store(tmp_path / "data", [labelled_episode(i, 2 + 3 * i) for i in range(5)])
    episodes = EpisodeCollection.open(tmp_path / "data", min_length=8)
    assert episodes.lengths.tolist() == [8, 11, 14]
    assert episodes.read(0).observations[0].tolist() == [2, 0]
    with pytest.raises(ValueError, match="expected at least one episode of at least 15 steps to train on, got none"):
        EpisodeCollection.open(tmp_path / "data", min_length=15)
    with pytest.raises(ValueError, match="min_length: expected an integer >= 1"):
        wm.DataConfig(min_length=0)
    with pytest.raises(ValueError, match="min_length: expected an integer >= 1"):
        wm.FrameConfig(min_length=0)
