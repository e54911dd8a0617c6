"""Classes by name, so that a file can name the class that reads it and a new class is one file that registers itself."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Generic, TypeVar

T = TypeVar("T")


class UnknownClassError(ValueError):
    """No class is registered under a name."""


class Registry(Generic[T]):
    """The classes of one kind, by class name.

    Args:
        kind: what the classes are, for error messages.
        package: dotted name of the package whose modules are imported when a name is not registered yet.
    """

    def __init__(self, kind: str, package: str):
        self._kind, self._package = kind, package
        self._classes: dict[str, type[T]] = {}

    def add(self, cls: type[T]) -> None:
        """Register a class under its name; a later class replaces an earlier one of the same name."""
        self._classes[cls.__name__] = cls

    def find(self, name: str) -> type[T]:
        """Return the class of a name: one of the package, or one of a module imported so far.

        Raises:
            UnknownClassError: if there is none; names the classes that there are.
        """
        if name not in self._classes:
            for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__, f"{self._package}."):
                importlib.import_module(module.name)
        if name not in self._classes:
            known = ", ".join(map(repr, sorted(self._classes)))
            raise UnknownClassError(
                f"{self._kind}: expected one of the registered classes {known}, got {name!r}; import the module that defines it"
            )
        return self._classes[name]
