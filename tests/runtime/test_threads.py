"""A run keeps the number of threads that it was started with."""

import json
import warnings

import pytest
import torch
from toy_worlds import random_world

import worldmodel as wm
from worldmodel.training import TrainingConfig

SMALL = {"config": wm.MDNRNNConfig(hidden_size=4), "data_config": wm.DataConfig(window=8, batch_size=4)}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stop_after(updates, **options):
    def on_progress(progress):
        if (progress.stage == "train M" and progress.done >= updates) or progress.stage == "search":
            raise KeyboardInterrupt

    return wm.RunConfig(on_progress=on_progress, progress=False, **options)


def fit(path, run, updates=40):
    return wm.fit(path / "data", out=path / "world", training_config=TrainingConfig(num_updates=updates), run=run, **SMALL)


def interrupted_fit(path, **options):
    wm.collect("CartPole-v1", out=path / "data", num_episodes=4, seed=0)
    with pytest.raises(KeyboardInterrupt):
        fit(path, stop_after(10, **options))
    assert json.loads((path / "world" / "fit.json").read_text())["threads"] == torch.get_num_threads() + ("threads" in options)


def test_a_resumed_fit_sets_the_number_it_was_started_with_and_says_so(tmp_path):
    interrupted_fit(tmp_path)
    torch.set_num_threads(2)
    seen = []
    with pytest.warns(UserWarning, match="was started with 1 and is resumed with 1, not 2"):
        fit(tmp_path, wm.RunConfig(on_progress=lambda _: seen.append(torch.get_num_threads())))
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2  # as before the call


def test_a_conflicting_number_is_refused_and_the_same_is_not(tmp_path):
    interrupted_fit(tmp_path)
    with pytest.raises(ValueError, match=r"threads: expected 1, as in the run in .*, got 2"):
        fit(tmp_path, wm.RunConfig(threads=2))
    fit(tmp_path, wm.RunConfig(threads=1))


def test_a_new_run_takes_the_number_that_is_asked_for(tmp_path):
    interrupted_fit(tmp_path, threads=2)
    assert torch.get_num_threads() == 1


def test_a_run_of_an_earlier_version_is_resumed(tmp_path):
    interrupted_fit(tmp_path)
    file = tmp_path / "world" / "fit.json"
    content = json.loads(file.read_text())
    del content["threads"], content["sha256"]
    file.write_text(json.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        world = fit(tmp_path, wm.RunConfig())
    assert "threads" not in json.loads(file.read_text())  # what is not known is not recorded later
    assert world.provenance["training"]["updates"] > 0


def test_a_resumed_search_sets_its_number(tmp_path):
    dreams, search = wm.Dreams(random_world(), 8), wm.SearchConfig(population=4, generations=3, test_dreams=4)
    with pytest.raises(KeyboardInterrupt):
        wm.evolve(dreams, config=search, horizon=4, log=tmp_path / "log", run=stop_after(0))
    torch.set_num_threads(2)
    with pytest.warns(UserWarning, match="started with 1"):
        wm.evolve(dreams, config=search, horizon=4, log=tmp_path / "log")
    with pytest.raises(ValueError, match="threads: expected 1"):
        wm.evolve(dreams, config=search, horizon=4, log=tmp_path / "log", run=wm.RunConfig(threads=2))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2"])
def test_a_number_out_of_range_is_refused(wrong):
    with pytest.raises((TypeError, ValueError), match="threads"):
        wm.RunConfig(threads=wrong)
