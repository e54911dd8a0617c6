"""Tasks on executors: the same results as in this process, whatever is lost on the way."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest

from worldmodel.data import EpisodeStore, collect
from worldmodel.runtime import Kept, RunConfig, WorkerConfig, dask_executor, executors, machine_name
from worldmodel.runtime.executors import run_batch


class Square:
    """Squares numbers; some tasks fail, end their process, or take long."""

    def __init__(self, *, fails=(), kills=(), slow=()):
        self.fails, self.kills, self.slow = fails, kills, slow

    def run(self, task, watch):
        watch.step()
        if task in self.fails:
            raise ValueError(f"no {task}")
        if task in self.kills:
            os.kill(os.getpid(), signal.SIGKILL)
        if task in self.slow:
            time.sleep(0.5)
        return task * task

    def close(self):
        pass


class Here(Executor):
    """Runs everything at once in this process, and can lose or keep back chosen calls."""

    _max_workers = 2

    def __init__(self, lose=(), keep=()):
        self.calls, self.payloads, self.lose, self.keep = [], 0, set(lose), set(keep)

    def submit(self, function, digest, payload, tasks, *rest):
        future = Future()
        self.calls.append(list(tasks))
        self.payloads += payload is not None
        if self.lose.intersection(tasks):
            future.set_exception(ConnectionError("gone"))
        elif self.keep.intersection(tasks):
            self.keep.difference_update(tasks)  # never answers; a second try does
        else:
            future.set_result(function(digest, payload, tasks, *rest))
        return future


@pytest.fixture(autouse=True)
def no_runners():
    """Workers that have seen nothing yet."""
    executors._cache.__dict__.clear()


def results(runner, tasks, **config):
    return {task: (attempts, outcome) for task, attempts, outcome in WorkerConfig(**config).run(runner, tasks)}


def pool():
    return ProcessPoolExecutor(2, mp_context=get_context("forkserver"))


class TestTasks:
    @pytest.mark.parametrize("make", [pool, lambda: ThreadPoolExecutor(2), Here])
    def test_every_task_is_done_once(self, make):
        with make() as executor:
            assert results(Square(), range(100), executor=executor) == {task: (1, task * task) for task in range(100)}

    def test_what_tasks_share_is_sent_once_to_each_worker(self):
        executor = Here()
        results(Square(), range(50), executor=executor)
        assert executor.payloads == 1
        assert len(executor.calls) < 50

    def test_another_runner_replaces_the_oldest(self):
        executor = Here()
        for fails in ((), (1,), (2,), ()):
            results(Square(fails=fails), [0], executor=executor)
        assert executor.payloads == 4
        assert len(executors._cache.runners) == executors.KEPT_RUNNERS

    def test_a_task_that_fails_is_tried_again_and_reported(self):
        done = results(Square(fails=(3,)), range(6), executor=Here(), attempts=2)
        assert done[3][0] == 2
        assert "ValueError: no 3" in done[3][1]
        assert {task for task, (_, outcome) in done.items() if outcome == task * task} == {0, 1, 2, 4, 5}

    def test_only_the_task_that_loses_its_worker_is_reported(self):
        executor = Here(lose={7})
        done = results(Square(), range(40), executor=executor, attempts=3)
        assert done[7] == (3, "its worker was lost (ConnectionError: gone)")
        assert all(done[task] == (1, task * task) for task in range(40) if task != 7)

    def test_a_straggler_is_started_again_and_counts_once(self, monkeypatch):
        monkeypatch.setattr(executors, "LEAST_STRAGGLE", 0.01)
        executor = Here(keep={5})
        done = results(Square(), range(6), executor=executor)
        assert done == {task: (1, task * task) for task in range(6)}
        assert executor.calls.count([5]) == 2

    def test_tasks_are_batched_to_about_a_second(self, monkeypatch):
        executor = Here()
        results(Square(), range(2000), executor=executor)
        assert max(map(len, executor.calls)) == executors.MOST_TASKS
        assert len(executor.calls) < 100


class TestErrors:
    def test_a_pool_that_breaks_keeps_what_is_complete(self):
        done = {}
        with pool() as executor:
            runs = WorkerConfig(executor=executor).run(Square(kills=(30,)), range(40))
            with pytest.raises(RuntimeError, match="executor: expected its workers to keep running, got Broken"):
                done.update((task, outcome) for task, _, outcome in runs)
        assert done
        assert all(done[task] == task * task for task in done)

    def test_a_closed_pool_is_named(self):
        executor = ThreadPoolExecutor(1)
        executor.shutdown()
        with pytest.raises(RuntimeError, match="executor: expected one that takes tasks"):
            results(Square(), [1], executor=executor)

    def test_another_version_on_a_worker_is_named(self):
        result = run_batch("digest", None, [1], "0.0.0", None)
        assert result.problem.startswith("expected worldmodel 0.0.0")

    def test_what_a_worker_cannot_import_is_named(self):
        result = run_batch("digest", (b"cno_such_module\nthing\n.", {}), [1], executors.__version__, None)
        assert "got ModuleNotFoundError: No module named 'no_such_module'" in result.problem

    @pytest.mark.parametrize(
        ("fields", "error", "message"),
        [
            ({"executor": 3}, TypeError, "executor: expected a concurrent.futures.Executor or None, got int"),
            ({"executor": Here(), "step_timeout": 1.0}, ValueError, "step_timeout: expected None with an executor"),
        ],
    )
    def test_wrong_configurations_are_refused(self, fields, error, message):
        with pytest.raises(error, match=message):
            WorkerConfig(**fields)


def test_a_collection_on_an_executor_has_the_episodes_of_one_in_this_process(tmp_path):
    expected = collect("CartPole-v1", out=tmp_path / "here", num_episodes=12, seed=3).fingerprint
    for name, executor in {"threads": ThreadPoolExecutor(2), "processes": pool()}.items():
        with executor:
            store = collect(
                "CartPole-v1", out=tmp_path / name, num_episodes=12, seed=3, workers=WorkerConfig(executor=executor)
            )
        assert store.fingerprint == expected


@pytest.fixture(scope="module")
def cluster():
    """A scheduler and two workers on 127.0.0.1."""
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    import dask

    with (
        dask.config.set({"distributed.worker.daemon": False, "distributed.logging.distributed": "critical"}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=":0", silence_logs=50
        ) as cluster,
    ):
        yield cluster


class TestDask:
    def test_a_collection_has_the_episodes_of_one_in_this_process(self, cluster, tmp_path):
        expected = collect("CartPole-v1", out=tmp_path / "here", num_episodes=40, seed=3).fingerprint
        with dask_executor(cluster.scheduler_address) as executor:
            workers = WorkerConfig(executor=executor)
            store = collect("CartPole-v1", out=tmp_path / "dask", num_episodes=40, seed=3, workers=workers)
        assert store.fingerprint == expected

    def test_a_worker_that_is_killed_loses_nothing(self, cluster, tmp_path):
        expected = collect("CartPole-v1", out=tmp_path / "here", num_episodes=300, seed=3).fingerprint
        with dask_executor(cluster.scheduler_address) as executor:
            pids = list(executor._client.run(os.getpid).values())
            killed = []

            def kill_one(progress):
                if progress.done >= 20 and not killed:
                    killed.append(pids[0])
                    os.kill(pids[0], signal.SIGKILL)

            store = collect(
                "CartPole-v1",
                out=tmp_path / "dask",
                num_episodes=300,
                seed=3,
                workers=WorkerConfig(executor=executor),
                run=RunConfig(on_progress=kill_one),
            )
        assert killed
        assert store.fingerprint == expected

    def test_no_scheduler_is_said_in_one_line(self):
        pytest.importorskip("distributed", reason="needs the extra dask")
        with (
            pytest.raises(ConnectionError, match=r"scheduler: expected a Dask scheduler at tcp://127.0.0.1:9"),
            dask_executor("tcp://127.0.0.1:9", timeout=0.5),
        ):
            pass

    @pytest.mark.slow
    def test_a_collection_resumes_after_its_scheduler_was_killed(self, tmp_path):
        pytest.importorskip("distributed", reason="needs the extra dask")
        arguments = {"num_episodes": 400, "seed": 3}
        expected = collect("CartPole-v1", out=tmp_path / "here", **arguments).fingerprint
        with processes(tmp_path) as (scheduler, address), dask_executor(address) as executor:

            def kill(progress):
                if progress.done >= 40:
                    scheduler.kill()

            workers, run = WorkerConfig(executor=executor), RunConfig(on_progress=kill)
            with pytest.raises(RuntimeError, match="what is complete is kept, and the same call with a new executor resumes"):
                collect("CartPole-v1", out=tmp_path / "dask", workers=workers, run=run, **arguments)
        assert 40 <= len(EpisodeStore.open(tmp_path / "dask")) < 400
        assert not EpisodeStore.open(tmp_path / "dask").failures
        assert collect("CartPole-v1", out=tmp_path / "dask", **arguments).fingerprint == expected


@contextlib.contextmanager
def processes(folder):
    """A scheduler and a worker as programs of their own; gives the scheduler's process and address."""
    file = folder / "scheduler.json"
    common = ["--scheduler-file", str(file)]
    command = [sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", *common]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(command, **quiet)
    worker = subprocess.Popen([sys.executable, "-m", "dask", "worker", "--nthreads", "1", "--no-dashboard", *common], **quiet)
    try:
        while not file.exists():
            assert scheduler.poll() is None
            time.sleep(0.1)
        yield scheduler, json.loads(file.read_text())["address"]
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()


def test_each_shard_names_the_machine_of_its_episodes(tmp_path, run):
    store = collect("CartPole-v1", out=tmp_path / "store", num_episodes=3, seed=0)
    assert store.machines == [machine_name()]
    assert EpisodeStore.open(tmp_path / "store").machines == [machine_name()]
    assert machine_name() in run(["store", "inspect", str(tmp_path / "store")])[1]
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert [shard["machines"] for shard in manifest["shards"]] == [[machine_name()]]


def test_large_parts_of_a_runner_are_sent_once(monkeypatch):
    sent = []

    class Counting(ThreadPoolExecutor):
        def submit(self, function, digest, payload, *rest):
            if payload is not None:
                sent.append(set(payload[1]))
            return super().submit(function, digest, payload, *rest)

    large = Kept(list(range(1000)))
    with Counting(1) as executor:
        for number in range(4):
            runs = WorkerConfig(executor=executor).run(Picks(large, number), range(3))
            assert sorted(outcome for _, _, outcome in runs) == [number, number + 1, number + 2]
    assert sum(bool(parts) for parts in sent) == 1
    assert len(sent) == 5  # the runner of each run, and once more with its large part


class Picks:
    """A runner with a large part and a small one."""

    def __init__(self, large, first):
        self.large, self.first = large, first

    def run(self, task, watch):
        return self.large.value[self.first + task]

    def close(self):
        pass
