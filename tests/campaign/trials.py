"""What a trial is, and how its work is done in a process that may be killed."""

import contextlib
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_write = os.write  # the child of a trial replaces it
SECONDS = 120  # after which a process counts as hanging
ALLOWED = (ValueError, TypeError, OSError, RuntimeError)  # InvalidFileError, LockedError and others are among their subclasses


@dataclass(frozen=True)
class Trial:
    """One fault.

    Args:
        name: stage, file and place of the fault; with the seed of the campaign it identifies the trial.
        run: gets an empty directory, and returns None or what went wrong.
    """

    name: str
    run: Callable[[Path], str | None]


@dataclass(frozen=True)
class Outcome:
    """End of a process.

    Args:
        kind: "done", "killed", "error" (an exception of `ALLOWED`), "raw" (another one), "hang" or "crash".
        text: result of the function, or type and message of the exception.
    """

    kind: str
    text: str = ""

    def unless(self, *kinds: str) -> str | None:
        """Return a finding unless the process ended in one of these ways."""
        return None if self.kind in kinds else f"{self.kind}: {self.text}"


def forked(function: Callable[[], str], seconds: float = SECONDS) -> Outcome:
    """Call a function in a fork of this process and return how that ended."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _child(function, write)
    os.close(write)
    data, deadline = b"", time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([read], [], [], 0.5)[0]:
            part = os.read(read, 2**16)
            if not part:
                break
            data += part
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(read)
    _, status = os.waitpid(pid, 0)
    if time.monotonic() >= deadline:
        return Outcome("hang", f"no end after {seconds} s")
    code = os.waitstatus_to_exitcode(status)
    if code == 137:
        return Outcome("killed")
    kind, _, text = data.decode("utf-8", "replace").partition("\n")
    return Outcome(kind, text) if kind else Outcome("crash", f"exit code {code}")


def _child(function: Callable[[], str], write: int) -> None:
    """Run the function and report; never returns."""
    try:
        data = _report(function).encode()
        while data:
            data = data[_write(write, data) :]
    finally:
        os._exit(0)


def _report(function: Callable[[], str]) -> str:
    quiet = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (the process ends soon)
    with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
        try:
            return f"done\n{function()}"
        except ALLOWED as error:
            return f"error\n{type(error).__name__}: {error}"
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            return f"raw\n{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
