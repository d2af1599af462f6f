"""The group-commit appender against a real server: poison, cancelled callers, full queues, dying backends, orderly ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio
from support.logs import CLOCK, dispatched, new_run, new_task, opening, to_run
from support.postgres import Database

from crewlog.events.append_call import SQL_OPENING, SQL_PLAIN
from crewlog.events.appender import REQUESTS_PER_CALL_MAX, WAITING_PER_LANE, Appender
from crewlog.events.connections import connector
from crewlog.events.grants import ORCHESTRATOR
from crewlog.events.store import Appended, AppendRequest
from crewlog.schemas.errors import ConfigError, ContractError, NotAuthorised, Unavailable
from crewlog.schemas.ids import RunId

pytestmark = pytest.mark.hand_written("tries group commits")

PATIENCE_S = 20
Make = Callable[..., Appender]


class Line:
    """Opens connections for an appender, but lets a test hold them back, hold calls back until so many are open, and count both."""

    def __init__(self, url: str) -> None:
        self._connect = connector(url, application="appender test")
        self.open = asyncio.Event()
        self.open.set()
        self.connections: list[Any] = []
        self.wanted = 1
        """Connections that must have been opened before anything is sent."""
        self.calls: list[int] = []
        """Requests of each call."""
        self._opened = asyncio.Condition()

    async def __call__(self) -> Any:
        await self.open.wait()
        async with self._opened:
            self.connections.append(await self._connect())
            self._opened.notify_all()
        return Counted(self, self.connections[-1])

    async def ready(self) -> None:
        """Wait until as many connections are open as a test wants."""
        async with asyncio.timeout(PATIENCE_S), self._opened:
            await self._opened.wait_for(lambda: len(self.connections) >= self.wanted)


class Counted:
    def __init__(self, line: Line, connection: Any) -> None:
        self._line, self._connection = line, connection
        self.terminate, self.is_closed = connection.terminate, connection.is_closed

    async def fetch(self, sql: str, *arguments: Any) -> Any:
        await self._line.ready()
        self._line.calls.append(len(arguments[{SQL_PLAIN: 3, SQL_OPENING: 4}.get(sql, 6)]))
        return await self._connection.fetch(sql, *arguments)


@pytest.fixture
def line(database: Database) -> Line:
    return Line(database.url(ORCHESTRATOR))


@pytest_asyncio.fixture
async def make(line: Line) -> AsyncIterator[Make]:
    made: list[Appender] = []

    def make(**options: Any) -> Appender:
        made.append(Appender(line, actor="test", clock=CLOCK, **options))
        return made[-1]

    yield make
    line.open.set()
    for appender in made:
        await appender.close()


async def count(database: Database, sql: str = "SELECT count(*) FROM es.events") -> int:
    connection = await database.admin()
    found = await connection.fetchval(sql)
    await connection.close()
    return int(found)


async def test_what_waits_together_travels_together(make: Make, line: Line) -> None:
    appender = make()
    answers = await asyncio.gather(*(appender.submit(opening(new_run())) for _ in range(2 * WAITING_PER_LANE - 1)))
    assert all(answer.versions == [1] for answer in answers)
    assert (line.calls, len(line.connections)) == ([2 * WAITING_PER_LANE - 1], 1)


async def test_a_second_lane_helps_when_many_wait(make: Make, line: Line) -> None:
    appender = make()
    line.wanted = 2
    line.open.clear()
    futures = [appender.submit(opening(new_run())) for _ in range(REQUESTS_PER_CALL_MAX * 2 + 5)]
    line.open.set()
    await asyncio.gather(*futures)
    assert len(line.connections) == 2
    assert max(line.calls) <= REQUESTS_PER_CALL_MAX


async def test_requests_of_one_run_keep_their_order_in_two_lanes(make: Make) -> None:
    appender = make()
    runs = [new_run() for _ in range(50)]
    requests = [opening(run_id) for run_id in runs]
    requests += [to_run(run_id, dispatched(new_task()), expected=version) for version in range(1, 15) for run_id in runs]
    answers = await asyncio.gather(*map(appender.submit, requests))
    assert [answer.versions[0] for answer in answers] == [version for version in range(1, 16) for _ in runs]


async def test_poison_hurts_nobody_else(make: Make, line: Line) -> None:
    appender = make(lanes=1)
    line.open.clear()
    poison = opening(new_run())._replace(trace_id="no id")  # nobody checks this in the caller
    requests = [*(opening(new_run()) for _ in range(20)), poison, *(opening(new_run()) for _ in range(12))]
    twice = requests[3]
    futures = [appender.submit(r) for r in (*requests, twice)]
    line.open.set()
    answers = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(answers[20], ContractError)
    assert [a.duplicate for a in answers if isinstance(a, Appended)] == [False] * 32 + [True]
    assert len(line.connections) == 1


async def test_one_id_for_two_streams_is_found_by_the_index(make: Make, line: Line) -> None:
    appender = make(lanes=1)
    first = opening(new_run())
    await appender.submit(first)
    line.open.clear()
    reused = opening(new_run())._replace(event_ids=first.event_ids)
    answers = await asyncio.gather(appender.submit(opening(new_run())), appender.submit(reused), appender.submit(opening(new_run())), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Appended, ContractError, Appended]


async def test_a_caller_that_gives_up_in_the_queue_writes_nothing(make: Make, line: Line, database: Database) -> None:
    appender = make(lanes=1)
    line.open.clear()
    kept, waiting_for_a_connection = appender.submit(opening(new_run())), appender.submit(opening(new_run()))
    await asyncio.sleep(0)
    queued = appender.submit(opening(new_run()))
    waiting_for_a_connection.cancel()
    queued.cancel()
    line.open.set()
    await kept
    await appender.close()
    assert await count(database) == 1


async def test_a_request_cancelled_in_flight_can_be_asked_about(make: Make, database: Database) -> None:
    appender = make(lanes=1)
    made = opening(new_run())
    holder = await database.admin()
    async with holder.transaction():
        await holder.execute("LOCK TABLE es.streams IN SHARE MODE")
        task = asyncio.ensure_future(appender.submit(made))
        watcher = await database.admin()
        async with asyncio.timeout(PATIENCE_S):
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'appender test' AND wait_event_type = 'Lock'"
            while not await watcher.fetchval(waiting):  # noqa: ASYNC110  (the server has no event for it)
                await asyncio.sleep(0.01)
        await watcher.close()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await holder.close()
    answer = await appender.submit(made)
    assert (answer.duplicate, list(answer.versions)) == (True, [1])


async def test_a_full_queue_says_so_at_once(make: Make, line: Line) -> None:
    appender = make(lanes=1, queue_max=3)
    line.open.clear()
    await asyncio.sleep(0)
    futures = [appender.submit(opening(new_run())) for _ in range(3)]
    with pytest.raises(Unavailable, match="waiting already") as caught:
        appender.submit(opening(new_run()))
    assert caught.value.retry_after_s
    line.open.set()
    await asyncio.gather(*futures)


async def test_nothing_is_lost_or_doubled_when_backends_die(make: Make, line: Line, database: Database) -> None:
    appender = make()
    admin = await database.admin()
    runs = [new_run() for _ in range(40)]
    written = kills = 0
    killing = asyncio.Lock()

    async def append(request: AppendRequest) -> int:
        nonlocal written, kills
        version = (await appender.submit(request)).versions[-1]
        written += 1
        if written % 60 == 0:
            async with killing:
                kills += bool(await admin.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'appender test'"))
        return version

    async def produce(run_id: RunId) -> list[int]:
        versions = [await append(opening(run_id))]
        for _ in range(15):
            versions.append(await append(to_run(run_id, dispatched(new_task()), expected=versions[-1])))
        return versions

    versions = await asyncio.gather(*map(produce, runs))
    await admin.close()
    assert kills > 3
    assert all(v == list(range(1, 17)) for v in versions)
    assert await count(database) == 40 * 16
    assert len(line.connections) > 3


async def test_closing_sends_what_is_queued_and_leaves_no_connection(make: Make, line: Line, database: Database) -> None:
    appender = make()
    line.open.clear()
    futures = [appender.submit(opening(new_run())) for _ in range(400)]
    closing = asyncio.create_task(appender.close())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="closing"):
        appender.submit(opening(new_run()))
    line.open.set()
    await closing
    assert all(future.done() and future.result().versions == [1] for future in futures)
    assert all(connection.is_closed() for connection in line.connections)


async def test_a_lane_that_nobody_needs_is_hung_up_and_opened_again(make: Make, line: Line) -> None:
    appender = make(spare_s=0.05)
    line.wanted = 2
    line.open.clear()
    futures = [appender.submit(opening(new_run())) for _ in range(2 * REQUESTS_PER_CALL_MAX)]
    line.open.set()
    await asyncio.gather(*futures)
    async with asyncio.timeout(PATIENCE_S):
        while not all(connection.is_closed() for connection in line.connections):  # noqa: ASYNC110  (a connection tells nobody)
            await asyncio.sleep(0.02)
    assert (await appender.submit(opening(new_run()))).versions == [1]
    assert len(line.connections) == 3


async def test_readers_are_poked_after_each_commit(make: Make) -> None:
    poked: list[int] = []
    appender = make(on_commit=poked.append)
    first = await appender.submit(opening(new_run()))
    second = await appender.submit(opening(new_run()))
    assert poked == [first.positions[0], second.positions[0]]


async def test_what_no_retry_cures_is_said_at_once(database: Database) -> None:
    def appender(url: str) -> Appender:
        return Appender(connector(url, application="x"), actor="x", clock=CLOCK)

    wrong: dict[str, type[Exception]] = {
        database.url(ORCHESTRATOR).replace("password", "wrong"): ConfigError,
        database.url(ORCHESTRATOR).replace(database.name, "nowhere"): ConfigError,
        database.url(ORCHESTRATOR).replace(database.name, "postgres"): NotAuthorised,
        database.server.admin_url("postgres"): ConfigError,
        database.url("crewlog_projector"): NotAuthorised,
    }
    for url, error in wrong.items():
        lost = appender(url)
        with pytest.raises(error):
            await lost.submit(opening(new_run()))
        await lost.close()


async def test_the_answer_names_the_highest_position(make: Make, database: Database) -> None:
    appender = make()
    requests: list[AppendRequest] = [opening(new_run(), new_task()) for _ in range(5)]
    answers = await asyncio.gather(*map(appender.submit, requests))
    assert max(position for answer in answers for position in answer.positions) == await count(database, "SELECT max(position) FROM es.events")
