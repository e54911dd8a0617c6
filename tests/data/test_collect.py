"""Collection of real episodes: determinism, workers, failures, interruption, resuming."""

import functools
import importlib
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from toy_envs import CountEnv, DictEnv, SpaceEnv, nested_env
from toy_images import DotEnv

from worldmodel.data import (
    EnvConfig,
    Episode,
    EpisodeCollection,
    EpisodeFailure,
    EpisodeStore,
    RepeatPolicy,
    collect,
    rollouts,
    verify,
)
from worldmodel.rng import episode_seed
from worldmodel.runtime import Progress, RunConfig, describe

collect_module, seeds_module = map(importlib.import_module, ("worldmodel.data.collecting", "worldmodel.rng.seeds"))


def seeds(*episode_ids, seed=0):
    return [episode_seed(seed, k) for k in episode_ids]


def configured(env, *, env_kwargs=None, wrappers=(), max_steps=None):
    return EnvConfig(env, kwargs=env_kwargs or {}, wrappers=wrappers, max_steps=max_steps)


def run(env, ids, *, policy="random", seed=0, workers=0, **env_options):
    results = rollouts(configured(env, **env_options), policy, episode_ids=ids, seed=seed, workers=workers)
    return {result.episode_id: result for result in results}


class AlternatingPolicy:
    """Alternates between the two actions; counts how often it was reset."""

    description = "alternating"

    def reset(self, rng):
        self.action = int(rng.integers(2))

    def __call__(self, observation):
        self.action = 1 - self.action
        return self.action


class TimeLimited(gym.Wrapper):
    """Truncates after two steps, and says so with a NumPy bool."""

    def reset(self, **options):
        self.count = 0
        return super().reset(**options)

    def step(self, action):
        self.count += 1
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, np.bool_(truncated or self.count == 2), info


class ReusedReward(gym.Wrapper):
    """Returns the reward in an array of shape (1,), always the same one."""

    def reset(self, **options):
        self.reward = np.zeros(1)
        return super().reset(**options)

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        self.reward += 1
        return observation, self.reward, terminated, truncated, info


def test_rewards_in_an_array_that_is_reused_are_copied():
    (episode,) = rollouts(EnvConfig("CartPole-v1", wrappers=[ReusedReward], max_steps=4), episode_ids=[0], seed=0)
    assert episode.rewards.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_an_episode_is_what_stepping_by_hand_gives():
    (episode,) = rollouts("CartPole-v1", AlternatingPolicy(), episode_ids=[5], seed=2)
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=episode_seed(2, 5))
    np.testing.assert_array_equal(episode.observations[0], observation)
    for t in range(len(episode)):
        observation, reward, terminated, truncated, _ = env.step(int(episode.actions[t]))
        np.testing.assert_array_equal(episode.observations[t + 1], observation)
        assert (episode.rewards[t], episode.terminations[t], episode.truncations[t]) == (reward, terminated, truncated)
    assert terminated or truncated
    assert set(np.abs(np.diff(episode.actions))) == {1}
    assert episode.observations.dtype == np.float32
    env.close()


def test_observations_are_copied_from_a_buffer_that_the_environment_reuses():
    (episode,) = rollouts(CountEnv, episode_ids=[0], seed=0)
    assert episode.observations[:, 0].tolist() == list(range(len(episode) + 1))


def test_episode_seeds_differ_within_a_run_and_between_runs():
    assert len(set(seeds(*range(10_000)))) == 10_000
    assert all(0 <= seed < 2**31 for seed in seeds(0, 10**6, seed=2**40))
    assert not set(seeds(*range(1000))) & set(seeds(*range(1000), seed=1))
    for seed, episode_id in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="expected integers >= 0"):
            episode_seed(seed, episode_id)


