"""What pauses and quarantines do to a run's state: the part of its fold that is about them, pure.

    at work ──RunPaused──▶ paused ──RunResumed──▶ at work            a run may be paused by itself, its tenant and agent kinds at once
    at work ──RunQuarantined──▶ at work in quarantine ──ResultsHeld──▶ results held ──QuarantineLifted──▶ its end

While anything pauses a run its clocks stand still: its deadline, those of its tasks, of questions to people and of a budget's hold. They
move by that time when the last pause is over, so no time runs out unseen. A wait before another attempt is no such clock: it just ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from crewlog.events.controls import is_kind
from crewlog.schemas.run_events import QuarantineLifted, ResultsHeld, RunPaused, RunQuarantined, RunResumed, TaskReturned

if TYPE_CHECKING:
    from crewlog.orchestrator.run import RunState, TaskState

ControlEvent = RunPaused | RunResumed | RunQuarantined | QuarantineLifted | ResultsHeld | TaskReturned


def evolve_controls(state: RunState, event: ControlEvent) -> RunState:
    """Apply one fact of this module; whether the run's deadline moves on is the caller's to settle."""
    match event:
        case RunPaused():
            since = {"stopped_since_us": state.stopped_since_us or event.since_us, "paused_since_us": state.paused_since_us or event.since_us}
            return replace(state, pauses=(*state.pauses, event), **since)
        case RunResumed():
            return _resumed(state, event)
        case RunQuarantined():
            return replace(state, quarantines=(*state.quarantines, event))
        case QuarantineLifted():
            left = tuple(quarantine for quarantine in state.quarantines if quarantine.control != event.control)
            return replace(state, quarantines=left, lifted=state.lifted | {event.control})
        case ResultsHeld():
            # a run that failed has closed what was under way
            tasks = {key: replace(task, phase="failed", pending={}) if task.is_active else task for key, task in state.tasks.items()}
            return replace(state, results_held=event, tasks=tasks)
        case TaskReturned():
            returned = replace(state.tasks[event.key], phase="held", due_us=0, returned=event.number)
            return replace(state, tasks={**state.tasks, event.key: returned})


def is_paused(state: RunState) -> bool:
    """Say whether nothing of the run may start: it or its tenant is paused. A paused kind's tasks wait in their queue."""
    return any(not is_kind(pause.scope) for pause in state.pauses)


def is_at_rest(state: RunState) -> bool:
    """Say whether no decision is due whatever happens: the run is paused, or all work is done and its results are held."""
    return state.results_held is not None or is_paused(state)


def _resumed(state: RunState, event: RunResumed) -> RunState:
    left = tuple(pause for pause in state.pauses if pause.scope != event.scope)
    state = replace(state, pauses=left, deadline_us=event.run_deadline_us or state.deadline_us)
    if left:
        return state
    stood_us = event.at_us - state.stopped_since_us
    tasks = {key: _moved(task, stood_us) for key, task in state.tasks.items()}
    hold = state.hold and msgspec.structs.replace(state.hold, expires_us=state.hold.expires_us + stood_us)
    return replace(state, tasks=tasks, hold=hold, stopped_since_us=0)


def _moved(task: TaskState, stood_us: int) -> TaskState:
    if task.phase not in ("dispatched", "suspended"):
        return task
    pending = {key: replace(asked, expires_us=asked.expires_us + stood_us) for key, asked in task.pending.items()}
    return replace(task, due_us=task.due_us + stood_us, pending=pending)
