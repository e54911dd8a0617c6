"""Video files as episodes of images (extra ``formats``), decoded a few frames at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.formats.config import Columns, ConversionConfig
from worldmodel.data.formats.conversion import convert_source
from worldmodel.data.formats.csv_files import CsvSource
from worldmodel.data.formats.files import identity_of, list_files
from worldmodel.data.formats.rows import Rows
from worldmodel.data.store import EpisodeStore
from worldmodel.runtime import InvalidFileError, RunConfig, file_errors, missing_extra

try:
    import av
except ImportError:  # `Video` raises
    av = None  # type: ignore[assignment,unused-ignore]

SUFFIXES = (".mp4", ".mkv", ".avi", ".mov", ".webm")

Videos = str | Path | Sequence[str | Path]


def from_video(
    videos: Videos | Mapping[str, Videos],
    out: str | Path,
    *,
    table: str | Path | Sequence[str | Path] | None = None,
    columns: Columns | None = None,
    config: ConversionConfig | None = None,
    run: RunConfig | None = None,
) -> EpisodeStore:
    """Convert videos, with a table of actions and other measurements if there is one, to a store.

    Args:
        videos: one file per episode, or a directory of them, in the order of their names; or these by the name of a camera.
            Several cameras become several images of one Dict observation.
        out: directory of the store.
        table: CSV files with a row per frame. A row belongs to the frame of the same number, counted over all videos; each
            video begins another episode. Columns that have no other use belong to the observation.
        columns: names of the columns of the table; those of the observation may name cameras.
        config: how rows become episodes; its ``resize`` makes images smaller as they are read.
        run: whether an earlier conversion is resumed or replaced, and how progress is shown.

    Returns:
        The store; `describe_conversion` tells what was found and assumed.

    Raises:
        ImportError: if PyAV is not installed.
        ValueError: if a video is damaged, is shorter or longer than its table, or differs in size from the others.
    """
    source = VideoSource.of(videos, table, columns or Columns())
    chosen = columns or Columns()
    if table is None or not chosen.observation:
        inner = source.table
        others = [] if inner is None else chosen.resolve([*source.images, *inner.header], source.described)[0].observation
        measured = [name for name in others if name not in source.images]
        chosen = Columns(**{**vars(chosen), "observation": (*source.images, *measured)})
    return convert_source(source, out=out, columns=chosen, config=config, run=run)


@dataclass(frozen=True)
class VideoSource:
    """Videos of one or several cameras, and a table with a row per frame.

    Args:
        cameras: videos of each camera, one per episode.
        table: the table, or None.
    """

    cameras: Mapping[str, Sequence[Video]]
    table: CsvSource | None
    format: str = "video"

    @classmethod
    def of(cls, videos: Any, table: Any, named: Columns) -> VideoSource:
        """Open all files and compare their lengths.

        Raises:
            ValueError: if they do not fit each other.
        """
        by_name = dict(videos) if isinstance(videos, Mapping) else {"image": videos}
        cameras = {name: [Video(path) for path in list_files(given, SUFFIXES)] for name, given in by_name.items()}
        first = next(iter(cameras.values()))
        for name, listed in cameras.items():
            for video in listed:
                if video.shape != listed[0].shape:
                    raise ValueError(f"{video.path}: expected frames of shape {listed[0].shape}, got {video.shape}")
            if [one.length for one in listed] != [one.length for one in first]:
                raise ValueError(
                    f"{listed[0].path}: expected as many frames as in the videos of another camera, "
                    f"{[one.length for one in first]}, got {[one.length for one in listed]} for {name!r}"
                )
        return cls(cameras, None if table is None else CsvSource.of(table, named))

    @property
    def described(self) -> str:
        """Name of the table or of the first video."""
        return str(self._videos[0].path) if self.table is None else self.table.described

    @property
    def images(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of the frames of each camera."""
        return {name: videos[0].shape for name, videos in self.cameras.items()}

    @property
    def _videos(self) -> Sequence[Video]:
        return next(iter(self.cameras.values()))

    def names(self) -> Sequence[str]:
        """Return the names of the cameras and of the columns of the table."""
        return [*self.cameras, *(() if self.table is None else self.table.header)]

    def identity(self) -> Any:
        """Return name, size and checksum of each file."""
        found = {name: identity_of([video.path for video in videos]) for name, videos in self.cameras.items()}
        return found if self.table is None else {**found, "": self.table.identity()}

    def total(self) -> tuple[int, str]:
        """Return the number of frames."""
        return sum(video.length for video in self._videos), "frame"

    def pieces(self, names: Sequence[str]) -> Iterator[tuple[Rows, int]]:
        """Yield the rows of the table, divided between the videos; without a table only their numbers."""
        bounds = np.cumsum([0, *(video.length for video in self._videos)])
        if self.table is None:
            for video, first, stop in zip(self._videos, bounds[:-1], bounds[1:], strict=True):
                yield Rows({}, str(video.path), unit="frame", index=int(first), begins=True, count=int(stop - first)), int(stop)
            return
        done = 0
        for rows, _ in self.table.pieces(names):
            cuts = [0, *(int(b) - done for b in bounds[1:-1] if done < b < done + len(rows)), len(rows)]
            for start, stop in itertools.pairwise(cuts):
                begins = done + start in bounds
                part = rows.part(start, stop)
                yield Rows(**{**vars(part), "index": done + start, "begins": begins}), min(done + stop, int(bounds[-1]))
            done += len(rows)
        if done != bounds[-1]:
            found = f"{bounds[-1]} in {self._videos[0].path}" + (" and the others" if len(self._videos) > 1 else "")
            raise ValueError(f"{self.described}: expected one video frame for each of its {done} rows, got {found}")

    def frames(self, name: str, index: int, count: int) -> np.ndarray:
        """Return frames by their number over all videos."""
        first = 0
        for video in self.cameras[name]:
            if index < first + video.length:
                return video.read(index - first, count)
            first += video.length
        raise IndexError(index)


