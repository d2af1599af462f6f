"""The sealed log: what is changed behind the product's back, with triggers bypassed, is found and named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

import asyncpg
import pytest
import pytest_asyncio
from support.logs import CLOCK, cancelled, dispatched, new_run, new_task, opening, to_run
from support.postgres import Database
from support.views import PROJECTOR

from crewlog.events.connections import Connections
from crewlog.events.grants import OPERATOR, ORCHESTRATOR
from crewlog.events.memory_bus import MemoryBus
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.sealer import Sealer
from crewlog.events.seals import SealMark, parse_mark
from crewlog.events.verify import newest_seal, open_connections, seal, verify, verify_blobs
from crewlog.orchestrator.cli_verify import how_sure
from crewlog.schemas.ids import RunId, run_stream
from crewlog.schemas.subjects import POKE

pytestmark = pytest.mark.hand_written("seals are tried on events of every kind")

RUNS, PER_RUN = 4, 6
"""Each run has its opening, dispatches and an end; runs take turns in the log, so that a stream's events are spread over the seals."""


@pytest_asyncio.fixture
async def store(database: Database) -> AsyncIterator[PostgresStore]:
    opened = await PostgresStore.open(database.url(ORCHESTRATOR), actor="o@test", clock=CLOCK)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def sealing(database: Database) -> AsyncIterator[Connections]:
    opened = open_connections(database.url(PROJECTOR), CLOCK, name="test")
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def reading(database: Database) -> AsyncIterator[Connections]:
    """What `crewlog verify` reads with."""
    opened = open_connections(database.url(OPERATOR), CLOCK, name="test")
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def intruder(database: Database) -> AsyncIterator[Any]:
    """A superuser whose session no trigger and no foreign key stops."""
    connection = await database.admin()
    await connection.execute("SET session_replication_role = replica")
    yield connection
    await connection.close()


async def fill(store: PostgresStore) -> list[RunId]:
    runs = [new_run() for _ in range(RUNS)]
    for run_id in runs:
        await store.append(opening(run_id))
    for _ in range(PER_RUN - 2):
        for run_id in runs:
            await store.append(to_run(run_id, dispatched(new_task())))
    for run_id in runs:
        await store.append(to_run(run_id, cancelled()))
    return runs


async def seal_all(sealing: Connections, events_max: int = 7) -> None:
    while await seal(sealing, events_max):
        pass


async def places(reading: Connections, against: SealMark | None = None) -> list[tuple[str, int, str, int]]:
    return [fault[:4] for fault in (await verify(reading, against=against)).faults]


async def test_a_log_that_nobody_touched_holds(store: PostgresStore, sealing: Connections, reading: Connections) -> None:
    nothing = await verify(reading)
    assert (nothing.events, nothing.seals, nothing.newest, nothing.faults) == (0, 0, None, [])
    await fill(store)
    await seal_all(sealing)
    found = await verify(reading)
    assert (found.events, found.seals, found.unsealed, found.faults) == (RUNS * PER_RUN, 4, 0, [])
    assert found.newest == await newest_seal(reading)
    assert parse_mark(str(found.newest)) == found.newest
    await store.append(opening(new_run()))
    again = await verify(reading, against=found.newest)
    assert (again.unsealed, again.faults) == (1, [])


async def test_seals_do_not_depend_on_who_makes_them_when(store: PostgresStore, sealing: Connections, reading: Connections) -> None:
    runs = await fill(store)
    first = await seal(sealing, 10)
    assert first is not None
    assert (first.number, first.first, first.events) == (1, 1, 10)
    rest = await seal(reading, 1_000)  # a person may seal, too
    assert rest is not None
    assert (rest.number, rest.first) == (2, first.last + 1)
    assert await seal(sealing, 10) is None
    with pytest.raises(Exception, match="closed"):
        await store.append(to_run(runs[0], dispatched(new_task())))
    assert await seal(sealing, 10) is None, "an append that was refused leaves nothing to seal"


