"""What all tests share."""

import argparse
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


class Parsed(Exception):
    """Carries what a script's parser made of its arguments out of the script, which then does nothing with them."""


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small products are faster on one thread, by far where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def parse(monkeypatch):
    """Parse a list of arguments by the parser of a script, which goes no further."""
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
