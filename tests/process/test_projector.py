"""The projector as a process: it keeps the views and the relay going, survives its connection, hands over, and ends in good order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import asyncpg
import msgspec
import pytest
from support.histories import store_history, write_history
from support.postgres import Database
from support.views import log_of

from crewlog.events.bus import Message
from crewlog.events.clock import SystemClock
from crewlog.events.nats_bus import NatsBus
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import AppendRequest, Write
from crewlog.projections.digest import digest
from crewlog.projections.queries import Queries
from crewlog.projections.rebuild import rebuild
from crewlog.schemas.ids import RunId, run_stream
from crewlog.schemas.run_events import RunSubmitted
from crewlog.schemas.subjects import POKE, events

pytestmark = pytest.mark.hand_written("the projector follows histories of every shape")

MAIN = """
import asyncio, logging
from crewlog.events.config import load
from crewlog.projections.process import run_projector
logging.basicConfig(level=logging.INFO)
asyncio.run(run_projector(load()))
"""


@asynccontextmanager
async def projector(database: Database, nats_url: str) -> AsyncIterator[Process]:
    """Run a projector that says it is ready."""
    read, write = os.pipe()
    env = {**os.environ, "CREWLOG_DATABASE_URL": database.url("crewlog_projector"), "CREWLOG_NATS_URL": nats_url, "CREWLOG_READY_FD": str(write)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", MAIN, env=env, pass_fds=[write], stderr=asyncio.subprocess.PIPE)
    os.close(write)
    try:
        async with asyncio.timeout(120):
            assert await asyncio.to_thread(os.read, read, 1) == b"1"
        yield process
    finally:
        os.close(read)
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(120):  # a projector is nice to whoever else wants the cores
        while not await condition():  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.02)


async def fill(store: PostgresStore, seed: int) -> int:
    await store_history(store, write_history(Random(seed), runs=4, moves=120))
    return (await store.read_all(0, 100_000)).events[-1].position


def caught_up(queries: Queries, position: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        lags = await queries.lag()
        return bool(lags) and all(lag.position >= position for lag in lags)

    return check


async def end_in_good_order(process: Process) -> str:
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(120):
        _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert "Traceback" not in errors.decode()
    return errors.decode()


async def leader_pid(admin: asyncpg.Connection) -> Any:
    return await admin.fetchval(
        "SELECT a.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted AND a.datname = current_database()"
        " AND a.application_name = 'crewlog projector rm'"
    )


async def test_it_keeps_views_and_relay_and_ends_on_sigterm(database: Database, nats_url: str) -> None:
    bus = await NatsBus.connect(nats_url, name="test")
    clock = SystemClock()
    run_id = RunId(clock.random_id())
    relayed = asyncio.Event()

    async def note(_: Message) -> None:
        relayed.set()

    await bus.subscribe(events("default", run_id, "RunSubmitted"), note)
    await bus.flush()
    async with log_of(database) as store, Queries(database.url("crewlog_operator"), clock) as queries, projector(database, nats_url) as process:
        await fill(store, 1)
        task = msgspec.Raw(msgspec.json.encode({"task_id": run_id, "type": "run"}))
        submitted = RunSubmitted(run_id, "default", "ann", "count the penguins", task, "api")
        request = AppendRequest([Write(run_stream(run_id), [submitted])], [clock.new_id()], clock.now_us(), run_id)
        position = (await store.append(request)).positions[0]
        await bus.publish(POKE)
        await until(caught_up(queries, position))
        assert (await queries.run("@last")).goal == "count the penguins"
        async with asyncio.timeout(120):
            await relayed.wait()
        assert "keeps the views" in await end_in_good_order(process)
        live = await digest(database.url("crewlog_projector"))
        assert (await rebuild(database.url("crewlog_projector"), store)).corrected == {}
        assert await digest(database.url("crewlog_projector")) == live
    await bus.close()


async def test_a_standby_takes_over_from_a_killed_leader(database: Database, nats_url: str) -> None:
    async with (
        log_of(database) as store,
        Queries(database.url("crewlog_operator"), SystemClock()) as queries,
        projector(database, nats_url) as leader,
        projector(database, nats_url) as standby,
    ):
        bus = await NatsBus.connect(nats_url, name="test")
        position = await fill(store, 2)
        await bus.publish(POKE)
        await until(caught_up(queries, position))
        leader.kill()
        await leader.wait()
        position = await fill(store, 3)

        async def poked() -> bool:
            await bus.publish(POKE)
            return await caught_up(queries, position)()

        await until(poked)
        await end_in_good_order(standby)
        await bus.close()


async def test_it_comes_back_when_its_connection_is_cut(database: Database, nats_url: str) -> None:
    async with log_of(database) as store, Queries(database.url("crewlog_operator"), SystemClock()) as queries, projector(database, nats_url) as process:
        admin = await database.admin()

        cut = {None}
        for _ in range(4):  # at whatever it does first, too: what asyncpg makes of that depends on the moment

            async def leads() -> bool:
                return await leader_pid(admin) not in cut

            await until(leads)
            cut.add(leader := await leader_pid(admin))
            await admin.execute("SELECT pg_terminate_backend($1)", leader)
        await admin.close()
        bus = await NatsBus.connect(nats_url, name="test")
        position = await fill(store, 4)
        await bus.publish(POKE)
        await until(caught_up(queries, position))
        assert "starts over" in await end_in_good_order(process)
        await bus.close()
