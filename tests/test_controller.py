"""The linear controller, its search in dreams, and its way into the real environment."""

import functools
import json
import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_worlds import WalkEnv, random_world, same_bits, walk_world

from worldmodel.collect import collect
from worldmodel.controller import (
    CONTROLLER_FILE,
    WEIGHTS_FILE,
    LatentPolicy,
    LinearController,
    _Population,
    evolve,
    feature_size,
)
from worldmodel.dream import Dreams
from worldmodel.reality import Reality
from worldmodel.rollouts import episode_seed, rollouts
from worldmodel.spaces import map_leaves

DICT = spaces.Dict(
    {
        "push": spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)),
        "kind": spaces.Discrete(3, start=5),
        "many": spaces.MultiDiscrete([2, 3]),
        "bits": spaces.MultiBinary(2),
    }
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_controller(world, *, features="zh", seed=0, scale=1.0, bias=True):
    controller = LinearController(feature_size(world, features), world.action_space, features=features, bias=bias)
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.normal_(std=scale, generator=generator(seed))
    return controller


def constant_controller(action_space, outputs):
    controller = LinearController(1, action_space, features="z")
    with torch.no_grad():
        controller.linear.bias.copy_(torch.tensor(outputs))
    return controller


def act(action_space, outputs):
    return map_leaves(lambda leaf: leaf.tolist(), constant_controller(action_space, outputs)(torch.zeros(1)))


def test_a_box_is_tanh_scaled_to_the_bounds():
    box = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
    raw = [0.3, -1.1]
    expected = [2 * np.tanh(0.3), 0.5 + 0.5 * np.tanh(-1.1)]
    assert act(box, raw) == pytest.approx(expected, rel=1e-6)
    assert act(box, [50.0, -50.0]) == [2.0, 0.0]


def test_a_box_without_bounds_is_tanh():
    assert act(spaces.Box(-np.inf, np.inf, (1,)), [1.0]) == pytest.approx([np.tanh(1.0)])


def test_choices_are_the_largest_output_and_switches_are_its_sign():
    assert act(spaces.Discrete(3, start=5), [0.0, 2.0, 1.0]) == 6
    assert act(spaces.MultiDiscrete([2, 3]), [0.0, 1.0, 3.0, 2.0, 1.0]) == [1, 0]
    assert act(spaces.MultiBinary(3), [0.2, -0.2, 0.7]) == [1, 0, 1]


def test_a_dict_of_spaces_is_each_of_them():
    outputs = {"push": [0.3, 9.0], "kind": [0.0, 2.0, 1.0], "many": [0.0, 1.0, 3.0, 2.0, 1.0], "bits": [0.2, -0.2]}
    ordered = [number for key in DICT.spaces for number in outputs[key]]
    chosen = act(DICT, ordered)
    assert chosen == {key: act(DICT.spaces[key], outputs[key]) for key in DICT.spaces}
    assert DICT.contains({"push": np.array(chosen["push"], np.float32), "kind": np.int64(chosen["kind"]),
                          "many": np.array(chosen["many"]), "bits": np.array(chosen["bits"], np.int8)})  # fmt: skip


def test_the_controller_is_linear_in_the_features():
    controller = random_controller(random_world(spaces.Box(-1, 1, (2,))))
    x = torch.randn(6, 7, generator=generator())
    weight, bias = controller.linear.weight, controller.linear.bias
    torch.testing.assert_close(controller(x), torch.tanh(x @ weight.T + bias))


@pytest.mark.parametrize(
    ("features", "bias", "number"), [("z", True, 9), ("zh", True, 24), ("zhc", True, 39), ("zh", False, 21)]
)
def test_the_number_of_parameters_is_that_of_features_times_actions(features, bias, number):
    assert random_controller(random_world(), features=features, bias=bias).num_parameters == number


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("action_space", [spaces.Discrete(3), DICT])
def test_a_population_as_one_batch_equals_each_candidate_alone(action_space, bias):
    world = random_world(action_space, termination_bias=-1.0)
    template = random_controller(world, bias=bias)
    candidates = torch.randn(4, template.num_parameters, generator=generator(3))
    together = Dreams(world, 20, num_groups=4, termination="sample")
    returns, lengths = together.score(_Population(template, candidates), 12, generator=generator(1))
    assert len(returns.unique()) > 15
    for p in range(4):
        torch.nn.utils.vector_to_parameters(candidates[p], template.parameters())
        alone, steps = Dreams(world, 5, termination="sample").score(template, 12, generator=generator(1))
        torch.testing.assert_close(returns[5 * p : 5 * p + 5], alone, rtol=1e-3, atol=1e-3)
        assert torch.equal(lengths[5 * p : 5 * p + 5], steps)


