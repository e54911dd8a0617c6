"""One head for a z of several kinds of parts: a sub-head for each kind; constants are copied and have none.

The densities are predicted by the head that `MDNRNNConfig.latent_head` names. The likelihood is a product over the sub-heads,
of densities and of probabilities, so its parts are reported by kind (`CompositeDistribution.log_probs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from worldmodel.mixtures.discrete_heads import BitsHead, ChoiceHead
from worldmodel.mixtures.latent_head import LatentDistribution, LatentHead
from worldmodel.mixtures.layout import COPIED, DENSITIES, LatentLayout, PartKind
from worldmodel.mixtures.unchanged_head import UnchangedHead
from worldmodel.rng import Source

Columns = slice | Tensor  # of z


class SubHead(NamedTuple):
    """The head of one kind of parts.

    Args:
        metric: name of its likelihood: ``nll_per_dim`` (nats per dimension), ``nats_per_choice``, ``nats_per_bit`` or
            ``mixed_nats_per_dim`` (nats per dimension with an atom, with respect to the mixed measure).
        head: the head.
        columns: the numbers of z that it predicts.
        num_variables: how many random variables these are.
    """

    metric: str
    head: LatentHead
    columns: Columns
    num_variables: int


class StackedLinear(nn.Module):
    """The linear layers of several heads, as one layer; it has no weights of its own.

    Args:
        in_features: F, size of the features.
        heads: heads with linear layers on them.
    """

    def __init__(self, in_features: int, heads: Sequence[LatentHead]):
        super().__init__()
        self.register_buffer("_no_weight", torch.zeros(0, in_features), persistent=False)
        self.register_buffer("_no_bias", torch.zeros(0), persistent=False)
        self._layers = [head.linear for head in heads]  # a list, so that the weights are registered once, by the heads
        self.out_features = sum(layer.out_features for layer in self._layers)

    @property
    def weight(self) -> Tensor:
        """(O, F) weights of all layers."""
        return torch.cat([cast(Tensor, self._no_weight), *(layer.weight for layer in self._layers)])

    @property
    def bias(self) -> Tensor:
        """(O,) biases of all layers."""
        return torch.cat([cast(Tensor, self._no_bias), *(layer.bias for layer in self._layers)])


class CompositeDistribution:
    """A batch of distributions over z: independent ones of the kinds of its parts, and copies.

    Args:
        parts: metric, distribution and columns of each.
        copied: columns that are copied.
        origin: (..., D); the copied numbers are its.
    """

    def __init__(self, parts: Sequence[tuple[str, LatentDistribution, Columns]], copied: Columns, origin: Tensor):
        self.parts, self._copied, self._origin = tuple(parts), copied, origin

    def log_prob(self, x: Tensor) -> Tensor:
        """Sum of `log_probs`, (...): a density in some numbers and a probability in others; -inf if a constant differs."""
        total = torch.where((x == self._origin)[..., self._copied].all(dim=-1), 0.0, -torch.inf).to(x.dtype)
        return total + sum(self.log_probs(x).values())

    def log_probs(self, x: Tensor) -> dict[str, Tensor]:
        """Log-likelihood of the numbers of each kind in ``x`` (..., D), in nats: (...) each, by the name of its metric."""
        return {metric: part.log_prob(x[..., columns]) for metric, part, columns in self.parts}

    def expectation(self) -> Tensor:
        """Mean of z, (..., D): probabilities for choices and bits."""
        return self._join([cast(Any, part).expectation() for _, part, _ in self.parts])

    def mode(self) -> Tensor:
        """The sample at temperature 0, (..., D)."""
        return self.sample(0.0)

    @torch.no_grad()
    def sample(self, temperature: float | Tensor = 1.0, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample (..., D); see `LatentDistribution.sample`. Constants are copied bit for bit."""
        return self._join([part.sample(temperature, num_groups=num_groups, generator=generator) for _, part, _ in self.parts])

    def rsample(self, temperature: float | Tensor = 1.0, *, num_groups: int = 1, generator: Source = None) -> Tensor:
        """Sample the same numbers as `sample`, with gradients; those through choices and bits are straight-through."""
        return self._join([part.rsample(temperature, num_groups=num_groups, generator=generator) for _, part, _ in self.parts])

    @property
    def origin(self) -> Tensor:
        """(..., D), where a number that is copied comes from."""
        return self._origin

    def replaced(self, distributions: Sequence[LatentDistribution]) -> CompositeDistribution:
        """Return the same parts and copies with other distributions of the parts."""
        parts = [(metric, new, own) for (metric, _, own), new in zip(self.parts, distributions, strict=True)]
        return CompositeDistribution(parts, self._copied, self._origin)

    def affine(self, shift: Tensor, scale: Tensor) -> CompositeDistribution:
        """Shift and scale the densities; choices and bits stay, and constants become ``shift``."""
        shift, scale = (part.expand_as(self._origin) for part in (shift, scale))
        parts = [
            (metric, part.affine(shift[..., columns], scale[..., columns]), columns) for metric, part, columns in self.parts
        ]
        return CompositeDistribution(parts, self._copied, shift)

    def _join(self, samples: Sequence[Tensor]) -> Tensor:
        """Put the numbers of all parts where they belong in z."""
        z = self._origin.to(samples[0].dtype) if samples else self._origin
        z = z.clone()
        for (_, _, columns), sample in zip(self.parts, samples, strict=True):
            z[..., columns] = sample
        return z


