"""Hazards that experiments with the log uncovered; each stays closed by a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from support.logs import CLOCK, cancelled, dispatched, new_run, new_task, opening, to_run, to_task
from support.postgres import Database

from crewlog.events.appender import Appender
from crewlog.events.connections import Connections, connector
from crewlog.events.grants import ORCHESTRATOR, ROLES
from crewlog.events.postgres_store import _ARCHIVED_RUNS, _CHILD_RUNS, PostgresStore
from crewlog.schemas.errors import ConflictError, Unavailable
from crewlog.schemas.ids import run_stream, task_stream
from crewlog.schemas.task_events import TaskCancelled

pytestmark = pytest.mark.hand_written("tries the log under hazards")

PATIENCE_S = 20


@pytest_asyncio.fixture
async def store(database: Database) -> AsyncIterator[PostgresStore]:
    store = await PostgresStore.open(database.url(ORCHESTRATOR), actor="o", clock=CLOCK)
    yield store
    await store.close()


@pytest_asyncio.fixture
async def admin(database: Database) -> AsyncIterator[Any]:
    connection = await database.admin()
    yield connection
    await connection.close()


async def set_standby(admin: Any, name: str) -> None:
    await admin.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
    await admin.execute("SELECT pg_reload_conf()")
    async with asyncio.timeout(PATIENCE_S):
        while await admin.fetchval("SELECT current_setting('synchronous_standby_names')") != name:  # noqa: ASYNC110  (the server has no event for it)
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def without_standby(admin: Any, store: PostgresStore) -> AsyncIterator[Any]:
    """Let every commit wait for a synchronous standby that is gone. `store` ends later than this, so that it can finish."""
    await set_standby(admin, "gone")
    yield admin
    await set_standby(admin, "")


async def waiting(admin: Any, *events: str) -> int:
    """Wait until an append waits for one of these events; return its backend."""
    sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = ANY ($1) AND query LIKE '%es.append%'"
    async with asyncio.timeout(PATIENCE_S):
        while (pid := await admin.fetchval(sql, events)) is None:  # noqa: ASYNC110  (the server has no event for it)
            await asyncio.sleep(0.01)
    return int(pid)


@asynccontextmanager
async def falls_silent(port: int, word: bytes) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Stand in front of a server on this port and be as it is until a client says this word: from then on be silent. Gives our port, and tells when."""
    silent = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        of_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        answers = asyncio.create_task(pass_on(of_server, writer))
        while (said := await reader.read(65536)) and word not in said:
            to_server.write(said)
        if said:
            silent.set()
            await reader.read()  # until the client gives up
        answers.cancel()
        for one in (to_server, writer):
            one.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while said := await reader.read(65536):
            writer.write(said)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], silent


async def test_a_host_that_falls_silent_behind_its_greeting_costs_no_more_than_its_time(database: Database, store: PostgresStore) -> None:
    real = database.server.port
    async with falls_silent(real, b"pg_walfile_name") as (port, silent):
        both = database.url(ORCHESTRATOR).replace(f":{real}/", f":{port},127.0.0.1:{real}/")
        async with asyncio.timeout(PATIENCE_S * 3):
            other = await PostgresStore.open(both, actor="other", clock=CLOCK)
        assert silent.is_set()
        assert (await other.append(opening(new_run()))).versions == [1]
        await other.close()


async def test_the_stream_is_locked_before_a_duplicate_is_answered(store: PostgresStore, database: Database, admin: Any) -> None:
    first = opening(new_run())
    original = await store.append(first)
    holder = await database.admin()
    async with holder.transaction():
        await holder.execute("SELECT FROM es.streams WHERE stream_id = $1 FOR UPDATE", first.writes[0].stream)
        again = asyncio.create_task(store.append(first))
        await waiting(admin, "transactionid", "tuple")
        assert not again.done()
    assert list((await again).positions) == list(original.positions)
    await holder.close()


