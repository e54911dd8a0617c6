"""Options made of a configuration's fields or a function's arguments: one name, default and description, in the library."""

from __future__ import annotations

import argparse
import enum
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any


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
        leave_out: arguments that are no options.
        defaults: other defaults than its own.
        prefix: put before each name.
    """
    group = parser.add_argument_group(f"options of {config.__qualname__}")
    hints = typing.get_type_hints(config if inspect.isroutine(config) else config.__init__)  # type: ignore[misc]
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
    """How argparse reads a value of a type."""
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": typing.get_args(hint)}
    kind = next(part for part in typing.get_args(hint) or (hint,) if part is not type(None))
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if issubclass(kind, enum.Enum):
        return {"choices": [member.value for member in kind]}
    return {"type": kind, "metavar": kind.__name__.upper()}


def _descriptions(config: Callable[..., Any]) -> dict[str, str]:
    """Description of each argument in a docstring, on one line, safe for argparse."""
    section = re.split(r"\n(?:Args|Returns|Raises):\n", inspect.getdoc(config) or "")[1]
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "").replace("`", "").replace("%", "%%") for name, text in entries}