def test_the_same_candidate_in_every_group_has_the_same_fate():
    world = random_world()
    template = random_controller(world)
    one = torch.nn.utils.parameters_to_vector(template.parameters()).detach()
    returns, _ = Dreams(world, 15, num_groups=3).score(_Population(template, one.repeat(3, 1)), 20, generator=generator())
    torch.testing.assert_close(returns.reshape(3, 5), returns[:5].expand(3, 5), rtol=1e-4, atol=1e-4)


def search(world=None, **arguments):
    dreams = Dreams(world or walk_world(), 32, temperature=0.0)
    return evolve(dreams, **{"generations": 6, "population": 8, "horizon": 12, "test_dreams": 16, **arguments})


def weights(controller):
    return torch.nn.utils.parameters_to_vector(controller.parameters()).detach()


def test_evolve_finds_a_controller_that_beats_zero_weights():
    world = walk_world()
    seen = []
    best = search(world, generations=25, sigma=0.5, on_generation=seen.append)
    tests = Dreams(world, 200, temperature=0.0)
    zero = LinearController(feature_size(world, "zh"), world.action_space)  # always pushes left: below -10 in 12 steps
    (before, _), (after, _) = (tests.score(c, 12, generator=generator(9)) for c in (zero, best))
    assert before.mean() < -10
    assert after.mean() > 4  # the best there is stays just below x = 1: up to 0.75 a step, less y / 2
    assert [g.number for g in seen] == list(range(1, 26))
    assert [g.test is not None for g in seen] == [g.number % 3 == 0 or g.number == 25 for g in seen]
    best_tests = [g.best_test for g in seen]
    assert best_tests == sorted(best_tests)


def test_evolve_is_a_function_of_its_seed_and_leaves_global_generators_alone():
    world = walk_world()

    def run(global_seed, seed):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002 (this is what must not matter)
        before = torch.random.get_rng_state(), np.random.get_state()  # noqa: NPY002
        found = weights(search(world, sigma=0.5, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert same_bits(np.random.get_state()[1], before[1][1])  # noqa: NPY002
        assert np.random.get_state()[2:] == before[1][2:]  # noqa: NPY002
        return found

    assert torch.equal(run(0, 1), run(1, 1))
    assert not torch.equal(run(0, 1), run(0, 2))


def test_evolve_never_returns_less_than_it_was_given():
    world = walk_world()
    good = search(world, generations=25, sigma=0.5)
    scores = []
    kept = search(world, initial=good, generations=3, sigma=50.0, on_generation=lambda g: scores.append((g.test, g.best_test)))
    assert scores[-1][0] < scores[-1][1]  # such a wild step only makes it worse
    assert torch.equal(weights(kept), weights(good))


def test_evolve_leaves_the_initial_controller_alone_and_takes_its_kind():
    world = walk_world()
    initial = random_controller(world, features="z", bias=False)
    before = weights(initial).clone()
    found = search(world, initial=initial, features="zhc")
    assert torch.equal(weights(initial), before)
    assert found.features == "z"
    assert found.linear.bias is None


def test_patience_ends_a_search_without_progress():
    world = random_world(reward_head=True)
    world.mdnrnn.reward_low.fill_(1.0)
    world.mdnrnn.reward_high.fill_(1.0)  # whatever is done, 1 a step
    world.mdnrnn.termination_head.bias.data.fill_(-50.0)
    seen = []
    search(world, generations=30, patience=2, test_every=2, on_generation=seen.append)
    assert len(seen) == 4  # two tests, at generations 2 and 4, that do not improve on the start
    assert seen[0].best_test == 12


def test_a_first_test_with_progress_is_not_counted_as_stale():
    seen = []
    search(walk_world(), generations=9, sigma=0.5, patience=1, on_generation=seen.append)
    assert len(seen) > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generations": 0}, "generations: expected an integer >= 1, got 0"),
        ({"population": 1}, "population: expected an integer >= 2, got 1"),
        ({"population": 5}, "population: expected a divisor of the number of dreams 32, got 5"),
        ({"test_every": 0}, "test_every: expected an integer >= 1"),
        ({"test_dreams": 0}, "test_dreams: expected an integer >= 1"),
        ({"patience": 0}, "patience: expected an integer >= 1"),
        ({"horizon": 0}, "horizon: expected an integer >= 1"),
        ({"sigma": 0.0}, "sigma: expected a positive finite number"),
        ({"sigma": float("nan")}, "sigma: expected a positive finite number"),
        ({"initial": LinearController(4, spaces.Discrete(3))}, r"expected one on the world model's 7 features \(zh\), got 4"),
        ({"initial": LinearController(7, spaces.Discrete(4))}, r"expected action space Discrete\(3\), got Discrete\(4\)"),
    ],
)
def test_a_search_with_arguments_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        search(**arguments)


