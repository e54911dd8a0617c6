"""A vector environment on trial in one mode: how it is made, its runs, and what the checks found so far."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gymnasium.vector import AutoresetMode, VectorEnv

from worldmodel.testing.recording import Choices, Difference, Moment, Recorder, Seed, draw_choices, first_difference, play, same

Finding = tuple[str, str]  # contract, message
Check = Callable[["Trial"], Iterator[Finding]]

OTHER_SEED = 1_000_003  # added to a seed for one that no row has


class NotAVectorEnvError(TypeError):
    """`make` returned something else: the caller's mistake, not a finding."""


class Trial:
    """An environment in one mode, on trial: how it is made, its first run, and the settings of the checker."""

    def __init__(
        self,
        make: Callable[..., VectorEnv],
        mode: AutoresetMode | None,
        num_steps: int,
        seed: int,
        tolerance: float,
        require_ends: bool,
    ):
        self.make, self.mode = make, mode
        self._takes_mode = mode is not None
        self.num_steps, self.seed, self.tolerance, self.require_ends = num_steps, seed, tolerance, require_ends
        self.first: Recorder | None = None  # the run that others are compared with, as soon as it has been found sound
        self.broken: set[str] = set()  # contracts
        self.takes_seed_lists = False  # until it has been seen
        self.always_new = False  # whether each run needs a new environment, because the last one leaves traces
        self._env: VectorEnv | None = None

    @property
    def env(self) -> VectorEnv:
        """The environment of the next run, made when it is needed."""
        if self._env is None:
            self._env = self.make(self.mode) if self._takes_mode else self.make()
        return self._env

    @property
    def known_mode(self) -> AutoresetMode:
        """The mode, once it is known."""
        assert self.mode is not None
        return self.mode

    @property
    def seeds(self) -> list[int]:
        """What the int seed stands for."""
        return [self.seed + row for row in range(self.env.num_envs)]

    @property
    def played(self) -> Recorder:
        """The first run."""
        assert self.first is not None
        return self.first

    def renew(self) -> None:
        """Drop the environment; the next run makes a new one."""
        env, self._env = self._env, None
        if env is not None:
            with contextlib.suppress(Exception), warnings.catch_warnings():  # it may be what just broke
                warnings.simplefilter("ignore")
                env.close()

    def draw(self, salt: int = 0) -> Choices:
        """Actions for a whole run."""
        return draw_choices(self.env.single_action_space, self.num_steps, self.env.num_envs, self.seed + salt)

    def play(self, seed: Seed = None, choices: Choices | None = None, **hooks: Any) -> Recorder:
        """A run in the present environment, or in a new one if `always_new`; by default with the first run's actions."""
        if self.always_new:
            self.renew()
        return play(self.env, self.known_mode, seed, self.draw() if choices is None else choices, **hooks)

    def record(self) -> Recorder:
        """An empty record of the present environment."""
        return Recorder(self.env, self.known_mode)

    def difference(self, left: Sequence[Moment], right: Sequence[Moment]) -> Difference | None:
        """The first difference that counts."""
        return first_difference(left, right, self.tolerance)

    def same(self, left: Any, right: Any) -> bool:
        """Whether two values are the same as far as counts."""
        return same(left, right, self.tolerance)

    def compared_rows(self, other: Recorder) -> Iterator[tuple[int, Difference]]:
        """Sub-environments of a run that differ from the first run, with the difference."""
        for row in range(self.env.num_envs):
            if difference := self.difference(self.played.rows_of(row), other.rows_of(row)):
                yield row, difference

    def ends(self) -> list[tuple[int, int]]:
        """Steps and rows of the first run at which an episode ended, those of the last step left out."""
        return [(t, i) for t, rows in enumerate(self.played.moments[:-1]) for i, moment in enumerate(rows) if moment.ended]

    def moves(self) -> bool:
        """Whether the observations of the first run change at all."""
        start = self.played.moments[0]
        return any(
            not same(row.observation, start[i].observation) for rows in self.played.moments for i, row in enumerate(rows)
        )

    def findings(self, contract: str, check: Check) -> Iterator[Finding]:
        """What a check finds; whatever the environment raises is a finding too."""
        try:
            for finding in check(self):
                self.broken.add(finding[0])
                yield finding
        except NotAVectorEnvError:
            raise
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.broken.add(contract)
            yield contract, f"expected no error, got {error!r} from {where.filename}:{where.lineno}"
            self.renew()
