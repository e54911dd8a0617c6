"""Controllers: actions, saving, and play in the real environment."""

import functools
import json
import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_controllers import DICT, generator, random_controller, weights
from toy_worlds import WalkEnv, random_world, same_bits, walk_world

from worldmodel.agents import CONTROLLER_FILE, Controller, ControllerBatch, LatentPolicy
from worldmodel.data import ActionNoise, EnvConfig, collect, rollouts
from worldmodel.dream import Dreams, Reality
from worldmodel.models import feature_size
from worldmodel.rng import episode_seed
from worldmodel.spaces import map_leaves


def constant_controller(action_space, outputs):
    controller = Controller(1, action_space, features="z")
    with torch.no_grad():
        controller.layers[0].bias.copy_(torch.tensor(outputs))
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
    weight, bias = controller.layers[0].weight, controller.layers[0].bias
    torch.testing.assert_close(controller(x), torch.tanh(x @ weight.T + bias))


def test_a_hidden_layer_is_tanh():
    controller = random_controller(random_world(spaces.Box(-1, 1, (2,))), hidden_size=4)
    x = torch.randn(6, 7, generator=generator())
    (v, d), (w, b) = ((layer.weight, layer.bias) for layer in controller.layers)
    torch.testing.assert_close(controller(x), torch.tanh(torch.tanh(x @ v.T + d) @ w.T + b))


@pytest.mark.parametrize(
    ("features", "bias", "hidden_size", "number"),
    [
        ("z", True, None, 9),
        ("zh", True, None, 24),
        ("zhc", True, None, 39),
        ("zh", False, None, 21),
        ("zh", True, 4, 47),
        ("zh", False, 4, 40),
    ],
)
def test_the_number_of_parameters_is_that_of_the_layers(features, bias, hidden_size, number):
    controller = random_controller(random_world(), features=features, bias=bias, hidden_size=hidden_size)
    assert controller.num_parameters == number


def test_only_the_hidden_layer_starts_at_random_and_from_its_generator():
    torch.manual_seed(0)
    make = functools.partial(Controller, 400, spaces.Discrete(3), hidden_size=50)
    a, b, other = (make(generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(weights(a), weights(b))
    assert not torch.equal(weights(a), weights(other))
    assert a.layers[0].weight.std().item() == pytest.approx(400**-0.5, rel=0.02)  # 20,000 samples: 4 standard errors
    assert not a.layers[0].bias.any()
    assert not weights(a.layers[1]).any()
    assert not weights(make()).any()


def test_outputs_have_gradients_and_actions_follow_from_them():
    controller = random_controller(random_world(spaces.Box(-1, 1, (2,))), hidden_size=4)
    x = torch.randn(6, 7, generator=generator())
    outputs = controller.outputs(x)
    outputs.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in controller.parameters())
    assert torch.equal(controller(x), torch.tanh(outputs))


def test_features_of_another_size_are_rejected():
    with pytest.raises(ValueError, match=r"features: expected \(..., 7\) of kind 'zh', got \(2, 6\)"):
        Controller(7, spaces.Discrete(3))(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="size, features"):
        Controller(7, spaces.Discrete(3), features="h")
    with pytest.raises(ValueError, match="hidden_size: expected None or an integer >= 1, got 0"):
        Controller(7, spaces.Discrete(3), hidden_size=0)


def test_a_controller_on_z_and_h_that_gets_c_too_raises_with_the_fix():
    world = random_world()
    dreams = Dreams(world, 2)
    state = dreams.start(generator=generator())
    message = r"expected \(..., 7\) of kind 'zh', got \(2, 12\); pass LatentState.features\('zh'\), or train"
    with pytest.raises(ValueError, match=message):
        random_controller(world)(state.features("zhc"))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden_size", [None, 3])
def test_save_and_load_give_the_same_controller(tmp_path, bias, hidden_size):
    controller = random_controller(random_world(DICT), features="zhc", bias=bias, hidden_size=hidden_size)
    controller.save_pretrained(tmp_path / "c")
    loaded = Controller.from_pretrained(tmp_path / "c")
    assert loaded.features == "zhc"
    assert loaded.action_features.space == DICT
    assert torch.equal(weights(loaded), weights(controller))
    x = torch.randn(9, 12, generator=generator())
    assert same_bits(loaded(x), controller(x))
    with pytest.raises(FileExistsError):
        controller.save_pretrained(tmp_path / "c")


def damage(path, **changes):
    content = json.loads((path / CONTROLLER_FILE).read_text())
    del content["sha256"]  # as if it had been written so
    content = {key: value for key, value in {**content, **changes}.items() if value is not None}
    (path / CONTROLLER_FILE).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "newer worldmodel"),
        ({"format": "worldmodel.world"}, "expected format 'worldmodel.controller'"),
        ({"size": 8}, "expected an undamaged controller"),
        ({"size": "seven"}, "expected an undamaged controller"),
        ({"features": "h"}, "expected an undamaged controller"),
        ({"bias": False}, "expected an undamaged controller"),
        ({"hidden_size": 3}, "expected an undamaged controller"),
        ({"hidden_size": -1}, "expected an undamaged controller"),
        ({"action_space": None}, "expected an undamaged controller"),
        ({"action_space": 3}, "expected an undamaged controller"),
        ({"action_space": {"type": "Text"}}, "expected an undamaged controller"),
    ],
)
def test_damaged_newer_and_other_files_are_rejected(tmp_path, changes, message):
    random_controller(random_world()).save_pretrained(tmp_path / "c")
    damage(tmp_path / "c", **changes)
    with pytest.raises(ValueError, match=message):
        Controller.from_pretrained(tmp_path / "c")