def test_a_search_without_a_reward_head_says_what_to_do():
    with pytest.raises(ValueError, match="without a reward head; fit it with reward_head=True"):
        search(random_world(reward_head=False))


def test_a_search_with_one_temperature_per_dream_is_refused():
    with pytest.raises(ValueError, match="dreams: expected one temperature for all"):
        evolve(Dreams(random_world(), 8, temperature=torch.ones(8)), population=4)


def test_a_search_without_a_termination_head_dreams_to_the_horizon():
    world = random_world(termination_head=False)
    assert search(world, generations=2).linear.in_features == feature_size(world, "zh")


def test_features_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"features: expected \(..., 7\) of kind 'zh', got \(2, 6\)"):
        LinearController(7, spaces.Discrete(3))(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="size, features"):
        LinearController(7, spaces.Discrete(3), features="h")


@pytest.mark.parametrize("bias", [True, False])
def test_save_and_load_give_the_same_controller(tmp_path, bias):
    controller = random_controller(random_world(DICT), features="zhc", bias=bias)
    controller.save_pretrained(tmp_path / "c")
    loaded = LinearController.from_pretrained(tmp_path / "c")
    assert loaded.features == "zhc"
    assert loaded.action_features.space == DICT
    assert torch.equal(weights(loaded), weights(controller))
    x = torch.randn(9, 12, generator=generator())
    assert same_bits(loaded(x), controller(x))
    with pytest.raises(FileExistsError):
        controller.save_pretrained(tmp_path / "c")


def damage(path, **changes):
    content = json.loads((path / CONTROLLER_FILE).read_text())
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    (path / CONTROLLER_FILE).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "newer worldmodel"),
        ({"format": "worldmodel.world"}, "expected format 'worldmodel.controller'"),
        ({"size": 8}, "expected a whole controller"),
        ({"size": "seven"}, "expected a whole controller"),
        ({"features": "h"}, "expected a whole controller"),
        ({"bias": False}, "expected a whole controller"),
        ({"action_space": None}, "expected a whole controller"),
        ({"action_space": 3}, "expected a whole controller"),
        ({"action_space": {"type": "Text"}}, "expected a whole controller"),
    ],
)
def test_damaged_newer_and_foreign_controllers_are_refused(tmp_path, changes, message):
    random_controller(random_world()).save_pretrained(tmp_path / "c")
    damage(tmp_path / "c", **changes)
    with pytest.raises(ValueError, match=message):
        LinearController.from_pretrained(tmp_path / "c")


def test_weights_that_are_cut_or_missing_are_refused(tmp_path):
    random_controller(random_world()).save_pretrained(tmp_path / "c")
    file = tmp_path / "c" / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match="damaged or foreign"):
        LinearController.from_pretrained(tmp_path / "c")
    file.unlink()
    with pytest.raises(FileNotFoundError):
        LinearController.from_pretrained(tmp_path / "c")
    with pytest.raises(FileNotFoundError, match=r"worldmodel\.controller"):
        LinearController.from_pretrained(tmp_path / "nothing")


class Recorder:
    """Passes features on to a controller and keeps them."""

    def __init__(self, controller):
        self.controller, self.features, self.seen = controller, controller.features, []
        self.linear, self.action_features, self.check_world = (
            controller.linear,
            controller.action_features,
            controller.check_world,
        )

    def state_dict(self):
        return self.controller.state_dict()

    def __call__(self, features):
        self.seen.append(features.clone())
        return self.controller(features)


@pytest.mark.parametrize("features", ["z", "zh", "zhc"])
def test_one_real_env_lockstep_and_an_exact_dream_agree_step_by_step(features):
    world = walk_world()
    controller = random_controller(world, features=features, seed=4)
    episodes = list(rollouts(WalkEnv, LatentPolicy(world, controller), episode_ids=range(6), seed=0, max_steps=15))
    real = Reality(world, WalkEnv, 6, seed=0, max_steps=15)
    start = real.start(generator=generator())
    awake = real.rollout(controller, 15, generator=generator(), start=start)
    dreamed = Dreams(world, 6, temperature=0.0).rollout(controller, 15, generator=generator(), start=start)
    assert len({len(episode) for episode in episodes}) > 1
    for k, episode in enumerate(episodes):
        alone = Recorder(controller)
        policy = LatentPolicy(world, alone)
        policy.reset(np.random.default_rng(0))
        for observation in episode.observations[:-1]:
            policy(observation)
        states = [step.state for step in real.unroll(controller, len(episode), generator=generator())]
        for t, seen in enumerate(alone.seen):
            torch.testing.assert_close(seen[0], states[t].features(features)[k], rtol=0, atol=1e-6)
        for rollout in (awake, dreamed):
            assert episode.actions.tolist() == rollout.actions[k][rollout.mask[k]].tolist()
            torch.testing.assert_close(torch.tensor(episode.rewards), rollout.rewards[k][rollout.mask[k]].double())
            assert torch.equal(world.encode(episode.observations), rollout.z[k, : len(episode) + 1])


