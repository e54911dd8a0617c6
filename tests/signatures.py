"""Conventions of defaults and records, checked for all classes and functions of a package."""

import dataclasses
import importlib
import inspect
import pkgutil

# Default of a parameter wherever it has one; the caller's None means that another object decides.
DEFAULTS = {"seed": (0, None), "temperature": (1.0, None), "num_groups": (1,), "prefix_length": (0,), "first_seed": (0,)}


def members(package):
    """Yield (qualified name, object) of all classes, functions and methods that a package defines."""
    parent = importlib.import_module(f"worldmodel.{package}")
    for info in pkgutil.walk_packages(parent.__path__, f"{parent.__name__}."):
        try:
            module = importlib.import_module(info.name)
        except ImportError:  # an extra is not installed
            continue
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isclass(value):
                yield f"{info.name.removeprefix(parent.__name__ + '.')}.{name}", value
                for inner, method in vars(value).items():
                    method = getattr(method, "__func__", method)  # of class methods
                    if inspect.isfunction(method):
                        yield f"{info.name.removeprefix(parent.__name__ + '.')}.{name}.{inner}", method
            elif inspect.isfunction(value):
                yield f"{info.name.removeprefix(parent.__name__ + '.')}.{name}", value


def unusual_defaults(package):
    """List the defaults that differ from those that their names have everywhere."""
    found = []
    for name, function in members(package):
        if inspect.isfunction(function):
            for parameter in inspect.signature(function).parameters.values():
                usual = DEFAULTS.get(parameter.name)
                if usual and parameter.default is not inspect.Parameter.empty and parameter.default not in usual:
                    found.append((name, str(parameter)))
    return found


def unprotected_records(package):
    """List the public dataclasses that are not frozen, and the configurations that take positional arguments."""
    found = []
    for name, one in members(package):
        if inspect.isclass(one) and dataclasses.is_dataclass(one) and not one.__name__.startswith("_"):
            if not one.__dataclass_params__.frozen:
                found.append((name, "not frozen"))
            positional = {field.name for field in dataclasses.fields(one) if not field.kw_only}
            if name.endswith("Config") and positional and one.__name__ != "EnvConfig":  # it begins with the environment
                found.append((name, "positional"))
    return found
