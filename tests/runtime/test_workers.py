"""Workers whose tasks hang, ignore signals, use too much memory, or lose their fork server."""

import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
import warnings

import numpy as np
import pytest
from hanging_envs import EndlessEnv, HangingEnv
from toy_envs import CountEnv
from toy_worlds import random_world

from worldmodel.agents import Controller, RealPopulation
from worldmodel.data import EnvConfig, Episode, EpisodeStore, collect, rollouts
from worldmodel.evaluation import EvaluationConfig, probe
from worldmodel.models import feature_size
from worldmodel.runtime import StepWatch, WorkerConfig, run_in_processes

workers_module = importlib.import_module("worldmodel.runtime.workers")
watch_module = importlib.import_module("worldmodel.runtime.watch")
runner_module = importlib.import_module("worldmodel.data.runner")
memory_module = importlib.import_module("worldmodel.runtime.memory")

TIMEOUT = 4.0  # seconds: far more than a step needs on a busy machine
posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch):
    monkeypatch.setattr(workers_module, "STOP_SECONDS", 0.3)


def hanging(**kwargs):
    return EnvConfig(HangingEnv, kwargs=kwargs)


@pytest.mark.parametrize(
    ("place", "way", "deaf"),
    [
        ("step", "sleep", False),
        pytest.param("step", "busy", True, marks=posix),
        ("reset", "holding the interpreter", False),
    ],
)
def test_a_hanging_episode_is_listed_as_a_failure_and_the_collection_continues(tmp_path, place, way, deaf):
    workers = WorkerConfig(num_workers=2, attempts=1, step_timeout=TIMEOUT)
    store = collect(hanging(place=place, way=way, deaf=deaf), out=tmp_path / "s", num_episodes=6, workers=workers)
    assert sorted(store.episode_ids.tolist()) == [0, 2, 3, 4, 5]
    (failure,) = store.failures
    assert failure["episode_id"] == 1
    assert failure["error"] == "a step took longer than step_timeout = 4 s"


def test_a_step_that_hangs_once_is_tried_again_with_the_same_result(tmp_path):
    workers = WorkerConfig(num_workers=1, step_timeout=TIMEOUT)
    store = collect(hanging(once=str(tmp_path / "hung")), out=tmp_path / "s", num_episodes=3, workers=workers)
    assert (len(store), list(store.failures)) == (3, [])
    calm = collect(hanging(once=str(tmp_path / "hung")), out=tmp_path / "calm", num_episodes=3)
    assert store.fingerprint == calm.fingerprint


def test_an_environment_whose_construction_hangs_is_an_error(tmp_path):
    workers = WorkerConfig(num_workers=1, attempts=1, step_timeout=TIMEOUT)
    with pytest.raises(RuntimeError, match=r"env: expected to build the environment, got 1 times: a step took longer"):
        collect(hanging(place="construct"), out=tmp_path / "s", num_episodes=2, workers=workers)


class HangingPolicy:
    """Policy that hangs."""

    def __call__(self, observation):
        threading.Event().wait()


def test_a_policy_that_hangs_is_stopped_like_an_environment():
    workers = WorkerConfig(num_workers=1, attempts=1, step_timeout=TIMEOUT)
    (failure,) = rollouts(CountEnv, HangingPolicy(), episode_ids=[0], seed=0, workers=workers)
    assert "step_timeout" in failure.error


def test_a_caller_that_is_slow_does_not_make_workers_seem_to_hang():
    class SlowClock:
        """Time that leaps by an hour whenever the caller has a result."""

        def __init__(self):
            self.now = 0.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    clock = SlowClock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers_module, "time", clock)
        results = rollouts(
            CountEnv, episode_ids=range(12), seed=0, workers=WorkerConfig(num_workers=2, attempts=1, step_timeout=60.0)
        )
        for result in results:
            assert isinstance(result, Episode)
            clock.now += 3600.0


@pytest.mark.parametrize("place", ["close", "step"])
@posix
def test_workers_that_ignore_sigterm_are_killed_at_the_end(place):
    results = rollouts(hanging(place=place, episode=5, deaf=True), episode_ids=range(10), seed=0, workers=2)
    next(results)
    before = multiprocessing.active_children()
    assert before
    results.close()
    assert multiprocessing.active_children() == []


