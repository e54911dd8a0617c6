"""The stages of the library with the smallest work, and a digest of what each leaves."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from toy_data import walking_episode, write_store
from toy_images import DotEnv
from toy_worlds import random_world, walk_world

import worldmodel as wm
from worldmodel.agents import Controller, SearchConfig, evolve, ppo
from worldmodel.data import EnvConfig, EpisodeStore
from worldmodel.dream import Dreams, StartBank
from worldmodel.experiments import IterationConfig, iterate
from worldmodel.models import MDNRNNConfig, Vision, WorldModel, feature_size
from worldmodel.runtime import RunConfig
from worldmodel.training import DataConfig, TrainingConfig, encode_store, train_vae

SHORT = EnvConfig("CartPole-v1", max_steps=8)
TRAINING = TrainingConfig(num_updates=2, evaluate_every=1, max_test_batches=1)
M = MDNRNNConfig(hidden_size=2, num_components=1)
QUIET = RunConfig(progress=False)


@dataclass(frozen=True)
class Stage:
    """A stage: ``run(inputs, out)`` does it or resumes it, ``digest(out)`` identifies its result."""

    run: Callable[[Path, Path], Any]
    digest: Callable[[Path], str]


def make_inputs(path: Path) -> None:
    """Write what the stages read."""
    write_store(path / "walks", [walking_episode(i, 6) for i in range(4)])
    wm.collect(DotEnv, out=path / "frames", num_episodes=3, run=QUIET)
    vision = wm.VAEConfig(latent_size=2)
    frames = wm.FrameConfig(batch_size=8, test_fraction=0.4)
    train_vae(path / "frames", out=path / "vae", config=vision, frame_config=frames, training_config=TRAINING, run=QUIET)
    try:
        from worldmodel.adapters import minari
    except ImportError:
        return
    os.environ["MINARI_DATASETS_PATH"] = str(path / "minari")
    try:
        minari.to_minari(wm.collect(SHORT, out=path / "cart", num_episodes=3, run=QUIET), "toy/there-v0")
    except ImportError:
        return


def _fit(inputs: Path, out: Path) -> Any:
    return wm.fit(inputs / "walks", out=out, config=M, training_config=TRAINING, run=QUIET)


def _vae(inputs: Path, out: Path) -> Any:
    frames = wm.FrameConfig(batch_size=8, test_fraction=0.4)
    config = wm.VAEConfig(latent_size=2)
    return train_vae(inputs / "frames", out=out, config=config, frame_config=frames, training_config=TRAINING, run=QUIET)


def _encode(inputs: Path, out: Path) -> Any:
    return encode_store(inputs / "frames", vision=Vision.from_pretrained(inputs / "vae"), out=out, run=QUIET)


def _iterate(inputs: Path, out: Path) -> Any:
    config = IterationConfig(
        max_rounds=2,
        first_episodes=4,
        controller_episodes=2,
        mdnrnn=M,
        data_config=DataConfig(window=4, batch_size=4, test_fraction=0.3),
        training_config=TRAINING,
        search=SearchConfig(population=2, generations=1, test_dreams=4, method="openai-es"),
        rollouts=1,
        validation_episodes=2,
        test_episodes=2,
    )
    return iterate(EnvConfig("Pendulum-v1", max_steps=8), out=out, config=config, seed=1, run=QUIET)


def _evolve(inputs: Path, out: Path) -> Any:
    world = random_world(reward_head=True)
    out.mkdir(exist_ok=True)
    config = SearchConfig(population=4, generations=3, test_dreams=4, method="openai-es", test_every=1)
    start = Controller(feature_size(world, "zh"), world.action_space)
    found = evolve(Dreams(world, 8), start, config=config, horizon=4, seed=2, log=out / "search.safetensors", run=QUIET)
    found.save_pretrained(out / "controller", overwrite=True)


def _ppo(inputs: Path, out: Path) -> Any:
    world = random_world(reward_head=True)
    config = wm.PPOConfig(iterations=2, steps=2, horizon=3, critic_size=2, minibatches=1, epochs=1, test_every=1, test_dreams=4)
    start = Controller(feature_size(world, "zh"), world.action_space)
    dreams, log = Dreams(world, 4), out / "ppo.safetensors"
    found = ppo(start, dreams, StartBank.of(world), config=config, horizon=4, seed=2, log=log, run=QUIET)
    found.save_pretrained(out / "controller", overwrite=True)


def _minari(inputs: Path, out: Path) -> Any:
    from worldmodel.adapters.minari import from_minari

    os.environ["MINARI_DATASETS_PATH"] = str(inputs / "minari")
    return from_minari("toy/there-v0", out, overwrite=out.exists())


def _save(inputs: Path, out: Path) -> Any:
    world = walk_world()
    world.start_mean.fill_(2.0)
    world.save_pretrained(out, overwrite=out.exists() and any(out.iterdir()))


def world_digest(path: Path) -> str:
    """Digest of the weights of a world model."""
    return _tensors(WorldModel.from_pretrained(path))


def store_digest(path: Path) -> str:
    """Digest of all values of a store, as they are read."""
    store, result = EpisodeStore.open(path), hashlib.sha256()
    for episode in sorted(store, key=lambda one: one.episode_id):
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            values = getattr(episode, name)
            for key, leaf in sorted(values.items()) if isinstance(values, dict) else [("", values)]:
                result.update(f"{episode.episode_id} {name} {key} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    return result.hexdigest()


def _tensors(module: torch.nn.Module) -> str:
    result = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        result.update(name.encode() + value.detach().numpy().tobytes())
    return result.hexdigest()


def _vae_digest(path: Path) -> str:
    return _tensors(Vision.from_pretrained(path))


def _iterate_digest(path: Path) -> str:
    parts = []
    for number in (1, 2):
        one = path / f"round-{number}"
        scores = json.loads((one / "scores.json").read_text("utf-8"))
        real = json.dumps(scores.get("real"), sort_keys=True)
        parts += [
            store_digest(one / "data"),
            world_digest(one / "world"),
            _tensors(Controller.from_pretrained(one / "controller")),
            real,
        ]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


STAGES = {
    "save_pretrained": Stage(_save, world_digest),
    "collect": Stage(lambda inputs, out: wm.collect(SHORT, out=out, num_episodes=3, run=QUIET), store_digest),
    "fit": Stage(_fit, world_digest),
    "encode_store": Stage(_encode, store_digest),
    "train_vae": Stage(_vae, _vae_digest),
    "evolve": Stage(_evolve, lambda out: _tensors(Controller.from_pretrained(out / "controller"))),
    "ppo": Stage(_ppo, lambda out: hashlib.sha256((out / "ppo.safetensors").read_bytes()).hexdigest()),
    "from_minari": Stage(_minari, store_digest),
    "iterate": Stage(_iterate, _iterate_digest),
}
