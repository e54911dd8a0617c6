"""Checks of the three autoreset modes: functions that yield findings about a trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from worldmodel.testing.recording import Moment, Recorder, same, short
from worldmodel.testing.trial import OTHER_SEED, Finding, Trial


def check_next_step(trial: Trial) -> Iterator[Finding]:
    """Check NEXT_STEP: the step after the end of an episode only resets."""
    if trial.mode is not AutoresetMode.NEXT_STEP or not trial.ends():
        return
    moments, ends = trial.played.moments, trial.ends()
    after = [(t + 1, i, moments[t + 1][i]) for t, i in ends]
    where = "sub-environment {}, step {}, the one after its end: "
    for t, i, moment in [(t, i, moment) for t, i, moment in after if moment.reward != 0][:1]:
        yield "NEXT_STEP", where.format(i, t) + f"expected reward 0, because the step only resets, got {moment.reward}"
    for t, i, moment in [(t, i, moment) for t, i, moment in after if moment.ended][:1]:
        got = f"terminated {moment.terminated} and truncated {moment.truncated}"
        yield "NEXT_STEP", where.format(i, t) + f"expected no flag, because the step only resets, got {got}"
    if trial.moves() and all(same(moments[t][i].observation, moments[t + 1][i].observation) for t, i in ends):
        t, i = ends[0]
        got = f"got the last observation again, {short(moments[t][i].observation)}"
        yield "NEXT_STEP", where.format(i, t + 1) + f"expected the start of an episode, {got}"
    if "independence" not in trial.broken:
        yield from _check_action_is_ignored(trial)


def _check_action_is_ignored(trial: Trial) -> Iterator[Finding]:
    choices, others = trial.draw(), trial.draw(salt=1)
    for t, i in trial.ends():  # choices[t] is the action of step t + 1
        choices[t][i] = next((row[i] for row in others[t:] + others[:t] if not same(row[i], choices[t][i])), choices[t][i])
    changed = trial.play(trial.seed, choices)
    for row, difference in trial.compared_rows(changed):
        expected = "expected the step after an end to ignore the action, but with other actions at that step"
        remedy = "reset in that step, not in the last step of the episode"
        yield "NEXT_STEP", f"sub-environment {row}: {expected} {difference}; {remedy}"
        return


def check_same_step(trial: Trial) -> Iterator[Finding]:
    """Check SAME_STEP: final_obs is the end of an episode, the observation the start of the next.

    `worldmodel.testing.inspection` checks the masks and keys of the infos.
    """
    if trial.mode is not AutoresetMode.SAME_STEP:
        return
    moments, ends = trial.played.moments, trial.ends()
    finals = [(t, i) for t, i in ends if moments[t][i].final is not None]
    if finals and trial.moves() and all(same(moments[t][i].final, moments[t][i].observation) for t, i in finals):
        t, i = finals[0]
        got = f"got {short(moments[t][i].final)} for both; copy the final observation before the reset"
        expected = "expected final_obs to be the end of one episode and the observation the start of the next"
        yield "SAME_STEP", f"sub-environment {i}, step {t}: {expected}, {got}"


def check_ended_rows(trial: Trial) -> Iterator[Finding]:
    """Check DISABLED: stepping an ended sub-environment raises."""
    if trial.mode is not AutoresetMode.DISABLED or not trial.ends():
        return
    trial.renew()
    record = trial.record()
    record.reset(trial.seed)
    choices = iter(trial.draw())
    while not any(moment.ended for moment in record.moments[-1]):
        record.step(next(choices), reset_ended=False)
    row = next(i for i, moment in enumerate(record.moments[-1]) if moment.ended)
    if not _raises(record.step, next(choices), reset_ended=False):
        expected = "expected step to raise after the end of its episode, until a reset with a mask"
        yield "ended rows", f"sub-environment {row}: {expected}, got no error"
    trial.renew()


def check_disabled(trial: Trial) -> Iterator[Finding]:
    """Check DISABLED: the last step of an episode does not reset.

    If a reset in place of the last step returns the observation of that step, the step was a reset.
    """
    if trial.mode is not AutoresetMode.DISABLED:
        return
    choices, suspects = trial.draw(), []
    for i in range(min(trial.env.num_envs, 3)):
        t = next((t for t, row in trial.ends() if row == i), None)
        if t is None or same(trial.played.moments[t][i].observation, trial.played.moments[t][i].restart):
            continue
        record = trial.play(trial.seed, choices[: t - 1])
        start = record.reset(mask=np.arange(trial.env.num_envs) == i)[i]
        suspects.append((t, i, trial.same(start, trial.played.moments[t][i].observation)))
    if suspects and all(alike for _, _, alike in suspects):
        t, i, _ = suspects[0]
        got = f"got the start of the next episode, {short(trial.played.moments[t][i].observation)}"
        yield "DISABLED", f"sub-environment {i}, step {t}: expected the end of the episode, {got}"


def check_reset_mask(trial: Trial) -> Iterator[Finding]:
    """Check DISABLED: reset with a mask resets the masked rows and no others."""
    if trial.mode is not AutoresetMode.DISABLED:
        return
    yield from unmasked_rows_stay(trial.played)
    moments, ends = trial.played.moments, trial.ends()
    if ends and trial.moves() and all(same(moments[t][i].observation, moments[t][i].restart) for t, i in ends):
        t, i = ends[0]
        expected = "expected reset with its mask to start the next episode"
        got = f"got the observation from before the reset, {short(moments[t][i].restart)}"
        yield "reset_mask", f"sub-environment {i}, step {t}: {expected}, {got}"
    if trial.played.changed_options is not None:
        got = short(trial.played.changed_options)
        yield "reset_mask", f"expected reset to change nothing in the caller's options except 'reset_mask', got {got}"


def unmasked_rows_stay(record: Recorder) -> Iterator[Finding]:
    """Check that reset with a mask returns the observations of the other rows unchanged."""
    for t, rows in enumerate(record.moments):
        for i, moment in enumerate(rows):
            if moment.restart is not None and not moment.ended and not same(moment.restart, moment.observation):
                masked = [row for row, other in enumerate(rows) if other.ended]
                expected = f"expected a mask of {masked} to leave its observation {short(moment.observation)}"
                yield "reset_mask", f"sub-environment {i}, step {t}: {expected}, got {short(moment.restart)}"
                return


def check_reset_mask_with_seeds(trial: Trial) -> Iterator[Finding]:
    """Check that masked rows restart from their seeds and the others continue unchanged."""
    if trial.mode is not AutoresetMode.DISABLED or not trial.takes_seed_lists or trial.broken & {"independence", "reset"}:
        return
    n, half = trial.env.num_envs, trial.num_steps // 2
    choices, seeds = trial.draw(), [seed + OTHER_SEED for seed in trial.seeds]
    mask = np.arange(n) % 2 == 0
    fresh = trial.play(seeds, choices[:half])
    mixed = trial.play(trial.seed, choices[:half])
    shown = mixed.reset(seeds, mask)
    for early, late in zip(choices[:half], choices[half:], strict=False):
        mixed.step([early[i] if mask[i] else late[i] for i in range(n)])
    for i in range(n):
        start = [Moment(observation=shown[i])]
        if mask[i] and (difference := trial.difference(fresh.rows_of(i), start + mixed.rows_of(i)[half + 1 :])):
            expected = f"to restart from its seed {seeds[i]}, as reset(seed={seeds}) does"
            yield "reset_mask", f"sub-environment {i}, masked: expected {expected}, but {difference}"
            return
        if not mask[i] and (difference := trial.difference(trial.played.rows_of(i), mixed.rows_of(i))):
            yield "reset_mask", f"sub-environment {i}, not masked: expected to continue as without the reset, but {difference}"
            return


def check_wrong_masks(trial: Trial) -> Iterator[Finding]:
    """Check that an invalid mask raises, and that an all-false mask raises or does nothing."""
    if trial.mode is not AutoresetMode.DISABLED:
        return
    n = trial.env.num_envs
    for mask in (np.ones(n + 1, dtype=bool), np.ones(n, dtype=np.int64)):
        trial.renew()
        record = trial.record()
        record.reset(trial.seed)
        if not _raises(record.reset, mask=mask):
            got = f"none for {mask.dtype} of shape {mask.shape}"
            yield "reset_mask", f"expected an error for a mask that is not bool of shape ({n},), got {got}"
    trial.renew()
    record, shown = trial.record(), []
    before = record.reset(trial.seed)
    if not _raises(lambda: shown.append(record.reset(mask=np.zeros(n, dtype=bool)))) and not same(shown[0], before):
        yield "reset_mask", "expected an error or no reset for a mask that is all False, got other observations"
    trial.renew()


def _raises(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Return whether a call raises."""
    try:
        function(*args, **kwargs)
    except Exception:  # Gymnasium specifies no type
        return True
    return False


def compare_modes(trials: Sequence[Trial]) -> Iterator[str]:
    """Check that the first episode of each row, before any autoreset, is the same in every mode."""
    sound = [
        t for t in trials if t.first is not None and not t.broken & {"same seed", "independence", "infos", t.known_mode.name}
    ]
    for trial in sound[1:]:
        for row in range(len(sound[0].played.moments[0])):
            pairs = (_first_episode(t.played.rows_of(row)) for t in (sound[0], trial))
            if difference := trial.difference(*pairs):
                a, b = (t.mode.name for t in (sound[0], trial) if t.mode)
                yield f"sub-environment {row}: expected the same first episode in {a} and {b} (in this order), but {difference}"
                break


def _first_episode(rows: Sequence[Moment]) -> list[Moment]:
    """Return the moments of the first episode in a form that is the same in every mode.

    The observation of the last moment is the last one of the episode, before any reset.
    """
    length = next((t + 1 for t, moment in enumerate(rows) if moment.ended), len(rows))
    return [
        Moment(observation=m.last_of_episode, reward=m.reward, terminated=m.terminated, truncated=m.truncated)
        for m in rows[:length]
    ]
