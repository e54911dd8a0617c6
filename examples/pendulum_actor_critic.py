"""An actor and a critic that learn Pendulum-v1 inside dreams only, by the gradient through them (after Hafner et al. 2020).

Each round plays some real episodes (held random actions first, the actor with noise later), trains the world model on all of
them, and trains the actor by backpropagation through imagined rollouts of a few steps, from states anywhere in the data.
What lies beyond the horizon is the critic's guess: lambda returns. Reality is for collecting and for the score at the end.

    OMP_NUM_THREADS=1 python examples/pendulum_actor_critic.py --seed 0 --out runs/pendulum-actor-critic
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import worldmodel as wm
from worldmodel.dream import LatentState, imagine, lambda_returns, primed_states
from worldmodel.evaluation import Evaluation
from worldmodel.models import State

ENV, BATCH, HORIZON, DISCOUNT, LAMBDA = "Pendulum-v1", 128, 16, 0.98, 0.95
NOISE = 0.2  # standard deviation of what is added to the actor's actions in collection, where actions go from -1 to 1
TARGET_RATE = 0.02  # of the slow copy of the critic that looks beyond the horizon


def network(inputs: int, outputs: int, hidden: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, outputs))


class Actor(nn.Module):
    """Features -> action features in [-1, 1], with a gradient: what `imagine` wants."""

    features = "z"  # Pendulum's observation says everything; where it does not, "zh"

    def __init__(self, world: wm.WorldModel):
        super().__init__()
        self.network = network(world.mdnrnn.latent_size, world.action_features.size)
        self.squash = world.action_features.squash

    def forward(self, features: Tensor) -> Tensor:
        """Choose: features (..., F) -> action features (..., A)."""
        return self.squash(self.network(features))


class Player:
    """The actor as a policy for dreams and reality: features -> actions of the space."""

    features = Actor.features

    def __init__(self, actor: Actor, world: wm.WorldModel):
        self.actor, self.world = actor, world

    @torch.no_grad()
    def __call__(self, features: Tensor, noise: float | Tensor = 0.0) -> Tensor:
        """Choose without a gradient; ``noise`` is added to the action features."""
        return self.world.action_features.unflatten(self.actor(features) + noise)


class Explorer:
    """The actor with noise as a policy for `wm.collect`: observation -> action; its randomness is the episode's."""

    def __init__(self, player: Player, description: str):
        self.player, self.description = player, description

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode."""
        self.rng = rng

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Encode, choose, add noise."""
        noise = torch.as_tensor(NOISE * self.rng.standard_normal((1, 1)), dtype=torch.float32)
        return self.player(self.player.world.encode(observation[None]), noise)[0].numpy()


class Starts:
    """M's state at every step of every real episode; imagined rollouts start at random ones of these."""

    @torch.no_grad()
    def __init__(self, world: wm.WorldModel, stores: list[Path]):
        episodes = [episode for path in stores for episode in wm.EpisodeStore.open(path)]
        z = world.encode(np.stack([episode.observations for episode in episodes]))  # (N, L + 1, D): all are of one length
        action = world.action_features.flatten(np.stack([episode.actions for episode in episodes]))  # (N, L, A)
        *states, _ = primed_states(world.mdnrnn, z, action)
        self.z = z[:, :-1].transpose(0, 1).flatten(0, 1)  # (L * N, D)
        self.h, self.c = (torch.cat(part, dim=1) for part in zip(*states, strict=True))  # (layers, L * N, H)

    def draw(self, generator: torch.Generator) -> LatentState:
        """A batch of states, uniformly from all."""
        index = torch.randint(len(self.z), (BATCH,), generator=generator)
        lstm = State(self.h[:, index], self.c[:, index])
        return LatentState(self.z[index], lstm, torch.ones(BATCH, dtype=torch.bool))


