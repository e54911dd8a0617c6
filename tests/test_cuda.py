"""Everything that takes a device works on a GPU and keeps its tensors there.

Each test runs on the CPU too, so that its body is known to be right where there is no GPU. Every one is a smoke test: what the
numbers must be is tested elsewhere, on the CPU.
"""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_controllers import search_in
from toy_data import walking_episode, write_store
from toy_images import DotEnv, dot_store
from toy_worlds import WalkEnv, walk_world

from worldmodel.agents import Controller, LatentPolicy, PPOConfig, RealPopulation, SearchConfig, evolve, ppo
from worldmodel.data import EnvConfig, rollouts
from worldmodel.dream import Dreams, RandomActions, StartBank, StartConfig, imagine, lambda_returns
from worldmodel.envs import DreamVectorEnv, LatentVectorEnv
from worldmodel.evaluation import EvaluationConfig, evaluate, probe
from worldmodel.experiments import IterationConfig, iterate, iteration
from worldmodel.models import MDNRNN, MDNRNNConfig, VAEConfig, WorldModel, feature_size
from worldmodel.runtime import RunConfig
from worldmodel.training import FIT_FILE, DataConfig, FrameConfig, TrainingConfig, encode_store, fit, train_vae

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
SMALL = MDNRNNConfig(hidden_size=8, num_components=2)
DATA = DataConfig(window=6, batch_size=4, burn_in=1, test_fraction=0.25)
TRAINING = TrainingConfig(num_updates=12, evaluate_every=4, learning_rate=1e-2)
CUDA = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch"),
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=CUDA)])
def device(request):
    return request.param


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("walks") / "store", [walking_episode(i, 5 + 3 * i) for i in range(12)]).path


@pytest.fixture
def losses(monkeypatch):
    """The kinds of device of M, its batch and its generator, at every loss that is computed."""
    seen, loss = [], MDNRNN.loss

    def record(model, batch, *, generator=None):
        tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
        seen.append(kinds(*tensors, *model.state_dict().values()) | ({generator.device.type} if generator else set()))
        return loss(model, batch, generator=generator)

    monkeypatch.setattr(MDNRNN, "loss", record)
    return seen


def kinds(*tensors):
    return {tensor.device.type for tensor in tensors if tensor is not None}


def everything(world):
    return world.state_dict().values()


def small_fit(data, out, device, **options):
    return fit(
        data,
        out=out,
        device=device,
        **({"config": SMALL, "data_config": DATA, "training_config": TRAINING, "seed": 3} | options),
    )


