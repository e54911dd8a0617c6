"""Fixtures for all tests."""

import shlex
import signal

import pytest
import torch

from worldmodel.cli.main import main

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a job in the background, whose children would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Use one thread, with which small matrix products are faster, especially on shared cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(capsys):
    """Return a function that runs a command and returns its exit code, its output and its errors."""

    def call(words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(shlex.split(words) if isinstance(words, str) else words)
        found = capsys.readouterr()
        return stopped.value.code or 0, found.out, found.err

    return call
