"""What the command-line programs here share: the device option, one-line errors, and a bar fed by progress reports."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from tqdm import tqdm

from worldmodel.presets import PRESETS

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


def add_termination(parser: argparse.ArgumentParser) -> None:
    """Add ``--termination sample|threshold``."""
    parser.add_argument(
        "--termination", choices=("sample", "threshold"), default="sample", help="draw the end of a dream, or end it at p > 0.5"
    )


def parse_with_preset(parser: argparse.ArgumentParser, part: str) -> argparse.Namespace:
    """Add ``--preset``, which gives options the paper's numbers and makes none of those required, and parse.

    Args:
        parser: has all other options.
        part: of the preset, see `worldmodel.presets.Preset.options`.
    """
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="take the numbers of the paper; options that are given beside it win"
    )
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=sorted(PRESETS))
    name = first.parse_known_args()[0].preset
    if name is not None:
        options = PRESETS[name].options(part)
        parser.set_defaults(**options)
        for action in parser._actions:  # there is no public way to it
            action.required = action.required and action.dest not in options
    return parser.parse_args()


def choose_device(name: str) -> torch.device:
    """Turn ``--device`` into a device.

    Raises:
        ValueError: if a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "--device: expected a machine with an NVIDIA GPU and a CUDA build of torch for 'cuda', found none; use cpu"
        )
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
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        said = str(interrupt) or "interrupted"
        print(f"\n{said}. {resume}".rstrip(), file=sys.stderr)
        sys.exit(130)


class Bar:
    """A progress bar that is told where things stand, and shows numbers beside it."""

    def __init__(self, description: str, unit: str):
        self._bar = tqdm(desc=description, unit=unit, dynamic_ncols=True)

    def show(self, done: int, total: int | None, **facts: Any) -> None:
        """Move the bar to ``done`` of ``total`` (None: unknown); facts are numbers or None."""
        self._bar.total = total
        texts = (f"{name} {value:,.4g}" for name, value in facts.items() if value is not None)
        self._bar.set_postfix_str(", ".join(texts), refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leave the bar on the screen as it stands."""
        self._bar.refresh()
        self._bar.close()

    def __enter__(self) -> Bar:
        """Begin."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End."""
        self.close()
