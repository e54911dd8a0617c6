"""Count the file operations of this process, and let one of them and all later ones fail or kill it."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from typing import Any

OPERATIONS = ("open", "replace", "rename", "fsync", "write", "unlink", "remove", "mkdir", "rmdir", "ftruncate")
TAKE_SPACE = {"open", "fsync", "write", "close", "mkdir", "replace", "rename"}  # that a full disk refuses
NAMELESS = {"fsync", "write", "ftruncate"}
_originals = {name: getattr(os, name) for name in OPERATIONS} | {"builtin open": builtins.open}


def install(on_operation: Callable[[str, Callable[[], Any], Any], None]) -> None:
    """Call ``on_operation(name, half, file)`` before each operation.

    ``half`` does half of a write; ``file`` is the name that the system gives in an error, None for writes and flushes.
    """

    def wrap(name: str) -> Callable[..., Any]:
        original = _originals[name]

        def operation(*arguments: Any, **options: Any) -> Any:
            def half() -> None:
                if name == "write":
                    original(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])

            if name != "open" or (len(arguments) > 1 and arguments[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                on_operation(name, half, None if name in NAMELESS else arguments[0])
            return original(*arguments, **options)

        return operation

    for name in OPERATIONS:
        setattr(os, name, wrap(name))

    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        writes = any(letter in mode for letter in "wax+")
        if writes:
            on_operation("open", _nothing, file)
        stream = _originals["builtin open"](file, mode, *arguments, **options)
        if writes:
            plain = stream.write

            def write(data: Any) -> Any:
                def half() -> None:
                    plain(data[: len(data) // 2])
                    stream.flush()

                on_operation("write", half, None)
                return plain(data)

            shut = stream.close

            def close() -> None:
                try:
                    if not stream.closed:
                        on_operation("close", _nothing, None)  # writes what is buffered
                finally:
                    shut()

            stream.write, stream.close = write, close
        return stream

    builtins.open = io.open = opened  # pathlib calls the latter


def _nothing() -> None:
    pass


class Counter:
    """Counts operations."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, name: str, half: Callable[[], Any], file: Any) -> None:
        self.count += 1


class KillAt:
    """Kills the process at operation ``number``, in the middle if it is a write."""

    def __init__(self, number: int):
        self.number, self.count = number, 0

    def __call__(self, name: str, half: Callable[[], Any], file: Any) -> None:
        self.count += 1
        if self.count == self.number:
            half()
            os._exit(137)


class FullFrom:
    """Refuses operations that take space from number ``number`` on, as the system does: a write names no file."""

    def __init__(self, number: int):
        self.number, self.count = number, 0

    def __call__(self, name: str, half: Callable[[], Any], file: Any) -> None:
        self.count += 1
        if self.count >= self.number and name in TAKE_SPACE:
            if self.count == self.number:
                half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([] if file is None else [str(file)]))
