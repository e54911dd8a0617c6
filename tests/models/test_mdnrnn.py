"""The MDN-RNN: sequence and step, losses and masks, units, layer normalisation, dropout, precision, learning."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from torch import nn

from worldmodel.mixtures import Factorization, LatentLayout, LatentPart, NoiseType
from worldmodel.models import MDNRNN, DataStatistics, LayerNormLSTM, MDNRNNConfig, SequenceBatch, State

B, T, D, A, H, K = 3, 7, 3, 2, 8, 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_config(**fields):
    return MDNRNNConfig(**{"hidden_size": H, "num_components": K, **fields})


def make(dtype=torch.float64, seed=0, **fields):
    """A model in evaluation mode with units that are not neutral."""
    torch.manual_seed(seed)
    model = MDNRNN(D, A, make_config(**fields)).to(dtype)
    d = model.latent_size
    neutral = DataStatistics.neutral(d)
    changed = dataclasses.replace(
        neutral, change_scale=0.5 + torch.arange(d), reward_mean=torch.tensor([2.0]), reward_scale=torch.tensor([3.0])
    )
    model.set_statistics(changed)
    return model.eval()


def make_batch(b=B, t=T, dtype=torch.float64, seed=1):
    g = seeded(seed)
    z = torch.randn(b, t + 1, D, generator=g, dtype=torch.float64).to(dtype)
    action = torch.randn(b, t, A, generator=g, dtype=torch.float64).to(dtype)
    reward = torch.randn(b, t, generator=g, dtype=torch.float64).to(dtype)
    terminated = torch.rand(b, t, generator=g) < 0.3
    return SequenceBatch(z, action, reward, terminated, torch.ones(b, t, dtype=torch.bool))


def parameters_of(prediction):
    """Every tensor of a prediction, batch dimensions first."""
    found = [prediction.latent.log_weights, prediction.latent.mean, prediction.latent.log_scale]
    if prediction.latent.scale_tril is not None:
        found.append(prediction.latent.scale_tril)
    if prediction.reward is not None:
        found += [prediction.reward.mean, prediction.reward.log_scale]
    return found if prediction.termination_logit is None else [*found, prediction.termination_logit]


# parity: T steps are one sequence

SWITCHES = [
    {"num_layers": layers, "layer_norm": norm, "skip": skip, "predict_change": change, "factorization": factorization}
    for layers, norm, skip, change, factorization in itertools.product(
        (1, 2), (False, True), (False, True), (False, True), Factorization
    )
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["64", "32"])
@pytest.mark.parametrize("fields", SWITCHES, ids=lambda fields: "-".join(str(value) for value in fields.values()))
def test_steps_equal_the_sequence(fields, dtype, tolerance):
    model, batch = make(dtype, **fields), make_batch(dtype=dtype)
    whole, last = model(batch.z[:, :-1], batch.action)
    state = model.initial_state(B)
    for t in range(T):
        one, state = model.step(batch.z[:, t], batch.action[:, t], state)
        for stepped, expected in zip(parameters_of(one), parameters_of(whole), strict=True):
            assert stepped.dtype == dtype
            torch.testing.assert_close(stepped, expected[:, t], rtol=tolerance, atol=tolerance)
    for stepped, expected in zip(state, last, strict=True):
        torch.testing.assert_close(stepped, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_full_noise_steps_as_the_sequence_too(layer_norm):
    model = make(factorization=Factorization.JOINT, noise_type=NoiseType.FULL, layer_norm=layer_norm)
    batch = make_batch()
    whole, _ = model(batch.z[:, :-1], batch.action)
    one, _ = model.step(batch.z[:, 0], batch.action[:, 0], model.initial_state(B))
    torch.testing.assert_close(one.latent.scale_tril, whole.latent.scale_tril[:, 0], rtol=1e-12, atol=1e-12)
    assert one.latent.sample(generator=seeded()).shape == (B, D)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_sequence_continues_from_the_state_of_its_first_part(layer_norm):
    model, batch = make(num_layers=2, layer_norm=layer_norm), make_batch()
    whole, last = model(batch.z[:, :-1], batch.action)
    first, state = model(batch.z[:, :3], batch.action[:, :3])
    second, end = model(batch.z[:, 3:-1], batch.action[:, 3:], state)
    for a, b, expected in zip(parameters_of(first), parameters_of(second), parameters_of(whole), strict=True):
        torch.testing.assert_close(torch.cat([a, b], dim=1), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end.c, last.c, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_predictions_do_not_look_ahead(layer_norm):
    model, batch = make(layer_norm=layer_norm), make_batch()
    z, action = batch.z[:, :-1].clone(), batch.action.clone()
    before, _ = model(z, action)
    z[:, 4:] += 1.0
    action[:, 4:] += 1.0
    after, _ = model(z, action)
    for one, other in zip(parameters_of(before), parameters_of(after), strict=True):
        assert torch.equal(one[:, :4], other[:, :4])
        assert not torch.equal(one[:, 4:], other[:, 4:])


# state


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_reset_state_equals_a_fresh_one(layer_norm):
    """Trap 6: what is fed to the LSTM is what was reset."""
    model, batch = make(num_layers=2, layer_norm=layer_norm), make_batch()
    state = model.initial_state(B)
    assert state.h.shape == state.c.shape == (2, B, H)
    assert state.h.data_ptr() != state.c.data_ptr()
    fresh, _ = model.step(batch.z[:, 0], batch.action[:, 0], state)
    _, used = model(batch.z[:, :-1], batch.action)
    for tensor in used:
        tensor.zero_()
    again, _ = model.step(batch.z[:, 0], batch.action[:, 0], used)
    without, _ = model(batch.z[:, :1], batch.action[:, :1])
    for one, other, third in zip(parameters_of(fresh), parameters_of(again), parameters_of(without), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, third[:, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_step_leaves_the_state_and_inputs_of_the_caller_alone(layer_norm):
    model, batch = make(layer_norm=layer_norm), make_batch()
    given = [batch.z[:, 0].clone(), batch.action[:, 0].clone(), *(torch.randn(1, B, H).double() for _ in range(2))]
    copies = [tensor.clone() for tensor in given]
    model.step(given[0], given[1], State(*given[2:]))
    assert all(torch.equal(one, other) for one, other in zip(given, copies, strict=True))


def test_the_batch_is_independent_rows():
    model, batch = make(num_layers=2), make_batch()
    whole, _ = model(batch.z[:, :-1], batch.action)
    for b in range(B):
        alone, _ = model(batch.z[b : b + 1, :-1], batch.action[b : b + 1])
        for one, expected in zip(parameters_of(alone), parameters_of(whole), strict=True):
            torch.testing.assert_close(one[0], expected[b], rtol=1e-12, atol=1e-12)


# losses


@pytest.mark.parametrize(("b", "t"), [(1, 1), (1, 5), (4, 1), (2, 5)])
@pytest.mark.parametrize("factorization", Factorization)
def test_losses_are_one_number_per_step(b, t, factorization):
    """Trap 2: a bare `squeeze()` at batch size 1 makes a loss of shape (T, T)."""
    model, batch = make(factorization=factorization), make_batch(b, t)
    losses = model.step_losses(batch)
    assert losses.latent.shape == losses.reward.shape == losses.termination.shape == (b, t)
    loss, metrics = model.loss(batch)
    assert loss.shape == ()
    assert all(value.shape == () for value in metrics.values())
    prediction, state = model(batch.z[:, :-1], batch.action)
    assert prediction.latent.batch_shape == prediction.reward.batch_shape == prediction.termination_logit.shape == (b, t)
    assert state.h.shape == (1, b, H)


@pytest.mark.parametrize("predict_change", [False, True])
@pytest.mark.parametrize("factorization", Factorization)
def test_losses_are_the_densities_of_the_predictions(factorization, predict_change):
    model, batch = make(factorization=factorization, predict_change=predict_change), make_batch()
    losses, state = model.step_losses(batch), model.initial_state(B)
    for t in range(T):
        one, state = model.step(batch.z[:, t], batch.action[:, t], state)
        torch.testing.assert_close(losses.latent[:, t], -one.latent.log_prob(batch.z[:, t + 1]), rtol=1e-10, atol=1e-10)
        scale = one.reward.log_scale[:, 0, 0].exp()
        reward = torch.distributions.Normal(one.reward.mean[:, 0, 0], scale).log_prob(batch.reward[:, t])
        torch.testing.assert_close(losses.reward[:, t], -reward, rtol=1e-10, atol=1e-10)
        p = one.termination_logit.sigmoid()
        crossed = -torch.where(batch.terminated[:, t], p, 1 - p).log()
        torch.testing.assert_close(losses.termination[:, t], crossed, rtol=1e-9, atol=1e-9)


def test_the_loss_is_the_mean_over_the_mask_with_the_latent_per_dimension():
    model, batch = make(), make_batch()
    mask = torch.rand(B, T, generator=seeded()) < 0.6
    batch = dataclasses.replace(batch, mask=mask)
    losses, (loss, metrics) = model.step_losses(batch), model.loss(batch)
    terms = [losses.latent[mask].mean() / D, losses.reward[mask].mean(), losses.termination[mask].mean()]
    assert list(metrics) == ["nll_per_dim", "reward_nll", "termination_loss"]
    for value, term in zip(metrics.values(), terms, strict=True):
        torch.testing.assert_close(value, term, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, sum(terms), rtol=1e-12, atol=1e-12)
    assert batch.weight == int(mask.sum())


@pytest.mark.parametrize("layer_norm", [False, True])
def test_padding_changes_neither_loss_nor_gradients(layer_norm):
    model, batch = make(layer_norm=layer_norm), make_batch()

    def loss_and_gradients(one):
        model.zero_grad()
        loss, _ = model.loss(one)
        loss.backward()
        return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]

    def padded(tensor, value, length=4):
        return torch.cat([tensor, torch.full((B, length, *tensor.shape[2:]), value, dtype=tensor.dtype)], dim=1)

    plain = loss_and_gradients(batch)
    for value in (0.0, 50.0):
        longer = SequenceBatch(
            padded(batch.z, value), padded(batch.action, value), padded(batch.reward, value),
            padded(batch.terminated, True), padded(batch.mask, False),
        )  # fmt: skip
        for one, other in zip(plain, loss_and_gradients(longer), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_fully_masked_batch_has_loss_zero_and_no_gradient():
    model = make()
    loss, _ = model.loss(dataclasses.replace(make_batch(), mask=torch.zeros(B, T, dtype=torch.bool)))
    loss.backward()
    assert loss == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


def test_heads_can_be_left_out():
    model, batch = make(reward_head=False, termination_head=False), make_batch()
    prediction, _ = model(batch.z[:, :-1], batch.action)
    assert prediction.reward is None
    assert prediction.termination_logit is None
    losses, (loss, metrics) = model.step_losses(batch), model.loss(batch)
    assert (losses.reward == 0).all()
    assert (losses.termination == 0).all()
    assert list(metrics) == ["nll_per_dim"]
    torch.testing.assert_close(loss, metrics["nll_per_dim"], rtol=1e-12, atol=0)


def test_termination_weight_multiplies_the_steps_that_terminate_and_no_others():
    plain, heavy, batch = make(), make(termination_weight=10.0), make_batch()
    one, ten = plain.step_losses(batch).termination, heavy.step_losses(batch).termination
    torch.testing.assert_close(ten[batch.terminated], 10 * one[batch.terminated], rtol=1e-12, atol=0)
    torch.testing.assert_close(ten[~batch.terminated], one[~batch.terminated], rtol=1e-12, atol=0)


def test_the_terminations_gradient_is_scaled_in_the_lstm_and_complete_in_its_head():
    batch, by_lstm, by_head = make_batch(), [], []
    for part in (0.0, 0.25, 1.0):
        model = make(termination_gradient=part)
        model.loss(batch)[0].backward()
        by_lstm.append(model.lstm.weight_hh_l0.grad)
        by_head.append(model.termination_head.weight.grad)
    torch.testing.assert_close(by_lstm[1], 0.75 * by_lstm[0] + 0.25 * by_lstm[2], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(by_lstm[0], by_lstm[2], rtol=1e-3)
    assert all(torch.equal(by_head[0], other) for other in by_head[1:])


def test_policies_get_the_full_gradient_of_the_termination():
    batch, found = make_batch(), []
    for part in (0.0, 1.0):
        model = make(termination_gradient=part)
        action = batch.action[:, 0].clone().requires_grad_()
        logit = model.step(batch.z[:, 0], action, model.initial_state(len(action)))[0].termination_logit
        found.append(torch.autograd.grad(logit.sum(), action)[0])
    assert torch.equal(*found)
    assert (found[0] != 0).any()


@pytest.mark.parametrize(("factorization", "noise_type"), list(itertools.product(Factorization, NoiseType)))
def test_every_weight_gets_a_finite_gradient(factorization, noise_type):
    level = 0.5 if noise_type is NoiseType.FIXED else None
    model = make(factorization=factorization, noise_type=noise_type, fixed_noise_level=level, num_layers=2)
    model.loss(make_batch())[0].backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad != 0).any(), name


# options of the configuration


def test_a_predicted_change_is_added_to_z_in_units_of_its_scale():
    model, batch = make(predict_change=True), make_batch()
    level = make(predict_change=False)
    level.load_state_dict(model.state_dict())
    one, _ = model(batch.z[:, :-1], batch.action)
    raw, _ = level(batch.z[:, :-1], batch.action)
    expected = batch.z[:, :-1].unsqueeze(-2) + model.change_scale * raw.latent.mean
    torch.testing.assert_close(one.latent.mean, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.latent.log_scale, raw.latent.log_scale + model.change_scale.log(), rtol=1e-12, atol=1e-12)


def test_without_skip_the_heads_see_nothing_but_h():
    for skip in (False, True):
        model, batch = make(skip=skip, predict_change=False), make_batch()
        assert model.latent_head.linear.in_features == H + skip * (D + A)
        for weight in model.lstm.parameters():  # h is 0 for every input
            nn.init.zeros_(weight)
        z = batch.z[:, :-1]
        for inputs in ((z, torch.zeros_like(batch.action)), (torch.zeros_like(z), batch.action)):
            prediction, _ = model(*inputs)
            for seen in (prediction.latent.mean, prediction.reward.mean, prediction.termination_logit):
                assert bool((seen == seen[:1, :1]).all()) is not skip


def test_rewards_are_in_the_units_of_the_data():
    model, batch = make(), make_batch()
    nn.init.zeros_(model.reward_head.linear.weight)
    nn.init.zeros_(model.reward_head.linear.bias)
    prediction, _ = model(batch.z[:, :-1], batch.action)
    assert (prediction.reward.mean == 2.0).all()
    floor = model.config.min_scale
    torch.testing.assert_close(
        prediction.reward.log_scale.exp(), torch.full((B, T, 1, 1), 3 * math.sqrt(1 + floor**2), dtype=torch.float64)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"predict_change": False}, {"skip": False}, {"layer_norm": True}, {"num_layers": 2}, {"num_components": 2},
        {"factorization": Factorization.JOINT}, {"noise_type": NoiseType.ISOTROPIC_ACROSS_CLUSTERS}, {"min_scale": 2.0},
        {"noise_type": NoiseType.FIXED, "fixed_noise_level": 0.5}, {"termination_weight": 3.0}, {"reward_head": False},
        {"termination_head": False}, {"hidden_size": 9},
    ],
    ids=str,
)  # fmt: skip
def test_every_field_of_the_configuration_changes_the_loss(change):
    batch = make_batch()
    assert make(**change).loss(batch)[0] != make().loss(batch)[0]


# layer normalisation


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_layer_norm_lstm_is_the_formula_of_its_source(num_layers):
    """LayerNormBasicLSTMCell of TensorFlow 1 with its eps, written out in scalars of one unit at a time."""
    torch.manual_seed(0)
    lstm = LayerNormLSTM(4, 5, num_layers).double()
    for parameter in lstm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    output, (h_last, c_last) = lstm(x)

    def norm(vector, layer):
        centred = vector - vector.mean()
        return layer.weight * centred / ((centred**2).mean() + 1e-12) ** 0.5 + layer.bias

    for b in range(2):
        sequence = x[b]
        for layer in range(num_layers):
            h, c, hidden = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64), []
            for t in range(6):
                raw = lstm.gates[layer].weight @ torch.cat([sequence[t], h])
                i, j, f, o = (norm(raw[5 * n : 5 * n + 5], lstm.gate_norms[layer][n]) for n in range(4))
                c = c / (1 + torch.exp(-(f + 1.0))) + torch.tanh(j) / (1 + torch.exp(-i))
                c = norm(c, lstm.cell_norms[layer])
                h = torch.tanh(c) / (1 + torch.exp(-o))
                hidden.append(h)
            sequence = torch.stack(hidden)
            torch.testing.assert_close(h_last[layer, b], h, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(c_last[layer, b], c, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(output[b], sequence, rtol=1e-10, atol=1e-12)


def test_the_layer_norm_lstm_rejects_time_first():
    with pytest.raises(ValueError, match="batch_first: expected True, got False"):
        LayerNormLSTM(4, 5, batch_first=False)


# dropout


@pytest.mark.parametrize("name", ["input_dropout", "output_dropout"])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_dropout_acts_in_training_only_and_uses_its_generator_only(name, layer_norm):
    model, batch = make(**{name: 0.5}, layer_norm=layer_norm), make_batch()
    plain = make(layer_norm=layer_norm)
    assert torch.equal(model.loss(batch, generator=seeded())[0], plain.loss(batch)[0])
    model.train()
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    one = model.loss(batch, generator=seeded(3))[0]
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(one, model.loss(batch, generator=seeded(3))[0])
    assert not torch.equal(one, model.loss(batch, generator=seeded(4))[0])
    assert not torch.equal(one, plain.loss(batch)[0])


def test_dropout_keeps_the_expectation_and_drops_the_given_share():
    model = make(torch.float32, output_dropout=0.25, hidden_size=64, skip=False, predict_change=False).train()
    seen = []
    model.latent_head.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    z, action = torch.ones(200, 10, D), torch.ones(200, 10, A)
    model(z, action, generator=seeded())
    model.eval()
    model(z, action)
    dropped, plain = seen
    n = dropped.numel()
    share = (dropped == 0).float().mean().item()
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / n)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], plain[kept] / 0.75)


def test_layer_normalised_models_train_with_the_same_state_as_they_step():
    model, batch = make(layer_norm=True, num_layers=2), make_batch()
    state = model.initial_state(B)
    for t in range(T):
        state = model.advance(batch.z[:, t], batch.action[:, t], state)
    _, expected = model(batch.z[:, :-1], batch.action)
    torch.testing.assert_close(state.c, expected.c, rtol=1e-12, atol=1e-12)


# precision


@pytest.mark.parametrize("layer_norm", [False, True])
def test_bf16_autocast_is_close_to_float32_and_its_losses_are_float32(layer_norm):
    model, batch = make(torch.float32, layer_norm=layer_norm, hidden_size=32), make_batch(dtype=torch.float32)
    exact = model.step_losses(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.step_losses(batch)
        one, _ = model.step(batch.z[:, 0], batch.action[:, 0], model.initial_state(B))
        assert one.termination_logit.dtype == one.latent.mean.dtype == torch.float32
        loss, _ = model.loss(batch)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient.dtype == torch.float32 and torch.isfinite(gradient).all() for gradient in gradients)
    for term in ("latent", "reward", "termination"):
        assert getattr(rough, term).dtype == torch.float32
        difference = (getattr(rough, term) - getattr(exact, term)).abs()
        assert 0 < difference.max() < 0.05 * (1 + getattr(exact, term).abs().max())


def test_double_precision_reaches_every_loss():
    losses = make().step_losses(make_batch())
    assert losses.latent.dtype == losses.reward.dtype == losses.termination.dtype == torch.float64
    model, batch = make(), make_batch()
    prediction, _ = model(batch.z[:, :-1], batch.action)
    assert prediction.termination_logit.dtype == torch.float64


# statistics


def test_statistics_match_numpy_on_the_steps_that_count():
    batch = make_batch(20, 6)
    mask = torch.rand(20, 6, generator=seeded()) < 0.7
    one, two = (
        SequenceBatch(*(getattr(batch, f.name)[part] for f in dataclasses.fields(batch)))
        for part in (slice(0, 7), slice(7, 20))
    )
    masked = [dataclasses.replace(part, mask=m) for part, m in ((one, mask[:7]), (two, mask[7:]))]
    found = DataStatistics.of(masked)
    before, after, reward = batch.z[:, :-1][mask].numpy(), batch.z[:, 1:][mask].numpy(), batch.reward[mask].numpy()
    torch.testing.assert_close(found.change_scale, torch.from_numpy((after - before).std(axis=0)))
    assert found.reward_mean.item() == pytest.approx(reward.mean())
    assert found.reward_scale.item() == pytest.approx(reward.std())
    for d in range(D):
        values = [*before[:, d], *after[:, d]]
        margin = 1.5 * (max(values) - min(values))
        assert found.latent_low[d].item() == pytest.approx(min(values) - margin)
        assert found.latent_high[d].item() == pytest.approx(max(values) + margin)
    margin = 1.5 * (reward.max() - reward.min())
    assert found.reward_low.item() == pytest.approx(reward.min() - margin)
    assert found.reward_high.item() == pytest.approx(reward.max() + margin)


def test_constant_changes_and_rewards_get_unit_scales_and_a_constant_reward_stays():
    batch = dataclasses.replace(make_batch(), z=torch.ones(B, T + 1, D), reward=torch.full((B, T), 1.0))
    found = DataStatistics.of([batch])
    assert torch.equal(found.change_scale, torch.ones(D))
    assert found.reward_scale == 1
    assert found.reward_low == found.reward_high == found.reward_mean == 1
    assert torch.equal(found.latent_low, torch.full((D,), -0.5))
    assert torch.equal(found.latent_high, torch.full((D,), 2.5))


def test_statistics_of_no_steps_raise():
    empty = dataclasses.replace(make_batch(), mask=torch.zeros(B, T, dtype=torch.bool))
    for batches in ([], [empty]):
        with pytest.raises(ValueError, match="batches: expected at least one step that counts, got none"):
            DataStatistics.of(batches)


def test_statistics_are_saved_with_the_weights():
    one, other = make(), MDNRNN(D, A, make_config()).double().eval()
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.loss(make_batch())[0], other.loss(make_batch())[0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("change_scale", torch.ones(D + 1), r"change_scale: expected shape \(3,\), got \(4,\)"),
        ("reward_mean", torch.tensor(0.0), r"reward_mean: expected shape \(1,\), got \(\)"),
        ("change_scale", torch.tensor([1.0, 0.0, 1.0]), "change_scale: expected positive finite numbers"),
        ("reward_scale", torch.tensor([math.inf]), "reward_scale: expected positive finite numbers"),
        ("reward_scale", torch.tensor([math.nan]), "reward_scale: expected positive finite numbers"),
    ],
)
def test_statistics_that_do_not_fit_are_rejected_and_change_nothing(field, value, message):
    model = MDNRNN(D, A, make_config())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    good = DataStatistics(*(0.5 * torch.ones_like(value) for value in vars(DataStatistics.neutral(D)).values()))
    with pytest.raises(ValueError, match=message):
        model.set_statistics(dataclasses.replace(good, **{field: value}))
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


# rejection


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *[({name: 0}, f"{name}: expected an integer >= 1, got 0") for name in ("hidden_size", "num_layers", "num_components")],
        *[({name: value}, f"{name}: expected a number in \\[0, 1\\), got {value}") for name, value in itertools.product(
            ("input_dropout", "output_dropout"), (-0.1, 1.0, math.nan))],
        ({"termination_gradient": 1.1}, r"termination_gradient: expected a number in \[0, 1\], got 1.1"),
        ({"termination_weight": 0.0}, "termination_weight: expected a positive finite number, got 0.0"),
        ({"termination_weight": math.inf}, "termination_weight: expected a positive finite number, got inf"),
        ({"termination_weight": math.nan}, "termination_weight: expected a positive finite number, got nan"),
        ({"min_scale": 0.0}, "min_scale: expected a positive finite number, got 0.0"),
        ({"noise_type": NoiseType.FIXED}, "fixed_noise_level: expected a positive number with noise type 'fixed', got None"),
        ({"fixed_noise_level": 0.1}, "fixed_noise_level: expected None with noise type 'diagonal', got 0.1"),
        ({"noise_type": "round"}, "'round' is not a valid NoiseType"),
        ({"factorization": "both"}, "'both' is not a valid Factorization"),
    ],
    ids=str,
)  # fmt: skip
def test_a_configuration_out_of_range_is_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


def test_sizes_out_of_range_are_rejected():
    for sizes, message in (
        ((0, 1), "latent_size: expected an integer >= 1, got 0"),
        ((1, -1), "action_size: expected an integer >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            MDNRNN(*sizes)
    with pytest.raises(TypeError, match=r"latent_size: expected an integer >= 1, got 2\.5"):
        MDNRNN(2.5, 1)
    with pytest.raises(TypeError, match="hidden_size: expected an integer >= 1, got True"):
        make_config(hidden_size=True)


def test_a_model_made_with_termination_head_none_has_the_head_and_records_it():
    for given, kept in ((None, True), (True, True), (False, False)):
        model = MDNRNN(D, A, make_config(termination_head=given))
        assert model.config.termination_head is kept
        assert (model.termination_head is not None) is kept


def test_the_json_of_a_model_is_that_of_older_files():
    names = [
        "latent_size", "action_size", "hidden_size", "num_layers", "num_components", "factorization", "noise_type",
        "fixed_noise_level", "min_scale", "predict_change", "skip", "reward_head", "termination_head", "termination_weight",
        "termination_gradient", "layer_norm", "input_dropout", "output_dropout",
    ]  # fmt: skip
    model = MDNRNN(D, A, make_config())
    data = json.loads(json.dumps(model.config_to_json()))
    assert list(data) == names
    assert (data["factorization"], data["noise_type"], data["termination_head"]) == ("per_dimension", "diagonal", True)
    again = MDNRNN.from_config(data)
    assert (again.latent_size, again.action_size, again.config) == (D, A, model.config)


def test_later_fields_are_in_the_json_only_where_earlier_versions_did_otherwise():
    atoms = (0.1, 3.0)
    model = MDNRNN(D, A, make_config(reward_atoms=atoms, reward_components=0, layer_norm=True))
    data = json.loads(json.dumps(model.config_to_json()))
    assert data["reward_components"] == 0
    assert data["layer_norm_eps"] == 1e-12
    again = MDNRNN.from_config(data)
    assert again.config == model.config
    assert torch.equal(again.reward_head.atoms, torch.tensor(atoms))
    assert "reward_head.atoms" not in model.state_dict()  # the configuration holds them
    plain = MDNRNN(D, A, make_config(reward_atoms=(), reward_components=1)).config_to_json()
    assert not {"reward_atoms", "reward_components", "layer_norm_eps"} & set(plain)
    assert not {"reward_atoms", "reward_components", "layer_norm_eps"} & set(make_config().identity())


def test_files_without_an_eps_of_the_layer_norm_have_that_of_earlier_versions():
    data = MDNRNN(D, A, make_config(layer_norm=True)).config_to_json()
    del data["layer_norm_eps"]
    model = MDNRNN.from_config(data)
    assert {norm.eps for norm in model.modules() if isinstance(norm, nn.LayerNorm)} == {1e-5}
    assert model.config_to_json() == data  # so that the fingerprint does not change
    new = MDNRNN(D, A, make_config(layer_norm=True))
    assert {norm.eps for norm in new.modules() if isinstance(norm, nn.LayerNorm)} == {1e-12}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reward_components": -1}, "reward_components: expected an integer >= 0, got -1"),
        ({"reward_components": 0, "reward_atoms": ()}, "reward_components: expected an integer >= 1 without reward_atoms"),
        ({"reward_atoms": (1.0, 1.0)}, "reward_atoms: expected different finite float32 numbers"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps: expected a positive finite number, got 0.0"),
    ],
    ids=str,
)
def test_reward_fields_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


def test_a_configuration_is_frozen_and_takes_names_as_strings():
    config = make_config(factorization="joint", noise_type="full")
    assert (config.factorization, config.noise_type) == (Factorization.JOINT, NoiseType.FULL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 3


def test_inputs_of_another_shape_are_rejected():
    model, state = make(), make().initial_state(B)
    z, action = torch.zeros(B, T, D, dtype=torch.float64), torch.zeros(B, T, A, dtype=torch.float64)
    for bad in (z[:, 0], z[..., :2], z.unsqueeze(0)):
        with pytest.raises(ValueError, match=r"z: expected shape \(B, T, 3\), got"):
            model(bad, action)
    for bad in (action[:, :-1], action[:1], action[..., :1], action[:, 0]):
        with pytest.raises(ValueError, match=r"action: expected shape \(3, 7, 2\), got"):
            model(z, bad)
    for call in (model.step, model.advance):
        with pytest.raises(ValueError, match=r"z: expected shape \(B, 3\), got"):
            call(z, action[:, 0], state)
        with pytest.raises(ValueError, match=r"action: expected shape \(3, 2\), got"):
            call(z[:, 0], action[:1, 0], state)
    with pytest.raises(ValueError, match=r"action: expected shape"):  # a batch whose z lacks its last target
        model.loss(dataclasses.replace(make_batch(), z=make_batch().z[:, 1:]))


@pytest.mark.parametrize("name", ["reward", "terminated", "mask"])
@pytest.mark.parametrize("shape", [(1, T), (B, 1), (B, T, 1), (T,)])
def test_a_batch_of_unequal_parts_is_rejected_and_never_broadcast(name, shape):
    batch = make_batch()
    wrong = torch.zeros(shape, dtype=getattr(batch, name).dtype)
    with pytest.raises(ValueError, match=rf"{name}: expected shape \(3, 7\), got"):
        make().loss(dataclasses.replace(batch, **{name: wrong}))


# learning


@pytest.mark.parametrize("predict_change", [False, True])
def test_a_small_model_finds_the_entropy_of_a_process_that_needs_memory(predict_change):
    """z_{t+1} = +-1 * s_t + noise of sigma 0.2 in each dimension, where s_t, 1 or 2, is the action before the last.

    The sign is a coin for each dimension, so the entropy per dimension is log 2 + log(0.2) + 0.5 log 2 pi e. Rewards are
    N(a_t, 0.3^2), and the episode "terminates" with probability 0.2, whatever happens.
    """
    sigma, g = 0.2, seeded(5)

    def draw(b, t=8):
        choice = torch.randint(2, (b, t, 1), generator=g).float()
        level = 1 + torch.cat([torch.zeros(b, 1, 1), choice[:, :-1]], dim=1)  # the action one step ago
        sign = 2.0 * torch.randint(2, (b, t, 2), generator=g) - 1
        z = torch.cat([torch.zeros(b, 1, 2), sign * level + sigma * torch.randn(b, t, 2, generator=g)], dim=1)
        reward = choice[..., 0] + 0.3 * torch.randn(b, t, generator=g)
        return SequenceBatch(z, choice, reward, torch.rand(b, t, generator=g) < 0.2, torch.ones(b, t, dtype=torch.bool))

    torch.manual_seed(0)
    model = MDNRNN(2, 1, MDNRNNConfig(hidden_size=16, num_components=2, predict_change=predict_change, min_scale=1e-3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    for _ in range(500):
        optimizer.zero_grad()
        model.loss(draw(64))[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        losses = model.step_losses(draw(2000))
    half_log_two_pi_e = 0.5 * math.log(2 * math.pi * math.e)
    entropies = {
        "latent": 2 * (math.log(2) + math.log(sigma) + half_log_two_pi_e),
        "reward": math.log(0.3) + half_log_two_pi_e,
        "termination": -0.2 * math.log(0.2) - 0.8 * math.log(0.8),
    }
    for name, entropy in entropies.items():
        values = getattr(losses, name).mean(dim=1)
        error = values.std().item() / math.sqrt(len(values))
        assert -4 * error < values.mean().item() - entropy < 0.08 + 4 * error, name


@pytest.mark.parametrize("layout", [None, "mixed"])
def test_full_covariances_are_scaled_by_the_dimension_unless_the_file_is_older(layout):
    parts = [LatentPart(name=str(i), kind="bits" if i == 0 else "continuous", start=i, size=1) for i in range(4)]
    config = MDNRNNConfig(hidden_size=8, factorization="joint", noise_type="full")
    model = MDNRNN(4, A, config, layout=None if layout is None else LatentLayout(tuple(parts)))
    data = json.loads(json.dumps(model.config_to_json()))
    assert data["below_scale"] == (1 / 4 if layout is None else 1 / 3)  # of the densities
    again = MDNRNN.from_config(data)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        head = (again.latent_head if layout is None else again.latent_head.heads["densities"]).linear
        head.weight[-3:] = 1.0  # below the diagonal
        model.load_state_dict(again.state_dict())
    z, action, state = torch.randn(2, 4), torch.randn(2, A), model.initial_state(2)
    z[:, 0] = 1.0
    first, second = (each.step(z, action, state)[0].latent.log_prob(z) for each in (model, again))
    assert torch.equal(first, second)
    older = MDNRNN.from_config({name: value for name, value in data.items() if name != "below_scale"})
    older.load_state_dict(model.state_dict())
    assert "below_scale" not in older.config_to_json()
    assert not torch.equal(first, older.step(z, action, state)[0].latent.log_prob(z))
    assert "below_scale" not in MDNRNN(4, A, MDNRNNConfig(hidden_size=8)).config_to_json()
    with pytest.raises(ValueError, match="below_scale: expected"):
        MDNRNN.from_config(data | {"below_scale": -1.0})
