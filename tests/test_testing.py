"""The checker of vector environments: it passes what is right, and names what is wrong."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_envs import DictEnv
from toy_vector_envs import WalkVectorEnv

from worldmodel.testing import CONTRACTS, VectorEnvError, check_vector_env

NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED


def violations(make, **options):
    """What the checker finds: {contract: messages}."""
    try:
        check_vector_env(make, **({"num_steps": 40} | options))
    except VectorEnvError as error:
        found = {violation.contract: [] for violation in error.violations}
        for violation in error.violations:
            found[violation.contract].append(str(violation))
        return found
    return {}


def faulty(fault, **options):
    return lambda mode: WalkVectorEnv(mode, fault, **options)


@pytest.mark.parametrize("tensors", [False, True], ids=["arrays", "tensors"])
def test_an_environment_that_keeps_the_contracts_passes(tensors):
    check_vector_env(faulty("", tensors=tensors), num_steps=60)


FAULTS = [  # fault, the modes in which it shows, every contract that is found broken, a part of the message
    ("no mode", tuple(AutoresetMode), {"autoreset_mode"}, "got None"),
]


@pytest.mark.parametrize(("fault", "modes", "contracts", "words"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_planted_fault_is_named(fault, modes, contracts, words):
    found = violations(faulty(fault), modes=modes)
    assert set(found) == contracts
    assert any(words in message for messages in found.values() for message in messages)
