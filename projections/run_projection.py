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

from crewlog.events.store import EventStore
from crewlog.projections.calls import bill_corrected, call_settled
from crewlog.projections.erasures import ERASURES, ErasureChanges
from crewlog.projections.projection import Begins, Fact, fact_of
from crewlog.projections.rows import ApprovalRow, ModelCallRow, RunRow, TaskRow, ToolCallRow
from crewlog.projections.run_files import ARCHIVES, IMPORTS, FileChanges
from crewlog.projections.run_state import Changed, RunState
from crewlog.projections.runs import RUN_FOLDS
from crewlog.projections.table import Table, together, write_together
from crewlog.projections.tasks import IN_TASK_STREAM, TASK_FOLDS, unknown_task
from crewlog.projections.waiting import waiting_reason
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId
from crewlog.schemas.run_events import RUN_EVENTS, RunSubmitted
from crewlog.schemas.system_events import BillCorrected, CallSettled, PersonErased, RunArchived, RunImported
from crewlog.schemas.task_events import TASK_EVENTS

RUNS: Final = Table("runs", RunRow, key=("run_id",))
TASKS: Final = Table("tasks", TaskRow, key=("run_id", "key", "revision"))
MODEL_CALLS: Final = Table("model_calls", ModelCallRow, key=("task_id", "number"))
TOOL_CALLS: Final = Table("tool_calls", ToolCallRow, key=("task_id", "call_id"))
APPROVALS: Final = Table("approvals", ApprovalRow, key=("approval_id",), owner="task_id")

_TABLES: Final[tuple[Table[Any], ...]] = (RUNS, TASKS, MODEL_CALLS, TOOL_CALLS, APPROVALS)
OF_RUNS: Final = tuple(table.name for table in _TABLES)
"""Named like the fields of `Changed`."""
_UPSERTS: Final = together(_TABLES)

OPEN_RUNS_MAX: Final = 4096
"""Runs remembered at once; the one idle longest is forgotten first."""


class RunChanges(msgspec.Struct):
    """Rows to write: of runs that may have some in the tables, and of runs that certainly have none."""

    files: FileChanges
    erasures: ErasureChanges
    rows: Sequence[Changed]
    new: Sequence[Changed] = ()

    async def apply(self, connection: asyncpg.Connection) -> None:
        """Take out the runs that were archived, write each table once, then mark the runs that were erased."""
        await self.files.apply(connection, OF_RUNS)
        for table in _TABLES:
            await table.insert(connection, _rows(table, self.new))
        await write_together(connection, _UPSERTS, [_rows(table, self.rows) for table in _TABLES])
        await self.erasures.apply(connection)


def _rows(table: Table[Any], changes: Sequence[Changed]) -> list[Any]:
    return [row for changed in changes for row in getattr(changed, table.name)]


_Runs = dict[UUID | None, RunState]
"""Runs by their id; there is none under None, which an event has that is of no run."""


