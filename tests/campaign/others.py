"""Two writers, bad environments, and random spaces through the whole pipeline."""

import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from hanging_envs import EndlessEnv, HangingEnv
from toy_envs import CountEnv, SpaceEnv

import worldmodel as wm
from campaign.stages import QUIET, STAGES, TRAINING, M
from campaign.trials import Trial, forked
from worldmodel.data import EnvConfig, EpisodeStore, verify
from worldmodel.envs import DreamVectorEnv
from worldmodel.runtime import WorkerConfig
from worldmodel.spaces import map_leaves, sample_value, take_row


def two_writers(seed: int, inputs: Path, work: Path) -> Iterator[Trial]:
    """Yield trials in which two processes do the same stage in one directory at once."""
    rng, digests = random.Random(seed), {}
    while True:
        for name in ("collect", "fit", "encode_store", "save_pretrained", "train_vae", "evolve"):
            delay = rng.random() * 0.3
            if name not in digests:
                out = work / f"alone-{name}"

                def alone(name=name, out=out) -> str:
                    STAGES[name].run(inputs, out)
                    return STAGES[name].digest(out)

                digests[name] = forked(alone).text
            yield Trial(f"{name}, the second {delay:.3f} s later", _race(name, delay, inputs, digests[name]))


def _race(name: str, delay: float, inputs: Path, digest: str) -> Callable[[Path], str | None]:
    stage = STAGES[name]

    def run(work: Path) -> str | None:
        out = work / "out"

        def do() -> str:
            stage.run(inputs, out)
            return ""

        first = os.fork()
        if first == 0:
            try:
                end = forked(do)
                (work / "first").write_text(end.unless("done", "error") or "", "utf-8")
            finally:
                os._exit(0)
        time.sleep(delay)
        second = forked(do)
        os.waitpid(first, 0)
        if found := second.unless("done", "error") or (work / "first").read_text("utf-8"):
            return found

        def again() -> str:
            stage.run(inputs, out)
            return stage.digest(out)

        last = forked(again)
        if last.kind != "done":
            return f"the same call afterwards: {last.kind}: {last.text}"
        return None if last.text == digest else "another result, silently"

    return run


class WrongEnv(CountEnv):
    """`CountEnv` with one fault in what it returns, in some episodes.

    Args:
        fault: name of the fault.
    """

    FAULTS = (
        "nan reward",
        "text reward",
        "none",
        "short tuple",
        "wrong shape",
        "wrong type",
        "complex reward",
        "huge",
        "both ends",
    )

    def __init__(self, fault="none"):
        super().__init__()
        self.fault = fault

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if observation[0] == 2 and self.length > 4:
            changed = {
                "nan reward": (observation, float("nan"), terminated, truncated, info),
                "text reward": (observation, "much", terminated, truncated, info),
                "none": None,
                "short tuple": (observation, reward, terminated, info),
                "wrong shape": (np.zeros(3), reward, terminated, truncated, info),
                "wrong type": ("here", reward, terminated, truncated, info),
                "complex reward": (observation, 1 + 2j, terminated, truncated, info),
                "huge": (np.full(2, 1e400), reward, terminated, truncated, info),
                "both ends": (observation, reward, np.array([True, False]), truncated, info),
            }
            return changed[self.fault]
        return observation, reward, terminated, truncated, info


def bad_environments(seed: int, inputs: Path, work: Path) -> Iterator[Trial]:
    """Yield trials with environments that crash, hang, never end or return nonsense."""
    rng = random.Random(seed)
    while True:
        fault, workers = rng.choice(WrongEnv.FAULTS), rng.choice([0, 0, 1])
        yield Trial(f"{fault}, {workers} workers", _collects(EnvConfig(WrongEnv, kwargs={"fault": fault}), workers, 12))
        place, deaf = rng.choice(["step", "reset"]), rng.random() < 0.5
        way = rng.choice(["sleep", "busy", "holding the interpreter"])
        hanging = EnvConfig(HangingEnv, kwargs={"place": place, "way": way, "deaf": deaf})
        limits = WorkerConfig(num_workers=2, attempts=1, step_timeout=5.0)
        yield Trial(f"hangs in {place} ({way}, deaf={deaf})", _collects(hanging, limits, 5, failures=1))
        endless = EnvConfig(EndlessEnv, kwargs={"size": 2 ** rng.randrange(14, 20)})
        limits = WorkerConfig(num_workers=rng.choice([0, 1]), attempts=1, memory_limit=0.01)
        yield Trial(f"endless, {endless.kwargs}, {limits.num_workers} workers", _collects(endless, limits, 3, failures=1))


