"""Functions that files name: found among what the program has imported, so that opening a file runs no code."""

from __future__ import annotations

import sys
from typing import Any


def imported_function(name: str, source: str) -> Any:
    """Return a function of a module that is imported already.

    Args:
        name: "module:name", as a file holds it.
        source: what names it, for the message.

    Raises:
        ValueError: if the module is not imported or is one of Python's own, or has no such function.
    """
    module, _, rest = name.partition(":")
    if module not in sys.modules:
        raise ValueError(
            f"{source}: expected its function {name} in a module that is imported, got none; opening a file imports nothing, "
            f"so import {module or 'the module'} first"
        )
    found: Any = sys.modules[module]
    for part in rest.split("."):
        found = getattr(found, part, None)
    defined = getattr(found, "__module__", None) == module or getattr(type(found), "__module__", None) != "builtins"
    if module.partition(".")[0] in sys.stdlib_module_names - {"__main__"} or not callable(found) or not defined:
        raise ValueError(f"{source}: expected the name of a function that is defined in a module of yours, got {name!r}")
    return found
