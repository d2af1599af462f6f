"""Fold the whole log again into fresh tables beside the live ones, then make the live ones equal to them in one transaction.

Only rows that differ are written, which is none when nothing was wrong. So nobody has to wait for a lock, readers see the old rows
until they see the new ones, and the live projector goes on meanwhile. Its checkpoints are locked at the end and never move backwards.
(Swapping whole tables would need locks that no reader may hold: with readers that join views there is no order in which they can be got.)

The fresh tables have no index but their key, so filling them is cheap. When the database refuses a row, they are made once more with
every index and filled as the live ones are, which finds the event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Final, NamedTuple

import asyncpg

from crewlog.events.connections import explain, is_retryable
from crewlog.events.store import EventStore
from crewlog.projections.bulk import Progress, fold_all
from crewlog.projections.catalog import all_projections
from crewlog.projections.log_scan import scan_log
from crewlog.projections.projection import Projection
from crewlog.projections.read_model import REFUSED, ReadModel
from crewlog.projections.view_connection import REBUILDER, connect_views
from crewlog.schemas.errors import ConfigError, Unavailable

log = logging.getLogger(__name__)

PAGE_EVENTS_MAX: Final = 10_000

_SHAPES: Final = """
SELECT t.name, array_agg(quote_ident(a.attname) ORDER BY a.attnum), array_agg(quote_ident(a.attname) ORDER BY a.attnum) FILTER (WHERE a.attnum = ANY (i.indkey))
  FROM unnest($1::text[]) WITH ORDINALITY t (name, nr)
  JOIN pg_attribute a ON a.attrelid = ('rm.' || t.name)::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
  JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
 GROUP BY t.name, t.nr ORDER BY t.nr
"""
_IS_SAME: Final = """
SELECT (SELECT count(*) FROM rm.{name}) = (SELECT count(*) FROM rm_build.{name})
   AND NOT EXISTS (SELECT {columns} FROM rm.{name} EXCEPT ALL SELECT {columns} FROM rm_build.{name})
"""
_WORK_MEM: Final = "SET work_mem = '128MB'"
"""Tables are compared by hashing their rows."""

_OF_PROGRESS: Final = ("checkpoints", "problems")


class _Shape(NamedTuple):
    """A table with its columns and those of its primary key, all quoted as SQL wants them."""

    name: str
    columns: Sequence[str]
    key: Sequence[str]


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
        ConfigError: a name nobody knows, another rebuild is running, or the database is not migrated.
        Unavailable: the server went away.
    """
    known = all_projections(store)
    unknown = sorted(set(names or ()) - {p.name for p in known})
    if unknown:
        raise ConfigError(f"no projection is called {', '.join(unknown)}", hint=f"projections: {', '.join(p.name for p in known)}")
    chosen = [p for p in known if names is None or p.name in names]
    async with AsyncExitStack() as closing:
        writing, reading = [await closing.enter_async_context(_views(url)) for _ in range(2)]
        if not await writing.fetchval("SELECT pg_try_advisory_lock($1)", REBUILDER):
            raise ConfigError("another process is rebuilding the views", hint="wait for it; nothing was changed")
        try:
            return await _Rebuild(writing, reading, store, chosen, progress).run()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            if is_retryable(error, writing):
                raise Unavailable(f"rebuild the views: Postgres went away: {error or type(error).__name__}") from error
            raise explain(error, "rebuild the views") from error


