"""Groups of options that commands share.

A command is a frozen dataclass: its fields are its options (by tyro), its class docstring is its help, and `run` does the work.
A field that is a configuration becomes a group of options, without a prefix if it is marked `tyro.conf.OmitArgPrefixes`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from typing_extensions import Self

from worldmodel.agents import CONTROLLER_FILE, CONTROLLER_FORMAT
from worldmodel.cli.json_option import JsonObject
from worldmodel.data import EnvConfig
from worldmodel.dream import Dreams, MemberPer, RewardMode, TerminationRule
from worldmodel.experiments import PRESETS, Preset
from worldmodel.models import Vision, WorldModel
from worldmodel.runtime import (
    Listener,
    Precision,
    Progress,
    RunConfig,
    check_integer,
    choose_device,
    locked,
    prepare_directory,
    record_run,
    write_bytes,
)

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]  # --name alone, without --no-name
Device = Literal["auto", "cpu", "cuda", "mps"]
TRUTH = ("True", "False", "None")
TRUE_FALSE_NONE = ("resident", "termination-head")  # options with these values, which may be left out: --x, --no-x
PresetName = Literal["car-racing", "doom"]


@dataclass(frozen=True)
class Result:
    """What a command prints at its end.

    Args:
        text: for people.
        data: JSON-serialisable, for programs (``--json``).
        exit_code: 0, or 1 if a check found problems.
    """

    text: str
    data: dict[str, Any]
    exit_code: int = 0


@dataclass(frozen=True, kw_only=True)
class Output:
    """Output.

    Args:
        json: print one JSON object on stdout instead of text.
    """

    json: Flag = False


@dataclass(frozen=True, kw_only=True)
class DeviceOutput(Output):
    """Device and output.

    Args:
        device: device of the model, its data and its dreams; auto: an NVIDIA GPU if there is one, else the CPU; mps: the GPU of
            a Mac (not run by us).
        threads: CPU threads of torch; None: one for each core. Another number may change the last bits of results.
    """

    SETS_THREADS: ClassVar[bool] = True  # False: the library sets them during its work, and back
    device: Device = "auto"
    threads: int | None = None

    def choose_device(self, threads: int | None = None) -> torch.device:
        """Set the number of threads, ``threads`` unless the user has chosen another one, and return the device."""
        if self.threads is not None:
            threads = check_integer(self.threads, "threads", least=1) if self.SETS_THREADS else None
        if threads is not None:
            torch.set_num_threads(threads)
        return choose_device(self.device)


@dataclass(frozen=True, kw_only=True)
class RunOutput(Output):
    """Earlier runs and output.

    Args:
        overwrite: replace an earlier run in OUT; anything else there is an error.
        resume: resume even with --overwrite; an interrupted run is resumed anyway.
        break_lock: write to OUT although a process on another host has locked it; only after a crash of that host.
    """

    overwrite: Flag = False
    resume: Flag = False
    break_lock: Flag = False

    def writing(self, path: str) -> contextlib.AbstractContextManager[None]:
        """Keep other writers out of OUT while a command runs; a file in its place is left to the check that names it."""
        if Path(path).exists() and not Path(path).is_dir():
            return contextlib.nullcontext()
        return locked(path, break_lock=self.break_lock)

    def config(self, on_progress: Listener | None = None) -> RunConfig:
        """Build the library's configuration of a run; ``resume`` takes precedence over ``overwrite``."""
        overwrite = self.overwrite and not self.resume
        self.work["records"] = 0

        def listen(progress: Progress) -> None:
            self.work["records"] += 1
            if on_progress is not None:
                on_progress(progress)

        return RunConfig(overwrite=overwrite, break_lock=self.break_lock, on_progress=listen)

    @cached_property
    def work(self) -> dict[str, int]:
        """Number of progress records of the run since `config`; empty before."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Run(RunOutput, DeviceOutput):
    """Device, earlier runs and output.

    Args:
        threads: torch's threads; None: the resumed run's, else torch's own. Others give other last bits; a resume refuses them.
    """

    SETS_THREADS: ClassVar[bool] = False

    def config(self, on_progress: Listener | None = None) -> RunConfig:
        """Build the library's configuration of a run."""
        return replace(super().config(on_progress), threads=self.threads)