EDITS = {
    "data": "UPDATE es.events SET data = replace(data::text, 'enough', 'plenty')::json WHERE position = $1",
    "white space in data": "UPDATE es.events SET data = (data::text || ' ')::json WHERE position = $1",
    "occurred_us": "UPDATE es.events SET occurred_us = occurred_us + 1 WHERE position = $1",
    "recorded_at": "UPDATE es.events SET recorded_at = recorded_at + interval '1 microsecond' WHERE position = $1",
    "event_id": "UPDATE es.events SET event_id = gen_random_uuid() WHERE position = $1",
    "run_id": "UPDATE es.events SET run_id = gen_random_uuid() WHERE position = $1",
    "task_id": "UPDATE es.events SET task_id = gen_random_uuid() WHERE position = $1",
    "causation_id": "UPDATE es.events SET causation_id = gen_random_uuid() WHERE position = $1",
    "trace_id": "UPDATE es.events SET trace_id = gen_random_uuid() WHERE position = $1",
    "schema_version": "UPDATE es.events SET schema_version = 2 WHERE position = $1",
    "type": "UPDATE es.events SET type = 'RunFailed' WHERE position = $1",
    "actor": "UPDATE es.events SET actor = 'somebody' WHERE position = $1",
    "writer": "UPDATE es.events SET writer = 'somebody' WHERE position = $1",
}


async def test_every_column_is_sealed(database: Database, intruder: Any) -> None:
    columns = {row[0] for row in await intruder.fetch("SELECT attname::text FROM pg_attribute WHERE attrelid = 'es.events'::regclass AND attnum > 0")}
    assert columns - {"data", "position", "stream_id", "version"} == set(EDITS) - {"data", "white space in data"}


async def test_an_edit_of_any_column_is_found(store: PostgresStore, sealing: Connections, reading: Connections, intruder: Any) -> None:
    runs = await fill(store)
    await seal_all(sealing)
    (last,) = await store.read_streams({run_stream(runs[2]): PER_RUN - 1})
    for name, statement in EDITS.items():
        change = intruder.transaction()
        await change.start()
        before = await intruder.fetchrow("SELECT * FROM es.events WHERE position = $1", last.position)
        await intruder.execute(statement, last.position)
        assert await intruder.fetchrow("SELECT * FROM es.events WHERE position = $1", last.position) != before or name.startswith("white"), name
        await change.commit()
        assert await places(reading) == [("changed", last.position, last.stream, last.version)], name
        await intruder.execute("DELETE FROM es.events WHERE position = $1", last.position)
        await intruder.copy_records_to_table("events", schema_name="es", records=[tuple(before)])
        assert await places(reading) == [], f"{name}: put back"


async def test_events_that_were_removed_are_named(store: PostgresStore, sealing: Connections, reading: Connections, intruder: Any) -> None:
    runs = await fill(store)
    await seal_all(sealing)
    gone = [event for run_id in runs[:2] for event in await store.read_run(run_id) if event.version in (3, 4)]
    await intruder.execute("DELETE FROM es.events WHERE position = ANY ($1)", [event.position for event in gone])
    expected = sorted((("removed", event.position, event.stream, event.version) for event in gone), key=lambda place: place[1])
    assert await places(reading) == expected


async def test_two_events_that_changed_places_are_found(store: PostgresStore, sealing: Connections, reading: Connections, intruder: Any) -> None:
    runs = await fill(store)
    await seal_all(sealing)
    one, other = (event for event in await store.read_run(runs[0]) if event.version in (2, 5))
    swap = "UPDATE es.events SET position = $2 WHERE position = $1"
    for a, b in ((one.position, -1), (other.position, one.position), (-1, other.position)):
        await intruder.execute(swap, a, b)
    assert await places(reading) == [("changed", one.position, other.stream, 5), ("changed", other.position, one.stream, 2)]
    # and with versions to match, so that the stream looks whole
    await intruder.execute("UPDATE es.events SET version = -version WHERE position = ANY ($1)", [one.position, other.position])
    await intruder.execute("UPDATE es.events SET version = 7 + version WHERE version < 0")
    assert await places(reading) == [("changed", one.position, one.stream, 2), ("changed", other.position, other.stream, 5)]


