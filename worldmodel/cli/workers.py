"""Workers of a command: processes of this machine, or those of a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import replace

from worldmodel.runtime import WorkerConfig, dask_executor


@contextlib.contextmanager
def pool(config: WorkerConfig, scheduler: str | None) -> Generator[WorkerConfig]:
    """Give workers.

    Args:
        config: of processes of this machine.
        scheduler: address of a Dask scheduler, whose workers do the tasks instead; None for those of ``config``.
    """
    if scheduler is None:
        yield config
        return
    with dask_executor(scheduler) as executor:
        yield replace(config, executor=executor)
