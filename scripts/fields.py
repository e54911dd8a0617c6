"""Options made of a configuration's fields: one name, one default and one description, written once, in the library."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import inspect
import re
import typing
from typing import Any


def add_fields(parser: argparse.ArgumentParser, config: type, *, leave_out: tuple[str, ...] = ()) -> None:
    """Add ``--field-name`` for each field of a dataclass, with its default and its line of the docstring's ``Args``.

    Args:
        parser: gets the options, in a group of their own.
        config: a dataclass with a Google-style docstring.
        leave_out: fields that are no options.
    """
    group = parser.add_argument_group(f"options of {config.__name__}")
    help_texts, hints = _descriptions(config), typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in leave_out:
            continue
        kind = next(hint for hint in typing.get_args(hints[field.name]) or (hints[field.name],) if hint is not type(None))
        options: dict[str, Any] = {"type": kind, "metavar": kind.__name__.upper()}
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        elif issubclass(kind, enum.Enum):
            options = {"choices": [member.value for member in kind]}
        default = field.default.value if isinstance(field.default, enum.Enum) else field.default
        group.add_argument(f"--{field.name.replace('_', '-')}", default=default, help=help_texts[field.name], **options)


def read_fields(arguments: argparse.Namespace, config: type) -> dict[str, Any]:
    """Return the parsed values of those fields of ``config`` that are options."""
    names = [field.name for field in dataclasses.fields(config)]
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def _descriptions(config: type) -> dict[str, str]:
    """Description of each argument in the docstring of a dataclass, on one line, safe for argparse."""
    section = re.split(r"\n(?:Args|Raises):\n", inspect.getdoc(config) or "")[1]
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "").replace("`", "").replace("%", "%%") for name, text in entries}
