"""Training, encoding and search with two processes of a gloo group."""

import os
import signal

import pytest
import torch
from test_vae import make_vae
from toy_controllers import random_controller, weights
from toy_data import walking_episode, write_store
from toy_images import dot_store
from toy_worlds import walk_world
from two_ranks import run_ranks, same

import worldmodel as wm
from worldmodel.agents import SearchConfig, evolve
from worldmodel.agents.shared_population import SharedPopulation
from worldmodel.dream import Dreams, shared_rollout
from worldmodel.models import MDNRNN, FrameBatch, MDNRNNConfig, SequenceBatch
from worldmodel.runtime import LeaderFailedError, RankLostError, Ranks, RunConfig
from worldmodel.training import TrainingConfig, encode_store, loop, read_metrics, train_vae

pytestmark = pytest.mark.slow
CONFIG = {"num_updates": 50, "evaluate_every": 20, "precision": "float32"}


class Walks:
    """Batches of windows of different lengths, in float64; some batches have fewer windows than there are ranks."""

    def __init__(self, dtype=torch.float64):
        drawn = torch.Generator().manual_seed(0)
        self.z = torch.randn(40, 9, 3, generator=drawn, dtype=torch.float64).cumsum(1).to(dtype)
        self.action = torch.randn(40, 8, 2, generator=drawn, dtype=torch.float64).to(dtype)

    def num_batches(self, epoch):
        return 4

    def batch(self, epoch, index, *, generator=None):
        drawn = torch.Generator().manual_seed(10 * epoch + index)
        rows = torch.randint(40, (1 if index == 3 else 13,), generator=drawn)
        z = self.z[rows]
        z = z + 0.1 * torch.randn(z.shape, generator=generator, dtype=z.dtype)
        mask = torch.arange(8) < torch.randint(1, 9, (len(rows), 1), generator=drawn)
        ended = torch.rand(len(rows), 8, generator=drawn) < 0.1
        return SequenceBatch(z=z, action=self.action[rows], reward=z[:, 1:].sum(dim=-1), terminated=ended, mask=mask)


class Pictures:
    """Batches of five small pictures."""

    def num_batches(self, epoch):
        return 3

    def batch(self, epoch, index, *, generator=None):
        drawn = torch.Generator().manual_seed(10 * epoch + index)
        return FrameBatch(torch.randint(256, (5, 24, 20, 3), generator=drawn, dtype=torch.uint8))


def train_walks(out, dtype=torch.float64, mdnrnn=None, stop_at=None, **config):
    """Train M on walks, on this rank; return its weights."""
    torch.manual_seed(0)
    model = MDNRNN(3, 2, MDNRNNConfig(hidden_size=24, **(mdnrnn or {}))).to(dtype)
    return take_part(model, Walks(dtype), out, stop_at, **config)


def train_pictures(out, **config):
    """Train V on pictures, on this rank; return its weights."""
    return take_part(make_vae().train(), Pictures(), out, None, **config)


def take_part(model, data, out, stop_at, **config):
    config = TrainingConfig(**CONFIG | config)
    if not Ranks.current().leads:
        loop.follow(model, data, config=config, seed=0)
        return model.state_dict()

    def stop(progress):
        if progress.done == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    run = RunConfig(on_progress=stop, progress=False)
    loop.train(model, data, out=out, config=config, seed=0, test_data=data, run=run)
    return model.state_dict()


def largest_difference(one, other):
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def losses(out):
    return [row["train/loss"] for row in read_metrics(out)]


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_two_ranks_make_the_updates_of_one_process(tmp_path, optimizer):
    alone = train_walks(tmp_path / "one", optimizer=optimizer)
    ranks = run_ranks(train_walks, tmp_path / "two", optimizer=optimizer, folder=tmp_path)
    assert same(ranks)
    assert largest_difference(alone, ranks[0]) < 1e-9
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)


def test_two_ranks_train_v_as_one_process_does(tmp_path):
    alone = train_pictures(tmp_path / "one", num_updates=10)
    ranks = run_ranks(train_pictures, tmp_path / "two", num_updates=10, folder=tmp_path)
    assert same(ranks)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)  # float32
    assert largest_difference(alone, ranks[0]) < 1e-3