@asynccontextmanager
async def _views(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect_views(url, "rm_build")
    try:
        await connection.execute(_WORK_MEM)
        yield connection
    finally:
        await connection.close()


class _Rebuild:
    def __init__(
        self, connection: asyncpg.Connection, reading: asyncpg.Connection, store: EventStore, projections: Sequence[Projection], progress: Progress
    ) -> None:
        self._connection, self._reading, self._store, self._progress = connection, reading, store, progress
        self._projections = projections
        self._names = [p.name for p in projections]
        self._tables: Sequence[_Shape] = ()
        self._model = ReadModel(connection, projections)
        self._events = 0

    async def run(self) -> Rebuilt:
        names = [table for p in self._projections for table in p.tables]
        self._tables = [_Shape(*row) for row in await self._connection.fetch(_SHAPES, names)]
        try:
            corrected = await self._in_bulk()
        except REFUSED as error:
            log.warning("the database refuses a row (%s): folding once more to find its event", error)
            corrected = await self._page_by_page()
        await self._drop_tables()
        return Rebuilt(tuple(self._names), self._events, self._model.position, corrected)

    async def _in_bulk(self) -> dict[str, int]:
        await self._make_tables(indexed=False)
        async with aclosing(scan_log(self._reading)) as pages:
            self._events = await fold_all(self._connection, self._projections, pages, self._progress)
        await self._model.open()
        return await self._merge()

    async def _page_by_page(self) -> dict[str, int]:
        await self._make_tables(indexed=True)
        await self._model.open()
        self._events = 0
        await self._follow()
        return await self._merge()

    async def _make_tables(self, *, indexed: bool) -> None:
        # table names are constants of the program, and the live table is the only description of its shape
        await self._drop_tables()
        made = [f"CREATE UNLOGGED TABLE rm_build.{name} (LIKE rm.{name} INCLUDING ALL)" for name in _OF_PROGRESS]
        for name, _, key in self._tables:
            only_key = "" if indexed else f"EXCLUDING INDEXES, PRIMARY KEY ({', '.join(key)})"
            made.append(f"CREATE UNLOGGED TABLE rm_build.{name} (LIKE rm.{name} INCLUDING ALL {only_key})")
        await self._connection.execute(";".join(made))

    async def _drop_tables(self) -> None:
        names = [*_OF_PROGRESS, *(table.name for table in self._tables)]
        await self._connection.execute(f"DROP TABLE IF EXISTS {', '.join(f'rm_build.{name}' for name in names)}")

    async def _follow(self) -> None:
        """Take in what the log has behind the model."""
        while (page := await self._store.read_all(self._model.position, PAGE_EVENTS_MAX)).events:
            await self._model.advance(page.events)
            self._events += len(page.events)
            self._progress(self._model.position, page.high_water)

    async def _merge(self) -> dict[str, int]:
        """Make the live tables equal to the fresh ones and return how many rows of each were not."""
        run = self._connection.execute
        async with self._connection.transaction():
            # the live projector moves its checkpoints first, too: whoever is second waits here, before it has written anything
            live = await self._connection.fetch("SELECT position FROM rm.checkpoints WHERE name = ANY ($1) ORDER BY name FOR UPDATE", self._names)
            comparing = [self._connection, self._reading]
            if self._model.position < max((row["position"] for row in live), default=0):
                await self._follow()
                comparing = [self._connection]  # nobody else sees the rows just added
            corrected = {table.name: await self._merge_table(table) for table in await self._differing(comparing)}
            await run("DELETE FROM rm.problems WHERE projection = ANY ($1)", self._names)
            await run("INSERT INTO rm.problems SELECT * FROM rm_build.problems")
            await run(
                """INSERT INTO rm.checkpoints (name, version, position) SELECT name, version, position FROM rm_build.checkpoints
                   ON CONFLICT (name) DO UPDATE SET version = excluded.version, position = excluded.position"""
            )
        return {table: rows for table, rows in corrected.items() if rows}

    async def _differing(self, connections: Collection[asyncpg.Connection]) -> list[_Shape]:
        """Return the tables that are not the same in both schemas, compared over several connections at once."""
        left = iter(self._tables)  # of all: whoever is done takes the next one

        async def compare(connection: asyncpg.Connection) -> list[_Shape]:
            return [table for table in left if not await connection.fetchval(_IS_SAME.format(name=table.name, columns=", ".join(table.columns)))]

        return [table for found in await asyncio.gather(*map(compare, connections)) for table in found]

    async def _merge_table(self, table: _Shape) -> int:
        name, columns, key = table
        # names are constants of the program and come quoted from the catalog
        same_key = " AND ".join(f"fresh.{column} = live.{column}" for column in key)
        equal = f"({', '.join(f'fresh.{c}' for c in columns)}) IS NOT DISTINCT FROM ({', '.join(f'live.{c}' for c in columns)})"
        removed = await self._connection.execute(
            f"DELETE FROM rm.{name} live WHERE NOT EXISTS (SELECT FROM rm_build.{name} fresh WHERE {same_key} AND {equal})"  # noqa: S608
        )
        added = await self._connection.execute(
            f"""INSERT INTO rm.{name} ({", ".join(columns)}) SELECT {", ".join(columns)} FROM rm_build.{name} fresh
                 WHERE NOT EXISTS (SELECT FROM rm.{name} live WHERE {same_key})"""  # noqa: S608
        )
        return max(_count(removed), _count(added))


def _count(tag: str) -> int:
    """Read the number of rows out of a command's tag, as in `DELETE 3`."""
    return int(tag.rsplit(" ", 1)[1])
