"""Large parts of tasks that a worker keeps: V and M are sent to it once, and not with every generation of a search."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import MutableMapping
from typing import Any, Generic, TypeVar

import cloudpickle

T = TypeVar("T")
MOST_KEPT = 4  # large parts in a worker's memory


class Kept(Generic[T]):
    """A large part of a runner, which does not change.

    Args:
        value: the part. Pickled as usual, it travels with the runner; `dump` sends it on its own.
    """

    def __init__(self, value: T):
        self.value = value
        self._dumped: tuple[str, bytes] | None = None

    def dump(self) -> tuple[str, bytes]:
        """Return the digest of the pickled part, and the part."""
        if self._dumped is None:
            data = cloudpickle.dumps(self.value)
            self._dumped = hashlib.sha256(data).hexdigest(), data
        return self._dumped

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the pickled copy."""
        return {"value": self.value, "_dumped": None}


class MissingPartError(LookupError):
    """A worker lacks a large part."""


def dump(thing: Any) -> tuple[bytes, dict[str, bytes]]:
    """Pickle a runner.

    Returns:
        The pickled runner with digests in place of its large parts, and the large parts by digest.
    """
    stream, parts = io.BytesIO(), dict[str, bytes]()
    pickler = cloudpickle.Pickler(stream)

    def persistent_id(item: Any) -> str | None:
        if not isinstance(item, Kept):
            return None
        digest, data = item.dump()
        parts[digest] = data
        return digest

    pickler.persistent_id = persistent_id
    pickler.dump(thing)
    return stream.getvalue(), parts


def load(data: bytes, parts: MutableMapping[str, Any]) -> Any:
    """Unpickle what `dump` returned.

    Args:
        data: the runner.
        parts: unpickled large parts by digest.

    Raises:
        MissingPartError: if a part is missing.
    """
    unpickler = pickle.Unpickler(io.BytesIO(data))

    def persistent_load(digest: str) -> Any:
        if digest not in parts:
            raise MissingPartError(digest)
        return Kept(parts[digest])

    unpickler.persistent_load = persistent_load  # type: ignore[method-assign]
    return unpickler.load()


def keep(parts: MutableMapping[str, Any], sent: dict[str, bytes]) -> None:
    """Add parts that were sent to those of a worker, and drop the oldest beyond `MOST_KEPT`."""
    for digest, data in sent.items():
        if digest not in parts:
            parts[digest] = cloudpickle.loads(data)
    while len(parts) > max(MOST_KEPT, len(sent)):
        parts.pop(next(iter(parts)))