@pytest.mark.parametrize("policy", ["random", "repeat", AlternatingPolicy()])
def test_an_episode_depends_on_its_seed_and_id_alone(policy):
    together = run(CountEnv, range(6), policy=policy)
    np.random.seed(7)  # noqa: NPY002 (the global seed must not matter)
    alone = run(CountEnv, [4], policy=policy)[4]
    np.testing.assert_array_equal(together[4].observations, alone.observations)
    np.testing.assert_array_equal(together[4].actions, alone.actions)
    other = run(CountEnv, range(6), policy=policy, seed=1)
    assert any(not np.array_equal(together[k].observations, other[k].observations) for k in range(6))


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path):
    prints = set()
    for workers in (0, 1, 3):
        for env, name in ((DictEnv, "dict"), ("CartPole-v1", "cart")):
            store = collect(EnvConfig(env, max_steps=30), out=tmp_path / f"{name}{workers}", num_episodes=20, workers=workers)
            assert store.episode_ids.tolist() == list(range(20))
            assert verify(store.path) == []
            prints.add(store.fingerprint)
    assert len(prints) == 2


def test_wrappers_arguments_and_closures_reach_the_workers():
    length = 4
    made = functools.partial(CountEnv, delay=0.0)
    for workers in (0, 1):
        episodes = run(
            lambda **options: made(**options),
            range(3),
            policy=lambda observation: int(observation[0]) % 2,
            env_kwargs={"trouble": "none"},
            wrappers=[TimeLimited, lambda env: gym.wrappers.TransformReward(env, lambda reward: reward + length)],
            workers=workers,
        )
        assert [len(episodes[k]) for k in range(3)] == [2, 2, 2]
        assert episodes[0].rewards.tolist() == [4.0, 5.0]
        assert episodes[0].truncations.tolist() == [False, True]


def test_an_environment_registered_here_is_known_to_the_workers():
    gym.register("WmToy-v0", entry_point=CountEnv, max_episode_steps=2)
    try:
        assert [len(episode) for episode in rollouts("WmToy-v0", episode_ids=range(2), seed=0, workers=1)] == [2, 2]
    finally:
        del gym.registry["WmToy-v0"]


def test_max_steps_truncates_and_leaves_a_termination_alone():
    lengths = {k: len(episode) for k, episode in run(CountEnv, range(8)).items()}
    assert set(lengths.values()) >= {3, 4}
    for k, episode in run(CountEnv, range(8), max_steps=3).items():
        assert len(episode) == 3
        assert episode.terminations.tolist() == [False, False, lengths[k] == 3]
        assert episode.truncations.tolist() == [False, False, lengths[k] > 3]


def test_environments_are_closed_at_the_end_and_when_the_caller_stops_early():
    made = []

    def make():
        made.append(CountEnv())
        return made[-1]

    list(rollouts(make, episode_ids=range(3), seed=0))
    stopped = rollouts(make, episode_ids=range(3), seed=0)
    next(stopped)
    stopped.close()
    assert [env.closed for env in made] == [True, True]


def test_workers_end_when_the_caller_stops_early(tmp_path):
    pids = tmp_path / "pids"
    results = rollouts(
        EnvConfig(CountEnv, kwargs={"pids": str(pids), "delay": 0.01}), episode_ids=range(100), seed=0, workers=2
    )
    next(results)
    results.close()
    assert all(gone(pid) for pid in set(pids.read_text(encoding="utf-8").split()))


