"""Validation of the other fields of configurations: numbers, flags and names. Integers are in `worldmodel.runtime.integers`."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np

LARGEST = float(np.finfo(np.float32).max)


def check_number(value: Any, name: str, interval: str = "(-inf, inf)") -> int | float:
    """Return a real number as a Python number; NumPy's numbers are accepted, booleans are not.

    Args:
        value: the argument.
        name: its name in the message.
        interval: where it must lie, such as "[0, 1)"; NaN and infinity never do.

    Raises:
        TypeError: if it is not a real number.
        ValueError: if it lies outside the interval, or beyond the range of float32.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {_describe(interval)}, got {value!r}")
    number: int | float = int(value) if isinstance(value, Integral) else float(value)
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    if not (abs(number) < math.inf and above and below):  # false for NaN; integers may be beyond the range of floats
        raise ValueError(f"{name}: expected {_describe(interval)}, got {number}")
    if abs(number) > LARGEST:
        raise ValueError(f"{name}: expected a number of at most {LARGEST:.3g}, the range of float32, got {number}")
    return number


def check_numbers(config: Any, intervals: dict[str, str], *, optional: tuple[str, ...] = ()) -> None:
    """Check fields of a frozen dataclass with `check_number` and store them as Python numbers.

    Args:
        config: the dataclass instance.
        intervals: field name -> interval.
        optional: fields that may also be None.

    Raises:
        TypeError: if a field is not a real number.
        ValueError: if a field lies outside its interval.
    """
    for name, interval in intervals.items():
        value = getattr(config, name)
        if value is not None or name not in optional:
            object.__setattr__(config, name, check_number(value, name, interval))


def check_flags(config: Any, *names: str, optional: tuple[str, ...] = ()) -> None:
    """Check that fields of a frozen dataclass are booleans, Python's or NumPy's, and store them as Python's.

    Args:
        config: the dataclass instance.
        *names: the fields.
        optional: fields that may also be None.

    Raises:
        TypeError: if a field is something else: "no" and 0.5 would count as true.
    """
    for name in (*names, *optional):
        value = getattr(config, name)
        if isinstance(value, (bool, np.bool_)):
            object.__setattr__(config, name, bool(value))
        elif value is not None or name not in optional:
            raise TypeError(f"{name}: expected True or False, got {value!r}")


def check_names(config: Any, *names: str) -> None:
    """Check that fields of a frozen dataclass are sequences of strings, and store them as tuples.

    Args:
        config: the dataclass instance.
        *names: the fields.

    Raises:
        TypeError: if a field is something else; a single string would count as its letters.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, str) or not isinstance(value, (tuple, list)) or not all(isinstance(part, str) for part in value):
            raise TypeError(f'{name}: expected a tuple of strings, such as ("mission",), got {value!r}')
        object.__setattr__(config, name, tuple(value))


def _describe(interval: str) -> str:
    known = {"(-inf, inf)": "a finite number", "(0, inf)": "a positive finite number", "[0, inf)": "a finite number >= 0"}
    return known.get(interval, f"a number in {interval}")
