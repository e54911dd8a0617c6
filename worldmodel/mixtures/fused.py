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
    features: Tensor,
    rows: Tensor | None,
    terms: Sequence[LossTerm],
    *,
    inputs: Tensor | None = None,
    more: Tensor | None = None,
    scale: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Sum the losses of the heads over the steps that count.

    Args:
        features: (M, F) input of the heads.
        rows: (N,) indices of the features that count; None counts all.
        terms: the heads with their targets of those N steps; those with layers are next to each other.
        inputs: (N, S) further inputs of heads and layers after the features, of those steps, without gradient; None without.
        more: (N, E) further inputs of the layers alone, of those steps, without gradient; None without layers.
        scale: factor of the loss.

    Returns:
        ``scale`` times the sum over steps and terms, each divided by its divisor, in nats, which can be differentiated once;
        and the sum of each term before division and factor, (number of terms,), without gradient.
    """
    parameters: list[Tensor | None] = []
    for term in terms:
        linear, layer = term.head.linear, term.layer
        parameters += [linear.weight, linear.bias, term.head.target_weight]
        parameters += [None, None] if layer is None else [layer.weight, layer.bias]
    kind, one = features.device.type, features.new_ones(1, len(features) if rows is None else len(rows))  # for the biases
    beside = one if inputs is None else torch.cat([inputs.t(), one])  # (S + 1, N)
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else terms[0].head.linear.weight.dtype
    with torch.autocast(kind, enabled=False):  # dtypes are chosen one by one
        known = beside, None if more is None else more.t().contiguous()
        total, sums = _HeadsLoss.apply(features, rows, known, terms, scale, dtype, torch.is_grad_enabled(), *parameters)
    return total, sums


def output_slices(sizes: Sequence[int]) -> list[slice]:
    """Return the columns of each part where parts of these sizes are stacked."""
    slices, first = [], 0
    for size in sizes:
        slices.append(slice(first, first + size))
        first += size
    return slices


def tanh_(x: Tensor) -> Tensor:
    """Apply tanh in place, with an error of 1e-7 in float32: on a CPU in a quarter of the time of `torch.tanh`."""
    return x.mul_(2).sigmoid_().mul_(2).sub_(1)


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
        features: F, number of features.
        width: number of inputs that all heads and layers see, F + S.
        dtype: dtype of the matrix products, except for those with a few numbers.
        gradient: whether gradients are needed.
    """

    def __init__(
        self,
        terms: Sequence[LossTerm],
        own: Sequence[_Own],
        features: int,
        width: int,
        dtype: torch.dtype,
        gradient: bool,
    ):
        self.terms, self.own, self.width, self.dtype = terms, own, width, dtype
        self.columns = output_slices([len(each.bias) for each in own])
        seeing = [(outputs, each) for outputs, each in zip(self.columns, own, strict=True) if each.layer_weight is not None]
        layers = [each.layer_weight for _, each in seeing if each.layer_weight is not None]
        weight = torch.cat([each[:, :width] for each in ([each.weight for each in own] + layers)])  # (O + U, F + S)
        biases = [each.bias for each in own] + [each.layer_bias for _, each in seeing if each.layer_bias is not None]
        bias = torch.cat(biases).unsqueeze(1)
        # Features apart from the few numbers beside them, whose last is 1 for the biases, as products are slow where rows are
        # not aligned. In half precision the sum of two products would be rounded in between, and the biases too.
        self.apart = dtype == weight.dtype
        self.by_features = weight[:, :features].to(dtype)
        self.weights = [self.by_features, torch.cat([weight[:, features:], bias], dim=1)] if self.apart else [weight.to(dtype)]
        self.bias = bias
        self.size = self.columns[-1].stop  # O
        self.units = output_slices([len(layer) for layer in layers])  # of each layer among all units
        self.by_weights = [torch.zeros_like(part, dtype=weight.dtype) for part in self.weights] if gradient else []
        self.by_bias = torch.zeros_like(bias)  # unless it is a column of ``by_weights``
        self.by_coupling = [None if not gradient or x.coupling is None else torch.zeros_like(x.coupling) for x in own]
        self.after: Tensor | None = None  # weights of the units in the outputs that see them
        if layers:
            self.seen_by = slice(seeing[0][0].start, seeing[-1][0].stop)
            self.blocks = output_slices([outputs.stop - outputs.start for outputs, _ in seeing])
            after = torch.block_diag(*(each.weight[:, width:] for _, each in seeing))
            self.after, self.by_after = after.to(dtype), torch.zeros_like(after)
            self.more = torch.cat([layer[:, width:] for layer in layers])  # (U, E)
            self.by_more = torch.zeros_like(self.more)

    def inputs(self, features: Tensor, beside: Tensor) -> list[Tensor]:
        """Return what is multiplied by each of ``weights``, (..., n), from features (n, F) and beside (S + 1, n)."""
        if self.apart:
            return [features.t(), beside]
        return [torch.cat([features.to(self.dtype), beside[:-1].t().to(self.dtype)], dim=1).t()]

    def outputs(self, seen: Sequence[Tensor], more: Tensor | None) -> Tensor:
        """Return the raw outputs of the heads, followed by the units of the layers: (O + U, n).

        Args:
            seen: what `inputs` returned.
            more: (E, n) what only the layers see; None without layers.
        """
        raw = (self.weights[0] @ seen[0]).to(self.bias.dtype)
        raw = raw.addmm_(self.weights[1], seen[1]) if self.apart else raw.add_(self.bias)
        if self.after is not None and more is not None:
            raw[self.size :].addmm_(self.more, more)
            units = tanh_(raw[self.size :])
            raw[self.seen_by] += (self.after @ units.to(self.dtype)).to(raw.dtype)
        return raw

    def add_gradients(self, raw: Tensor, seen: Sequence[Tensor], more: Tensor | None) -> Tensor:
        """Add the gradients of all tensors, from those of the outputs (O + U, n), where the units still are; overwrites them.

        Returns:
            (n, F) the gradient of the features, in the dtype of the products.
        """
        if self.after is not None and more is not None:
            slope, units = raw[self.seen_by].to(self.dtype), raw[self.size :]
            self.by_after += slope @ units.to(self.dtype).t()
            below = (self.after.t() @ slope).to(raw.dtype)
            torch.addcmul(below, below, units.square_(), value=-1, out=units)  # the derivative of tanh
            self.by_more += (more @ units.t()).t()  # faster than the transpose of it
        slope = raw.to(self.dtype)
        self.by_weights[0] += slope @ seen[0].t()
        if self.apart:
            self.by_weights[1] += (seen[1] @ slope.t()).t()
        else:
            self.by_bias += raw.sum(dim=1, keepdim=True)
        units_of = iter(self.units)
        for term, outputs in zip(self.terms, self.columns, strict=True):  # after the gradients of the weights
            through = [] if term.layer is None else [next(units_of)]
            for own in (outputs, *(slice(self.size + each.start, self.size + each.stop) for each in through)):
                if term.feature_gradient != 1:
                    slope[own] *= term.feature_gradient
        return slope.t() @ self.by_features

    def all_gradients(self) -> list[Tensor | None]:
        """Return the gradients of all tensors of the terms, in their order."""
        gradient = torch.cat(self.by_weights if self.apart else [*self.by_weights, self.by_bias], dim=1)
        by_weight, by_bias = gradient[:, :-1], gradient[:, -1].contiguous()
        found: list[Tensor | None] = []
        number = 0
        for each, outputs, by_coupling in zip(self.own, self.columns, self.by_coupling, strict=True):
            weight = by_weight[outputs, : self.width].contiguous()
            layer: tuple[Tensor | None, Tensor | None] = (None, None)
            if each.layer_weight is not None:
                units, block = self.units[number], self.blocks[number]
                rows = slice(self.size + units.start, self.size + units.stop)
                weight = torch.cat([weight, self.by_after[block, units]], dim=1)
                layer = torch.cat([by_weight[rows], self.by_more[units]], dim=1), by_bias[rows]
                number += 1
            found += [weight, by_bias[outputs], by_coupling, *layer]
        return found


