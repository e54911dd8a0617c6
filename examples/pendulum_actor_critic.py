"""Train actor and critic for Pendulum-v1 by gradients through dreams (after Hafner et al. 2020).

Each round collects real episodes (first with held random actions, later with the noisy actor),
trains the world model on all of them, and trains the actor by backpropagation through imagined
rollouts of a few steps that start at random states of the data. The critic estimates the value
beyond the horizon (lambda returns). The real environment is used only for collecting and for the
final score.

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
NOISE = 0.2  # standard deviation of the noise added to the actor's actions in [-1, 1] during collection
TARGET_RATE = 0.02  # update rate of the target critic, a slow copy that gives the values of lambda returns


def network(inputs: int, outputs: int, hidden: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(), nn.Linear(hidden, outputs))


class Actor(nn.Module):
    """Differentiable policy for `imagine`: features -> action features in [-1, 1]."""

    features = "z"  # enough for Pendulum, which is fully observed; otherwise use "zh"

    def __init__(self, world: wm.WorldModel):
        super().__init__()
        self.network = network(world.mdnrnn.latent_size, world.action_features.size)
        self.squash = world.action_features.squash

    def forward(self, features: Tensor) -> Tensor:
        """Return the action features (..., A) for features (..., F)."""
        return self.squash(self.network(features))


class Player:
    """Policy for dreams and reality: features -> actions of the space."""

    features = Actor.features

    def __init__(self, actor: Actor, world: wm.WorldModel):
        self.actor, self.world = actor, world

    @torch.no_grad()
    def __call__(self, features: Tensor, noise: float | Tensor = 0.0) -> Tensor:
        """Return the actions without a gradient; ``noise`` is added to the action features."""
        return self.world.action_features.unflatten(self.actor(features) + noise)


class Explorer:
    """Noisy actor as a policy for `wm.collect`: observation -> action."""

    def __init__(self, player: Player, description: str):
        self.player, self.description = player, description

    def reset(self, rng: np.random.Generator) -> None:
        """Start an episode."""
        self.rng = rng

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Return the action for one observation, with noise."""
        noise = torch.as_tensor(NOISE * self.rng.standard_normal((1, 1)), dtype=torch.float32)
        return self.player(self.player.world.encode(observation[None]), noise)[0].numpy()


class Starts:
    """States of M at every step of every real episode, from which imagined rollouts start."""

    @torch.no_grad()
    def __init__(self, world: wm.WorldModel, stores: list[Path]):
        episodes = [episode for path in stores for episode in wm.EpisodeStore.open(path)]
        z = world.encode(np.stack([episode.observations for episode in episodes]))  # (N, L + 1, D); all lengths are equal
        action = world.action_features.flatten(np.stack([episode.actions for episode in episodes]))  # (N, L, A)
        *states, _ = primed_states(world.mdnrnn, z, action)
        self.z = z[:, :-1].transpose(0, 1).flatten(0, 1)  # (L * N, D)
        self.h, self.c = (torch.cat(part, dim=1) for part in zip(*states, strict=True))  # (layers, L * N, H)

    def draw(self, generator: torch.Generator) -> LatentState:
        """Sample a batch of states uniformly."""
        index = torch.randint(len(self.z), (BATCH,), generator=generator)
        lstm = State(self.h[:, index], self.c[:, index])
        return LatentState(self.z[index], lstm, torch.ones(BATCH, dtype=torch.bool))


class Learner:
    """Actor, critic and target critic, with their optimisers."""

    def __init__(self, world: wm.WorldModel):
        self.actor = Actor(world)
        self.critic = network(world.mdnrnn.latent_size, 1)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.optimizers = [torch.optim.Adam(self.actor.parameters(), 1e-3), torch.optim.Adam(self.critic.parameters(), 1e-3)]

    def update(self, dreams: wm.Dreams, start: LatentState, generator: torch.Generator) -> float:
        """Update actor and critic on a batch of imagined rollouts; return its mean return."""
        dream = imagine(dreams, self.actor, HORIZON, generator=generator, start=start)
        reward = dream.reward / dreams.world.mdnrnn.reward_scale
        value = self.target(dream.features)[..., 0]
        returns = lambda_returns(reward, dream.continuation, value, discount=DISCOUNT, lambda_=LAMBDA)
        counts = dream.survival.detach()  # weight: probability that the dream has not terminated
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
    """Run all rounds; return the final scores and the mean real return of each round."""
    torch.manual_seed(arguments.seed)  # initial weights of actor and critic
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