async def test_an_event_put_in_is_found(database: Database, store: PostgresStore, sealing: Connections, reading: Connections, intruder: Any) -> None:
    runs = await fill(store)
    with pytest.raises(asyncpg.PostgresError):  # a batch that fails leaves a hole among the positions: here something could be put
        await intruder.execute("DO $$ BEGIN PERFORM nextval('es.event_position'); RAISE EXCEPTION 'failed'; END $$")
    await store.append(opening(new_run()))
    await seal_all(sealing)
    hole = RUNS * PER_RUN + 1
    stream = run_stream(runs[0])
    await intruder.execute(
        "INSERT INTO es.events SELECT $1, 7, occurred_us, recorded_at, gen_random_uuid(), run_id, task_id, causation_id, trace_id, schema_version, stream_id, "
        "type, actor, writer, data FROM es.events WHERE stream_id = $2 AND version = 2",
        hole,
        stream,
    )
    assert await places(reading) == [("added", hole, stream, 7)]
    await intruder.execute("UPDATE es.streams SET version = 7 WHERE stream_id = $1", stream)
    assert await places(reading) == [("added", hole, stream, 7)]


async def test_a_tail_that_was_cut_off_is_found(store: PostgresStore, sealing: Connections, reading: Connections, intruder: Any) -> None:
    await fill(store)
    await seal_all(sealing)
    kept = await newest_seal(reading)
    assert kept is not None
    cut = RUNS * PER_RUN - 3
    await intruder.execute("DELETE FROM es.events WHERE position > $1", cut)
    found = await places(reading)
    assert [(kind, position) for kind, position, *_ in found] == [("removed", position) for position in range(cut + 1, RUNS * PER_RUN + 1)]
    assert all(stream.startswith("run/") and version == PER_RUN for _, _, stream, version in found)

    # with the streams set back, too, and even when all is sealed anew: then only a seal from elsewhere can tell
    await intruder.execute("UPDATE es.streams s SET version = (SELECT count(*) FROM es.events e WHERE e.stream_id = s.stream_id)")
    assert [place[0] for place in await places(reading)] == ["removed"] * 3
    await intruder.execute("DELETE FROM es.seals WHERE last_position > $1", cut)
    await seal_all(sealing)
    assert await places(reading) == []
    (fault,) = (await verify(reading, against=kept)).faults
    assert fault.kind == "other log"
    assert f"seal {kept.number}" in fault.detail
    (fault,) = (await verify(reading, against=SealMark(99, kept.hash))).faults
    assert "not there" in fault.detail


async def test_a_log_that_was_edited_and_sealed_anew_holds_as_far_as_a_kept_seal_says(
    store: PostgresStore, sealing: Connections, reading: Connections, intruder: Any
) -> None:
    await fill(store)
    await seal_all(sealing)
    early, late = (SealMark(row[0], row[1].hex()) for row in await intruder.fetch("SELECT number, hash FROM es.seals WHERE number IN (1, 4) ORDER BY number"))
    await intruder.execute(EDITS["occurred_us"], 10)
    await intruder.execute("DELETE FROM es.seals")
    await seal_all(sealing)
    assert await places(reading) == []

    found = await verify(reading, against=early)
    assert (found.vouched_position, found.position, found.faults) == (7, RUNS * PER_RUN, [])
    assert how_sure(found, early) == "; it is the log of seal 1; behind position 7 as far as this log tells"

    (fault,) = (await verify(reading, against=late)).faults
    assert (fault.kind, fault.position) == ("other log", RUNS * PER_RUN)
    assert "rewritten here or at a position in front of it" in fault.detail


SEAL_EDITS = (
    "UPDATE es.seals SET hash = sha256(hash) WHERE number = 2",
    "UPDATE es.seals SET first_position = first_position + 1 WHERE number = 2",
    "UPDATE es.seals SET last_position = last_position - 1 WHERE number = 2",
    "UPDATE es.seals SET events = events - 1 WHERE number = 2",
    "UPDATE es.seals SET number = 9 WHERE number = 2",
    "DELETE FROM es.seals WHERE number = 2",
    "DELETE FROM es.seals WHERE number = 1",
)


async def test_seals_that_were_changed_are_found(store: PostgresStore, sealing: Connections, reading: Connections, intruder: Any) -> None:
    await fill(store)
    await seal_all(sealing)
    await intruder.execute("CREATE TABLE kept AS SELECT * FROM es.seals")
    for statement in SEAL_EDITS:
        await intruder.execute(statement)
        assert (await verify(reading)).faults, statement
        await intruder.execute("DELETE FROM es.seals")
        await intruder.execute("INSERT INTO es.seals SELECT * FROM kept")
    assert await places(reading) == []