def test_truncated_or_missing_weights_are_rejected(tmp_path):
    random_controller(random_world()).save_pretrained(tmp_path / "c")
    (file,) = (tmp_path / "c").glob("controller-*.safetensors")
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match="damaged file or another format"):
        Controller.from_pretrained(tmp_path / "c")
    file.unlink()
    with pytest.raises(FileNotFoundError):
        Controller.from_pretrained(tmp_path / "c")
    with pytest.raises(FileNotFoundError, match=r"worldmodel\.controller"):
        Controller.from_pretrained(tmp_path / "nothing")


class Recorder:
    """Passes features on to a controller and keeps them."""

    def __init__(self, controller):
        self.controller, self.features, self.seen = controller, controller.features, []
        self.action_features, self.check_world = controller.action_features, controller.check_world

    def state_dict(self):
        return self.controller.state_dict()

    def __call__(self, features):
        self.seen.append(features.clone())
        return self.controller(features)


@pytest.mark.parametrize("features", ["z", "zh", "zhc"])
def test_one_real_env_lockstep_and_an_exact_dream_agree_step_by_step(features):
    world = walk_world()
    controller = random_controller(world, features=features, seed=4)
    episodes = list(rollouts(EnvConfig(WalkEnv, max_steps=15), LatentPolicy(world, controller), episode_ids=range(6), seed=0))
    real = Reality(world, EnvConfig(WalkEnv, max_steps=15), 6, seed=0)
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


def test_exploration_replaces_the_given_share_of_actions_and_m_consumes_the_actions_taken():
    world = random_world(spaces.Box(-1, 1, (2,)))
    recorder = Recorder(random_controller(world, features="zhc"))
    policy = LatentPolicy(world, recorder, exploration=0.3)
    policy.reset(np.random.default_rng(0))
    observations = np.random.default_rng(1).standard_normal((1000, 2))
    state, chosen = world.mdnrnn.initial_state(1), 0
    for z, observation in zip(torch.tensor(observations, dtype=torch.float32), observations, strict=True):
        action = torch.as_tensor(policy(observation))[None]
        greedy = recorder.controller(torch.cat([z[None], state.h[-1], state.c[-1]], dim=1))
        chosen += torch.equal(action, greedy)
        state = world.mdnrnn.advance(z[None], action, state)
    assert 1000 - chosen == pytest.approx(300, abs=4 * (1000 * 0.3 * 0.7) ** 0.5)


def test_m_is_told_the_noisy_action_and_the_noise_is_in_the_recipe():
    world = random_world(spaces.Box(-1, 1, (2,)))
    recorder = Recorder(random_controller(world, features="zhc"))
    policy = LatentPolicy(world, recorder, noise=ActionNoise(scale=0.5, correlation=0.9))
    assert policy.description.endswith("noise up to 0.5 with correlation 0.9")
    policy.reset(np.random.default_rng(0))
    observations = np.random.default_rng(1).standard_normal((20, 2))
    state, differences = world.mdnrnn.initial_state(1), []
    for t, z in enumerate(torch.tensor(observations, dtype=torch.float32)):
        action = torch.as_tensor(policy(observations[t]))[None]
        features = torch.cat([z[None], state.h[-1], state.c[-1]], dim=1)
        assert torch.equal(recorder.seen[t], features)
        differences.append((action - recorder.controller(features)).abs().max().item())
        state = world.mdnrnn.advance(z[None], action, state)
    assert np.mean(np.array(differences) > 0) > 0.9
    with pytest.raises(TypeError, match="noise: expected a Box"):
        LatentPolicy(random_world(), random_controller(random_world()), noise=ActionNoise())


def test_exploration_is_a_function_of_the_episode_and_another_recipe():
    world = walk_world()
    plain, exploring = (LatentPolicy(world, random_controller(world), exploration=share) for share in (0.0, 0.5))
    assert exploring.description == f"{plain.description}, 0.5 of its actions random"
    play = functools.partial(rollouts, EnvConfig(WalkEnv, max_steps=9), episode_ids=range(6), seed=0)
    a, b, greedy = ([one.actions.tolist() for one in play(policy)] for policy in (exploring, exploring, plain))
    assert a == b
    assert a != greedy
    with pytest.raises(ValueError, match="exploration: expected a probability from 0 to 1"):
        LatentPolicy(world, random_controller(world), exploration=1.5)


