"""`FastStep` computes what `MDNRNN.step` and `GaussianMixture.sample` compute, also in complete dreams."""

import math

import pytest
import torch
from toy_worlds import random_world, same_bits

from worldmodel.agents import DreamPopulation
from worldmodel.dream import Dreams, FastStep
from worldmodel.mixtures import Factorization, GaussianMixture, NoiseType
from worldmodel.mixtures.heads import sample_raw_mixture
from worldmodel.models import MDNRNN, MDNRNNConfig, State
from worldmodel.runtime import device

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model(**config):
    """A double-precision M with random weights and units that are not 1."""
    torch.manual_seed(0)
    made = MDNRNN(3, 2, MDNRNNConfig(hidden_size=8, num_components=4, **config)).double()
    made.change_scale.copy_(torch.tensor([0.5, 2.0, 3.0]))
    made.reward_mean.fill_(0.7)
    made.reward_scale.fill_(3.0)
    return made.eval()


def inputs(made, rows=6):
    g = generator(1)
    shape = (made.config.num_layers, rows, made.config.hidden_size)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    return draw(rows, 3), draw(rows, 2), State(0.1 * draw(*shape), draw(*shape))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_layers": 2},
        {"skip": False},
        {"predict_change": False},
        {"reward_head": False},
        {"outcome_size": 5},
        {"memory": False},
        {"outcome_size": 5, "skip": False, "reward_head": False},
        {"outcome_size": 5, "reward_atoms": (0.5,), "reward_components": 2, "termination_head": False},
        {"factorization": Factorization.JOINT},
    ],
)
@torch.no_grad()
def test_state_reward_and_end_are_those_of_the_plain_step(config):
    made = model(**config)
    z, action, state = inputs(made)
    prediction, lstm = made.step(z, action, state)
    fast = FastStep(made, torch.float64)
    uniform, normal = torch.rand(6, made.latent_head.num_uniforms, generator=generator()).double(), torch.zeros(6, 3).double()
    drawn = fast(z, action, state, temperature=1.0, uniform=uniform, normal=normal)
    for mine, expected in zip(drawn.lstm, lstm, strict=True):
        torch.testing.assert_close(mine, expected)
    outcome = prediction.outcome(drawn.z.clamp(made.latent_low, made.latent_high))
    assert (drawn.termination_logit is None) == (outcome.termination_logit is None)
    if outcome.termination_logit is not None:
        torch.testing.assert_close(drawn.termination_logit, outcome.termination_logit)
    assert (drawn.reward is None) == (outcome.reward is None)
    if outcome.reward is not None:
        torch.testing.assert_close(drawn.reward, outcome.reward.expectation()[:, 0])


@pytest.mark.parametrize("predict_change", [True, False])
@pytest.mark.parametrize("tau", [0.3, 1.0, 2.5])
@torch.no_grad()
def test_samples_have_the_distribution_of_the_plain_step(predict_change, tau):
    made = model(predict_change=predict_change)
    z, action, state = (
        part[:1] if isinstance(part, torch.Tensor) else State(*(s[:, :1] for s in part)) for part in inputs(made)
    )
    mixture = made.step(z, action, state)[0].latent
    heated = (mixture.log_weights / tau).log_softmax(dim=-2)
    expected = GaussianMixture(heated, mixture.mean, mixture.log_scale + 0.5 * math.log(tau))
    n, g = 40_000, generator(2)
    drawn = FastStep(made, torch.float64)(
        z.expand(n, -1),
        action.expand(n, -1),
        State(*(part.expand(-1, n, -1) for part in state)),
        temperature=tau,
        uniform=torch.rand(n, 3, generator=g).double(),
        normal=torch.randn(n, 3, generator=g).double(),
    ).z
    ranks = expected.cdf(drawn.unsqueeze(1))[:, 0]  # (n, 3)
    distance = (ranks.sort(dim=0).values - (torch.arange(n).double().unsqueeze(1) + 0.5) / n).abs().max()
    assert distance < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov: one in a thousand


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.5])
@torch.no_grad()
def test_joint_components_are_drawn_for_all_dimensions_at_once(tau):
    logits, means = torch.randn(1, 4, 1, generator=generator()), torch.arange(12.0).reshape(1, 4, 3)
    n = 40_000
    uniform = torch.rand(n, 1, generator=generator(1))
    numbers = (part.expand(n, -1, -1) for part in (logits, means, torch.zeros(1, 4, 3)))
    drawn = sample_raw_mixture(*numbers, 1e-3, temperature=tau, uniform=uniform, normal=torch.zeros(n, 3))
    index = (drawn[:, 0] / 3).long()
    assert torch.equal(drawn, means[0, index])
    p = (logits[0, :, 0] / tau).softmax(dim=0)
    assert (torch.bincount(index, minlength=4) / n - p).abs().max() < 4 * 0.5 / math.sqrt(n)


