"""Runs and files: which runs were read from one, and which went to one and left the log. Rows of the latter leave all tables of runs."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import asyncpg
import msgspec

from crewlog.projections.projection import Fact
from crewlog.projections.rows import ArchiveRow, ImportRow
from crewlog.projections.table import Table
from crewlog.schemas.system_events import RunArchived, RunImported

IMPORTS: Final = Table("imports", ImportRow, key=("run_id",))
ARCHIVES: Final = Table("archives", ArchiveRow, key=("run_id",))


class FileChanges(msgspec.Struct):
    """Runs that came or went in a page of the log."""

    imports: dict[UUID, ImportRow] = msgspec.field(default_factory=dict)
    archives: dict[UUID, ArchiveRow] = msgspec.field(default_factory=dict)

    def fold(self, fact: Fact, event: RunImported | RunArchived) -> None:
        """Note where a run came from or went to. What was archived twice went to the last file."""
        if isinstance(event, RunImported):
            self.imports[event.run_id] = ImportRow(
                run_id=event.run_id,
                file=event.file,
                sha256=event.sha256,
                events=event.events,
                blobs=event.blobs,
                actor=event.actor,
                made_by=event.made_by,
                imported_us=fact.occurred_us,
            )
            return
        self.archives[event.run_id] = ArchiveRow(
            run_id=event.run_id,
            tenant=event.tenant,
            user_name=event.user,
            type=event.type,
            goal=event.goal,
            status=event.status,
            submitted_us=event.submitted_us,
            finished_us=event.finished_us,
            cost_micro_usd=event.cost_micro_usd,
            events=event.events,
            file=event.file,
            sha256=event.sha256,
            actor=event.actor,
            archived_us=fact.occurred_us,
        )

    async def apply(self, connection: asyncpg.Connection, tables: tuple[str, ...]) -> None:
        """Write the rows, and delete what the tables of runs have about those that are gone.

        Args:
            tables: with a column `run_id`.
        """
        await IMPORTS.write(connection, self.imports.values())
        await ARCHIVES.write(connection, self.archives.values())
        if self.archives:
            for table in tables:
                await connection.execute(f"DELETE FROM {table} WHERE run_id = ANY ($1)", list(self.archives))  # noqa: S608 - a constant of the program
