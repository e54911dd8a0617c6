"""Reward and termination given the next latent: what they depend on, parity of paths, and dreams that end where they lead."""

import dataclasses
import functools
import json

import pytest
import torch
from gymnasium import spaces
from toy_worlds import random_world

from worldmodel.dream import Dreams, LatentReward, imagine
from worldmodel.mixtures import LatentLayout, LatentPart, PartKind
from worldmodel.models import MDNRNN, DataStatistics, MDNRNNConfig, SequenceBatch, WorldModel

B, T, D, A = 4, 6, 3, 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(**fields):
    torch.manual_seed(0)
    model = MDNRNN(D, A, MDNRNNConfig(**{"hidden_size": 6, "num_components": 2, "outcome_size": 5, **fields})).double()
    neutral = DataStatistics.neutral(D)
    units = {"change_scale": 0.5 + torch.arange(D), "reward_mean": torch.tensor([2.0]), "reward_scale": torch.tensor([3.0])}
    model.set_statistics(dataclasses.replace(neutral, **units))
    return model.eval()


def make_batch():
    z, action, reward = (
        torch.randn(*shape, generator=seeded(1), dtype=torch.float64) for shape in ((B, T + 1, D), (B, T, A), (B, T))
    )
    return SequenceBatch(z, action, reward, torch.rand(B, T, generator=seeded(2)) < 0.3, torch.ones(B, T, dtype=torch.bool))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("predict_change", [True, False])
def test_outcomes_of_steps_equal_those_of_the_sequence(skip, predict_change):
    model, batch = make(skip=skip, predict_change=predict_change, num_layers=2), make_batch()
    whole = model(batch.z[:, :-1], batch.action)[0].outcome(batch.z[:, 1:])
    state = model.initial_state(B)
    for t in range(T):
        prediction, state = model.step(batch.z[:, t], batch.action[:, t], state)
        one = prediction.outcome(batch.z[:, t + 1])
        torch.testing.assert_close(one.termination_logit, whole.termination_logit[:, t], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.reward.mean, whole.reward.mean[:, t], rtol=1e-12, atol=1e-12)


def test_the_outcome_is_the_layer_and_the_head_of_its_formula():
    model, batch = make(), make_batch()
    z, action, after = batch.z[:, 0], batch.action[:, 0], batch.z[:, 1]
    prediction, state = model.step(z, action, model.initial_state(B))
    layer, head = model.outcome_layers["termination"].linear, model.termination_head
    seen = torch.cat([state.h[-1], z, action], dim=1)
    units = torch.tanh(torch.cat([seen, after, (after - z) / model.change_scale], dim=1) @ layer.weight.t() + layer.bias)
    expected = (torch.cat([seen, units], dim=1) @ head.weight.t() + head.bias)[:, 0]
    torch.testing.assert_close(prediction.outcome(after).termination_logit, expected, rtol=1e-12, atol=1e-12)


def test_a_prediction_without_the_next_latent_is_refused_where_it_matters():
    model, batch = make(), make_batch()
    prediction, _ = model.step(batch.z[:, 0], batch.action[:, 0], model.initial_state(B))
    for name in ("reward", "termination_logit"):
        with pytest.raises(ValueError, match="next_z: expected the next latent"):
            getattr(prediction, name)
    with pytest.raises(ValueError, match=r"next_z: expected shape \(4, 3\), got \(4, 2\)"):
        prediction.outcome(batch.z[:, 1, :2])


def test_without_the_layer_the_outcome_does_not_depend_on_the_next_latent():
    model, batch = make(outcome_size=0), make_batch()
    prediction, _ = model.step(batch.z[:, 0], batch.action[:, 0], model.initial_state(B))
    assert torch.equal(prediction.outcome(batch.z[:, 1]).termination_logit, prediction.termination_logit)
    assert torch.equal(prediction.outcome(batch.z[:, 1]).reward.mean, prediction.reward.mean)


def test_the_latent_does_not_see_the_next_one():
    model, batch = make(), make_batch()
    before = model.step_losses(batch)
    moved = dataclasses.replace(batch, z=torch.cat([batch.z[:, :-1], batch.z[:, -1:] + 1], dim=1))
    after = model.step_losses(moved)
    assert torch.equal(before.latent[:, :-1], after.latent[:, :-1])
    assert torch.equal(before.termination[:, :-1], after.termination[:, :-1])
    assert (before.termination[:, -1] != after.termination[:, -1]).all()
    assert (before.reward[:, -1] != after.reward[:, -1]).all()


def test_choices_enter_as_they_are_and_changes_only_where_there_are_some():
    layout = LatentLayout(
        (
            LatentPart(name="", kind=PartKind.CHOICE, start=0, size=3),
            LatentPart(name="x", kind=PartKind.CONTINUOUS, start=3, size=1),
        )
    )
    model = MDNRNN(4, A, MDNRNNConfig(hidden_size=6, outcome_size=5), layout=layout)
    assert model.outcome_layers["reward"].linear.in_features == 6 + 4 + A + 4 + 1
    z, after = torch.eye(4)[:2], torch.eye(4)[2:]
    assert torch.equal(model.frame.changes(z, after, torch.full((4,), 2.0)), torch.tensor([[0.0], [0.5]]))


def test_a_next_latent_far_from_the_data_moves_the_log_odds_by_a_bounded_amount():
    model, batch = make(), make_batch()
    prediction, _ = model.step(batch.z[:, 0], batch.action[:, 0], model.initial_state(B))
    near, far = (prediction.outcome(batch.z[:, 1] * scale).termination_logit for scale in (1.0, 1e6))
    reach = model.termination_head.weight[0, -5:].abs().sum()  # of the five units
    assert (far != near).all()
    assert ((far - near).abs() <= 2 * reach).all()


