"""Validation of integer arguments, the same everywhere."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def check_integer(value: Any, name: str, *, least: int | None = None) -> int:
    """Return an integer argument as a Python integer; NumPy's integers are accepted, booleans and floats are not.

    Args:
        value: the argument.
        name: its name in the message.
        least: smallest value allowed; None allows all.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below ``least``.
    """
    expected = "an integer" if least is None else f"an integer >= {least}"
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected {expected}, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name}: expected {expected}, got {number}")
    return number


def check_integers(config: Any, least: dict[str, int], *, optional: tuple[str, ...] = ()) -> None:
    """Check fields of a frozen dataclass with `check_integer` and store them as Python integers.

    NumPy's numbers in the other fields become Python's too, as JSON knows no others.

    Args:
        config: the dataclass instance.
        least: field name -> smallest value allowed.
        optional: fields that may also be None.

    Raises:
        TypeError: if a field is not an integer.
        ValueError: if a field is below its smallest value, or 2^63 or more.
    """
    for name, value in vars(config).items():
        if isinstance(value, np.generic) and name not in least:
            object.__setattr__(config, name, value.item())
    for name, smallest in least.items():
        value = getattr(config, name)
        if value is not None or name not in optional:
            number = check_integer(value, name, least=smallest)
            if number >= 2**63:
                raise ValueError(f"{name}: expected an integer below 2^63, got {number}")
            object.__setattr__(config, name, number)
