# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A first dream
#
# A world model learns CartPole from random play. Then it dreams: it continues real starts on its
# own, at several temperatures. This notebook takes 19 seconds on one core
# (AMD EPYC).
# (`jupytext --to ipynb first_dream.py` makes a notebook file of it; it needs the extras `plots` and
# `docs`.)

# %%
import matplotlib.pyplot as plt
import torch

import worldmodel as wm

# %% [markdown]
# ## 1. Episodes of random play

# %%
store = wm.collect("CartPole-v1", out="data/notebook-cartpole", num_episodes=500, seed=0)
print(len(store), "episodes,", store.num_steps, "steps")

# %% [markdown]
# ## 2. A world model
#
# V standardises the observation: z has four numbers, position, speed, angle and angular speed. M is
# a small LSTM that predicts a distribution over the next z, the reward and the termination.

# %%
world = wm.fit(
    "data/notebook-cartpole",
    out="runs/notebook-cartpole",
    config=wm.MDNRNNConfig(hidden_size=64),
    training_config=wm.TrainingConfig(num_updates=600, learning_rate=1e-2),
    seed=0,
)
print("M         ", world.provenance["training"]["best_metrics"]["nll_per_dim"], "nats per dimension, held out")
print("baselines ", world.provenance["baselines"])

# %% [markdown]
# ```text
# M          -6.389060020446777 nats per dimension, held out
# baselines  {'repeat_last': -0.09211406369039346, 'linear_gaussian': -4.085434797366879}
# ```
#
# Lower is better. *Repeat-last* predicts no change; *linear Gaussian* is good here, because CartPole
# is nearly linear, and M is better still. An M that is not better than both needs more data or more updates.
#
# ## 3. Dreams at four temperatures
#
# All dreams start from real first observations and get the same random actions. At temperature 0 M
# takes its most likely prediction; at 1 it samples as it has learned; above 1 the noise is larger.


# %%
def coin(features):
    """Return a random action for each dream."""
    return torch.randint(2, (len(features),), generator=coins)


temperatures = (0.0, 0.5, 1.0, 1.5)
rollouts = {}
for temperature in temperatures:
    coins = torch.Generator().manual_seed(1)
    dreams = wm.Dreams(world, num_dreams=500, temperature=temperature)
    rollouts[temperature] = dreams.rollout(coin, horizon=60, generator=dreams.generator(seed=0))
    lengths = rollouts[temperature].lengths.float()
    print(f"temperature {temperature:3.1f}: {lengths.mean():5.1f} steps per dream")
print(f"real episodes  : {store.lengths.mean():5.1f} steps")

# %% [markdown]
# ```text
# temperature 0.0:  21.2 steps per dream
# temperature 0.5:  21.3 steps per dream
# temperature 1.0:  21.3 steps per dream
# temperature 1.5:  21.3 steps per dream
# real episodes  :  22.9 steps
# ```
#
# Dreams of random play last about as long as real episodes of random play. (A dream takes at most
# 60 steps here, a few real episodes take more.) In CartPole the actions decide more than the noise,
# so temperature changes little; in [Doom](../paper.md#doom) it changes a lot.
#
# ## 4. A picture
#
# The pole's angle in five dreams of each temperature. A line ends where the dream terminates; CartPole
# ends an episode at 0.21 radians (dashed).

# %%
figure, panels = plt.subplots(1, len(temperatures), figsize=(11, 2.6), sharey=True, layout="constrained")
for panel, (temperature, rollout) in zip(panels, rollouts.items(), strict=True):
    for dream in range(5):
        angle = world.decode(rollout.z[dream])[: rollout.lengths[dream] + 1, 2]
        panel.plot(angle.numpy())
    panel.axhline(0.21, color="grey", linestyle="--", linewidth=0.8)
    panel.axhline(-0.21, color="grey", linestyle="--", linewidth=0.8)
    panel.set(title=f"temperature {temperature}", xlabel="step")
panels[0].set_ylabel("angle in radians")
figure.savefig("first_dream.png", dpi=110)

# %% [markdown]
# ![The angle of the pole in dreams at four temperatures](../images/first_dream.png)
#
# Next: train an agent in these dreams ([Quickstart](../tutorials/quickstart.md)), and find out
# [how far to trust them](trust.py).
