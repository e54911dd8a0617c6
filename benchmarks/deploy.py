"""Latency of a control step of an exported world and controller in onnxruntime: encoder, controller and M's state."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from harness import write_result


def zeros(entries: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return inputs of zeros for a batch of 1."""
    return {one["name"]: np.zeros([1 if size == "batch" else size for size in one["shape"]], one["dtype"]) for one in entries}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--export", required=True, help="directory that worldmodel export wrote, with a controller")
    parser.add_argument("--steps", type=int, default=20_000, help="timed steps; a tenth of them is run before")
    parser.add_argument("--out", required=True, help="directory for result.json")
    args = parser.parse_args()
    folder = Path(args.export)
    content = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    names = ("encoder", "controller", "step")
    encoder, controller, step = (onnxruntime.InferenceSession(folder / f"{name}.onnx", options) for name in names)
    seen, sees, moves = (zeros(content["files"][name]["inputs"]) for name in names)
    actions = [one["name"] for one in content["files"]["controller"]["outputs"]]
    times, busy = [], []
    for index in range(args.steps + args.steps // 10):
        began, worked = time.perf_counter(), time.thread_time()
        (moves["z"],) = encoder.run(["z"], seen)
        moves |= zip(actions, controller.run(None, {name: moves[name] for name in sees}), strict=True)
        moves["h"], moves["c"] = step.run(["next_h", "next_c"], moves)
        if index >= args.steps // 10:
            times.append(1e6 * (time.perf_counter() - began))
            busy.append(1e6 * (time.thread_time() - worked))
    (median, slow), (median_busy, slow_busy) = (np.percentile(each, [50, 99]) for each in (times, busy))
    print(f"{args.steps} steps: {median:.0f} us median, {slow:.0f} us at the 99th percentile")
    print(f"of the processor: {median_busy:.0f} us median, {slow_busy:.0f} us at the 99th percentile")
    write_result(
        args.out,
        {
            "latent_size": content["latent_size"],
            "hidden_size": content["hidden_size"],
            "steps": args.steps,
            "median_us": median,
            "percentile_99_us": slow,
            "processor_median_us": median_busy,
            "processor_percentile_99_us": slow_busy,
            "drift": content["drift"],
            "relative_errors": content["relative_errors"],
        },
    )


if __name__ == "__main__":
    main()
