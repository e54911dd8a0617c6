"""The checker of vector environments passes correct environments and names faults."""

import random
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit, TransformObservation
from toy_envs import CountEnv, DictEnv
from toy_vector_envs import WalkVectorEnv

from worldmodel.testing import CONTRACTS, VectorEnvError, check_vector_env

NEXT_STEP, SAME_STEP, DISABLED = ALL = tuple(AutoresetMode)
found_in = pytest.mark.skipif(gym.__version__ != "1.4.0", reason="a fault of Gymnasium 1.4.0")


def walk(fault="", **options):
    return lambda mode: WalkVectorEnv(mode, fault, **options)


def violations(make, **options):
    """Return the violations that the checker finds."""
    try:
        check_vector_env(make, **({"num_steps": 30} | options))
    except VectorEnvError as error:
        return error.violations
    return []


def contracts(make, **options):
    return {violation.contract for violation in violations(make, **options)}


@pytest.mark.parametrize("tensors", [False, True], ids=["arrays", "tensors"])
def test_an_environment_that_keeps_the_contracts_passes(tensors):
    check_vector_env(walk(tensors=tensors), num_steps=60)


def test_faults_are_found_behind_tensors():
    assert contracts(walk("flags in int", tensors=True), modes=[DISABLED]) == {"dtypes"}
    assert contracts(walk("neighbour's actions", tensors=True), modes=[SAME_STEP]) == {"independence"}


FAULTS = [  # fault, modes that it affects, broken contracts, pattern of each message
    ("batched for one row more", ALL, {"spaces"}, r"expected observation_space to be .*\(3, 2\).* got .*\(4, 2\).*batch_space"),
    ("no mode", ALL, {"autoreset_mode"}, "expected metadata.* got None"),
    ("mode as a string", ALL, {"autoreset_mode"}, "expected metadata.* got '(NextStep|SameStep|Disabled)'"),
    ("attribute without mode", ALL, {"autoreset_mode"}, "expected the attribute autoreset_mode .* got None"),
    ("raises", ALL, {"errors"}, "expected no error, got ArithmeticError.*toy_vector_envs.py"),
    ("observation without steps", ALL, {"shapes"}, r"observation at step 0: expected .*\(3, 2\), got shape \(3, 1\)"),
    ("rewards as a column", ALL, {"shapes"}, r"rewards at step 1: expected .*\(3,\), got shape \(3, 1\)"),
    (
        "observation in float64",
        (NEXT_STEP, DISABLED),
        {"dtypes"},
        "observation at step 0: expected dtype float32.* got float64",
    ),
    ("rewards in int", ALL, {"dtypes"}, "rewards at step 1: expected a floating-point dtype, got int64"),
    ("flags in int", ALL, {"dtypes"}, "terminations at step 1: expected dtype bool, got int64"),
    ("observation outside", ALL, {"values"}, r"observation at step 2: .* got \[3. 2.\] in sub-environment 0"),
    ("rewards of NaN", ALL, {"values"}, "rewards at step 5: expected finite"),
    ("no mask in infos", ALL, {"infos"}, r"infos\['distance'\] at step 1: expected a mask infos\['_distance'\].* got none"),
    ("infos as a list", ALL, {"infos"}, "infos at step 1: expected one dict .* got list"),
    ("resets without a call", (NEXT_STEP,), {"NEXT_STEP"}, "expected reward 0|reset in that step, not in the last step"),
    ("reward at reset", (NEXT_STEP,), {"NEXT_STEP"}, "the one after its end: expected reward 0"),
    (
        "flag at reset",
        (NEXT_STEP,),
        {"NEXT_STEP"},
        "expected no flag.* truncated True|expected reward 0|ignore the action",
    ),
    ("action at reset", (NEXT_STEP,), {"NEXT_STEP"}, "to ignore the action, but with other actions"),
    ("no reset at all", (NEXT_STEP,), {"NEXT_STEP"}, "expected the start of an episode, got the last observation again"),
    ("no final_obs", (SAME_STEP,), {"SAME_STEP"}, r"final_obs at step \d+: expected infos\['final_obs'\] .* got the keys"),
    ("no final_info", (SAME_STEP,), {"SAME_STEP"}, "final_info at step"),
    ("final_obs of all", (SAME_STEP,), {"SAME_STEP"}, r"expected infos\['_final_obs'\] to mark the rows that ended"),
    ("final_obs outside", (SAME_STEP,), {"SAME_STEP"}, "expected an observation of single_observation_space"),
    ("final_obs is the start", (SAME_STEP,), {"SAME_STEP"}, "expected final_obs to be the end.* for both"),
    (
        "final_obs in a buffer",
        (SAME_STEP,),
        {"copies"},
        r"infos\['final_obs'\] of step \d+: expected the returned value to stay",
    ),
    ("steps ended rows", (DISABLED,), {"ended rows"}, "expected step to raise after the end of its episode"),
    ("mask resets no rows", (DISABLED,), {"reset_mask"}, "got the observation from before the reset|to restart from its seed"),
    ("mask without seeds", (DISABLED,), {"reset_mask"}, "sub-environment 0, masked: expected to restart from its seed"),
    ("mask not checked", (DISABLED,), {"reset_mask"}, r"expected an error for a mask that is not bool of shape \(3,\)"),
    ("options changed", (DISABLED,), {"reset_mask"}, "expected reset to change nothing in the caller's options"),
    ("seed not read", ALL, {"same seed"}, "in a second new environment, but observation.* not tested in this mode"),
    ("reset keeps ends", (NEXT_STEP,), {"reset"}, r"expected reset\(seed=0\) to clear the state of the \d+ steps before"),
    ("seeds ignored", ALL, {"different seeds"}, "expected different runs from the seeds"),
    ("int seeds all rows alike", ALL, {"seed list"}, r"sub-environment 1: expected reset\(seed=0\) to mean .*\[0, 1, 2\]"),
    ("no list of seeds", ALL, {"seed list"}, r"expected reset\(seed=\[0, 1, 2\]\) to be accepted, got TypeError"),
    ("first seed for all rows", ALL, {"seed per row"}, "expected the same run from seed 0 as in sub-environment 0"),
    ("row in the seed", ALL, {"seed per row"}, "expected the same run from seed 0 as in sub-environment 0"),
    ("neighbour's actions", ALL, {"independence"}, "expected no dependence on the actions of the others"),
    ("one buffer", ALL, {"copies"}, "observation of step 0: expected the returned value to stay unchanged"),
    (
        "state is the observation",
        ALL,
        {"copies"},
        "the caller wrote into returned observations|expected the returned value to stay",
    ),
    ("unmasked rows not copied", (DISABLED,), {"copies"}, "after the caller wrote into the observation returned"),
    ("actions changed", ALL, {"actions"}, "step 1: expected the caller's actions to stay unchanged"),
    ("actions kept", ALL, {"actions"}, "after the caller wrote into the actions of an earlier step"),
    ("closes once", ALL, {"close"}, "got RuntimeError.*closed already"),
]


