"""Fold of what people do to a run: pauses and quarantines in its row, its status, and clocks that stood still."""

from __future__ import annotations

from typing import Any

from crewlog.events.controls import is_kind
from crewlog.projections.json_text import to_json
from crewlog.projections.projection import Fact
from crewlog.projections.rows import RunStatus
from crewlog.projections.run_state import Changed, Intervention, RunState, TaskState, finish
from crewlog.schemas.ids import task_stream
from crewlog.schemas.run_events import QuarantineLifted, ResultsHeld, RunPaused, RunQuarantined, RunResumed, TaskReturned
from crewlog.schemas.values import Failure


def paused(run: RunState, fact: Fact, event: RunPaused, changed: Changed) -> None:
    """A scope pauses the run."""
    since_us = event.since_us or fact.occurred_us
    run.stopped_since_us = run.stopped_since_us or since_us
    run.controls.append(Intervention("pause", event.scope, event.actor, event.reason, since_us, event.control))
    restatus(run, changed)


def resumed(run: RunState, _: Fact, event: RunResumed, changed: Changed) -> None:
    """A scope pauses the run no more; behind the last one what waits for people expires later, by the time that stood still."""
    run.controls = [c for c in run.controls if (c.measure, c.scope) != ("pause", event.scope)]
    if all(c.measure != "pause" for c in run.controls) and run.stopped_since_us:
        stood_us, run.stopped_since_us = event.at_us - run.stopped_since_us, 0
        for task in run.tasks.values():
            _move(task, stood_us, changed)
    restatus(run, changed)


def quarantined(run: RunState, fact: Fact, event: RunQuarantined, changed: Changed) -> None:
    """The run's end is to be kept back."""
    run.controls.append(Intervention("quarantine", event.scope, event.actor, event.reason, fact.occurred_us, event.control))
    restatus(run, changed)


def lifted(run: RunState, _: Fact, event: QuarantineLifted, changed: Changed) -> None:
    """A quarantine holds no more."""
    run.controls = [c for c in run.controls if (c.measure, c.control) != ("quarantine", event.control)]
    restatus(run, changed)


def results_held(run: RunState, fact: Fact, event: ResultsHeld, changed: Changed) -> None:
    """All work is done; a run that failed has closed what was under way."""
    run.results_held = True
    for task in run.tasks.values():
        finish(task, "cancelled" if isinstance(event.error, Failure) else "skipped", fact.occurred_us, changed)
    restatus(run, changed)


def returned(run: RunState, _: Fact, event: TaskReturned, changed: Changed) -> None:
    """A worker gave the task back."""
    task = run.by_stream.get(task_stream(event.task_id))
    if task is not None and not task.is_finished:
        task.row.status = "held"
        changed.tasks[task.row] = None


def restatus(run: RunState, changed: Changed) -> None:
    """Give a run the status that follows from what holds it, and write that down."""
    row = run.row
    row.controls = to_json([_shown(control) for control in run.controls])
    if row.finished_us is None:
        row.status = _status(run)
    changed.runs[row] = None


def _status(run: RunState) -> RunStatus:
    if run.results_held:
        return "quarantined"
    if any(c.measure == "pause" and not is_kind(c.scope) for c in run.controls):
        return "paused"
    if run.row.hold is not None:
        return "held"
    return "planning" if run.row.plan_origin is None else "running"


def _shown(control: Intervention) -> dict[str, Any]:
    return {name: getattr(control, name) for name in ("measure", "scope", "actor", "reason", "since_us")}


def _move(task: TaskState, stood_us: int, changed: Changed) -> None:
    for approval in task.approvals.values():
        approval.expires_us += stood_us
        changed.approvals[approval] = None
    if task.row.status in ("queued", "running") and task.row.deadline_us is not None:
        task.row.deadline_us += stood_us
        changed.tasks[task.row] = None
