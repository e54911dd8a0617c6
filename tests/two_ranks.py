"""Run a function in two processes of a gloo group, for tests of what ranks do together."""

from __future__ import annotations

import contextlib
import os
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
    """Call a function in ``size`` processes; return the results by rank, an exception if that is what a rank ended with."""
    context = workers._context()
    meeting, payload = folder / f"meeting-{uuid.uuid4()}", cloudpickle.dumps(partial(function, *arguments, **keywords))
    pipes, processes = [], []
    for rank in range(size):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, payload, rank, size, str(meeting)), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    results = [_receive(pipe) for pipe in pipes]
    for process in processes:
        process.join(SECONDS)
        process.kill()
    return results


def _receive(pipe: Any) -> Any:
    if not pipe.poll(SECONDS):
        raise TimeoutError("a rank did not end")
    try:
        return cloudpickle.loads(pipe.recv())
    except EOFError:
        return SystemExit("the process ended")


def _work(pipe: Any, payload: bytes, rank: int, size: int, meeting: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    try:
        result: Any = cloudpickle.loads(payload)()
    except BaseException as error:
        result = error
    pipe.send(cloudpickle.dumps(result))
    pipe.close()
    if not isinstance(result, BaseException):
        with contextlib.suppress(Exception):
            dist.barrier()
    os._exit(0)


def same(results: Sequence[dict[str, torch.Tensor]]) -> bool:
    """Return whether ranks have equal weights, to the bit."""
    first, *others = results
    return all(torch.equal(first[name], other[name]) for other in others for name in first)


__all__ = ["run_ranks", "same"]