class Learner:
    """Actor, critic and the critic's slow copy, with their optimisers."""

    def __init__(self, world: wm.WorldModel):
        self.actor = Actor(world)
        self.critic = network(world.mdnrnn.latent_size, 1)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.optimizers = [torch.optim.Adam(self.actor.parameters(), 1e-3), torch.optim.Adam(self.critic.parameters(), 1e-3)]

    def update(self, dreams: wm.Dreams, start: LatentState, generator: torch.Generator) -> float:
        """One update of both on one batch of imagined rollouts; returns their mean return."""
        dream = imagine(dreams, self.actor, HORIZON, generator=generator, start=start)
        reward = dream.reward / dreams.world.mdnrnn.reward_scale
        value = self.target(dream.features)[..., 0]
        returns = lambda_returns(reward, dream.continuation, value, discount=DISCOUNT, lambda_=LAMBDA)
        counts = dream.survival.detach()  # a step behind a likely end counts for little
        guess = self.critic(dream.features[:, :-1].detach())[..., 0]
        losses = (-(counts * returns).mean(), (counts * (guess - returns.detach()).square()).mean())
        for loss, optimizer in zip(losses, self.optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
            optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.lerp_(fast, TARGET_RATE)
        return returns.mean().item()


def run(out: Path, arguments: argparse.Namespace) -> tuple[Evaluation, list[float]]:
    """All rounds; the final score, and each round's mean return of the episodes that its own data gave."""
    torch.manual_seed(arguments.seed)  # the initial weights of actor and critic
    generator, stores, world, learner, collected = torch.Generator().manual_seed(arguments.seed), [], None, None, []
    for number in range(1, arguments.rounds + 1):
        policy = "repeat" if learner is None else Explorer(Player(learner.actor, world), f"actor of round {number - 1}")
        count = arguments.first_episodes if learner is None else arguments.episodes
        seed = arguments.seed + 1000 * number
        store = wm.collect(ENV, out=out / f"data-{number}", num_episodes=count, policy=policy, seed=seed)
        collected.append(round(float(np.mean([episode.rewards.sum() for episode in store])), 1))
        stores.append(store.path)
        config = wm.TrainingConfig(num_updates=arguments.world_updates, learning_rate=5e-3)
        world = wm.fit(
            stores,
            out=out / f"world-{number}",
            seed=seed,
            training_config=config,
            data_config=wm.DataConfig(window=32),
            initial=world,
            config=wm.MDNRNNConfig(hidden_size=64, num_components=3) if world is None else None,
        )
        learner = learner or Learner(world)
        dreams, starts = wm.Dreams(world, BATCH), Starts(world, stores)
        for _ in range(arguments.updates):
            mean = learner.update(dreams, starts.draw(generator), generator)
        print(f"round {number}: {count} episodes of mean return {collected[-1]:.0f}, then imagined returns of {mean:.2f}")
    save_file(learner.actor.state_dict(), out / "actor.safetensors")
    return wm.evaluate(
        Player(learner.actor, world),
        world,
        env=ENV,
        seed=seed,
        config=wm.EvaluationConfig(num_episodes=arguments.test_episodes),
    ), collected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="directory for data and world models, absent or empty")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--first-episodes", type=int, default=40, help="of held random actions")
    parser.add_argument("--episodes", type=int, default=20, help="of the actor, in each later round")
    parser.add_argument("--world-updates", type=int, default=500, help="of the world model, in each round")
    parser.add_argument("--updates", type=int, default=500, help="of actor and critic, in each round")
    parser.add_argument("--test-episodes", type=int, default=100)
    arguments, begin = parser.parse_args(), time.monotonic()
    torch.set_num_threads(1)
    result, collected = run(arguments.out, arguments)
    print(result)
    scores = {
        name: [round(getattr(result, name).mean, 1), round(getattr(result, name).standard_error, 1)]
        for name in ("real", "dream", "random")
    }
    seconds = {"wall": round(time.monotonic() - begin), "processor": round(time.process_time())}
    print(json.dumps({"env": ENV, "seed": arguments.seed, **scores, "collected": collected, "seconds": seconds}))


if __name__ == "__main__":
    main()
