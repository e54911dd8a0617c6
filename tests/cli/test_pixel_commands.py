"""The commands for worlds of images, one after the other, and the presets' option."""

import json
import re
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from test_iteration import IMAGES, IMPROVED, UNLEARNT, ColumnEnv
from test_reproduction import PRESET
from toy_envs import SpaceEnv
from toy_images import COLOUR, DotEnv
from toy_worlds import random_world

import worldmodel as wm
from worldmodel.cli import reproduce
from worldmodel.experiments import LoopPreset, presets

WIDE = spaces.Box(np.arange(-40.0, 0), np.arange(40.0), dtype=np.float64)  # is printed in several lines
SHORT = "--num-updates 2 --evaluate-every 2 --max-test-batches 1"


@pytest.fixture
def call(run, monkeypatch, tmp_path):
    """Return a function that runs a command which succeeds, and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    if "Dot-v0" not in gym.registry:
        gym.register("Dot-v0", DotEnv, max_episode_steps=15)

    def succeed(words):
        code, printed, said = run(words)
        assert code == 0, said
        return printed

    return succeed


def test_from_frames_to_a_probe_by_the_commands(call):
    call("collect --env Dot-v0 --episodes 6 --policy repeat --out data")
    call(f"train-vae --data data --out vae --latent-size 3 --batch-size 8 {SHORT} --device cpu")
    call("encode --data data --vision vae --device cpu")
    training = f"--window 8 --hidden-size 4 --batch-size 4 {SHORT} --device cpu"
    call(f"train-mdnrnn --data data-encoded --vision vae --out world {training}")
    probing = "--probe --episodes 2 --num-dreams 4 --temperature 0.5 1.15 --out probe.json"
    said = call(f"evaluate --model world --env Dot-v0 {probing} --device cpu")
    assert wm.WorldModel.from_pretrained("world").vision.fingerprint == wm.ConvVAE.from_pretrained("vae").fingerprint
    assert "dream, tau 1.15" in said
    assert "rank correlation" in said
    assert [row["temperature"] for row in json.loads(Path("probe.json").read_text())["dreams"]] == [0.5, 1.15]


def test_an_encoded_set_of_another_v_is_one_line_on_stderr(run, call):
    call("collect --env Dot-v0 --episodes 3 --out data")
    for seed in (0, 1):
        call(f"train-vae --data data --out vae{seed} --latent-size 3 --batch-size 8 {SHORT} --device cpu --seed {seed}")
    call("encode --data data --vision vae0 --device cpu")
    code, _, said = run("train-mdnrnn --data data-encoded --vision vae1 --out world --device cpu")
    assert code == 2
    assert "error: vision: expected the V that data-encoded was encoded with" in said


def test_collecting_with_a_v_stores_what_encoding_would(call):
    call("collect --env Dot-v0 --episodes 4 --out data")
    call(f"train-vae --data data --out vae --latent-size 3 --batch-size 8 {SHORT} --device cpu")
    for options in ("", " --dtype float32", " --precision bfloat16"):
        call(f"encode --data data --vision vae --out encoded --overwrite --device cpu{options}")
        call(f"collect --env Dot-v0 --episodes 4 --vision vae --out direct --overwrite --device cpu{options}")
        encoded, direct = (wm.EpisodeStore.open(path) for path in ("encoded", "direct"))
        assert (direct.fingerprint, direct.recipe) == (encoded.fingerprint, encoded.recipe)
    training = f"--window 8 --hidden-size 4 --batch-size 4 {SHORT} --device cpu"
    call(f"train-mdnrnn --data direct --vision vae --out world {training}")
    assert (Path("world") / "world.json").is_file()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--env Dot-v0 --vision nowhere", "error: nowhere/vision.json: expected .*"),
        ("--env Dot-v0 --vision data", "error: data/vision.json: expected .*"),
        ("--env CartPole-v1 --vision vae", r"error: observation_space: expected V's .*, got Box.* \(4,\), float32\)"),
        ("--env Wide-v0 --vision vae", r"error: observation_space: expected V's .*, got Box.* \(40,\), float64\)"),
        (
            "--env Dot-v0 --vision vae --out data",
            "error: data: expected encoded_with None, as in the run that is there, got .*",
        ),
    ],
)
def test_a_v_that_does_not_fit_is_one_line_on_stderr_and_nothing_is_made(run, call, options, complaint):
    if "Wide-v0" not in gym.registry:
        gym.register("Wide-v0", lambda: SpaceEnv(WIDE, spaces.Discrete(2)))
    call("collect --env Dot-v0 --episodes 3 --out data")
    wm.ConvVAE(COLOUR, wm.VAEConfig(latent_size=3)).save_pretrained("vae")
    before = wm.EpisodeStore.open("data").fingerprint
    code, _, said = run(f"collect --episodes 3 --device cpu --out new {options}")
    assert code == 2
    assert re.fullmatch(complaint, said.splitlines()[-1])  # the bar may come before it
    assert not Path("new").exists()
    assert wm.EpisodeStore.open("data").fingerprint == before


def test_a_probe_needs_no_controller_and_a_score_does(run, call):
    call("collect --env Dot-v0 --episodes 3 --out data")
    call(f"train-vae --data data --out vae --latent-size 3 --batch-size 8 {SHORT} --device cpu")
    call(f"train-mdnrnn --data data --vision vae --out world --window 8 --hidden-size 4 {SHORT} --device cpu")
    code, _, said = run("evaluate --model world --env Dot-v0 --episodes 2 --device cpu")
    assert code == 2
    assert "expected a controller and one temperature, or --probe" in said


def test_a_probe_gives_the_same_scores_with_any_number_of_workers(call, monkeypatch):
    env = gym.make("CartPole-v1")
    random_world(env.action_space, env.observation_space).save_pretrained("world")
    probe, workers = wm.probe, []

    def counted(*arguments, **options):
        workers.append(options["workers"].num_workers)
        return probe(*arguments, **options)

    monkeypatch.setattr(wm, "probe", counted)
    for number in (0, 2):
        numbers = f"--episodes 3 --num-dreams 2 --max-steps 20 --workers {number} --out {number}.json"
        call(f"evaluate --model world --env CartPole-v1 --probe {numbers} --device cpu")
    assert workers == [0, 2]
    assert Path("0.json").read_text() == Path("2.json").read_text()


def test_a_preset_gives_defaults_and_explicit_options_take_precedence(call, monkeypatch, tmp_path):
    monkeypatch.setitem(presets.PRESETS, "doom", replace(PRESET, env="Dot-v0"))
    call("collect --preset doom --out data --episodes 4")
    store = wm.EpisodeStore.open(tmp_path / "data")
    assert len(store) == 4
    assert store.recipe["policy"].startswith("repeat")
    assert store.recipe["max_steps"] == 15


def test_the_doom_experiment_ends_with_its_table_pictures_and_films(call, monkeypatch, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setattr(reproduce.Doom, "PRESET", replace(PRESET, env="Dot-v0", test_episodes=2))
    printed = call("reproduce doom --out out --workers 0 --device cpu")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"table.md", "results.json", "curves.png", "reconstructions.png", "latents.png", "dream.png"}
    assert names >= {"dream.mp4", "reality.mp4", "probe.txt"}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["command"]
    assert results["stages"]["collect"]["commits"] != ["unknown"]
    assert "random play" in printed


def test_an_experiment_without_ppo_has_a_small_scale(call, monkeypatch, tmp_path):
    bare = replace(
        PRESET, env="Dot-v0", test_episodes=2, improvement=None, temperatures=(1.0,), dream_precision="auto", solved=900.0
    )
    monkeypatch.setattr(reproduce.Doom, "PRESET", bare)
    monkeypatch.setattr(reproduce, "small", lambda preset: replace(preset, searches=1))
    call("reproduce doom --out out --scale small --workers 0 --no-video --device cpu")
    assert "0 of 1 agents have a mean above 900" in (tmp_path / "out" / "table.md").read_text()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"table.md", "results.json", "curves.png", "reconstructions.png", "latents.png", "dream.png"}
    assert not any(name.endswith(".mp4") for name in names)


@UNLEARNT
def test_the_car_racing_experiment_ends_with_its_table_and_pictures_and_resumes(call, monkeypatch, tmp_path):
    if "Column-v0" not in gym.registry:
        gym.register("Column-v0", ColumnEnv, max_episode_steps=15)
    config = replace(IMAGES, rounds=IMPROVED, first_policy="repeat")
    tiny = LoopPreset(env=wm.EnvConfig("Column-v0", action_repeat=2), config=config, final_episodes=3, solved=9e9)
    monkeypatch.setattr(reproduce.CarRacing, "PRESET", tiny)
    printed = call("reproduce car-racing --out out --workers 0 --no-video --device cpu --seed 3")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"table.md", "results.json", "curves.png", "reconstructions.png", "latents.png", "dream.png"}
    assert "not solved (above 9e+09)" in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["number"] for row in results["rounds"]] == [1, 2]
    assert results["rounds"][1]["real_steps"] > results["rounds"][0]["real_steps"] > 2 * 6
    assert len(results["final"]["real"]["returns"]) == 3
    (tmp_path / "out" / "final.json").unlink()
    call("reproduce car-racing --out out --workers 0 --no-video --device cpu --seed 3")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["final"] == results["final"]
