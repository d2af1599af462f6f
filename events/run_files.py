"""Runs that come from a file and runs that go to one, as the database does it: `es.import_run` and `es.archive_run`, see sql/0009."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from crewlog.events.connections import Connections
from crewlog.events.store import Recorded
from crewlog.schemas.codec import encode
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Hash, RunId
from crewlog.schemas.system_events import RunImported

_IMPORT: Final = "SELECT first_position, last_position FROM es.import_run($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)"
_DIGEST: Final = "SELECT events, digest FROM es.run_digest($1)"
_LEFT: Final = """
SELECT substr(a.stream_id, 9)::uuid, w.data ->> 'file', w.data ->> 'sha256'
  FROM es.streams a JOIN es.events e ON e.stream_id = 'run/' || substr(a.stream_id, 9) AND e.version = 1
                    JOIN es.events w ON w.stream_id = a.stream_id AND w.version = a.version
 WHERE starts_with(a.stream_id, 'archive/') AND e.position < w.position   -- behind it: it came back from its file
 ORDER BY e.position
"""
_HINDRANCE: Final = "SELECT es.archive_hindrance($1)"
_ARCHIVE: Final = "SELECT es.archive_run($1)"
_IMPORTED: Final = """
SELECT m.position, (SELECT max(e.position) FROM es.events e WHERE e.stream_id = ANY ($2::text[])) FROM es.events m WHERE m.event_id = $1
"""
_TAKEN_OUT: Final = """
SELECT count(*) FROM es.tombstones t
 WHERE t.run_id = $1 AND NOT EXISTS (SELECT FROM es.events e WHERE e.stream_id = 'run/' || t.run_id AND e.version = 1)
"""


class RunDigest(NamedTuple):
    """How many events a run has, and the hash of the hashes under which they are sealed."""

    events: int
    digest: Hash


class Announced(NamedTuple):
    """A run of which a `RunArchived` says that this file has it."""

    run_id: RunId
    file: str
    sha256: Hash


async def write_imported(connections: Connections, marker: RunImported, events: Sequence[Recorded], *, marker_id: UUID, now_us: int) -> tuple[int, int]:
    """Write a run that happened elsewhere, or the part of it that is not there, all of it or nothing, and close its streams.

    Args:
        events: from its first one on, in the order of the log they come from; blobs they refer to must be there already.
        marker_id: event id of the marker. The same one again is answered with where the run is.
        now_us: when it is read in, in microseconds since 1970.

    Returns:
        Position of the marker and of the last event.

    Raises:
        ContractError: all of it is in the log already, or other events are, it was carried out here, or the streams have gaps.
        NotAuthorised: this login may not import.
    """
    columns: list[list[Any]] = [
        [event.stream for event in events],
        [event.version for event in events],
        [event.event_id for event in events],
        [event.type for event in events],
        [event.schema_version for event in events],
        [event.occurred_us for event in events],
        [event.task_id for event in events],
        [event.causation_id for event in events],
        [event.trace_id for event in events],
        [event.actor for event in events],
        [event.data.decode() for event in events],
    ]
    what = f"import run {marker.run_id}"
    try:
        rows = await connections.fetch(what, _IMPORT, marker.run_id, marker_id, encode(marker).decode(), now_us, marker.actor, *columns)
    except ContractError:  # an earlier try may have been written, and its answer lost
        rows = await connections.fetch(what, _IMPORTED, marker_id, columns[0])
        if not rows:
            raise
    return rows[0][0], rows[0][1]


async def run_digest(connections: Connections, run_id: RunId) -> RunDigest:
    """Return what the seals say about a run as it is in the log now."""
    rows = await connections.fetch(f"look at run {run_id}", _DIGEST, run_id)
    return RunDigest(rows[0][0], Hash(rows[0][1].hex()))


async def hindrance(connections: Connections, run_id: RunId) -> str | None:
    """Say why a run may not leave the log; None when it may."""
    rows = await connections.fetch(f"look at run {run_id}", _HINDRANCE, run_id)
    reason: str | None = rows[0][0]
    return reason


async def take_out(connections: Connections, run_id: RunId) -> int:
    """Delete the events of a run of which a `RunArchived` says that a file has them; tombstones stay. Returns how many; again, how many there are.

    Raises:
        ContractError: the run has not ended, is not sealed, owes money, or is not what `RunArchived` says.
        NotAuthorised: this login may not archive.
    """
    what = f"archive run {run_id}"
    try:
        rows = await connections.fetch(what, _ARCHIVE, run_id)
    except ContractError:  # an earlier try may have taken it out, and its answer was lost
        rows = await connections.fetch(what, _TAKEN_OUT, run_id)
        if not rows[0][0]:
            raise
    return int(rows[0][0])


async def half_archived(connections: Connections) -> list[Announced]:
    """List runs of which a file was announced, but which are still in the log: whoever archived them was interrupted."""
    return [Announced(RunId(row[0]), row[1], Hash(row[2])) for row in await connections.fetch("look for runs that are half archived", _LEFT)]
