"""Open saved agents of any class, and check that something is an agent.

A class of agents is one file that registers itself:

    @register_agent("pilot.json")
    class Pilot:
        def reset(self, num_episodes): ...
        def act(self, state): ...
        def save_pretrained(self, path, *, overwrite=False): ...  # writes pilot.json, last

        @classmethod
        def from_pretrained(cls, path, *, device="cpu"): ...
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from worldmodel import agents
from worldmodel.dream import Agent, Policy, agent_of
from worldmodel.models import Origin, WorldModel
from worldmodel.runtime import choose_device, local_path

AgentClass = TypeVar("AgentClass", bound=type[Any])

_REGISTRY: dict[str, Any] = {}  # marker file -> class


def register_agent(marker: str) -> Callable[[AgentClass], AgentClass]:
    """Decorate a class of agents, so that `load_agent` can open what it saves.

    Args:
        marker: name of a file that `save_pretrained` of this class writes, last, and no other class does.

    Raises:
        ValueError: if another class has the same marker.
        TypeError: if the class has no ``from_pretrained``.
    """

    def register(cls: AgentClass) -> AgentClass:
        other = _REGISTRY.get(marker)
        if other is not None and other.__qualname__ != cls.__qualname__:  # the same class again is a reloaded module
            raise ValueError(f"marker: expected a file name of its own for {cls.__name__}, got {marker!r} of {other.__name__}")
        if not callable(getattr(cls, "from_pretrained", None)):
            raise TypeError(f"{cls.__name__}: expected a classmethod from_pretrained(path, *, device), got none")
        _REGISTRY[marker] = cls
        return cls

    return register


def load_agent(path: str | Path, *, device: str | torch.device = "cpu") -> Any:
    """Open a directory that an agent's ``save_pretrained`` wrote.

    Args:
        path: the directory.
        device: device of the agent; "auto" is an NVIDIA GPU if there is one, else the CPU.

    Raises:
        FileNotFoundError: if the directory holds no agent of a known class.
        ValueError: if it is damaged, or of a newer version.
    """
    path = local_path(path)
    marker = _find_marker(path)
    if marker is None:
        raise FileNotFoundError(
            f"{path}: expected an agent ({' or '.join(sorted(_REGISTRY))}), found none; for an agent of your own class, import "
            "the module that registers it first (worldmodel.agents.register_agent)"
        )
    return _REGISTRY[marker].from_pretrained(path, device=choose_device(device))


def has_agent(path: str | Path) -> bool:
    """Return whether a directory holds a complete agent of a known class."""
    return _find_marker(local_path(path)) is not None


def check_agent(agent: Policy, world: WorldModel) -> Agent:
    """Return an agent, or a function of features wrapped as one, after checking that it suits a world.

    Raises:
        TypeError: if it is neither; names the missing methods.
        ValueError: from the agent's ``check_world``, if it has this method and was not made for the world.
    """
    return agent_of(agent, world)


def copy_for_training(agent: Any, world: WorldModel) -> Any:
    """Copy an agent that is going to be trained in a world; it may come from another one, and belongs to this one afterwards.

    Raises:
        TypeError: see `check_agent`.
        ValueError: see `check_agent`.
    """
    copied = copy.deepcopy(agent)
    if hasattr(copied, "origin"):
        copied.origin = Origin.of(world)
    return check_agent(copied, world)


def _find_marker(path: Path) -> str | None:
    """Return the registered marker that a directory holds; imports the classes of this package if none is found."""
    found = next((marker for marker in _REGISTRY if (path / marker).is_file()), None)
    if found is None and path.is_dir():
        for module in pkgutil.iter_modules(agents.__path__, f"{agents.__name__}."):
            importlib.import_module(module.name)
        found = next((marker for marker in _REGISTRY if (path / marker).is_file()), None)
    return found