def assert_same_weights(a, b, device):
    """Equal bits on a CPU; on a GPU the order of additions may differ from run to run."""
    tolerance = 0.0 if device == "cpu" else 5e-3  # of weights that 12 updates move by up to 0.1
    for name, weight in a.state_dict().items():
        torch.testing.assert_close(
            weight, b.state_dict()[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_fit_trains_on_the_device_from_memory_and_from_disk_alike(walks, tmp_path, device, losses):
    worlds = [
        small_fit(walks, tmp_path / str(resident), device, data_config=replace(DATA, resident=resident))
        for resident in (True, False)
    ]
    assert len(losses) > 2 * TRAINING.num_updates  # those of the evaluations are there too
    assert all(seen == {device} for seen in losses)
    assert all(kinds(*everything(world)) == {device} and world.device.type == device for world in worlds)
    assert_same_weights(*worlds, device)


def test_fit_in_bfloat16_keeps_weights_in_float32(walks, tmp_path, device):
    config = TrainingConfig(num_updates=4, evaluate_every=2, precision="bfloat16")
    world = small_fit(walks, tmp_path / "out", device, training_config=config)
    assert kinds(*everything(world)) == {device}
    assert {parameter.dtype for parameter in world.mdnrnn.parameters()} == {torch.float32}
    assert all(np.isfinite(value) for value in world.provenance["training"]["best_metrics"].values())


def test_fit_by_muon_resumes(walks, tmp_path, device):
    options = {"config": replace(SMALL, hidden_size=16), "training_config": replace(TRAINING, optimizer="muon")}
    with pytest.raises(KeyboardInterrupt, match="stopped after update 8 of 12"):
        small_fit(
            walks,
            tmp_path / "stopped",
            device,
            **options,
            run=RunConfig(on_progress=lambda progress: os.kill(os.getpid(), signal.SIGINT) if progress.done == 8 else None),
        )
    resumed = small_fit(walks, tmp_path / "stopped", device, **options)
    assert kinds(*everything(resumed)) == {device}
    assert_same_weights(resumed, small_fit(walks, tmp_path / "whole", device, **options), device)


def test_an_interrupted_fit_resumes_to_the_same_weights(walks, tmp_path, device, losses):
    stop = "stopped after update 8 of 12"
    with pytest.raises(KeyboardInterrupt, match=stop):
        small_fit(
            walks,
            tmp_path / "stopped",
            device,
            run=RunConfig(on_progress=lambda progress: os.kill(os.getpid(), signal.SIGINT) if progress.done == 8 else None),
        )
    resumed = small_fit(walks, tmp_path / "stopped", device)
    assert all(seen == {device} for seen in losses)
    assert kinds(*everything(resumed)) == {device}
    assert_same_weights(resumed, small_fit(walks, tmp_path / "whole", device), device)
    again = small_fit(walks, tmp_path / "stopped", device)  # it is complete, so this only opens it
    assert kinds(*everything(again)) == {device}
    assert again.fingerprint == resumed.fingerprint


def test_fit_continues_from_a_world_model_on_the_device_and_does_not_change_it(walks, tmp_path, device):
    first = small_fit(walks, tmp_path / "first", device)
    before = first.fingerprint
    second = fit(walks, out=tmp_path / "second", device=device, data_config=DATA, training_config=TRAINING, initial=first)
    assert first.fingerprint == before != second.fingerprint
    assert kinds(*everything(first), *everything(second)) == {device}


def test_a_world_model_opens_on_the_device_and_dreams_there(walks, tmp_path, device):
    fitted = small_fit(walks, tmp_path / "out", device)
    world = WorldModel.from_pretrained(tmp_path / "out", device=device)
    assert kinds(*everything(world)) == {device}
    assert world.fingerprint == fitted.fingerprint == WorldModel.from_pretrained(tmp_path / "out").fingerprint
    assert kinds(world.encode(np.zeros((3, 2), np.float32)), world.decode(torch.zeros(3, 2, device=device))) == {device}
    rollout = Dreams(world, 4).rollout(RandomActions(world, generator=generator(device)), 5, generator=generator(device))
    assert kinds(*vars(rollout).values()) == {device}


def generator(device, seed=0):
    return torch.Generator(device).manual_seed(seed)


@pytest.mark.parametrize("termination", ["sample", "threshold"])
def test_rollouts_and_scores_of_dreams_lie_on_the_device_and_agree(device, termination):
    dreams = Dreams(walk_world().to(device), 8, temperature=torch.linspace(0, 1.5, 8), num_groups=2, termination=termination)
    policy = RandomActions(dreams.world, generator=generator(device, 1))
    rollout = dreams.rollout(policy, 20, generator=dreams.generator(0))
    policy = RandomActions(dreams.world, generator=generator(device, 1))
    returns, lengths = dreams.score(policy, 20, generator=dreams.generator(0))
    assert kinds(*vars(rollout).values(), returns, lengths) == {device}
    torch.testing.assert_close(returns.double(), rollout.returns.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(lengths, rollout.lengths)


def test_dreams_start_on_the_device_from_real_observations(device):
    dreams = Dreams(walk_world().to(device), 3, temperature=0.0)
    prefix = np.array([[0.0, 0.0], [0.25, 0.0]]), np.array([2])
    state = dreams.start_from(*prefix, generator=dreams.generator(0))
    assert kinds(state.z, *state.lstm, state.alive) == {device}
    torch.testing.assert_close(dreams.world.decode(state.z).double().cpu(), torch.tensor([[0.25, 0.0]] * 3).double())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_dream_environment_stays_on_the_device_without_synchronisation(device, mode):
    env = DreamVectorEnv(walk_world().to(device), 6, autoreset_mode=mode, tensors=True, check_actions=False, temperature=(0, 1))
    env.reset(seed=0)
    actions = torch.tensor([0, 1, 2, 2, 2, 2], device=device)
    if device == "cuda":
        env.step(actions)
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(12):
            *results, infos = env.step(actions)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert kinds(*results, infos["temperature"]) == {device}
    if mode is AutoresetMode.SAME_STEP:
        assert kinds(infos["final_obs"], infos["_final_obs"]) == {device}
    assert isinstance(DreamVectorEnv(walk_world().to(device), 2).reset(seed=0)[0], np.ndarray)


def test_a_dream_is_the_same_on_every_device(device):
    """The random integers are; the rest differs by rounding."""
    here, there = (DreamVectorEnv(walk_world().to(where), 50, horizon=9) for where in ("cpu", device))
    one, two = here.reset(seed=0)[0], there.reset(seed=0)[0]
    for t in range(20):
        np.testing.assert_allclose(one, two, atol=1e-4)
        one, two = here.step(np.full(50, t % 3))[0], there.step(np.full(50, t % 3))[0]


def test_reality_shows_features_of_a_world_on_the_device(device):
    env = LatentVectorEnv(SyncVectorEnv([WalkEnv] * 2), walk_world().to(device))
    features, _ = env.reset(seed=0)
    assert env.observation_space.contains(features)
    for _ in range(8):
        features, *_ = env.step(np.array([2, 0]))
    assert features.dtype == np.float32


def test_evolve_returns_a_better_controller_on_the_device(tmp_path, device):
    dreams = Dreams(walk_world().to(device), 32, temperature=0.0)
    controller = search_in(dreams, generations=6, population=8, horizon=12, sigma=1.0, test_dreams=16)
    assert kinds(*controller.parameters()) == {device}
    start = Controller(feature_size(dreams.world, "zh"), dreams.world.action_space).to(device)
    scores = [dreams.score(one, 12, generator=dreams.generator(9))[0].mean().item() for one in (start, controller)]
    assert scores[1] > scores[0]
    controller.save_pretrained(tmp_path / "controller")
    opened = Controller.from_pretrained(tmp_path / "controller", device=device)
    assert kinds(*opened.parameters()) == {device}
    further = search_in(dreams, generations=1, population=8, horizon=12, test_dreams=16, initial=opened.cpu())
    assert kinds(*further.parameters()) == {device}  # wherever the first controller was


def test_a_hidden_layer_evolves_on_the_device_and_in_the_real_environment(device):
    world = walk_world().to(device)
    start = Controller(feature_size(world, "zh"), world.action_space, hidden_size=4, generator=torch.Generator())
    arguments = {"generations": 2, "population": 4, "horizon": 8, "test_dreams": 4, "initial": start, "method": "openai-es"}
    for worlds in (Dreams(world, 8, temperature=0.0), RealPopulation(world, EnvConfig(WalkEnv, max_steps=8), rollouts=2)):
        assert kinds(*search_in(worlds, **arguments).parameters()) == {device}
    assert kinds(*everything(world)) == {device}  # its copy played on the CPU


def right(world):
    """A controller on z that pushes right where y is small, whose play on `WalkEnv` is the same on every device."""
    controller = Controller(2, world.action_space, features="z")
    with torch.no_grad():
        controller.layers[0].weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 8.0], [0.0, 0.0]]))
        # 4 y = 0.55 never holds, as y is a short binary fraction: so no device may break a tie in its own way
        controller.layers[0].bias.copy_(torch.tensor([-1.0, -0.55, 0.0]))
    return controller.to(world.device)


