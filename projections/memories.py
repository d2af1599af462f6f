"""The projection of memories: what is remembered for whom now. A memory that was forgotten is gone from here; the log keeps the fact."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import asyncpg
import msgspec

from crewlog.projections.projection import Begins, Fact
from crewlog.projections.rows import MemoryRow
from crewlog.projections.table import Table
from crewlog.schemas.system_events import MemoryForgotten, MemoryRemembered

MEMORIES: Final = Table("memories", MemoryRow, key=("tenant", "user_name", "content"))

Key = tuple[str, str, str]
"""Tenant, user, content."""


class MemoryChanges(msgspec.Struct):
    """The last fact about each memory: its row, or None when it is forgotten."""

    rows: dict[Key, MemoryRow | None] = msgspec.field(default_factory=dict)

    async def apply(self, connection: asyncpg.Connection) -> None:
        """Delete what is forgotten and write the rest."""
        await MEMORIES.write(connection, [row for row in self.rows.values() if row is not None])
        if gone := [key for key, row in self.rows.items() if row is None]:
            await connection.execute(
                "DELETE FROM memories m USING unnest($1::text[], $2::text[], $3::text[]) g (tenant, user_name, content) "
                "WHERE m.tenant = g.tenant AND m.user_name = g.user_name AND m.content = g.content",
                *zip(*gone, strict=True),
            )


class MemoryProjection:
    """Keeps the memories of all tenants."""

    name = "memories"
    version = 1
    types: frozenset[type] = frozenset((MemoryRemembered, MemoryForgotten))
    tables = (MEMORIES.name,)
    facts_max = None

    def __init__(self) -> None:
        self._changes = MemoryChanges()

    async def load(self, begins: Begins, *, after: int, skipped: Collection[int]) -> None:
        """Nothing: the last fact about a memory is the whole memory."""

    def fold(self, fact: Fact) -> None:
        """The last fact about a memory counts."""
        event = fact.event
        if isinstance(event, MemoryForgotten):
            self._changes.rows[event.tenant, event.user, event.content] = None
        elif isinstance(event, MemoryRemembered):
            self._changes.rows[event.tenant, event.user, event.content] = MemoryRow(
                tenant=event.tenant,
                user_name=event.user,
                content=event.content,
                memory=event.text,
                about=event.about,
                trust=event.trust,
                kind=event.kind,
                run_id=event.run_id,
                task_id=event.task_id,
                remembered_us=fact.occurred_us,
                position=fact.position,
            )

    def take(self) -> MemoryChanges:
        """Hand out what changed."""
        changes, self._changes = self._changes, MemoryChanges()
        return changes

    def forget(self) -> None:
        """Drop what was not handed out."""
        self._changes = MemoryChanges()