@dataclass(frozen=True, kw_only=True)
class TrainingRun(Run):
    """Device, earlier runs and output.

    Args:
        tensorboard: write TensorBoard scalars (extra: tensorboard).
    """

    tensorboard: Flag = False

    def config(self, on_progress: Listener | None = None) -> RunConfig:
        """Build the library's configuration of a run."""
        return replace(super().config(on_progress), tensorboard=self.tensorboard)


@dataclass(frozen=True, kw_only=True)
class SearchRun(Run):
    """Device, earlier runs and output."""

    def start(self, out: str, log_name: str) -> Path:
        """Prepare OUT, the directory of a controller, before a search, and return the path of the search's log.

        The log is next to OUT, which holds only a controller. ``overwrite`` takes effect only when a search starts.
        """
        log = Path(out).with_name(f"{Path(out).name}.{log_name}")
        if log.exists() and (self.resume or not self.overwrite):
            return log
        prepare_directory(out, marker=CONTROLLER_FILE, format=CONTROLLER_FORMAT, overwrite=self.overwrite)
        record_run(out)
        return log

    def saving(self, out: str, curve: Any) -> RunConfig:
        """Build the configuration of a search that writes its best controller to OUT after each test, and its records."""

        def save(progress: Progress) -> None:
            if "test" in progress.metrics:
                progress.result.save_pretrained(out, overwrite=True)

        return self.config(curve.listener(save))


@dataclass(frozen=True, kw_only=True)
class EnvironmentOptions:
    """Real environment.

    Args:
        max_steps: truncate an episode after this many steps; None: the environment's own limit.
        env_kwargs: arguments of the environment, e.g. '{"g": 9.8}'.
        leave_out: leaves of the observations that are not recorded, e.g. mission.
        action_repeat: steps of the environment per action; all other numbers of steps count actions then.
    """

    max_steps: int | None = None
    env_kwargs: JsonObject = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    action_repeat: int = 1

    def of(self, env: str) -> EnvConfig:
        """Build the configuration of the environment with this id."""
        return EnvConfig(env, self.env_kwargs, (), self.max_steps, self.leave_out, self.action_repeat)


@dataclass(frozen=True, kw_only=True)
class DreamRules:
    """Dreams.

    Args:
        termination: sample: a dream ends with probability p at each step; threshold: it ends when p > 0.5.
        precision: precision of M's matrix products in dreams; auto: bfloat16 if the device has units for it.
        reward: name "module:function" of a function that replaces all rewards; see `worldmodel.dream.rewards`.
    """

    termination: TerminationRule = "sample"
    precision: Precision = "float32"
    reward: str | None = None