@pytest.mark.parametrize("choices", [1, 7])
@torch.no_grad()
def test_a_uniform_number_chooses_by_the_running_sum_of_the_heated_weights(choices):
    logits, means = torch.randn(200, 5, choices, generator=generator()), torch.randn(200, 5, 7, generator=generator(2))
    uniform = torch.rand(200, choices, generator=generator(1))
    tau = torch.linspace(0.1, 3, 200)
    drawn = sample_raw_mixture(logits, means, means, 1e-3, temperature=tau, uniform=uniform, normal=torch.zeros(200, 7))
    running = (logits / tau.reshape(-1, 1, 1)).softmax(dim=1).cumsum(dim=1)
    index = (uniform.unsqueeze(1) >= running[:, :-1]).sum(dim=1, keepdim=True)
    assert index.unique().numel() == 5
    torch.testing.assert_close(drawn, means.gather(1, index.expand(-1, -1, 7)).squeeze(1))


@torch.no_grad()
def test_the_largest_uniform_number_never_finds_a_component_without_weight():
    raw = torch.zeros(1000, 3, 3, 4)
    raw[:, 0, :2] = torch.randn(1000, 2, 4, generator=generator())
    raw[:, 0, 2], raw[:, 1, 2] = -1e4, 1e6
    largest = torch.full((1000, 4), 1 - 2.0**-24)
    drawn = sample_raw_mixture(*raw.unbind(dim=1), 1e-3, temperature=1.0, uniform=largest, normal=torch.zeros(1000, 4))
    assert torch.equal(drawn, torch.zeros(1000, 4))


@pytest.mark.parametrize("tau", [0.0, 1e-45, torch.zeros(50)])
@torch.no_grad()
def test_temperature_zero_is_the_mode_of_the_heaviest_and_of_the_first_among_equals(tau):
    raw = torch.randn(50, 3, 4, 6, generator=generator())
    raw[:, 0, 2] = raw[:, 0, 1]
    uniform, normal = torch.rand(50, 6, generator=generator(1)), torch.randn(50, 6, generator=generator(2))
    drawn = sample_raw_mixture(*raw.unbind(dim=1), 1e-3, temperature=tau, uniform=uniform, normal=normal)
    mixture = GaussianMixture(raw[:, 0].log_softmax(dim=1), raw[:, 1], raw[:, 2])
    torch.testing.assert_close(drawn, mixture.mode())


def fast_dreams(world, *args, **options):
    return Dreams(world, *args, precision="bfloat16", **options)


def test_terminated_dreams_are_frozen_and_do_not_affect_the_others():
    world = random_world(termination_bias=-1.0, num_layers=2)
    dreams = fast_dreams(world, 64)
    before = dreams.start(generator=generator())
    action = torch.zeros(64, dtype=torch.int64)
    some = type(before)(before.z, before.lstm, torch.arange(64) % 3 > 0)
    everyone, reward, _ = dreams.step(before, action, generator=generator(1))
    after, some_reward, ended = dreams.step(some, action, generator=generator(1))
    dead = ~some.alive
    for mine, other, old in ((after.z, everyone.z, before.z), *zip(after.lstm, everyone.lstm, before.lstm, strict=True)):
        mine, other, old = (part.reshape(-1, *part.shape[-2:]) for part in (mine, other, old))
        assert torch.equal(mine[:, dead], old[:, dead])
        torch.testing.assert_close(mine[:, ~dead], other[:, ~dead], rtol=1e-2, atol=1e-2)  # products may be rounded otherwise
    assert not ended[dead].any()
    assert (some_reward[dead] == 0).all()
    torch.testing.assert_close(some_reward[~dead], reward[~dead], rtol=1e-2, atol=1e-2)


