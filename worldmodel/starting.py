"""Ctrl-C while the program ``worldmodel`` starts.

Its imports take up to seconds. An interruption in the middle of one would end in a traceback, or in an `ImportError` of the
library that is being imported. So the program exits at once, with code 130, from the first import of `worldmodel` until
`worldmodel.cli.main` runs a command, and again when the command has printed its result. Nothing happens in other programs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

EXIT_CODE = 130  # as shells report a program that Ctrl-C ended
MESSAGE = b"\ninterrupted before anything was done\n"
_handled = False  # whether this module handles Ctrl-C in this process


def exit_on_interrupt() -> None:
    """From now on, exit on Ctrl-C without a traceback, if this process is the program ``worldmodel``."""
    global _handled
    if (
        is_program(getattr(sys, "argv", []), sys.orig_argv)
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell's background job ignores Ctrl-C
    ):
        signal.signal(signal.SIGINT, _exit_with_message)
        _handled = True


def raise_on_interrupt() -> None:
    """Undo `exit_on_interrupt`: from now on, Ctrl-C raises `KeyboardInterrupt`."""
    if _handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def exit_silently_on_interrupt() -> None:
    """From now on, exit on Ctrl-C without a word, if this process is the program: its result is printed."""
    if _handled:
        signal.signal(signal.SIGINT, _exit)


def is_program(words: list[str], command_line: list[str]) -> bool:
    """Return whether a process is the program: its script, ``python -m worldmodel``, or a file of a clone's ``scripts/``.

    Args:
        words: ``sys.argv``; its first word is "-m" while Python looks for a module to run.
        command_line: ``sys.orig_argv``. Worker processes inherit the program's ``words``, but have their own command line.
    """
    if not words or words[0] not in command_line:
        return False
    if words[0] == "-m":
        return command_line[command_line.index("-m") + 1] == "worldmodel"
    folder, name = os.path.split(os.path.abspath(words[0]))
    clone = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return os.path.splitext(name)[0] == "worldmodel" or folder == os.path.join(clone, "scripts")


def _exit_with_message(number: int, frame: FrameType | None) -> None:
    os.write(2, MESSAGE)
    os._exit(EXIT_CODE)


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(EXIT_CODE)
