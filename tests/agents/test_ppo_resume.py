"""PPO resumes: interrupted at any iteration, the same call gives the bits of an undisturbed search."""

import signal
from dataclasses import replace

import pytest
from test_ppo import SHORT, make
from toy_worlds import random_world, same_bits

from worldmodel.agents import PPO_FILE, SearchConfig, evolve, ppo
from worldmodel.dream import Dreams
from worldmodel.runtime import InvalidFileError, RunConfig

LONG = replace(SHORT, iterations=5)
QUIET = RunConfig(progress=False)


def interrupted(number):
    """A run that gets Ctrl-C in an iteration."""

    def interrupt(progress):
        if progress.done == number:
            signal.raise_signal(signal.SIGINT)

    return RunConfig(progress=False, on_progress=interrupt)


@pytest.mark.parametrize("kind", [{"features": "zh"}, {"features": "zhc", "hidden_size": 4}])
@pytest.mark.parametrize("termination", ["threshold", "sample"])
def test_an_interrupted_search_resumes_to_the_same_bits(tmp_path, kind, termination):
    controller, dreams, starts = make(random_world(termination_bias=-2.0), termination=termination, **kind)
    records = []
    listening = RunConfig(progress=False, on_progress=records.append)
    state = tmp_path / "whole" / PPO_FILE
    whole = ppo(controller, dreams, starts, config=LONG, horizon=8, log=state, run=listening)
    for number in (1, 2, 4):
        log, again = tmp_path / f"{number}" / PPO_FILE, []
        with pytest.raises(KeyboardInterrupt, match=f"{number} iterations; .* holds them"):
            ppo(controller, dreams, starts, config=LONG, horizon=8, log=log, run=interrupted(number))
        run = RunConfig(progress=False, on_progress=again.append)
        resumed = ppo(controller, dreams, starts, config=LONG, horizon=8, log=log, run=run)
        assert same_bits(resumed.state_dict(), whole.state_dict())
        assert [one.metrics for one in again] == [one.metrics for one in records[number:]]
        assert log.read_bytes() == state.read_bytes()  # agent, critic, moments, generator, dreams


def test_a_complete_search_returns_its_result_without_dreaming(tmp_path, monkeypatch):
    controller, dreams, starts = make(features="zh")
    log, again = tmp_path / PPO_FILE, []
    whole = ppo(controller, dreams, starts, config=SHORT, horizon=8, log=log, run=QUIET)
    monkeypatch.setattr(Dreams, "score", None)
    monkeypatch.setattr(Dreams, "draw", None)
    run = RunConfig(progress=False, on_progress=again.append)
    assert same_bits(
        ppo(controller, dreams, starts, config=SHORT, horizon=8, log=log, run=run).state_dict(), whole.state_dict()
    )
    assert again == []


def test_a_search_with_other_arguments_is_refused(tmp_path):
    controller, dreams, starts = make(features="zh")
    log = tmp_path / PPO_FILE
    ppo(controller, dreams, starts, config=SHORT, horizon=8, log=log, run=QUIET)
    with pytest.raises(ValueError, match=r"expected seed 0, .*got 1; use the same arguments"):
        ppo(controller, dreams, starts, config=SHORT, horizon=8, seed=1, log=log, run=QUIET)
    with pytest.raises(ValueError, match=r"expected test_horizon 8, .* got 9"):
        ppo(controller, dreams, starts, config=SHORT, horizon=9, log=log, run=QUIET)
    with pytest.raises(ValueError, match=r"expected temperature 1\.0, .* got 0\.5"):
        ppo(controller, make(temperature=0.5)[1], starts, config=SHORT, horizon=8, log=log, run=QUIET)
    with pytest.raises(ValueError, match=r"expected starts .* got"):
        ppo(controller, dreams, replace(starts, mean=starts.mean + 1), config=SHORT, horizon=8, log=log, run=QUIET)
    with pytest.raises(FileExistsError, match="expected no file, got an earlier search"):
        ppo(controller, dreams, starts, config=SHORT, horizon=8, log=log, run=RunConfig(progress=False, resume=False))
    overwriting = RunConfig(progress=False, overwrite=True)
    other = ppo(controller, dreams, starts, config=SHORT, horizon=8, seed=1, log=log, run=overwriting)
    assert same_bits(
        other.state_dict(), ppo(controller, dreams, starts, config=SHORT, horizon=8, seed=1, run=QUIET).state_dict()
    )


def test_another_file_in_the_place_of_the_log_is_refused_and_kept(tmp_path):
    controller, dreams, starts = make(features="zh")
    log = tmp_path / PPO_FILE
    evolve(dreams, controller, config=SearchConfig(population=4, generations=1, method="openai-es"), horizon=3, log=log)
    before = log.read_bytes()
    with pytest.raises(ValueError, match=r"expected .*worldmodel\.ppo"):
        ppo(controller, dreams, starts, config=SHORT, log=log, run=QUIET)
    with pytest.raises(FileExistsError, match="expected the log of a search to overwrite, got another file"):
        ppo(controller, dreams, starts, config=SHORT, log=log, run=RunConfig(progress=False, overwrite=True))
    log.write_bytes(before[:-1])
    with pytest.raises(InvalidFileError, match="expected"):
        ppo(controller, dreams, starts, config=SHORT, log=log, run=QUIET)
    assert log.read_bytes() == before[:-1]
