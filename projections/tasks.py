"""Fold of task streams: the life of one task.

Nearly all of its events are about a task that is known (`TASK_FOLDS`); the others open one, or concern the whole run (`IN_TASK_STREAM`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import msgspec

from crewlog.projections.approvals import approval_decided, approval_requested
from crewlog.projections.calls import model_call_failed, model_call_finished, model_call_started, tool_finished, tool_started
from crewlog.projections.json_text import to_json
from crewlog.projections.projection import Fact
from crewlog.projections.rows import TaskStatus
from crewlog.projections.run_state import Changed, RunState, TaskState, add_artifacts, close_model_call, finish, open_task
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Stream, TaskId, category
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    AttemptFailed,
    BudgetWarned,
    CompensationFinished,
    CompensationStarted,
    ContextCompacted,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallSkipped,
    ModelCallStarted,
    Nudged,
    TaskCancelled,
    TaskCompleted,
    TaskEvent,
    TaskFailed,
    TaskForked,
    TaskHandedBack,
    TaskMoved,
    TaskOpened,
    TaskStarted,
    ToolFinished,
    ToolInDoubt,
    ToolProbed,
    ToolStarted,
)


class _SentTask(msgspec.Struct):
    objective: str = ""


_decode_sent = msgspec.json.Decoder(_SentTask).decode


def unknown_task(run: RunState, fact: Fact) -> ContractError:
    """Return the error that says that an event belongs to a task that was never opened."""
    return ContractError(f"{fact.stream} version {fact.version} is a {fact.type}, but run {run.row.run_id} knows no such task")


def task_of(stream: Stream) -> TaskId:
    """Return the task a task stream belongs to.

    Raises:
        ContractError: the stream is no task stream.
    """
    if category(stream) != "task":
        raise ContractError(f"{stream} is not a task stream, but holds an event of one")
    try:
        return TaskId(msgspec.convert(stream[5:], UUID))
    except msgspec.ValidationError as error:
        raise ContractError(f"{stream} does not name a task: {error}") from error


def _opened(run: RunState, fact: Fact, event: TaskOpened, changed: Changed) -> None:
    task_id, objective = task_of(fact.stream), _decode_sent(event.task).objective
    task = open_task(run, key=event.key, revision=event.revision, task_id=task_id, kind=event.kind, at_us=fact.occurred_us, changed=changed)
    task.row.objective = objective or task.row.objective


def _forked(run: RunState, fact: Fact, event: TaskForked, changed: Changed) -> None:
    task_id = task_of(fact.stream)
    open_task(run, key=event.key, revision=event.revision, task_id=task_id, kind=event.kind, at_us=fact.occurred_us, changed=changed)


def _warned(run: RunState, fact: Fact, event: BudgetWarned, changed: Changed) -> None:
    if fact.stream not in run.by_stream:
        raise unknown_task(run, fact)
    run.warned[event.scope] = None
    run.row.warnings = to_json(list(run.warned))
    changed.runs[run.row] = None


def _started(task: TaskState, fact: Fact, event: TaskStarted, changed: Changed) -> None:
    row = task.row
    _enter(task, "running", changed)
    row.worker, row.attempt = event.worker, event.attempt
    row.provider, row.model, row.simulated = event.provider, event.model, event.simulated
    row.error_code = row.error = None
    task.decision = ""
    if row.started_us is None:
        row.started_us = fact.occurred_us
    _interrupt(task, changed)


def _attempt_failed(task: TaskState, _: Fact, event: AttemptFailed, changed: Changed) -> None:
    row = task.row
    _enter(task, "deciding", changed)
    row.attempt, row.error_code, row.error = event.attempt, event.error.code, event.error.message
    _interrupt(task, changed)


def _handed_back(task: TaskState, _: Fact, __: TaskHandedBack, changed: Changed) -> None:
    _enter(task, "held", changed)


def _completed(task: TaskState, fact: Fact, event: TaskCompleted, changed: Changed) -> None:
    row = task.row
    add_artifacts(task, event.outcome.artifacts, changed)
    _enter(task, "reviewing", changed)
    task.ended_us, row.outcome_position = fact.occurred_us, fact.position
    row.error_code = row.error = None


def _failed(task: TaskState, fact: Fact, event: TaskFailed, changed: Changed) -> None:
    task.row.error_code, task.row.error = event.error.code, event.error.message
    changed.tasks[task.row] = None
    finish(task, "failed", fact.occurred_us, changed)


def _cancelled(task: TaskState, fact: Fact, event: TaskCancelled, changed: Changed) -> None:
    task.row.error_code, task.row.error = "cancelled", f"cancelled by {event.actor}: {event.reason}"
    changed.tasks[task.row] = None
    finish(task, "cancelled", fact.occurred_us, changed)


def _tool_finished(task: TaskState, fact: Fact, event: ToolFinished, changed: Changed) -> None:
    tool_finished(task, fact, event, changed)
    _rest(task, changed)


def _in_doubt(task: TaskState, _: Fact, event: ToolInDoubt, changed: Changed) -> None:
    if (call := task.tool_calls.get(event.call_id)) is not None:
        call.status = "interrupted"
        changed.tool_calls[call] = None


def _approval_requested(task: TaskState, fact: Fact, event: ApprovalRequested, changed: Changed) -> None:
    approval_requested(task, fact, event, changed)
    _rest(task, changed)


def _enter(task: TaskState, status: TaskStatus, changed: Changed) -> None:
    changed.tasks[task.row] = None
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
    if not task.approvals:
        return
    asked = {approval.call_id for approval in task.approvals.values()}
    if task.row.status == "running" and asked.issuperset(task.tool_calls):
        task.row.status = "suspended"
        changed.tasks[task.row] = None


def _no_row(task: TaskState, fact: Fact, event: TaskEvent, changed: Changed) -> None:
    """For what happens inside a task and no view shows: it stands in the log."""


IN_TASK_STREAM: Final[dict[type[TaskEvent], Callable[[RunState, Fact, Any, Changed], None]]] = {
    TaskOpened: _opened,
    TaskForked: _forked,
    BudgetWarned: _warned,
}
TASK_FOLDS: Final[dict[type, Callable[[TaskState, Fact, Any, Changed], None]]] = {
    TaskStarted: _started,
    ModelCallStarted: model_call_started,
    ModelCallFinished: model_call_finished,
    ModelCallFailed: model_call_failed,
    ToolStarted: tool_started,
    ToolFinished: _tool_finished,
    ApprovalRequested: _approval_requested,
    ApprovalDecided: approval_decided,
    ModelCallSkipped: _no_row,
    Nudged: _no_row,
    ContextCompacted: _no_row,
    TaskMoved: _no_row,
    ToolInDoubt: _in_doubt,
    ToolProbed: _no_row,
    CompensationStarted: _no_row,
    CompensationFinished: _no_row,
    AttemptFailed: _attempt_failed,
    TaskHandedBack: _handed_back,
    TaskCompleted: _completed,
    TaskFailed: _failed,
    TaskCancelled: _cancelled,
}
