"""Fold the whole log again into fresh tables beside the live ones, then make the live ones equal to them in one transaction.

Only rows that differ are written, which is none when nothing was wrong. So nobody has to wait for a lock, readers see the old rows
until they see the new ones, and the live projector goes on meanwhile. Its checkpoints are locked at the end and never move backwards.
(Swapping whole tables would need locks that no reader may hold: with readers that join views there is no order in which they can be got.)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Final, NamedTuple

import asyncpg

from crewlog.events.store import EventStore, Recorded
from crewlog.projections.catalog import all_projections
from crewlog.projections.projection import Projection
from crewlog.projections.read_model import REFUSED, ReadModel
from crewlog.projections.view_connection import REBUILDER, connect_views
from crewlog.schemas.errors import ConfigError

PAGE_EVENTS_MAX: Final = 10_000

_COLUMNS: Final = """
SELECT array_agg(quote_ident(a.attname) ORDER BY a.attnum) AS columns,
       array_agg(quote_ident(a.attname) ORDER BY a.attnum) FILTER (WHERE a.attnum = ANY (i.indkey)) AS key
  FROM pg_attribute a JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
 WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
"""

Progress = Callable[[int, int], None]
"""Called with the position reached and the position to reach."""


class Rebuilt(NamedTuple):
    """Which projections were rebuilt, from how many events, up to where, and how many rows of each table had been different."""

    projections: tuple[str, ...]
    events: int
    position: int
    corrected: dict[str, int]


async def rebuild(url: str, store: EventStore, *, names: Collection[str] | None = None, progress: Progress = lambda _at, _of: None) -> Rebuilt:
    """Rebuild projections from the log.

    Args:
        url: login of the projector, which owns the tables.
        names: which projections; None for all.
        progress: told how far it is.

    Raises:
        ConfigError: a name nobody knows, or another rebuild is running.
        Unavailable: the server went away.
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
        self._events = self._seen = 0

    async def run(self) -> Rebuilt:
        await self._make_tables()
        await self._model.open()
        await self._fold()
        for table in self._tables:
            await self._connection.execute(f"ANALYZE {table}")
        corrected = await self._merge()
        await self._drop_tables()
        return Rebuilt(tuple(self._names), self._events, self._model.position, corrected)

    async def _make_tables(self) -> None:
        # table names are constants of the program, and the live table is the only description of its shape
        await self._drop_tables()
        for table in (*self._tables, "checkpoints", "problems"):
            await self._connection.execute(f"CREATE UNLOGGED TABLE rm_build.{table} (LIKE rm.{table} INCLUDING ALL)")

    async def _drop_tables(self) -> None:
        for table in (*self._tables, "checkpoints", "problems"):
            await self._connection.execute(f"DROP TABLE IF EXISTS rm_build.{table}")

    async def _fold(self) -> None:
        try:
            await self._model.advance_through(self._pages(self._model.position))
        except REFUSED:
            await self._model.open()  # back to what was written; what is refused is found one page after the other
            async for events in self._pages(self._model.position):
                await self._model.advance(events)

    async def _pages(self, after: int) -> AsyncIterator[Sequence[Recorded]]:
        """Yield the log behind a position; the next page is being read while one is folded."""
        reading = asyncio.create_task(self._store.read_all(after, PAGE_EVENTS_MAX))
        try:
            while True:
                page = await reading
                if len(page.events) == PAGE_EVENTS_MAX:
                    reading = asyncio.create_task(self._store.read_all(page.events[-1].position, PAGE_EVENTS_MAX))
                if page.events:
                    self._events += sum(recorded.position > self._seen for recorded in page.events)
                    self._seen = max(self._seen, page.events[-1].position)
                    self._progress(page.events[-1].position, page.high_water)
                    yield page.events
                if len(page.events) < PAGE_EVENTS_MAX:
                    return
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _merge(self) -> dict[str, int]:
        """Make the live tables equal to the fresh ones and return how many rows of each were not."""
        run = self._connection.execute
        async with self._connection.transaction():
            # the live projector moves its checkpoints first, too: whoever is second waits here, before it has written anything
            live = await self._connection.fetch("SELECT position FROM rm.checkpoints WHERE name = ANY ($1) ORDER BY name FOR UPDATE", self._names)
            if self._model.position < max((row["position"] for row in live), default=0):
                await self._fold()
            corrected = {table: await self._merge_table(table) for table in self._tables}
            await run("DELETE FROM rm.problems WHERE projection = ANY ($1)", self._names)
            await run("INSERT INTO rm.problems SELECT * FROM rm_build.problems")
            await run(
                """INSERT INTO rm.checkpoints (name, version, position) SELECT name, version, position FROM rm_build.checkpoints
                   ON CONFLICT (name) DO UPDATE SET version = excluded.version, position = excluded.position"""
            )
        return {table: rows for table, rows in corrected.items() if rows}

    async def _merge_table(self, table: str) -> int:
        columns, key = await self._connection.fetchrow(_COLUMNS, f"rm.{table}")
        same_key = " AND ".join(f"fresh.{column} = live.{column}" for column in key)
        equal = f"({', '.join(f'fresh.{c}' for c in columns)}) IS NOT DISTINCT FROM ({', '.join(f'live.{c}' for c in columns)})"
        names = ", ".join(columns)
        # names are constants of the program and come quoted from the catalog
        removed = await self._connection.execute(
            f"DELETE FROM rm.{table} live WHERE NOT EXISTS (SELECT FROM rm_build.{table} fresh WHERE {same_key} AND {equal})"  # noqa: S608
        )
        added = await self._connection.execute(
            f"""INSERT INTO rm.{table} ({names}) SELECT {names} FROM rm_build.{table} fresh
                 WHERE NOT EXISTS (SELECT FROM rm.{table} live WHERE {same_key})"""  # noqa: S608
        )
        return max(_count(removed), _count(added))


def _count(tag: str) -> int:
    """Read the number of rows out of a command's tag, as in `DELETE 3`."""
    return int(tag.rsplit(" ", 1)[1])
