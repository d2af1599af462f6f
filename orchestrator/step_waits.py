"""What a step of a run waits for, as the run's state alone tells it: one reason for each. Pure.

Who works on a task, and where it stands in a queue, is in no run stream: `why` adds that.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, assert_never

from crewlog.events.controls import is_kind, kind_scope
from crewlog.orchestrator.run import RunState, TaskState, blocked_steps, critic_key, is_finished, starving
from crewlog.orchestrator.run_controls import is_paused
from crewlog.schemas.run_events import RunPaused
from crewlog.schemas.usage import format_usd


class Waiting(NamedTuple):
    """The one reason why a step is not finished."""

    reason: Literal["worker", "retry", "approval", "dependency", "budget", "pause"]
    detail: str
    until_us: int | None = None


def waiting_reason(state: RunState, key: str) -> Waiting | None:
    """Say what a step, or one of the orchestrator's own tasks, waits for; None when nothing will happen to it any more."""
    if state.status != "open":
        return None
    task = state.tasks.get(key)
    held = starving(state)
    if task is not None:
        return _budget_waits(state, held[0]) if held and task.phase in ("held", "retrying", "revise") else _task_waits(state, task)
    step = next((s for s in state.steps if s.key == key), None)
    if step is None or key in blocked_steps(state):
        return None
    missing = [name for name in step.depends_on if not is_finished(state, name)]
    if missing:
        return Waiting("dependency", f"waits for {', '.join(missing)}")
    if state.rollback is not None:
        return Waiting("dependency", "effects are taken back one after the other, the last one first")
    # every other ready step was dispatched in the append that made it ready
    return _budget_waits(state, held[0]) if held else _pause_waits(_pause_of(state, step.type))


def _budget_waits(state: RunState, task: TaskState) -> Waiting:
    short = task.shortfall
    assert short is not None
    used, limit, needed = map(format_usd, (short.used_micro_usd, short.limit_micro_usd, short.needed_micro_usd))
    return Waiting("budget", f"{short.scope} has no room for {needed}: {used} of {limit} used", state.hold.expires_us if state.hold else None)


def _pause_of(state: RunState, kind: str) -> RunPaused | None:
    """Return the first pause that keeps tasks of a kind from starting, if any."""
    return next((pause for pause in state.pauses if not is_kind(pause.scope) or pause.scope == kind_scope(kind)), None)


def _pause_waits(pause: RunPaused | None, *before: str) -> Waiting | None:
    return None if pause is None else Waiting("pause", "; ".join((*before, f"{pause.scope} is paused by {pause.actor}")))


def _task_waits(state: RunState, task: TaskState) -> Waiting | None:
    pause = _pause_of(state, task.kind)
    match task.phase:
        case "dispatched":
            at_work = f"attempt {task.attempt} is with the {task.kind} agents"
            return _pause_waits(pause, at_work) or Waiting("worker", at_work, task.due_us)
        case "retrying" if is_paused(state):
            return _pause_waits(pause)
        case "retrying":
            return Waiting("retry", f"attempt {task.attempt} follows after {task.error.message if task.error else 'a failure'}", task.due_us)
        case "suspended":
            return Waiting("approval", f"a person must decide about {', '.join(sorted(p.tool for p in task.pending.values()))}", task.due_us)
        case "judging" if critic_key(state, task) in state.tasks:
            return Waiting("worker", "a critic judges its outcome")
        case "held" | "revise" | "judging":
            return _pause_waits(pause)  # without one it is dispatched, or judged, in the append that makes it ready, unless a budget holds everything
        case "accepted" | "flagged" | "failed":
            return None
        case _:
            assert_never(task.phase)
