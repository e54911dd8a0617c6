"""Leaves that are left out of a space and of its values."""

import numpy as np
import pytest
from gymnasium import spaces

from worldmodel.spaces import leaves, select_leaves, without_leaves

MIXED = spaces.Dict(
    {
        "arm": spaces.Dict({"angle": spaces.Box(-1, 1, (2,)), "notes": spaces.Text(5)}),
        "pair": spaces.Tuple([spaces.Text(3), spaces.Discrete(4)]),
        "graph": spaces.Graph(spaces.Box(0, 1, (2,)), None),
    }
)
LEFT_OUT = ("arm/notes", "pair/0", "graph")


def test_the_paths_of_the_other_leaves_stay_the_same():
    assert [path for path, _ in leaves(without_leaves(MIXED, LEFT_OUT))] == ["arm/angle", "pair/1"]


@pytest.mark.parametrize("kind", [tuple, list])
def test_values_are_restricted_to_the_leaves_of_the_space(kind):
    space = without_leaves(MIXED, LEFT_OUT)
    value = {"arm": {"angle": np.ones(2), "notes": "x"}, "pair": kind(["a", 3]), "graph": object()}
    selected = select_leaves(space, value)
    assert selected["pair"] == {"1": 3}
    assert list(selected["arm"]) == ["angle"]
    assert select_leaves(space, selected)["pair"] == {"1": 3}


def test_a_subtree_is_left_out_as_a_whole():
    space = spaces.Dict({"info": MIXED, "x": spaces.Discrete(2)})
    assert without_leaves(space, ["info"]) == spaces.Dict({"x": spaces.Discrete(2)})


def test_unknown_names_and_empty_remainders_are_refused():
    with pytest.raises(ValueError, match=r"leave_out: expected paths of leaves among \['arm', .*got 'misssion'"):
        without_leaves(MIXED, ["misssion"])
    with pytest.raises(ValueError, match=r"expected at least one leaf .* to remain"):
        without_leaves(MIXED, ["arm", "pair", "graph"])
