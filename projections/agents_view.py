"""The projection of workers: who registered, with which tools and models, who left, and which providers fail them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import asyncpg
import msgspec

from crewlog.projections.json_text import to_json
from crewlog.projections.projection import Begins, Fact
from crewlog.projections.rows import AgentRow, ProviderRow
from crewlog.projections.table import Table
from crewlog.schemas.subjects import SHADOW_LANE
from crewlog.schemas.system_events import AgentRegistered, AgentStopped, ProviderStateChanged

AGENTS: Final = Table("agents", AgentRow, key=("kind", "worker"))

PROVIDERS: Final = Table("providers", ProviderRow, key=("worker", "wire", "provider", "model"))

Worker = tuple[str, str]
"""Kind and name."""


class AgentChanges(msgspec.Struct):
    """Workers that registered, workers of earlier pages that left since, and what workers saw of providers."""

    registered: dict[Worker, AgentRow] = msgspec.field(default_factory=dict)
    stopped_us: dict[Worker, int] = msgspec.field(default_factory=dict)
    providers: dict[tuple[str, str, str, str], ProviderRow] = msgspec.field(default_factory=dict)

    async def apply(self, connection: asyncpg.Connection) -> None:
        """Write all sets."""
        await AGENTS.write(connection, self.registered.values())
        await PROVIDERS.write(connection, self.providers.values())
        if self.stopped_us:
            kinds, workers = zip(*self.stopped_us, strict=True)
            await connection.execute(
                """UPDATE agents a SET stopped_us = s.stopped_us FROM unnest($1::text[], $2::text[], $3::bigint[]) s (kind, worker, stopped_us)
                   WHERE a.kind = s.kind AND a.worker = s.worker""",
                kinds,
                workers,
                list(self.stopped_us.values()),
            )


class AgentProjection:
    """Keeps the tables of workers and of providers."""

    name = "agents"
    version = 2
    types: frozenset[type] = frozenset((AgentRegistered, AgentStopped, ProviderStateChanged))
    tables = (AGENTS.name, PROVIDERS.name)
    facts_max = None

    def __init__(self) -> None:
        self._changes = AgentChanges()

    async def load(self, begins: Begins, *, after: int, skipped: Collection[int]) -> None:
        """Nothing: each fact says all there is."""

    def fold(self, fact: Fact) -> None:
        """A registration replaces what was known of the worker; leaving adds the time."""
        event = fact.event
        if isinstance(event, AgentRegistered):
            self._changes.stopped_us.pop((event.kind, event.worker), None)
            self._changes.registered[event.kind, event.worker] = AgentRow(
                kind=event.kind,
                worker=event.worker,
                description=event.description,
                version=event.version,
                slots=event.slots,
                model=event.model,
                simulated=event.simulated,
                tools=to_json(event.tools),
                unavailable=event.unavailable,
                started_us=fact.occurred_us,
                is_shadow=event.lane == SHADOW_LANE,
            )
        elif isinstance(event, ProviderStateChanged):
            key = (event.worker, event.wire, event.provider, event.model)
            self._changes.providers[key] = ProviderRow(*key, event.state, event.until_us or None, event.reason, fact.occurred_us)
        elif isinstance(event, AgentStopped):
            row = self._changes.registered.get((event.kind, event.worker))
            if row is not None:
                row.stopped_us = fact.occurred_us
            else:
                self._changes.stopped_us[event.kind, event.worker] = fact.occurred_us

    def take(self) -> AgentChanges:
        """Hand out what changed."""
        changes, self._changes = self._changes, AgentChanges()
        return changes

    def forget(self) -> None:
        """Drop what was not handed out."""
        self._changes = AgentChanges()