class _HeadsLoss(torch.autograd.Function):
    """`heads_loss`; the gradient is computed with the loss, as the factor from above is one number."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        rows: Tensor | None,
        known: tuple[Tensor, Tensor | None],
        terms: Sequence[LossTerm],
        scale: Tensor | float,
        dtype: torch.dtype,
        gradient: bool,
        *parameters: Any,
    ) -> tuple[Tensor, Tensor]:
        beside, more = known
        own = [_Own(*parameters[first : first + 5]) for first in range(0, len(parameters), 5)]
        stack = _Stack(terms, own, features.shape[1], features.shape[1] + len(beside) - 1, dtype, gradient)
        weights = own[0].bias.new_tensor([1 / term.divisor for term in terms]) * scale  # of the terms in the loss
        sums, by_features = torch.zeros_like(weights), features  # replaced or filled by its gradient
        number = len(features) if rows is None else len(rows)
        step = max(1, CHUNK.get(features.device.type, LARGE_CHUNK) // len(stack.bias))
        whole = rows is None and step >= number  # one chunk, whose gradient need not be copied
        if gradient and not whole:
            by_features = torch.zeros_like(features)
        for begin in range(0, number, step):
            part = slice(begin, begin + step)
            chosen = features[part] if rows is None else features.index_select(0, rows[part])  # (n, F)
            seen = stack.inputs(chosen, beside[:, part])
            further = None if more is None else more[:, part]
            raw = stack.outputs(seen, further)
            sums += _losses(raw, stack, part, weights if gradient else None)
            if gradient:
                back = stack.add_gradients(raw, seen, further).to(features.dtype)
                if whole:
                    by_features = back
                elif rows is None:
                    by_features[part] = back
                else:
                    by_features.index_copy_(0, rows[part], back)
        if gradient:
            ctx.save_for_backward(by_features, *stack.all_gradients())
        ctx.mark_non_differentiable(sums)
        return (sums * weights).sum(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        by_features, *others = ctx.saved_tensors
        if factor.device.type != "cpu" or factor != 1:  # usually 1; reading it would synchronise a GPU
            by_features = by_features * factor.to(by_features.dtype)
            others = [None if x is None else x * factor for x in others]
        return by_features, None, None, None, None, None, None, *others


def _losses(raw: Tensor, stack: _Stack, part: slice, weights: Tensor | None) -> Tensor:
    """Each term's sum over the steps ``part``; with ``weights``, overwrites the heads' outputs with the gradient of the loss.

    Args:
        raw: (O + U, n) outputs of the heads and units of the layers.
        stack: the heads.
        part: the steps.
        weights: of each term's sum in the loss; None without gradient.
    """
    sums = []
    for number, (term, own, outputs) in enumerate(zip(stack.terms, stack.own, stack.columns, strict=True)):
        mine, target = raw[outputs], term.target[part]
        if own.coupling is not None:
            reached = within_reach(target)
            mine.addmm_(own.coupling, reached.t())  # what the head sees of the target, in full precision
        sums.append(term.head.raw_nll(mine.t(), target, gradient=weights is not None))
        if weights is None:
            continue
        mine *= weights[number]
        by_coupling = stack.by_coupling[number]
        if by_coupling is not None:
            by_coupling.addmm_(mine, reached)
    return torch.stack(sums)