def test_evaluate_plays_in_reality_as_it_does_on_the_cpu(device):
    worlds = [walk_world().to(kind) for kind in (device, "cpu")]
    results = [
        evaluate(
            right(world), world, env=EnvConfig(WalkEnv, max_steps=12), config=EvaluationConfig(num_episodes=5, num_dreams=8)
        )
        for world in worlds
    ]
    assert results[0].real.returns.tolist() == results[1].real.returns.tolist()
    assert results[0].random.lengths.shape == (5,)
    assert results[0].dream.lengths.max() <= 12
    assert kinds(*everything(worlds[0])) == {device}


def test_a_latent_policy_plays_episodes_with_m_on_the_device(device):
    world = walk_world().to(device)
    policy = LatentPolicy(world, right(world))
    episodes = list(rollouts(EnvConfig(WalkEnv, max_steps=12), policy, episode_ids=range(3), seed=5))
    assert policy.description == LatentPolicy(world.to("cpu"), right(world)).description
    on_cpu = list(rollouts(EnvConfig(WalkEnv, max_steps=12), LatentPolicy(world, right(world)), episode_ids=range(3), seed=5))
    assert [one.actions.tolist() for one in episodes] == [one.actions.tolist() for one in on_cpu]


def test_iterate_trains_and_dreams_on_the_device(tmp_path, device, losses, monkeypatch):
    config = IterationConfig(
        max_rounds=2,
        first_episodes=6,
        controller_episodes=3,
        mdnrnn=SMALL,
        data_config=DATA,
        training_config=TRAINING,
        search=SearchConfig(population=4, generations=2, test_dreams=8),
        rollouts=2,
        validation_episodes=2,
        test_episodes=3,
    )
    dreamed = []

    def record(dreams, *arguments, **options):
        controller = evolve(dreams, *arguments, **options)
        dreamed.append(kinds(*everything(dreams.world), *controller.parameters()))
        return controller

    monkeypatch.setattr(iteration, "evolve", record)
    rounds = iterate(
        EnvConfig("CartPole-v1", kwargs={"max_episode_steps": 15}), out=tmp_path / "loop", config=config, device=device
    )
    assert [len(one.real.returns) for one in rounds] == [3, 3]
    assert dreamed == [{device}] * 2
    assert all(seen == {device} for seen in losses)


