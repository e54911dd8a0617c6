"""Evolutionary search: results, errors and resuming."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_controllers import generator, random_controller, search_in, weights
from toy_worlds import random_world, same_bits, walk_world

from worldmodel.agents import METHODS, Controller, OpenAIESConfig, SearchConfig, evolve
from worldmodel.dream import Dreams
from worldmodel.models import feature_size
from worldmodel.runtime import load_tensors, save_tensors


def search(world=None, **arguments):
    dreams = Dreams(world or walk_world(), 32, temperature=0.0)
    return search_in(dreams, **{"generations": 6, "population": 8, "horizon": 12, "test_dreams": 16, **arguments})


def test_evolve_finds_a_controller_that_beats_zero_weights():
    world = walk_world()
    seen = []
    best = search(world, generations=25, sigma=0.5, on_generation=seen.append)
    tests = Dreams(world, 200, temperature=0.0)
    zero = Controller(feature_size(world, "zh"), world.action_space)  # always pushes left: below -10 in 12 steps
    (before, _), (after, _) = (tests.score(c, 12, generator=generator(9)) for c in (zero, best))
    assert before.mean() < -10
    assert after.mean() > 4  # the optimal policy stays just below x = 1 and earns up to 0.75 per step, less y / 2
    assert [g.done for g in seen] == list(range(1, 26))
    assert ["test" in g.metrics for g in seen] == [g.done % 3 == 0 or g.done == 25 for g in seen]
    best_tests = [g.metrics["best_test"] for g in seen]
    assert best_tests == sorted(best_tests)


def test_openai_es_trains_a_hidden_layer_of_more_than_a_thousand_weights_in_a_toy_dream():
    world = walk_world()
    found = search(
        world, method="openai-es", features="z", hidden_size=200, generations=25, population=16, horizon=12, sigma=0.1
    )
    assert found.num_parameters == 1203
    tests = Dreams(world, 200, temperature=0.0)
    (returns, _) = tests.score(found, 12, generator=generator(9))
    assert returns.mean() > 4  # as the linear one by CMA-ES; zero weights get below -10


def test_a_hidden_layer_is_found_by_cma_too():
    found = search(hidden_size=3, features="z", generations=25, sigma=0.5)
    (returns, _) = Dreams(walk_world(), 200, temperature=0.0).score(found, 12, generator=generator(9))
    assert found.hidden_size == 3
    assert returns.mean() > 4


def test_the_hyperparameters_of_openai_es_are_used():
    found = [search(method="openai-es", openai_es=OpenAIESConfig(learning_rate=rate)) for rate in (0.01, 0.2)]
    assert not torch.equal(weights(found[0]), weights(found[1]))


def test_evolve_is_a_function_of_its_seed_and_leaves_global_generators_alone():
    world = walk_world()

    def run(global_seed, seed):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002 (this is what must not matter)
        before = torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002
        found = weights(search(world, sigma=0.5, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert same_bits(np.random.get_state()[1], before[1][1])  # noqa: NPY002
        assert np.random.get_state()[2:] == before[1][2:]  # noqa: NPY002
        return found

    assert torch.equal(run(0, 1), run(1, 1))
    assert not torch.equal(run(0, 1), run(0, 2))


def test_evolve_never_returns_less_than_it_was_given():
    world = walk_world()
    good = search(world, generations=25, sigma=0.5)
    scores = []
    kept = search(world, initial=good, generations=3, sigma=50.0, on_generation=lambda g: scores.append(g.metrics))
    assert scores[-1]["test"] < scores[-1]["best_test"]  # so large a step makes it worse
    assert torch.equal(weights(kept), weights(good))


def test_evolve_leaves_the_initial_controller_alone_and_takes_its_kind():
    world = walk_world()
    initial = random_controller(world, features="z", bias=False)
    before = weights(initial).clone()
    found = search(world, initial=initial)
    assert torch.equal(weights(initial), before)
    assert found.features == "z"
    assert not found.bias


def test_patience_ends_a_search_without_progress():
    world = random_world(reward_head=True)
    world.mdnrnn.reward_low.fill_(1.0)
    world.mdnrnn.reward_high.fill_(1.0)  # any action earns 1 per step
    world.mdnrnn.termination_head.bias.data.fill_(-50.0)
    seen = []
    search(world, generations=30, patience=2, test_every=2, on_generation=seen.append)
    assert len(seen) == 4  # two tests, at generations 2 and 4, that do not improve on the start
    assert seen[0].metrics["best_test"] == 12


def test_a_target_ends_a_search_at_the_test_that_reaches_it(tmp_path):
    world = random_world(reward_head=True)
    world.mdnrnn.reward_low.fill_(1.0)
    world.mdnrnn.reward_high.fill_(1.0)  # any action earns 1 per step
    world.mdnrnn.termination_head.bias.data.fill_(-50.0)
    seen, again = [], []
    arguments = {"generations": 9, "test_every": 2, "log": tmp_path / "log"}
    search(world, **arguments, target=12.5, on_generation=seen.append)
    assert len(seen) == 9
    (tmp_path / "log").unlink()
    seen.clear()
    search(world, **arguments, target=12, on_generation=seen.append)
    assert [generation.done for generation in seen] == [1, 2]  # although the start already scores 12
    search(world, **arguments, target=12, on_generation=again.append)
    assert again == []


def test_a_first_test_with_progress_is_not_counted_as_stale():
    seen = []
    search(walk_world(), generations=9, sigma=0.5, patience=1, on_generation=seen.append)
    assert len(seen) > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generations": 0}, "generations: expected an integer >= 1, got 0"),
        ({"population": 1}, "population: expected an integer >= 2, got 1"),
        ({"population": 5}, "population: expected a divisor of the number of dreams 32, got 5"),
        ({"test_every": 0}, "test_every: expected an integer >= 1"),
        ({"test_dreams": 0}, "test_dreams: expected an integer >= 1"),
        ({"patience": 0}, "patience: expected an integer >= 1"),
        ({"target": float("inf")}, "target: expected a finite number, got inf"),
        ({"horizon": 0}, "horizon: expected an integer >= 1"),
        ({"sigma": 0.0}, "sigma: expected a positive finite number"),
        ({"sigma": float("nan")}, "sigma: expected a positive finite number"),
        ({"initial": Controller(4, spaces.Discrete(3))}, r"expected one on the world model's 7 features \(zh\), got 4"),
        ({"initial": Controller(7, spaces.Discrete(4))}, r"expected action space Discrete\(3\), got Discrete\(4\)"),
    ],
)
def test_a_search_with_arguments_out_of_range_is_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        search(**arguments)


def test_a_search_without_a_reward_head_raises_with_the_fix():
    with pytest.raises(ValueError, match="without a reward head; fit it with reward_head=True"):
        search(random_world(reward_head=False))


def test_a_search_with_one_temperature_per_dream_is_rejected():
    with pytest.raises(ValueError, match="dreams: expected one temperature for all"):
        evolve(Dreams(random_world(), 8, temperature=torch.ones(8)), config=SearchConfig(population=4))


def test_a_search_without_a_termination_head_dreams_to_the_horizon():
    world = random_world(termination_head=False)
    assert search(world, generations=2).size == feature_size(world, "zh")


def test_a_progress_record_carries_the_agent_of_the_best_test():
    seen = []
    best = search(generations=6, sigma=0.5, on_generation=seen.append)
    assert torch.equal(weights(seen[-1].result), weights(best))


def record(progress):
    """The fields of a progress record, with the weights of the agent in place of the agent."""
    return {**vars(progress), "result": weights(progress.result).tolist()}


@pytest.mark.parametrize("method", METHODS)
def test_a_search_killed_after_any_generation_resumes_to_the_same_bits(tmp_path, method):
    arguments = {"method": method, "sigma": 0.5, "hidden_size": 2, "generations": 7, "test_every": 2, "seed": 5}
    whole = []

    def keep(generation):
        whole.append(record(generation))
        shutil.copy(tmp_path / "log", tmp_path / f"log-{generation.done}")  # the log that a kill at this point would leave

    best = search(**arguments, log=tmp_path / "log", on_generation=keep)
    assert same_bits(weights(best), weights(search(**arguments)))  # writing a log does not change the result
    assert len({one["metrics"]["best_test"] for one in whole}) > 1
    for number in range(1, 8):
        resumed = []
        log = tmp_path / f"log-{number}"
        again = search(**arguments, log=log, on_generation=lambda g, to=resumed: to.append(record(g)))
        assert resumed == whole[number:]
        assert torch.equal(weights(again), weights(best))
        assert log.read_bytes() == (tmp_path / "log").read_bytes()


def test_a_search_stopped_within_a_generation_repeats_that_generation(tmp_path, monkeypatch):
    whole = search(sigma=0.5, log=tmp_path / "whole")
    score, calls = Dreams.score, []

    def stop(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 6:  # the start's test, three generations, their test, and then
            raise KeyboardInterrupt
        return score(self, *arguments, **options)

    monkeypatch.setattr(Dreams, "score", stop)
    with pytest.raises(KeyboardInterrupt):
        search(sigma=0.5, log=tmp_path / "log")
    monkeypatch.undo()
    seen = []
    assert torch.equal(weights(search(sigma=0.5, log=tmp_path / "log", on_generation=seen.append)), weights(whole))
    assert [generation.done for generation in seen] == [4, 5, 6]


def test_ctrl_c_stops_after_the_generation_and_resuming_keeps_the_count_of_patience(tmp_path):
    arguments = {"sigma": 50.0, "generations": 30, "patience": 2, "test_every": 2, "log": tmp_path / "log"}
    initial = search(generations=25, sigma=0.5)
    seen = []

    def interrupt(generation):
        seen.append(generation.done)
        if generation.done == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"interrupted after 3 generations; .*log holds them"):
        search(**arguments, initial=initial, on_generation=interrupt)
    search(**arguments, initial=initial, on_generation=interrupt)
    assert seen == [1, 2, 3, 4]  # two tests, at generations 2 and 4, without progress
    search(**arguments, initial=initial, on_generation=interrupt)
    assert seen == [1, 2, 3, 4]  # a search that is complete is only read


def test_a_log_is_neither_overwritten_nor_taken_for_that_of_another_search(tmp_path):
    log = tmp_path / "log"
    search(log=log, generations=2)
    with pytest.raises(FileExistsError, match="expected no file, got an earlier search; resume it"):
        search(log=log, resume=False)
    for name, change in {
        "generations": {"generations": 3},
        "seed": {"generations": 2, "seed": 1},
        "method": {"generations": 2, "method": "openai-es"},
        "start": {"generations": 2, "hidden_size": 3},
        "world": {"generations": 2, "world": random_world()},
    }.items():
        with pytest.raises(ValueError, match=f"log: expected {name} .*, as in the run that is there, got "):
            search(log=log, **change)


def test_a_log_is_overwritten_if_it_is_that_of_a_search(tmp_path):
    log, seen = tmp_path / "log", []
    search(log=log, generations=2)
    expected = search(generations=3, sigma=0.5)
    found = search(log=log, generations=3, sigma=0.5, overwrite=True, resume=False, on_generation=seen.append)
    assert torch.equal(weights(found), weights(expected))
    assert [one.done for one in seen] == [1, 2, 3]
    log.write_text("notes")
    with pytest.raises(FileExistsError, match="expected the log of a search to overwrite, got another file"):
        search(log=log, generations=1, overwrite=True)
    assert log.read_text() == "notes"


def test_only_the_temporaries_of_a_killed_write_are_removed(tmp_path):
    for name in (".log.77.tmp", ".other.77.tmp"):
        (tmp_path / name).touch()
    search(log=tmp_path / "log", generations=1)
    assert {path.name for path in tmp_path.iterdir()} == {"log", ".other.77.tmp"}


@pytest.mark.parametrize("name", ["fitness", "tests"])
def test_a_log_whose_numbers_were_changed_is_rejected(tmp_path, name):
    log = tmp_path / "log"
    search(log=log, generations=3, sigma=0.5)
    tensors, metadata = load_tensors(log)
    save_tensors(log, {**tensors, name: -tensors[name]}, metadata)
    with pytest.raises(ValueError, match="log: expected the log of a search as it was written, got a damaged one"):
        search(log=log, generations=3, sigma=0.5)


def test_a_log_whose_weights_differ_in_this_version_is_rejected(tmp_path):
    log = tmp_path / "log"
    search(log=log, generations=3, sigma=0.5)
    tensors, metadata = load_tensors(log)
    content = json.loads(metadata["log"])
    save_tensors(log, tensors, {"log": json.dumps({**content, "centre": "0"})})
    with pytest.raises(ValueError, match="expected the replay to reach the weights of the interrupted search"):
        search(log=log, generations=3, sigma=0.5)


@pytest.mark.parametrize("text", ["{", "[]", None, '{"format": "worldmodel.search", "version": 1}'])
def test_a_damaged_log_is_named(tmp_path, text):
    log = tmp_path / "log"
    search(log=log, generations=1)
    save_tensors(log, load_tensors(log)[0], None if text is None else {"log": text})
    with pytest.raises(ValueError, match=str(log)):
        search(log=log, generations=1)


def test_numpy_numbers_are_the_same_search_and_are_logged(tmp_path):
    numbers = {"generations": 2, "population": 8, "horizon": 5, "test_every": 1, "test_dreams": 4, "patience": 3, "seed": 1}
    search(**numbers, log=tmp_path / "log")
    found = search(
        **{name: np.int64(number) for name, number in numbers.items()},
        sigma=np.float64(0.1),
        openai_es=OpenAIESConfig(learning_rate=np.float64(0.03)),
        log=tmp_path / "log",
    )
    assert torch.equal(weights(found), weights(search(**numbers)))


@pytest.mark.parametrize("name", ["generations", "population", "horizon", "test_every", "test_dreams", "patience", "seed"])
@pytest.mark.parametrize("number", [8.0, "8", -1, True])
def test_counts_of_a_search_must_be_integers_in_their_range(name, number):
    with pytest.raises((TypeError, ValueError), match=f"{name}: expected an integer >= ., got {number!r}"):
        search(**{name: number})