def _collects(
    env: EnvConfig, workers: int | WorkerConfig, episodes: int, failures: int | None = None
) -> Callable[[Path], str | None]:
    def run(work: Path) -> str | None:
        def do() -> str:
            warnings.simplefilter("ignore")
            store = wm.collect(env, out=work / "out", num_episodes=episodes, workers=workers, run=QUIET)
            assert len(store) + len(store.failures) == episodes, (len(store), len(store.failures))
            assert failures in (None, len(store.failures)), list(store.failures)
            assert verify(work / "out") == []
            for episode in EpisodeStore.open(work / "out"):
                assert np.isfinite(episode.rewards).all()
            return ""

        return forked(do).unless("done")

    return run


NUM_SPACES = 500
FLOATS = [np.float16, np.float32, np.float64]
INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


def random_space(rng: np.random.Generator, depth: int = 2) -> gym.Space:
    """Return a random space of the supported kinds."""
    kind = rng.integers(6 if depth else 4)
    if kind == 0:
        return spaces.Discrete(int(rng.integers(1, 6)), start=int(rng.integers(-3, 4)))
    if kind == 1:
        return spaces.MultiDiscrete(
            rng.integers(1, 5, size=int(rng.integers(1, 4))), dtype=rng.choice([np.int8, np.int32, np.int64, np.uint8])
        )
    if kind == 2:
        return spaces.MultiBinary(int(rng.integers(1, 5)))
    if kind == 3:
        dtype = rng.choice(FLOATS + INTEGERS)
        shape = tuple(int(n) for n in rng.integers(1, 4, size=int(rng.integers(0, 3))))
        if np.issubdtype(dtype, np.floating):
            low = float(rng.normal())
            low, high = [(low, low + float(rng.exponential()) + 1e-3), (low, np.inf), (-np.inf, np.inf)][rng.integers(3)]
            return spaces.Box(low, high, shape, dtype)
        limits = np.iinfo(dtype)
        low = [int(limits.min), int(limits.min) // 2, int(limits.max) - 5, 0][rng.integers(4)]
        return spaces.Box(low, [int(limits.max), low + 3][rng.integers(2)], shape, dtype)
    parts = [random_space(rng, depth - 1) for _ in range(int(rng.integers(1, 4)))]
    return spaces.Tuple(parts) if kind == 4 else spaces.Dict({f"k{i}": part for i, part in enumerate(parts)})


def random_spaces(seed: int, inputs: Path, work: Path) -> Iterator[Trial]:
    """Yield trials that collect, fit and dream with `NUM_SPACES` random pairs of spaces; dreamed observations are in theirs."""
    for number in range(1, NUM_SPACES + 1):
        rng = np.random.default_rng([seed, number])
        pair = random_space(rng), random_space(rng)
        yield Trial(f"number {number}: {pair[0]} and {pair[1]}", _pipeline(*pair, float(rng.choice([0.0, 1.0, 1.3]))))


def _pipeline(observation: gym.Space, action: gym.Space, temperature: float) -> Callable[[Path], str | None]:
    def run(work: Path) -> str | None:
        def do() -> str:
            warnings.simplefilter("ignore")
            make = lambda: SpaceEnv(observation, action)  # noqa: E731
            wm.collect(EnvConfig(make, max_steps=5), out=work / "data", num_episodes=3, run=QUIET)
            world = wm.fit(work / "data", out=work / "world", config=M, training_config=TRAINING, run=QUIET)
            env = DreamVectorEnv(world, 3, observation="decoded", temperature=temperature, horizon=5)
            decoded, _ = env.reset(seed=0)
            action.seed(0)
            for _ in range(5):
                for row in range(3):
                    assert observation.contains(take_row(observation, decoded, row)), (row, decoded)
                actions = [sample_value(action) for _ in range(3)]
                decoded, rewards, *_ = env.step(map_leaves(lambda *parts: np.stack(parts), *actions))
                assert np.isfinite(rewards).all()
            return ""

        return forked(do).unless("done")

    return run
