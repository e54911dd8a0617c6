"""The program that runs the loop: its options, its files, and that it resumes after Ctrl-C."""

import json

from worldmodel.cli.iterate import Iterate
from worldmodel.cli.parsing import parse
from worldmodel.experiments import CAR_RACING_LOOP, IterationConfig, iteration

SMALL = (
    "--env CartPole-v1 --max-rounds 2 --first-policy repeat --first-episodes 6 --controller-episodes 3 "
    "--exploration 0.1 --hidden-size 4 --num-components 2 --window 8 --batch-size 8 --num-updates 6 --evaluate-every 3 "
    "--population 4 --rollouts 2 --generations 2 --features z --controller-hidden-size 3 --method openai-es "
    "--es-learning-rate 0.1 --test-episodes 3 --validation-episodes 3 --test-dreams 8 --max-steps 15 --device cpu"
)


NAMED = "--mdnrnn.hidden-size 5 --search.openai-es.learning-rate 0.2 --training-config.patience 3 --no-ordered --no-layer-norm"


def config_of(options):
    return parse(Iterate, options.split(), name="worldmodel iterate").config


def test_without_options_the_configuration_is_that_of_the_library():
    assert config_of("--env CartPole-v1 --out x") == IterationConfig()


def test_options_have_the_prefix_of_their_part_and_earlier_names_work():
    config = config_of(f"--env CartPole-v1 --out x {NAMED}")
    assert (config.mdnrnn.hidden_size, config.search.openai_es.learning_rate, config.training_config.patience) == (5, 0.2, 3)
    config = config_of(f"--out x {SMALL}")
    assert (config.max_rounds, config.exploration, config.controller.features, config.controller.hidden_size) == (
        2,
        0.1,
        "z",
        3,
    )
    assert (config.search.method, config.search.openai_es.learning_rate) == ("openai-es", 0.1)
    assert config.training_config.learning_rate == 1e-2
    assert (config.mdnrnn.hidden_size, config.data_config.window, config.training_config.num_updates) == (4, 8, 6)


def test_it_resumes_after_ctrl_c_and_leaves_a_table_and_a_summary(run, tmp_path, monkeypatch):
    options = f"--out {tmp_path / 'loop'} --seed 1 {SMALL}"
    evaluate, calls = iteration.evaluate, []

    def interrupt(*arguments, **fields):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments, **fields)

    monkeypatch.setattr(iteration, "evaluate", interrupt)
    code, _, said = run(f"iterate {options}")
    assert code == 130
    assert "The same command, without --overwrite, resumes" in said
    calls.clear()
    assert run(f"iterate {options} --overwrite")[0] == 130
    code, printed, _ = run(f"iterate {options}")
    assert code == 0
    assert len(calls) == 3  # round 1 was not run again
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines if line[:1].isdigit()] == ["1", "2"]
    summary = json.loads((tmp_path / "loop" / "summary.json").read_text())
    assert [one["number"] for one in summary["rounds"]] == [1, 2]
    assert all(max(one["real"]["lengths"]) <= 15 for one in summary["rounds"])


def test_a_preset_gives_the_numbers_of_the_experiment_and_explicit_options_take_precedence():
    parsed = parse(
        Iterate, ["--preset", "car-racing", "--out", "runs", "--max-rounds", "3", "--rounds.noise.scale", "0.1"], name="iterate"
    )
    assert parsed.environment.of(parsed.env) == CAR_RACING_LOOP.env
    assert parsed.config.max_rounds == 3
    assert parsed.config.rounds.noise.scale == 0.1
    assert parsed.config.mdnrnn == CAR_RACING_LOOP.config.mdnrnn
    assert parsed.config.rounds.improvement == CAR_RACING_LOOP.config.rounds.improvement


def test_an_unknown_preset_is_named(run):
    code, _, said = run("iterate --preset doom --out runs")
    assert code == 2
    assert "--preset: expected car-racing, got 'doom'" in said
