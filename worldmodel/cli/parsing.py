"""The command line: options by tyro, presets as defaults, errors on one line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, Union

import gymnasium as gym
import tyro

from worldmodel.cli.options import Command
from worldmodel.runtime import missing_operation

USER_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError, gym.error.Error)
C = TypeVar("C", bound=Command)
CONFIG = (tyro.conf.EnumChoicesFromValues,)
_NO_TYPE = r"^Error parsing (--\S+): no type matching \{None\}\|"
REWORDED = (  # parts of tyro's and Python's messages, and what this program says
    (r"^Error parsing (--\S+): invalid literal for int\(\) with base 10: (.*)$", r"\1: expected an integer, got \2"),
    (r"^Error parsing (--\S+): could not convert string to float: (.*)$", r"\1: expected a number, got \2"),
    (rf"{_NO_TYPE}INT could be instantiated from \[(.*?)\].*$", r"\1: expected an integer or None, got \2"),
    (rf"{_NO_TYPE}FLOAT could be instantiated from \[(.*?)\].*$", r"\1: expected a number or None, got \2"),
    (r"^Error parsing (--\S+): (.*)$", r"\1: \2"),
    (r"^Error parsing [\w-]+: (.*)$", r"\1"),  # a configuration that refuses a value names the field itself
    (r"^invalid choice (.*) for argument '(--\S+)'\. Expected one of \((.*)\)\.$", r"\2: expected one of \3, got \1"),
    (r"^Missing from .*?: (--\S+|[A-Z]+\b).*$", r"\1: required, got nothing"),
    (r"^Missing from .*?: (.*)$", r"required: \1"),
    (r"^Missing value for argument '(--\S+)'.*$", r"\1: expected a value, got nothing"),
)
UNKNOWN = "Unrecognized options: "
SIMILAR = ("Perhaps you meant:", "Arguments similar to ")  # titles of tyro's suggestions


def explain(error: BaseException) -> str:
    """Return the message of an error that a user can fix, on one line."""
    return (missing_operation(error) or str(error) or type(error).__name__).replace("\n", " ")


class UsageError(Exception):
    """The command line is wrong; the message is one line."""


def parse(command: type[C], words: Sequence[str], *, name: str) -> C:
    """Read a command line.

    Args:
        command: the class of the command.
        words: the words after its name.
        name: the command's name, such as "worldmodel collect", for usage and messages.

    Raises:
        UsageError: if the words do not fit; names the option and the expected value.
        SystemExit: with code 0 after ``--help``.
    """
    words = command.translate(words)
    try:
        default = command.defaults(words)
    except ValueError as error:
        raise UsageError(str(error)) from None
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if default is None:
                return tyro.cli(command, prog=name, args=words, config=CONFIG)
            return tyro.cli(command, prog=name, args=words, config=CONFIG, default=default)
    except SystemExit as stopped:
        if not stopped.code:
            raise
        raise UsageError(f"{one_line(said.getvalue())}; see {name} --help") from None


def one_line(text: str) -> str:
    """Turn tyro's message, a box of several sections, into one line."""
    sections: list[list[str]] = [[]]
    for line in text.splitlines():
        content = line.strip().strip("│").strip()
        if line.lstrip().startswith(("╭", "╰")):
            continue
        if len(content) > 3 and set(content) <= {"─", "-"}:
            sections.append([])
        elif content:
            sections[-1].append(content)
    if not text.lstrip().startswith("╭"):  # where the terminal has no such characters, the title is a section
        del sections[0]
    message = " ".join(sections[0])
    if message.startswith(UNKNOWN):
        message = unknown_options(message.removeprefix(UNKNOWN).split(", "))
    for pattern, replacement in REWORDED:
        message, changed = re.subn(pattern, replacement, message)
        if changed:
            break
    if not message[:2].isupper():
        message = message[:1].lower() + message[1:]
    for section in sections[1:]:
        if section and section[0].startswith(SIMILAR):
            near = [line.split()[0] for line in section[1:] if line.startswith("--")]
            message += f"; perhaps you meant {' or '.join(near)}"
    return message


def unknown_options(words: Sequence[str]) -> str:
    """Return the message for words that no option takes; the value of an unknown option is not another one."""
    options = [word.partition("=")[0] for word in words if re.match(r"-+[^\d.]", word)]
    if not options:
        return f"expected no more words, got {' '.join(words)}"
    return f"unknown option{'s' if len(options) > 1 else ''} {', '.join(options)}"


def completion(shell: str, commands: Mapping[str, type[Command]]) -> str:
    """Return a script that completes commands and options in a shell.

    Args:
        shell: "bash" or "zsh".
        commands: class of each command by its words, such as "store verify".
    """
    tree: dict[str, dict[str, type[Command]]] = {}
    for name, command in commands.items():
        first, _, second = name.partition(" ")
        tree.setdefault(first, {})[second] = command
    parts = [
        _subcommand(first, group[""] if "" in group else _union([_subcommand(*pair) for pair in group.items()]))
        for first, group in tree.items()
    ]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        tyro.cli(_union(parts), prog="worldmodel", args=["--tyro-print-completion", shell], config=CONFIG)
    return said.getvalue()


def _subcommand(name: str, kind: Any) -> Any:
    return Annotated[kind, tyro.conf.subcommand(name)]


def _union(kinds: Sequence[Any]) -> Any:
    return Union[tuple(kinds)]  # noqa: UP007  (the members are values)
