"""Progress bars of the command-line programs here, fed by progress reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tqdm import tqdm


class Bar:
    """A progress bar that is told where things stand, and shows numbers beside it."""

    def __init__(self, description: str, unit: str):
        self._bar = tqdm(desc=description, unit=unit, dynamic_ncols=True)

    def show(self, done: int, total: int | None, **facts: Any) -> None:
        """Move the bar to ``done`` of ``total`` (None: unknown); facts are numbers or None."""
        self._bar.total = total
        texts = (f"{name} {value:,.4g}" for name, value in facts.items() if value is not None)
        self._bar.set_postfix_str(", ".join(texts), refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leave the bar on the screen as it stands."""
        self._bar.refresh()
        self._bar.close()

    def __enter__(self) -> Bar:
        """Begin."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End."""
        self.close()


class StageBars:
    """One bar for each stage, below the earlier ones, which stay as they ended."""

    def __init__(self) -> None:
        self._stage, self._bar = "", None

    def show(self, stage: str, done: int, total: int | None, facts: Mapping[str, Any], unit: str) -> None:
        """Move the bar of a stage; another stage gets a bar of its own."""
        if stage != self._stage or self._bar is None:
            self.close()
            self._stage, self._bar = stage, Bar(stage, unit)
        self._bar.show(done, total, **facts)

    def close(self) -> None:
        """Leave the last bar as it stands."""
        if self._bar is not None:
            self._bar.close()
