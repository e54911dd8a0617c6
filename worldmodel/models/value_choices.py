"""Numbers of a Box that are choices: from features to one-hot vectors, and back to exactly the same values."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from worldmodel.mixtures import Segments
from worldmodel.spaces import FlatSpace, leaf_bounds, leaves

UNKNOWN = 0.01  # a value this far from the nearest known one, as a share of the smallest distance between them, is unknown


class ValueChoices(nn.Module):
    """Replace some features by one-hot vectors over their known values, in place.

    Args:
        flat_space: makes the features.
        choices: values of each choice, ascending, by path of the leaf and index of the number in it.

    Raises:
        ValueError: if a choice is not a number of a Box.
    """

    def __init__(self, flat_space: FlatSpace, choices: Mapping[tuple[str, int], tuple[float, ...]]):
        super().__init__()
        features = [flat_space.features_of(path).start + index for path, index in choices]
        if not all(bool(flat_space.is_box[feature]) for feature in features):
            raise ValueError(f"choices: expected numbers of Box leaves, got {list(choices)}")
        order = sorted(range(len(features)), key=features.__getitem__)
        keys = list(choices)
        self._keys = [keys[i] for i in order]
        values = [choices[key] for key in self._keys]
        boxes = {path: leaf_bounds(leaf) for path, leaf in leaves(flat_space.space)}
        chosen = {features[i]: number for number, i in enumerate(order)}
        self._segments = Segments([len(each) for each in values])
        self.latent_size = flat_space.size - len(chosen) + self._segments.total
        plain: list[int] = []  # places in z
        hot: list[int] = []
        position = 0
        for feature in range(flat_space.size):
            size = len(values[chosen[feature]]) if feature in chosen else 1
            (hot if feature in chosen else plain).extend(range(position, position + size))
            position += size
        sources = [feature for feature in range(flat_space.size) if feature not in chosen]
        for name, indices in {"plain": plain, "hot": hot, "sources": sources, "features": sorted(chosen)}.items():
            self.register_buffer(name, torch.tensor(indices, dtype=torch.int64), persistent=False)
        exact = torch.full((len(values), self._segments.longest), torch.inf, dtype=torch.float64)
        for row, each in enumerate(values):
            exact[row, : len(each)] = torch.tensor(each, dtype=torch.float64)
        centre, half_range = (
            part[self._index("features")].double().unsqueeze(-1) for part in (flat_space.center, flat_space.half_range)
        )
        known = (exact - centre) / half_range
        gaps = known.diff(dim=-1).nan_to_num(torch.inf).amin(dim=-1) if known.shape[1] > 1 else torch.ones(len(values))
        for row, (path, index) in enumerate(self._keys):  # recorded values may lie outside of their space
            low, high = (float(bound.reshape(-1)[index]) for bound in boxes[path])
            exact[row, : len(values[row])] = exact[row, : len(values[row])].clamp(low, high)
        for name, tensor in {"exact_values": exact, "known": known.float(), "gap": gaps.clamp(max=1.0).float()}.items():
            self.register_buffer(name, tensor, persistent=False)
        self._warned = False

    def expand(self, z: Tensor, features: Tensor) -> Tensor:
        """Return z (..., D) of standardised features ``z`` (..., F) and the features (..., F) themselves.

        Warns:
            UserWarning: once, on a CPU, if a value is not one of the known ones.
        """
        given = features[..., self._index("features")].unsqueeze(-1)  # (..., C, 1)
        distance, index = (given - cast(Tensor, self.known)).abs().min(dim=-1)  # NaN, if the number is missing
        if not self._warned and distance.device.type == "cpu":
            unknown = distance > UNKNOWN * cast(Tensor, self.gap)
            if bool(unknown.any()):
                self._warned = True
                column = int(unknown.reshape(-1, unknown.shape[-1]).any(dim=0).nonzero()[0])
                path, number = self._keys[column]
                warnings.warn(
                    f"observation {path!r}[{number}]: expected one of the values of the training data, got another one; the "
                    "nearest counts. Fit again with data that contain it",
                    stacklevel=3,
                )
        values = torch.arange(self._segments.longest, device=z.device)
        result = z.new_empty(*z.shape[:-1], self.latent_size)
        result[..., self._index("plain")] = z[..., self._index("sources")]
        hot = torch.where(given.isnan(), torch.nan, (index.unsqueeze(-1) == values).to(z.dtype))
        result[..., self._index("hot")] = self._segments.flat(hot)
        return result

    def collapse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return standardised features (..., F), 0 for choices, and the index of the value of each choice (..., C)."""
        if z.shape[-1] != self.latent_size:
            raise ValueError(f"z: expected shape (..., {self.latent_size}), got {tuple(z.shape)}")
        size = len(cast(Tensor, self.sources)) + len(cast(Tensor, self.features))
        features = z.new_zeros(*z.shape[:-1], size)
        features[..., self._index("sources")] = z[..., self._index("plain")]
        return features, self._segments.rows(z[..., self._index("hot")], -torch.inf).argmax(dim=-1)

    def exact(self, leaf: Mapping[str, Any], index: Tensor) -> dict[str, Tensor]:
        """Return the leaves that hold choices, with their exact values.

        Args:
            leaf: tensors (..., *shape) by path.
            index: (..., C) index of the value of each choice.
        """
        changed: dict[str, Tensor] = {}
        values = cast(Tensor, self.exact_values)
        for column, (path, number) in enumerate(self._keys):
            old = changed.get(path, leaf[path])
            flat = old.reshape(*index.shape[:-1], -1).clone()
            flat[..., number] = values[column][index[..., column]].to(flat.dtype)
            changed[path] = flat.reshape(old.shape)
        return changed

    def _index(self, name: str) -> Tensor:
        return cast(Tensor, getattr(self, name))