def test_the_real_population_names_the_candidate_that_hangs():
    world = random_world(CountEnv.action_space, CountEnv.observation_space)
    population = RealPopulation(
        world,
        EnvConfig(HangingTwo, kwargs={"episode": 0}, max_steps=3),
        rollouts=1,
        workers=WorkerConfig(num_workers=1, attempts=1, step_timeout=TIMEOUT),
    )
    with pytest.raises(RuntimeError, match=r"here: expected its episodes .* a step took longer than step_timeout"):
        population.score(
            Controller(feature_size(world, "zh"), world.action_space),
            episodes=1,
            horizon=3,
            seed=HangingTwo.base_seed(),
            name="here",
        )


class HangingTwo(HangingEnv):
    """`HangingEnv` with two numbers, as `CountEnv`."""

    observation_space = CountEnv.observation_space

    @staticmethod
    def base_seed():
        return 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bad = True
        return np.zeros(2), {}

    def step(self, action):
        observation, *rest = super().step(action)
        return np.repeat(observation, 2), *rest


def test_a_probe_names_the_episode_that_hangs():
    world = random_world(CountEnv.action_space, CountEnv.observation_space, reward_head=True)
    with pytest.raises(RuntimeError, match=r"expected to play episode 0 .* a step took longer than step_timeout"):
        probe(
            world,
            env=EnvConfig(HangingTwo, max_steps=3),
            config=EvaluationConfig(num_episodes=1, num_dreams=2),
            workers=WorkerConfig(num_workers=1, attempts=1, step_timeout=TIMEOUT),
        )


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="no fork server here")
@pytest.mark.parametrize("moment", ["between", "during"])
def test_a_fork_server_that_dies_costs_no_attempt(tmp_path, moment):
    env = EnvConfig(CountEnv, kwargs={"delay": 0.01})
    list(rollouts(env, episode_ids=[0], seed=0, workers=1))  # starts the server
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    results = rollouts(env, episode_ids=range(30), seed=0, workers=WorkerConfig(num_workers=2, attempts=1))
    if moment == "during":
        first = [next(results)]
        workers = multiprocessing.active_children()
    else:
        first, workers = [], []
    os.kill(server, signal.SIGKILL)
    every = first + list(results)
    assert all(isinstance(result, Episode) for result in every)
    assert sorted(result.episode_id for result in every) == list(range(30))
    assert all(not running(worker.pid) for worker in workers)


