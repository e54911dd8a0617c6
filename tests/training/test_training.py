"""The training loop: saving, resuming, stopping, clipping, learning rates and choice of weights."""

import errno
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toy_data import ACTION, OBSERVATION, labelled_episode, walking_episode, write_store

from worldmodel.data import EpisodeCollection
from worldmodel.models import MDNRNN, DataStatistics, MDNRNNConfig, StateNormalizer, encode_all, mdnrnn, run_lstm
from worldmodel.runtime import RunConfig, device, files
from worldmodel.spaces import FlatSpace
from worldmodel.training import (
    MetricsLog,
    NonFiniteLossError,
    SequenceData,
    TrainingConfig,
    WindowSampler,
    learning_rate,
    loop,
    read_metrics,
    train,
)

# A model of one layer whose losses are known, and batches that say what they are


@dataclass(frozen=True)
class Number:
    """A batch: the loss is (w - target)^2 times slope, over ``weight`` examples."""

    target: float
    weight: int = 1
    slope: float = 1.0


@dataclass
class Numbers:
    """The same list of batches in every epoch; records which were read."""

    batches: list

    def __post_init__(self):
        self.asked = []

    def num_batches(self, epoch):
        return len(self.batches)

    def batch(self, epoch, index, *, generator=None):
        self.asked.append((epoch, index))
        return self.batches[index]


class Parabola(nn.Module):
    """Two weights with a squared error to the batch's number."""

    def __init__(self, start=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.full((2,), start))

    def loss(self, batch, *, generator=None):
        loss = batch.slope * (self.w - batch.target).square().sum()
        return loss, {"distance": (self.w.detach() - batch.target).abs().mean()}


class Slope(nn.Module):
    """A loss with the gradient (30, 40)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def loss(self, batch, *, generator=None):
        return (self.w * torch.tensor([30.0, 40.0])).sum(), {}


def run_numbers(tmp_path, model, train_batches, test_batches=None, **config):
    test = None if test_batches is None else Numbers(test_batches)
    data = Numbers(train_batches)
    result = train(model, data, out=tmp_path, config=TrainingConfig(**config), seed=0, test_data=test)
    return result, data, test


# A small MDN-RNN with dropout on walks, so that every kind of state matters


CONFIG = TrainingConfig(num_updates=40, evaluate_every=8, learning_rate=1e-2, warmup_updates=5)


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    path = tmp_path_factory.mktemp("walks") / "store"
    return write_store(path, [walking_episode(i, 5 + 3 * i) for i in range(12)])


class NoisyVision(StateNormalizer):
    def encode(self, observation):
        mean, _ = super().encode(observation)
        return mean, torch.full_like(mean, -4.0)


def make_data(store, which=slice(0, 9), *, shuffle=True):
    episodes = EpisodeCollection([store])
    index = np.arange(len(episodes))[which]
    sampler = WindowSampler(index, episodes.lengths[index], window=6, burn_in=2, batch_size=4, seed=0, shuffle=shuffle)
    return SequenceData(episodes, sampler, NoisyVision(OBSERVATION), FlatSpace(ACTION))


def make_model(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"hidden_size": 8, "num_components": 2, "input_dropout": 0.2, "output_dropout": 0.2} | options
        return MDNRNN(2, 3, MDNRNNConfig(**options))


def run(store, out, *, model=None, config=CONFIG, data=None, **options):
    """Train on the first nine walks, evaluating on the others; returns the result and the model."""
    model = model or make_model()
    held_out = make_data(store, slice(9, None), shuffle=False)
    options = {"seed": 3, "fingerprint": "walks", "test_data": held_out} | options
    return train(model, data or make_data(store), out=out, config=config, **options), model


@pytest.fixture(scope="module")
def whole(walks, tmp_path_factory):
    """An uninterrupted run: its directory, result and model."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    result, model = run(walks, out)
    torch.set_num_threads(before)
    return out, result, model


