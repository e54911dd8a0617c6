"""Find the layout of z: the kind of each number of an observation, from its space and the data.

A Discrete, MultiDiscrete or MultiBinary leaf holds choices or bits. What a Box holds is decided by the data, for each number:

1. one value in all data: ``constant``;
2. equal throughout every episode, in at least `MIN_EPISODES` of them: ``episode_constant``;
3. integers with at most 256 values in the data: ``choice`` among these values;
4. unchanged in more than half of the steps: ``mostly_unchanged``;
5. other integers: ``integer``; other numbers: ``continuous``.

Rules 1 and 2 hold for choices and bits, too. ``kinds`` overrides the rules by leaf, or by numbers of a leaf.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from worldmodel.data import EpisodeCollection
from worldmodel.mixtures import COPIED, LatentLayout, LatentPart, PartKind
from worldmodel.models.encoded import EncodedObservations
from worldmodel.models.evidence import MAX_VALUES, Evidence, Leaf
from worldmodel.models.state_normalizer import StateNormalizer
from worldmodel.models.vision import Vision
from worldmodel.spaces import Value, leaf_values, leaves

MIN_EPISODES = 20  # in which a number must be constant to count as constant within an episode
MOSTLY = 0.5  # share of the steps
MAX_ONE_HOT = 4096  # numbers of z that the integers of one leaf may take as choices
FEW_VALUES, VISITS = 16, 50  # a float with at most so many values, each visited so often on average, looks like a choice
KEY = re.compile(r"(?P<path>.*?)(?:\[(?P<first>\d+)(?::(?P<stop>\d+))?\])?")


@dataclass(frozen=True)
class _Declared:
    """What the caller says about a number: its kind and, for a choice among numbers, its values."""

    kind: PartKind
    values: tuple[float, ...] | None = None


def find_layout(
    episodes: EpisodeCollection,
    vision: Vision | None = None,
    *,
    kinds: Mapping[str, str] | None = None,
    complete: bool = False,
) -> LatentLayout:
    """Find the layout of z for a V and data, in one pass over the episodes.

    Args:
        episodes: the data: observations, or codes of ``vision``.
        vision: a trained V; its z is given, so that numbers of a Box cannot become one-hot. None is for the `StateNormalizer`
            that `vision_for` makes of the layout.
        kinds: kinds by leaf ("gear"), or by numbers of a leaf ("state[3]", "state[0:3]"; "[3]" if the observation is one Box).
            A choice among numbers may list its values, "choice(1, 2.5)"; else they are those in the data. `LatentLayout.kinds`
            gives those of a layout.
        complete: whether ``kinds`` must name every number, so that nothing is found from the data, which are only checked.

    Returns:
        The layout. If V has no vectors (`Vision.vector_part`), it is one part.

    Raises:
        ValueError: if ``kinds`` contradicts the spaces or the data, or an observation is not finite or outside of
            its discrete space; the message names the value and the fix.

    Warns:
        UserWarning: if numbers lie outside of a bounded Box, if values of a float Box look like choices, if integers take too
            many values to be choices, or if numbers are constant in each of fewer than `MIN_EPISODES` episodes.
    """
    vectors = None if vision is None else vision.vector_part
    if vision is not None and vectors is None:
        if kinds:
            raise ValueError(f"kinds: expected none for {type(vision).__name__}, which encodes no vectors, got {dict(kinds)}")
        if len(vision.image_layouts) > 1:
            return LatentLayout(tuple(_image_parts(vision)))
        kind = PartKind.IMAGE if vision.image_layout is not None else PartKind.CONTINUOUS
        return LatentLayout((LatentPart(name="", kind=kind, start=0, size=vision.latent_size),))
    space = episodes.observation_space if vectors is None else vectors.observation_space
    found = [Leaf(path, leaf) for path, leaf in leaves(space)]
    declared = _declared(found, kinds or {})
    if complete:
        _require_all(found, declared)
    evidence = _collect(episodes, found, declared, vision)
    parts = [] if vision is None else _image_parts(vision)
    for leaf, each in zip(found, evidence, strict=True):
        decided = _decide(each, declared[leaf.path], vectors)
        for part in _parts(leaf, decided):
            start = parts[-1].stop if parts else 0
            parts.append(LatentPart(**{**part, "start": start}))
    return LatentLayout(tuple(parts))


def _image_parts(vision: Vision) -> list[LatentPart]:
    """Return the parts of the latents of images, which are the first ones."""
    parts: list[LatentPart] = []
    for image, size in zip(vision.image_layouts, vision.image_latent_sizes, strict=True):
        start = parts[-1].stop if parts else 0
        parts.append(LatentPart(name=image.path, kind=PartKind.IMAGE, start=start, size=size))
    return parts


def vision_for(space: Any, layout: LatentLayout) -> StateNormalizer:
    """Return a new `StateNormalizer`, not fitted, whose z has a layout."""
    return StateNormalizer(space, {(part.path, part.first): part.values for part in layout.parts if part.values is not None})


def _declared(found: Sequence[Leaf], kinds: Mapping[str, str]) -> dict[str, dict[int, _Declared]]:
    """Return what ``kinds`` says about the numbers of each leaf."""
    by_path = {leaf.path: leaf for leaf in found}
    declared: dict[str, dict[int, _Declared]] = {path: {} for path in by_path}
    for key, kind in kinds.items():
        match = KEY.fullmatch(key)
        path = key if key in by_path or match is None else match["path"]
        if path not in by_path:
            raise ValueError(f"kinds: expected leaves of the observation, {sorted(by_path)}, got {key!r}")
        leaf, first, stop = by_path[path], 0, by_path[path].count
        if key != path and match is not None:
            first = int(match["first"])
            stop = int(match["stop"] or first + 1)
        if not 0 <= first < stop <= leaf.count:
            raise ValueError(f"kinds: expected numbers 0 to {leaf.count - 1} of {path!r}, got {key!r}")
        chosen = _read_kind(key, kind, leaf)
        declared[path] |= dict.fromkeys(range(first, stop), chosen)
    return declared


def _read_kind(key: str, given: str, leaf: Leaf) -> _Declared:
    """Read a kind, with the values of a choice in parentheses."""
    name, _, listed = str(getattr(given, "value", given)).partition("(")
    name = name.strip()
    if name not in _allowed(leaf):
        raise ValueError(f"kinds[{key!r}]: expected one of {_allowed(leaf)} for {leaf.space}, got {given!r}")
    if not listed:
        return _Declared(PartKind(name))
    try:
        values = tuple(sorted({float(value) for value in listed.removesuffix(")").split(",")}))
    except ValueError as error:
        raise ValueError(f"kinds[{key!r}]: expected numbers in parentheses, as in 'choice(1, 2.5)', got {given!r}") from error
    if name != PartKind.CHOICE.value or not leaf.is_box:
        raise ValueError(f"kinds[{key!r}]: expected values only of a choice among numbers of a Box, got {given!r}")
    return _Declared(PartKind.CHOICE, values)


def _allowed(leaf: Leaf) -> list[str]:
    copied = [PartKind.EPISODE_CONSTANT, PartKind.CONSTANT]
    if leaf.is_box:
        integer = [PartKind.INTEGER] if leaf.is_integer else []
        kinds = [PartKind.CONTINUOUS, PartKind.MOSTLY_UNCHANGED, *integer, PartKind.CHOICE, *copied]
    else:
        kinds = [PartKind.BITS if isinstance(leaf.space, spaces.MultiBinary) else PartKind.CHOICE, *copied]
    return [kind.value for kind in kinds]


def _require_all(found: Sequence[Leaf], declared: Mapping[str, Mapping[int, _Declared]]) -> None:
    for leaf in found:
        if missing := sorted(set(range(leaf.count)) - set(declared[leaf.path])):
            raise ValueError(
                f"layout: expected a kind for each number of the observation, got none for {leaf.name(missing[0])!r}"
            )


def _collect(
    episodes: EpisodeCollection,
    found: Sequence[Leaf],
    declared: Mapping[str, Mapping[int, _Declared]],
    vision: Vision | None,
) -> list[Evidence]:
    """Read all episodes and return the evidence about each leaf."""
    missing = episodes.missing
    evidence = [Evidence(leaf, _max_values(leaf, declared[leaf.path]), missing.get(leaf.path, ())) for leaf in found]
    encoded = vision is not None and episodes.observation_space != vision.observation_space
    for index in range(len(episodes)):
        observations = episodes.read(index).observations
        values = leaf_values(_decode_vectors(vision, observations) if encoded and vision is not None else observations)
        for each in evidence:
            each.add(_as_array(values[each.leaf.path]), index)
    return evidence


def _max_values(leaf: Leaf, declared: Mapping[int, _Declared]) -> np.ndarray:
    """Return how many different values of each number are of interest, (N,)."""
    most = np.full(leaf.count, MAX_VALUES if leaf.is_integer else FEW_VALUES if leaf.is_box else 0)
    for index, chosen in declared.items():
        most[index] = MAX_VALUES if leaf.is_box and chosen.kind in (PartKind.CHOICE, PartKind.INTEGER) else 0
    return most


def _decode_vectors(vision: Vision, observations: Value) -> Value:
    """Return the vectors of encoded observations."""
    assert vision.vector_part is not None
    form = EncodedObservations(vision.latent_size, np.asarray(observations["mean"]).dtype.name)
    mean, _ = form.encode(observations)
    return vision.vector_part.decode(mean[:, vision.image_latent_size :].to(next(iter(vision.state_dict().values())).device))


def _as_array(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _decide(evidence: Evidence, declared: Mapping[int, _Declared], vectors: StateNormalizer | None) -> list[_Declared]:
    """Return kind and values of each number of a leaf, and warn of what the caller should know."""
    leaf = evidence.leaf
    decided = [
        _checked(evidence, i, declared[i], vectors) if i in declared else _detected(evidence, i, vectors)
        for i in range(leaf.count)
    ]
    name = f"observation {leaf.path!r}" if leaf.path else "observation"
    one_hot = sum(len(each.values) for each in decided if each.values is not None)
    if one_hot > MAX_ONE_HOT:
        warnings.warn(
            f"{name}: expected at most {MAX_ONE_HOT} values of all its {leaf.count} integers, got {one_hot}: they are "
            "predicted as real numbers and rounded; declare those that matter as choices (kinds)",
            stacklevel=4,
        )
        decided = [
            _Declared(PartKind.INTEGER) if each.values is not None and i not in declared else each
            for i, each in enumerate(decided)
        ]
    if evidence.outside is not None:
        column, value = evidence.outside
        low, high = (bound[column] for bound in leaf.bounds())
        warnings.warn(
            f"observation {leaf.name(column)!r}: expected numbers from {low:g} to {high:g} ({leaf.space}), got {value:g}; "
            "observations of dreams are clipped to the bounds: correct the space if the data are right",
            stacklevel=4,
        )
    unsure = _warn_of_few_episodes(evidence, decided, declared)
    _suggest(evidence, decided, {*declared, *unsure})
    return decided


def _checked(evidence: Evidence, index: int, chosen: _Declared, vectors: StateNormalizer | None) -> _Declared:
    """Return what was declared about a number if the data do not contradict it."""
    leaf = evidence.leaf
    name = leaf.name(index)
    for kind, change, constant in (
        (PartKind.EPISODE_CONSTANT, evidence.within[index], "constant within each episode"),
        (PartKind.CONSTANT, evidence.across[index], "the same in all data"),
    ):
        if chosen.kind is kind and change is not None:
            other = PartKind.CONTINUOUS.value if leaf.is_box else _allowed(leaf)[0]
            raise ValueError(
                f"layout: expected observation {name!r} to be {constant}, as declared, got {change}; declare it as another "
                f"kind, such as kinds={{{name!r}: {other!r}}}"
            )
    if not leaf.is_box or chosen.kind not in (PartKind.CHOICE, PartKind.INTEGER):
        return chosen
    values = evidence.values[index]
    if values is None:
        if chosen.kind is PartKind.INTEGER:
            return chosen
        raise ValueError(
            f"layout: expected at most {MAX_VALUES} values of observation {name!r}, a choice, got more; declare it as "
            f"{PartKind.CONTINUOUS.value!r}"
        )
    if vectors is not None and (leaf.path, index) not in vectors.choices:
        if chosen.kind is PartKind.INTEGER:
            return chosen
        raise ValueError(
            f"layout: expected no choice among numbers of a Box for a V that was trained before, got observation {name!r}; "
            "leave vision out, or make the number a Discrete observation"
        )
    given = tuple(sorted(values)) if vectors is None else vectors.choices[leaf.path, index]
    given = chosen.values or given
    if unknown := sorted(values - set(given)):
        raise ValueError(
            f"layout: expected observation {name!r} to be one of {list(given)}, got {unknown[0]:g} in the data; add the value"
        )
    return _Declared(PartKind.CHOICE, given)


def _detected(evidence: Evidence, index: int, vectors: StateNormalizer | None) -> _Declared:
    """Return the kind of a number that nothing was declared about; see the module's rules."""
    leaf = evidence.leaf
    if vectors is not None and not leaf.is_box and not vectors.keeps_choices(leaf.path):
        return _Declared(PartKind.CONTINUOUS)  # V standardises its one-hot numbers, as those of earlier versions do
    if vectors is not None and (leaf.path, index) in vectors.choices:
        return _Declared(PartKind.CHOICE, vectors.choices[leaf.path, index])
    if evidence.across[index] is None:
        return _Declared(PartKind.CONSTANT)
    if evidence.within[index] is None and evidence.num_episodes >= MIN_EPISODES:
        return _Declared(PartKind.EPISODE_CONSTANT)
    if not leaf.is_box:
        return _Declared(PartKind.BITS if isinstance(leaf.space, spaces.MultiBinary) else PartKind.CHOICE)
    values = evidence.values[index]
    if leaf.is_integer and values is not None and vectors is None:
        return _Declared(PartKind.CHOICE, tuple(sorted(values)))
    if evidence.unchanged[index] > MOSTLY * evidence.pairs[index]:
        return _Declared(PartKind.MOSTLY_UNCHANGED)
    return _Declared(PartKind.INTEGER if leaf.is_integer else PartKind.CONTINUOUS)


