"""LeRobot data sets, version 3, as a store (extra ``formats``): parquet and mp4, read without the lerobot package.

Layout (https://huggingface.co/docs/lerobot/lerobot-dataset-v3): ``meta/info.json`` has the features and the paths,
``meta/episodes/*/*.parquet`` the length of each episode and the place of its frames in the videos, ``data/*/*.parquet`` a row
per frame. A video file holds the frames of several episodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.formats.config import Columns, ConversionConfig
from worldmodel.data.formats.conversion import convert_source
from worldmodel.data.formats.files import identity_of
from worldmodel.data.formats.parquet import ParquetSource, read_columns
from worldmodel.data.formats.rows import Rows
from worldmodel.data.formats.video import Video
from worldmodel.data.store import EpisodeStore
from worldmodel.runtime import InvalidFileError, RunConfig, file_errors, parse_json, read_bytes

INFO = Path("meta") / "info.json"
MAX_INFO_BYTES = 2**24
NUMBERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # columns that every data set has


def from_lerobot(
    source: str | Path,
    out: str | Path,
    *,
    columns: Columns | None = None,
    config: ConversionConfig | None = None,
    run: RunConfig | None = None,
) -> EpisodeStore:
    """Convert a LeRobot data set of version 3 in a local directory to a store.

    Features that begin with "observation." are the observation, cameras among them are its images, and "action" is the action;
    "next.reward" is the reward if there is one. An end of an episode counts as a termination only if ``columns`` names a
    feature for it. The last action of each episode is dropped, as the observation after it was not recorded.

    Args:
        source: the directory that holds ``meta/info.json``.
        out: directory of the store.
        columns: names of features.
        config: how rows become episodes; its ``resize`` makes images smaller as they are read.
        run: whether an earlier conversion is resumed or replaced, and how progress is shown.

    Returns:
        The store; `describe_conversion` tells what was found and assumed.

    Raises:
        ImportError: if pyarrow or PyAV is not installed.
        FileNotFoundError: if a file of the data set is missing.
        ValueError: if the version is another, a file is damaged, or a video is shorter than the table says.
    """
    chosen = columns or Columns()
    defaults: dict[str, Any] = {"episode": "episode_index", "time": "timestamp", "termination": ""}
    chosen = replace(chosen, **{name: default for name, default in defaults.items() if getattr(chosen, name) is None})
    return convert_source(LeRobotSource.of(source), out=out, columns=chosen, config=config, run=run)


@dataclass(frozen=True)
class LeRobotSource:
    """A LeRobot data set.

    Args:
        path: its directory.
        table: its rows.
        features: what `info.json` says about each feature.
        cameras: videos of each camera, by name: first row, file and first frame of each episode.
    """

    path: Path
    table: ParquetSource
    features: Mapping[str, Any]
    cameras: Mapping[str, Sequence[tuple[int, Video, int]]]
    format: str = "lerobot"

    @classmethod
    def of(cls, source: str | Path) -> LeRobotSource:
        """Read the metadata, and count the frames of all videos.

        Raises:
            FileNotFoundError: if there is no data set, or it lacks a file.
            ValueError: if the version is not 3, or the videos are shorter than the episodes.
        """
        path = Path(source)
        if not (path / INFO).is_file():
            raise FileNotFoundError(f"{path}: expected a LeRobot data set with {INFO}, got none")
        try:
            info = parse_json(read_bytes(path / INFO, most=MAX_INFO_BYTES), path / INFO)
            version, features = str(info["codebase_version"]), dict(info["features"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidFileError(f"{path / INFO}: expected a LeRobot description, got a damaged one") from error
        if not version.startswith("v3"):
            raise ValueError(
                f"{path / INFO}: expected LeRobot version 3, got {version}; convert it with the lerobot package "
                "(convert_dataset_v21_to_v30)"
            )
        with file_errors(path / INFO, "a dtype of each feature, a rate and the path of videos"):
            images = [name for name, feature in features.items() if feature["dtype"] == "image"]
            videos = [name for name, feature in features.items() if feature["dtype"] == "video"]
            if videos and not (float(info["fps"]) > 0 and "{" in info["video_path"]):
                raise ValueError("fps, video_path")
        if images:
            raise ValueError(f"{path / INFO}: expected cameras as videos, got images in the table: {images}; leave them out")
        table = ParquetSource.of(path / "data")
        return cls(path, table, features, {name: _videos(path, info, name) for name in videos})

    @property
    def described(self) -> str:
        """Name of the directory."""
        return str(self.path)

    @property
    def images(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of the frames of each camera."""
        return {name: episodes[0][1].shape for name, episodes in self.cameras.items() if episodes}

    def names(self) -> Sequence[str]:
        """Return the features that are numbers or videos."""
        known = [name for name in self.features if name in self.table.columns or name in self.cameras]
        return [*known, *(name for name in NUMBERS if name in self.table.columns and name not in known)]

    def identity(self) -> Any:
        """Return the identity of the table and of all videos."""
        paths = {video.path: None for episodes in self.cameras.values() for _, video, _ in episodes}
        return [self.table.identity(), identity_of(list(paths))]

    def total(self) -> tuple[int, str]:
        """Return the number of frames."""
        return self.table.total()[0], "frame"

    def pieces(self, names: Sequence[str]) -> Iterator[tuple[Rows, int]]:
        """Yield the rows; files do not begin episodes."""
        for rows, done in self.table.pieces(names):
            yield replace(rows, begins=rows.index == 0), done

    def frames(self, name: str, index: int, count: int) -> np.ndarray:
        """Return frames of a camera for rows of one episode."""
        episodes = self.cameras[name]
        starts = [first for first, _, _ in episodes]
        first, video, frame = episodes[int(np.searchsorted(starts, index, side="right")) - 1]
        return video.read(frame + index - first, count)


def _videos(path: Path, info: Mapping[str, Any], name: str) -> list[tuple[int, Video, int]]:
    """Return first row, video and first frame of each episode of a camera.

    Raises:
        ValueError: if a video is shorter than the episodes in it.
    """
    prefix = f"videos/{name}"
    keys = ["dataset_from_index", "length", *(f"{prefix}/{key}" for key in ("chunk_index", "file_index", "from_timestamp"))]
    opened: dict[Path, Video] = {}
    found = []
    for part in sorted((path / "meta" / "episodes").rglob("*.parquet")):
        rows = read_columns(part, keys)
        for first, length, chunk, file, start in zip(*(rows[key] for key in keys), strict=True):
            with file_errors(path / INFO, "the path of videos"):
                place = path / str(info["video_path"]).format(video_key=name, chunk_index=int(chunk), file_index=int(file))
            if place not in opened:
                if not place.is_file():
                    raise FileNotFoundError(f"{place}: expected a video of {name!r}, got nothing")
                opened[place] = Video(place)
            frame = round(float(start) * float(info["fps"]))
            if frame + int(length) > opened[place].length:
                raise ValueError(
                    f"{place}: expected at least {frame + int(length)} frames, as the episode of row {int(first)} has "
                    f"{int(length)} from {float(start):g} s, got {opened[place].length}"
                )
            found.append((int(first), opened[place], frame))
    if not found:
        raise FileNotFoundError(f"{path / 'meta' / 'episodes'}: expected the episodes of {name!r}, got none")
    return sorted(found, key=lambda one: one[0])
