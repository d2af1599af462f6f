"""The tables of runs in memory, for folds without a database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import Recorded
from crewlog.projections.projection import begins, fact_of
from crewlog.projections.run_projection import APPROVALS, MODEL_CALLS, RUNS, TASKS, TOOL_CALLS, RunChanges, RunProjection
from crewlog.projections.run_state import Changed
from crewlog.projections.table import Table

Rows = dict[tuple[Any, ...], dict[str, Any]]


class Tables:
    """What the tables would hold."""

    def __init__(self) -> None:
        self.runs: Rows = {}
        self.tasks: Rows = {}
        self.model_calls: Rows = {}
        self.tool_calls: Rows = {}
        self.approvals: Rows = {}

    def write(self, changes: RunChanges) -> None:
        """Write what a projection has to write, as its tables take it."""
        for table in (RUNS, TASKS, MODEL_CALLS, TOOL_CALLS, APPROVALS):
            held: Rows = getattr(self, table.name)
            fresh, again = _rows(table, changes.new), _rows(table, changes.rows)
            assert not fresh.keys() & held.keys(), f"{table.name}: a row that is there already is said to be new"
            held |= fresh
            held |= again


def _rows(table: Table[Any], changed: Sequence[Changed]) -> Rows:
    made = [msgspec.structs.asdict(row) for one in changed for row in getattr(one, table.name)]
    rows = {tuple(row[column] for column in table.key): row for row in made}
    assert len(rows) == len(made), f"{table.name}: one statement must not hold a key twice"
    return rows


async def fold_page(projection: RunProjection, page: Sequence[Recorded], *, after: int) -> None:
    """Fold one page as the read model does. What does not fold raises."""
    await projection.load(begins(page, after), after=after, skipped=())
    for fact in map(fact_of, page):
        if type(fact.event) in projection.types:
            projection.fold(fact)


async def fold_pages(store: MemoryStore, pages: Sequence[Sequence[Recorded]], *, open_runs_max: int = 1000) -> Tables:
    """Fold pages one after the other as the live read model does, and return the tables."""
    projection, tables, after = RunProjection(store, open_runs_max=open_runs_max), Tables(), 0
    for page in pages:
        await fold_page(projection, page, after=after)
        tables.write(projection.take())
        after = page[-1].position
    return tables


async def fold_in_bulk(store: MemoryStore, pages: Sequence[Sequence[Recorded]], *, keep_max: int = 1000) -> Tables:
    """Fold pages as a rebuild does, which keeps rows until their run is over, and return the tables."""
    projection, tables, after = RunProjection(store), Tables(), 0
    for page in pages:
        await fold_page(projection, page, after=after)
        tables.write(projection.take_done(keep_max=keep_max))
        after = page[-1].position
    tables.write(projection.take_done(keep_max=0))
    return tables
