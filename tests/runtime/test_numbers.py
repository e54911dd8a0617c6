"""Every configuration accepts NumPy's numbers and refuses booleans, strings, NaN and infinity for numbers."""

import dataclasses
import json
import typing

import numpy as np
import pytest

from worldmodel.agents import ControllerConfig, OpenAIESConfig, PPOConfig, SearchConfig
from worldmodel.dream import StartConfig
from worldmodel.evaluation import EvaluationConfig
from worldmodel.experiments import IterationConfig
from worldmodel.models import MDNRNNConfig, VAEConfig
from worldmodel.runtime import RunConfig, WorkerConfig, check_number
from worldmodel.training import DataConfig, FrameConfig, TrainingConfig

CONFIGS = [
    ControllerConfig, DataConfig, EvaluationConfig, FrameConfig, IterationConfig, MDNRNNConfig, OpenAIESConfig, PPOConfig,
    RunConfig, SearchConfig, StartConfig, TrainingConfig, VAEConfig, WorkerConfig,
]  # fmt: skip


def fields_of(*kinds):
    """Return every field of the configurations whose type is one of ``kinds`` or that or None."""
    found = []
    for config in CONFIGS:
        hints = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            parts = set(typing.get_args(hints[field.name])) or {hints[field.name]}
            if parts - {type(None)} in [{kind} for kind in kinds]:
                found.append((config, field.name))
    return found


def test_all_fields_with_numbers_are_found():
    assert len(fields_of(int)) > 30
    assert len(fields_of(float)) > 20
    assert len(fields_of(bool)) > 10


@pytest.mark.parametrize(("config", "name"), fields_of(float), ids=str)
@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan, np.float32(np.inf), True, np.True_, "0.5", 1j, 10**400, 1e300])
def test_a_float_field_refuses_what_is_no_finite_number(config, name, wrong):
    with pytest.raises((TypeError, ValueError), match=name):
        config(**{name: wrong})


@pytest.mark.parametrize(("config", "name"), fields_of(int), ids=str)
@pytest.mark.parametrize("wrong", [True, np.True_, 2.0, np.float64(2.0), "2"])
def test_an_integer_field_refuses_what_is_no_integer(config, name, wrong):
    with pytest.raises(TypeError, match=name):
        config(**{name: wrong})


@pytest.mark.parametrize(("config", "name"), fields_of(int), ids=str)
def test_an_integer_field_refuses_what_no_array_can_count(config, name):
    with pytest.raises(ValueError, match=name):
        config(**{name: 2**63})


@pytest.mark.parametrize(("config", "name"), fields_of(bool), ids=str)
@pytest.mark.parametrize("wrong", ["no", 0, 1.0, np.int64(1)])
def test_a_flag_refuses_what_is_no_boolean(config, name, wrong):
    with pytest.raises(TypeError, match=f"{name}: expected True or False"):
        config(**{name: wrong})


@pytest.mark.parametrize(("config", "name"), fields_of(int, float, bool), ids=str)
def test_numpys_numbers_become_pythons_and_json(config, name):
    default = getattr(config(), name)
    if default is None:
        return
    value = np.asarray(default)[()]
    assert isinstance(value, np.generic)
    stored = getattr(config(**{name: value}), name)
    assert type(stored) in (int, float, bool)
    assert json.loads(json.dumps(stored)) == default


def test_integers_for_float_fields_stay_integers():
    """Otherwise the fingerprints of worlds whose configuration was saved with one would change."""
    assert type(check_number(10, "termination_weight", "(0, inf)")) is int
    assert type(check_number(np.int64(10), "termination_weight", "(0, inf)")) is int


def test_leave_out_must_be_a_sequence_of_names():
    assert DataConfig(leave_out=["mission"]).leave_out == ("mission",)
    for wrong in ("mission", None, [1]):
        with pytest.raises(TypeError, match=r'leave_out: expected a tuple of strings, such as \("mission",\)'):
            DataConfig(leave_out=wrong)
