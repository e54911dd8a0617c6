"""The presets fit the arguments of their classes, and the commands take their numbers."""

import dataclasses

import pytest
import tyro
from gymnasium import spaces

from worldmodel.agents import Controller
from worldmodel.cli.main import load
from worldmodel.cli.parsing import UsageError, parse
from worldmodel.dream import time_limit
from worldmodel.experiments import CAR_RACING, CAR_RACING_LOOP, DOOM, PRESETS, small, small_loop

PATHS = {  # options that no preset holds
    "collect": "--out o",
    "train-vae": "--data d --out o",
    "train-mdnrnn": "--data d --out o",
    "train-controller": "--model m --out o",
    "improve-controller": "--model m --controller c --data d --out o",
    "evaluate": "--model m",
}
CHANGED = {
    "episodes",
    "max_steps",
    "latent_size",
    "batch_size",
    "num_updates",
    "hidden_size",
    "window",
    "calibrate",
    "population",
}
CHANGED |= {"rollouts", "bias", "iterations", "num_states", "num_dreams"}
STEPS = [(name, command) for name in PRESETS for command in PATHS if (name, command) != ("car-racing", "improve-controller")]


@pytest.mark.parametrize("preset", [*PRESETS.values(), *map(small, PRESETS.values())])
def test_every_field_of_a_preset_is_an_argument_of_its_function(preset):
    assert preset.env.startswith("worldmodel.environments:")
    assert preset.rollouts * preset.search.population > 0


def test_the_sizes_equal_those_of_the_paper():
    doom, car = spaces.Discrete(3), spaces.Box(-1, 1, (3,))
    kind = DOOM.controller
    assert Controller(64 + 2 * 512, doom, features=kind.features, bias=kind.bias, ordered=kind.ordered).num_parameters == 1088
    assert Controller(32 + 256, car, features="zh", bias=True).num_parameters == 867
    assert (DOOM.vision.config.latent_size, CAR_RACING.vision.config.latent_size) == (64, 32)
    assert (DOOM.dynamics.mdnrnn.hidden_size, CAR_RACING.dynamics.mdnrnn.hidden_size) == (512, 256)


def test_a_small_experiment_has_the_same_fields_with_smaller_numbers():
    for preset in PRESETS.values():
        less = small(preset)
        assert (less.env, less.policy, less.vision.config, less.termination) == (
            preset.env,
            preset.policy,
            preset.vision.config,
            preset.termination,
        )
        assert less.num_episodes < preset.num_episodes
        assert set(less.temperatures) <= set(preset.temperatures)


def given(command):
    """Return the values of a command and of its groups of options, by name."""
    values = {}
    for one in dataclasses.fields(command):
        value = getattr(command, one.name)
        values |= given(value) if dataclasses.is_dataclass(value) else {one.name: value}
    return values


def words(options):
    """Format options as on a command line."""
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        elif isinstance(value, (int, float, str)):
            yield from (f"--{option}", str(getattr(value, "value", value)))


def other(value):
    """Return another value of the same kind; None if there is no such value in general."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else None


@pytest.mark.parametrize(("name", "command"), STEPS)
def test_a_preset_sets_the_options_of_a_command(name, command):
    expected = given(load(command).of_preset(PRESETS[name]))
    found = given(parse(load(command), [*PATHS[command].split(), "--preset", name], name=command))
    required = {option for option, value in expected.items() if value is tyro.MISSING}
    compared = {option: value for option, value in expected.items() if option not in {*required, "preset"}}
    assert {option: found[option] for option in compared} == compared


@pytest.mark.parametrize(("name", "command"), STEPS)
def test_options_override_the_preset(name, command):
    preset = given(load(command).of_preset(PRESETS[name]))
    changed = {option: new for option, value in preset.items() if option in CHANGED and (new := other(value)) is not None}
    assert changed
    found = given(parse(load(command), [*PATHS[command].split(), "--preset", name, *words(changed)], name=command))
    assert {option: found[option] for option in changed} == changed


def test_an_unknown_preset_is_an_error():
    with pytest.raises(UsageError, match="--preset: expected one of car-racing, doom, got 'dom'"):
        parse(load("collect"), ["--out", "o", "--preset", "dom"], name="worldmodel collect")


def test_the_loop_of_car_racing_fits_its_environment_and_the_small_one_has_fewer_numbers():
    pytest.importorskip("Box2D")
    less = small_loop(CAR_RACING_LOOP)
    assert less.env == CAR_RACING_LOOP.env
    assert (less.config.max_rounds, less.config.rounds.keep_best) == (2, True)
    config = CAR_RACING_LOOP.config
    real = 4 * (90 * config.first_episodes + 250 * (config.max_rounds - 1) * config.controller_episodes)
    real += 4 * 250 * config.max_rounds * config.validation_episodes
    assert real <= 2_000_000
    assert time_limit(CAR_RACING_LOOP.env) == 250
    made = CAR_RACING_LOOP.env.make()
    config.rounds.noise.check(made.action_space)
    assert set(made.observation_space) == {"image", "indicators"}
    made.close()
