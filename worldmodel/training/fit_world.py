"""Train a world model on stores of episodes: fit V, train M, keep start states, write the directory."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.data import EpisodeCollection, common_truncation, recorded_limits, split_episodes
from worldmodel.mixtures import DENSITIES, LatentLayout
from worldmodel.models import (
    MDNRNN,
    WORLD_FILE,
    WORLD_FILES,
    MDNRNNConfig,
    SequenceBatch,
    StateNormalizer,
    Vision,
    WorldModel,
    encoded_form,
    filled_batches,
    find_layout,
    held_batches,
    members_of,
    vision_for,
)
from worldmodel.runtime import (
    RunConfig,
    check_integer,
    choose_device,
    explains_keywords,
    float32_default,
    keeps_threads,
    led,
    runs,
    single_writer,
)
from worldmodel.spaces import FlatSpace, find_images, map_leaves, refuse_float_images
from worldmodel.training import likelihood, loop, quality
from worldmodel.training.config import DataConfig, TrainingConfig
from worldmodel.training.decisions import FIT_FILE, FIT_FORMAT, FIT_VERSION, decide, left_open, with_rate
from worldmodel.training.fit_data import check_tests, held_out, open_data, sequence_data
from worldmodel.training.fit_ensemble import ensemble_size, train_models
from worldmodel.training.head_choice import CHOICE_FILE, read_choice
from worldmodel.training.incomplete import Missing, complete_starts, extra_inputs, missing_in, require_inputs
from worldmodel.training.initial_model import new_model, prepare_model, statistics_batches, widen_bounds
from worldmodel.training.likelihood import calibrate_termination
from worldmodel.training.loop import TrainingResult
from worldmodel.training.reward_atoms import check_rewards_of, read_rewards
from worldmodel.training.trivial_models import TrivialModels
from worldmodel.training.windows import SequenceData

OUTPUTS = (FIT_FILE, CHOICE_FILE, *WORLD_FILES.outputs, "training", ".*.tmp")
RUN: dict[str, Any] = {"marker": FIT_FILE, "format": FIT_FORMAT, "version": FIT_VERSION, "replaces": OUTPUTS}
RUN["result"] = WORLD_FILE  # of a complete run
MAX_START_STATES = 2_000


@explains_keywords
@keeps_threads
@led
@single_writer(result=WORLD_FILE)
def fit(
    data: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    config: MDNRNNConfig | None = None,
    data_config: DataConfig | None = None,
    training_config: TrainingConfig | None = None,
    vision: Vision | type[Vision] | None = None,
    initial: WorldModel | None = None,
    test_data: str | Path | Sequence[str | Path] | None = None,
    ensemble: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    run: RunConfig | None = None,
) -> WorldModel:
    """Train a world model on one or several stores of episodes and write it as a directory.

    Args:
        data: path of a store, or several of the same environment; or of what `encode_store` made of them, with ``vision``.
        out: directory for the world model; its training state goes to ``out/training``.
        config: architecture and loss of M. With ``termination_head`` None, M has that head if any episode terminates. With
            ``latent_head`` "auto", ``provenance["latent_head"]`` has the choice and the likelihoods behind it. For converted
            data without rewards (see `worldmodel.data.from_arrays`) M has no reward head.
        data_config: windows and batches, and what is known about the layout of z: the kind of each number of an observation.
            The rest of the layout is found in the data; ``provenance["layout"]`` has it, and ``print(world.layout)`` shows it.
        training_config: how to train, and whether to calibrate termination probabilities on held-out episodes; their losses
            before and after are in the provenance.
        vision: a trained V, as `train_vae` returns it; images need one. Or a subclass of `Vision` that is fitted in one pass
            (`Vision.fit`). None is `StateNormalizer`, which standardises vector observations.
        initial: a world model to start from; its V, its configuration and its weights are kept, and its dreams get bounds that
            hold the new data too. ``vision`` may be given if it is the same V. Without a termination head it stays without one,
            also if episodes terminate. None starts from scratch.
        test_data: a store, or several, of the same spaces to test on: another day, another robot. It takes the place of the
            held-out part of ``data`` (``test_fraction``), which is trained on then: the best update is chosen on it, and a head
            if there is a choice, but no statistic and no weight is computed from it.
        ensemble: number of models, each trained from its own initial weights on a bootstrap sample of the training episodes; M
            is then an `MDNRNNEnsemble`, whose training state is in ``out/training/member-1`` and so on. None: one, or as many
            as ``initial`` has.
        seed: >= 0, of the split, the initial weights, the batches and all samples in training.
        device: where model, data and training are; "auto": an NVIDIA GPU if there is one, else the CPU.
        run: whether a run in ``out`` is resumed or replaced (a complete one is returned as it is), its log, and how progress is
            shown; see `train`. The stage is "train M".

    Returns:
        The world model, on ``device``, in evaluation mode.

    Raises:
        ValueError: if the data are empty, hold images but no ``vision`` is given, or images of floats, or are of another
            environment than ``initial``; if they contradict the layout; if an argument is out of range, or a resumed run was
            started with others.
        NonFiniteLossError: if training diverged.
        FileExistsError: if ``out`` holds something that may not be replaced.
        KeyboardInterrupt: on Ctrl-C, after the state has been saved; the same call resumes.
    """
    data_config, training_config, run = data_config or DataConfig(), training_config or TrainingConfig(), run or RunConfig()
    device, seed, size = choose_device(device), check_integer(seed, "seed", least=0), ensemble_size(ensemble, initial)
    episodes, tests = open_data(data, data_config), None if test_data is None else open_data(test_data, data_config)
    encoded = encoded_form([*episodes.stores, *(tests.stores if tests else ())], _trained_v(initial, vision))
    missing = missing_in(episodes, tests)
    if initial is None:
        config = decide(config, episodes, Path(out), run, numbers_missing=bool(missing))
        v, model, layout = _new_parts(episodes, seed, config, vision, encoded, data_config, missing)
    else:
        v, model, layout = _parts_of(initial, episodes, config, vision, encoded, data_config)
    require_inputs(model, layout, missing, (episodes, tests))
    training_config = with_rate(training_config, model, Path(out), run)
    open_fields = left_open(None if initial is not None else config, layout)
    arguments = _arguments(episodes, seed, torch.device(device), vision, model, initial, data_config, training_config)
    arguments |= _later_arguments(open_fields, size) | ({} if tests is None else check_tests(tests, episodes, model))
    split = split_episodes(len(episodes), test_fraction=data_config.test_fraction if tests is None else 0, seed=seed)
    directory = runs.prepare_run(out, arguments, run=run, **RUN)
    if (directory / WORLD_FILE).is_file():
        return WorldModel.from_pretrained(directory, device=device)
    if initial is None and not isinstance(vision, Vision):
        v.fit(episodes.read(int(index)).observations for index in split[0])
    world = _build_world(episodes, v, model, encoded or v, initial).to(device)
    reader = world.vision if encoded is None else encoded.to(device)
    parts = sequence_data(episodes, split, reader, world.action_features, data_config, seed, tests=tests)
    if initial is None:
        world.mdnrnn = prepare_model(world.mdnrnn, layout, parts, training_config, seed, directory, open_fields, size)
    else:
        widen_bounds(world.mdnrnn, parts[0], layout)
    scores = _baselines(world.mdnrnn, *parts, training_config, seed)
    result = train_models(world.mdnrnn, parts, directory / "training", (data_config, training_config), seed, run)
    world.provenance = _provenance(episodes, arguments, result, scores) | {"layout": layout.to_json()} | read_choice(directory)
    judged = (reader.encode(each.observations) for each in held_out(episodes, split, tests))
    _examine(world, parts, result, training_config, seed, judged)
    world.write(directory)
    return world.eval()


def _later_arguments(open_fields: dict[str, bool], size: int) -> dict[str, Any]:
    """Record of arguments that came later; it leaves out what is as it was before them, so that old runs resume."""
    return {name: True for name, is_open in open_fields.items() if is_open} | ({} if size == 1 else {"ensemble": size})


def _arguments(
    episodes: EpisodeCollection,
    seed: int,
    device: torch.device,
    vision: Vision | type[Vision] | None,
    model: MDNRNN,
    initial: WorldModel | None,
    data_config: DataConfig,
    training_config: TrainingConfig,
) -> dict[str, Any]:
    """Record of the arguments that a resumed run must share with the one it continues."""
    return {
        "data_fingerprint": episodes.fingerprint,
        "seed": seed,
        "device": device.type,
        "vision": vision.fingerprint if isinstance(vision, Vision) else None if vision is None else vision.__name__,
        "mdnrnn": model.config_to_json(),
        "initial": None if initial is None else initial.fingerprint,
        **({"calibrate": True} if training_config.calibrate else {}),  # else left out: old runs resume
        "data_config": data_config.identity(),
        "training_config": training_config.identity(),
    }


def _new_parts(
    episodes: EpisodeCollection,
    seed: int,
    config: MDNRNNConfig,
    vision: Vision | type[Vision] | None,
    encoded: Vision | None,
    data_config: DataConfig,
    missing: Missing,
) -> tuple[Vision, MDNRNN, LatentLayout]:
    """Return V (a copy of the given one, or a new one that is not fitted), M with new weights, and the layout of z."""
    space = episodes.observation_space
    if vision is None and find_images(space):
        raise ValueError(
            f"vision: expected a trained V, as the observations are images ({space}), got none; train one with train_vae "
            "(worldmodel train-vae) and give it as vision (--vision)"
        )
    if vision is None:
        refuse_float_images(space)
    if isinstance(vision, type) and vision.fit is Vision.fit:
        raise ValueError(f"vision: expected a class that is fitted in one pass, got {vision.__name__}; train it and give the V")
    if isinstance(vision, Vision) and encoded is None and vision.observation_space != space:
        raise ValueError(f"vision: expected a V of the observation space {space}, got one of {vision.observation_space}")
    with torch.random.fork_rng(devices=[]), float32_default():  # initialisers take no generator: borrow the CPU's, give it back
        torch.default_generator.manual_seed(seed)
        v, layout = _vision_and_layout(episodes, vision, data_config)
    sizes, extras = (v.latent_size, FlatSpace(episodes.action_space).size), extra_inputs(episodes, layout, missing)
    return v, new_model(sizes, config, layout, seed, extras), layout


def _vision_and_layout(
    episodes: EpisodeCollection, vision: Vision | type[Vision] | None, data_config: DataConfig
) -> tuple[Vision, LatentLayout]:
    """Return V on the CPU (a copy of the given one, or a new one that is not fitted) and the layout of its z."""
    kinds, complete = data_config.kinds_by_leaf(), bool(data_config.layout)
    if vision is None or vision is StateNormalizer:
        layout = find_layout(episodes, kinds=kinds, complete=complete)
        return vision_for(episodes.observation_space, layout), layout
    v = copy.deepcopy(vision).cpu() if isinstance(vision, Vision) else vision.from_config(episodes.observation_space, {})
    return v, find_layout(episodes, v, kinds=kinds, complete=complete)


def _trained_v(initial: WorldModel | None, vision: Vision | type[Vision] | None) -> Vision | None:
    """Return the V that encoded data must belong to."""
    if initial is not None:
        return initial.vision
    return vision if isinstance(vision, Vision) else None


def _spread(num_episodes: int) -> list[int]:
    """Return at most `MAX_START_STATES` indices of episodes, spread evenly."""
    count = min(num_episodes, MAX_START_STATES)
    return [number * num_episodes // count for number in range(count)]


def _parts_of(
    initial: WorldModel,
    episodes: EpisodeCollection,
    config: MDNRNNConfig | None,
    vision: Vision | type[Vision] | None,
    encoded: Vision | None,
    data_config: DataConfig,
) -> tuple[Vision, MDNRNN, LatentLayout]:
    """Return copies of V and M of a world model that fits the data, and its layout."""
    if vision is not None and not (isinstance(vision, Vision) and vision.fingerprint == initial.vision.fingerprint):
        raise ValueError("vision: expected None or the V of the initial world model, which it keeps, got another")
    space = episodes.observation_space if encoded is None else initial.observation_space
    initial.check_spaces(space, episodes.action_space, source=", ".join(str(store.path) for store in episodes.stores))
    if config is not None:
        raise ValueError(f"config: expected None with an initial world model, which has its own configuration, got {config}")
    if initial.mdnrnn.config.reward_components == 0:
        check_rewards_of(initial.mdnrnn.config.reward_atoms, 0, read_rewards(episodes))
    if data_config.kinds or data_config.layout:
        raise ValueError("kinds, layout: expected none with an initial world model, which has its own layout")
    if initial.mdnrnn.layout is not None:
        find_layout(episodes, initial.vision, kinds=initial.layout.kinds(), complete=True)  # raises if the data contradict it
    return copy.deepcopy(initial.vision).cpu(), copy.deepcopy(initial.mdnrnn).cpu(), initial.layout


def _build_world(
    episodes: EpisodeCollection, vision: Vision, model: MDNRNN, reader: Vision, initial: WorldModel | None
) -> WorldModel:
    """Combine V, M and the first observations of at most `MAX_START_STATES` episodes, spread evenly."""
    firsts = [episodes.read(i, 0, 1).observations for i in _spread(len(episodes))]
    parts = [reader.encode(map_leaves(lambda leaf: leaf[:1], first)) for first in firsts]
    mean, log_variance = complete_starts(*(torch.cat(part) for part in zip(*parts, strict=True)))
    world = WorldModel(vision, model, episodes.action_space, start_mean=mean, start_log_variance=log_variance)
    world.action_features.exact = initial is None or initial.action_features.exact
    return world


def _baselines(
    model: MDNRNN, train: SequenceData, test: SequenceData | None, config: TrainingConfig, seed: int
) -> dict[str, float]:
    """Score the baselines on the batches of the model's evaluation, or on training data if there are none."""

    def standardised(batches: Iterator[SequenceBatch]) -> Iterator[SequenceBatch]:  # else the regression is ill-conditioned
        return (replace(batch, action=model.action_units(batch.action, torch.float64)) for batch in batches)

    unit = model.frame.units(model.change_scale)
    columns = None if model.layout is None else model.layout.columns(*DENSITIES)
    if columns == []:
        return {}
    scored = (
        statistics_batches(train)
        if test is None
        else loop.held_out_batches(test, config.max_test_batches, seed=seed, device=unit.device)
    )
    floor = (model.config.min_scale or 0.0) * unit
    batches, scored = (standardised(held_batches(model, each)) for each in (statistics_batches(train), scored))
    try:
        return likelihood.baseline_nll(batches, scored, min_scale=floor, columns=columns)
    except ValueError:
        if model.extras.maskable:
            return {}  # no z is complete
        raise


