"""An object in a process of its own: calls, errors, limits and crashes."""

import functools
import os
import time

import pytest

from worldmodel.runtime import RemoteError, RemoteObject


class Counter:
    """Counts, and goes wrong on request."""

    def __init__(self, start, *, wrong=""):
        self.number = start
        if wrong:
            getattr(self, wrong)()

    def add(self, number):
        self.number += number
        return self.number

    def hang(self):
        time.sleep(1000)

    def crash(self):
        os._exit(3)

    def refuse(self):
        raise ValueError("number: expected less,\ngot more")

    def unpicklable(self):
        return lambda: self.number


def make(start=1, *, wrong="", seconds=60):
    return RemoteObject(functools.partial(Counter, start, wrong=wrong), name="counter", seconds=seconds)


def test_methods_are_called_in_order_and_errors_leave_the_object_as_it_is():
    counter = make(5)
    assert [counter.call("add", number, seconds=60) for number in (1, 2)] == [6, 8]
    with pytest.raises(RemoteError, match=r"^number: expected less, got more$"):
        counter.call("refuse", seconds=60)
    with pytest.raises(RemoteError, match=r"AttributeError: .* 'gone'"):
        counter.call("gone", seconds=60)
    with pytest.raises(RemoteError, match="pickle"):
        counter.call("unpicklable", seconds=60)
    assert counter.call("add", 1, seconds=60) == 9
    counter.close()
    assert not counter.process.is_alive()


@pytest.mark.parametrize(("method", "text"), [("hang", "within 0.2 s, got none"), ("crash", "got a crash of its process")])
def test_a_call_that_hangs_or_crashes_ends_the_process(method, text):
    counter = make()
    with pytest.raises(RemoteError, match=f"counter: expected an end of {method}.*{text}"):
        counter.call(method, seconds=0.2 if method == "hang" else 60)
    assert not counter.is_running
    with pytest.raises(RemoteError, match="counter: expected a running process, got one that has ended"):
        counter.call("add", 1, seconds=60)
    counter.close()
    assert not counter.process.is_alive()


@pytest.mark.parametrize("wrong", ["refuse", "crash"])
def test_an_object_that_cannot_be_made_leaves_no_process(wrong):
    with pytest.raises(RemoteError, match="number: expected less" if wrong == "refuse" else "its construction, got a crash"):
        make(wrong=wrong)