def test_a_batch_without_a_running_dream_is_unchanged():
    dreams = fast_dreams(random_world(), 4)
    state = dreams.start(generator=generator())
    state = type(state)(state.z, state.lstm, torch.zeros(4, dtype=torch.bool))
    after, reward, ended = dreams.step(state, torch.zeros(4, dtype=torch.int64), generator=generator())
    assert same_bits(after, state)
    assert not ended.any()
    assert not reward.any()


def test_groups_have_common_random_numbers():
    dreams = fast_dreams(
        random_world(termination_bias=-1e3), 12, num_groups=3, temperature=torch.full((12,), 1.3), termination="sample"
    )
    rollout = dreams.rollout(lambda features: torch.ones(len(features), dtype=torch.int64), 20, generator=generator())
    z = rollout.z.reshape(3, 4, 21, 2)
    assert torch.equal(z[0], z[1])
    assert torch.equal(z[0], z[2])
    assert not torch.equal(z[:, 0], z[:, 1])


@pytest.mark.parametrize("factorization", Factorization)
def test_scores_agree_with_those_of_the_plain_dreams(factorization):
    world = random_world(termination_bias=-4.0, hidden_size=16, factorization=factorization)
    policy = lambda features: (features[:, 0] > 0).long()  # noqa: E731
    means, errors = [], []
    for precision in ("float32", "bfloat16"):
        dreams = Dreams(world, 4000, temperature=1.2, precision=precision)
        returns, lengths = dreams.score(policy, 100, generator=generator())
        for values in (returns, lengths.double()):
            means.append(values.mean())
            errors.append(values.std() / math.sqrt(len(values)))
    for a, b, x, y in zip(means[:2], means[2:], errors[:2], errors[2:], strict=True):
        assert abs(a - b) < 4 * math.hypot(x, y)


def test_a_copy_with_other_numbers_keeps_the_precision():
    dreams = fast_dreams(random_world(), 4)
    assert dreams.variant(num_dreams=8).precision == "bfloat16"
    recipes = [DreamPopulation(d, 2).recipe() for d in (dreams, Dreams(random_world(), 4))]
    assert [recipe["precision"] for recipe in recipes] == ["bfloat16", "float32"]


@pytest.mark.parametrize(
    "kind",
    [
        {"layer_norm": True},
        {"factorization": Factorization.JOINT, "noise_type": NoiseType.ISOTROPIC},
        {"noise_type": NoiseType.ISOTROPIC_ACROSS_CLUSTERS},
    ],
)
def test_unsupported_models_are_rejected_or_dreamed_in_float32(kind, monkeypatch):
    world = random_world(**kind)
    with pytest.raises(ValueError, match="half precision"):
        fast_dreams(world, 4)
    monkeypatch.setattr("worldmodel.runtime.device.fast_precision", lambda device: "bfloat16")
    assert Dreams(world, 4, precision="auto").precision == "float32"
    assert Dreams(random_world(), 4, precision="auto").precision == "bfloat16"


def test_auto_depends_on_the_machine_and_an_unknown_precision_raises():
    assert Dreams(random_world(), 4, precision="auto").precision == device.fast_precision(torch.device("cpu"))
    with pytest.raises(ValueError, match="precision: expected"):
        Dreams(random_world(), 4, precision="half")


@needs_cuda
def test_a_fast_step_does_not_synchronise_the_gpu():
    dreams = fast_dreams(random_world().to("cuda"), 8, num_groups=2)
    state, actions = dreams.start(generator=dreams.generator(0)), torch.zeros(8, dtype=torch.int64, device="cuda")
    noise = dreams.generator(1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        state, reward, _ = dreams.step(state, actions, generator=noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.z.isfinite().all()
    assert reward.device.type == "cuda"