class CompositeHead(LatentHead, registered=False):
    """Heads of all kinds of parts of z on the same features.

    Args:
        in_features: F, size of the features.
        layout: the parts of z.
        config: an `MDNRNNConfig`.
        density: makes the head of the densities from F, their number and ``config``.
    """

    def __init__(self, in_features: int, layout: LatentLayout, config: Any, density: Callable[[int, int, Any], LatentHead]):
        super().__init__()
        self.layout, self.dim = layout, layout.latent_size
        found = {
            "densities": layout.columns(*DENSITIES),
            "unchanged": layout.columns(PartKind.MOSTLY_UNCHANGED),
            "choices": layout.columns(PartKind.CHOICE),
            "bits": layout.columns(PartKind.BITS),
        }
        sizes = layout.choice_sizes()
        makers: dict[str, Callable[[int], LatentHead]] = {
            "densities": lambda dim: density(in_features, dim, config),
            "unchanged": lambda dim: UnchangedHead.from_config(in_features, dim, config),
            "choices": lambda dim: ChoiceHead(in_features, sizes),
            "bits": lambda dim: BitsHead.from_config(in_features, dim, config),
        }
        self.heads = nn.ModuleDict({name: makers[name](len(columns)) for name, columns in found.items() if columns})
        self._names = {name: f"_{name}" for name in self.heads}
        for name in self.heads:
            self.register_buffer(self._names[name], torch.tensor(found[name]), persistent=False)
        self._slices = {name: as_slice(found[name]) for name in self.heads}
        self._counts = {name: len(sizes) if name == "choices" else len(found[name]) for name in self.heads}
        self.register_buffer("_copied", torch.tensor(layout.columns(*COPIED), dtype=torch.int64), persistent=False)
        if self.supports_raw:
            self._linear = StackedLinear(in_features, self._heads())

    @classmethod
    def from_config(cls, in_features: int, dim: int, config: Any) -> LatentHead:
        """Not available: a composite head needs a layout."""
        raise TypeError("CompositeHead: expected a layout; an MDNRNN with a layout makes it")

    @property
    def sub_heads(self) -> list[SubHead]:
        """The heads with the numbers that they predict."""
        return [
            SubHead(METRICS[name], head, self._columns(name), self._counts[name])
            for name, head in zip(self.heads, self._heads(), strict=True)
        ]

    def forward(self, features: Tensor) -> CompositeDistribution:
        """Turn features (..., F) into distributions over z in the units of the heads; constants are 0 until `affine`."""
        parts = [(sub.metric, sub.head(features), sub.columns) for sub in self.sub_heads]
        dtype = torch.promote_types(features.dtype, torch.float32)
        origin = features.new_zeros((), dtype=dtype).expand(*features.shape[:-1], self.dim)
        return CompositeDistribution(parts, self._copied_columns, origin)

    def constants(self) -> dict[str, Any]:
        """Those of the head of the densities."""
        return cast(LatentHead, self.heads["densities"]).constants() if "densities" in self.heads else {}

    def set_constants(self, values: Mapping[str, Any]) -> None:
        """Set those of the head of the densities; see `LatentHead.set_constants`."""
        if "densities" in self.heads:
            cast(LatentHead, self.heads["densities"]).set_constants(values)

    def initialise(self, features: Tensor, target: Tensor, ridge: Tensor, *, fit_floors: bool = False) -> None:
        """Start the head of the densities from data; see `LatentHead.initialise`."""
        if "densities" in self.heads:
            own = target[:, self._columns("densities")]
            cast(LatentHead, self.heads["densities"]).initialise(features, own, ridge, fit_floors=fit_floors)

    @property
    def linear(self) -> nn.Linear:  # type: ignore[override]
        """The layers of all heads, stacked."""
        return cast(nn.Linear, self._linear)

    @property
    def numbers_per_sample(self) -> int:
        """Those of all heads."""
        return sum(head.numbers_per_sample for head in self._heads())

    @property
    def has_conditionals(self) -> bool:
        """Whether the head of the densities has them, as all others do."""
        return "densities" not in self.heads or cast(LatentHead, self.heads["densities"]).has_conditionals

    @property
    def supports_raw(self) -> bool:
        """Whether all heads do."""
        return all(head.supports_raw for head in self._heads())

    @property
    def num_uniforms(self) -> int:
        """Those of all heads."""
        return sum(head.num_uniforms for head in self._heads())

    @property
    def num_normals(self) -> int:
        """Those of all heads."""
        return sum(head.num_normals for head in self._heads())

    def raw_nll(self, raw: Tensor, target: Tensor, *, gradient: bool) -> Tensor:
        """Sum the losses of all heads; constants are not checked. See `LatentHead.raw_nll`."""
        total, first = raw.new_zeros(()), 0
        for sub in self.sub_heads:
            own = slice(first, first + sub.head.linear.out_features)
            total = total + sub.head.raw_nll(raw[:, own], target[:, sub.columns], gradient=gradient)
            first = own.stop
        return total

    def sample_raw(self, raw: Tensor, *, temperature: float | Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """Sample (B, D) in the units of the heads, 0 for constants; see `LatentHead.sample_raw`."""
        z = raw.new_zeros(len(raw), self.dim)
        outputs = raw.split([head.linear.out_features for head in self._heads()], dim=1)
        uniforms = uniform.split([head.num_uniforms for head in self._heads()], dim=1)
        normals = normal.split([head.num_normals for head in self._heads()], dim=1)
        for sub, own, u, n in zip(self.sub_heads, outputs, uniforms, normals, strict=True):
            z[:, sub.columns] = sub.head.sample_raw(own, temperature=temperature, uniform=u, normal=n)
        return z

    def _heads(self) -> list[LatentHead]:
        return [cast(LatentHead, head) for head in self.heads.values()]

    def _columns(self, name: str) -> Columns:
        found = self._slices[name]
        return cast(Tensor, getattr(self, self._names[name])) if found is None else found

    @property
    def _copied_columns(self) -> Tensor:
        return cast(Tensor, self._copied)


METRICS = {
    "densities": "nll_per_dim",
    "unchanged": "mixed_nats_per_dim",
    "choices": "nats_per_choice",
    "bits": "nats_per_bit",
}


LIKELIHOODS = {  # of held-out data: name of the metric -> unit
    "nll_per_dim": "nats per dimension of z",
    "mixed_nats_per_dim": "nats per number that is mostly unchanged",
    "nats_per_choice": "nats per choice",
    "nats_per_bit": "nats per bit",
}


def as_slice(columns: Sequence[int]) -> slice | None:
    """Return contiguous ascending columns as a slice, which makes views; None for others."""
    contiguous = columns and list(columns) == list(range(columns[0], columns[0] + len(columns)))
    return slice(columns[0], columns[0] + len(columns)) if contiguous else None
