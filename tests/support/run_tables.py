"""The tables of runs in memory, for folds without a database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import Recorded
from crewlog.projections.projection import Problem, decode, fold_all
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


async def fold_pages(store: MemoryStore, pages: Sequence[Sequence[Recorded]], *, open_runs_max: int = 1000) -> tuple[Tables, list[Problem]]:
    """Fold pages as the read model does, and return the tables and what could not be folded."""
    projection, tables, problems = RunProjection(store, open_runs_max=open_runs_max), Tables(), list[Problem]()
    after = 0
    for page in pages:
        facts = [fact for fact in map(decode, page) if type(fact.event) in projection.types]
        await projection.load(facts, after=after, skipped=())
        problems += fold_all(projection, facts)
        tables.take_from(projection)
        after = page[-1].position
    return tables, problems
