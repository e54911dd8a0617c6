"""The numbers of the paper: that they fit the classes they are for, and that scripts take them."""

import inspect

import pytest
from gymnasium import spaces

import worldmodel as wm
from worldmodel.controller import Controller
from worldmodel.presets import CAR_RACING, DOOM, PRESETS, small


@pytest.mark.parametrize("preset", [*PRESETS.values(), *map(small, PRESETS.values())])
def test_every_number_is_an_argument_of_what_it_is_for(preset):
    wm.MDNRNNConfig(latent_size=preset.vae.latent_size, action_size=3, **preset.mdnrnn)
    assert set(preset.controller) <= set(inspect.signature(wm.evolve).parameters)
    assert preset.env.startswith("worldmodel.environments:")
    assert preset.rollouts * preset.controller["population"] > 0
    assert set(preset.starts) <= set(inspect.signature(wm.StartBank.along).parameters)


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


@pytest.mark.parametrize("part", ["collect", "train_vae", "train_mdnrnn", "train_controller", "improve_controller", "evaluate"])
def test_scripts_find_their_part(part):
    assert DOOM.options(part)
