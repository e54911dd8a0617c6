"""Number of torch's threads of a run: sums of another number of threads have other last bits.

A run records its number of threads when it starts. A later call that resumes it sets that number for its duration.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from worldmodel.runtime.process import end_if_starting

P = ParamSpec("P")
R = TypeVar("R")


def check_threads(recorded: Any, asked: int | None, source: str | Path) -> int | None:
    """Return the recorded number of threads of a run; None for a run of an earlier version.

    Raises:
        ValueError: if the caller asks for another number.
    """
    known = recorded if isinstance(recorded, int) and not isinstance(recorded, bool) and recorded >= 1 else None
    if known is not None and asked is not None and asked != known:
        raise ValueError(
            f"threads: expected {known}, as in the run in {source}, got {asked}, which would change its results; leave it out, "
            "or overwrite the run (--overwrite)"
        )
    return known


def set_threads(recorded: Any, asked: int | None, source: str | Path) -> int:
    """Set the number of threads of a run, and say so if that changes it.

    Args:
        recorded: number of the run that is resumed; None for a new run, and for one of an earlier version.
        asked: number that the caller asks for; None leaves it to the run, or else to torch.
        source: directory or file of the run, for messages.

    Returns:
        The number.

    Raises:
        ValueError: if the run has another number than the caller asks for.
    """
    known = check_threads(recorded, asked, source)
    present, chosen = torch.get_num_threads(), known or asked
    if chosen is None or chosen == present:
        return present
    if asked is None:
        warnings.warn(
            f"threads: the run in {source} was started with {chosen} and is resumed with {chosen}, not {present}, so that its "
            "result is the same",
            stacklevel=4,
        )
    torch.set_num_threads(chosen)
    return chosen


def keeps_threads(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a long function: after it, torch has as many threads as before.

    A worker that is about to run it while it imports the user's script ends; see `end_if_starting`.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        end_if_starting()
        before = torch.get_num_threads()
        try:
            return function(*args, **kwargs)
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)

    return wrapped