def gone(pid, seconds=5.0):
    """Tell whether a process ends within some seconds (a zombie has ended)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("trouble", "workers", "error"),
    [
        ("raise", 0, r"ArithmeticError: the toy broke \(in step, toy_envs.py:\d+\)"),
        ("raise", 2, r"ArithmeticError: the toy broke \(in step, toy_envs.py:\d+\)"),
        ("nan", 0, r"ValueError: episode 3 observations: expected finite numbers, got NaN or infinity at step 2"),
        ("nan", 2, r"ValueError: episode 3 observations: expected finite numbers, got NaN or infinity at step 2"),
        ("die", 2, r"the worker process crashed \(exit code 7\)"),
    ],
)
def test_failures_are_retried_then_listed_and_the_collection_continues(tmp_path, trouble, workers, error):
    env_kwargs = {"trouble": trouble, "seeds": seeds(3, 8)}
    results = run(CountEnv, range(12), env_kwargs=env_kwargs, workers=workers)
    assert [k for k in range(12) if isinstance(results[k], EpisodeFailure)] == [3, 8]
    assert (results[3].seed, results[3].attempts) == (episode_seed(0, 3), 2)
    assert re.search(error, results[3].error)
    clean = run(CountEnv, range(12))
    for k in set(range(12)) - {3, 8}:
        np.testing.assert_array_equal(results[k].observations, clean[k].observations)

    store = collect(EnvConfig(CountEnv, kwargs=env_kwargs), out=tmp_path, num_episodes=12, workers=workers)
    assert store.episode_ids.tolist() == [k for k in range(12) if k not in (3, 8)]
    listed = EpisodeStore.open(tmp_path).failures
    assert [(failure["episode_id"], failure["seed"]) for failure in listed] == list(zip((3, 8), seeds(3, 8), strict=True))
    assert re.search(error, listed[0]["error"])


@pytest.mark.parametrize(("trouble", "workers"), [("raise", 0), ("raise", 1), ("die", 1)])
def test_a_failure_that_does_not_recur_loses_nothing(tmp_path, trouble, workers):
    options = {"trouble": trouble, "seeds": seeds(2), "once": str(tmp_path / "once")}
    results = run(CountEnv, range(5), env_kwargs=options, workers=workers)
    assert os.path.exists(tmp_path / "once")
    assert all(isinstance(result, Episode) for result in results.values())
    np.testing.assert_array_equal(results[2].observations, run(CountEnv, [2])[2].observations)


class BreakingEnv(CountEnv):
    """Fails in every episode from its third; a new instance works again."""

    resets = 0

    def reset(self, **options):
        self.resets += 1
        if self.resets >= 3:
            raise ArithmeticError("worn out")
        return super().reset(**options)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_environment_that_raised_is_replaced_by_a_fresh_one(workers):
    assert all(isinstance(result, Episode) for result in run(BreakingEnv, range(7), workers=workers).values())


@pytest.mark.parametrize("workers", [0, 1])
def test_failed_episodes_are_tried_again_by_the_next_call(tmp_path, workers):
    kwargs = {"trouble": "raise", "seeds": seeds(1), "once": None}
    flag = tmp_path / "fixed"

    def make(**options):
        return CountEnv(**options | {"trouble": "" if flag.exists() else "raise"})

    assert len(collect(EnvConfig(make, kwargs=kwargs), out=tmp_path / "s", num_episodes=3, workers=workers).failures) == 1
    flag.touch()
    store = collect(EnvConfig(make, kwargs=kwargs), out=tmp_path / "s", num_episodes=3, workers=workers)
    assert (len(store), store.failures) == (3, [])


@pytest.mark.parametrize("workers", [0, 2])
def test_when_every_episode_fails_the_first_failure_is_raised_soon(tmp_path, workers):
    with pytest.raises(RuntimeError, match=r"only failures; the first, of episode \d \(seed \d+\): .*invalid"):
        collect("CartPole-v1", out=tmp_path / "new" / "s", num_episodes=10_000, policy=invalid_policy, workers=workers)
    assert list(tmp_path.iterdir()) == []


def test_a_collection_that_fails_leaves_the_directory_as_it_was(tmp_path):
    with pytest.raises(RuntimeError, match="only failures"):
        collect("CartPole-v1", out=tmp_path, num_episodes=20, policy=invalid_policy)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        collect("CartPole-v1", out=tmp_path / "s", num_episodes=20, policy=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def interrupt(observation):
    raise KeyboardInterrupt


def test_an_incomplete_collection_says_how_many_episodes_were_asked_for(tmp_path, run):
    def stop(progress):
        if progress.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(CountEnv, out=tmp_path, num_episodes=5, run=RunConfig(progress=False, on_progress=stop))
    message = "the collection of 5 episodes was interrupted"
    assert EpisodeStore.open(tmp_path).unfinished.startswith(message)
    assert f"unfinished         {message}" in run(["store", "inspect", str(tmp_path)])[1]
    with pytest.warns(UserWarning, match=f"expected a complete store, got 2 episodes: {message}"):
        EpisodeCollection.open(tmp_path)
    collect(CountEnv, out=tmp_path, num_episodes=5, run=RunConfig(progress=False))
    assert EpisodeStore.open(tmp_path).unfinished is None
    assert "unfinished" not in run(["store", "inspect", str(tmp_path)])[1]


def invalid_policy(observation):
    return 17


def test_a_worker_that_cannot_start_is_reported(tmp_path):
    with pytest.raises(RuntimeError, match=r"expected a worker to unpickle its tasks' runner, got .*no hope"):
        list(rollouts(CountEnv, Unreadable(), episode_ids=range(3), seed=0, workers=1))


class Unreadable:
    """A policy that cannot be unpickled in a worker."""

    def __call__(self, observation):
        return 0

    def __reduce__(self):
        return (no_hope, ())


def no_hope():
    raise ValueError("no hope")


def test_an_interrupted_collection_keeps_its_episodes_and_resumes_to_the_same_result(tmp_path):
    whole = collect(EnvConfig(DictEnv, max_steps=20), out=tmp_path / "whole", num_episodes=9)
    seen = []

    def interrupt(progress):
        seen.append(progress)
        if progress.done == 4:
            raise KeyboardInterrupt

    for workers in (0, 1):
        out = tmp_path / f"parts{workers}"
        with pytest.raises(KeyboardInterrupt):
            collect(
                EnvConfig(DictEnv, max_steps=20), out=out, num_episodes=9, workers=workers, run=RunConfig(on_progress=interrupt)
            )
        assert len(EpisodeStore.open(out)) == 4
        steps = EpisodeStore.open(out).num_steps
        store = collect(EnvConfig(DictEnv, max_steps=20), out=out, num_episodes=9, run=RunConfig(on_progress=seen.append))
        assert store.fingerprint == whole.fingerprint
        metrics = {"steps": store.num_steps - steps, "failures": 0}
        assert seen[-1] == Progress("collect", done=9, total=9, unit="episode", metrics=metrics)


@pytest.mark.parametrize("moment", ["append", "_write_shard", "_reads_back", "_write_manifest"])
@pytest.mark.parametrize("before", [True, False])
def test_an_interruption_during_an_append_neither_loses_nor_duplicates_an_episode(tmp_path, monkeypatch, moment, before):
    monkeypatch.setattr(collect_module, "FLUSH_BYTES", 1)
    original, done = getattr(EpisodeStore, moment), []

    def interrupted(self, *arguments):
        strike = len(self.episode_ids) > 0 and not done if hasattr(self, "_index") else False
        if strike:
            done.append(True)
        if strike and before:
            raise KeyboardInterrupt
        result = original(self, *arguments)
        if strike:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patched:
        patched.setattr(EpisodeStore, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect(CountEnv, out=tmp_path / "parts", num_episodes=6)
    kept = EpisodeStore.open(tmp_path / "parts")
    assert kept.episode_ids.tolist() == list(range(len(kept)))
    assert 1 <= len(kept) < 6
    assert verify(tmp_path / "parts") == []
    whole = collect(CountEnv, out=tmp_path / "whole", num_episodes=6)
    assert collect(CountEnv, out=tmp_path / "parts", num_episodes=6).fingerprint == whole.fingerprint


def test_a_collection_can_be_extended(tmp_path):
    collect(EnvConfig(DictEnv, max_steps=20), out=tmp_path / "a", num_episodes=3)
    longer = collect(EnvConfig(DictEnv, max_steps=20), out=tmp_path / "a", num_episodes=8)
    assert longer.fingerprint == collect(EnvConfig(DictEnv, max_steps=20), out=tmp_path / "b", num_episodes=8).fingerprint
    assert len(collect(EnvConfig(DictEnv, max_steps=20), out=tmp_path / "a", num_episodes=5)) == 8


def test_a_complete_collection_makes_no_environment(tmp_path):
    collect(EnvConfig(DictEnv, max_steps=9), out=tmp_path, num_episodes=2)
    broken = functools.wraps(DictEnv, updated=())(lambda: 1 / 0)
    assert len(collect(EnvConfig(broken, max_steps=9), out=tmp_path, num_episodes=2)) == 2


def test_another_recipe_raises_with_both_values_and_the_fixes(tmp_path):
    collect(CountEnv, out=tmp_path, num_episodes=2, seed=3)
    before = EpisodeStore.open(tmp_path).fingerprint
    for changes, message in (
        ({"seed": 4}, "expected seed 3, .* got 4; use the same arguments, choose another output, .*--overwrite"),
        ({"policy": "repeat"}, "expected policy random, .* got repeat"),
        ({"env": EnvConfig(CountEnv, max_steps=2)}, "expected max_steps None, .* got 2"),
        ({"env": EnvConfig(CountEnv, kwargs={"delay": 0.5})}, r"expected env_kwargs {'delay': None}, .* got {'delay': 0.5}"),
        (
            {"env": EnvConfig(CountEnv, wrappers=[TimeLimited])},
            r"expected wrappers \[\], .* got \['test_collect.TimeLimited'\]",
        ),
    ):
        with pytest.raises(FileExistsError, match=message):
            collect(**({"env": CountEnv, "out": tmp_path, "num_episodes": 3, "seed": 3} | changes))
    with pytest.raises(FileExistsError, match=r"expected env toy_envs.CountEnv, .* got CartPole-v1"):
        collect("CartPole-v1", out=tmp_path, num_episodes=3, seed=3)
    with pytest.raises(FileExistsError, match="got an earlier output"):
        collect(CountEnv, out=tmp_path, num_episodes=3, seed=3, run=RunConfig(resume=False))
    assert EpisodeStore.open(tmp_path).fingerprint == before
    assert len(collect(CountEnv, out=tmp_path, num_episodes=3, seed=4, run=RunConfig(overwrite=True))) == 3


def test_other_spaces_under_the_same_recipe_are_rejected(tmp_path):
    width = [2]

    def make():
        return SpaceEnv(spaces.Box(0, 1, (width[0],)), spaces.Discrete(2))

    collect(EnvConfig(make, max_steps=2), out=tmp_path, num_episodes=1)
    width[0] = 3
    with pytest.raises(ValueError, match="expected the observation_space of its episodes"):
        collect(EnvConfig(make, max_steps=2), out=tmp_path, num_episodes=2)


def test_a_directory_with_other_files_is_never_changed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="with other files"):
            collect(CountEnv, out=tmp_path, num_episodes=1, run=RunConfig(overwrite=overwrite))
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("env", ["CartPol-v1", "CartPole", "CartPole-v77", "NoSuch/CartPole-v1", "no_such_module:CartPole-v1"])
def test_an_unknown_environment_raises_with_the_closest_ids_and_nothing_is_written(tmp_path, env):
    with pytest.raises(ValueError, match=f"env: expected a registered Gymnasium id, got '{env}'.*close to it: .*CartPole-v1"):
        collect(env, out=tmp_path / "s", num_episodes=1)
    assert not (tmp_path / "s").exists()


def test_the_closest_ids_are_suggested():
    with pytest.raises(ValueError, match=r"close to it: .*'CartPole-v1'"):
        rollouts("CartPol-v1", episode_ids=[0], seed=0)


def test_an_id_with_a_module_imports_it():
    (episode,) = rollouts("gymnasium.envs:CartPole-v1", episode_ids=[0], seed=0)
    assert len(episode) > 5


def test_an_unsupported_space_raises_with_the_nearest_and_nothing_is_written(tmp_path):
    for pair in ((spaces.Text(4), spaces.Discrete(2)), (spaces.Discrete(2), spaces.Sequence(spaces.Discrete(2)))):
        with pytest.raises(TypeError, match="the nearest supported space is"):
            collect(lambda: SpaceEnv(*pair), out=tmp_path / "s", num_episodes=1)  # noqa: B023
        assert not (tmp_path / "s").exists()


def test_arguments_out_of_range_are_rejected():
    for options, message in (
        ({"workers": -1}, "num_workers: expected an integer >= 0, got -1"),
        ({"policy": "greedy"}, "policy: expected one of"),
        ({"seed": -1}, "seed: expected an integer >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            rollouts(CountEnv, **({"episode_ids": [0], "seed": 0} | options))
    with pytest.raises(ValueError, match="num_episodes: expected an integer >= 1, got 0"):
        collect(CountEnv, out="nowhere", num_episodes=0)
    with pytest.raises(TypeError, match="env: expected a Gymnasium id or a constructor, got int"):
        rollouts(3, episode_ids=[0], seed=0)


def test_descriptions_are_stable_names():
    assert describe("random") == "random"
    assert describe(AlternatingPolicy()) == "alternating"
    assert describe(RepeatPolicy(spaces.Discrete(2), 5)) == "repeat(max_repeat=5)"
    assert describe(invalid_policy) == "test_collect.invalid_policy"
    assert describe(CountEnv()) == "toy_envs.CountEnv"
    assert describe(functools.partial(invalid_policy, 3)) == "test_collect.invalid_policy(*[3], **{})"


def test_a_limit_below_one_step_is_rejected():
    with pytest.raises(ValueError, match="max_steps: expected an integer >= 1, got 0"):
        EnvConfig(CountEnv, max_steps=0)


def test_every_kind_of_space_can_be_collected(tmp_path):
    store = collect(EnvConfig(nested_env, max_steps=4), out=tmp_path, num_episodes=3, policy="repeat")
    assert (len(store), store.num_steps) == (3, 12)
    assert verify(tmp_path) == []


def test_shards_are_written_during_the_collection(tmp_path, monkeypatch):
    monkeypatch.setattr(collect_module, "FLUSH_BYTES", 1)
    collect(CountEnv, out=tmp_path, num_episodes=4)
    assert len(os.listdir(tmp_path / "shards")) == 4


KILLED = """
import importlib
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores Ctrl-C
from toy_envs import CountEnv
from worldmodel.data import EnvConfig, collect
importlib.import_module("worldmodel.data.writer").FLUSH_SECONDS = 0.05
if __name__ == "__main__":
    kwargs = {"delay": 0.002, "pids": sys.argv[3]}
    collect(EnvConfig(CountEnv, kwargs=kwargs), out=sys.argv[1], num_episodes=400, workers=int(sys.argv[2]))