@dataclass(frozen=True, kw_only=True)
class DreamKind(DreamRules):
    """Dreams.

    Args:
        reward_mode: expected: a step pays the mean of the reward that M predicts; sampled: a sample of it, so that returns
            spread as real ones do.
        member_per: of an ensemble; dream: each dream follows one member; step: another one at each step.
        penalty: weight of the penalty for where the members of an ensemble disagree, in standard deviations of the rewards.
    """

    reward_mode: RewardMode = "expected"
    member_per: MemberPer = "dream"
    penalty: float = 0.0

    def dreams(self, world: WorldModel, num_dreams: int, *, temperature: float) -> Dreams:
        """Make dreams of this kind."""
        return Dreams(world, num_dreams, temperature=temperature, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """Storage of encoded frames.

    Args:
        dtype: data type of the stored mean and log-variance.
        precision: precision of V's matrix products; auto: bfloat16 if the device has units for it.
    """

    dtype: Literal["float16", "float32"] = "float16"
    precision: Precision = "float32"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command, or a part of one such as ``store verify``."""

    RESUME: ClassVar[str] = ""  # how to resume after Ctrl-C, in words

    @property
    def json_output(self) -> bool:
        """Whether to print JSON."""
        return bool(getattr(self, "output", Output()).json)

    @property
    def was_complete(self) -> bool:
        """Whether `run` found a complete run in its output directory, and had nothing to do."""
        output = getattr(self, "output", None)
        return isinstance(output, RunOutput) and output.work.get("records") == 0

    def run(self) -> Result:
        """Do the work and return what to print."""
        raise NotImplementedError

    @classmethod
    def translate(cls, words: Sequence[str]) -> list[str]:
        """Give options whose value is True, False or None, such as ``--no-termination-head``, the value that they imply."""
        translated: list[str] = []
        for position, word in enumerate(words):
            following = words[position + 1] if position + 1 < len(words) else ""
            name = word.removeprefix("--no-").removeprefix("--")
            if name not in TRUE_FALSE_NONE or not word.startswith("--"):
                translated.append(word)
            elif word.startswith("--no-"):
                translated += [f"--{name}", "False"]
            else:
                translated += [word, "True"] if following not in TRUTH else [word]
        return translated

    @classmethod
    def defaults(cls, words: Sequence[str]) -> Self | None:
        """Return defaults that depend on other options, here ``--preset``; None for those of the class.

        Raises:
            ValueError: if there is no such preset, or it has no numbers for this command.
        """
        name = given(words, "--preset") if "preset" in cls.__dataclass_fields__ else None
        return None if name is None else cls.of_preset(preset_named(name))

    @classmethod
    def of_preset(cls, preset: Preset) -> Self:
        """Return the command with the numbers of a preset; required options that it lacks are ``tyro.MISSING``."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TrainingCommand(Command):
    """A training on stores of episodes.

    Args:
        data: directories of episodes, all of one environment.
        out: directory for the model; the training state is in OUT/training.
        preset: use the numbers of an experiment as defaults; explicit options take precedence.
        initial: directory of a model to start from; its sizes are kept and the options for them ignored.
        seed: seed of the split, the weights and the batches.
    """

    RESUME = "The same command, without --overwrite, resumes the training."

    data: tuple[str, ...]
    out: str
    preset: PresetName | None = None
    initial: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SearchCommand(Command):
    """A search of a controller in dreams.

    Args:
        model: world model directory.
        out: directory for the controller; the state of the search is next to it, in OUT.search.safetensors or, of PPO, in
            OUT.ppo.safetensors.
        preset: use the numbers of an experiment as defaults; explicit options take precedence.
        temperature: of the dreams; above 1 they are more random than M predicts.
        seed: seed of everything that is sampled.
    """

    RESUME = (
        "OUT holds the best controller tested so far; if none was tested, it is unchanged. "
        "The same command, without --overwrite, resumes the search."
    )

    model: str
    out: str
    preset: PresetName | None = None
    temperature: float = 1.0
    seed: int = 0


def given(words: Sequence[str], option: str) -> str | None:
    """Return the value of an option among the words of a command line, or None."""
    for position, word in enumerate(words):
        if word == option and position + 1 < len(words):
            return words[position + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def preset_named(name: str) -> Preset:
    """Return a preset by its name.

    Raises:
        ValueError: if there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"--preset: expected one of {', '.join(sorted(PRESETS))}, got {name!r}")
    return PRESETS[name]


def open_vision(path: str, device: torch.device) -> Vision:
    """Open V on a device."""
    return Vision.from_pretrained(path, device=device)


def check_free(path: str, *, overwrite: bool) -> None:
    """Raise if an output file exists and may not be replaced.

    Raises:
        FileExistsError: if so.
    """
    if Path(path).exists() and not overwrite:
        raise FileExistsError(f"{path}: already there; pass --overwrite to replace it")


def write_json_file(path: str, data: dict[str, Any]) -> None:
    """Write JSON for people to read, atomically."""
    write_bytes(path, (json.dumps(data, indent=2) + "\n").encode())
