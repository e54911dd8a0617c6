"""Dreams as Gymnasium environments: `DreamVectorEnv` steps a batch, `DreamEnv` a single dream.

Both replace the real environment in an agent's training code. Make them directly, or with
``gym.make("worldmodel:Dream-v0", world="runs/cartpole")`` and ``gym.make_vec``. An episode depends
only on its seed, its number and its actions (see `worldmodel.rng.streams`), in any batch and any
autoreset mode. Only the rounding of matrix products depends on the batch size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from worldmodel.dream import Dreams, EpisodeSeeds, LatentState, Rows, rows_to_reset
from worldmodel.envs.autoreset import autoreset_mode as read_mode
from worldmodel.envs.options import DreamOptions, check_decoder
from worldmodel.envs.rendering import ObservationRenderer
from worldmodel.envs.settings import ChangeableDreams, DreamSettings, split_temperature
from worldmodel.models import State, WorldModel, feature_space, latent_features, open_world
from worldmodel.spaces import Value, as_tuples, map_leaves, stack_values, take_row, to_numpy


class DreamVectorEnv(ChangeableDreams, VectorEnv[Value, Value, Any]):
    """B dreams as a Gymnasium vector environment.

    Args:
        world: a world model, or its path.
        num_envs: number B of dreams.
        autoreset_mode: NEXT_STEP, SAME_STEP or DISABLED; a member, its value ("NextStep") or its
            name ("NEXT_STEP").
        tensors: return observations, rewards, flags and infos as tensors on the world's device, and
            accept actions as such. Only ``check_actions`` then copies to the host.
        check_actions: validate every action, and raise if a finished dream is stepped in DISABLED
            mode. This synchronises the GPU at each step. False leaves invalid actions undetected.
        device: device of a world model given as a path; "auto": an NVIDIA GPU if there is one, else the CPU.
        render_mode: "rgb_array" or None.
        **options: fields of `DreamOptions`.

    Raises:
        ValueError: if an argument is out of range, or the world model lacks a required head or
            decoder.
        TypeError: if an option is unknown.
    """

    def __init__(
        self,
        world: WorldModel | str | Path,
        num_envs: int = 1,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        tensors: bool = False,
        check_actions: bool = True,
        device: str | torch.device | None = None,
        render_mode: str | None = None,
        **options: Any,
    ):
        self.world = open_world(world, device)
        chosen = DreamOptions(**options)
        self.num_envs, self.tensors, self._check_actions = num_envs, tensors, check_actions
        self.autoreset_mode = read_mode(autoreset_mode)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 30, "autoreset_mode": self.autoreset_mode}
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: expected 'rgb_array' or None, got {render_mode!r}")
        self.render_mode = render_mode
        chosen.check_world(self.world)
        if render_mode is not None:
            check_decoder(self.world)
        self._dreams = Dreams(
            self.world,
            num_envs,
            termination=chosen.termination,
            reward=chosen.reward,
            reward_mode=chosen.reward_mode,
            member_per=chosen.member_per,
            penalty=chosen.penalty,
        )
        self._kind = chosen.observation
        self._bank = chosen.start_bank(self.world)
        self.single_action_space = self.world.action_space
        self.single_observation_space = (
            self.world.observation_space if self._kind == "decoded" else feature_space(self.world, self._kind)
        )
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._seeds = EpisodeSeeds(num_envs, self.world.device)
        self._state: LatentState | None = None
        self._steps = torch.zeros(num_envs, dtype=torch.int64, device=self.world.device)
        self._over = torch.zeros(num_envs, dtype=torch.bool, device=self.world.device)
        self._renderer: ObservationRenderer | None = None
        self.settings = DreamSettings(chosen, self._dreams)

    @torch.no_grad()
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Value, dict[str, Any]]:
        """Start new episodes in all dreams, or in those of ``options["reset_mask"]`` (B,) bool.

        Args:
            seed: an int s gives dream i the seed s + i; a list gives each dream a seed or None. A
                dream without a new seed starts the next episode of its current one; at the first
                reset, a random seed is sampled for it.
            options: None, or a mapping with ``reset_mask`` and ``temperature``, which is that of the dreams that are reset from
                now on, a number or a range; it is not modified.

        Returns:
            Observations of all dreams, and infos.

        Raises:
            gymnasium.error.ResetNeeded: if the first reset has a mask of some dreams only.
            ValueError: if the number of seeds or the mask does not fit B, or an option is unknown.
        """
        temperature, others = split_temperature(options)
        rows = rows_to_reset(others, self.num_envs, self.world.device)
        if self._state is None and not bool(rows.all()):
            raise gym.error.ResetNeeded("reset: expected a reset of all dreams first, got one of some (reset_mask)")
        self._seeds.reseed(seed, rows, self.np_random)
        super().reset(seed=seed if isinstance(seed, int) else None)
        if self._state is None:
            z = self.world.start_mean.new_zeros(self.num_envs, self.world.vision.latent_size)
            self._state = LatentState(z, self.world.mdnrnn.initial_state(self.num_envs), torch.ones_like(rows))
        if temperature is not None:
            self.settings.set_temperature(temperature, rows)
        self._begin(rows)
        return self._observe(), self._infos()

    @torch.no_grad()
    def step(self, actions: Value) -> tuple[Value, Any, Any, Any, dict[str, Any]]:
        """Advance every dream by one step. Ended dreams reset according to the autoreset mode.

        Args:
            actions: a batch of B values of the action space, as arrays or tensors.

        Returns:
            Observations, rewards (B,), terminations (B,), truncations (B,) and infos.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset, or for a finished dream in DISABLED
                mode.
            ValueError: if the actions have a wrong shape, or an action lies outside the space. The
                message names the index and the value.
            TypeError: if a discrete action is floating-point.
        """
        actions = as_tuples(self.world.action_space, actions)
        before, actions = self._check_step(actions)
        finished = self._over
        running = ~finished
        state = LatentState(before.z, before.lstm, running)
        action = self.world.action_features.flatten(actions)
        streams = self._seeds.streams
        self._state, reward, terminated = self._dreams.step_features(state, action, generator=streams, actions=actions)
        self._steps = self._steps + running
        truncated = running & ~terminated & (self._steps >= self.settings.horizon)
        self._over = terminated | truncated
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            infos = self._final_infos(self._over)
            self._begin(self._over)
        elif self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._begin(finished)
        else:
            self._over = self._over | finished
        infos |= self._infos()
        if self.tensors:
            return self._observe(), reward.float(), terminated, truncated, infos
        flags = (terminated.cpu().numpy(), truncated.cpu().numpy())
        return self._observe(), reward.double().cpu().numpy(), *flags, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Render the decoded dreams: one (H, W, 3) uint8 image each; None without a render mode.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if self.render_mode is None:
            gym.logger.warn('render: expected render_mode="rgb_array", got None; pass it when making the environment')
            return None
        if self._state is None:
            raise gym.error.ResetNeeded("render: expected reset() first")
        if self._renderer is None:
            self._renderer = ObservationRenderer(self.world)
        decoded = to_numpy(self.world.decode(self._state.z))
        return tuple(self._renderer(map_leaves(lambda leaf, k=k: leaf[k], decoded)) for k in range(self.num_envs))

    def compute_reward(self, achieved_goal: Value, desired_goal: Value, info: Any) -> Any:
        """Return the rewards (N,) of a batch of goals, by the ``compute_reward`` of the reward function of the user.

        Hindsight Experience Replay calls it with goals that it exchanged, as for a goal environment of Gymnasium-Robotics.

        Args:
            achieved_goal: (N, ...) goals that were achieved.
            desired_goal: (N, ...) goals.
            info: passed on.

        Raises:
            AttributeError: if the reward function has no method of this name; M's reward head knows no goals.
        """
        reward = None if self._dreams.reward is None else self._dreams.reward.reward
        compute = getattr(reward, "compute_reward", None)
        if not callable(compute):
            raise AttributeError(
                "compute_reward: expected a reward function with a method compute_reward(achieved_goal, desired_goal, info), "
                f"got {reward!r}; pass reward=... to the dream"
            )
        return compute(achieved_goal, desired_goal, info)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the renderer."""
        if self._renderer is not None:
            self._renderer.close()

    def _check_step(self, actions: Value) -> tuple[LatentState, Value]:
        """Validate a step and its actions; return the current state, and the actions with rounding errors clipped."""
        if self._state is None:
            raise gym.error.ResetNeeded("step: expected reset() first")
        if self._check_actions:
            actions = self.world.action_features.check(actions, self.num_envs, name="actions")
            if self.autoreset_mode is AutoresetMode.DISABLED and bool(self._over.any()):
                raise gym.error.ResetNeeded(
                    f"step: expected no finished dream, got {self._over.nonzero().flatten().tolist()}; reset them with "
                    'options={"reset_mask": terminations | truncations}'
                )
        return self._state, actions

    def _begin(self, mask: Tensor) -> None:
        """Start the next episode in the rows of ``mask`` (B,) bool."""
        rows = Rows(mask)
        if rows.count == 0:
            return
        assert self._state is not None
        streams, old = self._seeds.begin(rows), self._state
        z, lstm = self._bank.draw(streams, rows.count)
        z = rows.put(old.z, self._dreams.bound(z))
        self._state = LatentState(z, State(*(rows.put(*parts, dim=1) for parts in zip(old.lstm, lstm, strict=True))), old.alive)
        self.settings.begin(rows, streams)
        self._steps = torch.where(mask, 0, self._steps)
        self._over = self._over & ~mask
        self._seeds.adopt(rows, streams)

    def _observe(self) -> Value:
        """Return the observations in new memory, so that the caller may keep or modify them."""
        assert self._state is not None
        if self._kind == "decoded":
            observations = self.world.decode(self._state.z)
        else:
            observations = latent_features(self._state.z, self._state.lstm, self._kind).float()  # dtype of the space
        return observations if self.tensors else to_numpy(observations)

    def _infos(self) -> dict[str, Any]:
        """Return the temperature of each dream if each has its own."""
        infos = self.settings.infos()
        return dict(infos) if self.tensors else {name: value.cpu().numpy() for name, value in infos.items()}

    def _final_infos(self, ended: Tensor) -> dict[str, Any]:
        """Return ``final_obs`` and ``final_info``, with masks, of the dreams that ended.

        ``final_obs`` is a batch if ``tensors``, otherwise an array of objects as in Gymnasium.
        """
        if self.tensors:
            infos = {"final_obs": self._observe(), "final_info": self._infos()}
            return infos | {f"_{name}": ended.clone() for name in infos}
        mask = ended.cpu().numpy()
        if not mask.any():
            return {}
        observations, final = self._observe(), np.full(self.num_envs, None, dtype=object)
        for k in np.flatnonzero(mask):
            final[k] = map_leaves(lambda leaf, k=k: leaf[k].copy(), observations)
        final_info = {name: (value & mask if name.startswith("_") else value) for name, value in self._infos().items()}
        return {"final_obs": final, "_final_obs": mask, "final_info": final_info, "_final_info": mask.copy()}


