"""Export a world model and a controller to ONNX files (extra onnx), which need neither torch nor this library.

The files are ``encoder.onnx``, ``step.onnx``, ``sequence.onnx``, ``decoder.onnx`` and, with a controller, ``controller.onnx``.
``export.json`` lists their inputs and outputs. Batch size and length of sequences are free. Every file has been compared
with torch by onnxruntime before anything is written.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.agents import Controller, check_agent
from worldmodel.models import WorldModel, refuse_ensemble
from worldmodel.runtime import files, require_extras
from worldmodel.sharing.onnx_checks import CHECKED, Network, Run, compare, compare_sequence, drift_of
from worldmodel.sharing.onnx_networks import (
    ControllerNetwork,
    DecoderNetwork,
    EncoderNetwork,
    StepNetwork,
    leaf_names,
    split,
    split_action,
)
from worldmodel.spaces import FlatSpace, space_to_json
from worldmodel.version import __version__

EXPORT_FORMAT, EXPORT_VERSION = "worldmodel.onnx", 1
EXPORT_FILE = "export.json"
STARTS = 100  # start states in the JSON
OUTPUTS = (EXPORT_FILE, "*.onnx")
OPSET = 18
LEAST_HALVED = 1024  # numbers; smaller constants are not worth a node
SEVERAL = 3  # batch size of examples: more than 1, so that the exporter keeps it free


@dataclass(frozen=True, kw_only=True)
class OnnxExport:
    """What `export_onnx` wrote.

    Args:
        directory: of the files.
        errors: largest difference from torch of each network, relative; see `export_onnx`.
        drift: by number of steps, the median over dreams of the largest relative difference of z up to that step, and its
            maximum; a dream whose sample falls on the other side of a rounding error goes another way from there.
        sizes: size of each file in bytes.
    """

    directory: Path
    errors: dict[str, float]
    drift: dict[int, tuple[float, float]]
    sizes: dict[str, int]


def export_onnx(
    world: WorldModel,
    directory: str | Path,
    *,
    controller: Controller | None = None,
    decoder: bool = True,
    overwrite: bool = False,
) -> OnnxExport:
    """Write a world model, and a controller, as ONNX files.

    A step takes random numbers and the temperature as inputs and returns samples, so every kind of head is used alike. Each
    network is compared with torch for `CHECKED` rows: ``|onnx - torch| <= 1e-5 max(|torch|, u)`` for each number, where u is
    1 or the largest number of its column. Numbers that are rounded to integers may differ by one step in 1 of 1,000.

    Args:
        world: the world model.
        directory: absent, empty or an earlier export.
        controller: a controller of this world.
        decoder: export V's decoder.
        overwrite: replace an earlier export.

    Raises:
        ImportError: if the extra onnx is not installed.
        FileExistsError: if ``directory`` holds something that may not be replaced.
        ValueError: if V has no decoder, the controller is of another world, or the latent head samples in a way of its own.
        RuntimeError: if a network differs from torch; nothing is written then.
    """
    require_extras("onnx")
    path = Path(directory)
    with files.fresh_directory(path, marker=EXPORT_FILE, format=EXPORT_FORMAT, overwrite=overwrite, replaces=OUTPUTS) as fresh:
        return replace(_export_to(fresh, world, controller, decoder=decoder), directory=path)


def _export_to(path: Path, world: WorldModel, controller: Controller | None, *, decoder: bool) -> OnnxExport:
    """Write the files of an export into an empty directory."""
    refuse_ensemble(world.mdnrnn, "an export")
    if decoder and not world.vision.has_decoder:
        raise ValueError(
            f"decoder: expected a V with a decoder, got {type(world.vision).__name__} without; leave it out (decoder=False, "
            "--no-decoder)"
        )
    if controller is not None and not isinstance(controller, Controller):
        raise ValueError(f"controller: expected a Controller, got {type(controller).__name__}, which can not be exported")
    if controller is not None:
        check_agent(controller, world)
        controller = copy.deepcopy(controller).cpu()
    world = world if world.device.type == "cpu" else copy.deepcopy(world).cpu()
    with torch.no_grad(), _quiet():
        networks = _networks(world, controller, decoder=decoder)
        models = {network.name: _export(network) for network in networks}
        step = next(network for network in networks if network.name == "step")
        models["sequence"] = _sequence(step, models["step"])
        for model in models.values():
            halve(model)
        errors = {network.name: compare(network, _runner(models[network.name])) for network in networks}
        errors["sequence"] = compare_sequence(step, _runner(models["sequence"]))
        drift = drift_of(world, step, _runner(models["step"]))
    content = {
        **_content(world, controller, networks, models),
        "relative_errors": errors,
        "drift": {str(steps): {"median": median, "max": most} for steps, (median, most) in drift.items()},
    }
    data = {f"{name}.onnx": model.SerializeToString() for name, model in models.items()}
    for name, each in data.items():
        files.write_bytes(path / name, each)
    files.write_json(path / EXPORT_FILE, content, format=EXPORT_FORMAT, version=EXPORT_VERSION)
    return OnnxExport(directory=path, errors=errors, drift=drift, sizes={name: len(each) for name, each in data.items()})


def _networks(world: WorldModel, controller: Controller | None, *, decoder: bool) -> list[Network]:
    """Make the networks with random inputs."""
    generator = torch.Generator().manual_seed(0)
    model, space = world.mdnrnn, world.observation_space
    spread = 0.1 * model.change_scale * torch.randn(CHECKED, model.latent_size, generator=generator)
    z = world.start_mean[torch.arange(CHECKED) % len(world.start_mean)] + spread
    shape = model.config.num_layers, CHECKED, model.config.hidden_size
    h, c = (torch.randn(shape, generator=generator) for _ in range(2))
    state = {"z": z, "h": h.tanh(), "c": c}
    observation = world.decode(z) if world.vision.has_decoder else FlatSpace(space).sample(CHECKED, generator=generator)
    seen = dict(zip(leaf_names("observation", space), split(space, observation), strict=True))
    normal = torch.randn(CHECKED, model.latent_size, generator=generator)
    encoder = EncoderNetwork(world.vision)
    networks = [
        _network("encoder", encoder, {"normal": normal, **seen}, ["z", "mean", "log_variance"]),
        _step(world, state, generator),
    ]
    if decoder:
        networks.append(_network("decoder", DecoderNetwork(world.vision), {"z": z}, list(seen)))
    if controller is not None:
        inputs = {name: state[name] for name in controller.features}
        networks.append(_network("controller", ControllerNetwork(controller), inputs, leaf_names("action", world.action_space)))
    return networks


def _step(world: WorldModel, state: dict[str, Tensor], generator: torch.Generator) -> Network:
    """Make the network of a step; some rows are at temperature 0."""
    network = StepNetwork(world)
    temperature = 0.5 + torch.rand(CHECKED, generator=generator)
    temperature[CHECKED // 2 : CHECKED // 2 + 8] = 0.0
    action = world.action_features.sample(CHECKED, generator=generator)
    inputs = {
        **state,
        "temperature": temperature,
        "uniform": torch.rand(CHECKED, network.num_uniforms, generator=generator),
        "normal": torch.randn(CHECKED, network.num_normals, generator=generator),
        **split_action(world.action_features, action),
    }
    return _network("step", network, inputs, network.output_names)


def _network(name: str, module: nn.Module, inputs: dict[str, Tensor], outputs: list[str]) -> Network:
    axes = [1 if each in ("h", "c") else 0 for each in inputs]
    return Network(
        name=name, module=module.eval(), inputs=list(inputs), outputs=outputs, batch_axes=axes, example=list(inputs.values())
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of its own parts, such as packages that it could use but that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _export(network: Network) -> Any:
    """Return the network as an ONNX model."""
    free = [{axis: torch.export.Dim.DYNAMIC} for axis in network.batch_axes]
    example = network.rows(SEVERAL)
    named = sum("/" not in name and name not in ("observation", "action") for name in network.inputs)
    leaves = tuple(free[named:])  # the last argument of `forward`, of which there may be none
    shapes = (*free[:named], *([leaves] if leaves and isinstance(network.module, (EncoderNetwork, StepNetwork)) else []))
    network.module(*example)  # fills caches of constants, which must not hold the exporter's fake tensors
    program = torch.export.export(network.module, example, dynamic_shapes=shapes, strict=False)
    program._example_inputs = None  # else the exporter adds checks of the inputs, over some of which it stumbles
    exported = torch.onnx.export(
        program,
        (),
        input_names=network.inputs,
        output_names=network.outputs,
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert exported is not None
    model = exported.model_proto
    graph = model.graph
    for entry in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del entry.metadata_props[:]  # traces of the exporter's, which name files of this machine
    del model.metadata_props[:], graph.metadata_props[:]
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = "batch"
    return model


def _runner(model: Any) -> Run:
    """Open a model in onnxruntime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {name: x.numpy() for name, x in inputs.items()})


