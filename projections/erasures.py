"""Runs whose person's data was erased: a list of them, and what the tables of runs say of their texts from then on.

Rows of such runs never held a text, only the mark that one is under a key; it is replaced by one that says that the key is gone.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import asyncpg
import msgspec

from crewlog.projections.rows import ErasureRow
from crewlog.projections.table import Table
from crewlog.schemas.public_form import ERASED, PERSONAL
from crewlog.schemas.system_events import PersonErased

ERASURES: Final = Table("erasures", ErasureRow, key=("run_id",))

_TEXTS: Final = {
    "runs": ("goal", "error"),
    "tasks": ("objective", "error"),
    "model_calls": ("error",),
    "approvals": ("reason", "note"),
}
"""Columns of the tables of runs that say what was written."""
_JSON: Final = {"tasks": ("issues",), "tool_calls": ("compensation",)}
"""Columns that say it inside of JSON."""


class ErasureChanges(msgspec.Struct):
    """Erasures in a page of the log."""

    rows: dict[UUID, ErasureRow] = msgspec.field(default_factory=dict)
    again: set[UUID] = msgspec.field(default_factory=set)
    """Runs that something happened to after their end. Rows that are written then say what events say, so they are marked if the run was erased."""

    def fold(self, event: PersonErased) -> None:
        """Note an erasure. The first one of a run counts: nothing was left for another."""
        for run_id in event.runs:
            self.rows.setdefault(run_id, ErasureRow(run_id, event.tenant, event.user, event.actor, event.reason, event.erased_us))

    async def apply(self, connection: asyncpg.Connection) -> None:
        """Write the rows and mark the texts of the runs, after everything else of the page."""
        await ERASURES.write(connection, self.rows.values())
        runs = [*self.rows]
        if self.again:
            runs += [row[0] for row in await connection.fetch("SELECT run_id FROM erasures WHERE run_id = ANY ($1)", list(self.again))]
        if not runs:
            return
        for table, columns in _TEXTS.items():
            await _mark(connection, table, {column: f"replace({column}, $2, $3)" for column in columns}, runs)
        for table, columns in _JSON.items():
            await _mark(connection, table, {column: f"replace({column}::text, $2, $3)::jsonb" for column in columns}, runs)


async def _mark(connection: asyncpg.Connection, table: str, columns: dict[str, str], runs: list[UUID]) -> None:
    changes = ", ".join(f"{column} = {value}" for column, value in columns.items())
    # names are constants of the program
    await connection.execute(f"UPDATE {table} SET {changes} WHERE run_id = ANY ($1)", runs, PERSONAL, ERASED)  # noqa: S608