def _calibrate(world: WorldModel, test: SequenceData | None, seed: int) -> dict[str, dict[str, float]] | None:
    """Calibrate the termination head on all held-out episodes; return None if there are none, or no head."""
    if test is None or world.mdnrnn.termination_head is None:
        return None
    members, records = members_of(world.mdnrnn), dict[str, dict[str, float]]()
    for number, member in enumerate(members, 1):
        batches = loop.held_out_batches(test, test.num_batches(0), seed=seed, device=world.device)
        own = "" if len(members) == 1 else f"member {number} "
        found = calibrate_termination(member, filled_batches(member, batches))
        records |= {f"{own}{name}": record for name, record in found.items()}
    return records


def _examine(
    world: WorldModel,
    data: tuple[SequenceData, SequenceData | None],
    result: TrainingResult,
    config: TrainingConfig,
    seed: int,
    posteriors: Iterator[tuple[Tensor, Tensor]],
) -> None:
    """Calibrate if requested, warn of the bad states in which the training has ended, and add both to the provenance.

    If V's samples are noisy, their entropy is added, too: the floor of the likelihood.
    """
    train, test = data
    columns = world.layout.columns(*DENSITIES)
    floor = (test or train).posterior_entropy(columns) if columns else None
    if floor is not None:
        world.provenance["entropy_floor"] = {"nll_per_dim": floor}
    if config.calibrate:
        world.provenance["calibration"] = _calibrate(world, test, seed)
    known = held_batches(world.mdnrnn, statistics_batches(train))
    trivial = TrivialModels.fit(known) if quality.judge(result, held_out=test is not None) else None
    if test is None or trivial is None:
        return
    batches = loop.held_out_batches(test, config.max_test_batches, seed=seed, device=world.device)
    batches = filled_batches(world.mdnrnn, batches)
    predictions = quality.Predictions.of(world.mdnrnn.eval(), batches, trivial)
    scores, judged = world.provenance["baselines"], itertools.islice(posteriors, quality.MAX_JUDGED)
    quality.record(quality.world_problems(result, scores, predictions, judged, config.evaluate_every), world.provenance)


def _provenance(
    episodes: EpisodeCollection,
    arguments: dict[str, Any],
    result: TrainingResult,
    scores: dict[str, float],
) -> dict[str, Any]:
    """Return the origin of a world model as JSON-serialisable data."""
    kept = ["data_fingerprint", "seed", "data_config", "training_config", "initial"]
    kept += [name for name in ("test_fingerprint",) if name in arguments]
    recipes = [store.recipe for store in episodes.stores]
    truncated_at = None if any(map(recorded_limits, recipes)) else common_truncation(episodes)
    return {
        "recipes": recipes,
        **({} if truncated_at is None else {"truncated_at": truncated_at}),
        "num_episodes": len(episodes),
        "num_steps": int(episodes.lengths.sum()),
        **{name: arguments[name] for name in kept},
        "training": asdict(result),
        "baselines": scores,
    }