async def test_a_duplicate_is_not_acknowledged_before_the_standby_has_it(store: PostgresStore, admin: Any) -> None:
    """Otherwise a retry vouches for an event that a failover then loses."""
    first = opening(new_run())
    await store.append(first)
    await set_standby(admin, "gone")
    again = asyncio.create_task(store.append(first))
    await waiting(admin, "SyncRep")
    assert not again.done()
    await set_standby(admin, "")
    assert (await again).duplicate


async def test_a_call_that_takes_too_long_is_hung_up_on_not_cancelled(database: Database, without_standby: Any) -> None:
    """Cancelling would end the wait for the standby and show a row that is not replicated."""
    admin, run_id = without_standby, new_run()
    connect, connected = connector(database.url(ORCHESTRATOR), application="impatient"), 0
    thrice = asyncio.Event()

    async def counted() -> Any:
        nonlocal connected
        connected += 1
        if connected == 3:
            thrice.set()
        return await connect()

    appender = Appender(counted, actor="impatient", clock=CLOCK, lanes=1, call_timeout_s=0.2)
    first = appender.submit(opening(run_id))
    first_backend = await waiting(admin, "SyncRep")
    async with asyncio.timeout(PATIENCE_S):
        await thrice.wait()
    assert await waiting(admin, "SyncRep") == first_backend
    assert await admin.fetchval("SELECT count(*) FROM es.events") == 0
    await set_standby(admin, "")
    answer = await first
    assert (list(answer.versions), answer.duplicate) == ([1], True)
    assert await admin.fetchval("SELECT count(*) FROM es.events") == 1
    await appender.close()


async def test_a_process_that_ends_in_the_middle_of_a_call_does_not_cancel_it(database: Database, without_standby: Any) -> None:
    admin = without_standby
    appender = Appender(connector(database.url(ORCHESTRATOR), application="ending"), actor="ending", clock=CLOCK, lanes=1)
    future = appender.submit(opening(new_run()))
    backend = await waiting(admin, "SyncRep")
    appender._tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await appender.close()
    future.cancel()
    fresh = await database.admin()  # a cancel request would have travelled as long as this connection took
    assert await waiting(fresh, "SyncRep") == backend
    assert await fresh.fetchval("SELECT count(*) FROM es.events") == 0
    await fresh.close()


async def test_a_reader_does_not_see_what_the_standby_lacks(store: PostgresStore, without_standby: Any) -> None:
    pending = asyncio.create_task(store.append(opening(new_run())))
    await waiting(without_standby, "SyncRep")
    page = await store.read_all(0, 10)
    assert page.events == []
    await set_standby(without_standby, "")
    await pending
    assert len((await store.read_all(0, 10)).events) == 1


async def test_whoever_goes_on_from_a_duplicate_goes_on_from_the_original_version(store: PostgresStore) -> None:
    """Continuing at `expected + 1` after a duplicate once put two ends on one task."""
    run_id, task_id = new_run(), new_task()
    await store.append(opening(run_id, task_id))
    claim = to_run(run_id, dispatched(task_id))
    original = await store.append(claim)
    await store.append(to_run(run_id, dispatched(new_task()), expected=2))
    again = await store.append(claim)
    assert again.versions[-1] == original.versions[-1] == 2
    with pytest.raises(ConflictError):
        await store.append(to_run(run_id, dispatched(new_task()), expected=again.versions[-1]))
    await store.append(to_task(task_id, TaskCancelled("r", "a"), expected=1))
    with pytest.raises(ConflictError):
        await store.append(to_task(task_id, TaskCancelled("r", "a")))
    assert [e.type for e in await store.read_streams({task_stream(task_id): 0})] == ["TaskOpened", "TaskCancelled"]


