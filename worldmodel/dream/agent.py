"""Interface of agents: the state they act on, and the methods they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from worldmodel.models import FeatureKind, State, latent_features
from worldmodel.spaces import Value


@dataclass(frozen=True)
class LatentState:
    """State of B episodes, dreamed or real.

    Args:
        z: (B, D) latents.
        lstm: M's state, h and c of all layers, (num_layers, B, H) each, which has consumed everything before ``z``.
        alive: (B,) bool, False once an episode has ended.
    """

    z: Tensor
    lstm: State
    alive: Tensor

    def features(self, kind: FeatureKind = "zh") -> Tensor:
        """Concatenate z, (z, h) or (z, h, c) of the LSTM's last layer: (B, F)."""
        return latent_features(self.z, self.lstm, kind)


@runtime_checkable
class Agent(Protocol):
    """Chooses actions from the state of B episodes, in dreams and in the real environment alike.

    It may also have ``check_world(world)``, which raises if the agent was not made for the world, and, if it samples,
    ``seed(seed)``, which is called before the `reset` of each recorded episode.
    """

    def reset(self, num_episodes: int) -> None:
        """Begin B = ``num_episodes`` episodes; clears the agent's own state, if it has one."""

    def act(self, state: LatentState) -> Value:
        """Return a batch of B actions, called once per step. Actions of episodes that have ended are ignored."""

    def save_pretrained(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the agent as a directory."""


Policy = Agent | Callable[[Tensor], Value]  # an agent, or a function of features (B, F); see `as_agent`
