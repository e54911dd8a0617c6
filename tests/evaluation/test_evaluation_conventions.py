"""Defaults and records of `worldmodel.evaluation` follow the conventions of the library."""

from signatures import unprotected_records, unusual_defaults


def test_defaults_of_the_same_name_are_the_same_everywhere():
    assert unusual_defaults("evaluation") == []


def test_records_are_frozen_and_configurations_take_keywords():
    assert unprotected_records("evaluation") == []
