"""The numbers of the paper: that they fit the classes they are for, and that scripts take them."""

import inspect
from pathlib import Path

import pytest
from gymnasium import spaces

import worldmodel as wm
from worldmodel.agents import Controller
from worldmodel.dream import StartBank
from worldmodel.experiments import CAR_RACING, DOOM, PRESETS, Preset, small

CLI = Path(__file__).resolve().parents[2] / "worldmodel" / "cli"
PATHS = {  # what no preset says
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
def test_every_number_is_an_argument_of_what_it_is_for(preset):
    wm.MDNRNNConfig(latent_size=preset.vae.latent_size, action_size=3, **preset.mdnrnn)
    assert set(preset.controller) <= set(inspect.signature(wm.evolve).parameters)
    assert preset.env.startswith("worldmodel.environments:")
    assert preset.rollouts * preset.controller["population"] > 0
    assert set(preset.starts) <= set(inspect.signature(StartBank.along).parameters)


def test_the_sizes_are_those_of_the_paper():
    doom, car = spaces.Discrete(3), spaces.Box(-1, 1, (3,))
    kind = {name: DOOM.controller[name] for name in ("features", "bias", "ordered")}
    assert Controller(64 + 2 * 512, doom, **kind).num_parameters == 1088
    assert Controller(32 + 256, car, features="zh", bias=True).num_parameters == 867
    assert (DOOM.vae.latent_size, CAR_RACING.vae.latent_size) == (64, 32)
    assert (DOOM.mdnrnn["hidden_size"], CAR_RACING.mdnrnn["hidden_size"]) == (512, 256)


def test_a_small_experiment_is_the_same_with_smaller_numbers():
    for preset in PRESETS.values():
        less = small(preset)
        assert (less.env, less.policy, less.vae, less.termination) == (
            preset.env,
            preset.policy,
            preset.vae,
            preset.termination,
        )
        assert less.num_episodes < preset.num_episodes
        assert set(less.temperatures) <= set(preset.temperatures)


def words(options):
    """Options as on a command line; None cannot be said there, and is left out."""
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        elif value is not None:
            yield from (f"--{option}", str(value))


def other(value):
    """Another value of the same kind; a word of which none is known stays."""
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
    plain = parse(f"{script}.py", [*PATHS[script].split(), *words(said)])  # a value of the wrong kind is refused here
    assert {option: plain[option] for option in said} == said


@pytest.mark.parametrize(("name", "script"), STEPS)
def test_what_is_given_beside_the_preset_wins(parse, name, script):
    options = {option: other(value) for option, value in PRESETS[name].options(script).items()}
    arguments = parse(f"{script}.py", [*PATHS[script].split(), "--preset", name, *words(options)])
    assert {option: arguments[option] for option in options} == options


def test_an_option_that_a_script_lacks_is_an_error_and_not_swallowed(parse, monkeypatch):
    monkeypatch.setattr(Preset, "options", lambda preset, part: {"latent_sise": 3, "latent_size": 3})
    with pytest.raises(KeyError, match="latent_sise"):
        parse("train_vae.py", [*PATHS["train_vae"].split(), "--preset", "doom"])


def test_a_preset_without_ppo_does_not_pass_for_one_of_improve_controller(parse, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("improve_controller.py", [*PATHS["improve_controller"].split(), "--preset", "car-racing"])
    assert stopped.value.code == 2
    assert "expected one with numbers for improve_controller.py, got car-racing" in capsys.readouterr().err
