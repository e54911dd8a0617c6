"""State of the check of an environment in one autoreset mode."""

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

OTHER_SEED = 1_000_003  # offset to a seed that no row uses


class NotAVectorEnvError(TypeError):
    """``make`` did not return a vector environment: an error of the caller, not a finding."""


class Trial:
    """Check of one environment in one mode.

    Args:
        make: builds a new environment.
        mode: argument of ``make``; None calls it without arguments.
        num_steps: steps per run.
        seed: seed of the actions and of row 0.
        tolerance: absolute difference between two runs that counts as equal.
        require_ends: report a violation if no episode ended.
    """

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
        self.first: Recorder | None = None  # reference run, set when its return values are valid
        self.broken: set[str] = set()  # broken contracts
        self.takes_seed_lists = False  # set by `check_seed_list`
        self.always_new = False  # make a new environment for each run, because reset does not clear all state
        self._env: VectorEnv | None = None

    @property
    def env(self) -> VectorEnv:
        """Environment of the next run, made on first access."""
        if self._env is None:
            self._env = self.make(self.mode) if self._takes_mode else self.make()
        return self._env

    @property
    def known_mode(self) -> AutoresetMode:
        """Mode; only valid after `check_mode_is_known`."""
        assert self.mode is not None
        return self.mode

    @property
    def seeds(self) -> list[int]:
        """Seeds of the rows that the int seed means."""
        return [self.seed + row for row in range(self.env.num_envs)]

    @property
    def played(self) -> Recorder:
        """Reference run; only valid after `check_first_run`."""
        assert self.first is not None
        return self.first

    def renew(self) -> None:
        """Close the environment; the next run makes a new one."""
        env, self._env = self._env, None
        if env is not None:
            with contextlib.suppress(Exception), warnings.catch_warnings():  # close may be broken too
                warnings.simplefilter("ignore")
                env.close()

    def draw(self, salt: int = 0) -> Choices:
        """Sample the actions of a run; another ``salt`` gives other actions."""
        return draw_choices(self.env.single_action_space, self.num_steps, self.env.num_envs, self.seed + salt)

    def play(self, seed: Seed = None, choices: Choices | None = None, **hooks: Any) -> Recorder:
        """Record a run, by default with the actions of the reference run."""
        if self.always_new:
            self.renew()
        return play(self.env, self.known_mode, seed, self.draw() if choices is None else choices, **hooks)

    def record(self) -> Recorder:
        """Return an empty recorder of the current environment."""
        return Recorder(self.env, self.known_mode)

    def difference(self, left: Sequence[Moment], right: Sequence[Moment]) -> Difference | None:
        """Find the first difference beyond the tolerance."""
        return first_difference(left, right, self.tolerance)

    def same(self, left: Any, right: Any) -> bool:
        """Return whether two values are equal up to the tolerance."""
        return same(left, right, self.tolerance)

    def compared_rows(self, other: Recorder) -> Iterator[tuple[int, Difference]]:
        """Yield the rows of a run that differ from the reference run, with the first difference."""
        for row in range(self.env.num_envs):
            if difference := self.difference(self.played.rows_of(row), other.rows_of(row)):
                yield row, difference

    def ends(self) -> list[tuple[int, int]]:
        """Return (step, row) of the episode ends in the reference run before the last step."""
        return [(t, i) for t, rows in enumerate(self.played.moments[:-1]) for i, moment in enumerate(rows) if moment.ended]

    def moves(self) -> bool:
        """Return whether the observations of the reference run change."""
        start = self.played.moments[0]
        return any(
            not same(row.observation, start[i].observation) for rows in self.played.moments for i, row in enumerate(rows)
        )

    def findings(self, contract: str, check: Check) -> Iterator[Finding]:
        """Yield the findings of a check; an error becomes a finding of ``contract``."""
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
