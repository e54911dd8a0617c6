"""Options of dreams that may be changed while they run: temperature, horizon and termination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.dream import Dreams, Rows, TerminationRule, usual_horizon
from worldmodel.envs.options import DreamOptions
from worldmodel.rng import Streams, fill_uniform

CHANGEABLE = ("temperature", "horizon", "termination")
FIXED = {field.name for field in fields(DreamOptions)} - set(CHANGEABLE) | {"options", "world", "tensors", "autoreset_mode"}


class DreamSettings:
    """The options of a batch of dreams as they are now.

    Args:
        options: the options at the start.
        dreams: the dreams, whose temperature and termination follow the settings.

    Attributes:
        options: the options as they are now.
        horizon: steps after which an episode is truncated.
    """

    def __init__(self, options: DreamOptions, dreams: Dreams):
        self.options, self._dreams, self._num_dreams = options, dreams, dreams.batch_size
        self.horizon = usual_horizon(dreams.world) if options.horizon is None else options.horizon
        low, high = options.temperature_range
        self._low, self._high = (np.full(self._num_dreams, bound) for bound in (low, high))  # of each dream
        dreams.temperature = self._constant(low) if low < high else low

    @property
    def ranged(self) -> bool:
        """Whether a dream has a range of temperatures, from which each of its episodes samples."""
        return bool((self._low < self._high).any())

    @property
    def varied(self) -> bool:
        """Whether each dream has a temperature of its own."""
        return isinstance(self._dreams.temperature, Tensor)

    @property
    def temperature(self) -> float | Sequence[float] | Tensor:
        """The number or range of all dreams; if they differ, the temperatures now, (B,)."""
        if np.ptp(self._low) > 0 or np.ptp(self._high) > 0:
            return torch.as_tensor(self._dreams.temperature).clone()
        return self.options.temperature

    def set_temperature(self, value: float | Sequence[float], rows: Tensor | None = None) -> None:
        """Change the temperature of the rows (B,) bool, all if None.

        A number takes effect at the next step, a range at the next episode of a dream.

        Raises:
            ValueError: if ``value`` is neither a number >= 0 nor a range (low, high) of such.
        """
        options = replace(self.options, temperature=value)
        low, high = options.temperature_range
        chosen = np.ones(self._num_dreams, dtype=bool) if rows is None else rows.cpu().numpy()
        self._low, self._high = np.where(chosen, low, self._low), np.where(chosen, high, self._high)
        if chosen.all():
            self.options = options
        if not self.ranged and np.ptp(self._low) == 0:
            self._dreams.temperature = float(self._low[0])
            return
        now = self._dreams.temperature
        now = now.clone() if isinstance(now, Tensor) else self._constant(now)
        if low == high:
            now[torch.from_numpy(chosen).to(now.device)] = low
        self._dreams.temperature = now

    def set_horizon(self, value: int | None) -> None:
        """Change the number of steps after which an episode is truncated; None is the limit of the world model's data.

        Raises:
            TypeError: if ``value`` is not an integer.
            ValueError: if it is below 1.
        """
        self.options = replace(self.options, horizon=value)
        self.horizon = usual_horizon(self._dreams.world) if value is None else value

    def set_termination(self, value: TerminationRule) -> None:
        """Change the rule by which dreams terminate.

        Raises:
            ValueError: if there is no such rule.
        """
        self._dreams.termination = value
        self.options = replace(self.options, termination=value)

    def begin(self, rows: Rows, streams: Streams) -> None:
        """Sample the temperatures of new episodes from their ranges."""
        if not self.ranged:
            return
        old = torch.as_tensor(self._dreams.temperature)
        low, high = (self._of_rows(bound, rows, old) for bound in (self._low, self._high))
        sampled = low + (high - low) * fill_uniform(old.new_empty(rows.count), streams)
        self._dreams.put_temperatures(rows.put(old, sampled))

    def infos(self) -> dict[str, Tensor]:
        """Return the temperature of each dream, with its mask, if each has its own."""
        if not self.varied:
            return {}
        temperature = torch.as_tensor(self._dreams.temperature).clone()
        return {"temperature": temperature, "_temperature": torch.ones_like(temperature, dtype=torch.bool)}

    def _constant(self, value: float) -> Tensor:
        return torch.full((self._num_dreams,), value, device=self._dreams.world.device)

    @staticmethod
    def _of_rows(bound: np.ndarray, rows: Rows, like: Tensor) -> Any:
        """Return the bound of all rows as a number, or of the chosen rows as a tensor if it is not the same in all."""
        if np.ptp(bound) == 0:
            return float(bound[0])
        return rows.take(torch.as_tensor(bound, dtype=like.dtype, device=like.device))


class ChangeableDreams:
    """Base of dream environments: what can be changed later is a property that takes effect, and nothing else can be set.

    Attributes:
        settings: the options as they are now; set it last in the constructor.
    """

    settings: DreamSettings

    @property
    def temperature(self) -> Any:
        """Temperature, or the range of each episode's. A number takes effect at the next step, a range at the next episode."""
        return self.settings.temperature

    @temperature.setter
    def temperature(self, value: float | Sequence[float]) -> None:
        self.settings.set_temperature(value)

    @property
    def horizon(self) -> int:
        """Steps after which an episode is truncated; a new value takes effect at the next step."""
        return self.settings.horizon

    @horizon.setter
    def horizon(self, value: int | None) -> None:
        self.settings.set_horizon(value)

    @property
    def termination(self) -> TerminationRule:
        """Rule by which dreams terminate; a new value takes effect at the next step."""
        return self.settings.options.termination

    @termination.setter
    def termination(self, value: TerminationRule) -> None:
        self.settings.set_termination(value)

    @property
    def options(self) -> DreamOptions:
        """The options as they are now."""
        return self.settings.options

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; refuse one that is read only when the environment is made.

        Raises:
            AttributeError: if it would be ignored.
        """
        if name in FIXED and "settings" in self.__dict__:
            raise AttributeError(
                f"{name}: expected to be given when the environment is made, as it is not read again, got {value!r} later; "
                f"make another environment. What can be changed: {', '.join(CHANGEABLE)}"
            )
        super().__setattr__(name, value)


def split_temperature(options: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any]]:
    """Split the options of a reset into the temperature, validated, and the others.

    Raises:
        ValueError: if the temperature is out of range.
    """
    others = dict(options or {})
    temperature = others.pop("temperature", None)
    if temperature is not None:
        DreamOptions(temperature=temperature)
    return temperature, others
