"""Reading the whole log while many append, some of them slowly, some in vain: no reader passes an event that appears later."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import asyncpg
import pytest
from support.logs import CLOCK, dispatched, new_run, new_task, opening, request, started, to_run, to_task
from support.postgres import Database

from crewlog.events.append_call import SQL, arguments
from crewlog.events.append_request import encode_request
from crewlog.events.grants import ORCHESTRATOR, PROJECTOR, kind_role
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import AppendRequest, Write
from crewlog.schemas.errors import ConflictError
from crewlog.schemas.ids import RunId, run_stream, task_stream

pytestmark = pytest.mark.hand_written("tries the order of the log")


async def append_on(connection: Any, *requests: AppendRequest) -> Any:
    """Call the gate by hand, inside whatever transaction the connection is in."""
    return await connection.fetchrow(SQL, *arguments([encode_request(r) for r in requests], "by hand"))


async def test_a_reader_waits_for_an_append_that_is_not_committed(database: Database) -> None:
    store = await PostgresStore.open(database.url(ORCHESTRATOR), actor="o", clock=CLOCK)
    slow = await asyncpg.connect(database.url(ORCHESTRATOR))
    early, late = opening(new_run()), opening(new_run())
    transaction = slow.transaction()
    await transaction.start()
    row = await append_on(slow, early)
    (position,) = (await store.append(late)).positions
    assert row[1][0] < position
    page = await store.read_all(0, 100)
    assert (page.events, page.high_water < row[1][0]) == ([], True)
    await transaction.commit()
    page = await store.read_all(0, 100)
    assert [event.event_id for event in page.events] == [early.event_ids[0], late.event_ids[0]]
    await slow.close()
    await store.close()


async def test_a_rolled_back_append_leaves_a_gap_that_nobody_waits_for(database: Database) -> None:
    store = await PostgresStore.open(database.url(ORCHESTRATOR), actor="o", clock=CLOCK)
    slow = await asyncpg.connect(database.url(ORCHESTRATOR))
    run_id = new_run()
    transaction = slow.transaction()
    await transaction.start()
    await append_on(slow, opening(run_id))
    await transaction.rollback()
    (position,) = (await store.append(opening(run_id))).positions
    page = await store.read_all(0, 100)
    assert position > 1
    assert [event.position for event in page.events] == [position]
    assert page.high_water >= position
    await slow.close()
    await store.close()


async def test_other_transactions_do_not_hold_readers_back(database: Database) -> None:
    store = await PostgresStore.open(database.url(ORCHESTRATOR), actor="o", clock=CLOCK)
    other = await database.admin()
    await other.execute("CREATE TABLE unrelated (x int)")
    async with other.transaction():
        await other.execute("INSERT INTO unrelated VALUES (1)")
        await store.append(opening(new_run()))
        assert len((await store.read_all(0, 100)).events) == 1
    await other.close()
    await store.close()


async def test_reading_and_watermark_need_separate_snapshots(database: Database) -> None:
    connection = await asyncpg.connect(database.url(PROJECTOR))
    async with connection.transaction(isolation="repeatable_read"):
        with pytest.raises(asyncpg.PostgresError) as caught:
            await connection.fetch("SELECT * FROM es.read_all(0, 10)")
    assert caught.value.sqlstate == "ES005"
    await connection.close()


class Tail:
    """Follows the log from the beginning, as a projection does."""

    def __init__(self, store: PostgresStore) -> None:
        self.store = store
        self.seen: list[tuple[int, str]] = []

    async def catch_up(self) -> None:
        after = self.seen[-1][0] if self.seen else 0
        while (page := await self.store.read_all(after, 200)).events:
            self.seen += [(event.position, str(event.event_id)) for event in page.events]
            after = page.events[-1].position

    async def follow(self, done: asyncio.Event) -> None:
        while not done.is_set():
            await self.catch_up()
            await asyncio.sleep(0.001)
        await self.catch_up()


async def test_readers_lose_nothing_under_load(database: Database) -> None:
    stores = [await PostgresStore.open(database.url(ORCHESTRATOR), actor=f"o@{n}", clock=CLOCK) for n in range(3)]
    tails = [Tail(await PostgresStore.open(database.url(PROJECTOR), actor="p", clock=CLOCK, readers=1)) for _ in range(3)]
    runs = [new_run() for _ in range(20)]
    for run_id in runs:
        await stores[0].append(opening(run_id)._replace(run_id=runs[0]))  # one append may write to several: they are of one run
    done = asyncio.Event()
    following = [asyncio.create_task(tail.follow(done)) for tail in tails]
    dawdling = [asyncio.create_task(dawdle(database, runs, seed)) for seed in range(2)]
    await asyncio.gather(*(produce(stores[seed % 3], runs, seed) for seed in range(40)))
    await asyncio.gather(*dawdling)
    done.set()
    await asyncio.gather(*following)

    connection = await database.admin()
    committed = [(row[0], str(row[1])) for row in await connection.fetch("SELECT position, event_id FROM es.events ORDER BY position")]
    holes = await connection.fetchval("SELECT count(*) FROM es.streams s WHERE version <> (SELECT count(*) FROM es.events e WHERE e.stream_id = s.stream_id)")
    disorder = await connection.fetchval(
        "SELECT count(*) FROM (SELECT version, row_number() OVER (PARTITION BY stream_id ORDER BY position) AS n FROM es.events) e WHERE version <> n"
    )
    await connection.close()
    assert len(committed) > 1000
    assert all(tail.seen == committed for tail in tails)
    assert (holes, disorder) == (0, 0)
    for store in (*stores, *(tail.store for tail in tails)):
        await store.close()


async def produce(store: PostgresStore, runs: list[RunId], seed: int) -> None:
    """Append to one to three shared streams at a time, with and without expected versions, and again with the same ids."""
    chance = random.Random(seed)
    for _ in range(50):
        writes = [Write(run_stream(run_id), [dispatched(new_task())], chance.choice([-1, -1, 1])) for run_id in chance.sample(runs, chance.randint(1, 3))]
        made = request(*writes, run_id=runs[0])
        for _ in range(chance.choice([1, 1, 2])):
            with suppress(ConflictError):
                await store.append(made)


async def dawdle(database: Database, runs: list[RunId], seed: int) -> None:
    """Hold appends open across others' commits; take some of them back."""
    chance = random.Random(f"dawdle {seed}")
    connection = await asyncpg.connect(database.url(ORCHESTRATOR))
    for _ in range(6):
        transaction = connection.transaction()
        await transaction.start()
        await append_on(connection, to_run(chance.choice(runs), dispatched(new_task()))._replace(run_id=runs[0]), opening(new_run()))
        await connection.execute("SELECT pg_sleep($1)", chance.uniform(0.02, 0.1))
        await (transaction.rollback() if chance.random() < 0.4 else transaction.commit())
    await connection.close()


