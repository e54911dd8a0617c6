"""Shared parts of the programs: options, presets, progress, one-line errors."""

from __future__ import annotations

import argparse
import enum
import functools
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import torch

from worldmodel.data import EnvConfig
from worldmodel.experiments import PRESETS
from worldmodel.models import DTYPES, Vision
from worldmodel.runtime import Listener, RunConfig

USER_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError, gym.error.Error)


def program(*, resume: str = "") -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Make a decorator for a program: errors that a user can fix become one line on stderr and exit code 2, Ctrl-C code 130.

    Args:
        resume: how to resume after Ctrl-C, in words.
    """

    def decorate(main: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(main)
        def run() -> None:
            try:
                main()
            except USER_ERRORS as error:
                print("error:", str(error).replace("\n", " "), file=sys.stderr)  # NumPy prints many numbers in several lines
                sys.exit(2)
            except KeyboardInterrupt as interrupt:
                print(f"\n{str(interrupt) or 'interrupted'}. {resume}".rstrip(), file=sys.stderr)
                sys.exit(130)

        return run

    return decorate


def run_config(args: argparse.Namespace, on_progress: Listener | None = None) -> RunConfig:
    """Build the configuration of a run from the options; ``--resume`` takes precedence over ``--overwrite``."""
    resume = getattr(args, "resume", False)
    return RunConfig(
        overwrite=args.overwrite and not resume, tensorboard=getattr(args, "tensorboard", False), on_progress=on_progress
    )


def environment(args: argparse.Namespace) -> EnvConfig:
    """Build the environment of ``--env``, ``--env-kwargs`` and ``--max-steps``."""
    return EnvConfig(args.env, kwargs=args.env_kwargs, max_steps=args.max_steps)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device cpu|cuda|auto``."""
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="device of the model, its data and its dreams; auto: a GPU if there is one",
    )


def add_environment(parser: argparse.ArgumentParser) -> None:
    """Add ``--max-steps`` and ``--env-kwargs``."""
    parser.add_argument(
        "--max-steps", type=int, help="truncate an episode after this many steps; None: the environment's own limit"
    )
    parser.add_argument(
        "--env-kwargs", type=json.loads, default={}, metavar="JSON", help="arguments of the environment, e.g. '{\"g\": 9.8}'"
    )


def add_dreams(parser: argparse.ArgumentParser) -> None:
    """Add ``--termination sample|threshold`` and ``--precision float32|bfloat16|auto``."""
    parser.add_argument(
        "--termination",
        choices=("sample", "threshold"),
        default="sample",
        help="sample: a dream ends with probability p at each step; threshold: it ends when p > 0.5",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "auto"),
        default="float32",
        help="of M's matrix products in dreams; auto: bfloat16 if the device has units for it",
    )


def add_encoder(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add ``--vision``, ``--dtype`` and ``--precision``; the parser also needs the option of `add_device`.

    Args:
        parser: gets the options.
        required: whether ``--vision`` is required.
    """
    optional = "" if required else "; the store then holds its codes instead of frames"
    parser.add_argument("--vision", required=required, help=f"directory written by scripts/train_vae.py{optional}")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="data type of the stored mean and log-variance")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16", "auto"), default="float32", help="of V's matrix products"
    )


def open_vision(args: argparse.Namespace) -> Vision:
    """Open the V of ``--vision`` on the device of ``--device``."""
    return Vision.from_pretrained(args.vision, device=choose_device(args.device))


def choose_device(name: str) -> torch.device:
    """Turn ``--device`` into a device.

    Raises:
        ValueError: if "cuda" is requested and unavailable.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: expected an NVIDIA GPU and a CUDA build of torch for 'cuda', found none; use cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def parse_with_preset(parser: argparse.ArgumentParser, part: str) -> argparse.Namespace:
    """Add ``--preset``, which sets options to the paper's numbers and makes none of those required, and parse.

    Args:
        parser: has all other options.
        part: name of the part of the preset, see `worldmodel.experiments.presets.Preset.options`.

    Raises:
        ValueError: if the preset has no such part.
        KeyError: if the preset has a number for an option that the program lacks.
    """
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="use the paper's numbers as defaults; explicit options take precedence"
    )
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=sorted(PRESETS))
    if name := first.parse_known_args()[0].preset:
        options = PRESETS[name].options(part)
        if not options:
            raise ValueError(f"--preset: expected one with numbers for {part}.py, got {name}, whose experiment does without it")
        actions = {action.dest: action for action in parser._actions}  # argparse has no public way to them
        for option in options:
            actions[option].required = False
        parser.set_defaults(**options)
    return parser.parse_args()


def add_fields(
    parser: argparse.ArgumentParser,
    config: Callable[..., Any],
    *,
    leave_out: tuple[str, ...] = (),
    defaults: Mapping[str, Any] | None = None,
    prefix: str = "",
) -> None:
    """Add ``--field-name`` for each argument, with its default and its line of the docstring's ``Args``.

    Args:
        parser: gets the options, in a group of their own.
        config: a dataclass, or a function, with a Google-style docstring.
        leave_out: arguments that are not options.
        defaults: defaults that replace those of ``config``.
        prefix: put before each name.
    """
    group = parser.add_argument_group(f"options of {config.__qualname__}")
    hints = typing.get_type_hints(config if inspect.isroutine(config) else config.__init__)
    help_texts = _descriptions(config)
    for name, argument in inspect.signature(config).parameters.items():
        if name in leave_out:
            continue
        default = (defaults or {}).get(name, argument.default)
        default = default.value if isinstance(default, enum.Enum) else default
        group.add_argument(
            f"--{(prefix + name).replace('_', '-')}", default=default, help=help_texts[name], **_options(hints[name])
        )


def read_fields(
    arguments: argparse.Namespace, config: Callable[..., Any], *, leave_out: tuple[str, ...] = (), prefix: str = ""
) -> dict[str, Any]:
    """Return the parsed values of those arguments of ``config`` that are options."""
    names = [name for name in inspect.signature(config).parameters if name not in leave_out]
    return {name: getattr(arguments, prefix + name) for name in names if hasattr(arguments, prefix + name)}


def _options(hint: Any) -> dict[str, Any]:
    """Return the arguments with which argparse reads a value of a type."""
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": typing.get_args(hint)}
    kind = next(part for part in typing.get_args(hint) or (hint,) if part is not type(None))
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if issubclass(kind, enum.Enum):
        return {"choices": [member.value for member in kind]}
    return {"type": kind, "metavar": kind.__name__.upper()}


def _descriptions(config: Callable[..., Any]) -> dict[str, str]:
    """Read the description of each argument from a docstring, on one line, escaped for argparse."""
    section = re.split(r"\n(?:Args|Returns|Raises):\n", inspect.getdoc(config) or "")[1]
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "").replace("`", "").replace("%", "%%") for name, text in entries}