def running(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_each_start_method_gives_the_same_episodes_failures_and_timeouts(monkeypatch, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("unknown here")
    monkeypatch.setattr(workers_module, "worker_context", lambda: multiprocessing.get_context(method))
    workers = WorkerConfig(num_workers=2, attempts=1, step_timeout=TIMEOUT)
    found = list(rollouts(hanging(), episode_ids=range(4), seed=0, workers=workers))
    assert sorted(one.episode_id for one in found if isinstance(one, Episode)) == [0, 2, 3]
    env = EnvConfig(CountEnv, kwargs={"trouble": "die", "seeds": [runner_module.episode_seed(0, 1)]})
    found = {one.episode_id: one for one in rollouts(env, episode_ids=range(4), seed=0, workers=workers)}
    assert "crashed (exit code 7)" in found[1].error
    calm = {one.episode_id: one for one in rollouts(CountEnv, episode_ids=range(4), seed=0)}
    assert all(np.array_equal(found[k].rewards, calm[k].rewards) for k in (0, 2, 3))


def test_a_collection_in_workers_needs_no_open_directory(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_DIRECTORY", raising=False)  # as on Windows
    store = collect(CountEnv, out=tmp_path, num_episodes=4, workers=1)
    assert len(store) == 4


def test_an_episode_without_an_end_ends_at_the_memory_limit_and_the_others_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(watch_module, "total_memory", lambda: 100 * 2**20)
    monkeypatch.setattr(watch_module, "CHECK_SECONDS", 0.0)
    store = collect(EnvConfig(EndlessEnv, kwargs={"size": 2**18}), out=tmp_path, num_episodes=3)
    assert store.episode_ids.tolist() == [1, 2]
    (failure,) = store.failures
    assert failure["episode_id"] == 0
    assert "MemoryError: memory_limit: expected an episode to fit into its share of the memory" in failure["error"]
    assert "set max_steps" in failure["error"]


def test_an_episode_without_an_end_ends_at_the_memory_limit_of_its_worker(tmp_path):
    limit = 2 * 300 * 2**20 / memory_module.total_memory()  # 300 MiB for each of two workers
    workers = WorkerConfig(num_workers=2, attempts=1, memory_limit=limit)
    store = collect(EnvConfig(EndlessEnv, kwargs={"size": 2**20}), out=tmp_path, num_episodes=3, workers=workers)
    assert sorted(store.episode_ids.tolist()) == [1, 2]
    assert "the limit is 0.29 GiB" in store.failures[0]["error"]


@pytest.mark.skipif(memory_module.private_memory() is None, reason="the system does not tell")
def test_memory_that_the_environment_itself_takes_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(watch_module, "total_memory", lambda: 300 * 2**20)
    monkeypatch.setattr(watch_module, "CHECK_SECONDS", 0.0)
    store = collect(EnvConfig(EndlessEnv, kwargs={"leak": 2**22}), out=tmp_path, num_episodes=2)
    assert [failure["episode_id"] for failure in store.failures] == [0]


def test_a_full_machine_ends_only_episodes_that_take_much(monkeypatch):
    monkeypatch.setattr(watch_module, "used_fraction", lambda: 0.96)
    monkeypatch.setattr(watch_module, "CHECK_SECONDS", 0.0)
    watch = StepWatch(memory_limit=0.8)
    watch.step(recorded=2**20)
    with pytest.raises(MemoryError, match="memory is 96% full"):
        watch.step(recorded=2**26)
    StepWatch(memory_limit=None).step(recorded=2**60)


def test_a_long_episode_warns_once(tmp_path, monkeypatch):
    monkeypatch.setattr(runner_module, "LONG_EPISODE", 20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        collect(EnvConfig(EndlessEnv, max_steps=60), out=tmp_path, num_episodes=1)
    (warning,) = caught
    assert "episode 0 has taken 20 steps" in str(warning.message)
    assert "set max_steps (--max-steps)" in str(warning.message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_timeout": 1.0}, r"step_timeout: expected num_workers >= 1 \(--workers\)"),
        ({"num_workers": 1, "step_timeout": 0}, "step_timeout: expected a positive number of seconds or None, got 0"),
        ({"num_workers": 1, "step_timeout": float("nan")}, "step_timeout: expected a positive number of seconds"),
        ({"num_workers": 1, "step_timeout": float("inf")}, "step_timeout: expected a positive number of seconds"),
        ({"num_workers": 1, "step_timeout": True}, "step_timeout: expected a positive number of seconds"),
        ({"num_workers": 1, "step_timeout": "3"}, "step_timeout: expected a positive number of seconds"),
        ({"memory_limit": 0.0}, r"memory_limit: expected a fraction in \(0, 1\]"),
        ({"memory_limit": 1.5}, r"memory_limit: expected a fraction in \(0, 1\]"),
    ],
)
def test_limits_out_of_range_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        WorkerConfig(**options)


class Doubling:
    """Runner without an environment."""

    def run(self, task, watch):
        return 2 * task

    def close(self):
        pass


def test_results_do_not_depend_on_the_limits():
    for options in ({}, {"step_timeout": TIMEOUT}, {"memory_limit": None}):
        results = run_in_processes(Doubling(), range(5), WorkerConfig(num_workers=2, **options))
        assert sorted((task, outcome) for task, _, outcome in results) == [(k, 2 * k) for k in range(5)]


def test_limits_are_no_part_of_the_recipe(tmp_path):
    collect(CountEnv, out=tmp_path, num_episodes=1, workers=WorkerConfig(num_workers=1, step_timeout=60.0))
    collect(CountEnv, out=tmp_path, num_episodes=2, workers=WorkerConfig(memory_limit=None))
    assert len(EpisodeStore.open(tmp_path)) == 2
