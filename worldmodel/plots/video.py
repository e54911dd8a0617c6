"""Write frames as an mp4 video or a GIF with ffmpeg (extra ``video``)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.runtime import missing_extra

PALETTE = "split[a][b];[a]palettegen[p];[b][p]paletteuse"  # of a GIF: 256 colours chosen for the film


def write_video(path: str | Path, frames: Iterable[np.ndarray], *, fps: int = 35, enlarge: int = 4) -> int:
    """Write frames as an mp4 file (H.264), or as a GIF if the name ends so.

    Args:
        path: the file. An earlier file is replaced when the new one is complete.
        frames: (H, W, 3), (H, W, 1) or (H, W) uint8 each, all of the same size.
        fps: frames per second.
        enlarge: integer factor by which frames are enlarged.

    Returns:
        The number of frames.

    Raises:
        ImportError: if imageio-ffmpeg is not installed.
        ValueError: if there are no frames, or if a frame has a wrong dtype or shape or differs in
            size from the first.
    """
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise missing_extra("video") from error
    path = Path(path)
    is_gif = path.suffix.lower() == ".gif"
    temporary = path.with_name(f".{path.name}.tmp{'.gif' if is_gif else '.mp4'}")
    coding: dict[str, Any] = {"quality": 6}
    if is_gif:
        coding = {"codec": "gif", "pix_fmt_out": "pal8", "output_params": ["-vf", PALETTE]}
    writer, count, shape = None, 0, None
    try:
        for frame in frames:
            picture = _enlarged(np.asarray(frame), enlarge)
            if writer is None:
                shape = picture.shape
                size = (shape[1], shape[0])
                writer = imageio_ffmpeg.write_frames(str(temporary), size, fps=fps, macro_block_size=1, **coding)
                writer.send(None)
            if picture.shape != shape:
                raise ValueError(f"frames: expected equal shapes, got {shape} at index 0 and {picture.shape} at index {count}")
            writer.send(np.ascontiguousarray(picture))
            count += 1
        if writer is None:
            raise ValueError("frames: expected at least one frame, got none")
        writer.close()
        temporary.replace(path)
    finally:
        if writer is not None:
            writer.close()
        temporary.unlink(missing_ok=True)
    return count


def _enlarged(frame: np.ndarray, factor: int) -> np.ndarray:
    """Return a frame enlarged, as (H, W, 3) with even sides as the codec requires."""
    if frame.dtype != np.uint8 or not (frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] in (1, 3))):
        raise ValueError(f"frames: expected uint8 of shape (H, W, 3) or (H, W), got {frame.dtype} of shape {frame.shape}")
    if frame.ndim == 2 or frame.shape[-1] == 1:
        frame = np.repeat(frame.reshape(*frame.shape[:2], 1), 3, axis=2)
    picture = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), mode="edge")
