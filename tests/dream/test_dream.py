"""Dreams: starts, prefixes, temperature, groups, terminations, missing heads, and errors."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy_worlds import WalkEnv, random_world, same_bits, walk_world

from worldmodel.dream import Dreams, RandomActions, Reality
from worldmodel.models import latent_features
from worldmodel.rng import Streams, derive_seed
from worldmodel.spaces import map_leaves

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def by_features(features):
    """A deterministic policy that depends on all features."""
    return (10 * features.sum(dim=-1)).round().long() % 3


def ones(features):
    return torch.ones(len(features), dtype=torch.int64)


def test_a_dream_in_an_exact_model_is_the_real_episode():
    world = walk_world()
    real = Reality(world, WalkEnv, 8, seed=0)
    dreams = Dreams(world, 8, temperature=0.0)
    start = real.start(generator=generator())
    awake = real.rollout(by_features, 30, generator=generator(), start=start)
    dreamed = dreams.rollout(by_features, 30, generator=generator(), start=start)
    assert awake.terminated.any()
    assert awake.lengths.unique().numel() > 1
    assert same_bits(awake, dreamed)


def test_features_in_an_exact_dream_are_those_of_reality_step_by_step():
    world = walk_world(num_layers=2)
    real, dreams = Reality(world, WalkEnv, 8, seed=1), Dreams(world, 8, temperature=0.0)
    start = real.start(generator=generator())
    pairs = zip(
        real.unroll(by_features, 20, generator=generator(), start=start),
        dreams.unroll(by_features, 20, generator=generator(), start=start),
        strict=True,
    )
    for awake, dreamed in pairs:
        for kind in ("z", "zh", "zhc"):
            assert torch.equal(awake.state.features(kind), dreamed.state.features(kind))
        assert torch.equal(awake.actions, dreamed.actions)


def test_features_are_z_then_h_then_c_of_the_last_layer():
    world = random_world(num_layers=2)
    z, lstm = torch.randn(3, 2, generator=generator()), world.mdnrnn.initial_state(3)
    lstm = world.mdnrnn.advance(z, torch.eye(3), lstm)
    assert torch.equal(latent_features(z, lstm, "zhc"), torch.cat([z, lstm.h[1], lstm.c[1]], dim=1))
    assert torch.equal(latent_features(z, lstm, "zh"), torch.cat([z, lstm.h[1]], dim=1))
    with pytest.raises(ValueError, match="features: expected 'z', 'zh' or 'zhc', got 'h'"):
        latent_features(z, lstm, "h")


def test_a_step_advances_the_lstm_exactly_once():
    world = random_world(termination_bias=-50.0)
    dreams = Dreams(world, 4)
    rollout = dreams.rollout(by_features, 6, generator=generator())
    state = world.mdnrnn.initial_state(4)
    for t, step in enumerate(dreams.unroll(by_features, 6, generator=generator())):
        assert torch.equal(step.state.lstm.h, state.h)
        assert torch.equal(step.state.z, rollout.z[:, t])
        state = world.mdnrnn.advance(rollout.z[:, t], world.action_features.flatten(rollout.actions[:, t]), state)


def test_a_reset_state_equals_a_fresh_one():
    world = random_world()
    used, fresh = Dreams(world, 4), Dreams(world, 4)
    for _ in used.unroll(by_features, 5, generator=generator(3)):
        pass
    assert same_bits(used.start(generator=generator()), fresh.start(generator=generator()))
    assert not used.start(generator=generator()).lstm.h.any()
    assert same_bits(used.rollout(by_features, 9, generator=generator()), fresh.rollout(by_features, 9, generator=generator()))


def test_step_leaves_the_state_it_is_given_alone():
    dreams = Dreams(random_world(), 4)
    state = dreams.start(generator=generator())
    before = copy.deepcopy(state)
    dreams.step(state, torch.ones(4, dtype=torch.int64), generator=generator())
    assert same_bits(state, before)


def test_a_batch_of_one_dream_has_the_shapes_of_any_batch():
    rollout = Dreams(random_world(termination_bias=-50.0), 1).rollout(by_features, 3, generator=generator())
    assert rollout.z.shape == (1, 4, 2)
    assert rollout.actions.shape == rollout.rewards.shape == rollout.terminated.shape == rollout.mask.shape == (1, 3)
    assert rollout.returns.shape == rollout.lengths.shape == (1,)


def test_the_same_seed_gives_the_same_bits_whatever_the_global_seed():
    dreams = Dreams(random_world(), 16, temperature=1.3, termination="sample")

    def rollout(global_seed, seed=5):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002 (this is what must not matter)
        policy = RandomActions(dreams.world, generator=dreams.generator(1))
        return dreams.rollout(policy, 12, generator=dreams.generator(seed))

    assert same_bits(rollout(0), rollout(1))
    assert not torch.equal(rollout(0).z[:, :2], rollout(0, seed=6).z[:, :2])


def test_score_sums_what_rollout_holds():
    dreams = Dreams(random_world(termination_bias=-1.0), 16, termination="sample")
    rollout = dreams.rollout(by_features, 40, generator=generator())
    seen = []
    returns, lengths = dreams.score(by_features, 40, generator=generator(), on_progress=seen.append)
    torch.testing.assert_close(returns, rollout.returns)
    assert torch.equal(lengths, rollout.lengths)
    alive = [int((~rollout.terminated[:, : t + 1].any(dim=1)).sum()) for t in range(rollout.mask.shape[1])]
    assert [(p.done, p.metrics["running"]) for p in seen] == list(enumerate(alive, start=1))


def test_dreams_start_from_the_bank_only():
    world = random_world(starts=3)
    z = Dreams(world, 200).start(generator=generator()).z
    assert bool((z.unsqueeze(1) == world.start_mean).all(dim=-1).any(dim=-1).all())
    assert len(z.unique(dim=0)) == 3


def test_starting_from_a_prefix_equals_feeding_it_by_hand():
    world = random_world(vision_scale=2.0)
    dreams = Dreams(world, 3)
    observations = torch.randn(3, 5, 2, generator=generator())
    actions = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 0], [1, 0, 1, 2]])
    state = dreams.start_from(observations, actions, generator=generator())
    lstm = world.mdnrnn.initial_state(3)
    for t in range(4):
        lstm = world.mdnrnn.advance(observations[:, t] / 2, torch.eye(3)[actions[:, t]], lstm)
    assert torch.equal(state.z, observations[:, 4] / 2)
    assert same_bits(state.lstm, lstm)
    _, sequence = world.mdnrnn(observations[:, :-1] / 2, torch.eye(3)[actions])
    torch.testing.assert_close(state.lstm.h, sequence.h)


def test_one_prefix_serves_all_dreams():
    dreams = Dreams(random_world(), 3)
    observations, actions = torch.randn(5, 2, generator=generator()), torch.tensor([0, 1, 2, 1])
    one = dreams.start_from(observations, actions, generator=generator())
    each = dreams.start_from(observations.expand(3, 5, 2), actions.expand(3, 4), generator=generator())
    assert same_bits(one, each)


def test_a_prefix_without_steps_is_a_fresh_start_at_the_observation():
    dreams = Dreams(random_world(vision_scale=2.0), 3)
    state = dreams.start_from(np.ones((1, 2)), np.zeros((0,), dtype=np.int64), generator=generator())
    assert torch.equal(state.z, torch.full((3, 2), 0.5))
    assert same_bits(state.lstm, dreams.world.mdnrnn.initial_state(3))
    assert state.alive.all()


def test_a_prefix_is_read_without_dropout_even_in_training_mode():
    world = random_world(input_dropout=0.5, output_dropout=0.5)
    observations, actions = torch.randn(3, 5, 2, generator=generator()), torch.zeros(3, 4, dtype=torch.int64)
    calm = Dreams(world, 3).start_from(observations, actions, generator=generator())
    assert same_bits(Dreams(world.train(), 3).start_from(observations, actions, generator=generator()), calm)


@pytest.mark.parametrize(
    ("observations", "actions"),
    [((4, 5, 2), (4, 4)), ((5, 2), (5,)), ((3, 5, 2), (3, 5)), ((2,), ()), ((3, 1, 5, 2), (3, 1, 4))],
)
def test_a_prefix_of_another_shape_is_rejected(observations, actions):
    with pytest.raises(ValueError, match="observations, actions: expected leading dimensions"):
        Dreams(random_world(), 3).start_from(
            torch.zeros(observations), torch.zeros(actions, dtype=torch.int64), generator=generator()
        )


def test_a_temperature_per_dream_equals_scalar_runs_row_by_row():
    world = random_world()
    temperature = torch.tensor([0.0, 0.5, 1.0, 2.0])
    together = Dreams(world, 4, temperature=temperature).rollout(ones, 6, generator=generator())
    for row, tau in enumerate(temperature.tolist()):
        alone = Dreams(world, 4, temperature=tau).rollout(ones, 6, generator=generator())
        if tau == 0:  # samples no noise: its generator advances differently, and no sampled number affects it
            alone = Dreams(world, 4, temperature=torch.zeros(4)).rollout(ones, 6, generator=generator())
        steps = min(alone.mask.shape[1], together.mask.shape[1])
        torch.testing.assert_close(together.z[row, : steps + 1], alone.z[row, : steps + 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("factorization", ["per_dimension", "joint"])
@pytest.mark.parametrize("size", [2, 3])
def test_a_step_uses_up_the_numbers_that_it_reserves(factorization, size):
    """Dreams reserve the numbers of a step in one call per stream."""
    space = spaces.Box(-np.inf, np.inf, (size,))
    dreams = Dreams(random_world(observation_space=space, factorization=factorization), 3)
    streams = Streams(torch.arange(3))
    dreams.step(dreams.start(generator=generator()), ones(torch.zeros(3, 2)), generator=streams)
    other = Streams(torch.arange(3))
    other.uniform_(torch.empty(3, 1))
    assert torch.equal(streams.counter, other.counter)
    assert streams._reserved.numel() == 0


def test_temperature_zero_is_deterministic_and_takes_the_mode():
    world = random_world(termination_bias=-50.0)
    dreams = Dreams(world, 6, temperature=0.0)
    start = dreams.start(generator=generator())
    one, other = (dreams.rollout(by_features, 8, generator=generator(seed), start=start) for seed in (1, 2))
    assert same_bits(one, other)
    warm = [Dreams(world, 6).rollout(by_features, 8, generator=generator(seed), start=start) for seed in (1, 2)]
    assert not torch.equal(warm[0].z, warm[1].z)
    prediction, _ = world.mdnrnn.step(start.z, torch.eye(3)[one.actions[:, 0]], start.lstm)
    assert torch.equal(one.z[:, 1], prediction.latent.mode())


def test_temperature_does_not_touch_the_termination():
    world = random_world(termination_bias=0.3)
    state = Dreams(world, 500).start(generator=generator())
    ended = [
        Dreams(world, 500, temperature=tau, termination="threshold").step(state, ones(state.z), generator=generator())[2]
        for tau in (0.0, 5.0)
    ]
    assert torch.equal(*ended)
    assert 0 < ended[0].sum() < 500


def test_groups_share_start_states_and_random_numbers():
    dreams = Dreams(random_world(), 12, num_groups=3, temperature=1.2, termination="sample")
    rollout = dreams.rollout(by_features, 10, generator=generator())
    assert rollout.uncertainty is None  # without an ensemble
    for field in (rollout.z, rollout.actions, rollout.rewards, rollout.terminated, rollout.mask):
        first, *others = field.chunk(3)
        assert all(torch.equal(first, other) for other in others)
    assert len(rollout.z[:4, 1].unique(dim=0)) == 4  # the random numbers differ within a group


def test_one_group_of_r_dreams_is_the_first_group_of_many():
    world = random_world()
    many = Dreams(world, 12, num_groups=3, termination="sample").rollout(by_features, 16, generator=generator())
    one = Dreams(world, 4, termination="sample").rollout(by_features, 16, generator=generator())
    torch.testing.assert_close(many.z[:4], one.z, rtol=0, atol=1e-5)


def test_a_dream_does_not_change_when_others_end():
    world = walk_world()
    dreams = Dreams(world, 4)
    start = dreams.start_from(np.array([[[0.0, 0.0]], [[0.75, 0.0]], [[0.0, 0.0]], [[0.75, 0.0]]]), np.zeros((4, 0), dtype=int),
                              generator=generator())  # fmt: skip

    def policy(push):
        return lambda features: torch.tensor([1, push, 1, push])

    calm, ending = (dreams.rollout(policy(push), 8, generator=generator(), start=start) for push in (0, 2))
    assert ending.lengths[1] < 8
    assert torch.equal(calm.z[::2], ending.z[::2])
    assert torch.equal(calm.rewards[::2], ending.rewards[::2])


def test_after_the_end_a_dream_is_frozen_masked_and_without_reward():
    rollout = Dreams(random_world(), 64, termination="sample").rollout(by_features, 16, generator=generator())
    steps = torch.arange(rollout.mask.shape[1])
    assert torch.equal(rollout.mask, steps < rollout.lengths.unsqueeze(1))
    ended = rollout.terminated.any(dim=1)
    assert torch.equal(rollout.terminated, ended.unsqueeze(1) & (steps == rollout.lengths.unsqueeze(1) - 1))
    assert ended.any()
    assert not rollout.rewards[~rollout.mask].any()
    assert rollout.rewards[rollout.mask].all()
    last = rollout.z[torch.arange(64), rollout.lengths]
    after = torch.arange(rollout.z.shape[1]) > rollout.lengths.unsqueeze(1)
    assert torch.equal(rollout.z[after], last.unsqueeze(1).expand_as(rollout.z)[after])


def test_a_rollout_stops_soon_after_the_last_dream_ended():
    rollout = Dreams(random_world(termination_bias=50.0), 4).rollout(by_features, 1000, generator=generator())
    assert rollout.lengths.tolist() == [1] * 4
    assert rollout.mask.shape[1] <= 16


def test_threshold_ends_above_one_half_and_sampling_with_the_probability():
    world = random_world(starts=1)
    state = Dreams(world, 20_000).start(generator=generator())
    prediction, _ = world.mdnrnn.step(
        state.z[:1], torch.eye(3)[1:2], state.lstm.__class__(*(part[:, :1] for part in state.lstm))
    )
    logit = prediction.termination_logit.item()
    for shift in (0.1, -0.1):
        with torch.no_grad():
            world.mdnrnn.termination_head.bias.fill_(shift - logit)  # the logit is now the shift
        _, _, sharp = Dreams(world, 20_000, termination="threshold").step(state, ones(state.z), generator=generator())
        assert sharp.all() if shift > 0 else not sharp.any()
        _, _, drawn = Dreams(world, 20_000, termination="sample").step(state, ones(state.z), generator=generator())
        p = torch.sigmoid(torch.tensor(shift)).item()
        assert abs(drawn.float().mean().item() - p) < 4 * (p * (1 - p) / 20_000) ** 0.5


def test_without_a_termination_head_no_dream_ends():
    rollout = Dreams(random_world(termination_head=False), 4, termination="sample").rollout(ones, 20, generator=generator())
    assert rollout.lengths.tolist() == [20] * 4
    assert not rollout.terminated.any()


def test_without_a_reward_head_rewards_are_zero():
    rollout = Dreams(random_world(reward_head=False), 4).rollout(ones, 5, generator=generator())
    assert rollout.rewards.shape[0] == 4
    assert not rollout.rewards.any()


def test_latents_and_rewards_of_dreams_stay_within_the_bounds():
    world = random_world(termination_bias=-50.0)
    world.mdnrnn.latent_low.fill_(-0.3)
    world.mdnrnn.latent_high.fill_(0.2)
    free = Dreams(world, 50, temperature=2.0).rollout(by_features, 10, generator=generator())
    assert free.z[:, 1:].amin() == world.mdnrnn.latent_low[0]
    assert free.z[:, 1:].amax() == world.mdnrnn.latent_high[0]
    low, high = free.rewards.quantile(torch.tensor([0.25, 0.75]))
    world.mdnrnn.reward_low.fill_(low)
    world.mdnrnn.reward_high.fill_(high)
    bound = Dreams(world, 50, temperature=2.0).rollout(by_features, 10, generator=generator())
    assert torch.equal(bound.rewards, free.rewards.clamp(low, high))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_dreams": 0}, "num_dreams: expected an integer >= 1"),
        ({"num_groups": 0}, "num_groups: expected an integer >= 1"),
        ({"num_groups": 3}, "num_groups: expected a divisor of num_dreams 4, got 3"),
        ({"temperature": -0.1}, "temperature: expected finite values >= 0"),
        ({"temperature": float("nan")}, "temperature: expected finite values >= 0"),
        ({"temperature": torch.tensor([1.0, -1.0, 1.0, 1.0])}, "temperature: expected finite values >= 0"),
        ({"temperature": torch.ones(3)}, r"temperature: expected a number or shape \(4,\), got \(3,\)"),
        ({"temperature": torch.ones(4, 1)}, r"got \(4, 1\)"),
        ({"termination": "never"}, "termination: expected 'threshold' or 'sample', got 'never'"),
    ],
)
def test_arguments_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        Dreams(random_world(), **{"num_dreams": 4, **arguments})


def test_a_variant_of_zero_dreams_is_rejected():
    with pytest.raises(ValueError, match="num_dreams"):
        Dreams(random_world(), 4).variant(num_dreams=0)


@pytest.mark.parametrize("run", ["rollout", "score"])
def test_a_horizon_below_one_is_rejected(run):
    with pytest.raises(ValueError, match="horizon: expected an integer >= 1, got 0"):
        getattr(Dreams(random_world(), 4), run)(ones, 0, generator=generator())


def test_a_start_of_another_number_of_dreams_is_rejected():
    start = Dreams(random_world(), 3).start(generator=generator())
    with pytest.raises(ValueError, match="start: expected the states of 4 dreams, got 3"):
        Dreams(random_world(), 4).rollout(ones, 2, generator=generator(), start=start)


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        (torch.ones(3, dtype=torch.int64), ValueError, "actions: expected a batch of 4, got leading dimensions \\(3,\\)"),
        (torch.ones(4, 1, dtype=torch.int64), ValueError, "actions: expected a batch of 4, got leading dimensions \\(4, 1\\)"),
        (torch.tensor(1), ValueError, "got leading dimensions \\(\\)"),
        (torch.full((4,), 0.5), TypeError, r"actions: expected integers for Discrete\(3\), got torch.float32"),
        (np.ones(4), TypeError, "got torch.float64"),
        ({"push": torch.ones(4)}, ValueError, "expected a leaf ''"),
        (torch.tensor([0, 1, 3, 2]), ValueError, r"actions\[2\]: expected a value of Discrete\(3\), got 3"),
    ],
)
@pytest.mark.parametrize("kind", ["dream", "reality"])
def test_actions_of_another_kind_are_rejected(kind, actions, error, message):
    world = walk_world()
    worlds = Dreams(world, 4) if kind == "dream" else Reality(world, WalkEnv, 4, seed=0)
    with pytest.raises(error, match=message):
        worlds.rollout(lambda features: actions, 2, generator=generator())


def test_dict_actions_name_the_leaf_that_is_no_choice():
    space = spaces.Dict({"push": spaces.Box(-1, 1, (2,)), "kind": spaces.Discrete(3)})
    dreams = Dreams(random_world(space), 4)
    good = {"push": torch.zeros(4, 2), "kind": torch.zeros(4, dtype=torch.int64)}
    rollout = dreams.rollout(lambda features: good, 3, generator=generator())
    assert map_leaves(lambda leaf: tuple(leaf.shape[:2]), rollout.actions) == dict.fromkeys(good, (4, rollout.mask.shape[1]))
    with pytest.raises(TypeError, match="actions at 'kind': expected integers"):
        dreams.rollout(lambda features: {**good, "kind": torch.zeros(4)}, 3, generator=generator())


def test_random_actions_are_uniform_over_the_space():
    world = random_world()
    state = Dreams(world, 30_000).start(generator=generator())
    actions = RandomActions(world, generator=generator()).act(state)
    share = actions.bincount(minlength=3) / 30_000
    assert (share - 1 / 3).abs().max() < 4 * (2 / 9 / 30_000) ** 0.5


@pytest.mark.cuda
@needs_cuda
def test_dreams_are_on_the_device_of_the_world():
    world = random_world().to("cuda")
    dreams = Dreams(world, 8, temperature=torch.ones(8), num_groups=2, termination="sample")
    torch.cuda.set_sync_debug_mode("error")  # a step must not synchronise the GPU
    try:
        state = dreams.start(generator=dreams.generator(0))
        policy = RandomActions(world, generator=dreams.generator(1))
        state, reward, ended = dreams.step(state, policy.act(state), generator=dreams.generator(0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert {part.device.type for part in (state.z, *state.lstm, state.alive, reward, ended)} == {"cuda"}
    rollout = dreams.rollout(policy, 5, generator=dreams.generator(0))
    assert {part.device.type for part in vars(rollout).values()} == {"cuda"}


@pytest.mark.parametrize("temperature", [[1.0, 2.0], (1, 2), np.array([1.0, 2.0]), "warm", None])
def test_a_temperature_that_is_neither_a_number_nor_a_tensor_is_rejected_at_once(temperature):
    with pytest.raises(TypeError, match="temperature: expected a number or a tensor, got"):
        Dreams(random_world(), 2, temperature=temperature)


@pytest.mark.parametrize("form", [np.asarray, list, torch.as_tensor])
def test_a_policy_may_return_arrays_or_lists_in_dream_and_reality(form):
    world = walk_world()
    for worlds in (Dreams(world, 3, temperature=0.0), Reality(world, WalkEnv, 3, seed=0)):
        rollout = worlds.rollout(lambda features: form([0, 1, 0]), 4, generator=worlds.generator(0))
        assert rollout.actions.tolist() == [[0] * 4, [1] * 4, [0] * 4]


@pytest.mark.parametrize("kind", ["z", "zh", "zhc"])
def test_a_policy_that_writes_into_what_it_sees_changes_no_dream(kind):
    def policy(features):
        return torch.ones(len(features), dtype=torch.int64)

    def careless(features):
        return policy(features.zero_())

    policy.features = careless.features = kind
    for worlds in (Dreams(walk_world(), 4), Reality(walk_world(), WalkEnv, 4, seed=0)):
        z, same = (worlds.rollout(p, 5, generator=worlds.generator(0)).z for p in (policy, careless))
        assert torch.equal(z, same)


def test_numpy_integers_are_seeds_of_dreams_and_negative_ones_are_rejected():
    dreams = Dreams(random_world(), 3)
    assert torch.equal(*(dreams.start(generator=dreams.generator(seed)).z for seed in (3, np.int64(3))))
    with pytest.raises(ValueError, match="seed: expected an integer >= 0, got -1"):
        derive_seed(-1, 2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_expected_return_is_the_mean_of_the_returns_with_less_variance(precision):
    world = random_world(termination_bias=-2.0)
    dreams = Dreams(world, 4096, precision=precision)
    drawn = dreams.score(by_features, 30, generator=generator(1))[0]
    expected = dreams.expected_return(by_features, 30, generator=generator(2)).double()
    assert expected.var() < drawn.var()
    error = ((drawn.var() + expected.var()) / 4096).sqrt()
    assert abs(drawn.mean() - expected.mean()) < 4 * error


def test_ends_by_the_threshold_are_certain_so_the_expected_return_is_the_return():
    dreams = Dreams(random_world(termination_bias=-0.5), 64, termination="threshold")
    returns, lengths = dreams.score(by_features, 20, generator=generator())
    assert lengths.float().std() > 0
    assert torch.allclose(dreams.expected_return(by_features, 20, generator=generator()).double(), returns, atol=1e-5)


def test_without_a_termination_head_the_continuation_probability_is_one():
    dreams = Dreams(random_world(termination_head=False), 16)
    returns, _ = dreams.score(by_features, 5, generator=generator())
    assert torch.allclose(dreams.expected_return(by_features, 5, generator=generator()).double(), returns, atol=1e-5)
    no_rewards = Dreams(random_world(reward_head=False), 16)
    assert not no_rewards.expected_return(by_features, 5, generator=generator()).any()
    with pytest.raises(ValueError, match="horizon: expected an integer >= 1, got 0"):
        dreams.expected_return(by_features, 0, generator=generator())
