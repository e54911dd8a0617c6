r"""Loss of all of M's heads in one function with a hand-written backward pass, one chunk of steps at a time.

The latent head gives 3 K D numbers per step, and autograd would keep a dozen tensors of that size for all B T steps: gigabytes
at the paper's Doom size, and most of the time would be spent on page faults and memory traffic. Here loss and gradient of a
chunk are computed together while its numbers are in the cache, and only the gradients with respect to the features and the
weights are kept. The losses are computed in float32 or better; the matrix products are in half precision under autocast.

All heads, and the hidden layers through which some of them see the next latent, are one product with the features. Its outputs
are stored with the steps last, (O, n), so that sums over a head's few components run along contiguous steps: a mixture over 4
numbers takes 0.6 of the time (dev/LOG.md). Heads see them as (n, O), with those strides.

The module depends on no kind of head: a head computes the loss of its raw outputs and overwrites them with the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from worldmodel.mixtures.latent_head import within_reach

CHUNK = {"cpu": 2**19}  # outputs of the heads in a chunk: what fits in a core's cache
LARGE_CHUNK = 2**25  # on a GPU, where each small operation costs a launch


class RawHead(Protocol):
    """A head that computes its loss on the raw outputs of a linear layer; see `worldmodel.mixtures.LatentHead`."""

    @property
    def linear(self) -> nn.Linear:
        """The layer that computes the raw outputs."""
        ...

    @property
    def target_weight(self) -> Tensor | None:
        """Coefficients (O, D) of the target (N, D) in the raw outputs; None for heads that do not see the target."""
        ...

    def raw_nll(self, raw: Tensor, target: Tensor, *, gradient: bool) -> Tensor:
        """Sum the loss of raw outputs (N, O), and overwrite them with its gradient if requested."""
        ...


@dataclass(frozen=True)
class LossTerm:
    """One head and its share in the loss.

    Args:
        head: the head.
        target: (N, ...) what its outputs are compared with, in its units.
        divisor: the loss counts the head's sum divided by this.
        feature_gradient: factor of this term's gradient with respect to the features; the head's own weights, and those of its
            layer, get all of it.
        layer: a hidden layer tanh(W [features, inputs, more] + b) with U units, through which the head sees more than the
            features: its own layer is linear in features and inputs followed by these units. None for a head without one.
    """

    head: RawHead
    target: Tensor
    divisor: int = 1
    feature_gradient: float = 1.0
    layer: nn.Linear | None = None


def heads_loss(
    features: Tensor, rows: Tensor, terms: Sequence[LossTerm], *, inputs: Tensor | None = None, more: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum the losses of the heads over the steps that count.

    Args:
        features: (M, F) input of the heads.
        rows: (N,) indices of the features that count.
        terms: the heads with their targets of those N steps; those with layers are next to each other.
        inputs: (N, S) further inputs of heads and layers after the features, of those steps, without gradient; None without.
        more: (N, E) further inputs of the layers alone, of those steps, without gradient; None without layers.

    Returns:
        The sum over steps and terms, each divided by its divisor, in nats, which can be differentiated once; and the sum of
        each term before the division, (number of terms,), without gradient.
    """
    parameters: list[Tensor | None] = []
    for term in terms:
        linear, layer = term.head.linear, term.layer
        parameters += [linear.weight, linear.bias, term.head.target_weight]
        parameters += [None, None] if layer is None else [layer.weight, layer.bias]
    beside = [part for part in (inputs, more) if part is not None]
    known = (torch.cat(beside, dim=1) if beside else None), (0 if inputs is None else inputs.shape[1])
    total, sums = _HeadsLoss.apply(features, rows, known, terms, torch.is_grad_enabled(), *parameters)
    return total, sums


def output_slices(sizes: Sequence[int]) -> list[slice]:
    """Return the columns of each part where parts of these sizes are stacked."""
    slices, first = [], 0
    for size in sizes:
        slices.append(slice(first, first + size))
        first += size
    return slices


