"""Where dreams begin: the first frames of real episodes, or the ends of real prefixes, which have primed M's state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worldmodel.mdnrnn import State
from worldmodel.sequences import EpisodeCollection, encode_episodes
from worldmodel.store import EpisodeStore
from worldmodel.streams import Streams, box_muller
from worldmodel.vision import draw_latent
from worldmodel.world import WorldModel

MAX_PREFIXES = 2_000  # primed from so many episodes at most, spread evenly over the data


@dataclass(frozen=True)
class StartBank:
    """N states from which dreams may start.

    Args:
        mean: (N, D) mean of V's posterior of the frame at which the dream begins.
        log_variance: (N, D) its log-variance.
        lstm: M's state, (num_layers, N, H) each, having consumed everything before that frame.
    """

    mean: Tensor
    log_variance: Tensor
    lstm: State

    @classmethod
    def of(cls, world: WorldModel) -> StartBank:
        """The first frames that the world model keeps; M's state is zero, as every episode begins."""
        return cls(world.start_mean, world.start_log_variance, world.mdnrnn.initial_state(len(world.start_mean)))

    @classmethod
    @torch.no_grad()
    def after_prefixes(cls, world: WorldModel, data: str | Path, length: int) -> StartBank:
        """Prime M with the first ``length`` steps of real episodes; the dream begins at the frame that follows.

        The draws of z that prime M are always the same.

        Args:
            world: V and M.
            data: path of a store of the world model's environment.
            length: steps of the prefix, at least 1.

        Raises:
            ValueError: if ``length`` is below 1, no episode is that long, or the data are of another environment.
        """
        episodes = EpisodeCollection([EpisodeStore.open(data)])
        world.check_spaces(episodes.observation_space, episodes.action_space, source=str(data))
        long_enough = [index for index, steps in enumerate(episodes.lengths) if steps > length]
        if length < 1 or not long_enough:
            raise ValueError(
                f"prefix_length: expected at least 1 and episodes of {data} that go on after it, got {length} "
                f"and a longest episode of {episodes.lengths.max()} steps"
            )
        count = min(len(long_enough), MAX_PREFIXES)
        chosen = [long_enough[number * len(long_enough) // count] for number in range(count)]
        steps = encode_episodes([episodes.read(i, 0, length) for i in chosen], world.vision, world.action_features)
        mean, log_variance = (part.reshape(count, length + 1, -1) for part in (steps.mean, steps.log_variance))
        z = draw_latent(mean, log_variance, generator=torch.Generator(world.device).manual_seed(0))
        action = steps.action.reshape(count, length, -1)
        lstm = world.mdnrnn.initial_state(count)
        for t in range(length):
            lstm = world.mdnrnn.advance(z[:, t], action[:, t], lstm)
        return cls(mean[:, -1], log_variance[:, -1], lstm)

    def draw(self, streams: Streams, batch_size: int) -> tuple[Tensor, State]:
        """Draw a start for each of B rows: z (B, D) and M's state."""
        size = self.mean.shape[1]
        uniform = streams.uniform_(self.mean.new_empty(batch_size, 1 + size + size % 2))  # one draw: each has a fixed cost
        index = (uniform[:, 0] * len(self.mean)).long()  # (B,); uniform < 1, so never N
        noise = box_muller(uniform[:, 1:])[:, :size]  # (B, D)
        z = self.mean[index] + (0.5 * self.log_variance[index]).exp() * noise
        return z, State(self.lstm.h[:, index], self.lstm.c[:, index])