def _sequence(step: Network, model: Any) -> Any:
    """Return the model of a sequence: the step, scanned over axis 1 of every input but h, c and the temperature."""
    import onnx
    from onnx import helper

    graph = onnx.compose.add_prefix(model, "step/").graph
    inputs = {value.name.removeprefix("step/"): value for value in graph.input}
    outputs = {value.name.removeprefix("step/"): value for value in graph.output}
    scanned = [name for name in step.inputs if name not in ("h", "c", "temperature")]
    results = [name for name in step.outputs if name not in ("next_h", "next_c")]
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == "step/temperature":
                node.input[position] = "temperature"  # of the outer graph
    body = helper.make_graph(
        list(graph.node),
        "step",
        [inputs[name] for name in ("h", "c", *scanned)],
        [outputs[name] for name in ("next_h", "next_c", *results)],
    )
    scan = helper.make_node(
        "Scan",
        ["h", "c", *scanned],
        ["next_h", "next_c", *results],
        body=body,
        num_scan_inputs=len(scanned),
        scan_input_axes=[1] * len(scanned),
        scan_output_axes=[1] * len(results),
    )

    def value(name: str, source: Any, *, over_time: bool) -> Any:
        shape = [one.dim_param or one.dim_value for one in source.type.tensor_type.shape.dim]
        if over_time:
            shape.insert(1, "time")
        return helper.make_tensor_value_info(name, source.type.tensor_type.elem_type, shape)

    whole = helper.make_graph(
        [scan],
        "sequence",
        [value(name, inputs[name], over_time=name in scanned) for name in step.inputs],
        [value(name, outputs[name], over_time=name in results) for name in step.outputs],
        initializer=list(graph.initializer),  # the body sees them, too
    )
    made = helper.make_model(whole, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    onnx.checker.check_model(made)
    return made


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
    if array.size < LEAST_HALVED:
        return None
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else None


def _content(
    world: WorldModel, controller: Controller | None, networks: Sequence[Network], models: dict[str, Any]
) -> dict[str, Any]:
    """Return the JSON of an export: files, sizes, spaces, start states and versions."""
    import onnx
    import onnxruntime

    step = next(network.module for network in networks if isinstance(network.module, StepNetwork))
    data = {name: model.SerializeToString() for name, model in models.items()}
    described = {
        name: {
            "file": f"{name}.onnx",
            "sha256": hashlib.sha256(data[name]).hexdigest(),
            "inputs": [_describe(value) for value in model.graph.input],
            "outputs": [_describe(value) for value in model.graph.output],
        }
        for name, model in models.items()
    }
    starts = world.start_mean[:STARTS].double(), (0.5 * world.start_log_variance[:STARTS].double()).exp()
    return {
        "versions": {"worldmodel": __version__, **{each.__name__: each.__version__ for each in (torch, onnx, onnxruntime)}},
        "world": world.fingerprint,
        "environments": sorted({str(one["env"]) for one in world.provenance.get("recipes", []) if one.get("env")}),
        "observation_space": space_to_json(world.observation_space),
        "action_space": space_to_json(world.action_space),
        "layout": world.layout.to_json(),
        "latent_size": world.mdnrnn.latent_size,
        "num_layers": world.mdnrnn.config.num_layers,
        "hidden_size": world.mdnrnn.config.hidden_size,
        "num_uniforms": step.num_uniforms,
        "num_normals": step.num_normals,
        "controller_features": None if controller is None else controller.features,
        "files": described,
        "starts": dict(zip(("mean", "standard_deviation"), (part.tolist() for part in starts), strict=True)),
    }


def _describe(value: Any) -> dict[str, Any]:
    """Return name, dtype and shape of an input or output; free sizes are names."""
    from onnx import helper

    kind = value.type.tensor_type
    shape = [one.dim_param or one.dim_value for one in kind.shape.dim]
    return {"name": value.name, "dtype": helper.tensor_dtype_to_np_dtype(kind.elem_type).name, "shape": shape}
