"""Groups of options that commands share.

A command is a frozen dataclass: its fields are its options, its class docstring is its help, and `run` does the work. tyro
turns fields into options. A field that is itself a configuration becomes a group of options, which have no prefix where the
field is marked `tyro.conf.OmitArgPrefixes`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from typing_extensions import Self

from worldmodel.data import EnvConfig
from worldmodel.dream import Dreams, TerminationRule
from worldmodel.experiments import PRESETS, Preset
from worldmodel.models import Vision, WorldModel
from worldmodel.runtime import Listener, Precision, RunConfig, choose_device, locked, write_bytes

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]  # --name alone, without --no-name
Device = Literal["auto", "cpu", "cuda", "mps"]
TRUTH = ("True", "False", "None")
PresetName = Literal["car-racing", "doom"]


def _read_object(words: list[str]) -> dict[str, Any]:
    """Read a JSON object from one word of the command line."""
    try:
        value = json.loads(words[0])
    except ValueError as error:
        raise ValueError(f"expected a JSON object such as '{{\"g\": 9.8}}', got {words[0]!r} ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object such as '{{\"g\": 9.8}}', got {words[0]!r}")
    return value


JsonObject = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=_read_object,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]


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
class Run(Output):
    """Earlier runs and output.

    Args:
        overwrite: replace an earlier run in OUT; anything else there is an error.
        resume: resume even with --overwrite; an interrupted run is resumed anyway.
        threads: torch's threads; None: those of the run that is resumed, else torch's own. Another number gives other last
            bits, so it is refused for a run that was started with one.
        break_lock: write to OUT although a process on another host has locked it; only after a crash of that host.
    """

    overwrite: Flag = False
    resume: Flag = False
    threads: int | None = None
    break_lock: Flag = False

    def writing(self, path: str) -> contextlib.AbstractContextManager[None]:
        """Keep other writers out of OUT while a command runs; a file in its place is left to the check that names it."""
        if Path(path).exists() and not Path(path).is_dir():
            return contextlib.nullcontext()
        return locked(path, break_lock=self.break_lock)

    def config(self, on_progress: Listener | None = None) -> RunConfig:
        """Build the library's configuration of a run; ``resume`` takes precedence over ``overwrite``."""
        overwrite = self.overwrite and not self.resume
        return RunConfig(overwrite=overwrite, threads=self.threads, break_lock=self.break_lock, on_progress=on_progress)


@dataclass(frozen=True, kw_only=True)
class TrainingRun(Run):
    """Earlier runs and output.

    Args:
        tensorboard: write TensorBoard scalars (extra: tensorboard).
    """

    tensorboard: Flag = False

    def config(self, on_progress: Listener | None = None) -> RunConfig:
        """Build the library's configuration of a run."""
        return replace(super().config(on_progress), tensorboard=self.tensorboard)


@dataclass(frozen=True, kw_only=True)
class DeviceOption:
    """Device.

    Args:
        device: device of the model, its data and its dreams; auto: an NVIDIA GPU if there is one, else the CPU; mps: the GPU of
            a Mac (not run by us).
    """

    device: Device = "auto"

    def choose(self) -> torch.device:
        """Return the device."""
        return choose_device(self.device)


@dataclass(frozen=True, kw_only=True)
class EnvironmentOptions:
    """Real environment.

    Args:
        max_steps: truncate an episode after this many steps; None: the environment's own limit.
        env_kwargs: arguments of the environment, e.g. '{"g": 9.8}'.
        leave_out: leaves of the observations that are not recorded, e.g. mission.
    """

    max_steps: int | None = None
    env_kwargs: JsonObject = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()

    def of(self, env: str) -> EnvConfig:
        """Build the configuration of the environment with this id."""
        return EnvConfig(env, kwargs=self.env_kwargs, max_steps=self.max_steps, leave_out=self.leave_out)


@dataclass(frozen=True, kw_only=True)
class DreamKind:
    """Dreams.

    Args:
        termination: sample: a dream ends with probability p at each step; threshold: it ends when p > 0.5.
        precision: precision of M's matrix products in dreams; auto: bfloat16 if the device has units for it.
    """

    termination: TerminationRule = "sample"
    precision: Precision = "float32"

    def dreams(self, world: WorldModel, num_dreams: int, *, temperature: float) -> Dreams:
        """Make dreams of this kind."""
        return Dreams(world, num_dreams, temperature=temperature, termination=self.termination, precision=self.precision)


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

    def run(self) -> Result:
        """Do the work and return what to print."""
        raise NotImplementedError

    @classmethod
    def translate(cls, words: Sequence[str]) -> list[str]:
        """Replace options of earlier versions by today's: ``--resident`` and ``--no-resident`` had no value."""
        translated: list[str] = []
        for position, word in enumerate(words):
            following = words[position + 1] if position + 1 < len(words) else ""
            if word == "--no-resident":
                translated += ["--resident", "False"]
            else:
                translated += [word, "True"] if word == "--resident" and following not in TRUTH else [word]
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