@pytest.mark.parametrize(("fault", "modes", "broken", "words"), FAULTS, ids=[fault for fault, *_ in FAULTS])
def test_a_planted_fault_is_named(fault, modes, broken, words):
    for mode in modes:
        found = violations(walk(fault), modes=[mode])
        assert {violation.contract for violation in found} == broken
        assert all(violation.mode in (mode, None) and re.search(words, str(violation)) for violation in found), found


def test_a_generator_shared_by_rows_breaks_independence_and_the_message_names_the_end():
    found = violations(walk("starts from one generator"), modes=[NEXT_STEP])
    assert {violation.contract for violation in found} == {"seed per row", "independence"}
    assert re.search(r"sub-environment \d had ended at step \d+ in only one of them", found[-1].message)


def test_a_mask_that_resets_all_is_named_with_the_rows_that_should_have_stayed():
    found = violations(walk("mask resets all"), modes=[DISABLED])
    assert {violation.contract for violation in found} == {"independence", "reset_mask"}
    assert any(re.search(r"expected a mask of \[\d\] to leave its observation", violation.message) for violation in found)


def test_disabled_that_resets_by_itself_is_named_by_its_own_runs_or_by_another_mode():
    assert "DISABLED" in contracts(walk("resets without a call", noise=0), modes=[DISABLED])
    found = violations(walk("resets without a call"), modes=[SAME_STEP, DISABLED])
    assert "expected the same first episode in SAME_STEP and DISABLED" in found[-1].message


def test_episodes_of_another_length_in_another_mode_are_named():
    (violation,) = violations(walk("longer in SAME_STEP", noise=0))
    assert violation.contract == "modes"
    assert violation.mode is None


def test_a_deterministic_environment_passes_different_seeds():
    check_vector_env(walk(noise=0, spread=0), num_steps=40)


