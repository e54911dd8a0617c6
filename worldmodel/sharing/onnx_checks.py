"""Comparison of exported networks with torch: one step, sequences, and the drift of long dreams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.models import WorldModel
from worldmodel.sharing.onnx_networks import StepNetwork, split_action

TOLERANCE = 1e-5  # of a single step, relative
DRIFT_STEPS = (1, 10, 100, 1000)
CHECKED, DREAMS, LENGTH = 64, 8, 5  # rows that are compared; dreams of the drift; steps of sequences
MARGIN, TRIES = 2e-5, 50  # distance of uniform numbers from where a sample jumps

Run = Callable[[Mapping[str, Tensor]], list[np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network with its file, names, and inputs whose batch is ``rows`` large.

    Args:
        name: of the file.
        module: the network.
        inputs: names of the inputs.
        outputs: names of the outputs.
        batch_axes: axis of the batch of each input.
        example: `CHECKED` rows of inputs.
    """

    name: str
    module: nn.Module
    inputs: list[str]
    outputs: list[str]
    batch_axes: list[int]
    example: list[Tensor]

    def rows(self, count: int) -> tuple[Tensor, ...]:
        """Return inputs of fewer rows."""
        return tuple(x.narrow(axis, 0, count) for x, axis in zip(self.example, self.batch_axes, strict=True))


def compare(network: Network, run: Run) -> float:
    """Return the largest relative difference from torch, for all rows and for one.

    Raises:
        RuntimeError: if it is above `TOLERANCE`.
    """
    worst = 0.0
    for count in (CHECKED, 1):
        inputs = settled(network, network.rows(count))
        found = run(dict(zip(network.inputs, inputs, strict=True)))
        worst = max(worst, difference(network.name, network.outputs, network.module(*inputs), found))
    return worst


def settled(network: Network, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Draw the uniform numbers of rows anew whose sample is about to jump to another component.

    There a rounding error, which is no difference between the networks, would change the sample.
    """
    if "uniform" not in network.inputs:
        return inputs
    generator, place = torch.Generator().manual_seed(2), network.inputs.index("uniform")
    for _ in range(TRIES):
        uniform = inputs[place]
        near = [(uniform + shift).clamp(0, 1 - MARGIN) for shift in (-MARGIN, 0.0, MARGIN)]
        low, here, high = (network.module(*inputs[:place], each, *inputs[place + 1 :]) for each in near)
        jumps = torch.zeros(len(uniform), dtype=torch.bool)
        for name, *values in zip(network.outputs, low, here, high, strict=True):
            if name not in ("next_h", "next_c"):
                moved = (values[0] != values[1]) | (values[2] != values[1])
                jumps |= moved.flatten(1).any(dim=1) if moved.ndim > 1 else moved
        if not bool(jumps.any()):
            break
        uniform = torch.where(jumps.unsqueeze(1), torch.rand(uniform.shape, generator=generator), uniform)
        inputs = (*inputs[:place], uniform, *inputs[place + 1 :])
    return inputs


def difference(network: str, names: Sequence[str], expected: Sequence[Tensor], found: Sequence[np.ndarray]) -> float:
    """Return the largest relative difference.

    Raises:
        RuntimeError: if it is above the tolerance.
    """
    worst = 0.0
    for name, tensor, actual in zip(names, expected, found, strict=True):
        reference = tensor.numpy()
        if reference.shape != actual.shape or reference.dtype != actual.dtype:
            raise RuntimeError(f"{network}: expected {name} as in torch, got {actual.dtype} {actual.shape}; report this")
        if reference.dtype.kind != "f":
            other = reference != actual
            near = np.abs(reference.astype(np.float64) - actual.astype(np.float64)).max(initial=0.0) <= 1
            error = 0.0 if near and other.mean() <= 1e-3 else 1.0
        else:
            unit = np.maximum(np.abs(np.where(np.isfinite(reference), reference, 0.0)).max(axis=0, initial=0.0), 1.0)
            same = reference == actual
            gap = np.abs(np.subtract(actual, reference, where=~same, out=np.zeros_like(reference)))
            error = float((gap / unit).max(initial=0.0))
        if not error <= TOLERANCE:
            raise RuntimeError(f"{network}: expected {name} within {TOLERANCE:g} of torch, got a difference of {error:g}")
        worst = max(worst, error)
    return worst


def compare_sequence(step: Network, run: Run) -> float:
    """Compare a sequence with the step in torch, repeated; see `compare`."""
    batch = CHECKED // LENGTH
    given = dict(zip(step.inputs, step.example, strict=True))
    fixed = {name: given.pop(name) for name in ("h", "c", "temperature")}
    given = {name: x[: batch * LENGTH].unflatten(0, (batch, LENGTH)).clone() for name, x in given.items()}
    fixed = {name: x[:batch] if name == "temperature" else x[:, :batch].contiguous() for name, x in fixed.items()}
    state, place = dict(fixed), step.inputs.index("uniform")
    collected: dict[str, list[Tensor]] = {name: [] for name in step.outputs}
    for t in range(LENGTH):
        now = {**state, **{name: x[:, t] for name, x in given.items()}}
        inputs = settled(step, tuple(now[name] for name in step.inputs))
        given["uniform"][:, t] = inputs[place]
        outputs = dict(zip(step.outputs, step.module(*inputs), strict=True))
        state |= {"h": outputs["next_h"], "c": outputs["next_c"]}
        for name, x in outputs.items():
            collected[name].append(x)
    expected = [parts[-1] if name in ("next_h", "next_c") else torch.stack(parts, dim=1) for name, parts in collected.items()]
    return difference("sequence", step.outputs, expected, run({**fixed, **given}))


def drift_of(world: WorldModel, step: Network, run: Run) -> dict[int, tuple[float, float]]:
    """Dream in torch and in onnxruntime with the same random numbers, and return how far they part, at most 1."""
    generator = torch.Generator().manual_seed(1)
    z = world.start_mean[torch.arange(DREAMS) % len(world.start_mean)]
    mine: dict[str, Tensor] = {"z": z, **world.mdnrnn.initial_state(DREAMS)._asdict(), "temperature": torch.ones(DREAMS)}
    theirs = dict(mine)
    path, gaps = [], []
    module = step.module
    assert isinstance(module, StepNetwork)
    for _ in range(DRIFT_STEPS[-1]):
        noise = {
            "uniform": torch.rand(DREAMS, module.num_uniforms, generator=generator),
            "normal": torch.randn(DREAMS, module.num_normals, generator=generator),
        }
        action = world.action_features.sample(DREAMS, generator=generator)
        shared = {**noise, **split_action(world.action_features, action)}
        now = {**mine, **shared}
        mine |= dict(zip("zhc", module(*(now[name] for name in step.inputs))[:3], strict=True))
        theirs |= dict(zip("zhc", map(torch.from_numpy, run({**theirs, **shared})[:3]), strict=True))
        path.append(mine["z"].abs().nan_to_num(posinf=0.0))  # dreams of a bad M may diverge
        gaps.append((theirs["z"] - mine["z"]).abs())
    unit = torch.stack(path).flatten(0, 1).amax(dim=0).clamp(min=1.0)
    relative = (torch.stack(gaps) / unit).nan_to_num(nan=1.0).clamp(max=1.0).amax(dim=2).cummax(dim=0).values  # (T, B)
    return {steps: (float(relative[steps - 1].median()), float(relative[steps - 1].max())) for steps in DRIFT_STEPS}