@pytest.mark.parametrize("then", ["SELECT 1", "SELECT pg_sleep(600)"])
async def test_an_agent_that_lifted_its_limits_holds_an_append_open_for_a_while_only(database: Database, then: str) -> None:
    orchestrator = await PostgresStore.open(database.url(ORCHESTRATOR), actor="o", clock=CLOCK)
    run_id, task_id = new_run(), new_task()
    await orchestrator.append(opening(run_id, task_id))
    by_hand, agent = await asyncpg.connect(database.url(ORCHESTRATOR)), await asyncpg.connect(database.url(kind_role("research")))
    own = await asyncpg.connect(database.url(ORCHESTRATOR))
    for setting in ("idle_in_transaction_session_timeout", "statement_timeout", "transaction_timeout"):
        await agent.execute(f"SET {setting} = 0")
    for connection, held in ((own, opening(new_run())), (agent, to_task(task_id, started(), expected=1, run_id=run_id))):
        await connection.execute("BEGIN")
        await append_on(connection, held)
    holding = asyncio.create_task(agent.execute(then))
    (position,) = (await orchestrator.append(opening(new_run()))).positions
    await by_hand.execute("SELECT es.end_held_appends('5 minutes')")
    assert (await orchestrator.read_all(0, 100)).high_water < position, "another append may take some time"
    async with asyncio.timeout(60):
        while not agent.is_closed():
            await by_hand.execute("SELECT es.end_held_appends('1 second')")
            await asyncio.sleep(0.1)
    await asyncio.gather(holding, return_exceptions=True)
    await own.execute("COMMIT")
    assert (await orchestrator.read_all(0, 100)).high_water >= position
    assert [event.version for event in await orchestrator.read_streams({task_stream(task_id): 0})] == [1], "it never happened"
    for connection in (by_hand, own):
        await connection.close()
    await orchestrator.close()


@pytest.mark.long
async def test_orchestrators_end_what_an_agent_holds_open(database: Database) -> None:
    orchestrator = await PostgresStore.open(database.url(ORCHESTRATOR), actor="o", clock=CLOCK)
    run_id, task_id = new_run(), new_task()
    await orchestrator.append(opening(run_id, task_id))
    agent = await asyncpg.connect(database.url(kind_role("research")))
    await agent.execute("SET idle_in_transaction_session_timeout = 0")
    await agent.execute("BEGIN")
    await append_on(agent, to_task(task_id, started(), expected=1, run_id=run_id))
    async with asyncio.timeout(120):
        while not agent.is_closed():
            await orchestrator.changed_runs(0, positions_max=100)
            await asyncio.sleep(1)
    await orchestrator.close()
