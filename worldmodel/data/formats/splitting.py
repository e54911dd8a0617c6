"""Split the rows of a source into episodes, and check each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from worldmodel.data.formats.config import SECONDS, Columns, ConversionConfig
from worldmodel.data.formats.rows import Recording, Rows, Source, missing_in
from worldmodel.data.missing import interpolated

EXACT = 2**53  # float64 cannot tell larger integers apart


class Episodes:
    """The recordings of a source, in order; an iterator that checks every row.

    Args:
        source: the data.
        columns: all names resolved.
        config: how to split.
        max_steps: longest recording.
        skipped: columns of observations that are not read.

    Attributes:
        counts: how many episodes were split, cut, or left out, by the reason in words; complete after the iteration.
        read: how much of the source's total was read.
    """

    def __init__(
        self, source: Source, columns: Columns, config: ConversionConfig, *, max_steps: int, skipped: Sequence[str] = ()
    ):
        self.columns, self.config, self._source, self._max_steps = columns, config, source, max_steps
        self._observed = [name for name in columns.observation if name not in skipped and name not in source.images]
        extra = [columns.episode, columns.time, columns.next_observation]
        self._names = [*self._observed, *columns.steps, *filter(None, extra)]
        self._actions = [*columns.action, *filter(None, [columns.reward])]
        self.counts: dict[str, int] = {}
        self.read = 0
        self._waiting: list[Rows] = []
        self._count = 0
        self._fragment = False
        self._label: Any = None
        self._seen: set[Any] = set()
        self._last: dict[str, Any] = {}  # of the row before: time, whether it ended, or lacked its action

    def __iter__(self) -> Iterator[Recording]:
        """Yield the recordings.

        Raises:
            ValueError: naming the row that is wrong.
        """
        for piece, read in self._source.pieces(self._names):
            self.read = read
            rows = self._with_nan(self._padded(piece) if piece.complete else piece)
            if len(rows) == 0:
                if rows.complete:
                    raise ValueError(f"{rows.source}: expected at least two rows in each episode, got an empty episode")
                continue
            begins, kept, is_fragment = self._boundaries(rows)
            starts = np.flatnonzero(begins).tolist()
            for start, stop in zip([0, *starts], [*starts, len(rows)], strict=True):
                if start == stop:
                    continue
                if begins[start]:
                    yield from self._finish(cut=bool(is_fragment[start]))
                    self._fragment = bool(is_fragment[start])
                stop = start + int(kept[start:stop].sum())  # a row that is left out is the last of its part
                if start < stop:
                    yield from self._add(rows.part(start, stop))
        yield from self._finish()

    def _padded(self, piece: Rows) -> Rows:
        """Give a complete episode as many steps as observations, the last of which is missing."""
        for name in self._names:
            if name not in piece.values:
                raise ValueError(f"{piece.source}: expected {name!r} in each episode, got {', '.join(piece.values)}")
        sizes = {name: len(piece.values[name]) for name in self._names}
        steps = {name: size for name, size in sizes.items() if name in self.columns.steps}
        size = sizes[self._observed[0]] if self._observed else max(sizes.values())
        for name, count in sizes.items():
            allowed = (size, size - 1) if name in steps else (size,)
            if count not in allowed or len(set(steps.values())) > 1:
                raise ValueError(
                    f"{piece.source}: expected T or T + 1 observations for T actions, got {size} rows of the observation and "
                    f"{count} of {name!r}"
                )
        short = [name for name, count in steps.items() if count < size and count > 0]
        values = {name: piece.values[name] for name in self._names}
        values |= {name: np.concatenate([values[name], np.zeros_like(values[name][:1])]) for name in short}
        mask = np.arange(size) == size - 1
        return replace(piece, values=values, missing=dict(piece.missing) | dict.fromkeys(short, mask), begins=True)

    def _with_nan(self, rows: Rows) -> Rows:
        """Give missing real numbers of the observation the value NaN, if such rows are kept."""
        chosen = [name for name in self._observed if name in rows.missing and self._may_lack(rows, name)]
        values = {name: rows.values[name].copy() for name in chosen}
        for name, value in values.items():
            value[rows.missing[name]] = np.nan
        return replace(rows, values={**rows.values, **values}) if values else rows

    def _may_lack(self, rows: Rows, name: str) -> bool:
        """Whether rows that lack a number of a column of the observation are kept."""
        return self.config.missing in ("mask", "interpolate") and rows.values[name].dtype.kind == "f"

    def _boundaries(self, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which rows begin a recording, which are kept, and which begin a part of an episode: (N,) bool each."""
        self._check_numbers(rows)
        n, labels = len(rows), self._labels(rows)
        natural = np.zeros(n, dtype=bool)
        natural[0] = rows.begins or labels[0] != self._last.get("label", labels[0])
        natural[1:] = labels[1:] != labels[:-1] if self.columns.episode and not rows.complete else False
        ended = self._flags(rows)
        before = np.concatenate([[self._last.get("ended", False)], ended[:-1]]).astype(bool)
        no_observation, no_action, some_missing = self._missing(rows)
        lacking = np.concatenate([[self._last.get("no_action", False)], no_action[:-1]]).astype(bool)
        if not self.columns.episode and not rows.complete:
            natural |= before
        self._check_ends(rows, before & ~natural & ~no_action)
        new = natural.copy()
        if self.config.missing != "split":
            self._refuse_missing(rows, some_missing, lacking & ~natural)
        gone = np.concatenate([[self._last.get("gone", False)], no_observation[:-1]]).astype(bool)
        if no_observation.any():
            self._note("left out rows that lack a number of the observation", int(no_observation.sum()))
        new |= gone | lacking
        new |= self._gaps(rows, natural)
        self._check_labels(rows, labels, natural)
        self._last |= {
            "ended": bool(ended[-1]),
            "no_action": bool(no_action[-1]),
            "gone": bool(no_observation[-1]),
            "label": labels[-1],
            "where": rows.where(n - 1),
        }
        return new, ~no_observation, new & ~natural

    def _check_numbers(self, rows: Rows) -> None:
        """Raise unless all columns but the episode's hold finite numbers or NaN."""
        for name in self._names:
            value = rows.values[name]
            if name != self.columns.episode and value.dtype.kind not in "biuf":
                raise ValueError(f"{rows.where(0)}: expected numbers in {name!r}, got {_text(value)}")
            if value.dtype.kind == "f":
                infinite = np.isinf(value.reshape(len(value), -1)).any(axis=1)
                if infinite.any():
                    row = int(np.argmax(infinite))
                    raise ValueError(f"{rows.where(row)}: expected finite numbers in {name!r}, got {value[row]}")

    def _labels(self, rows: Rows) -> np.ndarray:
        """Return the name of each row's episode, (N,)."""
        if rows.complete:
            return np.full(len(rows), rows.label, dtype=object)
        name = self.columns.episode
        if not name:
            return np.zeros(len(rows), dtype=np.int64)
        labels = rows.values[name]
        if labels.ndim != 1:
            raise ValueError(f"{rows.where(0)}: expected one name or number per row in {name!r}, got shape {labels.shape[1:]}")
        wrong = missing_in(rows, name)
        if labels.dtype.kind == "f":
            wrong = wrong | (labels != np.round(labels)) | (np.abs(labels) >= EXACT)
        elif labels.dtype.kind == "O":
            wrong = wrong | np.array([label is None or label == "" for label in labels], dtype=bool)
        if wrong.any():
            row = int(np.argmax(wrong))
            got = labels[row].item() if isinstance(labels[row], np.generic) else labels[row]
            raise ValueError(
                f"{rows.where(row)}: expected the name of an episode in {name!r}, or its number below 2^53, got {got!r}"
            )
        return labels.astype(np.int64) if labels.dtype.kind in "bf" else labels

    def _check_labels(self, rows: Rows, labels: np.ndarray, natural: np.ndarray) -> None:
        if rows.begins:
            self._seen.clear()
        if not self.columns.episode or rows.complete:
            return
        for row in np.flatnonzero(natural | (np.arange(len(rows)) == 0) & (not self._seen)).tolist():
            label = labels[row].item() if isinstance(labels[row], np.generic) else labels[row]
            if label in self._seen:
                raise ValueError(
                    f"{rows.where(row)}: expected the rows of an episode to follow each other, got {self.columns.episode} "
                    f"{label!r} again; sort the rows by episode and time"
                )
            self._seen.add(label)

    def _flags(self, rows: Rows) -> np.ndarray:
        """Return whether the episode ended with each row's step, (N,) bool."""
        ended = np.zeros(len(rows), dtype=bool)
        for name in filter(None, (self.columns.termination, self.columns.truncation)):
            flags = rows.values[name]
            missing = missing_in(rows, name)
            wrong = ~np.isin(flags, (0, 1)) & ~missing if flags.dtype.kind in "biuf" else np.ones(len(flags), dtype=bool)
            if flags.ndim != 1 or wrong.any():
                row = int(np.argmax(wrong)) if flags.ndim == 1 else 0
                raise ValueError(f"{rows.where(row)}: expected 0 or 1 in {name!r}, got {flags[row]}")
            ended |= (flags == 1) & ~missing
        return ended

    def _check_ends(self, rows: Rows, early: np.ndarray) -> None:
        if early.any():
            row = int(np.argmax(early))
            where = rows.where(row - 1) if row else self._last["where"]
            raise ValueError(
                f"{where}: expected termination and truncation only in the last row of an episode, got one and then another row"
            )

    def _missing(self, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which rows lack a number of the observation, only of the step, or any: (N,) bool each."""
        no_observation = np.zeros(len(rows), dtype=bool)
        kept = [name for name in self._observed if self._may_lack(rows, name)]
        for name in [*self._observed, *filter(None, [self.columns.time])]:
            if name not in kept:
                no_observation |= missing_in(rows, name)
        none, every = np.zeros(len(rows), dtype=bool), np.ones(len(rows), dtype=bool)
        for name in self._actions or self.columns.steps:
            missing = missing_in(rows, name)
            none, every = none | missing, every & missing
        for name in filter(None, (self.columns.termination, self.columns.truncation)):
            none = none | missing_in(rows, name)  # an unknown end is not "no end"
        no_action = none & ~no_observation
        return no_observation, no_action, no_observation | (none & ~every)

    def _refuse_missing(self, rows: Rows, some: np.ndarray, without_action: np.ndarray) -> None:
        if some.any():
            row = int(np.argmax(some))
            lacking = [one for one in self._names if missing_in(rows, one)[row]]
            name = next((one for one in lacking if one not in self._observed or not self._may_lack(rows, one)), lacking[0])
            what, where = f"a number in {name!r}", rows.where(row)
        elif without_action.any():
            row = int(np.argmax(without_action))
            where = rows.where(row - 1) if row else self._last["where"]
            what = f"a number in {', '.join(map(repr, self._actions))}, as this is not the last row of an episode"
        else:
            return
        raise ValueError(
            f"{where}: expected {what}, got none; {self._advice(bool(some.any()))}, or leave such rows out and split the "
            "episode there (missing='split', --missing split)"
        )

    def _advice(self, in_observation: bool) -> str:
        if in_observation and self.config.missing == "error":
            return "keep such rows and train on what was observed (missing='mask', --missing mask)"
        return "fill it"

    def _gaps(self, rows: Rows, natural: np.ndarray) -> np.ndarray:
        """Check that times ascend within each episode, and return the rows after a gap, (N,) bool."""
        name = self.columns.time
        if not name:
            return np.zeros(len(rows), dtype=bool)
        time = rows.values[name]
        if time.dtype.kind not in "iuf" or time.ndim != 1:
            raise ValueError(f"{rows.where(0)}: expected numbers as times in {name!r}, got {time.dtype} of shape {time.shape}")
        time = time.astype(np.int64) if time.dtype.kind == "u" else time  # differences of unsigned integers wrap
        step = np.diff(time, prepend=self._last.get("time", time[0]))
        first = natural | (np.arange(len(rows)) == 0) & ("time" not in self._last)
        wrong = ~first & (step <= 0)
        if wrong.any():
            row = int(np.argmax(wrong))
            before = time[row - 1] if row else self._last["time"]
            kind = "a repeated time" if step[row] == 0 else f"{time[row]} after {before}"
            hint = "" if self.columns.episode else ", or name the column of the episode (episode, --episode)"
            raise ValueError(f"{rows.where(row)}: expected ascending times in {name!r}, got {kind}; sort the rows{hint}")
        known = time[~np.isnan(time)] if time.dtype.kind == "f" else time
        if len(known):
            self._last["time"] = known[-1]
        unit = 1.0 if rows.seconds else SECONDS[self.config.time_unit]
        return step * unit > self.config.max_gap if self.config.max_gap is not None else np.zeros(len(rows), dtype=bool)

    def _add(self, part: Rows) -> Iterator[Recording]:
        """Append rows to the current recording; yield those that reach the longest length."""
        while self._count + len(part) > self._max_steps + 1:
            taken = self._max_steps + 1 - self._count
            if taken:
                self._waiting.append(part.part(0, taken))
                self._count += taken
            last = self._waiting[-1]
            yield self._emit(fragment=True, cut=True)
            self._note("cut episodes that are longer than the limit")
            self._fragment, self._waiting, self._count = (
                True,
                [last.part(len(last) - 1, len(last))],
                1,
            )
            part = part.part(taken, len(part))
        self._waiting.append(part)
        self._count += len(part)

    def _finish(self, *, cut: bool = False) -> Iterator[Recording]:
        """Yield the current recording; ``cut`` says that the episode continues in the source."""
        if self._count == 0:
            return
        fragment = self._fragment or cut
        if self._count == 1 and not self.columns.next_observation:
            if not fragment:
                raise ValueError(
                    f"{self._waiting[0].where(0)}: expected at least two rows in each episode, got an episode of one, "
                    "without a step"
                )
            self._note("left out parts of a single row, which have no step")
        else:
            yield self._emit(fragment=fragment)
        self._waiting, self._count, self._fragment = [], 0, False

    def _emit(self, *, fragment: bool, cut: bool = False) -> Recording:
        parts, first = self._waiting, self._waiting[0]
        values = {name: _joined([part.values[name] for part in parts], name, first.where(0)) for name in self._names}
        last = parts[-1]
        lacks = any(missing_in(last, name)[-1] for name in self._actions + [n for n in self.columns.steps if n in last.missing])
        following = values.pop(self.columns.next_observation or "", None)
        count, dropped = self._count, False
        if following is not None and not cut:
            name = self._observed[0]
            values[name] = np.concatenate([values[name], following[-1:].astype(values[name].dtype)])
            count += 1
        else:
            dropped = bool(self.columns.steps) and not lacks and not cut
            ends = [] if cut or count < 2 else [self.columns.termination, self.columns.truncation]
            for flag in filter(None, ends):
                if values[flag][-1] == 1:
                    values[flag] = values[flag].copy()
                    values[flag][-2] = values[flag][-1]
                    self._note(f"moved {flag!r} of the last row one step back, to the last step that is kept")
            values |= {name: values[name][:-1] for name in self.columns.steps}
        self._treat_missing(values, first.where(0))
        if dropped and self.columns.action:
            self._note("dropped the last action, as the observation after it was not recorded")
        label = first.label if first.complete else self._labels(first)[0] if self.columns.episode else None
        label = label.item() if isinstance(label, np.generic) else label
        return Recording(values, count, label, first.index, first.where(0), fragment, first.seconds)

    def _treat_missing(self, values: dict[str, np.ndarray], where: str) -> None:
        """Count the rows of a recording that lack a number of the observation; with "interpolate", fill them."""
        lacking = {name: np.isnan(values[name]) for name in self._observed if values[name].dtype.kind == "f"}
        lacking = {name: mask.reshape(len(mask), -1) for name, mask in lacking.items() if mask.any()}
        if not lacking:
            return
        fills = self.config.missing == "interpolate"
        rows = np.stack([mask.any(axis=1) for mask in lacking.values()]).any(axis=0)
        self._note(f"{'filled' if fills else 'kept'} rows that lack a number of the observation", int(rows.sum()))
        for name, mask in lacking.items() if fills else ():
            if mask.all(axis=0).any():
                raise ValueError(
                    f"{where}: expected a number in {name!r} in some row of the episode, to interpolate, got none; leave the "
                    "column or the episode out, or keep such rows (missing='mask', --missing mask)"
                )
            value, time = values[name], values.get(self.columns.time or "", np.arange(0))
            at = time if len(time) == len(value) else np.arange(len(value))
            filled = interpolated(value.reshape(mask.shape), at.astype(np.float64))
            values[name] = filled.reshape(value.shape).astype(value.dtype)

    def _note(self, what: str, count: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + count


def _text(value: np.ndarray) -> str:
    """Describe values that are no numbers."""
    if value.dtype.kind not in "OUS" or not len(value):
        return str(value.dtype)
    other = next((one for one in value if not isinstance(one, (int, float))), value[0])
    return f"mixed types, such as {other!r}" if value.dtype.kind == "O" else repr(str(other))


def _joined(parts: list[np.ndarray], name: str, where: str) -> np.ndarray:
    """Concatenate the rows of a column, which must agree in shape and dtype."""
    for part in parts[1:]:
        if part.shape[1:] != parts[0].shape[1:] or part.dtype != parts[0].dtype:
            raise ValueError(
                f"{where}: expected {name!r} to be {parts[0].dtype} of shape {parts[0].shape[1:]} in all rows, got "
                f"{part.dtype} of shape {part.shape[1:]} in the same episode"
            )
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