def test_the_training_command_takes_the_device(walks, tmp_path, device, losses, run):
    out = tmp_path / "out"
    sizes = ["--hidden-size", "8", "--num-components", "2", "--window", "6", "--batch-size", "4", "--num-updates", "12"]
    code, printed, said = run(["train-mdnrnn", "--data", str(walks), "--out", str(out), "--device", device, *sizes])
    assert code == 0, said
    assert f"world model: {out}" in printed
    assert all(seen == {device} for seen in losses)
    assert json.loads((out / FIT_FILE).read_text())["device"] == device
    assert kinds(*everything(WorldModel.from_pretrained(out, device=device))) == {device}


def test_imagined_trajectories_and_their_gradients_lie_on_the_device(device):
    world = walk_world().to(device)
    dreams = Dreams(world, 4, temperature=torch.tensor([0.0, 0.5, 1.0, 2.0]))
    logits = torch.zeros(4, 3, device=device, requires_grad=True)
    dream = imagine(dreams, lambda features: logits.softmax(-1), 3, generator=dreams.generator(0))
    value = dream.features.sum(-1)
    returns = lambda_returns(dream.reward, dream.continuation, value, discount=0.9, lambda_=0.9)
    returns.sum().backward()
    assert kinds(*vars(dream).values(), returns, logits.grad) == {device}
    assert torch.isfinite(logits.grad).all()


def test_ppo_learns_on_the_device_in_dreams_from_real_states(walks, tmp_path, device):
    world = fit(
        walks,
        out=tmp_path / "w",
        device=device,
        data_config=DATA,
        training_config=replace(TRAINING, calibrate=True),
        config=SMALL,
    )
    starts = StartBank.along(world, walks, config=StartConfig(num_states=20, nearest=1, farthest=5))
    dreams = Dreams(world, 8, termination="sample")
    controller = Controller(feature_size(world, "zh"), world.action_space)
    config = PPOConfig(iterations=2, steps=3, horizon=4, critic_size=4, minibatches=2, test_every=1, test_dreams=4)
    found = ppo(controller, dreams, starts, config=config, horizon=10)
    returns = dreams.expected_return(found, 10, generator=dreams.generator(0))
    assert kinds(*found.state_dict().values(), starts.mean, *starts.lstm, returns) == {device}
    assert torch.isfinite(returns).all()


def test_a_world_of_images_is_trained_and_encoded_on_the_device(tmp_path, device):
    dot_store(tmp_path / "frames", 6)
    config = TrainingConfig(num_updates=3, evaluate_every=3)
    frames = FrameConfig(batch_size=8, test_fraction=0.2)
    vision = train_vae(
        tmp_path / "frames",
        out=tmp_path / "vae",
        config=VAEConfig(latent_size=3, min_nats=1e9, large_error_weight=100.0),
        frame_config=frames,
        training_config=replace(config, optimizer="muon"),
        device=device,
    )
    assert vision.latent_size == 1  # the latents with less information are removed
    assert kinds(*vision.state_dict().values()) == {device}
    store = encode_store(tmp_path / "frames", vision=vision, out=tmp_path / "encoded")
    assert len(store) == 6
    data = DataConfig(window=6, batch_size=4, test_fraction=0.25)
    world = fit(
        tmp_path / "encoded",
        vision=vision,
        out=tmp_path / "world",
        device=device,
        data_config=data,
        training_config=config,
        config=SMALL,
    )
    dreams = Dreams(world, 3)
    rollout = dreams.rollout(RandomActions(world, generator=dreams.generator(0)), 4, generator=dreams.generator(1))
    pictures = world.decode(rollout.z)
    assert kinds(pictures, *everything(world)) == {device}
    found = probe(world, env=EnvConfig(DotEnv, max_steps=6), config=EvaluationConfig(num_episodes=2, num_dreams=4))
    assert len(found.real["uniform"].returns) == 2
