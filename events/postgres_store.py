"""The log in Postgres. Appends go through the gate `es.append` in group commits; everything else is one statement each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Self
from uuid import UUID

from crewlog.events import bills
from crewlog.events.appender import Appender, OnCommit
from crewlog.events.blobs import BlobCache, pack_blob, unpack_blob
from crewlog.events.clock import Clock
from crewlog.events.connections import Connections, connector
from crewlog.events.person_keys import PersonKeys, PostgresPersonKeys
from crewlog.events.store import Appended, AppendRequest, ArchivedRun, BudgetState, Changes, OpenReservation, Page, Recorded
from crewlog.schemas.ids import Hash, RunId, Stream, TaskId, run_stream, task_stream
from crewlog.schemas.payload import content_hash, is_hash

_COLUMNS: Final = (
    "e.position, e.stream_id, e.version, e.event_id, e.type, e.schema_version, e.data, e.occurred_us, "
    "e.run_id, e.task_id, e.causation_id, e.trace_id, e.actor, e.writer"
)
_SELECT: Final = f"SELECT {_COLUMNS} FROM"
_READ_STREAMS: Final = f"""
{_SELECT} unnest($1::text[], $2::bigint[]) AS w (stream_id, after) JOIN es.events e ON e.stream_id = w.stream_id AND e.version > w.after
 WHERE $3::text[] IS NULL OR e.type = ANY ($3) ORDER BY e.position
"""
_READ_LAST: Final = f"""
{_SELECT} es.streams s JOIN es.events e ON e.stream_id = s.stream_id AND e.version > s.version - $2
 WHERE s.stream_id = ANY ($1::text[]) ORDER BY e.position
"""
_READ_RUN: Final = f"{_SELECT} es.streams s JOIN es.events e ON e.stream_id = s.stream_id WHERE s.run_id = $1 ORDER BY e.position"
_READ_ALL: Final = "SELECT * FROM es.read_all($1, $2)"
_OPEN_RUNS: Final = """
SELECT run_id FROM es.streams WHERE closed_at IS NULL AND starts_with(stream_id, 'run/') AND run_id > $1 ORDER BY run_id LIMIT $2
"""
# ids are compared as the indexes of what JSON says are ordered, not as streams are
_CHILD_RUNS: Final = """
WITH parents AS (
  SELECT substring(stream_id FROM 6) COLLATE "default" AS id FROM es.streams WHERE run_id = ANY ($1::uuid[]) AND starts_with(stream_id, 'task/')
  UNION SELECT id::text FROM unnest($1::uuid[]) id)
SELECT e.run_id FROM es.events e
 WHERE e.type = 'RunSubmitted' AND e.data -> 'task' ->> 'parent_task_id' = ANY (ARRAY(SELECT id FROM parents)) ORDER BY e.position
"""
_ARCHIVED_RUNS: Final = """
WITH own AS (
  SELECT substring(stream_id FROM 6) COLLATE "default" AS id FROM es.streams WHERE run_id = ANY ($1::uuid[]) AND starts_with(stream_id, 'task/')
  UNION SELECT id::text FROM unnest($1::uuid[]) id),
said AS (
  SELECT e.version, e.data ->> 'run_id' AS run, e.data ->> 'file' AS file FROM es.events e
   WHERE e.type = 'RunArchived' AND e.data ->> 'parent_task_id' = ANY (ARRAY(SELECT id FROM own))
  UNION ALL
  SELECT e.version, t.run_id::text, e.data ->> 'file' FROM es.streams t JOIN es.events e ON e.stream_id = 'archive/' || t.run_id
   WHERE t.stream_id = ANY ($2))
SELECT DISTINCT ON (run) run::uuid, file FROM said
 WHERE (SELECT r.position FROM es.events r WHERE r.stream_id = 'run/' || run AND r.version = 1) IS NULL   -- looked up one by one
 ORDER BY run, version DESC
