"""Fold of run streams: the run itself, its plan, and what the orchestrator decides about each task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import msgspec

from crewlog.projections import run_controls
from crewlog.projections.json_text import to_json
from crewlog.projections.projection import Fact
from crewlog.projections.rows import Json, RunStatus, TaskRow, TaskStatus
from crewlog.projections.run_controls import restatus
from crewlog.projections.run_state import Changed, RunState, TaskState, finish, open_task
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId, TaskId, derived_task_id, task_stream
from crewlog.schemas.run_events import (
    QuarantineLifted,
    ResultsHeld,
    RollbackContinued,
    RunCancelled,
    RunCompleted,
    RunEvent,
    RunFailed,
    RunForked,
    RunHeld,
    RunPaused,
    RunPlanned,
    RunQuarantined,
    RunReleased,
    RunResumed,
    RunSubmitted,
    Step,
    TaskDispatched,
    TaskHeld,
    TaskResumed,
    TaskRetryScheduled,
    TaskReturned,
    TaskReviewed,
    TaskSuspended,
)
from crewlog.schemas.undo_steps import undo_steps

FORK: Final = "fork"
TRIAL: Final = "trial"
SHADOW: Final = "shadow"
"""Sources of runs that were made out of others."""


class _Trial(msgspec.Struct):
    source: UUID | None = None
    name: str = ""


class _SubmittedTask(msgspec.Struct):
    task_id: UUID
    type: str
    trial: _Trial | None = None


_decode_submitted = msgspec.json.Decoder(_SubmittedTask).decode


def _submitted(run: RunState, fact: Fact, event: RunSubmitted, changed: Changed) -> None:
    task = _decode_submitted(event.task)
    run.submitted_task_id = task.task_id
    row = run.row
    row.tenant, row.user_name, row.type, row.goal = event.tenant, event.user, task.type, event.goal
    row.source, row.submitted_us = event.source, fact.occurred_us
    if task.trial is not None:
        row.source, row.parent_run_id = SHADOW if task.trial.name.startswith(f"{SHADOW}-") else TRIAL, task.trial.source
    changed.runs[row] = None


def _forked(run: RunState, fact: Fact, event: RunForked, changed: Changed) -> None:
    """Begin a run that goes on from another one. Its tables hold what happens from here; what both share is in those of its parent."""
    run.is_fork = True
    row = run.row
    row.tenant, row.user_name, row.type, row.goal = event.tenant, event.user, event.type, event.goal
    row.source, row.submitted_us, row.status, row.parent_run_id = FORK, fact.occurred_us, "running", event.parent
    changed.runs[row] = None


def _planned(run: RunState, fact: Fact, event: RunPlanned, changed: Changed) -> None:
    run.row.plan_origin, run.row.plan_revision = event.origin, event.revision
    restatus(run, changed)
    steps = {step.key: step for step in event.steps}
    for key, task in run.latest.items():
        if task.row.status == "planned" and key not in steps:
            finish(task, "skipped", fact.occurred_us, changed)
    for step in event.steps:
        latest = run.latest.get(step.key)
        if latest is not None and latest.row.status == "completed":
            continue  # a new plan may name what is done already
        if latest is None or latest.is_finished:
            _plan_step(run, fact, step, 0 if latest is None else latest.row.revision + 1, origin=event.origin, changed=changed)
        elif latest.row.status == "planned":
            _describe(latest, step)
            changed.tasks[latest.row] = None


def _plan_step(run: RunState, fact: Fact, step: Step, revision: int, *, origin: str, changed: Changed) -> None:
    if origin == "single" and run.submitted_task_id is not None:
        task_id = TaskId(run.submitted_task_id)
    else:
        task_id = derived_task_id(RunId(run.row.run_id), key=step.key, revision=revision)
    row = TaskRow(run.row.run_id, step.key, revision, task_id, step.type, planned_us=fact.occurred_us)
    _describe(run.add(row), step)
    changed.tasks[row] = None


def _describe(task: TaskState, step: Step) -> None:
    task.row.objective, task.row.kind = step.objective, step.type
    task.depends_on, task.row.depends_on = step.depends_on, to_json(step.depends_on)


def _dispatched(run: RunState, fact: Fact, event: TaskDispatched, changed: Changed) -> None:
    task = open_task(run, key=event.key, revision=event.revision, task_id=event.task_id, kind=event.kind, at_us=fact.occurred_us, changed=changed)
    row = task.row
    row.attempt, row.deadline_us = event.attempt, event.deadline_us
    task.shortfall = None
    if not task.is_finished:
        row.status, row.dispatched_us = "queued", fact.occurred_us


def _retry_scheduled(run: RunState, fact: Fact, event: TaskRetryScheduled, changed: Changed) -> None:
    task = _task(run, event.task_id, fact)
    if _enter(task, "retrying", changed):
        task.row.attempt, task.retry_due_us = event.attempt, event.due_us
        task.row.error_code, task.row.error = event.error.code, event.error.message


def _suspended(run: RunState, fact: Fact, event: TaskSuspended, changed: Changed) -> None:
    _enter(_task(run, event.task_id, fact), "suspended", changed)


def _resumed(run: RunState, fact: Fact, event: TaskResumed, changed: Changed) -> None:
    task = _task(run, event.task_id, fact)
    if not task.approvals.keys() - {event.approval_id}:  # the decision itself may stand before or behind this event
        _enter(task, "held" if run.starved or run.pause_of(task.row.kind) else "queued", changed)


def _task_held(run: RunState, fact: Fact, event: TaskHeld, changed: Changed) -> None:
    task = _task(run, event.task_id, fact)
    if _enter(task, "held", changed):
        task.shortfall = event.shortfall
        task.row.error_code, task.row.error = event.error.code, event.error.message


def _held(run: RunState, fact: Fact, event: RunHeld, changed: Changed) -> None:
    row = run.row
    row.hold_position, row.artifacts = fact.position, to_json(event.artifacts)
    names = ("reason", "scope", "limit_micro_usd", "used_micro_usd", "needed_micro_usd", "since_us", "expires_us")
    row.hold = to_json({name: getattr(event, name) for name in names})
    restatus(run, changed)


def _continued(run: RunState, fact: Fact, event: RollbackContinued, changed: Changed) -> None:
    for step in undo_steps(event.page.orders, event.page.kinds, behind=len(run.latest)):
        _plan_step(run, fact, step, 0, origin="rollback", changed=changed)
    restatus(run, changed)


def _released(run: RunState, _: Fact, __: RunReleased, changed: Changed) -> None:
    row = run.row
    row.artifacts, row.hold, row.hold_position = Json("[]"), None, None
    restatus(run, changed)


def _enter(task: TaskState, status: TaskStatus, changed: Changed) -> bool:
    if task.is_finished:
        return False
    task.row.status = status
    changed.tasks[task.row] = None
    return True


def _reviewed(run: RunState, fact: Fact, event: TaskReviewed, changed: Changed) -> None:
    if run.is_fork and task_stream(event.task_id) not in run.by_stream:
        return  # a task of the parent, which a critic of the fork has judged
    task = _task(run, event.task_id, fact)
    row = task.row
    changed.tasks[row] = None
    row.verdict, row.issues = event.verdict, to_json(event.issues)
    if event.error is not None:
        row.error_code, row.error = event.error.code, event.error.message
    match event.verdict:
        case "accepted" | "flagged":
            finish(task, "completed", fact.occurred_us, changed)
        case "revise":
            finish(task, "revised", fact.occurred_us, changed)
        case "failed":
            finish(task, "failed", fact.occurred_us, changed)
        case "judging":
            pass  # still in review, by a model now


def _completed(run: RunState, fact: Fact, event: RunCompleted, changed: Changed) -> None:
    run.row.flags, run.row.artifacts = to_json(event.flags), to_json(event.artifacts)
    _end(run, fact, "completed", changed)


def _failed(run: RunState, fact: Fact, event: RunFailed, changed: Changed) -> None:
    run.row.error_code, run.row.error, run.row.artifacts = event.error.code, event.error.message, to_json(event.artifacts)
    _end(run, fact, "failed", changed)


def _cancelled(run: RunState, fact: Fact, event: RunCancelled, changed: Changed) -> None:
    run.row.error_code, run.row.error = "cancelled", f"cancelled by {event.actor}: {event.reason}"
    _end(run, fact, "cancelled", changed)


def _end(run: RunState, fact: Fact, status: RunStatus, changed: Changed) -> None:
    run.row.status, run.row.finished_us, run.row.end_position = status, fact.occurred_us, fact.position
    run.row.hold = run.row.hold_position = None
    run.controls.clear()
    run.row.controls = Json("[]")
    changed.runs[run.row] = None
    for task in run.tasks.values():
        if task.row.status == "reviewing":
            finish(task, "completed", fact.occurred_us, changed)
        elif task.row.status == "planned" or status == "completed":
            finish(task, "skipped", fact.occurred_us, changed)
        else:
            finish(task, "cancelled", fact.occurred_us, changed)


def _task(run: RunState, task_id: TaskId, fact: Fact) -> TaskState:
    task = run.by_stream.get(task_stream(task_id))
    if task is None:
        raise ContractError(f"{fact.stream} version {fact.version} is a {fact.type} of task {task_id}, which was never dispatched")
    return task


RUN_FOLDS: Final[dict[type[RunEvent], Callable[[RunState, Fact, Any, Changed], None]]] = {
    RunSubmitted: _submitted,
    RunPlanned: _planned,
    TaskDispatched: _dispatched,
    TaskRetryScheduled: _retry_scheduled,
    TaskSuspended: _suspended,
    TaskResumed: _resumed,
    TaskReviewed: _reviewed,
    RunCompleted: _completed,
    RunFailed: _failed,
    RunCancelled: _cancelled,
    TaskHeld: _task_held,
    RunHeld: _held,
    RunReleased: _released,
    RunPaused: run_controls.paused,
    RunResumed: run_controls.resumed,
    RunQuarantined: run_controls.quarantined,
    QuarantineLifted: run_controls.lifted,
    RollbackContinued: _continued,
    ResultsHeld: run_controls.results_held,
    TaskReturned: run_controls.returned,
    RunForked: _forked,
}