def test_a_mode_without_an_episode_end_is_a_violation():
    assert contracts(walk(), num_steps=4) == {"ends"}
    check_vector_env(walk(), num_steps=4, require_ends=False)


def test_one_row_is_not_enough_to_test_independence():
    assert contracts(walk(num_envs=1)) == {"independence"}


def test_rounding_that_depends_on_the_row_passes_with_a_tolerance():
    assert contracts(walk("rounding by row")) == {"seed per row"}
    check_vector_env(walk("rounding by row"), num_steps=40, tolerance=1e-4)


def test_another_seed_gives_other_actions_and_starts():
    messages = {str(violations(walk("reward at reset"), modes=[NEXT_STEP], seed=seed)[0]) for seed in (0, 0, 1)}
    assert len(messages) == 2


def test_contracts_can_be_ignored_unless_they_end_the_check():
    check_vector_env(walk("closes once"), num_steps=40, ignore={"close"})
    check_vector_env(walk("longer in SAME_STEP"), num_steps=40, ignore={"modes"})
    assert contracts(walk("seed not read"), ignore={"same seed"}) == {"same seed"}


def test_if_reset_does_not_clear_all_state_later_runs_use_new_environments():
    make = walk("reset keeps ends")
    check_vector_env(make, modes=[NEXT_STEP], num_steps=40, ignore={"reset"})


def test_every_violation_of_every_mode_is_listed():
    with pytest.raises(
        VectorEnvError, match=r"found 3 violation.*\n  1\. close in NEXT_STEP: .*\n  2\. .*SAME_STEP.*\n  3\. "
    ) as caught:
        check_vector_env(walk("closes once"), num_steps=40)
    assert isinstance(caught.value, AssertionError)


def test_without_modes_the_mode_is_read_from_the_metadata():
    check_vector_env(lambda: WalkVectorEnv(SAME_STEP), modes=None, num_steps=40)
    assert contracts(lambda: WalkVectorEnv(SAME_STEP, "no final_obs"), modes=None) == {"SAME_STEP"}
    assert contracts(lambda: WalkVectorEnv(SAME_STEP, "no mode"), modes=None) == {"autoreset_mode"}


def test_a_mode_that_cannot_be_made_is_named_and_the_others_are_checked():
    def make(mode):
        if mode is DISABLED:
            raise ValueError("no such mode")
        return WalkVectorEnv(mode, "closes once")

    found = violations(make)
    assert [(v.contract, v.mode) for v in found] == [("close", NEXT_STEP), ("close", SAME_STEP), ("autoreset_mode", DISABLED)]
    assert "no such mode" in found[-1].message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 1}, "num_steps"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"ignore": ["dtype"]}, r"ignore: expected some of .*, got \['dtype'\]"),
        ({"modes": []}, "modes: expected members of AutoresetMode"),
        ({"modes": ["NextStep"]}, "modes: expected members of AutoresetMode"),
    ],
)
def test_arguments_out_of_range_are_rejected(options, words):
    with pytest.raises(ValueError, match=words):
        check_vector_env(walk(), **options)


def test_objects_that_are_not_vector_environments_are_rejected():
    with pytest.raises(TypeError, match=r"make: expected it to return a gymnasium.vector.VectorEnv, got DictEnv"):
        check_vector_env(lambda mode: DictEnv())


def test_global_random_states_do_not_change():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    check_vector_env(walk(), num_steps=40)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_every_contract_has_a_planted_fault():
    planted = set.union(*(broken for _, _, broken, _ in FAULTS))
    assert planted | {"ends", "modes", "DISABLED"} == set(CONTRACTS)  # tested above


def made(vectorization, **options):
    """Return a function that makes Gymnasium's vector environments in a mode."""
    return lambda mode: gym.make_vec(
        num_envs=2, vectorization_mode=vectorization, vector_kwargs={"autoreset_mode": mode}, **options
    )


def limited_dict_env():
    return TimeLimit(DictEnv(), 8)


OF_GYMNASIUM = {
    "CartPole": {"id": "CartPole-v1"},
    "Pendulum": {"id": "Pendulum-v1", "max_episode_steps": 8},  # actions of a Box
    "Blackjack": {"id": "Blackjack-v1"},  # observations of a Tuple of Discrete
}


@pytest.mark.parametrize("options", OF_GYMNASIUM.values(), ids=OF_GYMNASIUM)
def test_sync_vector_env_passes_in_all_modes(options):
    check_vector_env(made("sync", **options), num_steps=40)


