"""Run a function in two processes of a gloo group, for tests of what ranks do together."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist

from worldmodel.runtime import workers

SECONDS = 120.0  # until a test that hangs fails


def run_ranks(function: Callable[..., Any], *arguments: Any, folder: Path, size: int = 2, **keywords: Any) -> list[Any]:
    """Call a function in ``size`` processes; return the results by rank, an exception if that is what a rank ended with.

    The processes are those of the last call, unless one has ended: torch's imports for a group take a second.
    """
    meeting, payload = folder / f"meeting-{uuid.uuid4()}", cloudpickle.dumps(partial(function, *arguments, **keywords))
    if len(_started) != size or not all(process.is_alive() for process, _ in _started):
        _start(size)
    for rank, (_, pipe) in enumerate(_started):
        pipe.send((payload, rank, size, str(meeting)))
    results = [_receive(pipe) for _, pipe in _started]
    for (process, _), result in zip(_started, results, strict=True):
        if isinstance(result, BaseException):
            process.join()  # it is ending, and must not count as alive in the next call
    return results


_started: list[tuple[Any, Any]] = []  # the processes and their pipes


def _start(size: int) -> None:
    context = workers.worker_context()
    for process, _ in _started:
        process.kill()
        process.join()
    _started.clear()
    for _ in range(size):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        _started.append((process, ours))


def _receive(pipe: Any) -> Any:
    if not pipe.poll(SECONDS):
        raise TimeoutError("a rank did not end")
    try:
        return cloudpickle.loads(pipe.recv())
    except EOFError:
        return SystemExit("the process ended")


def _work(pipe: Any) -> None:
    torch.set_num_threads(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # blocked while workers start
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while True:
        payload, rank, size, meeting = pipe.recv()
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        try:
            result = cloudpickle.loads(payload)()
            dist.barrier()
        except BaseException as error:
            pipe.send(cloudpickle.dumps(error))
            os._exit(1)  # as a program would, so that the others see that its connection is closed
        dist.destroy_process_group()
        pipe.send(cloudpickle.dumps(result))


def same(results: Sequence[dict[str, torch.Tensor]]) -> bool:
    """Return whether ranks have equal weights, to the bit."""
    first, *others = results
    return all(torch.equal(first[name], other[name]) for other in others for name in first)