def assert_same_run(out, result, model, whole):
    """Bit for bit: weights, Adam's moments, generator, best weights and log."""
    expected_out, expected, expected_model = whole
    assert (result.updates, result.best_update, result.best_metrics["loss"]) == (
        expected.updates,
        expected.best_update,
        expected.best_metrics["loss"],
    )
    for name, tensor in expected_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    for file in ("state.safetensors", "best.safetensors"):
        one, two = (files.load_tensors(path / file) for path in (out, expected_out))
        assert one[0].keys() == two[0].keys()
        assert all(torch.equal(one[0][name], two[0][name]) for name in two[0])
        assert one[1] == two[1]
    assert read_metrics(out) == read_metrics(expected_out)


# Stopping and resuming


def test_training_depends_on_its_seed_only(walks, tmp_path, whole):
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    assert_same_run(tmp_path, *run(walks, tmp_path), whole)
    assert torch.equal(before, torch.random.get_rng_state())


def test_another_seed_gives_another_run(walks, tmp_path, whole):
    _, model = run(walks, tmp_path, seed=4)
    assert not torch.equal(model.lstm.weight_hh_l0, whole[2].lstm.weight_hh_l0)


@pytest.mark.parametrize("at", [8, 10, 16, 30, 40])
def test_ctrl_c_and_resume_equals_never_stopping(walks, tmp_path, whole, at):
    def interrupt(progress):
        if progress.done == at:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=rf"stopped after update {at} of 40; .* call again to resume"):
        run(walks, tmp_path, run=RunConfig(on_progress=interrupt))
    assert signal.getsignal(signal.SIGINT) is before
    assert_same_run(tmp_path, *run(walks, tmp_path, model=make_model(hidden_size=8)), whole)


def test_stopping_many_times_equals_never_stopping(walks, tmp_path, whole, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 10)
    for at in (8, 10, 16, 20, 24, 30, 32):
        with pytest.raises(KeyboardInterrupt):
            run(
                walks,
                tmp_path,
                run=RunConfig(on_progress=lambda p, at=at: os.kill(os.getpid(), signal.SIGINT) if p.done == at else None),
            )
    assert_same_run(tmp_path, *run(walks, tmp_path), whole)


def test_an_error_in_the_listener_loses_nothing_that_was_saved(walks, tmp_path, whole):
    def fail(progress):
        if progress.done == 30:
            raise OSError("the progress bar broke")

    with pytest.raises(OSError, match="the progress bar broke"):
        run(walks, tmp_path, run=RunConfig(on_progress=fail))
    assert read_metrics(tmp_path)[-1]["update"] == 30  # logged, but the state is of update 24
    assert_same_run(tmp_path, *run(walks, tmp_path), whole)


TESTS = [str(path) for path in Path(__file__).parents[:2]]
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {tests!r}
import torch
import test_training
from worldmodel.data import EpisodeStore
from worldmodel.runtime import RunConfig
torch.set_num_threads(1)
replace, writes = os.replace, 0
def kill(progress):
    if progress.done == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
def kill_while_writing(source, target):
    global writes
    writes += Path(target).name == {file!r}
    if writes == {write}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = kill_while_writing
