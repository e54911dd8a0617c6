"""A kill at any file operation leaves what the same call completes: no stage takes its own unfinished files for others'."""

import builtins
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from toy_data import ACTION, OBSERVATION, walking_episode, write_store
from toy_worlds import walk_world

import worldmodel as wm
from worldmodel.agents import Controller, Planner, PlannerConfig
from worldmodel.data import EpisodeStore, verify
from worldmodel.models import StateNormalizer, WorldModel
from worldmodel.runtime import CARD_FILE, RunConfig
from worldmodel.runtime.locks import LOCK_FILE

OPERATIONS = [(os, "replace"), (os, "fsync"), (os, "open"), (os, "unlink"), (os, "mkdir"), (os, "rmdir")]
TRAINING = wm.TrainingConfig(num_updates=2, evaluate_every=1)


class Killed(BaseException):
    """Simulates ``kill -9``: no code of the library catches it."""


def killed_at_each_operation(monkeypatch, call, step=1, prepare=lambda: None):
    """Call again and again, killed at file operation 1, 1 + step, ...; nothing happens to files after the kill."""
    number = 1
    while True:
        count = 0
        prepare()
        with monkeypatch.context() as patch:

            def counted(original, writes_only=False, target=number):
                def operation(*arguments, **options):
                    nonlocal count
                    if writes_only and not any(letter in str(arguments[1:2]) for letter in "wa"):
                        return original(*arguments, **options)
                    count += 1
                    if count >= target:
                        raise Killed
                    return original(*arguments, **options)

                return operation

            for module, name in OPERATIONS:
                patch.setattr(module, name, counted(getattr(module, name)))
            patch.setattr(builtins, "open", counted(builtins.open, writes_only=True))
            try:
                call()
            except Killed:
                pass
            else:
                return
        yield number
        number += step


def data(path):
    return write_store(path, [walking_episode(i, 5) for i in range(4)]).path


def fit(tmp_path, out, **options):
    config = wm.MDNRNNConfig(hidden_size=2, num_components=1)
    return wm.fit(tmp_path / "data", out=out, config=config, training_config=TRAINING, **options)


def collect(tmp_path, out, **options):
    return wm.collect("CartPole-v1", out=out, num_episodes=2, **options)


STAGES = {"fit": (fit, "world.json"), "collect": (collect, "manifest.json")}


def names(folder):
    """Return the names of all files; a lock without its process has no effect and may stay."""
    return sorted(path.name for path in folder.rglob("*") if path.name != LOCK_FILE)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_stage_that_was_killed_anywhere_is_completed_by_the_same_call(tmp_path, monkeypatch, stage, overwrite):
    call, result = STAGES[stage]
    data(tmp_path / "data")
    run, whole = RunConfig(overwrite=overwrite), tmp_path / "whole"
    call(tmp_path, whole)
    attempts = iter(range(1000))
    out = [tmp_path / "0"]

    def prepare():
        out[0] = tmp_path / f"out{next(attempts)}"
        if overwrite:
            shutil.copytree(whole, out[0])

    def begin():
        call(tmp_path, out[0], run=run)

    kills = 0
    for _ in killed_at_each_operation(monkeypatch, begin, 3, prepare):
        call(tmp_path, out[0])  # resumes, and completes a replacement that was asked for
        assert (out[0] / result).is_file()
        assert names(out[0]) == names(whole)
        kills += 1
    assert kills >= 5


def save_v(path, number, **options):
    vision = StateNormalizer(OBSERVATION)
    vision.mean.fill_(number)
    vision.save_pretrained(path, **options)
    return vision.fingerprint


def save_world(path, number, **options):
    world = walk_world()
    world.start_mean.fill_(number)
    world.save_pretrained(path, **options)
    return world.fingerprint


def save_controller(path, number, **options):
    controller = Controller(3, spaces.Box(-1, 1, (2,), np.float32))
    for parameter in controller.parameters():
        parameter.data.fill_(number)
    controller.save_pretrained(path, **options)
    return [float(x) for p in controller.parameters() for x in p.detach().flatten()]


