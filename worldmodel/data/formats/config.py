"""Names of the columns of recorded data, and how they become episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from worldmodel.runtime import check_flags, check_integers, check_names, check_numbers

TimeUnit = Literal["s", "ms", "us", "ns"]
Missing = Literal["mask", "error", "split", "interpolate"]
SECONDS: dict[TimeUnit, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
GUESSES = {  # names that are recognised, in lower case; the first that exists counts
    "action": ("action", "actions", "command", "commands", "control", "controls"),
    "reward": ("reward", "rewards", "next.reward"),
    "termination": ("termination", "terminations", "terminated", "terminal", "terminals", "done", "dones"),
    "truncation": ("truncation", "truncations", "truncated", "timeout", "timeouts"),
    "episode": ("episode", "episode_id", "episode_index", "episodes", "trajectory", "run", "trial", "demo"),
    "time": ("time", "timestamp", "timestamps", "t"),
    "next_observation": ("next_observation", "next_observations"),
}
OBSERVATIONS = ("observation", "observations", "obs")
IGNORED = ("index", "frame_index", "task_index", "step", "seed", "row")  # numbers of rows, not measurements


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns, keys or data sets. None means a name that is recognised, such as "rewards"; "" means none.

    Args:
        observation: what is observed; empty for those called "observation", "observations" or "obs" (or below that, such as
            "observation.state"), or else every column that has no other use.
        action: what is done; empty for those called "action", "command" or "control", or that begin with ``action.`` or
            ``action_``.
        reward: reward of the step.
        termination: whether the step led to a terminal state.
        truncation: whether the recording was cut off after the step, as by a time limit.
        episode: name or number of the episode; rows of an episode follow each other.
        time: time of the row. It is checked, and not a part of the observation; see ``elapsed`` of `ConversionConfig`.
        next_observation: observation after the step, as D4RL has it; used for the last step of an episode.

    Raises:
        TypeError: if a name is not a string.
        ValueError: if one column has two uses.
    """

    observation: tuple[str, ...] = ()
    action: tuple[str, ...] = ()
    reward: str | None = None
    termination: str | None = None
    truncation: str | None = None
    episode: str | None = None
    time: str | None = None
    next_observation: str | None = None

    def __post_init__(self) -> None:
        """Check that names are different strings."""
        for name in ("observation", "action"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
            check_names(self, name)
        for name in SINGLE:
            if getattr(self, name) is not None and not isinstance(getattr(self, name), str):
                raise TypeError(f"{name}: expected the name of a column, got {getattr(self, name)!r}")
        used = self.used
        for name in used:
            if used.count(name) > 1:
                raise ValueError(f"columns: expected one use of each column, got two of {name!r}")

    @property
    def used(self) -> list[str]:
        """All columns that are named."""
        return [*self.observation, *self.action, *filter(None, (getattr(self, name) for name in SINGLE))]

    @property
    def steps(self) -> list[str]:
        """Columns that describe a step and not an observation."""
        return [*self.action, *filter(None, (self.reward, self.termination, self.truncation))]

    def resolve(self, available: Sequence[str], source: str) -> tuple[Columns, list[str]]:
        """Return the names with all guesses made, and what was guessed, in words.

        Args:
            available: columns of the source, in order.
            source: its name for messages.

        Raises:
            ValueError: if a column does not exist, or there is none for the observation.
        """
        for name in self.used:
            if name not in available:
                raise ValueError(f"{source}: expected a column {name!r}, got {', '.join(map(repr, available))}")
        single: dict[str, Any] = {name: self._guessed(name, available) for name in SINGLE}
        action = self.action or _actions(available, {*self.observation, *filter(None, single.values())})
        found = replace(self, action=action, **single)
        observation = self.observation or _observations(available, found)
        if not observation:
            raise ValueError(f"{source}: expected at least one column of the observation, got {list(available)}; name them")
        if not single["next_observation"] or len(observation) > 1:
            single["next_observation"] = ""
        found = replace(found, observation=observation, next_observation=single["next_observation"])
        guessed = [name for name in ("observation", "action") if not getattr(self, name) and getattr(found, name)]
        notes = [f"{name}: {', '.join(getattr(found, name))}" for name in guessed]
        return found, notes + [f"{n}: {v}" for n, v in single.items() if v and getattr(self, n) is None]

    def _guessed(self, name: str, available: Sequence[str]) -> str:
        given = getattr(self, name)
        if given is not None:
            return str(given)
        by_lower = {one.lower(): one for one in reversed(available)}
        taken = self.used
        return next((by_lower[one] for one in GUESSES[name] if one in by_lower and by_lower[one] not in taken), "")

    def to_json(self) -> dict[str, Any]:
        """Return the names as JSON-serialisable data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


SINGLE = tuple(field.name for field in fields(Columns) if field.name not in ("observation", "action"))


def _actions(available: Sequence[str], taken: set[str]) -> tuple[str, ...]:
    free = [name for name in available if name not in taken]
    exact = [name for name in free if name.lower() in GUESSES["action"]]
    return tuple(exact or [name for name in free if name.lower().startswith(("action.", "action_", "action["))])


def _observations(available: Sequence[str], found: Columns) -> tuple[str, ...]:
    free = [name for name in available if name not in found.used]
    exact = [name for name in free if name.lower() in OBSERVATIONS]
    below = [name for name in free if name.lower().startswith(tuple(f"{one}{mark}" for one in OBSERVATIONS for mark in "./"))]
    return tuple(exact or below or [name for name in free if name.lower() not in IGNORED])


@dataclass(frozen=True, kw_only=True)
class ConversionConfig:
    """How recorded rows become episodes.

    Args:
        time_unit: unit of times that are numbers.
        missing: what to do with rows that lack a number of the observation (NaN, an empty cell): "mask" keeps them, and M is
            trained on what was observed; "error" refuses them; "split" leaves them out and ends the episode there;
            "interpolate" fills them by straight lines in time, whole numbers by the last one. Only "split" allows rows that
            lack an action or reward, except at the end of an episode, or a time.
        elapsed: store the time of each step, so that M sees it: for rows at uneven times. It needs a column of times.
        max_gap: seconds between two rows after which another episode begins; None ignores gaps.
        max_steps: longest episode, in steps; longer ones are cut, without a loss. None cuts what would take more than 256 MiB.
        widen: bounds of observations lie so far outside of the data, as a share of their range. Bounds of actions are those of
            the data, rounded outwards.
        resize: height and width of images, in pixels; None keeps their size.
        dtype: "keep", or "float32" to halve the size of real numbers of float64.
        like: path of a converted store whose spaces are used, for data that are to test or extend a model of that store.

    Raises:
        TypeError: if a field has another type.
        ValueError: naming the field that is out of range.
    """

    time_unit: TimeUnit = "s"
    missing: Missing = "mask"
    elapsed: bool = False
    max_gap: float | None = None
    max_steps: int | None = None
    widen: float = 0.5
    resize: int | None = None
    dtype: Literal["keep", "float32"] = "keep"
    like: str | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        if self.like is not None:
            object.__setattr__(self, "like", str(self.like))
        choices = {"time_unit": tuple(SECONDS), "missing": get_args(Missing), "dtype": ("keep", "float32")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        check_flags(self, "elapsed")
        check_integers(self, {"max_steps": 1, "resize": 8}, optional=("max_steps", "resize"))
        check_numbers(self, {"max_gap": "(0, inf)", "widen": "[0, inf)"}, optional=("max_gap",))
