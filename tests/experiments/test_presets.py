"""The presets fit the arguments of their classes, and the scripts accept them."""

import inspect
from pathlib import Path

import pytest
from gymnasium import spaces

from worldmodel.agents import Controller
from worldmodel.dream import StartBank
from worldmodel.experiments import CAR_RACING, DOOM, PRESETS, Preset, small

CLI = Path(__file__).resolve().parents[2] / "worldmodel" / "cli"
PATHS = {  # arguments that no preset holds
    "collect": "--out o",
    "train_vae": "--data d --out o",
    "train_mdnrnn": "--data d --out o",
    "train_controller": "--model m --out o",
    "improve_controller": "--model m --controller c --data d --out o",
    "evaluate": "--model m --probe",
}
STEPS = [(name, script) for name in PRESETS for script in PATHS if (name, script) != ("car-racing", "improve_controller")]
OTHER = {"sample": "threshold", "threshold": "sample", "auto": "float32"}


@pytest.mark.parametrize("preset", [*PRESETS.values(), *map(small, PRESETS.values())])
def test_every_field_of_a_preset_is_an_argument_of_its_function(preset):
    assert preset.env.startswith("worldmodel.environments:")
    assert preset.rollouts * preset.search.population > 0
    starts = {} if preset.improvement is None else preset.improvement.starts
    assert set(starts) <= set(inspect.signature(StartBank.along).parameters)


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


def words(options):
    """Format options as on a command line; leaves out None, which has no form there."""
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        elif value is not None:
            yield from (f"--{option}", str(value))


def other(value):
    """Return another value of the same kind; a string without a known alternative stays."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else OTHER.get(value, value)


def test_every_script_with_a_preset_is_tested():
    assert {path.stem for path in CLI.glob("*.py") if f'parse_with_preset(parser, "{path.stem}")' in path.read_text()} == set(
        PATHS
    )


@pytest.mark.parametrize(("name", "script"), STEPS)
def test_a_script_has_every_option_of_its_preset(parse, name, script):
    options = PRESETS[name].options(script)
    assert options
    arguments = parse(f"{script}.py", [*PATHS[script].split(), "--preset", name])
    assert {option: arguments[option] for option in options} == options
    said = {option: value for option, value in options.items() if value is not None}
    plain = parse(f"{script}.py", [*PATHS[script].split(), *words(said)])  # a value of the wrong kind exits here
    assert {option: plain[option] for option in said} == said


@pytest.mark.parametrize(("name", "script"), STEPS)
def test_options_override_the_preset(parse, name, script):
    options = {option: other(value) for option, value in PRESETS[name].options(script).items()}
    arguments = parse(f"{script}.py", [*PATHS[script].split(), "--preset", name, *words(options)])
    assert {option: arguments[option] for option in options} == options


def test_an_option_that_a_script_lacks_is_an_error(parse, monkeypatch):
    monkeypatch.setattr(Preset, "options", lambda preset, part: {"latent_sise": 3, "latent_size": 3})
    with pytest.raises(KeyError, match="latent_sise"):
        parse("train_vae.py", [*PATHS["train_vae"].split(), "--preset", "doom"])


def test_improve_controller_rejects_a_preset_without_ppo(parse, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("improve_controller.py", [*PATHS["improve_controller"].split(), "--preset", "car-racing"])
    assert stopped.value.code == 2
    assert "expected one with numbers for improve_controller.py, got car-racing" in capsys.readouterr().err