def save_planner(path, number, **options):
    world = walk_world()
    world.start_mean.fill_(number)
    config = PlannerConfig(horizon=1, candidates=2, discount=1 / number)
    Planner(world, config).save_pretrained(path, **options)
    return world.fingerprint, 1 / number


def read_planner(path):
    planner = Planner.from_pretrained(path)
    return planner.world.fingerprint, planner.config.discount


MODELS = {
    "vision": (save_v, lambda path: StateNormalizer.from_pretrained(path).fingerprint),
    "world": (save_world, lambda path: WorldModel.from_pretrained(path).fingerprint),
    "controller": (
        save_controller,
        lambda path: [float(x) for p in Controller.from_pretrained(path).parameters() for x in p.detach().flatten()],
    ),
    "planner": (save_planner, read_planner),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_save_that_was_killed_leaves_the_old_model_or_the_new_one(tmp_path, monkeypatch, kind):
    save, read = MODELS[kind]
    attempts, out, found = iter(range(1000)), [tmp_path], set()
    step = 4 if kind == "planner" else 1  # a planner saves a world, too
    new = save(tmp_path / "new", 2.0)

    def begin():
        out[0] = tmp_path / f"out{next(attempts)}"
        save(out[0], 2.0, overwrite=True)

    for _ in killed_at_each_operation(monkeypatch, begin, step):  # in a new directory
        save(out[0], 2.0, overwrite=(out[0] / f"{kind}.json").is_file())
        assert read(out[0]) == new
    old = save(tmp_path / "old", 1.0)

    def prepare():
        out[0] = tmp_path / f"out{next(attempts)}"
        shutil.copytree(tmp_path / "old", out[0])

    def replace():
        save(out[0], 2.0, overwrite=True)

    for _ in killed_at_each_operation(monkeypatch, replace, step, prepare):
        found.add(str(read(out[0]) == old) + str(read(out[0]) == new))
        save(out[0], 2.0, overwrite=True)
        assert read(out[0]) == new
        assert len(set(names(out[0])) - {CARD_FILE}) == (5 if kind == "planner" else 2)  # of a planner, with its world
    assert found == {"TrueFalse", "FalseTrue"}


def test_files_of_others_are_never_taken_for_unfinished_ones(tmp_path):
    for number, name in enumerate(
        ("notes.txt", ".notes.txt.12.tmp", "weights.safetensors", "weights-0123456789abcdef.safetensors")
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(FileExistsError, match="with other files"):
            EpisodeStore.create(folder, observation_space=OBSERVATION, action_space=ACTION, overwrite=True)
        with pytest.raises(FileExistsError, match="with other files"):
            save_world(folder, 1.0, overwrite=True)
        assert [path.name for path in folder.iterdir()] == [name]


def test_left_over_temporary_files_of_a_model_are_removed_by_the_next_save(tmp_path):
    save_world(tmp_path, 1.0)
    for name in (".weights.safetensors.77.tmp", ".weights-0123456789abcdef.safetensors.77.tmp", ".world.json.77.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".mine.77.tmp").touch()
    save_world(tmp_path, 2.0, overwrite=True)
    assert len(set(names(tmp_path)) - {CARD_FILE}) == 3
    assert (tmp_path / ".mine.77.tmp").exists()


def test_a_store_whose_creation_was_killed_is_created(tmp_path, monkeypatch):
    attempts, out = iter(range(100)), [Path()]

    def begin():
        out[0] = tmp_path / f"out{next(attempts)}"
        write_store(out[0], [walking_episode(0, 3)])

    for _ in killed_at_each_operation(monkeypatch, begin):
        if not (out[0] / "manifest.json").is_file():
            write_store(out[0], [walking_episode(0, 3)])
        assert [problem.kind for problem in verify(out[0]) if problem.kind not in ("temporary", "orphan")] == []