class DreamEnv(ChangeableDreams, gym.Env[Value, Value]):
    """One dream as a Gymnasium environment: the same episodes as row 0 of a `DreamVectorEnv`.

    Args:
        world: a world model, or its path.
        device: device of a world model given as a path; "auto": an NVIDIA GPU if there is one, else the CPU.
        render_mode: "rgb_array" or None.
        **options: fields of `DreamOptions`.

    Raises:
        ValueError: if an argument is out of range, or the world model lacks a required head or
            decoder.
        TypeError: if an option is unknown.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 (Gymnasium declares it so)

    def __init__(
        self,
        world: WorldModel | str | Path,
        *,
        device: str | torch.device | None = None,
        render_mode: str | None = None,
        **options: Any,
    ):
        mode = AutoresetMode.DISABLED
        self._one = DreamVectorEnv(world, 1, autoreset_mode=mode, device=device, render_mode=render_mode, **options)
        self.world, self.render_mode = self._one.world, render_mode
        self.observation_space, self.action_space = self._one.single_observation_space, self._one.single_action_space
        self._seeded = False
        self.settings = self._one.settings

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Value, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: starts the first episode of this seed. None starts the next episode of the current
                seed; at the first reset, a random seed is sampled.
            options: None, or a mapping with ``temperature``, a number or a range, from now on.

        Raises:
            ValueError: if there are other options, or the temperature is out of range.
        """
        super().reset(seed=seed)
        temperature, others = split_temperature(options)
        if others:
            raise ValueError(f"options: expected 'temperature' or nothing, got {sorted(others)}")
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(2**31))
        self._seeded = True
        given = None if temperature is None else {"temperature": temperature}
        observations, infos = self._one.reset(seed=[seed], options=given)
        return take_row(self.observation_space, observations, 0), _single_info(infos)

    def step(self, action: Value) -> tuple[Value, float, bool, bool, dict[str, Any]]:
        """Advance the dream by one step.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset or after the end of an episode.
            ValueError: if the action lies outside the space.
            TypeError: if a discrete action is floating-point.
        """
        if bool(self._one._over.any()):
            raise gym.error.ResetNeeded("step: expected a running dream, got a finished one; start an episode with reset()")
        observations, rewards, terminations, truncations, infos = self._one.step(
            stack_values([as_tuples(self.action_space, action)])
        )
        return (
            take_row(self.observation_space, observations, 0),
            float(rewards[0]),
            bool(terminations[0]),
            bool(truncations[0]),
            _single_info(infos),
        )

    def render(self) -> np.ndarray | None:
        """Render the decoded dream: (height, width, 3) uint8; None without a render mode."""
        frames = self._one.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Close the renderer."""
        self._one.close()


def _single_info(infos: dict[str, Any]) -> dict[str, Any]:
    """Return the infos of row 0, without the masks."""
    return {name: value[0].item() for name, value in infos.items() if not name.startswith("_")}
