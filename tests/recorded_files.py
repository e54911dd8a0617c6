"""Files of recorded data in several formats, for the tests of their readers."""

import json

import numpy as np


def write_csv(path, *, episodes=4, steps=20, extra=""):
    """A table of a simple process; returns its lines."""
    lines = ["run,time,position,speed,gear,action,reward,done"]
    for run in range(episodes):
        for t in range(steps):
            numbers = [f"{np.sin(t + run):.6f}", f"{np.cos(t):.6f}", t % 3, f"{t / 100 - 0.2:.3f}"]
            cells = [run, f"{t / 10:.1f}", *numbers, -t, int(t == steps - 1)]
            lines.append(",".join(map(str, cells)))
    path.write_text("\n".join(lines) + "\n" + extra, encoding="utf-8")
    return lines


def bars(frames, height=32, width=48, offset=0):
    """Frames with a bar whose width is the number of the frame."""
    images = np.zeros((frames, height, width, 3), np.uint8)
    for i in range(frames):
        images[i, :, : i + 1 + offset] = 200
    return images


def write_video(path, images, *, fps=10):
    """Write frames (N, H, W, 3) as mp4 with a key frame every 7 frames."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "5", "g": "7"}
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_lerobot(path, lengths=(8, 6, 11), *, version="v3.0"):
    """A LeRobot data set with one camera, whose first two episodes share a table and a video; returns state, action, frames."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    camera, total, rng = "observation.images.front", sum(lengths), np.random.default_rng(0)
    state = rng.normal(size=(total, 3)).astype(np.float32)
    action = rng.normal(size=(total, 2)).astype(np.float32)
    episode = np.repeat(np.arange(3), lengths)
    frame = np.concatenate([np.arange(n) for n in lengths])
    features = {
        "observation.state": {"dtype": "float32", "shape": [3]},
        camera: {"dtype": "video", "shape": [32, 48, 3]},
        "action": {"dtype": "float32", "shape": [2]},
        "next.reward": {"dtype": "float32", "shape": [1]},
        **{name: {"dtype": "int64", "shape": [1]} for name in ("episode_index", "frame_index", "index", "task_index")},
        "timestamp": {"dtype": "float32", "shape": [1]},
    }
    info = {"codebase_version": version, "fps": 10, "features": features}
    info |= {"video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"}
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (path / folder).mkdir(parents=True)
    (path / "meta" / "info.json").write_text(json.dumps(info), encoding="utf-8")
    for number, rows in enumerate((episode < 2, episode == 2)):
        columns = {
            "observation.state": pa.array(list(state[rows]), pa.list_(pa.float32())),
            "action": pa.array(list(action[rows]), pa.list_(pa.float32())),
            "next.reward": frame[rows].astype(np.float32),
            "timestamp": (frame[rows] / 10).astype(np.float32),
            "episode_index": episode[rows],
            "frame_index": frame[rows],
            "index": np.arange(total)[rows],
            "task_index": np.zeros(rows.sum(), int),
        }
        pq.write_table(pa.table(columns), path / "data" / "chunk-000" / f"file-{number:03d}.parquet")
    images = bars(total)
    first = lengths[0] + lengths[1]
    for number, part in enumerate((images[:first], images[first:])):
        write_video(path / "videos" / camera / "chunk-000" / f"file-{number:03d}.mp4", part)
    prefix = f"videos/{camera}"
    episodes = {
        "episode_index": [0, 1, 2],
        "length": list(lengths),
        "dataset_from_index": [0, lengths[0], first],
        f"{prefix}/chunk_index": [0, 0, 0],
        f"{prefix}/file_index": [0, 0, 1],
        f"{prefix}/from_timestamp": [0.0, lengths[0] / 10, 0.0],
    }
    pq.write_table(pa.table(episodes), path / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    return state, action, images
