"""Training where the caller has turned gradients off gives the same result as elsewhere."""

import contextlib

import torch
from toy_data import walking_episode, write_store
from toy_images import DotEnv
from toy_worlds import walk_world

import worldmodel as wm
from worldmodel.agents import Controller, PPOConfig, ppo
from worldmodel.dream import Dreams, StartBank
from worldmodel.models import MDNRNNConfig, feature_size
from worldmodel.training import TrainingConfig, train_vae

SHORT = TrainingConfig(num_updates=3, evaluate_every=1, max_test_batches=1)


def both(train):
    """Return the weights of a training with gradients turned on and off."""
    results = []
    for context in (contextlib.nullcontext(), torch.no_grad()):
        with context:
            results.append([value.clone() for value in train(len(results)).state_dict().values()])
    return results


def test_m_v_and_agents_are_the_same(tmp_path):
    write_store(tmp_path / "walks", [walking_episode(i, 6) for i in range(4)])
    frames = wm.FrameConfig(batch_size=8, test_fraction=0.4)
    wm.collect(DotEnv, out=tmp_path / "frames", num_episodes=3)
    world = walk_world()
    agent = Controller(feature_size(world, "zh"), world.action_space)
    starts = StartBank(world.start_mean, world.start_log_variance, world.mdnrnn.initial_state(len(world.start_mean)))
    tasks = [
        lambda i: wm.fit(tmp_path / "walks", out=tmp_path / f"m{i}", config=MDNRNNConfig(hidden_size=2), training_config=SHORT),
        lambda i: train_vae(
            tmp_path / "frames",
            out=tmp_path / f"v{i}",
            config=wm.VAEConfig(latent_size=2),
            frame_config=frames,
            training_config=SHORT,
        ),
        lambda i: ppo(agent, Dreams(world, 16), starts, config=PPOConfig(iterations=2), horizon=4, seed=1),
    ]
    for train in tasks:
        on, off = both(train)
        assert all(torch.equal(a, b) for a, b in zip(on, off, strict=True))
