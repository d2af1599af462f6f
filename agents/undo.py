"""Tasks of a rollback: one call that takes back one effect of another run, carried out without asking a model. Pure.

The call is made from the task when a worker takes it; what the tool says about it is the outcome of the task, or of the attempt.
"""

from __future__ import annotations

from typing import Final

from crewlog.schemas.effects import UndoOrder
from crewlog.schemas.ids import RunId, TaskId, compensation_key, idempotency_key
from crewlog.schemas.payload import pack
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import ToolCall
from crewlog.schemas.values import Failure, Outcome

NOT_UNDONE: Final = "not_undone"
"""Code of an attempt that could not take its effect back. Another one follows, as what it acts on may be away for a while."""


def undo_call(order: UndoOrder, attempt: int) -> ToolCall:
    """Return the call of an attempt at an undo task."""
    arguments, _ = pack(order.arguments, inline_max=len(order.arguments.encode()))
    return ToolCall(f"undo-{attempt}", order.tool, arguments)


def undone(order: UndoOrder, said: str, *, is_error: bool) -> Outcome | Failure:
    """Return what an undo task, or its attempt, ends with."""
    if is_error:
        return Failure(NOT_UNDONE, said, retryable=True)
    return Outcome(said, output={"undone": order.key, "resource": order.resource})


def call_key(task: AgentTask, call_id: str) -> str:
    """Return the idempotency key of a call: that of a compensation is derived from the effect, so that every rollback uses the same one."""
    if task.undo is not None:
        return compensation_key(task.undo.key)
    return idempotency_key(RunId(task.run_id), TaskId(task.task_id), call_id)


def undoes(task: AgentTask) -> str:
    """Return the key of the effect that the call of a task takes back; empty for all other tasks."""
    return "" if task.undo is None else task.undo.key
