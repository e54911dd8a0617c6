"""One writer per directory: a lock file that names its owner, and that a dead owner leaves without effect.

The operating system's lock on the file decides on this host: it ends with its process, however that ends. Where the file system
has no such locks, the process id and its start time decide. A lock that another host left is only broken on request. Readers
take no lock. Within a thread, a lock may be taken again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from worldmodel.runtime.disk_errors import naming
from worldmodel.runtime.reading import InvalidFileError, parse_json

LOCK_FILE = ".worldmodel.lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: dict[tuple[int, int, str], int] = {}  # (process, thread, file) -> how often


class LockedError(OSError):
    """Another process, or another thread, writes to the directory."""


@contextlib.contextmanager
def locked(directory: str | Path, *, name: str = LOCK_FILE, break_lock: bool = False) -> Iterator[None]:
    """Keep other writers out of a directory; it is created if there is none.

    Args:
        directory: the directory.
        name: name of the lock file.
        break_lock: take a lock that another host holds or left.

    Raises:
        LockedError: if another writer is in the directory; names its host, its process and when it began.
    """
    directory = Path(directory)
    created = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    key = (os.getpid(), threading.get_ident(), str(path.resolve()))
    if key in _held:
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    try:
        descriptor = None if _is_read_only(directory) else _acquire(path, break_lock)
    except BaseException:
        _remove_empty(created)
        raise
    _held[key] = 1
    try:
        yield
    finally:
        del _held[key]
        try:
            if descriptor is not None:
                _release(path, descriptor)
        except FileNotFoundError:  # the whole directory was removed meanwhile
            pass
        _remove_empty(created)


def _is_read_only(directory: Path) -> bool:
    """Return whether nobody can write to a directory from here; a complete run in it can still be opened."""
    return not os.access(directory, os.W_OK)


def _acquire(path: Path, break_lock: bool) -> int:
    """Return the descriptor of the lock file, which holds this process's name."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o644)
        try:
            supported = _lock(descriptor)
            if supported is not None and not _is_the_file(descriptor, path):
                os.close(descriptor)  # its owner removed it between our two calls
                continue
            owner = _read_owner(descriptor, path)
            if supported is None or _is_held(owner, supported, break_lock):
                raise LockedError(_message(path, owner))
            content = {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_time(os.getpid())}
            data = json.dumps({**content, "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}).encode()
            with naming(path):
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.write(descriptor, data)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        return descriptor


def _release(path: Path, descriptor: int) -> None:
    """Remove the file, then let the system's lock go; a file that cannot be removed has no effect without that lock."""
    try:
        if os.name != "nt" and _is_the_file(descriptor, path):
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)
    if os.name == "nt":  # pragma: no cover (a file that is open cannot be removed there)
        with contextlib.suppress(OSError):
            path.unlink()


def _lock(descriptor: int) -> bool | None:
    """Take the system's lock: True, None if another one holds it, False if the file system has no locks."""
    try:
        if os.name == "nt":  # pragma: no cover
            import msvcrt

            os.lseek(descriptor, 2**30, os.SEEK_SET)  # a byte beyond the content, which others can still read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # a Python without them
        return False
    except OSError as error:
        if os.name != "nt" and error.errno in _UNSUPPORTED:
            return False
        return None
    return True


def _is_the_file(descriptor: int, path: Path) -> bool:
    """Return whether the path still names the open file."""
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _read_owner(descriptor: int, path: Path) -> dict[str, Any]:
    """Return what the lock file says; nothing if it is empty or damaged, as after a kill while it was written."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        content = parse_json(os.read(descriptor, 4096), path)
    except (OSError, InvalidFileError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_held(owner: dict[str, Any], supported: bool, break_lock: bool) -> bool:
    """Return whether an owner that the system's lock does not keep alive still counts."""
    host, pid = owner.get("host"), owner.get("pid")
    if not isinstance(host, str) or type(pid) is not int:
        return False
    if host != socket.gethostname():
        return not break_lock
    return not supported and pid != os.getpid() and _runs(pid) and owner.get("started") == _start_time(pid)


def _runs(pid: int) -> bool:
    if os.name == "nt":  # pragma: no cover (os.kill would end the process there; the system's lock decides)
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _start_time(pid: int) -> str | None:
    """Return when a process started, where the system says it; a process id alone is used again after a while."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _message(path: Path, owner: dict[str, Any]) -> str:
    who = f"process {owner.get('pid')} on host {owner.get('host')!r}, since {owner.get('since')}" if owner else "another one"
    return (
        f"{path.parent}: expected no other writer in this directory, got {who}; wait for it or stop it. If it is on a host "
        "that no longer runs it, pass break_lock=True (--break-lock)"
    )


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that were made for a lock and that nothing was written to."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