def _warn_of_few_episodes(evidence: Evidence, decided: Sequence[_Declared], declared: Mapping[int, _Declared]) -> set[int]:
    """Warn of numbers that are constant in each of a few episodes, and return their indices."""
    leaf = evidence.leaf
    unsure = {
        index
        for index, each in enumerate(decided)
        if index not in declared and each.kind not in COPIED and evidence.within[index] is None
    }
    if not unsure:
        return unsure
    first = min(unsure)
    last = next(index for index in range(first, leaf.count + 1) if index not in unsure)
    name, kind = leaf.name(slice(first, last)), PartKind.EPISODE_CONSTANT.value
    warnings.warn(
        f"observation {name!r}: expected at least {MIN_EPISODES} episodes to find what is constant within each, got "
        f"{evidence.num_episodes}, and these numbers are constant in each of them: if they are goals or tasks, declare "
        f"kinds={{{name!r}: {kind!r}}} or collect more episodes; they are predicted as {decided[first].kind.value!r} now, so "
        "they may change in dreams",
        stacklevel=5,
    )
    return unsure


def _suggest(evidence: Evidence, decided: Sequence[_Declared], left_out: Collection[int]) -> None:
    """Warn if numbers of a float Box look like choices, except those at some indices."""
    leaf = evidence.leaf
    for index, (each, values) in enumerate(zip(decided, evidence.values, strict=True)):
        if leaf.is_integer or index in left_out or each.kind in COPIED or not values:
            continue
        if evidence.observations >= VISITS * len(values):
            shown = ", ".join(f"{value:g}" for value in sorted(values))
            warnings.warn(
                f"observation {leaf.name(index)!r}: all {evidence.observations} numbers are one of {shown}, as if they were "
                f"choices; to dream exactly these values, declare kinds={{{leaf.name(index)!r}: 'choice'}}; otherwise "
                f"'continuous'",
                stacklevel=5,
            )
            return


def _parts(leaf: Leaf, decided: Sequence[_Declared]) -> list[dict[str, Any]]:
    """Return the parts of a leaf without their places in z: runs of numbers of one kind; each choice is a part."""
    sizes = _sizes(leaf, decided)
    parts: list[dict[str, Any]] = []
    for index, (each, size) in enumerate(zip(decided, sizes, strict=True)):
        last = parts[-1] if parts else None
        if last is not None and last["kind"] is each.kind and each.kind is not PartKind.CHOICE:
            last["count"] += 1
            last["size"] += size
        else:
            parts.append(
                {"kind": each.kind, "size": size, "path": leaf.path, "first": index, "count": 1, "values": each.values}
            )
    for part in parts:
        part["name"] = leaf.name(slice(part["first"], part["first"] + part["count"]))
    return parts


def _sizes(leaf: Leaf, decided: Sequence[_Declared]) -> list[int]:
    """Return how many numbers of z each number of a leaf takes."""
    if isinstance(leaf.space, spaces.Discrete):
        return [int(leaf.space.n)]
    if isinstance(leaf.space, spaces.MultiDiscrete):
        return [int(n) for n in leaf.space.nvec.reshape(-1)]
    return [1 if each.values is None else len(each.values) for each in decided]
