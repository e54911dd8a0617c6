"""The layout of z: found from space and data, declared, contradicted; and V's encoding of it."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_data import write_store
from toy_images import COLOUR, MIXED

from worldmodel.data import Episode, EpisodeCollection
from worldmodel.mixtures import PartKind
from worldmodel.models import ConvVAE, StateNormalizer, VAEConfig, find_layout, vision_for
from worldmodel.models.evidence import Evidence, Leaf
from worldmodel.spaces import leaf_values, leaves, map_leaves, take_row, to_numpy

ACTION = spaces.Discrete(2)
STEPS = 60


def episode(observations, number=0):
    steps = len(next(iter(leaf_values(observations).values()))) - 1
    last = np.arange(steps) == steps - 1
    return Episode(
        observations=observations,
        actions=np.zeros(steps, dtype=np.int64),
        rewards=np.zeros(steps),
        terminations=last & False,
        truncations=last,
        episode_id=number,
    )


def collection(path, space, make, episodes=24):
    """Return a collection of episodes with observations ``make(rng, number)``."""
    rng = np.random.default_rng(0)
    made = [episode(make(rng, number), number) for number in range(episodes)]
    return EpisodeCollection([write_store(path, made, observation_space=space, action_space=ACTION)])


def constant(value, *shape):
    return np.broadcast_to(np.asarray(value), (STEPS + 1, *shape)).copy()


SPACE = spaces.Dict(
    {
        "bits": spaces.MultiBinary(3),
        "fixed": spaces.Box(-1.0, 1.0, (1,), np.float64),
        "gear": spaces.Box(0.0, 10.0, (1,), np.float32),
        "goal": spaces.Box(-np.inf, np.inf, (2,), np.float64),
        "level": spaces.Box(0, 1_000_000, (1,), np.int64),
        "places": spaces.MultiDiscrete([[2, 3], [4, 2]]),
        "small": spaces.Box(-5, 5, (2,), np.int8),
        "state": spaces.Box(-np.inf, np.inf, (3,), np.float32),
        "task": spaces.Discrete(3, start=-1),
    }
)


def observe(rng, number):
    state = rng.normal(size=(STEPS + 1, 3)).astype(np.float32)
    state[:, 1] = np.repeat(rng.normal(size=STEPS // 4 + 1), 4)[: STEPS + 1]  # changes in a quarter of the steps
    places = rng.integers([[2, 3], [4, 2]], size=(STEPS + 1, 2, 2))
    places[:, 0, 1] = number % 3
    return {
        "bits": rng.integers(2, size=(STEPS + 1, 3)).astype(np.int8),
        "fixed": constant(0.3, 1),
        "gear": rng.choice([1.0, 2.5, 7.0], (STEPS + 1, 1)).astype(np.float32),
        "goal": constant(rng.normal(size=2), 2),
        "level": rng.integers(1_000_000, size=(STEPS + 1, 1)),
        "places": places,
        "small": np.stack([rng.integers(-5, 6, STEPS + 1), rng.choice([-2, 4], STEPS + 1)], axis=1).astype(np.int8),
        "state": state,
        "task": constant(number % 3 - 1),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return collection(tmp_path_factory.mktemp("layout") / "data", SPACE, observe)


KINDS = {
    "bits": "bits",
    "fixed": "constant",
    "gear": "choice",
    "goal": "episode_constant",
    "level": "integer",
    "places[0]": "choice",
    "places[1]": "episode_constant",
    "places[2]": "choice",
    "places[3]": "choice",
    "small[0]": "choice",
    "small[1]": "choice",
    "state[0]": "continuous",
    "state[1]": "mostly_unchanged",
    "state[2]": "continuous",
    "task": "episode_constant",
}


def test_the_kind_of_each_number_is_found_from_space_and_data(data):
    layout = find_layout(data, kinds={"gear": "choice"})
    assert {part.name: part.kind.value for part in layout.parts} == KINDS
    sizes = {part.name: part.size for part in layout.parts}
    assert sizes | {"gear": 3, "goal": 2, "places[1]": 3, "places[2]": 4, "small[0]": 11, "small[1]": 2, "task": 3} == sizes
    values = {part.name: part.values for part in layout.parts if part.values is not None}
    assert values == {"gear": (1.0, 2.5, 7.0), "small[0]": tuple(range(-5, 6)), "small[1]": (-2.0, 4.0)}
    assert find_layout(data, kinds=layout.kinds(), complete=True) == layout
    assert "goal: episode constant (x 2)" in str(layout).splitlines()


def test_a_number_is_constant_within_episodes_only_if_there_are_20_of_them(tmp_path):
    space = spaces.Box(-1.0, 1.0, (2,), np.float64)

    def make(rng, number):
        return constant([number / 30, 0.5], 2)

    few, many = (collection(tmp_path / str(n), space, make, n) for n in (19, 20))
    with pytest.warns(UserWarning, match=r"at least 20 episodes .* got 19, .* declare kinds=\{'\[0\]': 'episode_constant'\}"):
        assert [part.kind.value for part in find_layout(few).parts] == ["mostly_unchanged", "constant"]
    assert find_layout(few, kinds={"[0]": "episode_constant"}).parts[0].kind is PartKind.EPISODE_CONSTANT
    assert [part.kind.value for part in find_layout(many).parts] == ["episode_constant", "constant"]


def test_a_goal_of_few_episodes_is_not_taken_for_a_choice(tmp_path):
    space = spaces.Dict({"goal": spaces.Box(-1.0, 1.0, (2,), np.float32), "walk": spaces.Box(-9.0, 9.0, (1,), np.float32)})

    def make(rng, number):
        goal = np.repeat(np.array([[number / 4, -number / 4]], np.float32), STEPS + 1, axis=0)
        return {"goal": goal, "walk": rng.normal(size=(STEPS + 1, 1)).clip(-9, 9).astype(np.float32)}

    with pytest.warns(UserWarning, match="constant in each of them") as said:
        find_layout(collection(tmp_path, space, make, 3))
    assert len(said) == 1
    assert "got 3, and these numbers are constant in each of them" in str(said[0].message)
    assert "kinds={'goal': 'episode_constant'}" in str(said[0].message)


def test_values_of_a_float_box_that_look_like_choices_are_suggested(data):
    with pytest.warns(
        UserWarning, match=r"observation 'gear': all 1464 numbers are one of 1, 2.5, 7.*kinds=\{'gear': 'choice'\}"
    ):
        layout = find_layout(data)
    assert {part.name: part.kind for part in layout.parts}["gear"] is PartKind.CONTINUOUS


def test_integers_of_too_many_values_are_rounded_instead(tmp_path):
    space = spaces.Box(0, 255, (40,), np.uint8)
    episodes = collection(tmp_path, space, lambda rng, number: rng.integers(256, size=(STEPS + 1, 40)).astype(np.uint8))
    with pytest.warns(UserWarning, match="observation: expected at most 4096 values of all its 40 integers, got 10"):
        layout = find_layout(episodes)
    assert [(part.kind.value, part.size) for part in layout.parts] == [("integer", 40)]


def test_constants_and_declared_choices_are_not_rounded_beside_integers_of_too_many_values(tmp_path):
    space = spaces.Box(0, 255, (40,), np.uint8)

    def make(rng, number):
        numbers = rng.integers(256, size=(STEPS + 1, 40)).astype(np.uint8)
        numbers[:, 0] = 7
        return numbers

    with pytest.warns(UserWarning, match="expected at most 4096 values of all its 40 integers"):
        layout = find_layout(collection(tmp_path, space, make), kinds={"[39]": "choice"})
    assert [(part.kind.value, part.count) for part in layout.parts] == [("constant", 1), ("integer", 38), ("choice", 1)]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"state": "episode_constant"}, r"expected observation 'state\[0\]' to be constant within each episode, as declared,"
         r" got .* at step 1 of episode 0; declare it as another kind, such as kinds=\{'state\[0\]': 'continuous'\}"),
        ({"task": "constant"}, r"expected observation 'task' to be the same in all data, as declared, got -1 and then 0"
         r" at step 0 of episode 1.*kinds=\{'task': 'choice'\}"),
        ({"state[2]": "choice"}, r"expected at most 256 values of observation 'state\[2\]', a choice, got more"),
        ({"gear": "choice(1, 2.5)"}, r"expected observation 'gear' to be one of \[1.0, 2.5\], got 7 in the data; add"),
        ({"gears": "choice"}, r"kinds: expected leaves of the observation, \['bits', .*\], got 'gears'"),
        ({"state[3]": "continuous"}, r"kinds: expected numbers 0 to 2 of 'state', got 'state\[3\]'"),
        ({"task": "bits"}, r"kinds\['task'\]: expected one of \['choice', 'episode_constant', 'constant'\] for Discrete"),
        ({"gear": "integer"}, r"kinds\['gear'\]: expected one of .*'choice'.* for Box.* got 'integer'"),
        ({"gear": "choice(a)"}, r"kinds\['gear'\]: expected numbers in parentheses, .*, got 'choice\(a\)'"),
        ({"task": "choice(1)"}, r"kinds\['task'\]: expected values only of a choice among numbers of a Box"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_layout_that_contradicts_the_data_is_rejected(data, kinds, message):
    with pytest.raises(ValueError, match=message):
        find_layout(data, kinds={"gear": "choice"} | kinds)
    with pytest.raises(ValueError, match="layout: expected a kind for each number of the observation, got none for 'bits"):
        find_layout(data, kinds={"gear": "choice"}, complete=True)


def test_a_choice_outside_of_its_space_is_rejected_and_a_number_outside_of_its_box_warned_of(tmp_path):
    space = spaces.Dict({"task": spaces.Discrete(3), "x": spaces.Box(-1.0, 1.0, (2,))})

    def make(task, x):
        def observations(rng, number):
            bad = number == 3
            values = rng.uniform(-1, 1, (STEPS + 1, 2)).astype(np.float32)
            values[7, 1] = x if bad else 0
            return {"task": np.where((np.arange(STEPS + 1) == 5) & bad, task, 1), "x": values}

        return observations

    with pytest.raises(ValueError, match=r"task: expected a value of Discrete\(3\), got 3 at step 5"):  # by the store
        collection(tmp_path / "a", space, make(3, 0))
    with pytest.raises(
        ValueError, match=r"'task': expected integers from 0 to 2 in Discrete\(3\), got 3 at step 1 of episode 4"
    ):
        Evidence(Leaf("task", space["task"]), np.zeros(1)).add(np.array([0, 3]), 4)
    with pytest.raises(ValueError, match="'x': expected finite numbers, got nan at step 1 of episode 4"):
        Evidence(Leaf("x", space["x"]), np.zeros(2)).add(np.array([[0, 0], [np.nan, 0]]), 4)
    with pytest.warns(
        UserWarning, match=r"observation 'x\[1\]': expected numbers from -1 to 1 .*, got 1.5; observations of dreams"
    ):
        find_layout(collection(tmp_path / "b", space, make(1, 1.5)))
    assert find_layout(collection(tmp_path / "c", space, make(1, 1 + 1e-7)))  # a rounding error


def test_choices_are_one_hot_in_z_and_decode_to_exactly_their_values(data):
    layout = find_layout(data, kinds={"gear": "choice"})
    observations = [data.read(i).observations for i in range(len(data))]
    vision = vision_for(SPACE, layout).fit(observations)
    z, log_variance = vision.encode(observations[0])
    assert z.shape == (STEPS + 1, layout.latent_size)
    assert (log_variance == -torch.inf).all()
    for part in layout.parts:
        own = z[:, part.start : part.stop]
        if part.kind in (PartKind.CHOICE, PartKind.BITS) or part.path in ("places", "task"):
            assert ((own == 0) | (own == 1)).all(), part
        if part.kind is PartKind.CHOICE:
            assert (own.sum(dim=1) == 1).all()
    back = to_numpy(vision.decode(z))
    for path in ("bits", "gear", "level", "places", "small", "task"):
        assert np.array_equal(back[path], observations[0][path]) or path == "level"
    np.testing.assert_allclose(back["level"], observations[0]["level"], atol=1)
    opened = StateNormalizer.from_config(SPACE, vision.config_to_json())
    opened.load_state_dict(vision.state_dict())
    assert opened.fingerprint == vision.fingerprint
    assert torch.equal(opened.encode(observations[0])[0], z)
    other = vision_for(SPACE, find_layout(data, kinds={"gear": "choice(1, 2.5, 3, 7)"}))
    assert other.fingerprint != vision.fingerprint


def test_an_unknown_value_of_a_choice_counts_as_the_nearest_with_one_warning():
    vision = StateNormalizer(spaces.Box(0.0, 10.0, (2,)), {("", 1): (1.0, 4.0, 5.0)})
    with pytest.warns(UserWarning, match=r"observation ''\[1\]: expected one of the values of the training data, got another"):
        z, _ = vision.encode(np.array([[0.5, 4.4]], dtype=np.float32))
    assert z[0, 1:].tolist() == [0.0, 1.0, 0.0]
    vision.encode(np.array([[0.5, 4.4]], dtype=np.float32))


def test_the_vectors_beside_an_image_have_kinds_too(tmp_path):
    vision = ConvVAE(MIXED, VAEConfig(latent_size=3))

    def make(rng, number):
        return {
            "screen": rng.integers(0, 256, (STEPS + 1, *COLOUR.shape), dtype=np.uint8),
            "speed": constant(rng.normal(size=2).astype(np.float32), 2),
            "gear": rng.integers(3, size=STEPS + 1),
        }

    episodes = collection(tmp_path, MIXED, make, 20)
    layout = find_layout(episodes, vision)
    assert [(part.name, part.kind.value, part.size) for part in layout.parts] == [
        ("screen", "image", 3),
        ("gear", "choice", 3),
        ("speed", "episode_constant", 2),
    ]
    vision.vectors.scale[:3] = 0.5  # as in files of earlier versions, which standardised choices
    assert [part.kind.value for part in find_layout(episodes, vision).parts] == ["image", "continuous", "episode_constant"]
    with pytest.raises(ValueError, match="expected no choice among numbers of a Box for a V that was trained before"):
        find_layout(episodes, vision, kinds={"speed": "choice"})
    only = ConvVAE(COLOUR, VAEConfig(latent_size=3))
    assert [part.kind for part in find_layout(episodes, only).parts] == [PartKind.IMAGE]


def random_space(rng, depth=0):
    """Return a random space of all supported kinds."""
    kind = rng.integers(8 if depth < 2 else 6)
    shape = tuple(rng.integers(1, 4, size=rng.integers(0, 3)).tolist())
    if kind == 0:
        return spaces.Discrete(int(rng.integers(1, 7)), start=int(rng.integers(-9, 9)))
    if kind == 1:
        return spaces.MultiDiscrete(rng.integers(1, 5, size=shape or (2,)))
    if kind == 2:
        return spaces.MultiBinary(shape or 3)
    if kind in (3, 4):
        dtype = [np.float32, np.float64][rng.integers(2)]
        low = rng.normal(size=shape) * 10.0 ** rng.integers(-3, 6)
        high = low + abs(low) * 1e-5 + rng.exponential(size=shape) * 10.0 ** rng.integers(-3, 6)
        low, high = (np.where(rng.random(shape) < 0.2, sign * np.inf, side) for sign, side in ((-1, low), (1, high)))
        return spaces.Box(low.astype(dtype), high.astype(dtype), shape, dtype)
    if kind == 5:
        dtype = [np.int8, np.uint8, np.int32, np.int64, np.uint16][rng.integers(5)]
        low = int(rng.integers(0, 5))
        return spaces.Box(low, low + int(rng.choice([0, 1, 10, 100])), shape, dtype)
    children = [random_space(rng, depth + 1) for _ in range(rng.integers(1, 4))]
    return spaces.Tuple(children) if kind == 6 else spaces.Dict({f"k{i}": child for i, child in enumerate(children)})


@pytest.mark.parametrize("seed", range(300))
def test_what_dreams_decode_to_is_contained_in_the_space(seed, tmp_path):
    rng = np.random.default_rng(seed)
    space = random_space(rng)
    space.seed(seed)

    def make(_, number):
        samples = [space.sample() for _ in range(8)]
        return map_leaves(lambda *parts: np.stack(parts), *samples)

    episodes = collection(tmp_path, space, make, 3)
    layout = find_layout(episodes)
    vision = vision_for(space, layout).fit(episodes.read(i).observations for i in range(3))
    z, _ = vision.encode(episodes.read(0).observations)
    noise = torch.as_tensor(rng.normal(size=(50, layout.latent_size)) * 10.0 ** rng.integers(-3, 6), dtype=torch.float32)
    for latent in (z, noise, torch.zeros(1, layout.latent_size)):
        decoded = to_numpy(vision.decode(latent))
        for row in range(len(latent)):
            value = take_row(space, decoded, row)
            assert space.contains(value), (space, value)
    assert [path for path, _ in leaves(space)] == list(dict.fromkeys(part.path for part in layout.parts))
