"""`LatentLayout`: the parts of z, the kind of each, and where it lies in z.

A part is a run of numbers of z that one kind of head predicts. `worldmodel.models.find_layout` makes a layout from an
observation space and data; `worldmodel.mixtures.CompositeHead` predicts z with one head per kind.

====================  ==============================================================  ====================================
`PartKind`            meaning                                                         predicted by
====================  ==============================================================  ====================================
``continuous``        real numbers                                                    a density (the configured head)
``image``             latents of an image                                             the same density
``integer``           integers of more than 256 values                                the same density; rounded in `decode`
``mostly_unchanged``  real numbers that stay the same in more than half of the steps  an atom at "no change", or a density
``choice``            one of n values, one-hot                                        a categorical distribution
``bits``              zeros and ones                                                  Bernoulli distributions
``episode_constant``  the same throughout each episode                                copied
``constant``          the same in all data                                            copied
====================  ==============================================================  ====================================
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from worldmodel.runtime import check_integers


class PartKind(str, enum.Enum):
    """Kind of a part of z; see the module's table."""

    CONTINUOUS = "continuous"
    MOSTLY_UNCHANGED = "mostly_unchanged"
    INTEGER = "integer"
    CHOICE = "choice"
    BITS = "bits"
    EPISODE_CONSTANT = "episode_constant"
    CONSTANT = "constant"
    IMAGE = "image"


DENSITIES = (PartKind.CONTINUOUS, PartKind.INTEGER, PartKind.IMAGE)  # predicted by the configured head
COPIED = (PartKind.EPISODE_CONSTANT, PartKind.CONSTANT)


@dataclass(frozen=True, kw_only=True)
class LatentPart:
    """A run of numbers of z of one kind.

    Args:
        name: the leaf of the observation, with the indices of its numbers if the leaf has several parts: "arm[0:3]".
        kind: what the numbers are.
        start: index of the first number in z.
        size: how many numbers of z; n for a choice among n values.
        path: path of the leaf, as in `worldmodel.spaces.leaves`; empty for a bare space.
        first: index of the first number in the flattened leaf.
        count: how many numbers of the leaf.
        values: the values of a choice among numbers of a Box, ascending; None for other parts.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if a field is out of range.
    """

    name: str
    kind: PartKind
    start: int
    size: int
    path: str = ""
    first: int = 0
    count: int = 1
    values: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        object.__setattr__(self, "kind", PartKind(self.kind))
        check_integers(self, {"start": 0, "size": 1, "first": 0, "count": 1})
        if self.values is not None:
            values = tuple(float(value) for value in self.values)
            object.__setattr__(self, "values", values)
            if self.kind is not PartKind.CHOICE or len(values) != self.size or sorted(set(values)) != list(values):
                raise ValueError(
                    f"values of {self.name!r}: expected {self.size} ascending numbers for a choice, got {values} for "
                    f"{self.kind.value!r}"
                )

    @property
    def stop(self) -> int:
        """Index after the last number in z."""
        return self.start + self.size

    def __str__(self) -> str:
        """Describe the part: what it is of, and what it is."""
        kind = f"choice of {self.size}" if self.kind is PartKind.CHOICE else self.kind.value.replace("_", " ")
        return f"{self.name or 'observation'}: {kind}{_short(self.values)}"


def _short(values: tuple[float, ...] | None) -> str:
    if values is None:
        return ""
    shown = [f"{value:g}" for value in values]
    return f" ({', '.join(shown if len(shown) <= 6 else [*shown[:3], '...', shown[-1]])})"


@dataclass(frozen=True)
class LatentLayout:
    """The parts of z, in order and without gaps.

    Args:
        parts: the parts.

    Raises:
        ValueError: if a part does not begin where the one before it ends, or there is none.
    """

    parts: tuple[LatentPart, ...]

    def __post_init__(self) -> None:
        """Check that the parts follow each other."""
        object.__setattr__(self, "parts", tuple(self.parts))
        stop = 0
        for part in self.parts:
            if part.start != stop:
                raise ValueError(f"layout: expected {part.name!r} to start at {stop}, got {part.start}")
            stop = part.stop
        if stop == 0:
            raise ValueError("layout: expected at least one part, got none")

    @property
    def latent_size(self) -> int:
        """D, size of z."""
        return self.parts[-1].stop

    @property
    def is_density(self) -> bool:
        """Whether one density describes all of z, as if there were no layout."""
        return all(part.kind in DENSITIES for part in self.parts)

    @property
    def num_variables(self) -> int:
        """Number of random variables: each number of a density or bit, and each choice, counts as one; constants as none."""
        sizes = (1 if part.kind is PartKind.CHOICE else part.size for part in self.parts if part.kind not in COPIED)
        return sum(sizes)

    def columns(self, *kinds: PartKind) -> list[int]:
        """Return the indices in z of all parts of some kinds, ascending."""
        return [column for part in self.parts if part.kind in kinds for column in range(part.start, part.stop)]

    def kinds(self) -> dict[str, str]:
        """Return the kind of each part by name, as `worldmodel.models.find_layout` takes them; images are left out."""
        parts = (part for part in self.parts if part.kind is not PartKind.IMAGE)
        return {
            part.name: part.kind.value if part.values is None else f"{part.kind.value}({', '.join(map(repr, part.values))})"
            for part in parts
        }

    def choice_sizes(self) -> list[int]:
        """Return the number of values of each choice, in the order of z."""
        return [part.size for part in self.parts if part.kind is PartKind.CHOICE]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the parts as JSON-serialisable data."""
        rows = []
        for part in self.parts:
            row = asdict(part) | {"kind": part.kind.value, "values": None if part.values is None else list(part.values)}
            rows.append({name: value for name, value in row.items() if value is not None})
        return rows

    @classmethod
    def from_json(cls, rows: list[Mapping[str, Any]]) -> LatentLayout:
        """Make a layout from what `to_json` returned.

        Raises:
            ValueError: if a part is damaged.
            TypeError: if a part has another field or lacks one.
        """
        return cls(tuple(LatentPart(**row) for row in rows))

    def __str__(self) -> str:
        """Describe all parts in a line each; equal neighbours of one leaf are joined."""
        lines: list[tuple[str, int]] = []
        for part in self.parts:
            kind = str(part).partition(": ")[2]
            leaf = part.path or part.name.partition("[")[0] or "observation"
            whole = part.name == part.path
            line = str(part) if whole or part.kind is not PartKind.CHOICE else f"{leaf}: {kind}"
            if lines and lines[-1][0] == line:
                lines[-1] = (line, lines[-1][1] + part.count)
            else:
                lines.append((line, part.count))
        return "\n".join(line + (f" (x {count})" if count > 1 else "") for line, count in lines)
