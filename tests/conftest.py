"""Fixtures for all tests."""

import argparse
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


class Parsed(Exception):
    """Carries the parsed arguments out of a script and stops it."""


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Use one thread, with which small matrix products are faster, especially on shared cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def parse(monkeypatch):
    """Return a function that runs only the argument parser of a script."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser):
        raise Parsed(vars(parse_args(parser)))

    def call(script, arguments):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(Parsed) as parsed:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        return parsed.value.args[0]

    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    return call