def test_the_layer_has_no_key_in_files_of_models_without_it():
    model = make(outcome_size=0)
    assert not any("outcome" in name for name in model.state_dict())
    assert "outcome_size" not in json.loads(json.dumps(model.config_to_json()))
    assert MDNRNN.from_config(model.config_to_json()).config.outcome_size == 0
    assert "outcome_size" not in MDNRNNConfig().identity()
    assert MDNRNN.from_config(make().config_to_json()).config.outcome_size == 5


@pytest.mark.parametrize(("size", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_size_out_of_range_is_refused(size, error):
    with pytest.raises(error, match="outcome_size"):
        MDNRNNConfig(outcome_size=size)


# dreams


@functools.cache
def coin_world(outcome_size, seed=0):
    """z' is -1 or 1 with equal probabilities, whatever comes before; the episode terminates and pays 10 if it is 1."""
    layout = LatentLayout((LatentPart(name="", kind=PartKind.BITS, start=0, size=1),))
    torch.manual_seed(seed)
    config = MDNRNNConfig(hidden_size=8, outcome_size=outcome_size, reward_atoms=(0.0, 10.0), reward_components=0)
    model = MDNRNN(1, 2, config, layout=layout)
    optimizer, g = torch.optim.Adam(model.parameters(), lr=0.02), seeded(seed)
    for _ in range(150):
        z = (torch.rand(32, 9, 1, generator=g) < 0.5).float()
        ends = z[:, 1:, 0] == 1
        mask = torch.ones(32, 8, dtype=torch.bool)
        batch = SequenceBatch(z, torch.zeros(32, 8, 2), 10.0 * ends, ends, mask)
        loss, terms = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), terms


def test_the_outcome_of_a_stochastic_step_is_learned_where_it_is_determined():
    _, terms = coin_world(8)
    assert terms["termination_loss"] < 0.03
    assert terms["reward_nll"] < 0.03
    _, blind = coin_world(0)  # these heads cannot go below the entropy of the coin
    assert blind["termination_loss"] == pytest.approx(0.693, abs=0.02)
    assert blind["reward_nll"] == pytest.approx(0.693, abs=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_dream_ends_and_pays_where_it_leads(precision, temperature):
    model, _ = coin_world(8)
    world = coin_dreams(model)
    dreams = Dreams(world, 2_000, precision=precision, temperature=temperature, termination="threshold")
    generator = dreams.generator(0)
    state, reward, ended = dreams.step(dreams.start(generator=generator), torch.zeros(2_000).long(), generator=generator)
    assert ended.float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(ended, state.z[:, 0] == 1)
    torch.testing.assert_close(reward, 10.0 * ended, atol=0.5, rtol=0)


def coin_dreams(model):
    """A world around the model of `coin_world`."""
    outer = random_world(spaces.Discrete(2), spaces.MultiBinary(1))
    start = torch.zeros(5, 1)
    return WorldModel(
        outer.vision, model, spaces.Discrete(2), start_mean=start, start_log_variance=torch.full_like(start, -torch.inf)
    ).eval()


def test_dreams_give_the_outcome_of_the_bounded_sample():
    world = random_world(outcome_size=4)
    world.mdnrnn.latent_low.fill_(-0.1)
    world.mdnrnn.latent_high.fill_(0.1)
    dreams = Dreams(world, 6)
    state, action = dreams.start(generator=seeded()), torch.eye(3)[[0, 1, 2, 0, 1, 2]]
    drawn = dreams.draw(state, action, generator=seeded(1))
    assert drawn.z.abs().max() <= 0.1
    prediction, _ = world.mdnrnn.step(state.z, action, state.lstm)
    outcome = prediction.outcome(drawn.z)
    assert torch.equal(drawn.termination_logit, outcome.termination_logit)
    assert torch.equal(drawn.reward, outcome.reward.expectation()[:, 0])


def test_imagined_rewards_and_continuations_are_those_of_the_dreams_and_have_their_gradient():
    world = random_world(spaces.Box(-1, 1, (3,)), outcome_size=4, num_components=1, termination_bias=-1.0)
    push = torch.zeros(3, requires_grad=True)
    dream = imagine(Dreams(world, 5), lambda features: push.expand(5, 3), 4, generator=seeded())
    state = Dreams(world, 5).start(generator=seeded())
    for t in range(4):
        prediction, lstm = world.mdnrnn.step(dream.z[:, t], dream.action[:, t], state.lstm)
        outcome = prediction.outcome(dream.z[:, t + 1])
        torch.testing.assert_close(dream.reward[:, t], outcome.reward.expectation()[:, 0])
        torch.testing.assert_close(dream.continuation[:, t], torch.sigmoid(-outcome.termination_logit))
        state = dataclasses.replace(state, lstm=lstm)
    (whole,) = torch.autograd.grad(dream.reward[:, 0].sum(), push, retain_graph=True)
    with torch.no_grad():  # the derivative by differences, of which a part goes through the sampled latent
        step = 1e-2 * torch.eye(3)
        dreamed = [
            [imagine(Dreams(world, 5), lambda f, s=s: s.expand(5, 3), 1, generator=seeded()).reward.sum() for s in (row, -row)]
            for row in step
        ]
    torch.testing.assert_close(whole, torch.tensor([(up - down) / 2e-2 for up, down in dreamed]), rtol=0.05, atol=5e-3)


def test_a_reward_function_still_replaces_the_head():
    world = random_world(outcome_size=4)
    dreams = Dreams(world, 3, reward=LatentReward(lambda z, action, next_z: next_z[:, 0]))
    state, reward, _ = dreams.step(dreams.start(generator=seeded()), torch.zeros(3).long(), generator=seeded(1))
    assert torch.equal(reward, state.z[:, 0])