"""
_COUNT_OPEN: Final = """
SELECT o.run_id, (SELECT sum(s.version)::bigint FROM es.streams s WHERE s.run_id = o.run_id)
  FROM (SELECT run_id FROM es.streams WHERE closed_at IS NULL AND starts_with(stream_id, 'run/') AND run_id > $1 ORDER BY run_id LIMIT $2) o
 ORDER BY o.run_id
"""
_CHANGED_RUNS: Final = "SELECT * FROM es.changed_runs($1, $2)"
_PUT_BLOBS: Final = """
INSERT INTO es.blobs (hash, codec, size, data) SELECT * FROM unnest($1::bytea[], $2::smallint[], $3::integer[], $4::bytea[]) b (hash, codec, size, data)
 ORDER BY b.hash ON CONFLICT (hash) DO UPDATE SET put_at = now() WHERE blobs.put_at < now() - interval '1 hour'
"""
_GET_BLOBS: Final = "SELECT hash, codec, size, data FROM es.blobs WHERE hash = ANY ($1::bytea[])"
_SET_TIMERS: Final = """
INSERT INTO es.timers (run_id, due_us) SELECT * FROM unnest($1::uuid[], $2::bigint[]) t (run_id, due_us) ORDER BY t.run_id
ON CONFLICT (run_id) DO UPDATE SET due_us = excluded.due_us
"""
_REMOVE_TIMERS: Final = "DELETE FROM es.timers WHERE run_id = ANY ($1::uuid[])"
_TAKE_DUE: Final = """
DELETE FROM es.timers WHERE run_id IN (SELECT run_id FROM es.timers WHERE due_us <= $1 ORDER BY due_us LIMIT $2 FOR UPDATE SKIP LOCKED)
RETURNING run_id
"""
_BUDGETS: Final = "SELECT scope, soft, hard, spent, reserved FROM es.budgets WHERE scope = ANY ($1::text[])"
_BUDGETS_WITH_ROOM: Final = """
SELECT b.scope FROM unnest($1::text[], $2::bigint[]) AS w (scope, needed) JOIN es.budgets b ON b.scope = w.scope
 WHERE b.hard IS NULL OR b.spent + b.reserved + w.needed <= b.hard
"""
_BUDGETS_OF: Final = """
SELECT b.scope, b.soft, b.hard, b.spent, b.reserved FROM es.streams s JOIN es.budgets b ON b.scope_id = ANY (s.scopes) WHERE s.stream_id = $1
"""
_OPEN_RESERVATIONS: Final = """
SELECT reservation_id, stream_id, run_id, task_id, amount, since_us FROM es.open_reservations WHERE since_us < $1 ORDER BY since_us, reservation_id LIMIT $2
"""
_LEFT_OVER: Final = """
SELECT r.reservation_id, r.stream_id, r.run_id, r.task_id, r.amount, r.since_us FROM es.reservations r JOIN es.streams s ON s.stream_id = r.stream_id
 WHERE r.since_us < $1 AND r.released_at IS NULL AND s.closed_at IS NOT NULL ORDER BY r.since_us, r.reservation_id LIMIT $2
