"""Processes that work on one task together: the ranks of a `torch.distributed` group, as torchrun starts them.

Rank 0 leads: it alone prepares, writes and reports. The others run the jobs that it sends them, their parts of a training or of
an encoding, and return its result. Gradients travel in the default group; all else, such as jobs and flags, in a group of the
backend gloo.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import platform
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, ParamSpec, TypeVar

import cloudpickle
import torch
import torch.distributed as dist
from torch import Tensor

from worldmodel.version import __version__

P = ParamSpec("P")
R = TypeVar("R")
PATIENCE = datetime.timedelta(days=1)  # others wait while rank 0 chooses a head or evaluates; a lost process is noticed at once
JOB, RESULT, FAILURE = "job", "result", "failure"
NETWORK = ("gloo", "connection", "nccl", "socket", "broken pipe")  # in messages about a lost process

_controls: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # control group of a default group
_led: weakref.WeakSet[Any] = weakref.WeakSet()  # default groups in which rank 0 leads the others in a function
_out_of_step: weakref.WeakSet[Any] = weakref.WeakSet()  # those in which a rank has left a common operation; none can follow


class RankLostError(RuntimeError):
    """Another process of the group ended."""


class LeaderFailedError(RuntimeError):
    """Rank 0 ended with an error, which it reports itself."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a group, as seen by one of them; a process without a group is the only rank.

    Args:
        rank: number of this process.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Return the ranks of this process's default group."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this process is rank 0, which prepares, writes and reports."""
        return self.rank == 0

    def rows(self, total: int) -> slice:
        """Return the part of ``total`` rows that is this rank's; the parts differ by one row at most, and may be empty."""
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def share(self, value: Any = None) -> Any:
        """Return the value of rank 0 on all ranks; a large one is sent as it is pickled."""
        if self.alone:
            return value
        sent = [cloudpickle.dumps(value) if self.leads else None]
        with self.watched():
            dist.broadcast_object_list(sent, src=0, group=_control_group())
        return value if self.leads else cloudpickle.loads(sent[0])

    def agree(self, flag: bool) -> bool:
        """Return the flag of rank 0 on all ranks."""
        if self.alone:
            return flag
        sent = torch.tensor([int(flag)])
        with self.watched():
            dist.broadcast(sent, src=0, group=_control_group())
        return bool(sent.item())

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks on each of them."""
        values: list[Any] = [None] * self.size
        if self.alone:
            return [value]
        with self.watched():
            dist.all_gather_object(values, value, group=_control_group())
        return values

    def collect(self, value: Any) -> list[Any]:
        """Return the values of all ranks on rank 0, and nothing on the others."""
        if self.alone:
            return [value]
        values: list[Any] | None = [None] * self.size if self.leads else None
        with self.watched():
            dist.gather_object(value, values, dst=0, group=_control_group())
        return values or []

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, on the device of the tensor."""
        total = values.clone()
        if not self.alone:
            with self.watched():
                dist.all_reduce(total, group=_control_group() if total.device.type == "cpu" else None)
        return total

    def require_same(self, record: Mapping[str, Any]) -> None:
        """Raise on all ranks unless they have equal records, and the same versions of this library and of torch.

        Raises:
            ValueError: naming the first rank that differs, its machine, and both values.
        """
        mine = {**record, "worldmodel": __version__, "torch": torch.__version__}
        with self.watched():
            found = self.gather((platform.node(), mine))
            for rank, (node, there) in enumerate(found):
                for name, expected in found[0][1].items():
                    if there.get(name) != expected:
                        raise ValueError(
                            f"rank {rank} on {node}: expected {name} {expected}, as on rank 0, got {there.get(name)}; all "
                            "ranks need the same data and versions"
                        )

    def start_job(self, job: Callable[[], object]) -> None:
        """Send the other ranks what they call, on rank 0, which then does its own part of the work."""
        self.share((JOB, job))

    def finish(self, result: Any) -> None:
        """Give the result of rank 0 to the others, which wait for it in `follow`."""
        self.share((RESULT, result))

    def follow(self) -> Any:
        """Run the jobs of rank 0, and return its result.

        Raises:
            LeaderFailedError: if rank 0 ended with an error.
        """
        while True:
            kind, content = self.share()
            if kind == RESULT:
                return content
            if kind == FAILURE:
                raise LeaderFailedError(f"rank 0 ended with an error: {content}")
            content()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Do a part of the work that all ranks do in step: no further one is possible after an error in it.

        Raises:
            RankLostError: if another process ended.
        """
        if self.alone:
            yield
            return
        group = dist.group.WORLD
        if group in _out_of_step:
            raise RankLostError("ranks: expected ranks in step, got an earlier error of one of them; start them again")
        try:
            yield
        except BaseException as error:
            _out_of_step.add(group)
            if isinstance(error, RuntimeError) and not isinstance(error, RankLostError) and _is_from_network(error):
                _raise_lost(self.size, error)
            raise

    @contextlib.contextmanager
    def releasing(self) -> Iterator[None]:
        """Do what rank 0 does alone, between two calls of `agree`: on an error the others get False."""
        try:
            yield
        except BaseException:
            self.agree(False)
            raise


def led(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a long function, so that several ranks can call it together: rank 0 runs it, and the others help.

    All return its result. A function that is called inside another one belongs to that one.
    """

    @functools.wraps(function)
    def together(*args: P.args, **kwargs: P.kwargs) -> R:
        ranks = Ranks.current()
        group = None if ranks.alone else dist.group.WORLD
        if group is None or group in _led:
            return function(*args, **kwargs)
        if not ranks.leads:
            found: R = ranks.follow()
            return found
        _led.add(group)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            if group not in _out_of_step:
                ranks.share((FAILURE, f"{type(error).__name__}: {error}"))
            raise
        finally:
            _led.discard(group)
        ranks.finish(result)
        return result

    return together


def started_ranks() -> Ranks:
    """Return the ranks that torchrun started this process as one of, by its environment variables; alone without it."""
    size, rank = (os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK"))
    return Ranks(int(rank), int(size)) if size.isdigit() and rank.isdigit() else Ranks()


@contextlib.contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one, for the duration of a program; without torchrun, do nothing."""
    if started_ranks().alone:
        yield Ranks()
        return
    on_gpu = torch.cuda.is_available() and dist.is_nccl_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield Ranks.current()
    finally:
        dist.destroy_process_group()


def _control_group() -> Any:
    """Return a group whose backend works on the CPU; made at first use, by all ranks."""
    if dist.get_backend() == "gloo":
        return None  # the default group
    group = dist.group.WORLD
    if group not in _controls:
        _controls[group] = dist.new_group(backend="gloo", timeout=PATIENCE)
    return _controls[group]


def _is_from_network(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in NETWORK)


def _raise_lost(size: int, error: RuntimeError) -> NoReturn:
    said = str(error).splitlines()[0].rpartition("] ")[2][:100]  # without the place in torch's source
    raise RankLostError(
        f"ranks: expected all {size} processes to keep running, got one that ended ({said}); the same command resumes"
    ) from error
