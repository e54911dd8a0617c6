"""Store weights of ONNX models in float16 where that loses nothing, as in worlds of `save_compact`."""

from __future__ import annotations

from typing import Any

import numpy as np

LEAST = 1024  # numbers; smaller constants are not worth a node


def halve(model: Any) -> None:
    """Replace float32 weights that float16 holds exactly by float16 and a cast, which onnxruntime computes once.

    Args:
        model: an ONNX model, changed in place. All nodes, also those in loops, see the same numbers as before.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph, casts, kept = model.graph, [], []
    for tensor in graph.initializer:
        half = _exact_half(numpy_helper.to_array(tensor)) if tensor.data_type == TensorProto.FLOAT else None
        if half is None:
            kept.append(tensor)
            continue
        name = f"{tensor.name}/float16"
        kept.append(numpy_helper.from_array(half, name))
        casts.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def _exact_half(array: np.ndarray) -> np.ndarray | None:
    """Return the same numbers in float16; None if there are few or some differ."""
    if array.size < LEAST:
        return None
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else None