def test_sync_vector_env_passes_with_dict_observations():
    check_vector_env(lambda mode: SyncVectorEnv([limited_dict_env] * 3, autoreset_mode=mode), num_steps=30)


def test_rows_may_have_different_bounds_if_observation_mode_allows_it():
    def bounded(bound):
        space = gym.spaces.Box(-bound, bound, (4,), np.float32)
        return TransformObservation(gym.make("CartPole-v1"), lambda observation: observation, space)

    env_fns = [lambda: bounded(100.0), lambda: bounded(200.0)]
    make = lambda mode: SyncVectorEnv(env_fns, observation_mode="different", autoreset_mode=mode)  # noqa: E731
    check_vector_env(make, num_steps=40)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of forks with threads, and Gymnasium's of steps after the end
@pytest.mark.parametrize("options", list(OF_GYMNASIUM.values())[:2], ids=list(OF_GYMNASIUM)[:2])
def test_async_vector_env_passes_in_all_modes_but_steps_ended_rows(options):
    check_vector_env(made("async", **options), num_steps=40, ignore={"ended rows"})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_async_vector_env_passes_with_dict_observations():
    make = lambda mode: AsyncVectorEnv([limited_dict_env] * 2, autoreset_mode=mode)  # noqa: E731
    check_vector_env(make, num_steps=30, ignore={"ended rows"})


def test_buffers_that_an_environment_reuses_show_in_final_obs_of_sync_vector_env():
    make = lambda mode: SyncVectorEnv([CountEnv] * 2, autoreset_mode=mode)  # noqa: E731
    assert contracts(make) == {"SAME_STEP", "copies"}


@found_in
def test_cart_pole_vector_env_takes_no_list_of_seeds_and_its_rows_share_a_generator():
    make = lambda: gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="vector_entry_point")  # noqa: E731
    assert contracts(make, modes=None, num_steps=60) == {"seed list", "independence"}
    check_vector_env(make, modes=None, num_steps=60, ignore={"seed list", "independence"})


# The same faults without the checker.


@found_in
def test_fault_a_row_of_cart_pole_vector_env_depends_on_when_another_ended():
    def second_start_of_row_0(actions_of_row_1):
        envs = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point")
        envs.reset(seed=0)
        ended = np.zeros(2, dtype=bool)
        for step in range(100):
            observations, _, terminations, truncations, _ = envs.step(np.array([1, actions_of_row_1[step % 2]]))
            if ended[0]:  # the step after its end is its reset
                return observations[0]
            ended = terminations | truncations
        return None

    early, late = second_start_of_row_0([0, 0]), second_start_of_row_0([0, 1])
    assert not np.array_equal(early, late)


@found_in
def test_fault_cart_pole_vector_env_rejects_a_list_of_seeds():
    with pytest.raises(gym.error.Error, match="Seed must be a python integer"):
        gym.make_vec("CartPole-v1", num_envs=2).reset(seed=[0, 1])


@found_in
@pytest.mark.filterwarnings("ignore")
def test_fault_async_vector_env_without_shared_memory_resets_twice():
    rewards = {}
    for shared_memory in (True, False):
        envs = gym.make_vec("CartPole-v1", 1, "async", vector_kwargs={"shared_memory": shared_memory})
        envs.reset(seed=0)
        while not envs.step(np.array([0]))[2].any():
            pass
        envs.reset(seed=0)  # explicit reset after an end
        rewards[shared_memory] = float(envs.step(np.array([0]))[1][0])
        envs.close()
    assert rewards == {True: 1.0, False: 0.0}  # 0.0: the step was a reset without the seed


@found_in
@pytest.mark.filterwarnings("ignore")
def test_fault_async_vector_env_steps_ended_rows_in_disabled_but_sync_raises():
    for vectorization, raises in (("sync", True), ("async", False)):
        envs = made(vectorization, id="CartPole-v1")(DISABLED)
        envs.reset(seed=0)
        while not envs.step(np.array([0, 0]))[2].any():
            pass
        if raises:
            with pytest.raises(AssertionError):
                envs.step(np.array([0, 0]))
        else:
            envs.step(np.array([0, 0]))
        envs.close()


@found_in
def test_fault_bipedal_walker_with_the_same_seed_does_not_start_the_same():
    pytest.importorskip("Box2D")
    env = gym.make("BipedalWalker-v3")
    firsts = []
    for _ in range(4):
        env.reset(seed=0)
        firsts.append(env.step(np.ones(4, np.float32))[0])
    assert not all(np.array_equal(first, firsts[0]) for first in firsts)