"""


def start_collection(tmp_path, workers):
    """Start a collection in a new process; return the process once the store holds some of the episodes."""
    script, out = tmp_path / "killed.py", tmp_path / "store"
    script.write_text(KILLED, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(script), str(out), str(workers), str(tmp_path / "pids")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "manifest.json").exists() or len(EpisodeStore.open(out)) < 20:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return process


def assert_resumes(tmp_path):
    """Check that the collection is incomplete and resumes to the same store as an uninterrupted one."""
    out = tmp_path / "store"
    kept = EpisodeStore.open(out)
    assert 20 <= len(kept) < 400
    assert {problem.kind for problem in verify(out)} <= {"orphan", "temporary"}
    assert all(gone(pid) for pid in set((tmp_path / "pids").read_text(encoding="utf-8").split()))

    @functools.wraps(CountEnv, updated=())  # the same recipe, without delays
    def fast(**kwargs):
        return CountEnv()

    store = collect(EnvConfig(fast, kwargs=kept.recipe["env_kwargs"]), out=out, num_episodes=400)
    assert verify(out) == []
    assert store.fingerprint == collect(CountEnv, out=tmp_path / "calm", num_episodes=400).fingerprint


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes in /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_kill_9_loses_no_complete_shard_and_the_same_call_resumes(tmp_path, workers):
    process = start_collection(tmp_path, workers)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert_resumes(tmp_path)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes in /proc")
def test_a_busy_worker_stops_when_its_parent_is_killed(tmp_path):
    script, pids = tmp_path / "killed.py", tmp_path / "pids"
    script.write_text(KILLED.replace("0.002", "600"), encoding="utf-8")
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "store"), "1", str(pids)], env=os.environ | paths)
    deadline = time.monotonic() + 60
    while not pids.exists() or len(pids.read_text(encoding="utf-8").split()) < 2:  # the parent, for the spaces, and the worker
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert all(gone(pid) for pid in pids.read_text(encoding="utf-8").split())


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes in /proc")
def test_ctrl_c_stops_the_workers_and_they_print_nothing(tmp_path):
    process = start_collection(tmp_path, 2)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert error.count("Traceback") == 1
    assert error.strip().endswith("KeyboardInterrupt")
    assert_resumes(tmp_path)


def test_the_scripts_collect_verify_and_repair(tmp_path, monkeypatch, capsys):
    scripts = Path(__file__).resolve().parents[2] / "scripts"
    monkeypatch.syspath_prepend(scripts)
    monkeypatch.chdir(tmp_path)

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        code = 0
        try:
            runpy.run_path(str(scripts / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    command = ("collect", "--env", "CartPole-v1", "--out", "s", "--episodes", "3")
    code, said, _ = call(*command, "--max-steps", "5", "--env-kwargs", "{}")
    assert code == 0
    assert re.search(r"episodes +3\nsteps +15\nmean length +5.0 \+- 0.0\nsteps/s +[\d,]+\nfailures +0\nstore: s\n", said)
    code, _, complaint = call(*command)
    assert code == 2
    assert re.search(r"^error: s: expected max_steps 5, .* got None", complaint, re.MULTILINE)
    os.remove("s/manifest.json")
    code, said, _ = call("store", "verify", "s")
    assert (code, said.splitlines()[-1]) == (1, "1 problems")
    assert call("store", "repair", "s")[1].endswith("1 problems repaired\n")
    assert "episodes           3" in call("store", "info", "s")[1]
    assert call("store", "info", "nowhere")[0] == 2


def test_streams_of_seeds_differ():
    streams = [value for name, value in vars(seeds_module).items() if name.endswith("_STREAM") and name != "POLICY_STREAM"]
    assert len(set(streams)) == len(streams) > 1
    assert min(streams) > 0  # a 0 at the end counts for nothing


class FragileDotEnv(DotEnv):
    """Kills its process in the first episode of seed 0."""

    def step(self, action):
        if self.np_random_seed == episode_seed(0, 0):
            os._exit(7)
        return super().step(action)


def test_a_first_episode_that_kills_its_process_does_not_end_a_collection_of_images(tmp_path):
    store = collect(FragileDotEnv, out=tmp_path, num_episodes=4, workers=1)
    assert store.episode_ids.tolist() == [1, 2, 3]
    assert [failure["episode_id"] for failure in store.failures] == [0]


def test_an_environment_that_needs_box2d_names_the_extra_of_this_library(tmp_path, run):
    # Gymnasium names its own extra; a dependency of another kind keeps its message
    for name, extra in (("NeedsBox2D-v0", "box2d"), ("NeedsMore-v0", "other")):
        if name not in gym.registry:
            gym.register(name, functools.partial(lacking, extra))
    code, _, said = run(["collect", "--env=NeedsBox2D-v0", "--episodes=2", f"--out={tmp_path / 's'}"])
    assert code == 2
    assert "pip install 'worldmodel[box2d]'" in said
    assert said.count("\n") == 1
    code, _, said = run(["collect", "--env=NeedsMore-v0", "--episodes=2", f"--out={tmp_path / 's'}"])
    assert code == 2
    assert "gymnasium[other]" in said
    assert list(tmp_path.iterdir()) == []


def lacking(extra):
    raise gym.error.DependencyNotInstalled(f'Not installed, you can install it by run `pip install "gymnasium[{extra}]"`')
