"""What the command-line programs here share: options, presets, one-line errors."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

import gymnasium as gym
import torch

from worldmodel.experiments import PRESETS

USER_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError, gym.error.Error)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device cpu|cuda|auto``."""
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="where the model, its data and its dreams are; auto takes the GPU if there is one",
    )


def add_environment(parser: argparse.ArgumentParser) -> None:
    """Add ``--max-steps`` and ``--env-kwargs``, which go with an environment."""
    parser.add_argument("--max-steps", type=int, help="truncate an episode after so many steps; None: as the environment does")
    parser.add_argument(
        "--env-kwargs", type=json.loads, default={}, metavar="JSON", help="arguments of the environment, e.g. '{\"g\": 9.8}'"
    )


def add_dreams(parser: argparse.ArgumentParser) -> None:
    """Add ``--termination sample|threshold`` and ``--precision float32|bfloat16|auto``."""
    parser.add_argument(
        "--termination", choices=("sample", "threshold"), default="sample", help="draw the end of a dream, or end it at p > 0.5"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "auto"),
        default="float32",
        help="of M's matrix products in dreams; auto: bfloat16 where the device has units for it",
    )


def parse_with_preset(parser: argparse.ArgumentParser, part: str) -> argparse.Namespace:
    """Add ``--preset``, which gives options the paper's numbers and makes none of those required, and parse.

    Args:
        parser: has all other options.
        part: of the preset, see `worldmodel.experiments.presets.Preset.options`.

    Raises:
        ValueError: if the preset has no such part.
        KeyError: if it has a number for an option that the script lacks.
    """
    parser.add_argument("--preset", choices=sorted(PRESETS), help="take the numbers of the paper; options beside it win")
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=sorted(PRESETS))
    if name := first.parse_known_args()[0].preset:
        options = PRESETS[name].options(part)
        if not options:
            raise ValueError(f"--preset: expected one with numbers for {part}.py, got {name}, whose experiment does without it")
        actions = {action.dest: action for action in parser._actions}  # there is no public way to them
        for option in options:
            actions[option].required = False
        parser.set_defaults(**options)
    return parser.parse_args()


def choose_device(name: str) -> torch.device:
    """Turn ``--device`` into a device.

    Raises:
        ValueError: if a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: expected an NVIDIA GPU and a CUDA build of torch for 'cuda', found none; use cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def run(main: Callable[[], None], *, resume: str = "") -> None:
    """Run a program; what a user can mend becomes one line on stderr and exit code 2, Ctrl-C exit code 130.

    Args:
        main: the program.
        resume: how to go on after Ctrl-C, in words.
    """
    try:
        main()
    except USER_ERRORS as error:
        print("error:", str(error).replace("\n", " "), file=sys.stderr)  # NumPy prints many numbers in several lines
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print(f"\n{str(interrupt) or 'interrupted'}. {resume}".rstrip(), file=sys.stderr)
        sys.exit(130)
