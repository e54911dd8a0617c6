"""A small vector environment that keeps all contracts, or has one chosen fault."""

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space


class WalkVectorEnv(VectorEnv):
    """Rows walk on a line in steps of +-0.2 plus noise.

    An episode terminates beyond +-1 and is truncated after ``limit`` steps. Observation: (position,
    steps of the episode). Reward: 1 minus the distance from 0. Info: this distance.

    Args:
        mode: any of the three autoreset modes.
        fault: name of the fault, see the calls of `broken`; "" has none.
        num_envs: number of rows.
        limit: maximum number of steps per episode.
        noise: standard deviation of the noise of a step.
        spread: starts are uniform in [-spread, spread].
        tensors: accept and return torch tensors.
    """

    def __init__(self, mode, fault="", *, num_envs=3, limit=12, noise=0.05, spread=0.2, tensors=False):
        self.mode, self.fault, self.num_envs = mode, fault, num_envs
        self.noise, self.spread, self.tensors = noise, spread, tensors
        self.limit = limit + (self.broken("longer in SAME_STEP") and mode is AutoresetMode.SAME_STEP)
        self.metadata = {} if self.broken("no mode") else {"autoreset_mode": mode}
        if self.broken("mode as a string"):
            self.metadata["autoreset_mode"] = mode.value
        self.autoreset_mode = None if self.broken("attribute without mode") else mode
        self.single_observation_space = spaces.Box(np.float32([-2, 0]), np.float32([2, 50]))
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs + self.broken("batched for one row more"))
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.position, self.steps = np.zeros(num_envs), np.zeros(num_envs, dtype=int)
        self.ended = np.zeros(num_envs, dtype=bool)
        self.generators = [np.random.default_rng() for _ in range(num_envs)]
        self.shared = np.random.default_rng()
        self.buffer, self.final_buffer = (np.zeros((num_envs, 2), dtype=np.float32) for _ in range(2))
        self.kept_actions, self.returned = None, self.buffer.copy()
        self.closings = 0

    def broken(self, *faults):
        return self.fault in faults

    def reset(self, *, seed=None, options=None):
        mask = self._mask(options)
        if seed is not None and not self.broken("seed not read"):
            self._seed(seed, mask)
        if not self.broken("reset keeps ends"):
            self.ended[mask] = False
        if self.broken("mask resets all"):
            mask = np.ones_like(mask)
        if not (self.broken("mask resets no rows") and not mask.all()):
            self._start(mask)
        self.kept_actions = None if mask.all() else self.kept_actions
        observation = self._observe()
        if self.broken("unmasked rows not copied"):
            observation[~mask] = self.returned[~mask]
        self.returned = observation
        return self._native(observation), {}

    def step(self, actions):
        if self.broken("raises") and self.steps[0] == 3:
            raise ArithmeticError("the toy broke")
        if self.mode is AutoresetMode.DISABLED and self.ended.any() and not self.broken("steps ended rows"):
            raise RuntimeError("step: expected a reset of what ended first")
        pending = self.ended & (self.mode is AutoresetMode.NEXT_STEP)
        pushes = self._pushes(actions)
        self._move(pushes, ~pending)
        if not self.broken("no reset at all"):
            self._start(pending)
        if self.broken("action at reset"):
            self.position[pending] += pushes[pending]
        distance = np.abs(self.position)
        rewards = np.where(pending & (not self.broken("reward at reset")), 0.0, 1 - distance)
        terminated = (distance > 1) & ~pending
        truncated = (self.steps >= self.limit) & ~terminated & ~pending
        self.ended = terminated | truncated
        infos = {"distance": distance, "_distance": np.ones(self.num_envs, dtype=bool)}
        if self.mode is AutoresetMode.SAME_STEP and self.ended.any():
            infos |= self._restart_with_finals()
        if self.broken("resets without a call"):
            self._start(self.ended)
            self.ended = np.zeros_like(self.ended)
        if self.broken("flag at reset"):
            truncated = truncated | pending
        self.returned = self._observe()
        return self._native(self.returned), *self._with_faults(rewards, terminated, truncated, infos)

    def close(self):
        self.closings += 1
        if self.broken("closes once") and self.closings > 1:
            raise RuntimeError("close: closed already")

    def _mask(self, options):
        if options is None or "reset_mask" not in options:
            return np.ones(self.num_envs, dtype=bool)
        mask = np.asarray(options.pop("reset_mask"))
        if self.broken("options changed"):
            options["seen"] = True
        if self.broken("mask not checked"):
            return mask.astype(bool)[: self.num_envs]
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise ValueError(f"reset_mask: expected bool of shape ({self.num_envs},), got {mask.dtype} of shape {mask.shape}")
        return mask

    def _seed(self, seed, mask):
        rows = range(self.num_envs)
        if isinstance(seed, int):
            seed = [seed + row * (not self.broken("int seeds all rows alike")) for row in rows]
        elif self.broken("no list of seeds"):
            raise TypeError(f"seed: expected an int, got {seed}")
        if self.broken("first seed for all rows"):
            seed = [seed[0]] * self.num_envs
        if self.broken("seeds ignored"):
            seed = [0] * self.num_envs
        if self.broken("mask without seeds") and not mask.all():
            return
        for row in np.flatnonzero(mask):
            self.generators[row] = np.random.default_rng(seed[row] + row * self.broken("row in the seed"))
        self.shared = np.random.default_rng(seed)

    def _pushes(self, actions):
        pushes = 0.4 * np.asarray(actions) - 0.2
        if self.broken("neighbour's actions"):
            pushes = np.roll(pushes, 1)
        if self.broken("actions kept"):  # repeated actions push less; the earlier actions are read without a copy
            repeated = np.zeros(self.num_envs, dtype=bool) if self.kept_actions is None else self.kept_actions == actions
            pushes, self.kept_actions = np.where(repeated & (self.steps > 0), 0.9 * pushes, pushes), actions
        if self.broken("actions changed"):
            actions[0] = 1 - actions[0]
        return pushes

    def _move(self, pushes, rows):
        if self.broken("state is the observation"):
            self.position = self.buffer[:, 0].astype(float)
        noise = np.array([generator.normal(0, self.noise) if self.noise else 0 for generator in self.generators])
        self.position = np.where(rows, self.position + pushes + noise, self.position)
        self.steps = self.steps + rows

    def _start(self, rows):
        for row in np.flatnonzero(rows):
            generator = self.shared if self.broken("starts from one generator") else self.generators[row]
            self.position[row], self.steps[row] = generator.uniform(-self.spread, self.spread), 0

    def _restart_with_finals(self):
        ended, finals = self.ended, self._observe().copy()
        self._start(ended)
        self.ended = np.zeros_like(ended)
        if self.broken("final_obs in a buffer"):
            self.final_buffer[:] = finals
            finals = self.final_buffer
        if self.broken("final_obs outside"):
            finals[:, 1] = 99
        if self.broken("final_obs is the start"):
            finals = self._observe()
        infos = {"final_obs": self._native(finals), "_final_obs": ended, "final_info": {}, "_final_info": ended}
        if self.broken("final_obs of all"):
            infos["_final_obs"] = np.ones_like(ended)
        missing = {"no final_obs": "final_obs", "no final_info": "final_info"}.get(self.fault)
        return {key: value for key, value in infos.items() if key.removeprefix("_") != missing}

    def _observe(self):
        dtype = np.float64 if self.broken("observation in float64") else np.float32
        observation = np.stack([self.position.clip(-2, 2), self.steps], axis=1).astype(dtype)
        if self.broken("observation outside"):
            observation[self.steps == 2, 0] = 3
        if self.broken("rounding by row"):
            observation[:, 0] += np.float32(1e-5) * np.arange(self.num_envs)
        if self.broken("observation without steps"):
            observation = observation[:, :1]
        if self.broken("one buffer", "state is the observation"):
            self.buffer[:] = observation
            return self.buffer
        return observation

    def _with_faults(self, rewards, terminated, truncated, infos):
        """Return the other values of step, with the faults of their types and shapes."""
        if self.broken("rewards as a column"):
            rewards = rewards[:, None]
        if self.broken("rewards in int"):
            rewards = rewards.astype(int)
        if self.broken("rewards of NaN"):
            rewards = np.where(self.steps == 5, np.nan, rewards)
        if self.broken("flags in int"):
            terminated = terminated.astype(int)
        if self.broken("no mask in infos"):
            del infos["_distance"]
        if self.broken("infos as a list"):
            infos = [{} for _ in range(self.num_envs)]
        return *(self._native(value) for value in (rewards, terminated, truncated)), infos

    def _native(self, value):
        return torch.as_tensor(value).clone() if self.tensors else value
