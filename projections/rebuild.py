"""Fold the whole log again into fresh tables beside the live ones, and swap them in one transaction.

The live projector goes on meanwhile, and readers see the old rows until they see the new ones. The live checkpoints are locked
during the swap and never move backwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

import asyncpg

from crewlog.events.store import EventStore
from crewlog.projections.catalog import all_projections
from crewlog.projections.projection import Projection
from crewlog.projections.read_model import ReadModel
from crewlog.projections.view_connection import REBUILDER, connect_views
from crewlog.schemas.errors import ConfigError, Unavailable

PAGE_EVENTS_MAX: Final = 10_000
SWAP_TRIES_MAX: Final = 200
LOCK_TIMEOUT_MS: Final = 200
"""How long the swap waits for readers; shorter than Postgres' deadlock timeout, so that never a reader has to give way."""

_VIEWS: Final = """
SELECT c.oid::regclass::text AS name, pg_get_viewdef(c.oid) AS definition
  FROM pg_class c WHERE c.relnamespace = 'crewlog'::regnamespace AND c.relkind = 'v' ORDER BY c.relname
"""

Progress = Callable[[int, int], None]
"""Called with the position reached and the position to reach."""


class Rebuilt(NamedTuple):
    """Which projections were rebuilt, from how many events, and up to where."""

    projections: tuple[str, ...]
    events: int
    position: int


async def rebuild(url: str, store: EventStore, *, names: Collection[str] | None = None, progress: Progress = lambda _at, _of: None) -> Rebuilt:
    """Rebuild projections from the log.

    Args:
        url: login of the projector, which owns the tables.
        names: which projections; None for all.
        progress: told how far it is.

    Raises:
        ConfigError: a name nobody knows, or another rebuild is running.
        Unavailable: the server went away, or readers kept the tables busy.
    """
    known = all_projections(store)
    unknown = sorted(set(names or ()) - {p.name for p in known})
    if unknown:
        raise ConfigError(f"no projection is called {', '.join(unknown)}", hint=f"projections: {', '.join(p.name for p in known)}")
    chosen = [p for p in known if names is None or p.name in names]
    connection = await connect_views(url, "rm_build")
    try:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", REBUILDER):
            raise ConfigError("another process is rebuilding the views", hint="wait for it; nothing was changed")
        return await _Rebuild(connection, store, chosen, progress).run()
    finally:
        await connection.close()


class _Rebuild:
    def __init__(self, connection: asyncpg.Connection, store: EventStore, projections: Sequence[Projection], progress: Progress) -> None:
        self._connection, self._store, self._progress = connection, store, progress
        self._names = [p.name for p in projections]
        self._tables = [table for p in projections for table in p.tables]
        self._model = ReadModel(connection, projections)
        self._events = 0

    async def run(self) -> Rebuilt:
        await self._make_tables()
        await self._model.open()
        await self._fold()
        for _ in range(SWAP_TRIES_MAX):
            try:
                await self._swap()
                break
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                await self._model.open()  # what was folded inside the transaction is undone
                await asyncio.sleep(LOCK_TIMEOUT_MS / 1000)
        else:
            raise Unavailable(f"the rebuilt views could not be swapped in: readers held the tables in all of {SWAP_TRIES_MAX} tries")
        for table in self._tables:
            await self._connection.execute(f"ANALYZE rm.{table}")
        return Rebuilt(tuple(self._names), self._events, self._model.position)

    async def _make_tables(self) -> None:
        for table in (*self._tables, "checkpoints", "problems"):
            # names are constants of the program; the live table is the only description of its shape
            await self._connection.execute(f"DROP TABLE IF EXISTS rm_build.{table}; CREATE TABLE rm_build.{table} (LIKE rm.{table} INCLUDING ALL)")

    async def _fold(self) -> None:
        while True:
            page = await self._store.read_all(self._model.position, PAGE_EVENTS_MAX)
            if page.events:
                await self._model.advance(page.events)
                self._events += len(page.events)
                self._progress(self._model.position, page.high_water)
            if len(page.events) < PAGE_EVENTS_MAX:
                return

    async def _swap(self) -> None:
        run = self._connection.execute
        async with self._connection.transaction():
            await run(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'")
            # the live projector moves its checkpoints first, too: whoever is second waits here, before it holds anything
            live = await self._connection.fetch("SELECT position FROM rm.checkpoints WHERE name = ANY ($1) ORDER BY name FOR UPDATE", self._names)
            if self._model.position < max((row["position"] for row in live), default=0):
                await self._fold()
            await run("SET LOCAL search_path = pg_catalog")  # so that definitions come with full names
            views = await self._connection.fetch(_VIEWS)
            for table in self._tables:
                await run(f"ALTER TABLE rm.{table} SET SCHEMA rm_old; ALTER TABLE rm_build.{table} SET SCHEMA rm")
            for view in views:
                await run(f"CREATE OR REPLACE VIEW {view['name']} AS {view['definition']}")
            for table in self._tables:
                await run(f"DROP TABLE rm_old.{table}")
            await self._connection.execute("DELETE FROM rm.problems WHERE projection = ANY ($1)", self._names)
            await run("INSERT INTO rm.problems SELECT * FROM rm_build.problems")
            await run(
                """INSERT INTO rm.checkpoints (name, version, position) SELECT name, version, position FROM rm_build.checkpoints
                   ON CONFLICT (name) DO UPDATE SET version = excluded.version, position = excluded.position"""
            )
            await run("DROP TABLE rm_build.checkpoints, rm_build.problems")
