"""The program ``worldmodel``: finds the command, runs it, prints its result, and turns errors into one line.

Exit codes: 0; 1 if a check found problems; 2 for an error that the user can fix; 130 after Ctrl-C.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, TextIO

from worldmodel.starting import EXIT_CODE, exit_silently_on_interrupt, raise_on_interrupt
from worldmodel.version import __version__

if TYPE_CHECKING:
    from worldmodel.cli.options import Command

COMMANDS = {  # words: module, class, summary
    "quickstart": ("quickstart", "Quickstart", "train for CartPole in dreams, score in reality"),
    "collect": ("collect", "Collect", "collect real episodes from a Gymnasium environment"),
    "convert": ("convert", "Convert", "recorded data (CSV, parquet, HDF5, video ...) to a store"),
    "train-vae": ("train_vae", "TrainVae", "train V on episodes of images"),
    "encode": ("encode", "Encode", "encode episodes of images with V"),
    "train-mdnrnn": ("train_mdnrnn", "TrainMdnrnn", "train M: write a world model"),
    "dream": ("dream", "Dream", "dream many futures at once, into an .npz file"),
    "train-controller": ("train_controller", "TrainController", "search a controller in dreams"),
    "improve-controller": ("improve_controller", "ImproveController", "improve it by PPO in short dreams"),
    "evaluate": ("evaluate", "Evaluate", "compare dreams with the real environment"),
    "iterate": ("iterate", "Iterate", "repeat collect, train, dream, evaluate"),
    "reproduce doom": ("reproduce", "Doom", "the Doom experiment of the paper"),
    "reproduce car-racing": ("reproduce", "CarRacing", "the CarRacing experiment of the paper"),
    "store inspect": ("store", "Inspect", "summary of a store of episodes"),
    "store verify": ("store", "Verify", "check every byte of a store"),
    "store repair": ("store", "Repair", "keep the undamaged episodes of a store"),
    "export": ("export", "Export", "ONNX files, or a page that runs the dream in a browser"),
    "play": ("play", "Play", "play in a dream, in the browser"),
    "info": ("info", "Info", "versions, devices and extras; or how a run was made"),
}
TOGETHER = ("train-vae", "encode", "train-mdnrnn", "dream", "train-controller")  # commands for several processes, with torchrun
ALIASES = {"store info": "store inspect"}  # of earlier versions
SHELLS = ("bash", "zsh")


def help_screen() -> str:
    """Return the text of ``worldmodel --help``."""
    lines = [
        "usage: worldmodel COMMAND [OPTIONS]",
        "Recurrent world models: collect, train, dream, act, compare with reality.",
        "",
        *(f"  {name:22}{summary}" for name, (_, _, summary) in COMMANDS.items()),
        "",
        f"worldmodel COMMAND --help | --version | --print-completion {'|'.join(SHELLS)}",
    ]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run the program and exit.

    Args:
        words: the words of the command line after the program's name; None takes them from ``sys.argv``.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("-h", "--help"):
        show(help_screen())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        show(f"worldmodel {__version__}")
        sys.exit(0)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # "my_module:Id-v0" of the user's directory, as with python -m
    if words[0] == "--print-completion":
        print_completion(words[1:])
    name = find(words)
    sys.exit(run(name, words[len(name.split()) :]))


def find(words: Sequence[str]) -> str:
    """Return the name of the command that the words begin with; exit if there is none."""
    for length in (1, 2):
        name = " ".join(words[:length])
        name = ALIASES.get(name, name)
        if name in COMMANDS:
            return name
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if group and words[1:2] in (["-h"], ["--help"]):
        show("\n".join(f"worldmodel {name:22}{COMMANDS[name][2]}" for name in group))
        sys.exit(0)
    wanted = " ".join(words[:2]) if group else words[0]
    near = difflib.get_close_matches(wanted, group or list(COMMANDS), n=1)
    expected = " or ".join(group) if group else "a command"
    return fail(
        f"expected {expected}, got {wanted!r}" + (f" (did you mean {near[0]}?)" if near else "") + "; see worldmodel --help"
    )


def load(name: str) -> type[Command]:
    """Import the class of a command."""
    module, cls, _ = COMMANDS[name]
    return getattr(importlib.import_module(f"worldmodel.cli.{module}"), cls)


def run(name: str, words: Sequence[str]) -> int:
    """Run a command and return its exit code."""
    try:
        from worldmodel.cli.parsing import USER_ERRORS, UsageError, explain, parse
        from worldmodel.runtime import LeaderFailedError, joined_ranks, started_ranks

        command = load(name)
    except KeyboardInterrupt:  # called by another program; in its own process, `worldmodel.starting` ends it
        print("\ninterrupted before anything was done", file=sys.stderr)
        return EXIT_CODE
    raise_on_interrupt()
    warnings.showwarning, ranks = show_warning, started_ranks()
    try:
        chosen = parse(command, words, name=f"worldmodel {name}")
        if not ranks.alone and name not in TOGETHER:
            raise UsageError(f"{name}: expected one process, got {ranks.size}; torchrun can start {', '.join(TOGETHER)}")
        with joined_ranks():
            result = chosen.run()
    except UsageError as error:
        return fail(str(error)) if ranks.leads else 2
    except LeaderFailedError:  # which rank 0 reports
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\n{str(interrupt) or 'interrupted'}. {command.RESUME}".rstrip(), file=sys.stderr)
        return EXIT_CODE
    except USER_ERRORS as error:
        fail(f"{'' if ranks.leads else f'rank {ranks.rank} on {platform.node()}: '}{explain(error)}")
    finally:
        exit_silently_on_interrupt()
    if not ranks.leads:
        return 0
    if chosen.was_complete:
        print("the run was complete already; nothing was done (--overwrite starts it again)", file=sys.stderr)
    show(json.dumps(result.data) if chosen.json_output else result.text)
    return result.exit_code


def show(text: str) -> None:
    """Print a result; a reader that has seen enough, such as ``head``, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning on one line."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def print_completion(words: Sequence[str]) -> NoReturn:
    """Print a completion script for a shell and exit."""
    if list(words[1:]) or words[:1] not in [[shell] for shell in SHELLS]:
        fail(f"--print-completion: expected {', '.join(SHELLS)}, got {' '.join(words) or 'nothing'}")
    from worldmodel.cli.parsing import completion

    show(completion(words[0], {name: load(name) for name in COMMANDS}))
    sys.exit(0)


def fail(message: str) -> NoReturn:
    """Print an error on one line and exit with code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
