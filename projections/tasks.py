"""Fold of task streams: the life of one task."""

from __future__ import annotations

import msgspec

from crewlog.events.store import Recorded
from crewlog.projections.approvals import approval_decided, approval_requested
from crewlog.projections.calls import model_call_failed, model_call_finished, model_call_started, tool_finished, tool_started
from crewlog.projections.rows import TaskStatus
from crewlog.projections.run_state import Changed, RunState, TaskState, add_artifacts, close_model_call, finish, open_task
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Stream, TaskId, category
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    AttemptFailed,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallStarted,
    TaskCancelled,
    TaskCompleted,
    TaskEvent,
    TaskFailed,
    TaskOpened,
    TaskStarted,
    ToolFinished,
    ToolStarted,
)


class _SentTask(msgspec.Struct):
    objective: str = ""


_decode_sent = msgspec.json.Decoder(_SentTask).decode


def fold_task_event(run: RunState, recorded: Recorded, event: TaskEvent, changed: Changed) -> None:
    """Apply one event of a task stream to its run.

    Raises:
        ContractError: the event belongs to a task that was never opened.
    """
    if isinstance(event, TaskOpened):
        _opened(run, recorded, event, changed)
        return
    task = run.by_id.get(task_of(recorded.stream))
    if task is None:
        raise ContractError(f"{recorded.stream} version {recorded.version} is a {recorded.type}, but run {run.row.run_id} knows no such task")
    match event:
        case ModelCallStarted():
            model_call_started(task, recorded, event, changed)
        case ModelCallFinished():
            model_call_finished(task, recorded, event, changed)
        case ModelCallFailed():
            model_call_failed(task, recorded, event, changed)
        case ToolStarted():
            tool_started(task, recorded, event, changed)
        case ToolFinished():
            tool_finished(task, recorded, event, changed)
            _rest(task, changed)
        case ApprovalRequested():
            approval_requested(task, recorded, event, changed)
            _rest(task, changed)
        case ApprovalDecided():
            approval_decided(task, recorded, event, changed)
        case _:
            _fold_life(task, recorded, event, changed)


def task_of(stream: Stream) -> TaskId:
    """Return the task a task stream belongs to.

    Raises:
        ContractError: the stream is no task stream.
    """
    if category(stream) != "task":
        raise ContractError(f"{stream} is not a task stream, but holds an event of one")
    try:
        return TaskId(msgspec.convert(stream[5:], TaskId))
    except msgspec.ValidationError as error:
        raise ContractError(f"{stream} does not name a task: {error}") from error


def _fold_life(task: TaskState, recorded: Recorded, event: TaskEvent, changed: Changed) -> None:
    row, at_us = task.row, recorded.occurred_us
    changed.tasks[row] = None
    match event:
        case TaskStarted():
            _started(task, recorded, event, changed)
        case AttemptFailed():
            _enter(task, "deciding")
            row.attempt, row.error_code, row.error = event.attempt, event.error.code, event.error.message
            _interrupt(task, changed)
        case TaskCompleted():
            _enter(task, "reviewing")
            task.ended_us, row.outcome_position = at_us, recorded.position
            row.error_code = row.error = None
            add_artifacts(task, event.outcome.artifacts, changed)
        case TaskFailed():
            row.error_code, row.error = event.error.code, event.error.message
            finish(task, "failed", at_us, changed)
        case TaskCancelled():
            row.error_code, row.error = "cancelled", f"cancelled by {event.actor}: {event.reason}"
            finish(task, "cancelled", at_us, changed)
        case _:
            raise ContractError(f"{recorded.stream} version {recorded.version}: no fold for {recorded.type}")


def _opened(run: RunState, recorded: Recorded, event: TaskOpened, changed: Changed) -> None:
    task_id = task_of(recorded.stream)
    task = open_task(run, key=event.key, revision=event.revision, task_id=task_id, kind=event.kind, at_us=recorded.occurred_us, changed=changed)
    task.row.objective = _decode_sent(event.task).objective or task.row.objective


def _started(task: TaskState, recorded: Recorded, event: TaskStarted, changed: Changed) -> None:
    row = task.row
    _enter(task, "running")
    row.worker, row.attempt = event.worker, event.attempt
    row.provider, row.model, row.simulated = event.provider, event.model, event.simulated
    row.error_code = row.error = None
    task.decision = ""
    if row.started_us is None:
        row.started_us = recorded.occurred_us
    _interrupt(task, changed)


def _enter(task: TaskState, status: TaskStatus) -> None:
    if not task.is_finished:  # the run may have ended without waiting for this task
        task.row.status = status


def _interrupt(task: TaskState, changed: Changed) -> None:
    close_model_call(task, changed)
    for call in task.tool_calls.values():
        if call.status == "running":
            call.status = "interrupted"
            changed.tool_calls[call] = None


def _rest(task: TaskState, changed: Changed) -> None:
    """A task whose every open call waits for a person is suspended, from the moment it asked."""
    asked = {approval.call_id for approval in task.approvals.values()}
    if asked and task.row.status == "running" and asked.issuperset(task.tool_calls):
        task.row.status = "suspended"
        changed.tasks[task.row] = None
