"""Train PPO for CartPole in dreams only, in one file, and score it in the real environment.

    python examples/ppo_dream.py                            # fits a world model to random play
    python examples/ppo_dream.py --model runs/cartpole      # uses an existing world model

All tensors stay on the world's device; the loop copies nothing to the host. The dreams use the
autoreset mode SAME_STEP: every row of a batch is a step of an episode, and ``final_obs`` gives the
value after a truncation. In NEXT_STEP mode, Gymnasium's default, the step after each end only
resets. Its action and reward have no meaning, so every loss would need a mask.

PPO: Schulman et al. 2017; details as in Huang et al. 2022, "The 37 Implementation Details of
Proximal Policy Optimization".
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import worldmodel as wm

ENV, EPISODES = "CartPole-v1", 1000  # episodes of random play
MODEL = wm.MDNRNNConfig(hidden_size=64)
TRAINING = wm.TrainingConfig(num_updates=800, learning_rate=1e-2, clip_norm=10.0)  # training of M
OBSERVATION, TEMPERATURE, HORIZON = "zh", (0.8, 1.2), 500
NUM_DREAMS, ROLLOUT, TOTAL_STEPS = 256, 32, 2_400_000  # dreams in parallel; steps of each per update; steps in total
EPOCHS, MINIBATCHES, LEARNING_RATE, CLIP_NORM = 4, 4, 2e-3, 0.5
GAMMA, GAE_LAMBDA, CLIP, ENTROPY, VALUE = 0.99, 0.95, 0.2, 0.005, 0.5


class Agent(nn.Module):
    """Policy for `worldmodel.evaluate`: features (B, F) -> the most likely action (B,)."""

    features = OBSERVATION  # kind of features

    def __init__(self, size: int, num_actions: int):
        super().__init__()
        self.actor, self.critic = mlp(size, num_actions, 0.01), mlp(size, 1, 1.0)

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        return self.actor(features).argmax(dim=-1)


def mlp(size: int, out: int, last_gain: float) -> nn.Sequential:
    layers = [nn.Linear(size, 64), nn.Linear(64, 64), nn.Linear(64, out)]
    for layer, gain in zip(layers, (2**0.5, 2**0.5, last_gain), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


@torch.no_grad()
def collect(agent: Agent, dreams: wm.DreamVectorEnv, observation: Tensor, generator: torch.Generator):
    """Step T times; return T * B samples for the update, the next observation and the ends."""
    rows = []
    for _ in range(ROLLOUT):
        log_probs = agent.actor(observation).log_softmax(dim=-1)  # (B, A)
        action = (log_probs - torch.empty_like(log_probs).exponential_(generator=generator).log()).argmax(dim=-1)
        after, reward, terminated, truncated, infos = dreams.step(action)
        next_value = agent.critic(infos["final_obs"])[:, 0]  # final_obs: next observation of every row, before any reset
        target = reward + GAMMA * torch.where(terminated, 0.0, next_value)  # truncation does not end the value
        log_prob, value = log_probs.gather(1, action[:, None])[:, 0], agent.critic(observation)[:, 0]
        rows.append((observation, action, log_prob, value, target, terminated | truncated))
        observation = after
    *kept, values, targets, ends = (torch.stack(part) for part in zip(*rows, strict=True))  # (T, B, ...)
    advantages, advantage = torch.zeros_like(values), torch.zeros_like(values[0])
    for t in reversed(range(ROLLOUT)):
        advantage = targets[t] - values[t] + GAMMA * GAE_LAMBDA * torch.where(ends[t], 0.0, advantage)
        advantages[t] = advantage
    return [part.flatten(0, 1) for part in (*kept, advantages, advantages + values)], observation, ends


def loss_of(
    agent: Agent, observation: Tensor, action: Tensor, old_log_prob: Tensor, advantage: Tensor, returns: Tensor
) -> Tensor:
    log_probs = agent.actor(observation).log_softmax(dim=-1)
    ratio = (log_probs.gather(1, action[:, None])[:, 0] - old_log_prob).exp()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1).mean()
    return VALUE * (agent.critic(observation)[:, 0] - returns).square().mean() - gain - ENTROPY * entropy


def train(world: wm.WorldModel, *, seed: int) -> tuple[Agent, list[Tensor]]:
    """Train in dreams only; return the agent and the steps per episode end at each update."""
    dreams = wm.DreamVectorEnv(
        world, NUM_DREAMS, autoreset_mode="SameStep", tensors=True, check_actions=False,
        observation=OBSERVATION, temperature=TEMPERATURE, horizon=HORIZON,
    )  # fmt: skip
    torch.manual_seed(seed)  # initial weights
    agent = Agent(dreams.single_observation_space.shape[0], dreams.single_action_space.n).to(world.device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE, eps=1e-5)
    updates = TOTAL_STEPS // (NUM_DREAMS * ROLLOUT)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, updates)
    generator, (observation, _) = torch.Generator(world.device).manual_seed(seed), dreams.reset(seed=seed)
    lengths = []
    for _ in tqdm(range(updates), desc="PPO in dreams", unit="update"):
        batch, observation, ends = collect(agent, dreams, observation, generator)
        lengths.append(ends.numel() / ends.sum())
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(batch[0]), generator=generator, device=world.device).chunk(MINIBATCHES):
                optimizer.zero_grad()
                loss_of(agent, *(part[rows] for part in batch)).backward()
                nn.utils.clip_grad_norm_(agent.parameters(), CLIP_NORM)
                optimizer.step()
        schedule.step()
    return agent, lengths


def make_world(*, seed: int) -> wm.WorldModel:
    with tempfile.TemporaryDirectory() as out:
        wm.collect(ENV, out=f"{out}/data", num_episodes=EPISODES, policy="random", seed=seed)
        return wm.fit(f"{out}/data", out=f"{out}/world", config=MODEL, training_config=TRAINING, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", help="a world model; without one, it is made from random play")
    parser.add_argument("--out", type=Path, help="a file to which the scores are added as a line of JSON")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default: 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    began = time.monotonic()
    world = wm.WorldModel.from_pretrained(arguments.model) if arguments.model else make_world(seed=arguments.seed)
    agent, lengths = train(world, seed=arguments.seed)
    scores = wm.evaluate(agent, world, env=ENV, seed=arguments.seed, config=wm.EvaluationConfig(num_episodes=100))
    seconds = time.monotonic() - began
    steps = " ".join(f"{length:.0f}" for length in torch.stack(lengths)[:: max(1, len(lengths) // 10)].tolist())
    print(f"dreamed steps for each end of a dream while learning: {steps}\n{scores}\n{seconds:.0f} s in all")
    if arguments.out:
        line = {name: getattr(scores, name).to_json() for name in ("real", "dream", "random")}
        with arguments.out.open("a") as file:
            file.write(json.dumps({"seed": arguments.seed, "seconds": round(seconds, 1), **line}) + "\n")


if __name__ == "__main__":
    main()
