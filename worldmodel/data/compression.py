"""Compression of frames by zstd, in chunks of `CHUNK` frames that are read separately.

The frames of one episode are stored as a table followed by the chunks. The table holds the size in
bytes and the CRC-32 of each chunk (uint32, little-endian). Each chunk is a separate zstd frame. A
flipped byte is detected when its chunk is read, and damages only that chunk. dev/LOG.md has the
measurements behind format, chunk size and level.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import zstandard

CHUNK = 64  # frames
LEVEL = 3
MAX_WINDOW = 2**27  # bytes of memory of a decompression, beside its result
PIECE = 2**20  # bytes decompressed at once by `stream`


class DamagedChunkError(ValueError):
    """A chunk does not match its checksum; the other chunks of its episode can still be read."""


def pack(frames: np.ndarray) -> bytes:
    """Compress frames (N, ...) uint8."""
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    chunks = [compressor.compress(frames[i : i + CHUNK].tobytes()) for i in range(0, len(frames), CHUNK)]
    table = np.array([(len(chunk), zlib.crc32(chunk)) for chunk in chunks], dtype="<u4")
    return table.tobytes() + b"".join(chunks)


def unpack(file: BinaryIO, offset: int, size: int, num_frames: int, into: np.ndarray, start: int) -> None:
    """Read a window of compressed frames, and only the chunks that overlap it.

    Args:
        file: a file open for reading.
        offset: position in the file at which the compressed frames start.
        size: their size in bytes.
        num_frames: number of frames.
        into: (n, ...) uint8, C-contiguous; filled with the frames [start, start + n).
        start: first frame of the window; ``start + n <= num_frames``.

    Raises:
        ValueError: if the chunks are damaged.
        EOFError: if the file ends before the last chunk.
    """
    sizes, checksums = _read_table(file, offset, size, num_frames)
    table_bytes = 8 * len(sizes)
    first, last = start // CHUNK, (start + len(into) - 1) // CHUNK
    data = _read(file, offset + table_bytes + int(sizes[:first].sum()), int(sizes[first : last + 1].sum())).data
    position = 0
    for number in range(first, last + 1):
        chunk = data[position : position + int(sizes[number])]
        position += len(chunk)
        if zlib.crc32(chunk) != checksums[number]:
            raise ValueError(f"the chunk that starts at frame {number * CHUNK} does not match its checksum")
        frames = _unpack_chunk(chunk, min(CHUNK, num_frames - number * CHUNK), into.shape[1:])
        low, high = max(start, number * CHUNK), min(start + len(into), number * CHUNK + len(frames))
        into[low - start : high - start] = frames[low - number * CHUNK : high - number * CHUNK]


def stream(file: BinaryIO, offset: int, size: int, num_frames: int, frame_bytes: int) -> Iterator[bytes]:
    """Yield the decompressed bytes of compressed frames in small pieces, so that memory does not grow with the frames.

    Args:
        file: a file open for reading.
        offset: position in the file at which the compressed frames start.
        size: their size in bytes.
        num_frames: number of frames.
        frame_bytes: bytes of each.

    Raises:
        ValueError: if the chunks are damaged.
        EOFError: if the file ends before the last chunk.
    """
    sizes, checksums = _read_table(file, offset, size, num_frames)
    position = offset + 8 * len(sizes)
    for number, count in enumerate(sizes.tolist()):
        chunk = _read(file, position, count).data
        position += count
        if zlib.crc32(chunk) != checksums[number]:
            raise DamagedChunkError(f"the chunk that starts at frame {number * CHUNK} does not match its checksum")
        left = min(CHUNK, num_frames - number * CHUNK) * frame_bytes
        try:
            with zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(chunk) as reader:
                while left and (piece := reader.read(min(left, PIECE))):
                    left -= len(piece)
                    yield piece
                if left or reader.read(1):
                    raise ValueError(f"the chunk that starts at frame {number * CHUNK} does not hold its frames")
        except (zstandard.ZstdError, MemoryError) as error:
            raise ValueError(f"a chunk cannot be decompressed: {error}") from error


def _read_table(file: BinaryIO, offset: int, size: int, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sizes in bytes and the checksums of the chunks."""
    num_chunks = -(-num_frames // CHUNK)
    if 8 * num_chunks > size:
        raise ValueError("the packed frames have fewer bytes than their table")
    table = _read(file, offset, 8 * num_chunks).view("<u4").reshape(num_chunks, 2)
    sizes = table[:, 0].astype(np.int64)
    if int(sizes.sum()) + 8 * num_chunks != size:
        raise ValueError("the chunk sizes of the packed frames do not add up to their total size")
    return sizes, table[:, 1]


def _unpack_chunk(chunk: memoryview, num_frames: int, shape: tuple[int, ...]) -> np.ndarray:
    size = num_frames * math.prod(shape)
    try:
        if zstandard.frame_content_size(chunk) not in (size, -1):  # the header's size would be allocated, whatever it says
            raise ValueError(f"a chunk does not hold {size:,} bytes")
        data = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompress(chunk, max_output_size=size)
    except (zstandard.ZstdError, MemoryError) as error:
        raise ValueError(f"a chunk cannot be decompressed: {error}") from error
    return np.frombuffer(data, dtype=np.uint8).reshape(num_frames, *shape)


def _read(file: BinaryIO, offset: int, size: int) -> np.ndarray:
    data = np.empty(size, np.uint8)
    file.seek(offset)
    fill(file, data)
    return data


def fill(file: BinaryIO, array: np.ndarray) -> None:
    """Fill a C-contiguous array with the next bytes of a file.

    Raises:
        EOFError: if the file ends before the array is full.
    """
    view = array.reshape(-1).view(np.uint8).data
    while len(view):
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]
