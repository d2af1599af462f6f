"""Fold of approvals: a question, and the decision about it."""

from __future__ import annotations

from crewlog.projections.projection import Fact
from crewlog.projections.rows import ApprovalRow
from crewlog.projections.run_state import Changed, TaskState
from crewlog.schemas.task_events import ApprovalDecided, ApprovalRequested


def approval_requested(task: TaskState, fact: Fact, event: ApprovalRequested, changed: Changed) -> None:
    """Open a row that waits for a person."""
    row = ApprovalRow(
        approval_id=event.approval_id,
        run_id=task.row.run_id,
        task_id=task.row.task_id,
        call_id=event.call_id,
        tool=event.tool,
        reason=event.reason,
        digest=event.digest,
        status="pending",
        requested_us=fact.occurred_us,
        expires_us=event.expires_us,
        requested_position=fact.position,
        question=event.question or None,
    )
    task.approvals[event.approval_id] = row
    changed.approvals[row] = None


def approval_decided(task: TaskState, fact: Fact, event: ApprovalDecided, changed: Changed) -> None:
    """Close the row. A decision about a question nobody asked changes nothing."""
    row = task.approvals.pop(event.approval_id, None)
    if row is None:
        return
    row.status, row.decided_us, row.actor, row.note = event.decision, fact.occurred_us, event.actor, event.note or None
    task.decision = f"approval of {row.tool} was {event.decision}"
    changed.approvals[row] = None