class _Own(NamedTuple):
    """Tensors of a term: weight (O, F + S + U), bias (O,) and coupling (O, D) of its head, weight and bias of its layer."""

    weight: Tensor
    bias: Tensor
    coupling: Tensor | None
    layer_weight: Tensor | None
    layer_bias: Tensor | None


class _Stack:
    """All heads, followed by all layers, as one layer without activation, for one call of `heads_loss`.

    Args:
        terms: the terms.
        own: their tensors.
        width: number of inputs that all heads and layers see, F + S.
        more: number of inputs that only the layers see, E.
        dtype: dtype of the matrix products.
        gradient: whether gradients are needed.
    """

    def __init__(
        self, terms: Sequence[LossTerm], own: Sequence[_Own], width: int, more: int, dtype: torch.dtype, gradient: bool
    ):
        self.terms, self.own, self.width, self.dtype = terms, own, width, dtype
        self.columns = output_slices([len(each.bias) for each in own])
        seeing = [(outputs, each) for outputs, each in zip(self.columns, own, strict=True) if each.layer_weight is not None]
        weights = [each.weight[:, :width] for each in own]
        layers = [each.layer_weight for _, each in seeing if each.layer_weight is not None]
        if layers:
            weights = [torch.nn.functional.pad(weight, (0, more)) for weight in weights]
        weight = torch.cat([*weights, *layers])  # (O + U, F + S + E)
        self.weight = weight.to(dtype)
        biases = [each.bias for each in own] + [each.layer_bias for _, each in seeing if each.layer_bias is not None]
        self.bias = torch.cat(biases).unsqueeze(1)
        self.size = self.columns[-1].stop  # O
        self.units = output_slices([len(layer) for layer in layers])  # of each layer among all units
        self.gradients = [torch.zeros_like(weight), torch.zeros_like(self.bias)] if gradient else []
        self.by_coupling = [None if not gradient or x.coupling is None else torch.zeros_like(x.coupling) for x in own]
        self.after: Tensor | None = None  # weights of the units in the outputs that see them
        if layers:
            self.seen_by = slice(seeing[0][0].start, seeing[-1][0].stop)
            self.blocks = output_slices([outputs.stop - outputs.start for outputs, _ in seeing])
            after = torch.block_diag(*(each.weight[:, width:] for _, each in seeing))
            self.after, self.by_after = after.to(dtype), torch.zeros_like(after)

    def outputs(self, seen: Tensor) -> Tensor:
        """Return the raw outputs of the heads, followed by the units of the layers (O + U, n), for inputs (n, F + S + E)."""
        if self.dtype == self.bias.dtype:
            raw = torch.addmm(self.bias, self.weight, seen.t())
        else:
            raw = (self.weight @ seen.t()).to(self.bias.dtype).add_(self.bias)
        if self.after is not None:
            units = raw[self.size :].tanh_()
            raw[self.seen_by] += (self.after @ units.to(self.dtype)).to(raw.dtype)
        return raw

    def add_gradients(self, raw: Tensor, seen: Tensor, features: int) -> Tensor:
        """Add the gradients of all tensors, from those of the outputs (O + U, n), where the units still are; overwrites them.

        Returns:
            (n, F) the gradient of the features, in the dtype of the products.
        """
        by_weight, by_bias = self.gradients
        if self.after is not None:
            slope, units = raw[self.seen_by].to(self.dtype), raw[self.size :]
            self.by_after += slope @ units.to(self.dtype).t()
            below = (self.after.t() @ slope).to(raw.dtype)
            raw[self.size :] = torch.addcmul(below, below, units.square_(), value=-1)  # the derivative of tanh
        by_bias += raw.sum(dim=1, keepdim=True)
        slope = raw.to(self.dtype)
        by_weight += slope @ seen
        seeing = iter(self.units)
        for term, outputs in zip(self.terms, self.columns, strict=True):  # after the gradients of the weights
            units_of = [slice(self.size + u.start, self.size + u.stop) for u in ([next(seeing)] if term.layer is not None else [])]
            if term.feature_gradient != 1:
                for part in (outputs, *units_of):
                    slope[part] *= term.feature_gradient
        return slope.t() @ self.weight[:, :features]

    def all_gradients(self) -> list[Tensor | None]:
        """Return the gradients of all tensors of the terms, in their order."""
        (by_weight, by_bias), found, number = self.gradients, [], 0
        for each, outputs, by_coupling in zip(self.own, self.columns, self.by_coupling, strict=True):
            weight, layer = by_weight[outputs, : self.width], [None, None]
            if each.layer_weight is not None:
                units, block = self.units[number], self.blocks[number]
                rows = slice(self.size + units.start, self.size + units.stop)
                weight = torch.cat([weight, self.by_after[block, units]], dim=1)
                layer, number = [by_weight[rows], by_bias[rows, 0]], number + 1
            found += [weight, by_bias[outputs, 0], by_coupling, *layer]
        return found


