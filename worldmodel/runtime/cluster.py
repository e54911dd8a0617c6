"""Connect to a Dask cluster (extra dask)."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from concurrent.futures import Executor

from worldmodel.runtime.extras import require_extras

CONNECT_SECONDS = 15.0


@contextlib.contextmanager
def dask_executor(address: str, *, timeout: float = CONNECT_SECONDS) -> Generator[Executor]:
    """Connect to the scheduler of a Dask cluster, and give its workers as an executor for `WorkerConfig`.

    Args:
        address: of the scheduler, such as "tcp://10.0.0.1:8786".
        timeout: seconds to wait for it.

    Raises:
        ImportError: if the extra dask is not installed.
        ConnectionError: if there is no scheduler at the address, or it has no workers.
    """
    require_extras("dask")
    from distributed import Client

    try:
        client = Client(address, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"scheduler: expected a Dask scheduler at {address}, got {type(error).__name__}: {error}; start one with "
            "`dask scheduler`"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=timeout)
        except (OSError, TimeoutError) as error:
            raise ConnectionError(
                f"scheduler: expected workers at {address}, got none in {timeout:g} s; start them with `dask worker {address}`"
            ) from error
        yield client.get_executor()
