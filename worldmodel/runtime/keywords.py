"""Errors for unknown arguments of functions whose options are fields of configurations."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def explains_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function: a TypeError about an unknown argument names the configuration that has it, or a similar argument.

    The configurations are the dataclasses in the annotations of its parameters.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if unknown := sorted(set(kwargs) - set(signature.parameters)):
            raise TypeError(_explain(function, signature, unknown[0], kwargs[unknown[0]]))
        return function(*args, **kwargs)

    return wrapped


def _explain(function: Callable[..., Any], signature: inspect.Signature, unknown: str, value: Any) -> str:
    start = f"{function.__name__}: expected one of its arguments, got {unknown!r}"
    scope = inspect.unwrap(function).__globals__
    for name, parameter in signature.parameters.items():
        for word in re.findall(r"\w+", str(parameter.annotation)):
            found = scope.get(word)
            if dataclasses.is_dataclass(found) and unknown in {field.name for field in dataclasses.fields(found)}:
                return f"{start}, which is a field of {word}; pass {name}={word}({unknown}={value!r})"
    near = difflib.get_close_matches(unknown, signature.parameters, n=1)
    return f"{start}; did you mean {near[0]}?" if near else f"{start}; it has {', '.join(signature.parameters)}"