async def test_batches_that_lock_the_same_streams_do_not_deadlock(database: Database, admin: Any) -> None:
    stores = [await PostgresStore.open(database.url(ORCHESTRATOR), actor=f"o@{n}", clock=CLOCK) for n in range(4)]
    runs = [new_run() for _ in range(30)]
    for run_id in runs:
        await stores[0].append(opening(run_id))
    orders = [runs, runs[::-1], runs[15:] + runs[:15], runs[::-3] + runs[::3] + runs[1::3]]
    for _ in range(10):
        await asyncio.gather(*(store.append(to_run(run_id, dispatched(new_task()))) for store, order in zip(stores, orders, strict=True) for run_id in order))
    for store in stores:
        await store.close()
    assert {row[0] for row in await admin.fetch("SELECT version FROM es.streams")} == {1 + 10 * 4}
    assert await admin.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0


async def test_an_append_that_idles_cannot_hold_readers_back_for_long(database: Database, admin: Any) -> None:
    rows = await admin.fetch("SELECT rolname, rolconfig FROM pg_roles WHERE rolname LIKE 'crewlog%' AND rolcanlogin AND NOT rolsuper")
    assert {row["rolname"] for row in rows} == set(ROLES)
    assert all("idle_in_transaction_session_timeout=10s" in row["rolconfig"] for row in rows)
    store_connection = await connector(database.admin_url, application="owner")()
    assert await store_connection.fetchval("SHOW idle_in_transaction_session_timeout") == "10s"
    await store_connection.close()


async def test_a_server_that_stays_away_is_reported_in_time(database: Database) -> None:
    unreachable = connector("postgresql://x:y@127.0.0.1:1/z", application="lost")
    appender = Appender(unreachable, actor="lost", clock=CLOCK, wait_s=0.2)
    with pytest.raises(Unavailable, match="same event ids"):
        await appender.submit(opening(new_run()))
    await appender.close()


async def test_a_limit_on_waiting_that_an_operator_has_set_is_no_fault_of_the_request(database: Database, admin: Any) -> None:
    run_id, holder = new_run(), await database.admin()
    hasty = await PostgresStore.open(database.url(ORCHESTRATOR) + "?lock_timeout=50ms", actor="hasty", clock=CLOCK)
    await hasty.append(opening(run_id))
    async with holder.transaction():
        await holder.execute("SELECT FROM es.streams WHERE stream_id = $1 FOR UPDATE", run_stream(run_id))
        appended = asyncio.create_task(hasty.append(to_run(run_id, cancelled(), expected=1)))
        first = await waiting(admin, "transactionid", "tuple")
        while await waiting(admin, "transactionid", "tuple") == first:  # until it tries again, on a new connection
            assert not appended.done()
    assert (await appended).versions == [2]
    await hasty.close()
    await holder.close()


async def test_connections_that_nobody_needs_are_closed_and_opened_again(database: Database, admin: Any) -> None:
    async def open_ones() -> int:
        count: int = await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'spare'")
        return count

    connect, opened = connector(database.url(ORCHESTRATOR), application="spare"), 0

    async def counted() -> Any:
        nonlocal opened
        opened += 1
        return await connect()

    connections = Connections(counted, CLOCK, size=3, spare_s=0.1)
    await asyncio.gather(*(connections.fetch("wait", "SELECT pg_sleep(0.05)") for _ in range(3)))
    async with asyncio.timeout(PATIENCE_S):
        while await open_ones():  # noqa: ASYNC110  (the server has no event for it)
            await asyncio.sleep(0.02)
    before = opened
    assert (await connections.fetch("ask", "SELECT 1"))[0][0] == 1
    assert opened == before + 1
    await connections.close()


@pytest.mark.parametrize(("query", "index"), [(_CHILD_RUNS, "events_child_runs"), (_ARCHIVED_RUNS, "events_archived_children")])
async def test_what_came_of_a_run_is_found_without_reading_the_log(admin: Any, query: str, index: str) -> None:
    """A comparison under another collation than the index has would read all of it."""
    await admin.execute("SET enable_seqscan = off")
    arguments = ([new_run()], [task_stream(new_task())])[: query.count("ANY ($")]
    plan = [row[0] for row in await admin.fetch(f"EXPLAIN {query}", *arguments)]
    at = next(n for n, line in enumerate(plan) if index in line)
    assert "Index Cond: " in plan[at + 1], "\n".join(plan)
