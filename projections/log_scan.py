"""The whole log as facts, read as fast as the driver can: only what folds look at, in pages, each being fetched while the one before is folded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from operator import itemgetter
from typing import Any, Final

import asyncpg
from asyncpg.pgproto.pgproto import UUID  # remembers its hash, and is quick to write again

from crewlog.projections.projection import Begins, Fact
from crewlog.schemas.codec import Event, Unknown, decode
from crewlog.schemas.errors import ContractError

PAGE_EVENTS: Final = 2_000
"""Events in one page: few enough to stay in the processor's cache, enough for the answer to be worth the question."""
KNOWN_IDS_MAX: Final = 100_000
"""Ids remembered at once."""

_HIGH_WATER: Final = "SELECT es.high_water()"
_PAGE: Final = """
SELECT position, stream_id, version, type, schema_version, data, occurred_us, run_id FROM es.events
 WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3
"""
_position, _type, _run_id = itemgetter(0), itemgetter(3), itemgetter(7)


class ScannedPage:
    """A stretch of the log in position order. It is decoded fact by fact, and no fact is kept: memory that is used again at once is fast."""

    def __init__(self, rows: list[Any], high_water: int) -> None:
        self._rows = rows
        self.high_water: Final = high_water

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def end(self) -> int:
        """Return the position of the last event."""
        return int(_position(self._rows[-1]))

    def begins(self, after: int) -> Begins:
        """Return what those of its events are about that stand behind a position."""
        last_first = self._rows[::-1]
        while last_first and _position(last_first[-1]) <= after:
            last_first.pop()
        return dict(zip(map(_run_id, last_first), map(_type, last_first), strict=True))

    def facts(self) -> Iterator[Fact]:
        """Decode one after the other."""
        event: Event | Unknown | ContractError
        for position, stream, version, type_, schema_version, data, occurred_us, run_id in self._rows:
            try:
                event = decode(type_, schema_version, data)
            except ContractError as error:
                event = error
            yield Fact(position, stream, version, type_, schema_version, occurred_us, run_id, event)


class _Ids(dict[bytes, UUID]):
    """Ids by their bytes, one object for each: hashing one for the first time takes longer than decoding an event's head."""

    def __missing__(self, key: bytes) -> UUID:
        if len(self) >= KNOWN_IDS_MAX:
            self.clear()
        made = self[key] = UUID(key)
        return made


async def scan_log(connection: asyncpg.Connection, *, after: int = 0) -> AsyncGenerator[ScannedPage, None]:
    """Yield the log behind a position, never past a gap that may still fill, until there is nothing left.

    Args:
        connection: used for nothing else meanwhile, in no transaction: what may be read next and that itself need snapshots of their own.
    """
    await connection.set_type_codec("uuid", schema="pg_catalog", encoder=lambda id_: id_.bytes, decoder=_Ids().__getitem__, format="binary")
    await connection.execute("SET enable_seqscan = off")  # whatever is known of the table: by position, not by sorting what is left
    high_water = 0
    while high_water < (high_water := await connection.fetchval(_HIGH_WATER)):
        reading = asyncio.create_task(_read(connection, after, high_water))
        try:
            while len(page := await reading):
                after = page.end
                reading = asyncio.create_task(_read(connection, after, high_water))
                await asyncio.sleep(0)  # asked now, so that the server reads it while this one is folded, which waits for nothing
                yield page
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def _read(connection: asyncpg.Connection, after: int, high_water: int) -> ScannedPage:
    return ScannedPage(await connection.fetch(_PAGE, after, high_water, PAGE_EVENTS), high_water)
