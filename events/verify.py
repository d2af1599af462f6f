"""Verify the log in Postgres: every event against its seal, every seal against the one before, every stream against its own count.

Read with a login of one's own, in pages, beside everything else that goes on; nothing is written and nobody waits. What the database says
about its rows is only where they are: hashes are computed here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple

from crewlog.events.blobs import unpack_blob
from crewlog.events.clock import Clock
from crewlog.events.connections import Connections, connector
from crewlog.events.seals import EVENT_BYTES, Fault, Gap, Seal, SealedEvent, SealMark, faults, holds, name_removed, split
from crewlog.schemas.errors import TerminalError
from crewlog.schemas.ids import Hash

PAGE_EVENTS: Final = 10_000
"""Events read at once, or one seal's."""
PAGE_SEALS: Final = 500
PAGE_BLOBS: Final = 200
FAULTS_MAX: Final = 1_000
"""When so many places are known to be wrong, the rest is not looked at: who removed half of a log needs no list."""
CALL_TIMEOUT_S: Final = 300.0
"""Longest time for one statement, in seconds: comparing all streams reads the index of the whole log."""

_SEALS: Final = "SELECT number, first_position, last_position, events, hash FROM es.seals WHERE number > $1 ORDER BY number LIMIT $2"
_NEWEST: Final = "SELECT number, first_position, last_position, events, hash FROM es.seals ORDER BY number DESC LIMIT 1"
_ONE: Final = "SELECT number, first_position, last_position, events, hash FROM es.seals WHERE number = $1"
_MARKS: Final = "SELECT marks FROM es.seals WHERE number = $1"
_EVENTS: Final = (
    f"SELECT e.position, e.stream_id, e.version, {EVENT_BYTES}, NULL FROM es.events e WHERE e.position >= $1 AND e.position <= $2 "  # noqa: S608 - a constant
    "UNION ALL SELECT t.position, '', 0, NULL, t.digest FROM es.tombstones t WHERE t.position >= $1 AND t.position <= $2 ORDER BY 1"
)
"""Both in one statement: a run may be archived meanwhile, and each of its events is either there or has left its tombstone."""
_ARCHIVED: Final = """
SELECT t.run_id, count(*) AS events, min(t.position) AS first, max(t.position) AS last, min(a.data ->> 'file') AS file,
       min(a.data ->> 'sha256') AS sha256
  FROM es.tombstones t LEFT JOIN LATERAL (
         SELECT e.position, e.data FROM es.events e WHERE e.stream_id = 'archive/' || t.run_id ORDER BY e.version DESC LIMIT 1) a ON true
 GROUP BY t.run_id ORDER BY 3
"""
_UNSEALED: Final = "SELECT count(*) FROM es.events WHERE position > $1"
_STREAMS: Final = """
SELECT stream_id, s.version, n.events, n.newest, n.position
  FROM es.streams s
  FULL JOIN (SELECT stream_id, count(*) AS events, max(version) AS newest, max(position) AS position FROM es.events GROUP BY stream_id) n USING (stream_id)
 WHERE (s.version IS DISTINCT FROM n.events OR s.version IS DISTINCT FROM n.newest)
   AND (s.run_id IS NULL OR s.run_id NOT IN (SELECT t.run_id FROM es.tombstones t))
 ORDER BY stream_id LIMIT $1
"""
_GAPS: Final = """
WITH there AS (SELECT stream_id, version, position FROM es.events WHERE stream_id = ANY ($1)),
     wanted AS (SELECT s.stream_id, g.version FROM es.streams s CROSS JOIN LATERAL generate_series(1, s.version) g (version) WHERE s.stream_id = ANY ($1))
SELECT w.stream_id AS stream, w.version,
       coalesce((SELECT max(t.position) FROM there t WHERE t.stream_id = w.stream_id AND t.version < w.version), 0) AS after,
       coalesce((SELECT min(t.position) FROM there t WHERE t.stream_id = w.stream_id AND t.version > w.version), 9223372036854775807) AS before,
       hashtext(w.stream_id) AS hint
  FROM wanted w WHERE NOT EXISTS (SELECT FROM there t WHERE t.stream_id = w.stream_id AND t.version = w.version) ORDER BY 1, 2 LIMIT $2
"""
_BLOBS: Final = "SELECT hash, codec, size, data FROM es.blobs WHERE hash > $1 ORDER BY hash LIMIT $2"
_SEAL: Final = "SELECT number, first_position, last_position, events, hash FROM es.seal($1)"

Progress = Callable[[int, int], None]
"""Called with the position reached and the position to reach."""


class ArchivedRun(NamedTuple):
    """A run whose events went to a file. Their hashes are still in the seals."""

    run_id: str
    events: int
    first: int
    last: int
    file: str
    sha256: str


class Verified(NamedTuple):
    """What was found. `newest` is the last seal, None without any; `unsealed` counts the events behind it; `events` leaves out archived ones;
    `vouched_position` is the one up to which a kept seal says what stood there, 0 without one."""

    events: int
    seals: int
    unsealed: int
    newest: SealMark | None
    position: int
    vouched_position: int
    archived: Sequence[ArchivedRun]
    faults: Sequence[Fault]


async def seal(connections: Connections, events_max: int = PAGE_EVENTS) -> Seal | None:
    """Make one seal over what is behind the last one; None when nothing is."""
    rows = await connections.fetch("seal the log", _SEAL, events_max)
    return Seal(*rows[0]) if rows else None


async def newest_seal(connections: Connections) -> SealMark | None:
    """Return the last seal; None when nothing has been sealed yet."""
    rows = await connections.fetch("read the last seal", _NEWEST)
    return SealMark(rows[0][0], rows[0][4].hex()) if rows else None


