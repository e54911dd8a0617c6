"""Copies of episodes to and from Minari datasets."""

import builtins
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces
from test_store import assert_same
from toy_envs import NESTED_ACTION, NESTED_OBSERVATION, SpaceEnv, nested_env

from worldmodel.adapters.minari import from_minari, to_minari
from worldmodel.data import ConversionConfig, EnvConfig, EpisodeStore, collect, from_arrays, rollouts, verify


@pytest.fixture
def minari(tmp_path, monkeypatch):
    """Return Minari with a temporary data directory."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return pytest.importorskip("minari", reason="Minari is not installed (pip install worldmodel[minari])")


def image_env():
    return SpaceEnv(spaces.Box(0, 255, (32, 32, 3), np.uint8), spaces.Discrete(3, start=1))


def narrow_env():
    return SpaceEnv(spaces.Box(-1, 1, (2,), np.float64), spaces.MultiDiscrete([2, 3], dtype=np.int32))


@pytest.mark.parametrize("env", ["CartPole-v1", nested_env, image_env, narrow_env])
def test_a_round_trip_preserves_every_bit(tmp_path, minari, env):
    store = collect(EnvConfig(env, max_steps=6), out=tmp_path / "a", num_episodes=4, policy="repeat", seed=3)
    dataset = to_minari(store, "toy/there-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (4, store.num_steps)
    back = from_minari(minari.load_dataset("toy/there-v0"), tmp_path / "b")
    assert back.fingerprint == store.fingerprint
    assert back.recipe == store.recipe
    assert (back.observation_space, back.action_space) == (store.observation_space, store.action_space)
    for one, other in zip(store, back, strict=True):
        assert_same(one, other)
    assert verify(tmp_path / "b") == []


def test_ids_with_gaps_and_missing_seeds_are_preserved(tmp_path, minari):
    episodes = list(rollouts(EnvConfig(nested_env, max_steps=3), episode_ids=[7, 2, 30], seed=0))
    store = EpisodeStore.create(tmp_path / "a", observation_space=NESTED_OBSERVATION, action_space=NESTED_ACTION)
    store.append([episodes[0], episodes[1].__class__(**(vars(episodes[1]) | {"seed": None})), episodes[2]])
    to_minari(store, "toy/gaps-v0")
    back = from_minari("toy/gaps-v0", tmp_path / "b")
    assert back.episode_ids.tolist() == [2, 7, 30]
    assert [episode.seed is None for episode in back] == [True, False, False]
    assert back.fingerprint == store.fingerprint


def write_gaps(path, **options):
    """Store two episodes of two numbers, one of which is missing once, at uneven times."""
    observations = [np.arange(12.0).reshape(6, 2), np.ones((6, 2))]
    observations[0][3, 1] = np.nan
    times = [np.array([0.0, 1, 2, 4, 5, 6])] * 2
    return from_arrays(observations, [np.zeros((5, 1))] * 2, out=path, time=times, config=ConversionConfig(**options))


def test_missing_values_are_preserved(tmp_path, minari):
    store = write_gaps(tmp_path / "a")
    to_minari(store, "toy/missing-v0")
    back = from_minari("toy/missing-v0", tmp_path / "b")
    assert back.missing == store.missing
    assert back.fingerprint == store.fingerprint
    assert np.isnan(back.read(0).observations[3, 1])


def test_a_store_with_the_time_of_each_step_is_refused_before_anything_is_written(tmp_path, minari):
    store = write_gaps(tmp_path / "a", elapsed=True)
    with pytest.raises(ValueError, match=r"without the time of each step.*to_parquet"):
        to_minari(store, "toy/times-v0")
    assert "toy/times-v0" not in minari.list_local_datasets()


def test_minari_reads_the_same_episodes(tmp_path, minari):
    store = collect("CartPole-v1", out=tmp_path / "a", num_episodes=3)
    dataset = to_minari(store, "toy/seen-v0", env="CartPole-v1", metadata={"author": "us", "description": "a test"})
    assert dataset.env_spec.id == "CartPole-v1"
    assert dataset.storage.metadata["author"] == {"us"}
    for ours, theirs in zip(store, dataset, strict=True):
        np.testing.assert_array_equal(ours.observations, theirs.observations)
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        np.testing.assert_array_equal(ours.terminations, theirs.terminations)
    assert [entry["seed"] for entry in dataset.storage.get_episode_metadata(range(3))] == [episode.seed for episode in store]


def buffer(minari, observations, seed=None, **changes):
    steps = len(observations) - 1
    last = np.arange(steps) == steps - 1
    values = {
        "actions": np.zeros(steps, np.int64),
        "rewards": np.zeros(steps),
        "terminations": last,
        "truncations": ~last & False,
    }
    return minari.data_collector.EpisodeBuffer(observations=observations, seed=seed, **(values | changes))


def foreign(minari, observation_space, *buffers):
    with pytest.warns(UserWarning, match=r"is set to None|env_spec is None"):
        return minari.create_dataset_from_buffers(
            "toy/foreign-v0", list(buffers), observation_space=observation_space, action_space=spaces.Discrete(2)
        )


def test_values_wider_than_their_space_keep_their_dtype(tmp_path, minari):
    rows = np.random.default_rng(0).standard_normal((5, 2))
    dataset = foreign(minari, spaces.Box(-1, 1, (2,), np.float32), buffer(minari, rows))
    store = from_minari(dataset, tmp_path / "s")
    assert store.observation_space == spaces.Box(-1, 1, (2,), np.float64)
    np.testing.assert_array_equal(store.read(0).observations, rows)
    assert store.recipe == {"minari": "toy/foreign-v0"}


def test_an_invalid_episode_is_skipped_and_listed(tmp_path, minari):
    rows = np.zeros((4, 2))
    broken = rows.copy()
    broken[2] = np.nan
    early = np.array([True, False, False])
    space = spaces.Box(-1, 1, (2,), np.float64)
    buffers = [
        buffer(minari, rows),
        buffer(minari, broken, seed=5),
        buffer(minari, rows, truncations=early),
        buffer(minari, rows),
    ]
    store = from_minari(foreign(minari, space, *buffers), tmp_path / "s")
    assert store.episode_ids.tolist() == [0, 3]
    assert [(failure["episode_id"], failure["seed"]) for failure in store.failures] == [(1, 5), (2, None)]
    assert "at step 2" in store.failures[0]["error"]


def test_many_chunks_give_the_same_as_one(tmp_path, minari, monkeypatch):
    import worldmodel.adapters.minari as module

    store = collect("CartPole-v1", out=tmp_path / "a", num_episodes=6)
    monkeypatch.setattr(module, "CHUNK_BYTES", 500)
    to_minari(store, "toy/chunks-v0")
    back = from_minari("toy/chunks-v0", tmp_path / "b")
    assert len(list((tmp_path / "b" / "shards").iterdir())) > 1
    assert back.fingerprint == store.fingerprint


def test_unsupported_spaces_and_taken_directories_are_rejected(tmp_path, minari):
    with pytest.warns(UserWarning, match=r"is set to None|env_spec is None"):
        texts = minari.create_dataset_from_buffers(
            "toy/text-v0",
            [buffer(minari, ["a", "b", "c"])],
            observation_space=spaces.Text(3),
            action_space=spaces.Discrete(2),
        )
    with pytest.raises(TypeError, match="got Text; the nearest supported space"):
        from_minari(texts, tmp_path / "s")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine").touch()
    dataset = foreign(minari, spaces.Box(-1, 1, (2,), np.float64), buffer(minari, np.zeros((4, 2))))
    with pytest.raises(FileExistsError, match="with other files"):
        from_minari(dataset, tmp_path / "s", overwrite=True)


def test_without_minari_the_error_names_the_extra(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name.split(".")[0] == "minari":
            raise ModuleNotFoundError("No module named 'minari'")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'worldmodel\[minari\]'"):
        from_minari("any", tmp_path)


def test_a_malformed_episode_is_listed_and_the_others_are_imported(tmp_path, minari):
    store = collect(EnvConfig(narrow_env, max_steps=6), out=tmp_path / "a", num_episodes=4)
    dataset = to_minari(store, "toy/malformed-v0")
    inner = type(dataset).__iter__

    class Malformed(type(dataset)):
        def __iter__(self):
            for number, episode in enumerate(inner(self)):
                if number == 1:
                    episode = replace(episode, rewards=episode.rewards[:-1])
                if number == 2:
                    episode = replace(episode, actions=episode.actions + 0.5)
                yield episode

    dataset.__class__ = Malformed
    back = from_minari(dataset, tmp_path / "b")
    assert back.episode_ids.tolist() == [0, 3]
    assert [failure["episode_id"] for failure in back.failures] == [1, 2]


def test_a_dataset_that_has_grown_is_imported_again(tmp_path, minari):
    store = collect("CartPole-v1", out=tmp_path / "a", num_episodes=2)
    to_minari(store, "toy/grows-v0")
    assert len(from_minari("toy/grows-v0", tmp_path / "b")) == 2
    minari.delete_dataset("toy/grows-v0")
    to_minari(collect("CartPole-v1", out=tmp_path / "a", num_episodes=5), "toy/grows-v0")
    back = from_minari("toy/grows-v0", tmp_path / "b")
    assert back.fingerprint == EpisodeStore.open(tmp_path / "a").fingerprint
    assert back.unfinished is None


def test_a_killed_import_says_so_and_is_continued(tmp_path, minari, monkeypatch):
    from worldmodel.adapters import minari as module
    from worldmodel.data import EpisodeCollection

    store = collect("CartPole-v1", out=tmp_path / "a", num_episodes=4)
    to_minari(store, "toy/killed-v0")
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    append = EpisodeStore.append

    def killed(self, episodes):
        if len(self) == 2:
            raise KeyboardInterrupt
        append(self, episodes)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeStore, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            from_minari("toy/killed-v0", tmp_path / "b")
    assert "was interrupted" in EpisodeStore.open(tmp_path / "b").unfinished
    with pytest.warns(UserWarning, match="expected a complete store, got 2 episodes: the import of 4 episodes"):
        EpisodeCollection.open(tmp_path / "b")
    back = from_minari("toy/killed-v0", tmp_path / "b")
    assert (back.fingerprint, back.unfinished) == (store.fingerprint, None)


def test_another_dataset_of_the_same_recipe_is_refused(tmp_path, minari):
    to_minari(collect("CartPole-v1", out=tmp_path / "a", num_episodes=2, seed=1), "toy/one-v0")
    to_minari(collect("CartPole-v1", out=tmp_path / "c", num_episodes=2, seed=2), "toy/two-v0")
    from_minari("toy/one-v0", tmp_path / "b")
    with pytest.raises(FileExistsError):
        from_minari("toy/two-v0", tmp_path / "b")