def train_in_many_ways(folder):
    ways = [
        {"precision": precision, "mdnrnn": {"input_dropout": rate, "output_dropout": rate}}
        for precision in ("float32", "bfloat16")
        for rate in (0.0, 0.2)
    ]
    return [train_walks(folder / str(number), torch.float32, num_updates=12, **way) for number, way in enumerate(ways)]


def test_all_ranks_have_the_same_weights_with_fused_losses_dropout_and_bfloat16(tmp_path):
    for ranks in zip(*run_ranks(train_in_many_ways, tmp_path, folder=tmp_path), strict=True):
        assert same(ranks)


def test_an_interrupted_run_of_two_ranks_resumes_to_the_same_bits(tmp_path):
    whole = run_ranks(train_walks, tmp_path / "whole", folder=tmp_path)
    stopped = run_ranks(train_walks, tmp_path / "parts", stop_at=20, folder=tmp_path)
    assert isinstance(stopped[0], KeyboardInterrupt)
    assert isinstance(stopped[1], LeaderFailedError | RankLostError)
    resumed = run_ranks(train_walks, tmp_path / "parts", folder=tmp_path)
    assert same([*whole, *resumed])


def test_a_run_of_two_ranks_is_not_resumed_by_one(tmp_path):
    run_ranks(train_walks, tmp_path / "two", folder=tmp_path, num_updates=20)
    with pytest.raises(ValueError, match="expected ranks 2, as in the run that is there, got None"):
        train_walks(tmp_path / "two", num_updates=20)


class DeadlyWalks(Walks):
    """Walks that kill rank 1 when it reads a batch of the third epoch."""

    def batch(self, epoch, index, *, generator=None):
        if epoch == 2 and Ranks.current().rank == 1:
            os._exit(9)
        return super().batch(epoch, index, generator=generator)


def train_until_death(out):
    torch.manual_seed(0)
    return take_part(MDNRNN(3, 2, MDNRNNConfig(hidden_size=24)).double(), DeadlyWalks(), out, None)


def test_the_loss_of_a_rank_ends_the_training_with_a_message(tmp_path):
    found = run_ranks(train_until_death, tmp_path / "two", folder=tmp_path)
    assert isinstance(found[0], RankLostError)
    assert str(found[0]).count("ranks: expected all 2 processes to keep running") == 1
    assert "the same command resumes" in str(found[0])
    assert same(run_ranks(train_walks, tmp_path / "two", folder=tmp_path))


# What users call: fit, train_vae, encode_store and evolve


def fit_on(path, out):
    config = wm.TrainingConfig(num_updates=12, evaluate_every=6, precision="float32")
    return wm.fit(path, out=out, config=wm.MDNRNNConfig(hidden_size=16), training_config=config)


def test_fit_returns_the_world_model_of_one_process_on_all_ranks(tmp_path):
    store = write_store(tmp_path / "data", [walking_episode(k, 12 + k) for k in range(12)])
    alone = fit_on(store.path, tmp_path / "one")
    ranks = run_ranks(fit_on, store.path, tmp_path / "two", folder=tmp_path)
    assert ranks[0].fingerprint == ranks[1].fingerprint
    assert largest_difference(alone.state_dict(), ranks[1].state_dict()) < 1e-4
    again = run_ranks(fit_on, store.path, tmp_path / "two", folder=tmp_path)  # complete: only read
    assert again[1].fingerprint == ranks[0].fingerprint


def require_other():
    ranks = Ranks.current()
    ranks.require_same({"data": "ab"[ranks.rank]})


def test_ranks_with_other_data_are_refused_by_name(tmp_path):
    found = run_ranks(require_other, folder=tmp_path)
    for error in found:
        assert isinstance(error, ValueError)
        assert "rank 1 on " in str(error)
        assert "expected data a, as on rank 0, got b; all ranks need the same data and versions" in str(error)


def fit_badly(path, out):
    return wm.fit(path, out=out, config=wm.MDNRNNConfig(hidden_size=16), seed=-1)