def open_connections(url: str, clock: Clock, *, name: str) -> Connections:
    """Return connections for sealing and verifying, opened when they are needed."""
    return Connections(connector(url, application=f"crewlog {name}"), clock, size=2, call_timeout_s=CALL_TIMEOUT_S)


async def verify(connections: Connections, *, against: SealMark | None = None, progress: Progress = lambda _at, _of: None) -> Verified:
    """Compare the log with its seals.

    Args:
        against: a seal that was kept elsewhere; it must be one of the log's.
        progress: told how far it is.
    """
    found: list[Fault] = []
    before: Seal | None = None
    events = 0
    last = await connections.fetch("read the last seal", _NEWEST)
    to = last[0][2] if last else 0
    async for seals, rows in _sealed_pages(connections):
        digests = [sha256(columns).digest() if columns is not None else digest for _, _, _, columns, digest in rows]
        for one, covered in split(seals, [row[0] for row in rows]):
            if not holds(before, one, digests[covered]):
                marks = await connections.fetch("read a seal", _MARKS, one.number)
                there = [SealedEvent(row[0], row[1], row[2], digest) for row, digest in zip(rows[covered], digests[covered], strict=True)]
                found += faults(before, one, marks[0][0], there)
            before = one
        events += sum(row[3] is not None for row in rows)
        progress(seals[-1].last, max(to, seals[-1].last))
        if len(found) >= FAULTS_MAX:
            break
    vouched, others = (0, []) if against is None else await _compare(connections, against)
    archived = [
        ArchivedRun(str(row[0]), row[1], row[2], row[3], row[4] or "", row[5] or "") for row in await connections.fetch("list archived runs", _ARCHIVED)
    ]
    found = await _with_streams(connections, [*(_unannounced(run) for run in archived if not run.file), *found, *others])
    end = before.last if before else 0
    unsealed = (await connections.fetch("count what is not sealed", _UNSEALED, end))[0][0]
    newest = SealMark(before.number, before.hash.hex()) if before else None
    return Verified(events, before.number if before else 0, unsealed, newest, end, vouched, archived, found)


def _unannounced(run: ArchivedRun) -> Fault:
    return Fault(
        "removed", run.first, f"run/{run.run_id}", 0, f"{run.events} events up to position {run.last} are gone like archived ones, but no RunArchived says so"
    )


async def verify_blobs(connections: Connections) -> list[str]:
    """Read every blob and return the names of those whose bytes are others."""
    spoiled: list[str] = []
    after = b""
    while rows := await connections.fetch("read blobs", _BLOBS, after, PAGE_BLOBS):
        for hash_, codec, size, data in rows:
            try:
                unpack_blob(Hash(hash_.hex()), codec=codec, size=size, data=data)
            except TerminalError:
                spoiled.append(hash_.hex())
        after = rows[-1][0]
    return spoiled


async def _sealed_pages(connections: Connections) -> AsyncIterator[tuple[list[Seal], list[Any]]]:
    """Yield seals with the events in their range, in order; the next page is being read while one is looked at.

    A row is position, stream, version, columns and digest of an event: the columns of one that is there, the digest of one that was archived.
    """
    coming: asyncio.Task[list[Any]] | None = None
    present: list[Seal] = []
    try:
        async for seals in _seal_groups(connections):
            before, coming = coming, asyncio.create_task(connections.fetch("read sealed events", _EVENTS, seals[0].first, seals[-1].last))
            if before is not None:
                yield present, await before
            present = seals
        if coming is not None:
            yield present, await coming
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


async def _seal_groups(connections: Connections) -> AsyncIterator[list[Seal]]:
    """Yield seals in groups of about `PAGE_EVENTS` events."""
    group: list[Seal] = []
    number = size = 0
    while rows := await connections.fetch("read seals", _SEALS, number, PAGE_SEALS):
        for one in (Seal(*row) for row in rows):
            if group and size + one.events > PAGE_EVENTS:
                yield group
                group, size = [], 0
            group.append(one)
            size += one.events
        number = rows[-1][0]
    if group:
        yield group


async def _compare(connections: Connections, against: SealMark) -> tuple[int, list[Fault]]:
    """Look for a kept seal; returns the last position that it covers, and what is wrong. It stands for everything in front of it, too."""
    rows = await connections.fetch("read a seal", _ONE, against.number)
    if not rows:
        return 0, [Fault("other log", 0, "", 0, f"seal {against.number} was made once and is not there: the log was cut or sealed anew, or is another one")]
    kept = Seal(*rows[0])
    if kept.hash.hex() == against.hash:
        return kept.last, []
    told = f"seal {kept.number} is {kept.hash.hex()}, expected {against.hash}: something was rewritten here or at a position in front of it"
    return kept.last, [Fault("other log", kept.last, "", 0, told)]


async def _with_streams(connections: Connections, found: list[Fault]) -> list[Fault]:
    """Add streams that lack versions, which also gives removed events their names."""
    odd = {row[0]: row for row in await connections.fetch("compare streams", _STREAMS, FAULTS_MAX)}
    if not odd:
        return found
    gaps = [Gap(*row) for row in await connections.fetch("look for missing versions", _GAPS, list(odd), FAULTS_MAX)]
    surplus = [
        Fault("added", position, stream, newest, f"the stream has {events} events, es.streams counts {counted or 0}")
        for stream, counted, events, newest, position in odd.values()
        if (counted or 0) < (newest or 0)
    ]
    known = {fault.position for fault in found}
    return name_removed([*found, *(fault for fault in surplus if fault.position not in known)], gaps)
