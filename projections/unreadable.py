"""The projection of what this program cannot read: event types or versions it does not know, and bodies that do not decode.

They are skipped by everybody else, so they are counted here, where `status` shows them.
"""

from __future__ import annotations

from collections.abc import Collection

import asyncpg
import msgspec

from crewlog.projections.projection import Begins, Fact
from crewlog.schemas.codec import Unknown
from crewlog.schemas.errors import ContractError


class Count(msgspec.Struct):
    """How many events of a type, from where to where, and what is wrong with the first."""

    error: str
    first_position: int
    last_position: int
    events: int = 0


class UnreadableChanges(msgspec.Struct):
    """Counts to add, by type and schema version."""

    counts: dict[tuple[str, int], Count] = msgspec.field(default_factory=dict)

    async def apply(self, connection: asyncpg.Connection) -> None:
        """Add to what was counted before; the checkpoint keeps it from being added twice."""
        if self.counts:
            types, versions = zip(*self.counts, strict=True)
            counts = self.counts.values()
            await connection.execute(
                """INSERT INTO unreadable AS u (type, schema_version, error, first_position, last_position, events)
                   SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[])
                   ON CONFLICT (type, schema_version) DO UPDATE SET last_position = excluded.last_position, events = u.events + excluded.events""",
                types,
                versions,
                *zip(*map(msgspec.structs.astuple, counts), strict=True),
            )


class UnreadableProjection:
    """Counts events this program cannot read."""

    name = "unreadable"
    version = 1
    types: frozenset[type] = frozenset((Unknown, ContractError))
    tables = ("unreadable",)
    facts_max = None

    def __init__(self) -> None:
        self._changes = UnreadableChanges()

    async def load(self, begins: Begins, *, after: int, skipped: Collection[int]) -> None:
        """Nothing to load."""

    def fold(self, fact: Fact) -> None:
        """Count one."""
        event = fact.event
        error = str(event) if isinstance(event, ContractError) else f"{fact.type} version {fact.schema_version} is not known to this program"
        key = (fact.type, fact.schema_version)
        count = self._changes.counts.setdefault(key, Count(error, fact.position, fact.position))
        count.last_position = fact.position
        count.events += 1

    def take(self) -> UnreadableChanges:
        """Hand out the counts."""
        changes, self._changes = self._changes, UnreadableChanges()
        return changes

    def forget(self) -> None:
        """Drop what was not handed out."""
        self._changes = UnreadableChanges()
