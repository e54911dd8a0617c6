"""``worldmodel collect``."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import tyro
from typing_extensions import Self
from tyro.conf import OmitArgPrefixes as Flat

import worldmodel as wm
from worldmodel.agents import load_agent
from worldmodel.cli.options import (
    Command,
    EncoderOptions,
    EnvironmentOptions,
    PresetName,
    Result,
    Run,
    open_vision,
)
from worldmodel.cli.workers import pool
from worldmodel.experiments import Preset
from worldmodel.models import Encoder
from worldmodel.runtime import Progress, WorkerConfig


@dataclass(frozen=True, kw_only=True)
class CollectRun(Run):
    """Device, earlier runs and output.

    Args:
        device: device of V (--vision) and of the agent (--policy controller), no effect without them; auto: an NVIDIA GPU if
            there is one, else the CPU; mps: the GPU of a Mac (not run by us).
        threads: torch's threads in this process, for V and the agent, no effect without them; None: torch's own. A worker
            process has one thread.
    """


@dataclass(frozen=True, kw_only=True)
class Collect(Command):
    """Collect real episodes from a Gymnasium environment into a store.

    Episode k depends on (seed, k) only, so a store can be extended by the same command with more episodes.

    Args:
        env: Gymnasium id, e.g. CartPole-v1, or "module:Id-v0" of another package.
        out: directory of the store; an earlier collection there with the same options is continued.
        episodes: number of episodes in the finished store.
        preset: use the numbers of an experiment as defaults; explicit options take precedence.
        policy: repeat holds an action for 1 to 10 steps, repeat-long for 1 to 100; sweep: Discrete only; brownian: Box only;
            slow-driver: CarRacing only; controller: the agent of --controller.
        model: world model directory, for --policy controller.
        controller: controller directory, for --policy controller.
        workers: worker processes; 0: none; the result is the same.
        step_timeout: seconds after which a step, reset or construction of the environment counts as hanging: its worker is
            killed and the episode is listed as a failure; needs --workers; None: no limit.
        memory_limit: fraction of the machine's memory for the running episodes; one that exceeds its share is listed as a
            failure; None: no limit.
        scheduler: address of a Dask scheduler, such as tcp://10.0.0.1:8786, whose workers play the episodes (extra: dask); the
            result is the same on machines of the same kind.
        seed: seed of the collection.
        vision: directory written by worldmodel train-vae; the store then holds its codes instead of frames.
        environment: arguments of the environment.
        encoder: how codes are stored; only with --vision.
        output: device, earlier runs and output.
    """

    RESUME = "Finished episodes are kept; the same command resumes the collection."

    env: str
    out: str
    episodes: int
    preset: PresetName | None = None
    policy: Literal["random", "repeat", "repeat-long", "sweep", "brownian", "slow-driver", "controller"] = "random"
    model: str | None = None
    controller: str | None = None
    workers: int = 0
    step_timeout: float | None = None
    memory_limit: float | None = 0.8
    scheduler: str | None = None
    seed: int = 0
    vision: str | None = None
    environment: Flat[EnvironmentOptions] = field(default_factory=EnvironmentOptions)
    encoder: Flat[EncoderOptions] = field(default_factory=EncoderOptions)
    output: Flat[CollectRun] = field(default_factory=CollectRun)

    @classmethod
    def of_preset(cls, preset: Preset) -> Self:
        """Return the command with the numbers of a preset."""
        return cls(
            env=str(preset.env),
            out=tyro.MISSING,
            episodes=preset.num_episodes,
            policy=preset.policy,  # type: ignore[arg-type]
            environment=EnvironmentOptions(max_steps=preset.max_steps),
        )

    def run(self) -> Result:
        """Collect."""
        began, steps = time.monotonic(), 0

        def count(progress: Progress) -> None:
            nonlocal steps
            steps = int(progress.metrics["steps"])

        vision = open_vision(self.vision, self.output.choose_device()) if self.vision else None
        config = WorkerConfig(num_workers=self.workers, step_timeout=self.step_timeout, memory_limit=self.memory_limit)
        with pool(config, self.scheduler) as workers:
            store = wm.collect(
                self.environment.of(self.env),
                out=self.out,
                num_episodes=self.episodes,
                policy=self.behaviour(),
                seed=self.seed,
                workers=workers,
                encoder=Encoder(vision, dtype=self.encoder.dtype, precision=self.encoder.precision) if vision else None,
                run=self.output.config(count),
            )
        return report(store, steps / (time.monotonic() - began))

    def behaviour(self) -> str | wm.LatentPolicy:
        """Return the name of the policy, or the agent of ``--controller`` as a policy."""
        if self.policy != "controller":
            return self.policy
        if not (self.model and self.controller):
            raise ValueError(f"--policy controller: expected --model and --controller too, got {[self.model, self.controller]}")
        device = self.output.choose_device()
        return wm.LatentPolicy(
            wm.WorldModel.from_pretrained(self.model, device=device), load_agent(self.controller, device=device)
        )


def report(store: wm.EpisodeStore, steps_per_second: float) -> Result:
    """Describe a store."""
    lengths = store.lengths
    mean, spread = (float(lengths.mean()), float(lengths.std())) if len(store) else (0.0, 0.0)
    lines = [
        f"episodes     {len(store)}",
        f"steps        {store.num_steps}",
        f"mean length  {mean:.1f} +- {spread:.1f}",
        f"steps/s      {steps_per_second:,.0f}",
        f"failures     {len(store.failures)}",
        *(f"  episode {one['episode_id']} (seed {one['seed']}): {one['error']}" for one in store.failures),
        f"store: {store.path}",
    ]
    data = {
        "episodes": len(store),
        "steps": store.num_steps,
        "mean_length": mean,
        "failures": list(store.failures),
        "fingerprint": store.fingerprint,
        "store": str(store.path),
    }
    return Result("\n".join(lines), data)
