"""Long runs: resuming, replacing, comparison of arguments, and progress records."""

import io
import sys
from dataclasses import replace

import pytest
from toy_controllers import random_controller
from toy_data import labelled_episode, write_store
from toy_images import DotEnv
from toy_worlds import WalkEnv, random_world

import worldmodel as wm
from worldmodel.runtime import Progress, Reporter, RunConfig, check_same_run, files, prepare_run, resolve_precision

ABOUT = {"marker": "toy.json", "format": "worldmodel.toy", "version": 1, "replaces": ("toy.json", "result")}
TRAINING = wm.TrainingConfig(num_updates=2, evaluate_every=2)


def prepare(path, arguments, **run):
    return prepare_run(path, arguments, **ABOUT, run=RunConfig(**run))


# Resume, replace, reject


def test_a_run_is_resumed_by_default(tmp_path):
    prepare(tmp_path / "out", {"seed": 1})
    (tmp_path / "out" / "result").write_text("half")
    prepare(tmp_path / "out", {"seed": 1})
    assert (tmp_path / "out" / "result").read_text() == "half"


def test_a_run_is_rejected_without_resume(tmp_path):
    prepare(tmp_path / "out", {"seed": 1}, resume=False)
    with pytest.raises(FileExistsError, match=r"expected no earlier run, got one; .*--overwrite"):
        prepare(tmp_path / "out", {"seed": 1}, resume=False)


@pytest.mark.parametrize("resume", [True, False])
def test_overwrite_replaces_a_run_whatever_resume_says(tmp_path, resume):
    prepare(tmp_path / "out", {"seed": 1})
    (tmp_path / "out" / "result").write_text("half")
    prepare(tmp_path / "out", {"seed": 2}, resume=resume, overwrite=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"toy.json", "run.json"}
    assert files.read_json(tmp_path / "out" / "toy.json", format="worldmodel.toy", version=1)["seed"] == 2


def test_overwrite_leaves_a_directory_that_holds_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="with other files"):
        prepare(tmp_path, {"seed": 1}, overwrite=True)


def test_a_run_with_other_arguments_is_not_resumed(tmp_path):
    prepare(tmp_path / "out", {"seed": 1})
    with pytest.raises(ValueError, match=r"out: expected seed 1, as in the run that is there, got 2; .*overwrite"):
        prepare(tmp_path / "out", {"seed": 2})


def test_a_run_inside_another_is_resumed_and_reports_to_it():
    seen = []
    inner = RunConfig(resume=False, overwrite=True, tensorboard=True).within(seen.append, "round 2: {}")
    assert (inner.resume, inner.overwrite, inner.tensorboard, inner.progress) == (True, False, True, False)
    with inner.reporter() as report:
        report(Progress("collect", 1, 2))
    assert seen == [Progress("round 2: collect", 1, 2)]


# Is it the same run?


def test_the_same_arguments_are_the_same_run():
    arguments = {"config": {"sizes": (3, 4), "rate": 1e-3}, "seed": 0, "target": None}
    check_same_run({"version": 1, "config": {"rate": 1e-3, "sizes": [3, 4]}, "seed": 0}, arguments, "out")


@pytest.mark.parametrize(
    ("earlier", "given", "message"),
    [
        ({"seed": 0}, {"seed": 0, "calibrate": True}, "expected calibrate None, .* got True"),
        ({"seed": 0, "calibrate": True}, {"seed": 0}, "expected calibrate True, .* got None"),
        ({"a": 1}, {"a": True}, "expected a 1, .* got True"),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, r"expected a \{'c': 2\}, .* got \{'c': 3\}"),
        ({"a": {"b": 1}}, {"a": {}}, r"expected a \{'b': 1\}, .* got \{'b': None\}"),
        ({"a": [1, 2]}, {"a": [1]}, r"expected a \[1, 2\], .* got \[1\]"),
    ],
)
def test_other_arguments_are_another_run(earlier, given, message):
    with pytest.raises(ValueError, match=message):
        check_same_run(earlier, given, "out")
    with pytest.raises(FileExistsError, match=message):
        check_same_run(earlier, given, "out", error=FileExistsError)


