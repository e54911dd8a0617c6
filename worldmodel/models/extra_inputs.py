"""What M sees of a step beside z and the action: which numbers of z are missing, and how long the step takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from worldmodel.runtime import check_integer, check_number


@dataclass(frozen=True, kw_only=True)
class ExtraInputs:
    """Inputs of M that not every model has; a model has those that its data ask for.

    Action features (..., A) may be followed by the time of the step in seconds, and then by an indicator for each number of z
    that may be missing. What is left out means the usual time, and that nothing is missing. So dreams, agents and planners
    need not know of them.

    Args:
        maskable: columns of z that may be missing, ascending. M sees 1 where one is missing, else 0.
        usual_time: seconds that a step usually takes. M sees the log of the time of a step in this unit. None: M does not see
            the time.

    Raises:
        TypeError: if a column is not an integer.
        ValueError: if a column is below 0 or the time is not positive.
    """

    maskable: tuple[int, ...] = ()
    usual_time: float | None = None

    def __post_init__(self) -> None:
        """Check both."""
        columns = tuple(check_integer(column, "maskable", least=0) for column in self.maskable)
        object.__setattr__(self, "maskable", tuple(sorted(set(columns))))
        if self.usual_time is not None:
            object.__setattr__(self, "usual_time", float(check_number(self.usual_time, "usual_time", "(0, inf)")))

    @property
    def sees_time(self) -> bool:
        """Whether M sees the time of a step."""
        return self.usual_time is not None

    @property
    def size(self) -> int:
        """Number of the inputs, E."""
        return len(self.maskable) + self.sees_time

    def accepts(self, size: int) -> bool:
        """Whether so many features may follow those of the action."""
        return size in (0, int(self.sees_time), self.size)

    def features(self, given: Tensor, dtype: torch.dtype) -> Tensor:
        """Turn what follows the action features, (..., at most E), into inputs of M (..., E)."""
        parts = [given.new_zeros(*given.shape[:-1], self.size - given.shape[-1])]
        if given.shape[-1]:
            time = [(given[..., :1] / self.usual_time).log()] if self.usual_time is not None else []
            parts = [*time, given[..., int(self.sees_time) :], *parts]
        return torch.cat(parts, dim=-1).to(dtype)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are set, as JSON-serialisable data."""
        found = {"maskable": list(self.maskable), "usual_time": self.usual_time}
        return {name: value for name, value in found.items() if value}

    @classmethod
    def take_from(cls, fields: dict[str, Any]) -> ExtraInputs:
        """Make it of the fields that `to_json` returned, and remove them from a dictionary."""
        return cls(**{name: fields.pop(name) for name in ("maskable", "usual_time") if name in fields})


class SeesTime(Protocol):
    """What these functions need of M."""

    extras: ExtraInputs
    action_size: int


def check_elapsed(model: SeesTime, elapsed: float | Tensor, batch_size: int) -> float | Tensor:
    """Return the seconds of a step if they are valid.

    Raises:
        ValueError: if M does not see the time, or the seconds are not positive, finite, and a number or (B,).
    """
    if not model.extras.sees_time:
        raise ValueError(
            "elapsed: expected None, as M does not see the time of a step; train on a store that has it "
            "(ConversionConfig(elapsed=True), --elapsed)"
        )
    values = torch.as_tensor(elapsed)
    if values.shape not in ((), (batch_size,)) or not bool((values.isfinite() & (values > 0)).all()):
        raise ValueError(f"elapsed: expected positive seconds, a number or shape ({batch_size},), got {elapsed}")
    return elapsed


def with_elapsed(model: SeesTime, action: Tensor, elapsed: float | Tensor) -> Tensor:
    """Append the seconds of a step, a number or (B,), to action features (B, A) that have none."""
    if action.shape[-1] != model.action_size:
        return action
    seconds = torch.as_tensor(elapsed, dtype=action.dtype, device=action.device)
    return torch.cat([action, seconds.expand(len(action)).unsqueeze(-1)], dim=-1)
