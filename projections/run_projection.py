"""The projection of runs: one fold per run gives its run, task, model call, tool call and approval rows.

States of runs under way stay in memory. One that is not there (after a restart, or long idle) is folded again from the log: the
log is the only thing that is ever loaded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from crewlog.events.store import EventStore, Recorded
from crewlog.projections.calls import call_settled
from crewlog.projections.projection import Fact, decode
from crewlog.projections.rows import ApprovalRow, ModelCallRow, RunRow, TaskRow, ToolCallRow
from crewlog.projections.run_files import ARCHIVES, IMPORTS, FileChanges
from crewlog.projections.run_state import Changed, RunState
from crewlog.projections.runs import fold_run_event
from crewlog.projections.table import Table
from crewlog.projections.tasks import fold_task_event
from crewlog.projections.waiting import waiting_reason
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId
from crewlog.schemas.run_events import RUN_EVENTS, RunSubmitted
from crewlog.schemas.system_events import CallSettled, RunArchived, RunImported
from crewlog.schemas.task_events import TASK_EVENTS

RUNS: Final = Table("runs", RunRow, key=("run_id",))
TASKS: Final = Table("tasks", TaskRow, key=("run_id", "key", "revision"))
MODEL_CALLS: Final = Table("model_calls", ModelCallRow, key=("task_id", "number"))
TOOL_CALLS: Final = Table("tool_calls", ToolCallRow, key=("task_id", "call_id"))
APPROVALS: Final = Table("approvals", ApprovalRow, key=("approval_id",))

OF_RUNS: Final = (RUNS.name, TASKS.name, MODEL_CALLS.name, TOOL_CALLS.name, APPROVALS.name)

OPEN_RUNS_MAX: Final = 4096
"""Runs remembered at once; the one idle longest is forgotten first."""


class RunChanges(msgspec.Struct):
    """Rows to write."""

    rows: Changed
    files: FileChanges

    async def apply(self, connection: asyncpg.Connection) -> None:
        """Write each table once, then take out the runs that were archived."""
        await RUNS.write(connection, self.rows.runs)
        await TASKS.write(connection, self.rows.tasks)
        await MODEL_CALLS.write(connection, self.rows.model_calls)
        await TOOL_CALLS.write(connection, self.rows.tool_calls)
        await APPROVALS.write(connection, self.rows.approvals)
        await self.files.apply(connection, OF_RUNS)


class RunProjection:
    """Keeps the tables of runs and of all that happens in them."""

    name = "runs"
    version = 6
    types: frozenset[type] = frozenset((*RUN_EVENTS, *TASK_EVENTS, CallSettled, RunImported, RunArchived))
    tables = (*OF_RUNS, IMPORTS.name, ARCHIVES.name)
    facts_max = None

    def __init__(self, store: EventStore, *, open_runs_max: int = OPEN_RUNS_MAX) -> None:
        self._store, self._open_runs_max = store, open_runs_max
        self._open: OrderedDict[UUID, RunState] = OrderedDict()
        self._touched: dict[UUID, RunState] = {}
        self._changed, self._files = Changed(), FileChanges()

    async def load(self, events: Sequence[Recorded], *, after: int, skipped: Collection[int]) -> None:
        """Fold again the runs that these events go on with and that are not remembered."""
        begun: set[UUID | None] = {None}
        for recorded in events:
            run_id = recorded.run_id
            if run_id in begun or run_id in self._open:
                continue
            begun.add(run_id)
            if run_id is not None and recorded.type != RunSubmitted.__name__:
                self._open[run_id] = await self._fold_again(run_id, after, skipped)

    def fold(self, fact: Fact) -> None:
        """Apply one event to its run."""
        recorded = fact.recorded
        if isinstance(fact.event, RunImported | RunArchived):
            self._files.fold(recorded, fact.event)
            if isinstance(fact.event, RunArchived):
                self._open.pop(fact.event.run_id, None)
            return
        run_id = recorded.run_id
        if run_id is None:
            raise ContractError(f"{recorded.stream} version {recorded.version} is a {recorded.type} without a run id")
        run = self._open.get(run_id)
        if run is None:
            run = self._open[run_id] = RunState(RunRow(run_id))
        self._touched[run_id] = run
        _apply(run, fact, self._changed)

    def take(self) -> RunChanges:
        """Settle the waiting reasons of the runs touched, and hand out the rows that changed."""
        changed, self._changed = self._changed, Changed()
        files, self._files = self._files, FileChanges()
        touched, self._touched = self._touched, {}
        for run_id, run in touched.items():
            _settle(run, changed)
            if run.is_over:
                self._open.pop(run_id, None)
            else:
                self._open.move_to_end(run_id)
        while len(self._open) > self._open_runs_max:
            self._open.popitem(last=False)
        return RunChanges(changed, files)

    def forget(self) -> None:
        """Drop all states: they will be folded again."""
        self._open.clear()
        self._touched.clear()
        self._changed, self._files = Changed(), FileChanges()

    async def _fold_again(self, run_id: UUID, after: int, skipped: Collection[int]) -> RunState:
        run, unwritten = RunState(RunRow(run_id)), Changed()
        for recorded in await self._store.read_run(RunId(run_id)):
            if recorded.position > after:
                break
            fact = decode(recorded)
            if recorded.position not in skipped and type(fact.event) in self.types:
                _apply(run, fact, unwritten)
        _settle(run, unwritten)
        return run


def _apply(run: RunState, fact: Fact, changed: Changed) -> None:
    _FOLDS[type(fact.event)](run, fact.recorded, fact.event, changed)


def _settle(run: RunState, changed: Changed) -> None:
    for task in run.tasks.values():
        reason = waiting_reason(run, task)
        if reason != task.row.waiting_reason:
            task.row.waiting_reason = reason
            changed.tasks[task.row] = None


_FOLDS: Final[dict[type, Callable[[RunState, Recorded, Any, Changed], None]]] = {
    **dict.fromkeys(RUN_EVENTS, fold_run_event),
    **dict.fromkeys(TASK_EVENTS, fold_task_event),
    CallSettled: call_settled,
}
