"""Checks of a vector environment in any mode: functions that yield findings about a trial."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces.utils import is_space_dtype_shape_equiv
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from worldmodel.testing.autoreset import unmasked_rows_stay
from worldmodel.testing.inspection import differing_rows, inspect_reset, inspect_step
from worldmodel.testing.recording import Recorder, overwrite, short
from worldmodel.testing.trial import OTHER_SEED, Finding, NotAVectorEnvError, Trial


def check_make(trial: Trial) -> Iterator[Finding]:
    """Check that the environment can be made."""
    try:
        env = trial.env
    except Exception as error:
        call = "make()" if trial.mode is None else f"make({trial.mode})"
        remedy = "remove unsupported modes from `modes`"
        yield "autoreset_mode", f"expected {call} to return an environment, got {error!r}; {remedy}"
    else:
        if not isinstance(env, VectorEnv):
            raise NotAVectorEnvError(f"make: expected it to return a gymnasium.vector.VectorEnv, got {type(env).__name__}")


def check_mode(trial: Trial) -> Iterator[Finding]:
    """Check the autoreset mode in the metadata and in the attribute autoreset_mode."""
    named = trial.env.metadata.get("autoreset_mode")
    expected = "a member of AutoresetMode" if trial.mode is None else str(trial.mode)
    if not isinstance(named, AutoresetMode) or trial.mode not in (None, named):
        remedy = 'set self.metadata = self.metadata | {"autoreset_mode": mode}'
        yield "autoreset_mode", f"expected metadata['autoreset_mode'] to be {expected}, got {named!r}; {remedy}"
    mode = trial.mode or named
    attribute = getattr(trial.env, "autoreset_mode", mode)
    if attribute != mode:
        yield "autoreset_mode", f"expected the attribute autoreset_mode to be {mode}, got {attribute!r}"
    trial.mode = mode if isinstance(mode, AutoresetMode) else None


def check_mode_is_known(trial: Trial) -> Iterator[Finding]:
    """Check that the mode is known; the later checks depend on it."""
    if trial.mode is None:
        yield "autoreset_mode", "expected the mode in the metadata or in `modes`, got neither"


def check_spaces(trial: Trial) -> Iterator[Finding]:
    """Check num_envs, and that the batched spaces match the single ones."""
    env = trial.env
    if not isinstance(env.num_envs, (int, np.integer)) or env.num_envs < 1:
        yield "spaces", f"expected num_envs to be an int >= 1, got {env.num_envs!r}"
        return
    for name in ("observation_space", "action_space"):
        single, batched = getattr(env, f"single_{name}"), getattr(env, name)
        if not isinstance(single, gym.Space) or not isinstance(batched, gym.Space):
            yield "spaces", f"expected single_{name} and {name} to be spaces, got {single!r} and {batched!r}"
            continue
        expected = batch_space(single, int(env.num_envs))
        loose = name == "observation_space" and differing_rows(env)
        if not (is_space_dtype_shape_equiv(batched, expected) if loose else batched == expected):
            remedy = f"build it as gymnasium.vector.utils.batch_space(self.single_{name}, self.num_envs)"
            yield "spaces", f"expected {name} to be {short(expected)}, got {short(batched)}; {remedy}"


class _WrongShapesError(Exception):
    """A returned value has a wrong structure, so it cannot be split into rows."""


def check_first_run(trial: Trial) -> Iterator[Finding]:
    """Check the return values of every call of a run, to which later runs are compared."""
    found: dict[tuple[str, str], str] = {}

    def inspect(step: int, returned: Any) -> None:
        is_reset = not isinstance(returned, tuple) or len(returned) == 2
        findings = inspect_reset(trial.env, returned) if is_reset else inspect_step(trial.env, trial.known_mode, returned)
        for contract, what, message in findings:
            found.setdefault((contract, what), f"{what} at step {step}: {message}")
            if contract == "shapes":
                raise _WrongShapesError

    failure: Exception | None = None
    try:
        trial.first = trial.play(trial.seed, inspect=inspect)
    except _WrongShapesError:
        pass
    except Exception as error:
        failure = error
    yield from ((contract, message) for (contract, _), message in found.items())
    if failure is not None:
        raise failure  # after the findings that precede it


def check_ends(trial: Trial) -> Iterator[Finding]:
    """Check that an episode ended, so that the contract of the mode was tested."""
    if trial.require_ends and not trial.ends():
        expected = f"expected an episode to end within {trial.num_steps - 1} steps, got none, so this mode was hardly tested"
        remedy = "shorten episodes (max_episode_steps), raise num_steps, or pass require_ends=False if episodes never end"
        yield "ends", f"{expected}; {remedy}"


def check_same_seed(trial: Trial) -> Iterator[Finding]:
    """Check that two new environments give the same run from the same seed."""
    trial.renew()
    for row, difference in trial.compared_rows(trial.play(trial.seed)):
        expected = "expected the same run in a second new environment"
        remedy = "reset(seed=...) must seed every random generator"
        yield "same seed", f"sub-environment {row}: {expected}, but {difference}; {remedy}"
        return


def check_reset(trial: Trial) -> Iterator[Finding]:
    """Check that a used environment runs like a new one after a reset, even right after an end."""
    trial.renew()
    record = trial.record()
    record.reset(trial.seed + OTHER_SEED)
    for actions in trial.draw():
        record.step(actions, reset_ended=False)
        if any(moment.ended for moment in record.moments[-1]):
            break
    used = trial.play(trial.seed)
    for row, difference in trial.compared_rows(used):
        expected = f"expected reset(seed={trial.seed}) to clear the state of the {len(record.moments) - 1} steps before"
        yield "reset", f"sub-environment {row}: {expected}, but compared with a new environment {difference}"
        trial.always_new = True
        return


def check_different_seeds(trial: Trial) -> Iterator[Finding]:
    """Check that different seeds give different runs, unless nothing is random."""
    other = trial.play(trial.seed + OTHER_SEED)
    if not any(trial.compared_rows(other)) and any(trial.compared_rows(trial.play())):
        expected = f"expected different runs from the seeds {trial.seed} and {trial.seed + OTHER_SEED}"
        yield "different seeds", f"{expected}, got the same, although runs without a seed differ"


def check_seed_list(trial: Trial) -> Iterator[Finding]:
    """Check lists of seeds: int s means [s, s + 1, ...]; a seed gives the same run in any row."""
    seeds, n = trial.seeds, trial.env.num_envs
    remedy = "give each sub-environment its own generator, seeded by its entry, as SyncVectorEnv and AsyncVectorEnv do"
    try:
        listed = trial.play(seeds)
        trial.takes_seed_lists = True
    except Exception as error:
        yield "seed list", f"expected reset(seed={seeds}) to be accepted, got {error!r}; {remedy}"
        trial.renew()
        return
    for row, difference in trial.compared_rows(listed):
        expected = f"reset(seed={trial.seed}) to mean reset(seed={seeds})"
        yield "seed list", f"sub-environment {row}: expected {expected}, but {difference}; {remedy}"
        break
    rolled = trial.play(seeds[-1:] + seeds[:-1], [row[-1:] + row[:-1] for row in trial.draw()])
    for row in range(n):
        other = (row + 1) % n
        if found := trial.difference(listed.rows_of(row), rolled.rows_of(other)):
            expected = f"the same run from seed {seeds[row]} as in sub-environment {row}"
            yield "seed per row", f"sub-environment {other}: expected {expected}, but {found}; {remedy}"
            return


def check_independence(trial: Trial) -> Iterator[Finding]:
    """Check that the run of a row does not depend on the actions and ends of the others."""
    n = trial.env.num_envs
    if n == 1:
        yield "independence", "expected at least 2 sub-environments, got 1; let `make` build more"
        return
    choices, others = trial.draw(), trial.draw(salt=1)
    for row in sorted({0, n // 2, n - 1}):
        mixed = [[*theirs[:row], mine[row], *theirs[row + 1 :]] for mine, theirs in zip(choices, others, strict=True)]
        changed = trial.play(trial.seed, mixed)
        if difference := trial.difference(trial.played.rows_of(row), changed.rows_of(row)):
            got = f"{difference}{_ends_before(difference.step, row, trial.played, changed)}"
            remedy = "give each its own random generator and state"
            expected = "expected no dependence on the actions of the others"
            yield "independence", f"sub-environment {row}: {expected}, but {got}; {remedy}"
            return


def _ends_before(step: int, row: int, left: Recorder, right: Recorder) -> str:
    """Describe the latest end of another row, up to a step, that is in only one of two runs."""
    for t in range(step, -1, -1):
        for i, (one, other) in enumerate(zip(left.moments[t], right.moments[t], strict=True)):
            if i != row and one.ended != other.ended:
                return f" (sub-environment {i} had ended at step {t} in only one of them)"
    return ""


def check_copies(trial: Trial) -> Iterator[Finding]:
    """Check that returned values are copies, unaffected by later calls and free to overwrite."""
    if changed := trial.played.changed_since():
        expected = "expected the returned value to stay unchanged, but later calls changed it"
        yield "copies", f"{changed[1]} of step {changed[0]}: {expected}; return a copy"
    overwritten = trial.play(trial.seed, after_return=overwrite)
    stray = next(unmasked_rows_stay(overwritten), None)
    for row, difference in trial.compared_rows(overwritten):
        cause = "after the caller wrote into returned observations"
        yield "copies", f"sub-environment {row}: expected no change {cause}, but {difference}; return a copy"
        return
    if stray and "reset_mask" not in trial.broken:
        yield "copies", f"{stray[1]}, after the caller wrote into the observation returned before; return a copy"


def check_actions(trial: Trial) -> Iterator[Finding]:
    """Check that step neither writes into the caller's actions nor reads them after it returns."""
    if trial.played.changed_actions is not None:
        step = trial.played.changed_actions
        yield "actions", f"step {step}: expected the caller's actions to stay unchanged, got them changed; work on a copy"
    overwritten = trial.play(trial.seed, after_step=overwrite)
    for row, difference in trial.compared_rows(overwritten):
        cause = "after the caller wrote into the actions of an earlier step"
        yield "actions", f"sub-environment {row}: expected no change {cause}, but {difference}; keep a copy"
        return


def check_close(trial: Trial) -> Iterator[Finding]:
    """Check that close can be called twice."""
    trial.env.reset(seed=trial.seed)
    trial.env.close()
    trial.env.close()
    yield from ()
