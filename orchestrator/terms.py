"""The terms on which a run is accepted: what its surface may spend, and whose tree of tasks it belongs to."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from crewlog.events.limits import NO_LIMITS, Limits, limits_for
from crewlog.events.store import EventStore
from crewlog.orchestrator.commands import Terms
from crewlog.orchestrator.folds import Folds
from crewlog.orchestrator.run import RunState
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId, TaskId, run_stream, task_stream
from crewlog.schemas.run_events import RunForked, RunSubmitted
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import TaskForked, TaskOpened
from crewlog.schemas.trace_context import parse_traceparent

_OPENING = frozenset({RunSubmitted.__name__, RunForked.__name__, TaskOpened.__name__, TaskForked.__name__})


class Allowance(NamedTuple):
    """What the operator allows; see `Config` for the meaning."""

    limits: Limits = NO_LIMITS
    hold_s: int = 86_400


async def terms_of(task: AgentTask, allowance: Allowance, store: EventStore, folds: Folds, *, caller: str = "") -> Terms:
    """Return the terms for a task.

    Args:
        caller: what came as `traceparent`; it is left out unless it is one.

    Raises:
        ContractError: it names a parent that this tenant does not have. A budget of the parent's tree could be evaded otherwise.
        Unavailable: the log cannot be reached.
    """
    tree = None if task.parent_task_id is None else await _tree_of(task.parent_task_id, task.tenant, store, folds)
    known = "" if parse_traceparent(caller) is None else caller.strip()
    return Terms(limits_for(allowance.limits, task.surface), tree, allowance.hold_s, known)


async def run_with(task_id: UUID, tenant: str, store: EventStore, folds: Folds) -> RunState | None:
    """Return the run of this tenant that has a task: one that was dispatched, or the submitted one if the run has its id."""
    streams = {task_stream(TaskId(task_id)): 0, run_stream(RunId(task_id)): 0}
    run_ids = {recorded.run_id for recorded in await store.read_streams(streams, types=_OPENING) if recorded.run_id is not None}
    return next((state for state in (await folds.states(run_ids)).values() if state.brief.tenant == tenant), None)


async def _tree_of(parent: UUID, tenant: str, store: EventStore, folds: Folds) -> TaskId:
    run = await run_with(parent, tenant, store, folds)
    if run is not None:
        return run.tree
    raise ContractError("the task names a parent that does not exist", problems=(("/parent_task_id", f"tenant {tenant} has no task {parent}; leave it out"),))