def test_an_error_of_rank_0_reaches_all_ranks(tmp_path):
    store = write_store(tmp_path / "data", [walking_episode(k, 12) for k in range(12)])
    first, second = run_ranks(fit_badly, store.path, tmp_path / "two", folder=tmp_path)
    assert isinstance(first, ValueError)
    assert isinstance(second, LeaderFailedError)
    assert "seed: expected" in str(second)
    assert not (tmp_path / "two").exists()


def train_dots(path, out):
    config = wm.TrainingConfig(num_updates=4, evaluate_every=2, max_test_batches=2, precision="float32")
    sizes = wm.VAEConfig(latent_size=3)
    return train_vae(path, out=out, config=sizes, frame_config=wm.FrameConfig(batch_size=8), training_config=config)


def test_train_vae_returns_the_v_of_one_process_on_all_ranks(tmp_path):
    dot_store(tmp_path / "frames", 6)
    alone = train_dots(tmp_path / "frames", tmp_path / "one")
    ranks = run_ranks(train_dots, tmp_path / "frames", tmp_path / "two", folder=tmp_path)
    assert ranks[0].fingerprint == ranks[1].fingerprint
    assert largest_difference(alone.state_dict(), ranks[0].state_dict()) < 1e-3


def encode_dots(path, out, workers=0):
    return encode_store(path, vision=make_vae(), out=out, workers=workers).fingerprint


@pytest.mark.filterwarnings("ignore:V has collapsed")
def test_ranks_and_workers_encode_the_store_of_one_process(tmp_path):
    dot_store(tmp_path / "frames", 21)
    expected = encode_dots(tmp_path / "frames", tmp_path / "one")
    assert run_ranks(encode_dots, tmp_path / "frames", tmp_path / "two", folder=tmp_path) == [expected] * 2
    assert encode_dots(tmp_path / "frames", tmp_path / "workers", workers=2) == expected


def search(log=None, generations=4):
    world = walk_world()
    numbers = SearchConfig(generations=generations, population=7, sigma=0.5, test_dreams=16, test_every=2)
    dreams = Dreams(world, 28, temperature=0.5)
    start = random_controller(world, scale=0.1)
    return weights(evolve(dreams, start, config=numbers, horizon=12, seed=0, log=log))


def test_ranks_find_the_agent_of_one_process_and_resume(tmp_path):
    found = run_ranks(search, tmp_path / "search", folder=tmp_path)
    torch.testing.assert_close(found[0], search())
    assert torch.equal(*found)
    assert torch.equal(*run_ranks(search, tmp_path / "search", folder=tmp_path))


def dream_together(temperature, agent):
    world = walk_world(termination_head=True)
    found = shared_rollout(Dreams(world, 9, temperature=temperature), agent and random_controller(world), 30, seed=3)
    return None if found is None else (found.z, found.actions, found.rewards, found.terminated, found.mask)


@pytest.mark.parametrize("agent", [True, False])
def test_ranks_dream_what_one_process_dreams(tmp_path, agent):
    alone = dream_together(1.0, agent)
    first, second = run_ranks(dream_together, 1.0, agent, folder=tmp_path)
    assert second is None
    running = alone[-1]
    for number, (one, other) in enumerate(zip(alone, first, strict=True)):
        torch.testing.assert_close(one[running] if number == 1 else one, other[running] if number == 1 else other)


def draw_others():
    """Evaluate other candidates on rank 1."""
    ranks = Ranks.current()
    shared = SharedPopulation(Fixed(), ranks)
    first = shared.fitness(None, torch.arange(6.0).reshape(3, 2), horizon=1, seed=0, name="generation 1")
    assert first.tolist() == [1.0, 5.0, 9.0]
    shared.fitness(None, torch.ones(3, 2) * ranks.rank, horizon=1, seed=0, name="generation 2")


class Fixed:
    """A population whose fitness is the sum of the weights."""

    world = None

    def fitness(self, agent, candidates, *, horizon, seed, name):
        return candidates.sum(dim=1).numpy()


def test_a_rank_that_draws_other_candidates_is_found(tmp_path):
    for error in run_ranks(draw_others, folder=tmp_path):
        assert isinstance(error, RuntimeError)
        assert "generation 2: expected the same candidates on all 2 ranks, got others on some" in str(error)