def test_the_policy_advances_the_lstm_once_per_observation():
    world = random_world()
    recorder = Recorder(random_controller(world, features="zhc"))
    policy = LatentPolicy(world, recorder)
    policy.reset(np.random.default_rng(0))
    observations = np.random.default_rng(1).standard_normal((5, 2))
    actions = [policy(observation) for observation in observations]
    state = world.mdnrnn.initial_state(1)
    for t, z in enumerate(torch.tensor(observations, dtype=torch.float32)):
        assert torch.equal(recorder.seen[t], torch.cat([z[None], state.h[-1], state.c[-1]], dim=1))
        state = world.mdnrnn.advance(z[None], torch.eye(3)[[actions[t]]], state)


def test_a_reset_policy_equals_a_fresh_one():
    world = random_world()
    controller = random_controller(world)
    observations = np.random.default_rng(1).standard_normal((6, 2))

    def act_on(policy):
        policy.reset(np.random.default_rng(0))
        for observation in observations:
            policy(observation)
        return policy._state

    used = LatentPolicy(world, controller)
    act_on(used)
    assert same_bits(act_on(used), act_on(LatentPolicy(world, controller)))


def test_the_policy_needs_a_reset_first():
    world = random_world()
    with pytest.raises(RuntimeError, match=r"expected reset\(rng\)"):
        LatentPolicy(world, random_controller(world))(np.zeros(2))


def test_the_policy_gives_actions_that_the_environment_takes():
    action_space = spaces.Dict({**DICT.spaces, "scalar": spaces.Box(-1.0, 1.0, ())})
    world = random_world(action_space)
    policy = LatentPolicy(world, random_controller(world))
    policy.reset(np.random.default_rng(0))
    assert action_space.contains(policy(np.zeros(2)))
    assert action_space.contains(policy(np.ones(2)))


def test_a_controller_of_another_world_is_refused():
    world = random_world()
    with pytest.raises(ValueError, match=r"controller: expected one on the world model's 7 features \(zh\), got 12"):
        LatentPolicy(world, random_controller(random_world(hidden_size=10)))
    with pytest.raises(ValueError, match=r"controller: expected action space Discrete\(3\), got Discrete\(4\)"):
        LatentPolicy(world, LinearController(7, spaces.Discrete(4)))


def test_the_description_tells_controllers_and_worlds_apart():
    world, controller = random_world(), random_controller(random_world())
    description = LatentPolicy(world, controller, description="round 1").description
    assert description.startswith("round 1 ")
    assert description == LatentPolicy(random_world(), random_controller(world), description="round 1").description
    assert description != LatentPolicy(world, random_controller(world, seed=1), description="round 1").description
    assert description != LatentPolicy(random_world(seed=1), controller, description="round 1").description


def test_another_controller_is_another_recipe_for_a_collection(tmp_path):
    world = walk_world()
    make = functools.partial(collect, WalkEnv, out=tmp_path / "data", seed=0, max_steps=9)
    make(policy=LatentPolicy(world, random_controller(world)), num_episodes=2)
    store = make(policy=LatentPolicy(world, random_controller(world)), num_episodes=3)
    assert len(store) == 3
    with pytest.raises(FileExistsError, match="same recipe"):
        make(policy=LatentPolicy(world, random_controller(world, seed=1)), num_episodes=3)


def test_a_policy_survives_the_way_into_a_worker():
    world = walk_world()
    policy = LatentPolicy(world, random_controller(world))
    policy.reset(np.random.default_rng(0))
    policy(np.zeros(2))
    copied = pickle.loads(pickle.dumps(policy))
    episode = next(iter(rollouts(WalkEnv, policy, episode_ids=[3], seed=0, max_steps=9)))
    assert episode.seed == episode_seed(0, 3)
    assert same_bits(next(iter(rollouts(WalkEnv, copied, episode_ids=[3], seed=0, max_steps=9))).actions, episode.actions)


def test_a_generation_carries_the_controller_of_its_best_test():
    seen = []
    best = search(generations=6, sigma=0.5, on_generation=seen.append)
    assert torch.equal(weights(seen[-1].controller), weights(best))


def test_a_flipped_bit_of_a_controller_is_refused(tmp_path):
    world = walk_world()
    LinearController(feature_size(world, "zh"), world.action_space).save_pretrained(tmp_path / "c")
    path = tmp_path / "c" / "controller.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="the digest of the weights is not the one recorded"):
        LinearController.from_pretrained(tmp_path / "c")


def test_features_of_an_unknown_kind_are_refused():
    with pytest.raises(ValueError, match="features: expected 'z', 'zh' or 'zhc', got 'q'"):
        feature_size(walk_world(), "q")
