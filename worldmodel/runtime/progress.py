"""Progress of long work: one record for every callback, and tqdm bars on stderr."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm


@dataclass(frozen=True)
class Progress:
    """Progress of one stage of long work.

    Args:
        stage: name of the stage, such as "collect" or "train M".
        done: units of work done.
        total: units of work in all; None if unknown.
        unit: name of one unit, such as "episode" or "update".
        metrics: the latest numbers of the stage, by name.
        result: the best result so far, if the stage has one (a search: the best agent).
    """

    stage: str
    done: int
    total: int | None
    unit: str = "step"
    metrics: Mapping[str, float] = field(default_factory=dict)
    result: Any = None


Listener = Callable[[Progress], None]


class Reporter:
    """Shows progress as tqdm bars and passes it on to a listener; a context manager.

    Each stage has a bar, below those of earlier stages, which stay on the screen. The bars are on stderr, and
    silent if stderr is not a terminal.

    Args:
        bars: whether to show bars.
        listener: called with every record; None calls nothing.
    """

    def __init__(self, *, bars: bool = True, listener: Listener | None = None):
        self._shown, self._listener = bars, listener
        self._stage: str | None = None
        self._bar: tqdm | None = None

    def __call__(self, progress: Progress) -> None:
        """Show one record and pass it on."""
        if self._shown:
            self._show(progress)
        if self._listener is not None:
            self._listener(progress)

    def _show(self, progress: Progress) -> None:
        if self._bar is None or progress.stage != self._stage:
            self.close()
            self._stage = progress.stage
            self._bar = tqdm(desc=progress.stage, unit=progress.unit, dynamic_ncols=True, disable=None)  # None: if no terminal
        self._bar.total = progress.total
        numbers = ", ".join(f"{name} {value:,.4g}" for name, value in progress.metrics.items())
        self._bar.set_postfix_str(numbers, refresh=False)
        self._bar.update(progress.done - self._bar.n)

    def close(self) -> None:
        """Leave the last bar on the screen as it is."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Reporter:
        """Return the reporter itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the bar."""
        self.close()
