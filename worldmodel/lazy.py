"""Lazy package namespaces (PEP 562): a name is imported from its module the first time it is used.

So ``import worldmodel`` does not import torch, and a program loads only the modules it needs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attach(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names live in its submodules.

    Args:
        package: the package's ``__name__``.
        names: module, relative to the package -> the names it gives to the package, separated by spaces.

    Returns:
        The three objects, in this order.
    """
    homes = {name: f"{package}.{module}" for module, listed in names.items() for name in listed.split()}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)  # from now on an ordinary attribute
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *homes}), sorted(homes)