# Progress


def listener(seen):
    return RunConfig(on_progress=seen.append)


def assert_told(seen, stage, unit, total):
    assert seen
    assert {(p.stage, p.unit, p.total) for p in seen} == {(stage, unit, total)}
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_collect_train_vae_encode_and_fit_report_their_stages(tmp_path):
    seen = []
    wm.collect(DotEnv, out=tmp_path / "data", num_episodes=3, run=listener(seen))
    assert_told(seen, "collect", "episode", 3)
    assert seen[-1].metrics["failures"] == 0
    seen.clear()
    config = wm.VAEConfig(latent_size=2)
    vision = wm.train_vae(tmp_path / "data", out=tmp_path / "v", config=config, training_config=TRAINING, run=listener(seen))
    assert_told(seen, "train V", "update", 2)
    assert seen[-1].metrics.keys() >= {"loss", "held_out/loss"}
    seen.clear()
    wm.encode_store(tmp_path / "data", vision=vision, out=tmp_path / "z", run=listener(seen))
    assert_told(seen, "encode", "episode", 3)
    seen.clear()
    data_config = wm.DataConfig(window=4, batch_size=2)
    options = {
        "vision": vision,
        "data_config": data_config,
        "training_config": TRAINING,
        "config": wm.MDNRNNConfig(hidden_size=4),
    }
    wm.fit(tmp_path / "z", out=tmp_path / "world", run=listener(seen), **options)
    assert_told(seen, "train M", "update", 2)
    assert seen[-1].metrics.keys() >= {"nll_per_dim", "held_out/nll_per_dim"}


def test_evaluate_and_probe_report_their_stages():
    seen, world = [], random_world()
    env, config = wm.EnvConfig(WalkEnv, max_steps=3), wm.EvaluationConfig(num_episodes=2, num_dreams=2)
    wm.evaluate(random_controller(world), world, env=env, config=config, run=listener(seen))
    assert_told(seen, "evaluate", "step", 3)
    seen.clear()
    wm.probe(world, env=env, config=config, run=listener(seen))
    assert_told(seen, "probe", "score", 18)


def test_a_bar_shows_on_a_terminal_and_is_silent_without_one(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with Reporter() as report:
            report(Progress("collect", 1, 2, "episode", {"steps": 12}))
            report(Progress("train M", 5, 5, "update"))
        assert ("collect" in stream.getvalue() and "train M" in stream.getvalue()) == shown
        assert bool(stream.getvalue()) == shown
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with RunConfig(progress=False).reporter() as report:
        report(Progress("collect", 1, 2))
    assert terminal.getvalue() == ""


# Arguments that change no result


def test_a_store_is_rejected_if_resuming_is_switched_off(tmp_path):
    write_store(tmp_path / "data", [labelled_episode(0, 3)])
    wm.collect("CartPole-v1", out=tmp_path / "s", num_episodes=1)
    with pytest.raises(FileExistsError, match="got an earlier output"):
        wm.collect("CartPole-v1", out=tmp_path / "s", num_episodes=2, run=RunConfig(resume=False))


def test_v_has_nothing_to_calibrate(tmp_path):
    with pytest.raises(ValueError, match="calibrate: expected False"):
        wm.train_vae(tmp_path, out=tmp_path / "v", training_config=replace(TRAINING, calibrate=True))


def test_a_precision_is_resolved_or_rejected():
    cpu = random_world().device
    assert [resolve_precision(name, cpu) for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    assert resolve_precision("auto", cpu) in ("float32", "bfloat16")
    with pytest.raises(ValueError, match="precision: expected 'float32', 'bfloat16' or 'auto', got 'half'"):
        resolve_precision("half", cpu)
