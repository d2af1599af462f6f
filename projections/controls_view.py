"""The projection of what operators have in force: which runs, tenants and agent kinds are paused or in quarantine, by whom since when."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import asyncpg
import msgspec

from crewlog.projections.projection import Begins, Fact
from crewlog.projections.rows import ControlRow
from crewlog.projections.table import Table
from crewlog.schemas.system_events import ScopePaused, ScopeQuarantined, ScopeReleased, ScopeResumed

CONTROLS: Final = Table("controls", ControlRow, key=("measure", "scope"))

Key = tuple[str, str]
"""Measure and scope."""


class ControlChanges(msgspec.Struct):
    """What came into force and what was taken back; the last word about a scope counts."""

    changed: dict[Key, ControlRow | None] = msgspec.field(default_factory=dict)

    async def apply(self, connection: asyncpg.Connection) -> None:
        """Write all of it."""
        await CONTROLS.write(connection, [row for row in self.changed.values() if row is not None])
        if gone := [key for key, row in self.changed.items() if row is None]:
            await connection.execute(
                "DELETE FROM controls c USING unnest($1::text[], $2::text[]) g (measure, scope) WHERE (c.measure, c.scope) = (g.measure, g.scope)",
                *zip(*gone, strict=True),
            )


class ControlProjection:
    """Keeps the table of what is in force."""

    name = "controls"
    version = 1
    types: frozenset[type] = frozenset((ScopePaused, ScopeResumed, ScopeQuarantined, ScopeReleased))
    tables = (CONTROLS.name,)
    facts_max = None

    def __init__(self) -> None:
        self._changes = ControlChanges()

    async def load(self, begins: Begins, *, after: int, skipped: Collection[int]) -> None:
        """Nothing: each fact says all there is."""

    def fold(self, fact: Fact) -> None:
        """A command replaces what is known of its scope."""
        event = fact.event
        match event:
            case ScopePaused():
                self._changes.changed["pause", event.scope] = _row("pause", fact, event)
            case ScopeQuarantined():
                self._changes.changed["quarantine", event.scope] = _row("quarantine", fact, event)
            case ScopeResumed():
                self._changes.changed["pause", event.scope] = None
            case ScopeReleased():
                self._changes.changed["quarantine", event.scope] = None

    def take(self) -> ControlChanges:
        """Hand out what changed."""
        changes, self._changes = self._changes, ControlChanges()
        return changes

    def forget(self) -> None:
        """Drop what was not handed out."""
        self._changes = ControlChanges()


def _row(measure: str, fact: Fact, event: ScopePaused | ScopeQuarantined) -> ControlRow:
    return ControlRow(measure, event.scope, event.actor, event.reason, fact.occurred_us)