class Video:
    """Frames of one file by their number; reading on where the last call ended does not seek.

    Args:
        path: the file.

    Attributes:
        length: number of frames, counted without decoding them.
        shape: (height, width, 3).

    Raises:
        ImportError: if PyAV is not installed.
        ValueError: if the file is damaged or holds no video.
    """

    def __init__(self, path: str | Path):
        if av is None:
            raise missing_extra("formats")
        self.path = Path(path)
        with self._opened() as container, file_errors(self.path, "a complete video"):
            stream = container.streams.video[0]
            self.shape = (stream.height, stream.width, 3)
            try:
                times = sorted(packet.pts for packet in container.demux(stream) if packet.size and packet.pts is not None)
            except av.FFmpegError as error:
                raise self._damaged(error) from error
        self._times = np.array(times)  # in units of the stream: presentation order
        self.length = len(times)
        self._next = 0
        self._frames: Iterator[Any] | None = None

    def read(self, first: int, count: int) -> np.ndarray:
        """Return ``count`` frames from frame ``first``, (count, height, width, 3) uint8.

        Raises:
            ValueError: if the video is shorter or damaged.
        """
        if first + count > self.length:
            raise ValueError(f"{self.path}: expected at least {first + count} frames, got {self.length}")
        frames = np.empty((count, *self.shape), np.uint8)
        try:
            if self._frames is None or first != self._next:
                self._frames = self._from(first)
            for i in range(count):
                frame = next(self._frames, None)
                if frame is None:
                    raise InvalidFileError(f"{self.path}: expected {self.length} frames, got {first + i}; it may be cut short")
                if frame.is_corrupt:
                    raise InvalidFileError(f"{self.path}: expected a complete video, got a damaged frame {first + i}")
                with file_errors(self.path, f"frames of shape {self.shape}"):
                    frames[i] = frame.to_ndarray(format="rgb24")
        except av.FFmpegError as error:
            raise self._damaged(error) from error
        self._next = first + count
        return frames

    def _from(self, first: int) -> Iterator[Any]:
        """Yield decoded frames from frame ``first``."""
        with self._opened() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            wanted = int(self._times[first])
            if first:
                container.seek(wanted, stream=stream)  # to the key frame before
            for frame in container.decode(stream):
                if frame.pts is None or frame.pts >= wanted:
                    yield frame

    def _opened(self) -> Any:
        try:
            container = av.open(str(self.path))
        except (av.FFmpegError, OSError) as error:
            raise self._damaged(error) from error
        if not container.streams.video:
            container.close()
            raise InvalidFileError(f"{self.path}: expected a video, got a file without one")
        return container

    def _damaged(self, error: BaseException) -> InvalidFileError:
        return InvalidFileError(f"{self.path}: expected a complete video, got a damaged one: {' '.join(str(error).split())}")
