"""Memory of this machine and of this process, as far as the operating system tells."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CGROUPS = (  # directory, files of the limit and of the use, entry of memory.stat that the kernel can drop
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def total_memory() -> int | None:
    """Return the memory in bytes that processes may use: that of the machine, or the limit of the container if it is less.

    Returns:
        Bytes, or None if the operating system does not tell.
    """
    known = [size for size in (_physical_memory(), *(limit for limit, _ in _container_memory())) if size]
    return min(known, default=None)


def used_fraction() -> float | None:
    """Return the fraction of the memory that all processes use together, without what the system can drop.

    Returns:
        A number in [0, 1], the larger one of the machine's and the container's; None if the operating system does not tell.
    """
    found = [used / limit for limit, used in _container_memory() if limit]
    information = _fields(Path("/proc/meminfo"))
    if information.get("MemTotal:") and "MemAvailable:" in information:
        found.append(1 - information["MemAvailable:"] / information["MemTotal:"])
    if sys.platform == "win32":
        found.append(_windows_memory().dwMemoryLoad / 100)
    return max(found, default=None)


def private_memory() -> int | None:
    """Return the memory in bytes that this process alone holds, without the pages of mapped files.

    Returns:
        Bytes, or None if the operating system does not tell (elsewhere than on Linux).
    """
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _physical_memory() -> int | None:
    if sys.platform == "win32":
        return int(_windows_memory().ullTotalPhys)
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None
    return pages * size if pages > 0 and size > 0 else None


def _container_memory() -> list[tuple[int, int]]:
    """Return limit and use in bytes of each control group of this process that has a limit."""
    found = []
    for directory, limit, use, droppable in CGROUPS:
        try:
            most, used = (int((directory / name).read_text(encoding="ascii")) for name in (limit, use))
        except (OSError, ValueError):  # no such group, or a limit "max"
            continue
        found.append((most, max(0, used - _fields(directory / "memory.stat").get(droppable, 0))))
    return found


def _fields(path: Path) -> dict[str, int]:
    """Read lines of a name and a number; none if there is no such file."""
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return {words[0]: int(words[1]) for words in lines if len(words) > 1}
    except (OSError, ValueError):
        return {}


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        ("dwLength", ctypes.c_uint32),
        ("dwMemoryLoad", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("ullTotalPhys", "ullAvailPhys", "ullTotalPageFile", "ullAvailPageFile")),
        *((name, ctypes.c_uint64) for name in ("ullTotalVirtual", "ullAvailVirtual", "ullAvailExtendedVirtual")),
    )


def _windows_memory() -> _MemoryStatus:
    status = _MemoryStatus(dwLength=ctypes.sizeof(_MemoryStatus))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return status