"""
_CHECK: Final = "SELECT FROM es.streams WHERE stream_id = ''"
_NIL: Final = RunId(UUID(int=0))


class PostgresStore:
    """`EventStore` over one database. The login in the URL decides what may be written."""

    def __init__(self, appender: Appender, connections: Connections, clock: Clock, *, actor: str, on_commit: OnCommit | None = None) -> None:
        self._appender, self._connections = appender, connections
        self._actor, self._on_commit = actor, on_commit
        self._blobs = BlobCache(clock)

    @property
    def person_keys(self) -> PersonKeys:
        """Where persons' keys are kept; most logins may read them, few may add one, one may destroy one."""
        return PostgresPersonKeys(self._connections)

    @classmethod
    async def open(cls, url: str, *, actor: str, clock: Clock, lanes: int = 2, readers: int = 4, on_commit: OnCommit | None = None) -> Self:
        """Open the log and check that the database fits. Further connections are opened when they are needed.

        Args:
            actor: who this process says it is, as `<role>@<worker>`; recorded with every event.
            lanes: connections for appends; one is enough for a process that does little at once.
            readers: most connections for everything else.
            on_commit: called after each commit with the highest new position.

        Raises:
            ConfigError: a wrong password, or a database that is not migrated.
            Unavailable: the server cannot be reached.
        """
        connect = connector(url, application=f"crewlog {actor}")
        connections = Connections(connect, clock, size=readers)
        await connections.fetch("open the log", _CHECK)
        appender = Appender(connect, actor=actor, clock=clock, lanes=lanes, on_commit=on_commit)
        return cls(appender, connections, clock, actor=actor, on_commit=on_commit)

    async def append(self, request: AppendRequest) -> Appended:
        if (event := bills.correction_in(request)) is None:
            return await self._appender.submit(request)
        (row,) = await self._connections.fetch(f"correct the bill of {event.call_id}", bills.SQL, *bills.correct_arguments(request, self._actor))
        corrected = bills.correct_answer(row, request, event, self._actor)
        if self._on_commit is not None:
            self._on_commit(corrected.positions[-1])
        return corrected

    async def read_streams(self, after: Mapping[Stream, int], *, types: frozenset[str] | None = None) -> Sequence[Recorded]:
        if not after:
            return []
        names = None if types is None else sorted(types)
        return _recorded(await self._connections.fetch("read streams", _READ_STREAMS, list(after), list(after.values()), names))

    async def read_last(self, streams: Collection[Stream], count: int) -> Sequence[Recorded]:
        return _recorded(await self._connections.fetch("read the last of streams", _READ_LAST, list(streams), count))

    async def read_run(self, run_id: RunId) -> Sequence[Recorded]:
        return _recorded(await self._connections.fetch(f"read run {run_id}", _READ_RUN, run_id))

    async def read_all(self, after: int, limit: int) -> Page:
        rows = await self._connections.fetch("read the log", _READ_ALL, after, limit)
        high_water = rows[0][14]
        return Page([], high_water) if rows[0][0] is None else Page(_recorded(rows), high_water)

    async def open_runs(self, *, after: RunId | None, limit: int) -> Sequence[RunId]:
        rows = await self._connections.fetch("list open runs", _OPEN_RUNS, after or _NIL, limit)
        return [RunId(row[0]) for row in rows]

    async def count_open(self, *, after: RunId | None, limit: int) -> Mapping[RunId, int]:
        return {RunId(row[0]): row[1] for row in await self._connections.fetch("count what open runs hold", _COUNT_OPEN, after or _NIL, limit)}

    async def changed_runs(self, after: int, *, positions_max: int) -> Changes:
        (_, _, high_water), *rows = await self._connections.fetch("list what changed", _CHANGED_RUNS, after, positions_max)
        open_ = {RunId(run_id): events for run_id, events, _ in rows if events is not None}
        over = [RunId(run_id) for run_id, events, _ in rows if events is None]
        return Changes(high_water, open_, over, is_complete=high_water - after <= positions_max)

    async def put_blobs(self, blobs: Sequence[bytes], *, run_id: RunId | None = None) -> Sequence[Hash]:  # noqa: ARG002  (stored for all runs alike)
        hashes = [content_hash(blob) for blob in blobs]
        fresh = {hash_: blob for hash_, blob in zip(hashes, blobs, strict=True) if not self._blobs.is_stored(hash_)}
        if fresh:
            packed = [pack_blob(blob) for blob in fresh.values()]
            sizes = [len(blob) for blob in fresh.values()]
            await self._connections.fetch(
                "store blobs", _PUT_BLOBS, [bytes.fromhex(hash_) for hash_ in fresh], [codec for codec, _ in packed], sizes, [data for _, data in packed]
            )
            self._blobs.note_stored(fresh)
        return hashes

    async def get_blobs(self, hashes: Sequence[Hash]) -> Mapping[Hash, bytes]:
        found = self._blobs.get_many(hashes)
        missing = [bytes.fromhex(hash_) for hash_ in dict.fromkeys(hashes) if hash_ not in found and is_hash(hash_)]
        if missing:
            for row in await self._connections.fetch("fetch blobs", _GET_BLOBS, missing):
                hash_ = Hash(row[0].hex())
                found[hash_] = unpack_blob(hash_, codec=row[1], size=row[2], data=row[3])
                self._blobs.keep(hash_, found[hash_])
        return found

    async def child_runs(self, run_ids: Sequence[RunId]) -> Sequence[RunId]:
        return [RunId(row[0]) for row in await self._connections.fetch("list child runs", _CHILD_RUNS, list(run_ids))]

    async def archived_runs(self, *, came_from: Collection[RunId] = (), with_tasks: Collection[UUID] = ()) -> Sequence[ArchivedRun]:
        streams = [stream for one in with_tasks for stream in (task_stream(TaskId(one)), run_stream(RunId(one)))]
        return [ArchivedRun(RunId(row[0]), row[1]) for row in await self._connections.fetch("list archived runs", _ARCHIVED_RUNS, list(came_from), streams)]

    async def set_timers(self, due: Mapping[RunId, int | None]) -> None:
        later = {run_id: due_us for run_id, due_us in due.items() if due_us is not None}
        gone = [run_id for run_id, due_us in due.items() if due_us is None]
        if later:
            await self._connections.fetch("set timers", _SET_TIMERS, list(later), list(later.values()))
        if gone:
            await self._connections.fetch("remove timers", _REMOVE_TIMERS, gone)

    async def take_due(self, now_us: int, limit: int) -> Sequence[RunId]:
        return [RunId(row[0]) for row in await self._connections.fetch("take due timers", _TAKE_DUE, now_us, limit)]

    async def budgets(self, scopes: Sequence[str]) -> Mapping[str, BudgetState]:
        rows = await self._connections.fetch("look at budgets", _BUDGETS, list(scopes))
        return {row[0]: BudgetState(*row[1:]) for row in rows}

    async def budgets_with_room(self, needed: Mapping[str, int]) -> Collection[str]:
        rows = await self._connections.fetch("look for budgets with room", _BUDGETS_WITH_ROOM, list(needed), list(needed.values()))
        return {row[0] for row in rows}

    async def budgets_of(self, stream: Stream) -> Mapping[str, BudgetState]:
        rows = await self._connections.fetch("look at the budgets of a stream", _BUDGETS_OF, stream)
        return {row[0]: BudgetState(*row[1:]) for row in rows}

    async def open_reservations(self, older_than_us: int, limit: int, *, left_over: bool = False) -> Sequence[OpenReservation]:
        rows = await self._connections.fetch("list open reservations", _LEFT_OVER if left_over else _OPEN_RESERVATIONS, older_than_us, limit)
        return [OpenReservation(*row) for row in rows]

    async def close(self) -> None:
        await self._appender.close()
        await self._connections.close()


def _recorded(rows: Sequence[Any]) -> list[Recorded]:
    """Make events of rows. Those of one run have one object as its id: whoever follows runs hashes it, which takes long the first time."""
    same = dict[Any, Any]().setdefault
    return [
        Recorded(
            position,
            stream,
            version,
            event_id,
            type_,
            schema_version,
            data.encode(),
            occurred_us,
            same(run_id, run_id),
            task_id,
            causation_id,
            trace_id,
            actor,
            writer,
        )
        for position, stream, version, event_id, type_, schema_version, data, occurred_us, run_id, task_id, causation_id, trace_id, actor, writer, *_ in rows
    ]