def test_a_reset_policy_equals_a_fresh_one():
    world = random_world()
    controller = random_controller(world)
    observations = np.random.default_rng(1).standard_normal((6, 2))

    def act_on(policy):
        policy.reset(np.random.default_rng(0))
        for observation in observations:
            policy(observation)
        return policy._tracker.state

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


def test_a_controller_of_another_world_is_rejected():
    world = random_world()
    with pytest.raises(ValueError, match=r"controller: expected one on the world model's 7 features \(zh\), got 12"):
        LatentPolicy(world, random_controller(random_world(hidden_size=10)))
    with pytest.raises(ValueError, match=r"controller: expected action space Discrete\(3\), got Discrete\(4\)"):
        LatentPolicy(world, Controller(7, spaces.Discrete(4)))


def test_the_description_tells_controllers_and_worlds_apart():
    world, controller = random_world(), random_controller(random_world())
    description = LatentPolicy(world, controller, description="round 1").description
    assert description.startswith("round 1 ")
    assert description == LatentPolicy(random_world(), random_controller(world), description="round 1").description
    assert description != LatentPolicy(world, random_controller(world, seed=1), description="round 1").description
    assert description != LatentPolicy(random_world(seed=1), controller, description="round 1").description


def test_another_controller_is_another_recipe_for_a_collection(tmp_path):
    world = walk_world()
    make = functools.partial(collect, EnvConfig(WalkEnv, max_steps=9), out=tmp_path / "data", seed=0)
    make(policy=LatentPolicy(world, random_controller(world)), num_episodes=2)
    store = make(policy=LatentPolicy(world, random_controller(world)), num_episodes=3)
    assert len(store) == 3
    with pytest.raises(FileExistsError, match="expected policy "):
        make(policy=LatentPolicy(world, random_controller(world, seed=1)), num_episodes=3)


def test_a_policy_is_the_same_in_a_worker():
    world = walk_world()
    policy = LatentPolicy(world, random_controller(world))
    policy.reset(np.random.default_rng(0))
    policy(np.zeros(2))
    copied = pickle.loads(pickle.dumps(policy))
    episode = next(iter(rollouts(EnvConfig(WalkEnv, max_steps=9), policy, episode_ids=[3], seed=0)))
    assert episode.seed == episode_seed(0, 3)
    assert same_bits(
        next(iter(rollouts(EnvConfig(WalkEnv, max_steps=9), copied, episode_ids=[3], seed=0))).actions, episode.actions
    )


def test_a_flipped_bit_of_a_controller_is_rejected(tmp_path):
    world = walk_world()
    Controller(feature_size(world, "zh"), world.action_space).save_pretrained(tmp_path / "c")
    (path,) = (tmp_path / "c").glob("controller-*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="the digest of the weights is not the one recorded"):
        Controller.from_pretrained(tmp_path / "c")


def test_features_of_an_unknown_kind_are_rejected():
    with pytest.raises(ValueError, match="features: expected 'z', 'zh' or 'zhc', got 'q'"):
        feature_size(walk_world(), "q")


# Ordered choices


def test_ordered_choices_are_equal_parts_of_the_range_of_tanh():
    controller = Controller(1, spaces.Discrete(3, start=5), features="z", bias=False, ordered=True)
    with torch.no_grad():
        controller.layers[0].weight.fill_(1.0)
    levels = torch.tensor([-1.0, -0.34, -0.33, 0.0, 0.33, 0.34, 1.0]).clamp(-0.9999999, 0.9999999)
    assert controller(torch.atanh(levels).unsqueeze(1)).tolist() == [5, 5, 6, 6, 6, 7, 7]
    assert controller(torch.tensor([[100.0], [-100.0]])).tolist() == [7, 5]


def test_the_controller_of_the_papers_doom_agent_has_1088_weights():
    world = random_world(spaces.Discrete(3), spaces.Box(-1, 1, (64,)), hidden_size=512)
    controller = Controller(feature_size(world, "zhc"), world.action_space, features="zhc", bias=False, ordered=True)
    assert controller.num_parameters == 1088


def test_an_ordered_controller_is_saved_and_batched_as_such(tmp_path):
    controller = Controller(4, spaces.Discrete(3), features="z", ordered=True)
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    expected = controller(features)
    assert len(expected.unique()) == 3
    controller.save_pretrained(tmp_path / "c")
    assert torch.equal(Controller.from_pretrained(tmp_path / "c")(features), expected)
    weights = torch.nn.utils.parameters_to_vector(controller.parameters()).detach()
    batch = ControllerBatch(controller, torch.stack([weights, -weights]))
    assert torch.equal(batch(torch.cat([features, features]))[:50], expected)


def test_choices_that_cannot_be_ordered_are_rejected():
    with pytest.raises(ValueError, match="ordered: expected False except for a Discrete action space"):
        Controller(1, spaces.MultiBinary(2), ordered=True)