class RunProjection:
    """Keeps the tables of runs and of all that happens in them."""

    name = "runs"
    version = 6
    types: frozenset[type] = frozenset((*RUN_EVENTS, *TASK_EVENTS, CallSettled, BillCorrected, RunImported, RunArchived, PersonErased))
    tables = (*OF_RUNS, IMPORTS.name, ARCHIVES.name, ERASURES.name)
    facts_max = None

    def __init__(self, store: EventStore, *, open_runs_max: int = OPEN_RUNS_MAX) -> None:
        self._store, self._open_runs_max = store, open_runs_max
        self._open: OrderedDict[UUID, RunState] = OrderedDict()
        self._touched: _Runs = {}
        """Runs that something happened to since rows were taken last."""
        self._held: _Runs = {}
        """Runs under way whose rows were not handed out when others were."""
        self._unbegun: set[UUID] = set()
        """Runs forgotten between the first event of one of their tasks and their own."""
        self._files, self._erasures = FileChanges(), ErasureChanges()

    async def load(self, begins: Begins, *, after: int, skipped: Collection[int]) -> None:
        """Fold again the runs that the page goes on with and that are not remembered."""
        unknown = [run_id for run_id in begins if run_id is not None and run_id not in self._open]
        for run_id in unknown:
            if begins[run_id] != RunSubmitted.__name__ or run_id in self._unbegun:
                await self._fold_again(run_id, after, skipped)
                self._unbegun.discard(run_id)

    def fold(self, fact: Fact) -> None:
        """Apply one event to its task, or to its run, or to what is known of files and persons."""
        event = fact.event
        if (fold_task := TASK_FOLDS.get(type(event))) is not None:
            run = self._touched.get(fact.run_id) or self._touch(fact)
            if (task := run.by_stream.get(fact.stream)) is None:
                raise unknown_task(run, fact)
            fold_task(task, fact, event, run.changed)
        elif (fold_run := _RUN_FOLDS.get(type(event))) is not None:
            run = self._touched.get(fact.run_id) or self._touch(fact)
            fold_run(run, fact, event, run.changed)
        else:
            self._fold_file(fact)

    def _touch(self, fact: Fact) -> RunState:
        if (run_id := fact.run_id) is None:
            raise ContractError(f"{fact.stream} version {fact.version} is a {fact.type} without a run id")
        if (run := self._open.get(run_id)) is None:
            run = self._open[run_id] = RunState(RunRow(run_id))
        self._touched[run_id] = run
        return run

    def _fold_file(self, fact: Fact) -> None:
        event = fact.event
        if isinstance(event, PersonErased):
            self._erasures.fold(event)
            return
        assert isinstance(event, RunImported | RunArchived)
        self._files.fold(fact, event)
        if isinstance(event, RunArchived):  # what is not written yet need not be
            for runs in (self._open, self._touched, self._held):
                runs.pop(event.run_id, None)

    def take(self) -> RunChanges:
        """Settle the waiting reasons of the runs touched, and hand out the rows that changed."""
        touched, self._touched = self._touched, {}
        held, self._held = self._held, {}
        for run in touched.values():
            if run.is_over:
                self._open.pop(run.row.run_id, None)
            else:
                self._open.move_to_end(run.row.run_id)
        while len(self._open) > self._open_runs_max:
            self._forget_idlest()
        rows = [self._hand_out(run) for run in (held | touched).values()]
        return RunChanges(*self._take_files(), rows)

    def take_done(self, *, keep_max: int) -> RunChanges:
        """Hand out the rows of runs that are over, and of those idle longest while there are more than may be kept.

        For tables that were empty and that nobody reads yet: each row is written once, and as new. What changes tables by statements of its own,
        as archiving does, must drop or hand out what is kept of the runs it is about.

        Args:
            keep_max: most rows of runs under way to keep for later.
        """
        touched, self._touched = self._touched, {}
        done = []
        for run in touched.values():
            run_id = run.row.run_id
            if run.is_over:
                self._open.pop(run_id, None)
                self._held.pop(run_id, None)
                done.append(run)
            else:
                self._held[run_id] = run
                self._open.move_to_end(run_id)
        kept = sum(run.changed.rows for run in self._held.values())
        while self._open and (kept > keep_max or len(self._open) > self._open_runs_max):
            run_id, run = self._forget_idlest()
            kept -= run.changed.rows
            if self._held.pop(run_id, None) is not None:
                done.append(run)
        new, again = [run for run in done if not run.is_written], [run for run in done if run.is_written]
        rows, fresh = [self._hand_out(run) for run in again], [self._hand_out(run) for run in new]
        return RunChanges(*self._take_files(), rows, fresh)

    def _forget_idlest(self) -> tuple[UUID, RunState]:
        run_id, run = self._open.popitem(last=False)
        if not run.row.submitted_us:
            self._unbegun.add(run_id)
        return run_id, run

    def _hand_out(self, run: RunState) -> Changed:
        if run.was_over:
            self._erasures.again.add(run.row.run_id)
        return _hand_out(run)

    def _take_files(self) -> tuple[FileChanges, ErasureChanges]:
        taken = self._files, self._erasures
        self._files, self._erasures = FileChanges(), ErasureChanges()
        return taken

    def forget(self) -> None:
        """Drop all states: they will be folded again."""
        self._open.clear()
        self._touched.clear()
        self._held.clear()
        self._unbegun.clear()
        self._files, self._erasures = FileChanges(), ErasureChanges()

    async def _fold_again(self, run_id: UUID, after: int, skipped: Collection[int]) -> None:
        events = await self._store.read_run(RunId(run_id))
        run = self._open[run_id] = self._touched[run_id] = RunState(RunRow(run_id))
        for recorded in events:
            if recorded.position > after:
                break
            fact = fact_of(recorded)
            # whoever wrote to a stream of this run may have named another one: that one's state is none of ours
            if fact.run_id == run_id and type(fact.event) in _OF_RUNS and fact.position not in skipped:
                self.fold(fact)
        del self._touched[run_id]
        _hand_out(run)  # all of that is in the tables


def _hand_out(run: RunState) -> Changed:
    for task in run.tasks.values():
        reason = waiting_reason(run, task)
        if reason != task.row.waiting_reason:
            task.row.waiting_reason = reason
            run.changed.tasks[task.row] = None
    changed, run.changed = run.changed, Changed()
    run.is_written, run.was_over = True, run.is_over
    return changed


_RUN_FOLDS: Final[dict[type, Callable[[RunState, Fact, Any, Changed], None]]] = {
    **RUN_FOLDS,
    **IN_TASK_STREAM,
    CallSettled: call_settled,
    BillCorrected: bill_corrected,
}
_OF_RUNS: Final = _RUN_FOLDS.keys() | TASK_FOLDS.keys()