class _HeadsLoss(torch.autograd.Function):
    """`heads_loss`; the gradient is computed with the loss, as the factor from above is one number."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        rows: Tensor,
        known: tuple[Tensor | None, int],
        terms: Sequence[LossTerm],
        gradient: bool,
        *parameters: Any,
    ) -> tuple[Tensor, Tensor]:
        kind, (beside, shared) = features.device.type, known
        own = [_Own(*parameters[first : first + 5]) for first in range(0, len(parameters), 5)]
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else own[0].weight.dtype
        width, size = features.shape[1] + shared, features.shape[1]
        stack = _Stack(terms, own, width, 0 if beside is None else beside.shape[1] - shared, dtype, gradient)
        by_features = features  # replaced or filled by its gradient
        sums = own[0].bias.new_zeros(len(terms))
        every = len(rows) == len(features)  # each at most once and in order, so that no row need be looked up
        step = max(1, CHUNK.get(kind, LARGE_CHUNK) // len(stack.weight))
        whole = every and step >= len(rows)  # one chunk, whose gradient need not be copied
        if gradient and not whole:
            by_features = torch.zeros_like(features)
        for begin in range(0, len(rows), step):
            part = slice(begin, begin + step)
            seen = features[part] if every else features.index_select(0, rows[part])  # (n, F)
            seen = (seen if beside is None else torch.cat([seen, beside[part]], dim=1)).to(dtype)
            raw = stack.outputs(seen)
            sums += _losses(raw, stack, part, gradient)
            if gradient:
                back = stack.add_gradients(raw, seen, size).to(features.dtype)
                if whole:
                    by_features = back
                elif every:
                    by_features[part] = back
                else:
                    by_features.index_copy_(0, rows[part], back)
        if gradient:
            ctx.save_for_backward(by_features, *stack.all_gradients())
        ctx.mark_non_differentiable(sums)
        total = sums[0] / terms[0].divisor
        for term, each in zip(terms[1:], sums[1:], strict=True):
            total = total + each / term.divisor
        return total, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        by_features, *others = ctx.saved_tensors
        by_own = (None if x is None else x * factor for x in others)
        return by_features * factor.to(by_features.dtype), None, None, None, None, *by_own


def _losses(raw: Tensor, stack: _Stack, part: slice, gradient: bool) -> Tensor:
    """Each term's sum over the steps ``part``; overwrites the outputs (O + U, n) of the heads with its gradient if requested."""
    sums = []
    for number, (term, own, outputs) in enumerate(zip(stack.terms, stack.own, stack.columns, strict=True)):
        mine, target = raw[outputs], term.target[part]
        if own.coupling is not None:
            reached = within_reach(target)
            with torch.autocast(raw.device.type, enabled=False):  # what the head sees of the target, in full precision
                mine.addmm_(own.coupling, reached.t())
        sums.append(term.head.raw_nll(mine.t(), target, gradient=gradient))
        if not gradient:
            continue
        if term.divisor != 1:
            mine /= term.divisor
        by_coupling = stack.by_coupling[number]
        if own.coupling is not None and by_coupling is not None:
            with torch.autocast(raw.device.type, enabled=False):
                by_coupling.addmm_(mine, reached)
    return torch.stack(sums)
