"""``--ensemble``, ``--penalty`` and ``--member-per``."""

from pathlib import Path

import numpy as np
import pytest

import worldmodel as wm

TRAINING = "--hidden-size 4 --num-updates 4 --evaluate-every 2 --max-test-batches 1 --latent-head MixtureHead --device cpu"


@pytest.mark.slow
def test_an_ensemble_is_trained_dreamed_and_searched(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wm.collect("CartPole-v1", out="data", num_episodes=6, seed=0)
    for words in (
        f"train-mdnrnn --data data --out world --ensemble 2 {TRAINING}",
        "dream --model world --out plain.npz --num-dreams 8 --horizon 4",
        "dream --model world --out paid.npz --num-dreams 8 --horizon 4 --penalty 10 --member-per step",
        "train-controller --model world --out controller --population 4 --generations 1 --rollouts 2 --horizon 3 "
        "--test-dreams 4 --penalty 1",
    ):
        code, _, said = run(words)
        assert code == 0, said
    assert len(wm.WorldModel.from_pretrained("world").mdnrnn.members) == 2
    pictures = sorted(path.relative_to("world/training").as_posix() for path in Path("world/training").rglob("*.png"))
    assert pictures == ["components.png", "member-1/curves.png", "member-2/curves.png", "uncertainty.png"]
    with np.load("plain.npz") as plain, np.load("paid.npz") as paid:
        assert plain["uncertainty"].shape == plain["rewards"].shape
        assert paid["rewards"][:, 0].mean() < plain["rewards"][:, 0].mean()


def test_a_penalty_without_an_ensemble_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wm.collect("CartPole-v1", out="data", num_episodes=4, seed=0)
    assert run(f"train-mdnrnn --data data --out world --no-plots {TRAINING}")[0] == 0
    code, _, said = run("dream --model world --out d.npz --num-dreams 2 --horizon 2 --penalty 1")
    assert code == 2
    assert "penalty: expected an ensemble in the world model, got a single M; fit it with ensemble=5 (--ensemble 5)" in said