test_training.run(EpisodeStore.open({store!r}), {out!r}, run=RunConfig(on_progress=kill))
"""


@pytest.mark.parametrize(
    ("at", "file", "write", "saved"),
    [(30, "", -1, 24), (-1, "state.safetensors", 3, 16), (-1, "best.safetensors", 1, 0)],
    ids=["between saves", "while writing the state", "while writing the first best weights"],
)
def test_kill_9_and_resume_equals_never_stopping(walks, tmp_path, whole, at, file, write, saved):
    out = tmp_path / "run"
    script = KILLED.format(tests=TESTS, at=at, file=file, write=write, store=str(walks.path), out=str(out))
    killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if saved:
        state = json.loads(files.load_tensors(out / "state.safetensors")[1]["state"])["state"]
        assert state["update"] == saved
    assert_same_run(out, *run(walks, out), whole)
    assert not list(out.glob(".*"))


def test_a_truncated_last_row_of_a_killed_run_is_ignored(walks, tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        run(walks, tmp_path, run=RunConfig(on_progress=lambda p: os.kill(os.getpid(), signal.SIGINT) if p.done == 20 else None))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"update": 24, "train/loss": 1.0}\n{"update": 30, "train/lo')
    assert [row["update"] for row in read_metrics(tmp_path)] == [8, 10, 16, 20, 24]
    assert_same_run(tmp_path, *run(walks, tmp_path), whole)


def test_resuming_a_finished_run_changes_nothing(walks, tmp_path, whole):
    run(walks, tmp_path)
    assert_same_run(tmp_path, *run(walks, tmp_path), whole)


def test_saving_often_changes_nothing(walks, tmp_path, whole, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    saves = []
    monkeypatch.setattr(loop._Run, "save", lambda self, save=loop._Run.save: (saves.append(1), save(self)))
    assert_same_run(tmp_path, *run(walks, tmp_path), whole)
    assert len(saves) == 40


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": TrainingConfig(num_updates=41)}, "config"),
        ({"seed": 4}, "seed"),
        ({"fingerprint": "other walks"}, "fingerprint"),
    ],
)
def test_resume_rejects_another_run(walks, tmp_path, change, named):
    run(walks, tmp_path, config=TrainingConfig(num_updates=2))
    with pytest.raises(ValueError, match=rf"state.safetensors: expected {named} .*as in the run that is there, got"):
        run(walks, tmp_path, **{"config": TrainingConfig(num_updates=2)} | change)


def test_resume_rejects_another_model_and_files_of_another_format(walks, tmp_path):
    config = TrainingConfig(num_updates=2)
    run(walks, tmp_path, config=config)
    with pytest.raises(ValueError, match="expected the weights of this model, got those of another one"):
        run(walks, tmp_path, config=config, model=make_model(hidden_size=9))
    files.save_tensors(tmp_path / "state.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"expected format 'worldmodel\.training', got None"):
        run(walks, tmp_path, config=config)
    (tmp_path / "state.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="expected a safetensors file, got a damaged file"):
        run(walks, tmp_path, config=config)


def test_a_run_is_not_overwritten_by_accident(walks, tmp_path):
    run(walks, tmp_path, config=TrainingConfig(num_updates=2))
    with pytest.raises(FileExistsError, match="expected no earlier training"):
        run(walks, tmp_path, config=TrainingConfig(num_updates=2), run=RunConfig(resume=False))


def test_a_run_without_held_out_data_is_replaced_though_it_has_no_best_weights(tmp_path):
    for _ in range(2):
        config, run_config = TrainingConfig(num_updates=2), RunConfig(overwrite=True)
        result = train(Slope(), Numbers([[1.0]]), out=tmp_path, config=config, seed=0, run=run_config)
        assert result.updates == 2


def test_overwrite_trains_again_from_the_start(walks, tmp_path, whole):
    run(walks, tmp_path, config=TrainingConfig(num_updates=2), seed=8)
    (tmp_path / "notes.txt").write_text("mine")
    assert_same_run(tmp_path, *run(walks, tmp_path, run=RunConfig(overwrite=True)), whole)
    assert (tmp_path / "notes.txt").is_file()


# Not finite


@dataclass
class Poisoned:
    """Data with one batch whose rewards are not finite."""

    data: SequenceData
    epoch: int
    index: int

    def num_batches(self, epoch):
        return self.data.num_batches(epoch)

    def batch(self, epoch, index, *, generator=None):
        batch = self.data.batch(epoch, index, generator=generator)
        if (epoch, index) == (self.epoch, self.index):
            batch.reward[:] = math.nan
        return batch


def test_a_loss_that_is_not_finite_stops_the_training_names_the_update_and_saves_the_earlier_state(walks, tmp_path, whole):
    per_epoch = make_data(walks).num_batches(0)
    assert per_epoch + 4 < 40
    with pytest.raises(NonFiniteLossError, match=rf"update {per_epoch + 4}, batch 3 of epoch 1: .*reward_nll = nan") as caught:
        run(walks, tmp_path, data=Poisoned(make_data(walks), 1, 3))
    assert "nll_per_dim" not in str(caught.value)  # only what is not finite
    assert f"after {per_epoch + 3} updates, is in {tmp_path}" in str(caught.value)
    assert_same_run(tmp_path, *run(walks, tmp_path), whole)


def test_a_gradient_that_is_not_finite_stops_too(tmp_path):
    class Cliff(Slope):
        def loss(self, batch, *, generator=None):
            return self.w.abs().sqrt().sum(), {}  # 0, but with an infinite gradient

    with pytest.raises(NonFiniteLossError, match=r"update 1, batch 0 of epoch 0: .*got gradient norm = nan"):
        run_numbers(tmp_path, Cliff(), [Number(0.0)], num_updates=3)


def test_a_held_out_loss_that_is_not_finite_stops_too(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"evaluation after update 2, held-out batch 1: .*got loss = nan"):
        run_numbers(tmp_path, Parabola(), [Number(1.0)], [Number(1.0), Number(math.nan)], num_updates=4, evaluate_every=2)
    assert (tmp_path / "state.safetensors").is_file()


# The optimiser


def test_learning_rate_warms_up_and_then_follows_a_cosine():
    config = TrainingConfig(num_updates=101, warmup_updates=20, learning_rate=1e-2, final_learning_rate=1e-4)
    rates = [learning_rate(config, update) for update in range(101)]
    assert rates[:20] == pytest.approx([1e-2 * (i + 1) / 20 for i in range(20)])
    assert rates[20] == pytest.approx(1e-2)
    assert rates[60] == pytest.approx((1e-2 + 1e-4) / 2)
    assert rates[100] == pytest.approx(1e-4)
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))


def test_the_optimiser_uses_the_learning_rate_of_each_update(tmp_path):
    model, positions = Slope(), [0.0]

    class Watched(Numbers):
        def batch(self, epoch, index, *, generator=None):
            positions.append(model.w[0].item())
            return super().batch(epoch, index)

    config = TrainingConfig(num_updates=6, warmup_updates=2, learning_rate=1e-2, final_learning_rate=1e-3)
    train(model, Watched([Number(0.0)]), out=tmp_path, config=config, seed=0)
    moves = -np.diff([*positions[1:], model.w[0].item()])  # Adam moves by the rate where the gradient is constant
    assert moves == pytest.approx([learning_rate(config, update) for update in range(6)], rel=1e-3)
    assert read_metrics(tmp_path)[-1]["learning_rate"] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"clip_norm": None}, [30.0, 40.0]),
        ({"clip_norm": 100.0}, [30.0, 40.0]),
        ({"clip_norm": 5.0}, [3.0, 4.0]),
        ({"clip_norm": None, "clip_value": 35.0}, [30.0, 35.0]),
        ({"clip_norm": 5.0, "clip_value": 3.5}, [3.0, 3.5]),
    ],
)
def test_gradients_are_clipped_as_configured(tmp_path, config, expected):
    model = Slope()
    run_numbers(tmp_path, model, [Number(0.0)], num_updates=1, **config)
    assert model.w.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_bfloat16_trains_nearly_as_float32(walks, tmp_path, monkeypatch):
    losses, dtypes = {}, {}
    for precision in ("float32", "bfloat16"):
        config = TrainingConfig(num_updates=60, evaluate_every=20, learning_rate=1e-2, precision=precision)
        model = make_model(input_dropout=0.0, output_dropout=0.0)

        def spy(*arguments, of=precision):
            output, state = run_lstm(*arguments)
            dtypes[of] = output.dtype
            return output, state

        monkeypatch.setattr(mdnrnn, "run_lstm", spy)
        result, _ = run(walks, tmp_path / precision, config=config, model=model)
        losses[precision] = [row["test/loss"] for row in read_metrics(tmp_path / precision) if "test/loss" in row]
        assert result.best_metrics["loss"] == min(losses[precision]) < losses[precision][0] - 0.05
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert dtypes == {"float32": torch.float32, "bfloat16": torch.bfloat16}
    assert losses["float32"] != losses["bfloat16"]
    assert losses["float32"] == pytest.approx(losses["bfloat16"], abs=0.1)


@pytest.mark.parametrize("fast", ["float32", "bfloat16"])
def test_auto_precision_is_what_the_device_is_fast_in_and_a_resumed_run_keeps_it(walks, tmp_path, monkeypatch, fast):
    def losses(name, precision):
        run(walks, tmp_path / name, config=TrainingConfig(num_updates=3, precision=precision))
        return [row["train/loss"] for row in read_metrics(tmp_path / name)]

    monkeypatch.setattr(device, "fast_precision", lambda device: fast)
    assert losses("auto", "auto") == losses("given", fast)
    monkeypatch.setattr(device, "fast_precision", lambda device: "float16")
    with pytest.raises(ValueError, match=f"expected config .*'precision': '{fast}'"):
        run(walks, tmp_path / "auto", config=TrainingConfig(num_updates=3, precision="auto"))


# Held-out data


def test_early_stopping_picks_the_best_weights(tmp_path):
    model = Parabola()
    config = {"num_updates": 1000, "evaluate_every": 10, "patience": 3, "learning_rate": 0.02, "final_learning_rate": 0.02}
    result, _, _ = run_numbers(tmp_path, model, [Number(10.0)], [Number(1.0)], **config)  # on its way to 10 it passes 1
    tested = {row["update"]: row["test/loss"] for row in read_metrics(tmp_path)}
    assert result.best_update == min(tested, key=tested.get)
    assert result.updates == result.best_update + 30 < 1000
    assert result.best_metrics["loss"] == min(tested.values())
    assert (model.w - 1).square().sum().item() == pytest.approx(result.best_metrics["loss"])
    assert not model.training


def test_without_patience_the_best_weights_are_kept_all_the_same(tmp_path):
    model = Parabola()
    config = {"num_updates": 150, "evaluate_every": 10, "learning_rate": 0.02, "final_learning_rate": 0.02}
    result, _, _ = run_numbers(tmp_path, model, [Number(10.0)], [Number(1.0)], **config)
    assert result.updates == 150 > result.best_update
    assert (model.w - 1).square().sum().item() == pytest.approx(result.best_metrics["loss"])


def test_without_held_out_data_the_last_weights_stay(tmp_path):
    model = Parabola()
    result, _, _ = run_numbers(tmp_path, model, [Number(10.0)], num_updates=5, patience=1, learning_rate=0.1, evaluate_every=1)
    assert (result.updates, result.best_update, result.best_metrics) == (5, 0, {})
    assert 0.2 < model.w[0].item() < 0.5
    assert not (tmp_path / "best.safetensors").exists()


def test_held_out_loss_is_the_average_over_examples(tmp_path):
    model = Parabola(start=0.0)
    config = {"num_updates": 1, "learning_rate": 1e-9, "final_learning_rate": 0.0}
    result, _, _ = run_numbers(tmp_path, model, [Number(1.0)], [Number(1.0, weight=3), Number(3.0, weight=1)], **config)
    assert result.best_metrics["loss"] == pytest.approx((3 * 2 + 1 * 18) / 4)
    assert read_metrics(tmp_path)[-1]["test/distance"] == pytest.approx((3 * 1 + 1 * 3) / 4)


def test_evaluation_takes_a_bounded_number_of_batches_always_the_same(tmp_path):
    batches = [Number(float(i)) for i in range(100)]
    _, _, test = run_numbers(tmp_path, Parabola(), [Number(1.0)], batches, num_updates=4, evaluate_every=2, max_test_batches=5)
    assert test.asked == [(0, index) for index in (0, 20, 40, 60, 80)] * 2


def test_epochs_follow_one_another(tmp_path):
    _, data, _ = run_numbers(tmp_path, Parabola(), [Number(1.0)] * 3, num_updates=7)
    assert data.asked == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


# The log


def test_progress_and_log_agree(walks, tmp_path):
    seen = []
    run(walks, tmp_path, run=RunConfig(on_progress=seen.append))
    rows = read_metrics(tmp_path)
    assert [row["update"] for row in rows] == [p.done for p in seen] == [8, 10, 16, 20, 24, 30, 32, 40]
    for row, progress in zip(rows, seen, strict=True):
        trained = {k.removeprefix("train/"): v for k, v in row.items() if k.startswith("train/")}
        assert trained == {k: v for k, v in progress.metrics.items() if not k.startswith("held_out/")}
        tested = {k.replace("test/", "held_out/"): v for k, v in row.items() if k.startswith("test/")}
        assert tested.items() <= progress.metrics.items()
        assert ("test/loss" in row) == (row["update"] % 8 == 0)
        assert (progress.stage, progress.total, progress.unit) == ("train", 40, "update")
    assert set(rows[0]) == {"update", "learning_rate"} | {
        f"{part}/{name}" for part in ("train", "test") for name in ("loss", "nll_per_dim", "reward_nll", "termination_loss")
    }


def test_read_metrics_of_no_run_is_empty(tmp_path):
    assert read_metrics(tmp_path) == []


def test_tensorboard_gets_the_rows_of_the_log(walks, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(walks, tmp_path, run=RunConfig(tensorboard=True))
    events = EventAccumulator(str(tmp_path)).Reload()
    rows = read_metrics(tmp_path)
    scalars = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert scalars == [(row["update"], pytest.approx(row["train/loss"], rel=1e-6)) for row in rows]


def test_tensorboard_missing_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'worldmodel\[tensorboard\]'"):
        MetricsLog(tmp_path, 0, tensorboard=True)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'worldmodel\[tensorboard\]'"):
        RunConfig(tensorboard=True)  # before a run writes anything


# Learning


def test_termination_is_learned_from_terminations_not_truncations(tmp_path):
    """Even episodes terminate after 6 steps, odd ones are truncated there; which kind it is can be seen."""
    episodes = [labelled_episode(i, 6, terminated=i % 2 == 0) for i in range(16)]
    for episode in episodes:
        episode.observations[:, 0] = episode.episode_id % 2
    store = write_store(tmp_path / "store", episodes)
    data = make_data(store, slice(None))
    data.vision.fit([store.read(i).observations for i in range(16)])
    assert sum(int(batch.terminated[batch.mask].sum()) for batch in data.epoch(0)) == 8
    model = make_model(hidden_size=16, input_dropout=0.0, output_dropout=0.0)
    model.set_statistics(DataStatistics.of(data.epoch(0)))
    train(model, data, out=tmp_path / "run", config=TrainingConfig(num_updates=300, learning_rate=1e-2), seed=0)
    whole = SequenceData(
        data.episodes,
        WindowSampler(np.arange(2), np.full(2, 6), window=6, batch_size=2, shuffle=False),
        data.vision,
        data.action_space,
        resident=encode_all(data.episodes, data.vision, data.action_space),
    ).batch(0, 0)
    with torch.no_grad():
        probability = model(whole.z[:, :-1], whole.action)[0].termination_logit.sigmoid()
    assert probability[0, -1] > 0.8
    assert probability[1, -1] < 0.1
    assert probability[:, :-1].max() < 0.2


# Rejections


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_updates", 0),
        ("num_updates", 2.5),
        ("evaluate_every", 0),
        ("max_test_batches", 0),
        ("patience", 0),
        ("patience", 1.5),
        ("clip_norm", 0.0),
        ("clip_value", -1.0),
        ("clip_norm", math.nan),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("final_learning_rate", 1.0),
        ("final_learning_rate", -1e-9),
        ("warmup_updates", 2000),
        ("warmup_updates", -1),
        ("warmup_updates", 1.5),
        ("precision", "float16"),
    ],
)
def test_config_rejects_fields_out_of_range(field, value):
    with pytest.raises((TypeError, ValueError), match=rf"{field}.*: expected"):
        TrainingConfig(**{field: value})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_log_on_a_full_disk_names_its_file(tmp_path):
    def write():
        with MetricsLog(tmp_path, 0) as log:
            log._file.close()
            log._file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115 (the log closes it)
            log.write(1, {"loss": 0.5})

    with pytest.raises(OSError, match="metrics") as raised:
        write()
    assert raised.value.errno == errno.ENOSPC
    assert str(raised.value.filename).endswith("metrics.jsonl")
