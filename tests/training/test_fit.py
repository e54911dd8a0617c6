"""`fit`: statistics, files, determinism, resuming and errors."""

import copy
import importlib
import json
import os
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_data import labelled_episode, walking_episode, write_store

from worldmodel.data import EpisodeStore, collect, split_episodes
from worldmodel.models import MDNRNNConfig, WorldModel
from worldmodel.runtime import RunConfig
from worldmodel.training import DataConfig, TrainingConfig, TrainingResult, fit, read_metrics

fit_module = importlib.import_module("worldmodel.training.fit_world")  # the package has a function of this name
SMALL = MDNRNNConfig(hidden_size=8, num_components=2, output_dropout=0.1)
DATA = DataConfig(window=6, batch_size=4, burn_in=1, test_fraction=0.25)
TRAINING = TrainingConfig(num_updates=20, evaluate_every=5, learning_rate=1e-2)


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("walks") / "store", [walking_episode(i, 5 + 3 * i) for i in range(12)]).path


def small_fit(data, out, **options):
    return fit(data, out=out, **({"config": SMALL, "data_config": DATA, "training_config": TRAINING, "seed": 3} | options))


@pytest.fixture(scope="module")
def whole(walks, tmp_path_factory):
    """An uninterrupted run: its directory and its world."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "whole"
    world = small_fit(walks, out)
    torch.set_num_threads(before)
    return out, world


def interrupt_at(update):
    return lambda progress: os.kill(os.getpid(), signal.SIGINT) if progress.done == update else None


def interrupted(walks, out, at=10, **options):
    with pytest.raises(KeyboardInterrupt, match=rf"stopped after update {at} of 20; .* call again to resume"):
        small_fit(walks, out, **options, run=RunConfig(on_progress=interrupt_at(at)))


# Results


def test_calibration_scales_the_termination_head_on_held_out_episodes_and_is_in_the_provenance(tmp_path):
    store = write_store(tmp_path / "store", [walking_episode(i, 4 + i % 5) for i in range(120)]).path
    config = replace(SMALL, termination_weight=10.0)  # which biases the probabilities
    training = replace(TRAINING, num_updates=80, learning_rate=3e-2)
    plain = small_fit(store, tmp_path / "plain", config=config, training_config=training)
    training = replace(training, calibrate=True)
    world = small_fit(store, tmp_path / "calibrated", config=config, training_config=training)
    assert "calibration" not in plain.provenance
    report = world.provenance["calibration"]
    assert report["before"]["observed"] == 30  # a quarter of the episodes, each of which ends
    scale, shift = report["fitted"]["scale"], report["fitted"]["shift"]
    assert report["gain"]["applied"] == 1
    assert scale != 1
    one, other = plain.mdnrnn.termination_head, world.mdnrnn.termination_head
    torch.testing.assert_close(other.weight, scale * one.weight)
    torch.testing.assert_close(other.bias, scale * one.bias + shift)
    assert torch.equal(plain.mdnrnn.latent_head.linear.weight, world.mdnrnn.latent_head.linear.weight)
    assert WorldModel.from_pretrained(tmp_path / "calibrated").provenance["calibration"] == report


def test_without_held_out_episodes_there_is_nothing_to_calibrate_on(walks, tmp_path):
    data_config, training_config = replace(DATA, test_fraction=0.0), replace(TRAINING, calibrate=True)
    world = small_fit(walks, tmp_path / "out", data_config=data_config, training_config=training_config)
    assert world.provenance["calibration"] is None


def test_cartpole_is_predicted_better_than_by_repeating_the_last_observation(tmp_path):
    collect("CartPole-v1", out=tmp_path / "data", num_episodes=60, seed=0)
    world = fit(
        tmp_path / "data",
        out=tmp_path / "run",
        config=MDNRNNConfig(hidden_size=32, num_components=3),
        data_config=DataConfig(window=32, batch_size=16),
        training_config=TrainingConfig(num_updates=300, learning_rate=1e-2, evaluate_every=50),
    )
    held_out = min(row["test/nll_per_dim"] for row in read_metrics(tmp_path / "run" / "training") if "test/nll_per_dim" in row)
    baselines = world.provenance["baselines"]
    assert baselines["linear_gaussian"] < baselines["repeat_last"]
    assert held_out < baselines["repeat_last"] - 0.5
    assert world.provenance["recipes"][0]["env"] == "CartPole-v1"
    assert not world.training


def test_statistics_are_those_of_the_data(whole, walks):
    _, world = whole
    features = [walking_episode(i, 5 + 3 * i).observations for i in range(12)]
    everything = np.concatenate(features)
    assert world.vision.mean.numpy() == pytest.approx(everything.mean(axis=0), abs=0.5)
    assert world.vision.scale.numpy() == pytest.approx(everything.std(axis=0), rel=0.3)
    change = np.concatenate([np.diff(x, axis=0) for x in features]).std(axis=0) / world.vision.scale.numpy()
    assert world.mdnrnn.change_scale.numpy() == pytest.approx(change, rel=0.2)


def test_start_states_are_the_first_observations_spread_over_all_episodes(walks, tmp_path, monkeypatch):
    config = {"training_config": TrainingConfig(num_updates=1)}
    everything = small_fit(walks, tmp_path / "all", **config)
    firsts = np.stack([walking_episode(i, 5 + 3 * i).observations[0] for i in range(12)])
    assert everything.decode(everything.start_mean).numpy() == pytest.approx(firsts, abs=1e-5)
    monkeypatch.setattr(fit_module, "MAX_START_STATES", 4)
    some = small_fit(walks, tmp_path / "some", **config)
    assert some.decode(some.start_mean).numpy() == pytest.approx(firsts[[0, 3, 6, 9]], abs=1e-5)


def test_normaliser_and_statistics_see_training_episodes_only(tmp_path):
    paths = []
    for name, shift in (("one", 0.0), ("two", 1000.0)):
        episodes = [walking_episode(i, 10) for i in range(4)]
        held_out = split_episodes(4, test_fraction=0.25, seed=3)[1]
        for index in held_out:
            episodes[index].observations[:] += shift
        paths.append(write_store(tmp_path / name, episodes).path)
    one, two = (small_fit(path, tmp_path / f"run{i}") for i, path in enumerate(paths))
    assert torch.equal(one.vision.mean, two.vision.mean)
    assert torch.equal(one.mdnrnn.latent_high, two.mdnrnn.latent_high)
    assert one.provenance["baselines"] != two.provenance["baselines"]  # which are scored on what is held out


# Determinism


def test_same_arguments_same_bits_whatever_the_global_seed(walks, tmp_path, whole):
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = small_fit(walks, tmp_path / "again")
    assert torch.equal(before, torch.random.get_rng_state())
    assert again.fingerprint == whole[1].fingerprint
    assert small_fit(walks, tmp_path / "other", seed=4).fingerprint != whole[1].fingerprint


def test_resident_and_streamed_training_give_the_same_bits(walks, tmp_path, whole):
    for resident in (True, False):
        world = small_fit(walks, tmp_path / str(resident), data_config=replace(DATA, resident=resident))
        assert world.fingerprint == whole[1].fingerprint


def test_a_run_may_be_resumed_with_other_residence_of_the_data(walks, tmp_path, whole):
    interrupted(walks, tmp_path / "run")
    world = small_fit(walks, tmp_path / "run", data_config=replace(DATA, resident=False))
    assert world.fingerprint == whole[1].fingerprint


def test_calibration_is_recorded_only_if_it_is_requested(walks, tmp_path):
    interrupted(walks, tmp_path / "plain")
    interrupted(walks, tmp_path / "calibrated", training_config=replace(TRAINING, calibrate=True))
    plain, calibrated = (json.loads((tmp_path / name / "fit.json").read_text()) for name in ("plain", "calibrated"))
    assert calibrated.pop("calibrate") is True
    assert calibrated.pop("sha256") != plain.pop("sha256")
    assert plain == calibrated
    with pytest.raises(ValueError, match=r"expected calibrate True, .* got None"):
        small_fit(walks, tmp_path / "calibrated")


def test_the_directory_opens_as_the_world_that_was_returned(whole):
    out, world = whole
    opened = WorldModel.from_pretrained(out)
    assert opened.fingerprint == world.fingerprint
    assert opened.provenance == json.loads(json.dumps(world.provenance))


def test_baselines_are_scored_on_the_windows_of_the_evaluation(walks, tmp_path, whole):
    few = small_fit(walks, tmp_path / "few", training_config=TrainingConfig(num_updates=1, max_test_batches=1))
    assert few.provenance["baselines"]["repeat_last"] != whole[1].provenance["baselines"]["repeat_last"]


def test_one_episode_trains_without_held_out_data(tmp_path):
    path = write_store(tmp_path / "store", [walking_episode(0, 30)]).path
    world = small_fit(path, tmp_path / "run")
    assert world.provenance["training"]["best_metrics"] == {}
    assert world.provenance["baselines"]["repeat_last"] > 0


def test_two_episodes_leave_one_to_train_and_one_to_test(tmp_path):
    path = write_store(tmp_path / "store", [walking_episode(0, 30), walking_episode(1, 30)]).path
    assert small_fit(path, tmp_path / "run").provenance["training"]["best_metrics"]["loss"] < torch.inf


@pytest.mark.filterwarnings("ignore:.*expected at least 20 episodes")  # so few are meant
def test_episodes_of_one_step_are_enough(tmp_path):
    path = write_store(tmp_path / "store", [labelled_episode(i, 1) for i in range(5)]).path
    config = DataConfig(window=50, burn_in=100, batch_size=2, test_fraction=0.2)
    world = small_fit(path, tmp_path / "run", data_config=config)
    assert world.provenance["num_steps"] == 5
    assert -torch.inf < world.provenance["training"]["best_metrics"]["loss"] < torch.inf
    assert world.start_mean.shape[0] == 5


# Resuming


@pytest.mark.parametrize("at", [5, 10, 20])
def test_ctrl_c_and_resume_equals_never_stopping(walks, tmp_path, whole, at):
    interrupted(walks, tmp_path / "run", at)
    assert not (tmp_path / "run" / "world.json").exists()
    resumed = small_fit(walks, tmp_path / "run")
    assert resumed.fingerprint == whole[1].fingerprint
    assert read_metrics(tmp_path / "run" / "training") == read_metrics(whole[0] / "training")


def test_resume_starts_a_new_run_in_an_empty_directory(walks, tmp_path, whole):
    assert small_fit(walks, tmp_path / "run").fingerprint == whole[1].fingerprint


def test_resuming_a_complete_run_returns_it_and_writes_nothing(walks, whole):
    def times():
        return {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")}

    before = times()
    world = small_fit(walks, whole[0], run=RunConfig(on_progress=lambda progress: pytest.fail("it trained")))
    assert world.fingerprint == whole[1].fingerprint
    assert times() == before


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": replace(SMALL, hidden_size=9)}, r"mdnrnn \{'hidden_size': 8\}, .* got \{'hidden_size': 9\}"),
        ({"config": replace(SMALL, min_scale=0.1)}, r"mdnrnn \{'min_scale': 0.03\}, .* got \{'min_scale': 0.1\}"),
        ({"data_config": DataConfig(window=7)}, r"data_config \{'window': 6, .* got \{'window': 7,"),
        ({"training_config": TrainingConfig(num_updates=21)}, r"training_config \{'num_updates': 20"),
        ({"seed": 4}, "seed 3, .* got 4"),
    ],
)
def test_resume_rejects_other_arguments(walks, tmp_path, whole, complete, change, named):
    out = whole[0] if complete else tmp_path / "run"
    if not complete:
        interrupted(walks, out)
    with pytest.raises(ValueError, match=f"expected {named}.*use the same arguments"):
        small_fit(walks, out, **change)


def test_resume_rejects_other_data_and_another_initial_world(walks, tmp_path, whole):
    interrupted(walks, tmp_path / "run")
    other = write_store(tmp_path / "other", [walking_episode(i, 9) for i in range(3)]).path
    with pytest.raises(ValueError, match=r"run: expected data_fingerprint .*, as in the run that is there, got"):
        small_fit(other, tmp_path / "run")
    options = {"data_config": DATA, "training_config": TRAINING, "seed": 3}
    with pytest.raises(ValueError, match=r"expected initial None, .* got"):
        fit(walks, out=tmp_path / "run", initial=whole[1], **options)


def test_an_earlier_run_is_replaced_only_on_request(walks, tmp_path):
    out = tmp_path / "run"
    interrupted(walks, out)
    with pytest.raises(FileExistsError, match=r"expected no earlier run, got one; .*overwrite"):
        small_fit(walks, out, run=RunConfig(resume=False))
    one = TrainingConfig(num_updates=1)
    assert small_fit(walks, out, training_config=one, run=RunConfig(overwrite=True)).provenance["training"]["updates"] == 1


def test_a_directory_without_a_run_is_never_changed(walks, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    for run in (RunConfig(resume=False), RunConfig(), RunConfig(overwrite=True)):
        with pytest.raises(FileExistsError, match="with other files"):
            small_fit(walks, tmp_path, run=run)
    with pytest.raises(FileExistsError, match="with other files"):
        small_fit(walks, walks, run=RunConfig(overwrite=True))
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_invalid_arguments_leave_the_earlier_run(walks, tmp_path):
    out = tmp_path / "run"
    interrupted(walks, out)
    with pytest.raises(ValueError, match=r"seed: expected|seed.*>= 0"):
        small_fit(walks, out, seed=-1, run=RunConfig(overwrite=True))
    with pytest.raises(ValueError, match=r"latent_head: expected one of the registered classes .*'MixtureHead'.*'Nothing'"):
        small_fit(walks, out, config=replace(SMALL, latent_head="Nothing"), run=RunConfig(overwrite=True))
    assert (out / "training" / "state.safetensors").is_file()


# From an earlier world model


def test_initial_keeps_vision_sizes_and_weights(walks, tmp_path, whole):
    gentle = TrainingConfig(num_updates=1, learning_rate=1e-12, final_learning_rate=0.0)
    before = whole[1].fingerprint
    again = fit(walks, out=tmp_path / "run", initial=whole[1], data_config=DATA, training_config=gentle, seed=3)
    assert again.provenance["initial"] == before
    assert again.mdnrnn.config == whole[1].mdnrnn.config
    assert torch.equal(again.vision.scale, whole[1].vision.scale)
    for name, tensor in whole[1].mdnrnn.state_dict().items():
        assert torch.allclose(again.mdnrnn.state_dict()[name], tensor, atol=1e-6)


def test_initial_is_copied_and_not_trained_itself(walks, tmp_path, whole):
    before = whole[1].fingerprint
    trained = fit(walks, out=tmp_path / "run", initial=whole[1], data_config=DATA, training_config=TRAINING, seed=3)
    assert trained.fingerprint != before == whole[1].fingerprint


def test_the_v_of_an_initial_world_may_be_given_too_but_no_other(walks, tmp_path, whole):
    arguments = {"initial": whole[1], "data_config": DATA, "training_config": TRAINING, "seed": 3}
    alone = fit(walks, out=tmp_path / "alone", **arguments)
    assert fit(walks, out=tmp_path / "both", vision=whole[1].vision, **arguments).fingerprint == alone.fingerprint
    other = copy.deepcopy(whole[1].vision)
    other.scale.mul_(2)
    with pytest.raises(ValueError, match="vision: expected None or the V of the initial world model"):
        fit(walks, out=tmp_path / "other", vision=other, **arguments)


def test_the_bounds_of_dreams_hold_the_data_of_an_initial_world_and_the_new_ones(tmp_path):
    near = [walking_episode(i, 12) for i in range(6)]
    far = [replace(one, observations=50 * one.observations) for one in near]
    stores = {name: write_store(tmp_path / name, episodes).path for name, episodes in {"near": near, "far": far}.items()}
    first = small_fit(stores["near"], tmp_path / "first")
    wider = fit(stores["far"], out=tmp_path / "wider", initial=first, data_config=DATA, training_config=TRAINING)
    again = fit(stores["near"], out=tmp_path / "again", initial=wider, data_config=DATA, training_config=TRAINING)
    assert (wider.mdnrnn.latent_low < first.mdnrnn.latent_low).all()
    assert (wider.mdnrnn.latent_high > 5 * first.mdnrnn.latent_high).any()
    assert torch.equal(again.mdnrnn.latent_high, wider.mdnrnn.latent_high)
    assert torch.equal(wider.mdnrnn.change_scale, first.mdnrnn.change_scale)  # the units stay


def test_an_initial_world_learns_the_bounds_of_the_training_episodes(tmp_path):
    near = [walking_episode(i, 12) for i in range(6)]
    first = small_fit(write_store(tmp_path / "near", near).path, tmp_path / "first")
    train, _ = split_episodes(6, test_fraction=DATA.test_fraction, seed=0)
    near[train[0]] = replace(near[train[0]], observations=1000 * near[train[0]].observations)
    far = write_store(tmp_path / "far", near).path
    wider = fit(far, out=tmp_path / "wider", initial=first, data_config=DATA, training_config=TRAINING, seed=0)
    assert (
        wider.mdnrnn.latent_high - wider.mdnrnn.latent_low > 50 * (first.mdnrnn.latent_high - first.mdnrnn.latent_low)
    ).any()


def test_initial_and_a_configuration_together_are_rejected(walks, tmp_path, whole):
    with pytest.raises(ValueError, match="config: expected None with an initial world model"):
        fit(walks, out=tmp_path / "run", initial=whole[1], config=SMALL)


def test_data_of_another_environment_are_rejected(tmp_path, whole):
    three = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    for name, options in (
        ("observation", {"observation_space": three}),
        ("action", {"action_space": spaces.Discrete(5)}),
    ):
        path = write_store(tmp_path / name, [], **options).path
        store = EpisodeStore.open(path)
        episode = walking_episode(0, 5)
        if name == "observation":
            wide = np.zeros((6, 3), dtype=np.float32)
            episode = type(episode)(**{**vars(episode), "observations": wide})
        store.append([episode])
        with pytest.raises(ValueError, match=rf"{name}: expected the world model's {name} space .*, got"):
            fit(path, out=tmp_path / "run", initial=whole[1])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(16, 12, 3), (1, 8, 8), (32, 32), (64, 64)], ids=str)
def test_images_of_floats_are_rejected(tmp_path, shape):
    space = spaces.Box(0, 1, shape, np.float32)
    store = write_store(tmp_path / "data", [], observation_space=space)
    store.append([replace(walking_episode(0, 5), observations=np.zeros((6, *space.shape), np.float32))])
    message = rf"observation '': expected images as uint8 .*, got floats of shape {re.escape(str(shape))}; .*FlattenObservation"
    with pytest.raises(ValueError, match=message):
        small_fit(tmp_path / "data", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_small_matrix_of_floats_is_a_vector(tmp_path):
    space = spaces.Box(0, 1, (31, 40), np.float32)
    store = write_store(tmp_path / "data", [], observation_space=space)
    store.append([replace(walking_episode(i, 5), episode_id=i, observations=np.zeros((6, 31, 40), np.float32)) for i in (0, 1)])
    assert small_fit(tmp_path / "data", tmp_path / "run").vision.latent_size == 31 * 40


# Missing or empty data


def test_empty_and_missing_data_are_named(tmp_path):
    empty = write_store(tmp_path / "empty", []).path
    with pytest.raises(ValueError, match=r"empty: expected at least one episode to train on, got none"):
        small_fit(empty, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"nowhere.*expected the manifest of an episode store"):
        small_fit(tmp_path / "nowhere", tmp_path / "run")
    with pytest.raises(ValueError, match="stores: expected at least one, got none"):
        small_fit([], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("window", 0), ("window", 2.5), ("burn_in", -1), ("batch_size", 0), ("test_fraction", 1.0), ("test_fraction", -0.1)],
)
def test_data_config_rejects_fields_out_of_range(field, value):
    with pytest.raises((TypeError, ValueError), match=f"{field}: expected"):
        DataConfig(**{field: value})


def test_one_store_given_twice_is_rejected(walks, tmp_path):
    with pytest.raises(ValueError, match="expected different stores, got one twice"):
        small_fit([walks, walks], tmp_path / "run")


@pytest.mark.filterwarnings("ignore:.*expected at least 20 episodes")  # so few are meant
def test_the_termination_head_exists_if_an_episode_terminates(tmp_path):
    for name, ends in {"never": [False] * 4, "once": [False, False, True, False]}.items():
        data = write_store(tmp_path / name, [labelled_episode(i, 6, terminated=end) for i, end in enumerate(ends)]).path
        world = small_fit(data, tmp_path / f"run-{name}")
        assert (world.mdnrnn.termination_head is not None) == any(ends)


def test_an_initial_world_without_a_termination_head_stays_so_on_data_that_terminate(tmp_path):
    for name, end in {"never": False, "once": True}.items():
        write_store(tmp_path / name, [labelled_episode(i, 6, terminated=end and i == 2) for i in range(24)])
    never = small_fit(tmp_path / "never", tmp_path / "run")
    again = fit(tmp_path / "once", out=tmp_path / "more", initial=never, data_config=DATA, training_config=TRAINING)
    assert again.mdnrnn.termination_head is None


def test_an_untrained_termination_head_predicts_the_rate_of_terminations(walks, tmp_path, monkeypatch):
    monkeypatch.setattr(
        importlib.import_module("worldmodel.training.loop"), "train", lambda *_, **__: TrainingResult(0, 0, {}, 0.0)
    )
    world = small_fit(walks, tmp_path / "run")
    store = EpisodeStore.open(walks)
    rate = sum(episode.terminations.any() for episode in store) / store.num_steps
    assert world.mdnrnn.termination_head.bias.sigmoid().item() == pytest.approx(rate, rel=0.5)
    assert rate < 0.25


def test_an_unavailable_device_leaves_the_earlier_run(walks, tmp_path):
    small_fit(walks, tmp_path / "run")
    with pytest.raises(ValueError, match="device: expected an available device"):
        small_fit(walks, tmp_path / "run", device="nonsense", run=RunConfig(overwrite=True))
    assert WorldModel.from_pretrained(tmp_path / "run").mdnrnn is not None


def test_data_inside_the_output_are_not_removed(walks, tmp_path):
    small_fit(walks, tmp_path / "run")
    shutil.copytree(walks, tmp_path / "run" / "data")
    with pytest.raises(FileExistsError, match="got also 'data'"):
        small_fit(tmp_path / "run" / "data", tmp_path / "run", run=RunConfig(overwrite=True))
    assert len(EpisodeStore.open(tmp_path / "run" / "data")) == len(EpisodeStore.open(walks))
