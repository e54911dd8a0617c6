"""A complete experiment at a small scale: stages, table, and resuming after an interruption."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from toy_images import DotEnv

import worldmodel as wm
from worldmodel.agents import ControllerConfig, SearchConfig, population
from worldmodel.dream import Scores, StartConfig
from worldmodel.experiments import DOOM, DynamicsPreset, ImprovementPreset, Preset, Reproduction, Stages, VisionPreset, table

TRAINING = wm.TrainingConfig(num_updates=2, evaluate_every=2, max_test_batches=1)
PRESET = Preset(
    env=DotEnv,
    max_steps=15,
    policy="repeat",
    num_episodes=6,
    vision=VisionPreset(
        config=wm.VAEConfig(latent_size=3), frames=wm.FrameConfig(batch_size=8, test_fraction=0.2), training=TRAINING
    ),
    dynamics=DynamicsPreset(
        mdnrnn=wm.MDNRNNConfig(hidden_size=4),
        data=wm.DataConfig(window=8, batch_size=4, test_fraction=0.2),
        training=TRAINING,
    ),
    controller=ControllerConfig(features="zhc", ordered=True),
    search=SearchConfig(population=4, generations=2, test_every=1, test_dreams=8),
    rollouts=2,
    improvement=ImprovementPreset(
        ppo=wm.PPOConfig(iterations=2, steps=2, horizon=4, critic_size=4, minibatches=1, test_every=1, test_dreams=4),
        num_dreams=8,
        starts=StartConfig(num_states=20, nearest=1, farthest=5),
    ),
    termination="sample",
    dream_precision="float32",
    temperatures=(0.5, 1.15),
    searches=2,
    test_dreams=6,
    test_episodes=18,
    paper={1.15: "1092 ± 556", None: "210 ± 108"},
)


def test_an_experiment_runs_to_its_table_and_is_not_run_again(tmp_path):
    calls = []
    names = ("left", "stay", "right")

    def listen(progress):
        calls.append(progress.stage)

    run = wm.RunConfig(on_progress=listen)
    experiment = Reproduction(PRESET, tmp_path / "out", action_names=names, commit="abc", run_config=run)
    results = experiment.run(about={"command": "python x.py"})
    stages = ["collect", "train V", "encode", "train M", "probe"]
    best = results["best_temperature"]
    for name in ("0.5", "1.15", f"{best:g}-seed-1"):
        stages += [f"search at {name}", f"PPO at {name}", f"test at {name}"]
    assert list(dict.fromkeys(calls)) == stages
    assert results == json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["command"] == "python x.py"
    assert results["vision"]["latents"]["kept"] == 3
    assert results["vision"]["error_per_pixel"] > 0
    assert set(results["mdnrnn"]) >= {"nll_per_dim", "termination_loss"}
    assert [row["temperature"] for row in results["temperatures"]] == [0.5, 1.15]
    assert best == max(results["temperatures"], key=lambda row: row["real"]["mean"])["temperature"]
    assert [(row["temperature"], row["seed"]) for row in results["repeats"]] == [(best, 1)]
    for row in results["temperatures"] + results["repeats"]:
        assert len(row["real"]["returns"]) == 18
        assert len(row["dream"]["returns"]) == 6
    assert all(10 <= length <= 12 for length in results["random"]["lengths"])
    assert "always stay" in (tmp_path / "out" / "probe.txt").read_text()
    stages = {"collect", "train V", "encode", "train M", "probe", "search 0.5", "PPO 0.5", "test 1.15"}
    assert set(results["stages"]) >= stages
    assert all(took["seconds"] > 0 and took["commits"] == ["abc"] for took in results["stages"].values())
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| 1092 ± 556 |" in text.splitlines()[3]
    assert text.splitlines()[4].startswith(f"| {best:g}, seed 1 |")
    assert text.splitlines()[7].startswith("| random play | - |")
    assert "seed" not in text.splitlines()[6]
    calls.clear()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("scores.json")}
    again = replace(experiment, commit="later").run()
    assert not calls
    assert again["temperatures"] == results["temperatures"]
    assert again["stages"] == results["stages"]  # no stage ran again
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("scores.json")}
    assert experiment.agent_episode(1.15).observations.shape[1:] == (24, 20, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", ["collect", "train V", "encode", "train M", "probe", "search at 0.5", "PPO at 0.5", "test at 1.15"]
)
def test_an_interrupted_experiment_resumes_to_the_same_scores(tmp_path, stage, whole):
    def stop(progress):
        if progress.stage == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Reproduction(PRESET, tmp_path / "out", run_config=wm.RunConfig(on_progress=stop)).run()
    assert not (tmp_path / "out" / "results.json").exists()
    if stage in ("search at 0.5", "PPO at 0.5"):  # as if a process had been killed while it wrote the controller
        (tmp_path / "out" / "temperature-0.5" / "controller").mkdir()
        (tmp_path / "out" / "temperature-0.5" / "controller" / "controller.safetensors").write_bytes(b"half")
    results = Reproduction(PRESET, tmp_path / "out", commit="next").run()
    for name in ("temperatures", "repeats", "random", "probe"):
        assert results[name] == whole[name]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Reproduction(PRESET, tmp_path_factory.mktemp("whole") / "out").run()


def test_the_seed_decides_and_no_two_test_episodes_share_one(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(population, "EPISODES_A_TASK", 9)
    other = Reproduction(PRESET, tmp_path / "out", seed=1).run()
    assert other["random"] != whole["random"]
    lengths = other["temperatures"][0]["real"]["lengths"]  # depends on the start of the dot only, not on the actions
    assert lengths != whole["temperatures"][0]["real"]["lengths"]
    assert lengths[:9] != lengths[9:]


def test_an_earlier_collection_is_taken_and_added_to(whole, tmp_path):
    wm.collect(wm.EnvConfig(DotEnv, max_steps=15), out=tmp_path / "data", num_episodes=4, policy="repeat", seed=0)
    results = Reproduction(PRESET, tmp_path / "out", episodes=tmp_path / "data").run()
    assert results["temperatures"] == whole["temperatures"]
    assert len(wm.EpisodeStore.open(tmp_path / "data")) == 6
    assert not (tmp_path / "out" / "episodes").exists()


def test_a_collection_of_more_episodes_is_rejected(tmp_path):
    wm.collect(wm.EnvConfig(DotEnv, max_steps=15), out=tmp_path / "data", num_episodes=7, policy="repeat", seed=0)
    with pytest.raises(ValueError, match="episodes: expected 6 at most, got 7 in"):
        Reproduction(PRESET, tmp_path / "out", episodes=tmp_path / "data").run()


def test_a_stage_that_was_interrupted_has_the_time_and_the_commits_of_both_calls(tmp_path):
    with pytest.raises(KeyboardInterrupt), Stages(tmp_path, "one").timed("collect"):
        raise KeyboardInterrupt
    first = Stages(tmp_path, "two").read()["collect"]
    assert not first["complete"]
    for commit in ("two", "three"):
        with Stages(tmp_path, commit).timed("collect"):
            time.sleep(0.01)
    found = Stages(tmp_path, "three").read()["collect"]
    assert found["complete"]
    assert found["commits"] == ["one", "two"]
    assert first["seconds"] + 0.01 <= found["seconds"] < first["seconds"] + 1


def test_another_experiment_in_the_same_directory_is_rejected(tmp_path):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Reproduction(PRESET, tmp_path / "out", run_config=wm.RunConfig(on_progress=stop)).run()
    with pytest.raises(ValueError, match="expected seed 0, as in the run that is there, got 1"):
        Reproduction(PRESET, tmp_path / "out", seed=1).run()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(FileExistsError, match="with other files"):
        Reproduction(PRESET, tmp_path / "other").run()


def test_the_table_of_doom_includes_the_papers_scores():
    def scores(*returns):
        return Scores(np.array(returns), np.ones(len(returns), dtype=int)).to_json()

    rows = [{"temperature": tau, "dream": scores(800, 1000), "real": scores(900.6, 1100.6)} for tau in DOOM.temperatures]
    repeats = [{"temperature": 1.15, "seed": seed, "dream": scores(800, 1000), "real": scores(500, 600)} for seed in (1, 2)]
    results = {"temperatures": rows, "repeats": repeats, "best_temperature": 1.15, "random": scores(119.0, 319.0)}
    lines = table(results, DOOM).splitlines()
    assert lines[2] == "| 0.1 | 900 ± 100 | 1001 ± 100 | 100 | 193 ± 58 |"
    assert lines[5] == "| 1.15 | 900 ± 100 | 1001 ± 100 | 100 | 1092 ± 556 |"
    assert lines[8] == "| 1.15, seed 2 | 900 ± 100 | 550 ± 50 | 50 | - |"
    assert lines[9] == "| 1.15, 3 seeds | 900 ± 100 | 700 ± 224 | 100 | - |"
    assert lines[10] == "| 1.15, without the first | 900 ± 100 | 550 ± 50 | 29 | - |"
    assert lines[11] == "| random play | - | 219 ± 100 | 100 | 210 ± 108 |"
    assert lines[13] == "5 of 7 agents have a mean above 750 in reality, which counts as solved."
