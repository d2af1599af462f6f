"""The tables of runs in memory, for folds without a database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import Recorded
from crewlog.projections.projection import decode
from crewlog.projections.run_projection import APPROVALS, MODEL_CALLS, RUNS, TASKS, TOOL_CALLS, RunProjection
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

    def take_from(self, projection: RunProjection) -> None:
        """Write what a projection has to write."""
        changed = projection.take().rows
        pairs: list[tuple[Rows, Table[Any], Any]] = [
            (self.runs, RUNS, changed.runs),
            (self.tasks, TASKS, changed.tasks),
            (self.model_calls, MODEL_CALLS, changed.model_calls),
            (self.tool_calls, TOOL_CALLS, changed.tool_calls),
            (self.approvals, APPROVALS, changed.approvals),
        ]
        for rows, table, new in pairs:
            made = [msgspec.structs.asdict(row) for row in new]
            keys = [tuple(row[column] for column in table.key) for row in made]
            assert len(set(keys)) == len(keys), f"{table.name}: one upsert must not hold a key twice"
            rows.update(zip(keys, made, strict=True))


async def fold_page(projection: RunProjection, page: Sequence[Recorded], tables: Tables, *, after: int) -> None:
    """Fold one page as the read model does. What does not fold raises."""
    await projection.load(page, after=after, skipped=())
    for fact in map(decode, page):
        if type(fact.event) in projection.types:
            projection.fold(fact)
    tables.take_from(projection)


async def fold_pages(store: MemoryStore, pages: Sequence[Sequence[Recorded]], *, open_runs_max: int = 1000) -> Tables:
    """Fold pages one after the other and return the tables."""
    projection, tables, after = RunProjection(store, open_runs_max=open_runs_max), Tables(), 0
    for page in pages:
        await fold_page(projection, page, tables, after=after)
        after = page[-1].position
    return tables
