r"""Loss of all of M's heads in one function with a hand-written backward pass, one chunk of steps at a time.

The latent head gives 3 K D numbers per step, and autograd would keep a dozen tensors of that size for all B T steps: gigabytes
at the paper's Doom size, and most of the time would be spent on page faults and memory traffic. Here loss and gradient of a
chunk are computed together while its numbers are in the cache, and only the gradients with respect to the features and the
weights are kept. The losses are computed in float32 or better; the matrix products are in half precision under autocast.

The module depends on no kind of head: a head computes the loss of its raw outputs and overwrites them with the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

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
        layer: a hidden layer tanh(W [features, more] + b) with U units, through which the head sees more than the features: its
            own layer is linear in the features followed by these units. None for a head that is linear in the features.
    """

    head: RawHead
    target: Tensor
    divisor: int = 1
    feature_gradient: float = 1.0
    layer: nn.Linear | None = None


def heads_loss(
    features: Tensor, rows: Tensor, terms: Sequence[LossTerm], *, more: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum the losses of the heads over the steps that count.

    Args:
        features: (M, F) input of the heads.
        rows: (N,) ascending indices of the features that count.
        terms: the heads with their targets of those N steps; those with layers are next to each other.
        more: (N, E) additional inputs of the terms' layers, of those steps; None without layers.

    Returns:
        The sum over steps and terms, each divided by its divisor, in nats, which can be differentiated once; and the sum of
        each term before the division, (number of terms,), without gradient.
    """
    size = features.shape[1]
    weight = torch.cat([term.head.linear.weight[:, :size] for term in terms])  # (O, F)
    bias = torch.cat([term.head.linear.bias for term in terms])  # (O,)
    couplings = [term.head.target_weight for term in terms]
    own: list[Tensor] = []
    if more is not None:
        seeing = [(term.layer, term.head.linear.weight[:, size:]) for term in terms if term.layer is not None]
        own = [torch.cat([layer.weight for layer, _ in seeing]), torch.cat([layer.bias for layer, _ in seeing])]
        own += [after for _, after in seeing]
    total, sums = _HeadsLoss.apply(features, rows, weight, bias, terms, torch.is_grad_enabled(), more, *couplings, *own)
    return total, sums


def output_slices(sizes: Sequence[int]) -> list[slice]:
    """Return the columns of each part where parts of these sizes are stacked."""
    slices, first = [], 0
    for size in sizes:
        slices.append(slice(first, first + size))
        first += size
    return slices


def _losses(raw: Tensor, terms: Sequence[LossTerm], columns: Sequence[slice], part: slice, gradient: bool) -> Tensor:
    """Each term's sum over the steps ``part``; overwrites the outputs (n, O) with the gradient of the loss if requested."""
    sums = raw.new_zeros(len(terms))
    for number, (term, own) in enumerate(zip(terms, columns, strict=True)):
        outputs = raw[:, own]
        sums[number] = term.head.raw_nll(outputs, term.target[part], gradient=gradient)
        if gradient and term.divisor != 1:
            outputs /= term.divisor
    return sums


class _Layers:
    """The hidden layers of the terms that have one, stacked, for one call of `heads_loss`.

    Args:
        terms: all terms.
        columns: columns of each term's outputs.
        more: (N, E) additional inputs of the layers.
        tensors: W (U, F + E) and b (U,) of all layers, and for each layer the head's weights of its units (O, U of the layer).
        dtype: dtype of the matrix products.
        gradient: whether gradients are needed.
    """

    def __init__(
        self,
        terms: Sequence[LossTerm],
        columns: Sequence[slice],
        more: Tensor,
        tensors: Sequence[Tensor],
        dtype: torch.dtype,
        gradient: bool,
    ):
        self.more, self.dtype, self.bias = more, dtype, tensors[1]
        self.weight, self.after = tensors[0].to(dtype), torch.block_diag(*tensors[2:]).to(dtype)  # of all heads: (O, U)
        self.gradients = [torch.zeros_like(tensor) for tensor in (tensors[0], tensors[1], self.after)] if gradient else []
        seeing = [(term, own) for term, own in zip(terms, columns, strict=True) if term.layer is not None]
        self.outputs = slice(seeing[0][1].start, seeing[-1][1].stop)
        units = output_slices([tensor.shape[1] for tensor in tensors[2:]])
        self.units = [(mine, term.feature_gradient) for (term, _), mine in zip(seeing, units, strict=True)]
        self.blocks = list(zip(output_slices([own.stop - own.start for _, own in seeing]), units, strict=True))

    def add_outputs(self, raw: Tensor, seen: Tensor, part: slice) -> None:
        """Add what the heads see through their layers to the outputs (n, O), for features ``seen`` (n, F)."""
        self._inputs = torch.cat([seen, self.more[part].to(self.dtype)], dim=1)  # (n, F + E)
        self._units = (self._inputs @ self.weight.t()).to(raw.dtype).add_(self.bias).tanh_()  # (n, U)
        raw[:, self.outputs] += (self._units.to(self.dtype) @ self.after.t()).to(raw.dtype)

    def add_gradients(self, slope: Tensor, size: int) -> Tensor:
        """Add the gradients of the layers' weights, from those of the outputs (n, O); return that of the features (n, F)."""
        by_weight, by_bias, by_after = self.gradients
        outputs = slope[:, self.outputs]
        by_after += outputs.t() @ self._units.to(self.dtype)
        below = (outputs @ self.after).to(self._units.dtype)
        below -= below * self._units.square_()  # the derivative of tanh
        by_bias += below.sum(dim=0)
        below = below.to(self.dtype)
        by_weight += below.t() @ self._inputs
        for mine, factor in self.units:
            if factor != 1:  # after the gradient of the layers' own weights
                below[:, mine] *= factor
        return below @ self.weight[:, :size]

    def all_gradients(self) -> list[Tensor]:
        """Return the gradients of all tensors that were given."""
        if not self.gradients:
            return []
        by_weight, by_bias, by_after = self.gradients
        return [by_weight, by_bias, *(by_after[own, mine].to(by_bias.dtype) for own, mine in self.blocks)]


def _add_couplings(
    raw: Tensor, terms: Sequence[LossTerm], columns: Sequence[slice], part: slice, couplings: Sequence[Tensor | None]
) -> None:
    """Add to the outputs (n, O) what heads with a ``target_weight`` see of the target, in full precision."""
    with torch.autocast(raw.device.type, enabled=False):
        for term, own, coupling in zip(terms, columns, couplings, strict=True):
            if coupling is not None:
                raw[:, own].addmm_(within_reach(term.target[part]), coupling.t())


def _add_coupling_gradients(
    by_coupling: Sequence[Tensor | None], slope: Tensor, terms: Sequence[LossTerm], columns: Sequence[slice], part: slice
) -> None:
    """Accumulate the gradients of the couplings, from those of the outputs (n, O)."""
    with torch.autocast(slope.device.type, enabled=False):
        for term, own, gradient in zip(terms, columns, by_coupling, strict=True):
            if gradient is not None:
                gradient.addmm_(slope[:, own].t(), within_reach(term.target[part]))


def _damped(slope: Tensor, terms: Sequence[LossTerm], columns: Sequence[slice]) -> Tensor:
    """Multiply the gradient of each term's outputs (n, O) by its factor, in place."""
    for term, outputs in zip(terms, columns, strict=True):
        if term.feature_gradient != 1:
            slope[:, outputs] *= term.feature_gradient
    return slope


class _HeadsLoss(torch.autograd.Function):
    """`heads_loss`; the gradient is computed with the loss, as the factor from above is one number."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
        terms: Sequence[LossTerm],
        gradient: bool,
        more: Tensor | None,
        *own: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        kind, columns = features.device.type, output_slices([term.head.linear.out_features for term in terms])
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        lowered = weight.to(dtype)
        transposed = lowered.t().contiguous()  # products with a transposed view are slower in half precision
        by_features, by_weight, by_bias = (torch.zeros_like(x) if gradient else x for x in (features, weight, bias))
        couplings = own[: len(terms)]
        by_coupling = [None if x is None else torch.zeros_like(x) for x in couplings]
        layers = None if more is None else _Layers(terms, columns, more, cast(Any, own[len(terms) :]), dtype, gradient)
        sums = bias.new_zeros(len(terms))
        every = len(rows) == len(features)  # each at most once and in order, so that no row need be looked up
        size = max(1, CHUNK.get(kind, LARGE_CHUNK) // len(weight))
        for begin in range(0, len(rows), size):
            part = slice(begin, begin + size)
            seen = (features[part] if every else features.index_select(0, rows[part])).to(dtype)  # (n, F)
            raw = (seen @ transposed).to(bias.dtype).add_(bias)  # (n, O)
            _add_couplings(raw, terms, columns, part, couplings)
            if layers is not None:
                layers.add_outputs(raw, seen, part)
            sums += _losses(raw, terms, columns, part, gradient)
            if gradient:
                _add_coupling_gradients(by_coupling, raw, terms, columns, part)
                by_bias += raw.t() @ raw.new_ones(len(raw))  # faster than a sum over rows
                slope = raw.to(dtype)
                through = None if layers is None else layers.add_gradients(slope, features.shape[1])
                by_weight += slope.t() @ seen
                back = _damped(slope, terms, columns) @ lowered  # after the gradient of the heads' own weights
                back = (back if through is None else back.add_(through)).to(features.dtype)
                if every:
                    by_features[part] = back
                else:
                    by_features.index_copy_(0, rows[part], back)
        if gradient:
            ctx.save_for_backward(by_features, by_weight, by_bias, *by_coupling, *(layers.all_gradients() if layers else ()))
        ctx.mark_non_differentiable(sums)
        total = sums[0] / terms[0].divisor
        for term, each in zip(terms[1:], sums[1:], strict=True):
            total = total + each / term.divisor
        return total, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        by_features, *others = ctx.saved_tensors
        by_weight, by_bias, *by_own = (None if x is None else x * factor for x in others)
        return by_features * factor.to(by_features.dtype), None, by_weight, by_bias, None, None, None, *by_own