async def test_what_is_not_sealed_yet_is_counted_by_its_streams(store: PostgresStore, sealing: Connections, reading: Connections, intruder: Any) -> None:
    await seal_all(sealing)
    runs = await fill(store)
    await intruder.execute("DELETE FROM es.events WHERE stream_id = $1 AND version = 3", run_stream(runs[0]))
    found = await verify(reading)
    assert (found.seals, found.unsealed) == (0, RUNS * PER_RUN - 1)
    assert [(fault.kind, fault.stream, fault.version) for fault in found.faults] == [("missing version", run_stream(runs[0]), 3)]


async def test_nobody_changes_a_seal(database: Database, store: PostgresStore, sealing: Connections) -> None:
    await fill(store)
    await seal_all(sealing)
    for role in (PROJECTOR, OPERATOR, ORCHESTRATOR):
        for statement in ("DELETE FROM es.seals", "UPDATE es.seals SET hash = hash", "INSERT INTO es.seals VALUES (9, 900, 900, 1, sha256(''), '', now())"):
            connection = await asyncpg.connect(database.url(role))
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
            await connection.close()
    owner = await database.admin()
    for statement in ("DELETE FROM es.seals", "UPDATE es.seals SET hash = hash", "TRUNCATE es.seals"):
        with pytest.raises(asyncpg.PostgresError, match="append-only"):
            await owner.execute(statement)
    await owner.close()


async def test_whoever_stops_verifying_leaves_nothing_that_reads_on(
    database: Database, store: PostgresStore, sealing: Connections, reading: Connections, intruder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crewlog.events.verify.PAGE_EVENTS", 7)
    await fill(store)
    await seal_all(sealing)
    before = asyncio.all_tasks()
    other, watching = await database.admin(), await database.admin()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    async def wait_for_readers(number: int) -> None:
        async with asyncio.timeout(60):
            while await watching.fetchval(waiting) < number:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.01)

    async with intruder.transaction():
        async with other.transaction():
            await other.execute("LOCK TABLE es.seals")
            verifying = asyncio.create_task(verify(reading))
            await wait_for_readers(1)
            await intruder.execute("LOCK TABLE es.events")
        await wait_for_readers(2)  # one page, and the next
        verifying.cancel()
        await asyncio.gather(verifying, return_exceptions=True)
        assert asyncio.all_tasks() <= before
    for connection in (other, watching):
        await connection.close()


async def test_spoiled_blobs_are_named(store: PostgresStore, reading: Connections, intruder: Any) -> None:
    _, bad = await store.put_blobs([b"good " * 100, b"bad " * 100])
    assert await verify_blobs(reading) == []
    await intruder.execute("UPDATE es.blobs SET data = substr(data, 1, 12) WHERE hash = $1", bytes.fromhex(bad))
    assert await verify_blobs(reading) == [bad]


class Noted(asyncio.Event):
    """Tells when somebody begins to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()

    async def wait(self) -> Literal[True]:
        self.begun.set()
        return await super().wait()


@pytest.mark.parametrize("steps", range(6))
async def test_the_sealer_ends_also_when_it_is_poked_at_that_moment(sealing: Connections, steps: int) -> None:
    bus = MemoryBus()
    made = Sealer(sealing, bus, CLOCK, gather_s=0)
    made._woken = waits = Noted()
    sealer = asyncio.create_task(made.run())
    await waits.begun.wait()
    await bus.publish(POKE)
    for _ in range(steps):
        await asyncio.sleep(0)
    sealer.cancel()
    await asyncio.wait({sealer}, timeout=60)
    assert sealer.cancelled()


async def test_the_sealer_follows_pokes(store: PostgresStore, sealing: Connections, reading: Connections) -> None:
    bus = MemoryBus()
    await fill(store)
    sealer = asyncio.create_task(Sealer(sealing, bus, CLOCK, gather_s=0).run())
    try:
        async with asyncio.timeout(60):
            while (found := await verify(reading)).unsealed:
                assert not sealer.done()
        assert found.seals == 1
        await store.append(opening(new_run()))
        async with asyncio.timeout(60):
            while (found := await verify(reading)).seals < 2:
                await bus.publish(POKE)
                assert not sealer.done()
        assert (found.unsealed, found.faults) == (0, [])
    finally:
        sealer.cancel()
        await asyncio.gather(sealer, return_exceptions=True)
