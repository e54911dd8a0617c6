"""Convert a source of recorded data to a store, in two passes: check everything, then write.

Nothing is written before the first pass has read every row. An interrupted second pass is resumed by the same call.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from worldmodel.data.episode import Episode
from worldmodel.data.formats.config import SECONDS, Columns, ConversionConfig
from worldmodel.data.formats.inference import (
    Found,
    Leaf,
    leaves_of,
    make_leaves,
    missing_in_leaves,
    require_numbers,
    space_of,
    value_of,
)
from worldmodel.data.formats.rows import Recording, Source
from worldmodel.data.formats.splitting import Episodes
from worldmodel.data.missing import KEY as MISSING
from worldmodel.data.shards import ELAPSED
from worldmodel.data.store import MANIFEST, SHARDS, EpisodeStore
from worldmodel.data.writer import EpisodeWriter
from worldmodel.runtime import (
    Listener,
    Progress,
    RunConfig,
    check_same_run,
    record_run,
    remove_temporaries,
    single_writer,
)
from worldmodel.spaces import image_layout, is_image, resize_by_area

KEY = "conversion"  # in the recipe of a converted store
SHARD_BYTES = 32 * 2**20
EPISODE_BYTES = 256 * 2**20  # of a recording, unless `ConversionConfig.max_steps` says otherwise
FRAMES = 64  # decoded and resized at once
MOST_NUMBERS = 500  # of the observation or the action, that the recipe describes
MOST_LINES = 40  # of them in a text
UNFINISHED = "its conversion was interrupted; run the same command or call again"


@dataclass(frozen=True)
class Plan:
    """How recordings become episodes: the result of the first pass.

    Args:
        observation: leaves of the observation.
        action: leaves of the action; none without actions.
        max_steps: longest episode.
        numbered: whether episodes have their own numbers in the source; else they are numbered as they come.
        assumed: what the converter assumed, in words.
        found: kind and range of each number, by "observation" and "action".
        missing: numbers of the observation that are missing in some row, by leaf.
    """

    observation: list[Leaf]
    action: list[Leaf]
    max_steps: int
    numbered: bool
    assumed: list[str]
    found: dict[str, list[dict[str, Any]]]
    missing: dict[str, list[int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the plan without its spaces, which are those of the store."""
        columns = {part: {leaf.path: list(leaf.columns) for leaf in getattr(self, part)} for part in ("observation", "action")}
        return {"leaves": columns, **{name: getattr(self, name) for name in ("max_steps", "numbered", "assumed", "found")}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> Plan:
        """Return the plan of a store."""
        parts = {"observation": observation_space, "action": action_space}
        made = {name: leaves_of(space, data["leaves"][name]) for name, space in parts.items()}
        others: dict[str, Any] = {name: data[name] for name in ("max_steps", "numbered", "assumed", "found")}
        return cls(observation=made["observation"], action=made["action"], **others)


@single_writer()
def convert_source(
    source: Source,
    *,
    out: str | Path,
    columns: Columns | None = None,
    config: ConversionConfig | None = None,
    run: RunConfig | None = None,
) -> EpisodeStore:
    """Convert a source to a store.

    Args:
        source: the recorded data.
        out: directory of the store: absent, empty, or an earlier conversion of the same data, which is resumed.
        columns: names of columns.
        config: how rows become episodes.
        run: whether an earlier conversion is resumed or replaced, and how progress is shown. Stages "check" and "convert".

    Raises:
        ValueError: if a column does not exist, or a row is wrong; names file and row. Nothing is written then.
        FileExistsError: if ``out`` holds something else, or a conversion of other data or with other arguments.
    """
    config, run = config or ConversionConfig(), run or RunConfig()
    chosen, guessed = (columns or Columns()).resolve(source.names(), source.described)
    if config.elapsed and not chosen.time:
        raise ValueError(f"{source.described}: expected a column of times for elapsed=True, got none; name it (time, --time)")
    options = {name: value for name, value in asdict(config).items() if name != "elapsed" or value}  # old ones resume
    arguments = {"format": source.format, "source": source.identity(), "columns": chosen.to_json(), "config": options}
    path, created = Path(out), False
    with run.reporter() as report:
        if run.resume and not run.overwrite and EpisodeStore.lies_in(path):
            store = _reopened(path, arguments)
            if store.unfinished is None:
                return store
            plan = Plan.from_json(store.recipe[KEY], store.observation_space, store.action_space)
        else:
            plan = _scan(source, chosen, config, guessed, report)
            rewards = {} if chosen.reward else {"rewards": False}
            more = ({MISSING: plan.missing} if plan.missing else {}) | ({ELAPSED: True} if config.elapsed else {})
            store = EpisodeStore.create(
                path,
                observation_space=space_of(plan.observation),
                action_space=space_of(plan.action),
                recipe={KEY: {"arguments": arguments, **plan.to_json()}, **rewards, **more},
                overwrite=run.overwrite,
            )
            record_run(path)
            store.mark_unfinished(UNFINISHED)
            created = True
        try:
            _write(store, source, chosen, config, plan, report)
        except ValueError:
            if created:
                _remove(path)
            raise
    store.mark_unfinished(None)
    return store


def _reopened(path: Path, arguments: Mapping[str, Any]) -> EpisodeStore:
    """Open the store of an earlier conversion with the same arguments."""
    store = EpisodeStore.open(path)
    earlier = store.recipe.get(KEY, {}).get("arguments")
    if earlier is None:
        raise FileExistsError(f"{path}: expected nothing or a conversion, got another store; choose another directory")
    if earlier["config"].get("missing") == "error":  # nothing was missing, so the default of today gives the same store
        earlier["config"]["missing"] = arguments["config"]["missing"]
    check_same_run(earlier, arguments, path, error=FileExistsError)
    for folder in (path, path / SHARDS):
        remove_temporaries(folder)
    store.adopt()
    record_run(path)
    return store


def _remove(path: Path) -> None:
    """Remove a store that this call created."""
    shutil.rmtree(path / SHARDS, ignore_errors=True)
    for name in (MANIFEST, "run.json"):
        (path / name).unlink(missing_ok=True)


def _scan(
    source: Source,
    columns: Columns,
    config: ConversionConfig,
    guessed: Sequence[str],
    report: Listener,
) -> Plan:
    """Read and check all rows, and infer the spaces."""
    max_steps = config.max_steps or _longest(source, columns, config)
    text = source.format == "csv"
    found = {name: Found(name, text=text) for name in (*columns.observation, *columns.action)}
    episodes = Episodes(source, columns, config, max_steps=max_steps)
    labels: set[Any] = set()
    count, numbered = 0, True
    total, unit = source.total()
    for recording in episodes:
        for name, one in found.items():
            if name in recording.values:
                one.add(recording.values[name], recording.where)
        if columns.reward and recording.values[columns.reward].ndim != 1:
            raise ValueError(f"{recording.where}: expected one number per row in {columns.reward!r}, got several")
        count += 1
        numbered = numbered and _is_id(recording.label) and recording.label not in labels
        labels.add(recording.label)
        report(Progress("check", episodes.read, total, unit, {"episodes": count}))
    if count == 0:
        raise ValueError(f"{source.described}: expected at least one episode of two rows, got none")
    require_numbers(found, source.described)
    for name, shape in source.images.items():
        if name in found:
            found[name].add(np.zeros((1, *shape), np.uint8), source.described)
    options: dict[str, Any] = {"widen": config.widen, "resize": config.resize, "narrow": config.dtype == "float32"}
    parts = {part: [found[name] for name in getattr(columns, part)] for part in ("observation", "action")}
    made = {part: make_leaves(each, part=part, **options) if each else [] for part, each in parts.items()}
    if config.like is not None:
        made = _like(made, config.like)
    missing = missing_in_leaves(made["observation"], found, source.described)
    numbers = {part: [number for one in each for number in one.numbers()][:MOST_NUMBERS] for part, each in parts.items()}
    assumed = [*guessed, *_assumptions(columns, config, episodes, count, numbered)]
    return Plan(made["observation"], made["action"], max_steps, numbered, assumed, numbers, missing)


def _is_id(label: Any) -> bool:
    """Return whether the name of an episode in a source can be its number in a store."""
    return type(label) is int and -(2**63) <= label < 2**63


def _longest(source: Source, columns: Columns, config: ConversionConfig) -> int:
    """Return the most steps of a recording that memory shall hold."""
    names = [name for name in (*columns.observation, *columns.steps) if name not in source.images]
    first: Mapping[str, np.ndarray] = next((rows.values for rows, _ in source.pieces(names)), {})
    row = sum(value.nbytes / max(1, len(value)) for value in first.values())
    for shape in source.images.values():
        row += math.prod(shape[2:]) * config.resize**2 if config.resize else math.prod(shape)
    return max(1, int(EPISODE_BYTES / max(row, 1)))


def _like(made: Mapping[str, list[Leaf]], like: str) -> dict[str, list[Leaf]]:
    """Return the leaves of another conversion, which must have the same columns."""
    other = EpisodeStore.open(like)
    if KEY not in other.recipe:
        raise ValueError(f"like: expected a converted store, got {like}")
    plan = Plan.from_json(other.recipe[KEY], other.observation_space, other.action_space)
    for part, there in (("observation", plan.observation), ("action", plan.action)):
        expected, got = ({name for leaf in each for name in leaf.columns} for each in (there, made[part]))
        if expected != got:
            raise ValueError(f"like: expected the columns of {like} in the {part}, {sorted(expected)}, got {sorted(got)}")
    return {"observation": plan.observation, "action": plan.action}


def _assumptions(columns: Columns, config: ConversionConfig, episodes: Episodes, count: int, numbered: bool) -> list[str]:
    """Describe what the converter decided."""
    notes = [f"{what} ({number} times; {count} episodes)" for what, number in episodes.counts.items()]
    if not columns.action:
        notes.append("no actions: the model will have none")
    if not columns.reward:
        notes.append("no rewards: M will have no reward head, and dreams pay 0 or what a reward function says")
    if not columns.termination:
        notes.append("no terminations: no episode ends in a terminal state, and M will have no termination head")
    if not columns.truncation:
        notes.append("each episode that does not terminate counts as cut off (truncated) at its last step")
    if not columns.episode and not numbered:
        notes.append("episodes are numbered in the order of the data")
    if columns.time and not config.elapsed:
        notes.append(f"{columns.time!r} is checked, but not a part of the observation")
    if config.resize:
        notes.append(f"images are averaged to {config.resize} x {config.resize} pixels")
    return notes


def _write(
    store: EpisodeStore, source: Source, columns: Columns, config: ConversionConfig, plan: Plan, report: Listener
) -> None:
    """Write the episodes that the store lacks."""
    done = set(store.episode_ids.tolist())
    total, unit = source.total()
    episodes = Episodes(source, columns, config, max_steps=plan.max_steps)
    with EpisodeWriter(store, max_bytes=SHARD_BYTES) as writer:
        for count, recording in enumerate(episodes):
            number = recording.label if plan.numbered else count
            if number not in done:
                writer.add(
                    replace(_episode(recording, number, source, columns, plan), elapsed=_elapsed(recording, columns, config))
                )
                writer.write_if_due()
            report(Progress("convert", episodes.read, total, unit, {"episodes": count + 1}))


def _episode(recording: Recording, number: int, source: Source, columns: Columns, plan: Plan) -> Episode:
    values, rows = dict(recording.values), recording.count
    length = rows - 1
    for leaf in plan.observation:
        if is_image(leaf.space):
            name = leaf.columns[0]
            values[name] = _images(leaf, source, recording) if name in source.images else _resized(values[name], leaf)
    flags = {}
    for name in ("termination", "truncation"):
        column = getattr(columns, name)
        flags[name] = np.nan_to_num(values[column]).astype(bool) if column else np.zeros(length, dtype=bool)
    if not flags["termination"][-1] and (not columns.truncation or recording.fragment):
        flags["truncation"] = np.arange(length) == length - 1
    rewards = values[columns.reward].astype(np.float64) if columns.reward else np.zeros(length)
    return Episode(
        observations=value_of(plan.observation, values, rows),
        actions=value_of(plan.action, values, length),
        rewards=rewards,
        terminations=flags["termination"],
        truncations=flags["truncation"],
        episode_id=number,
    )


def _elapsed(recording: Recording, columns: Columns, config: ConversionConfig) -> np.ndarray | None:
    """Return the seconds of each step, if they are to be stored."""
    if not config.elapsed or not columns.time:
        return None
    steps, length = np.diff(recording.values[columns.time]), recording.count - 1
    if len(steps) < length:  # the time of the last observation is not recorded, as in D4RL
        steps = np.append(steps, steps[-1:] if len(steps) else 1.0)
    return steps * (1.0 if recording.seconds else SECONDS[config.time_unit])


def _images(leaf: Leaf, source: Source, recording: Recording) -> np.ndarray:
    """Read images a part at a time, so that only resized ones are in memory."""
    rows = recording.count
    images = np.empty((rows, *(leaf.space.shape or ())), np.uint8)
    for first in range(0, rows, FRAMES):
        count = min(FRAMES, rows - first)
        images[first : first + count] = _resized(source.frames(leaf.columns[0], recording.index + first, count), leaf)
    return images


def _resized(images: np.ndarray, leaf: Leaf) -> np.ndarray:
    """Average images (N, *shape) over the area of each pixel of the leaf."""
    assert leaf.space.shape is not None
    if images.shape[1:] == leaf.space.shape:
        return images
    from_space = gym.spaces.Box(0, 255, images.shape[1:], np.uint8)
    given, wanted = image_layout(from_space), image_layout(leaf.space)  # type: ignore[arg-type]
    small = resize_by_area(given.to_channels_last(torch.from_numpy(np.ascontiguousarray(images))), wanted.height, wanted.width)
    return replace(wanted, channels=given.channels).from_channels_last(small.round().to(torch.uint8)).numpy()


def describe_conversion(store: EpisodeStore) -> str:
    """Describe what a conversion found and assumed: a line for each number of the observation and action, and notes.

    Raises:
        ValueError: if the store is no conversion.
    """
    if KEY not in store.recipe:
        raise ValueError(f"{store.path}: expected a converted store, got one of {sorted(store.recipe)}")
    data, lines = store.recipe[KEY], []
    for part in ("observation", "action"):
        numbers = data["found"][part]
        lines.append(f"{part} {getattr(store, f'{part}_space')}" if numbers else f"no {part}")
        shown = numbers[:MOST_LINES]
        width = max((len(one["name"]) for one in shown), default=0)
        lines += [f"  {one['name']:{width}}  {describe_number(one)}" for one in shown]
        lines += ["  ..."] if len(numbers) > len(shown) else []
    return "\n".join([*lines, "assumed", *(f"  {note}" for note in data["assumed"])])


def describe_number(found: Mapping[str, Any]) -> str:
    """Describe a number that a conversion found: its kind, its range or values, and whether it is missing in some rows."""
    return _range(found) + (", missing in some rows" if found.get("missing") else "")


def _range(found: Mapping[str, Any]) -> str:
    kind = found["kind"]
    if kind == "image":
        return f"image {tuple(found['shape'])}"
    if kind == "constant":
        return f"constant {found['low']:g}"
    if "values" in found:
        shown = [f"{value:g}" for value in found["values"]]
        shown = shown if len(shown) <= 6 else [*shown[:3], "...", shown[-1]]
        return f"{'choice of ' + str(len(found['values'])) if kind == 'choice' else kind}: {', '.join(shown)}"
    return f"{kind}, {found['low']:.4g} to {found['high']:.4g}"
