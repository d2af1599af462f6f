"""Two Postgres servers with synchronous replication: the primary is killed, the standby takes over, and nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from support.audit import ended_well
from support.gate import a_gate, gated_agents
from support.gated_agent import KIND
from support.live_crew import a_crew
from support.logs import new_task, to_task
from support.money import opened
from support.postgres_pair import a_pair

from crewlog.events.clock import SystemClock
from crewlog.events.config import load
from crewlog.events.connections import connector
from crewlog.events.postgres_hosts import split_hosts
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import AppendRequest
from crewlog.orchestrator.client import Client
from crewlog.schemas.task_events import Nudged

CLOCK = SystemClock()
WRITERS = 8


async def test_no_acknowledged_append_is_lost_when_the_standby_takes_over() -> None:
    acknowledged: list[AppendRequest] = []
    async with a_pair(()) as pair:
        stores = [await PostgresStore.open(pair.url(), actor=f"writer-{n}@test", clock=CLOCK, lanes=1) for n in range(WRITERS)]
        over = asyncio.Event()

        async def write(store: PostgresStore) -> None:
            task_id, version = new_task(), 1
            await store.append(opened(task_id))
            while not over.is_set():
                request = to_task(task_id, Nudged("loop", "go on"), expected=version)
                version = (await store.append(request)).versions[0]  # as the product does: waits for a server that is away, and asks again
                acknowledged.append(request)

        writing = [asyncio.create_task(write(store)) for store in stores]
        await until_more(acknowledged, 200)
        await pair.fail_over()
        await until_more(acknowledged, len(acknowledged) + 200)
        over.set()
        await asyncio.gather(*writing)
        written = Counter(await pair.ask_log("SELECT event_id FROM es.events"))
        assert all(written[event_id] == 1 for request in acknowledged for event_id in request.event_ids)
        assert await pair.ask_log("SELECT stream_id FROM es.events GROUP BY stream_id HAVING count(*) <> max(version)") == []

        # the former primary comes back and takes itself for one: whoever has seen its successor leaves it alone
        await pair.primary.start()
        connect = connector(pair.url(), application="test")
        connections = [await connect() for _ in range(3)]
        ports = [await connection.fetchval("SHOW port") for connection in connections]
        for connection in connections:
            await connection.close()
        assert set(ports) == {str(pair.follower.port)}
        for store in stores:
            await store.close()


async def until_more(acknowledged: list[AppendRequest], wanted: int) -> None:
    async with asyncio.timeout(60):
        while len(acknowledged) < wanted:  # noqa: ASYNC110 — the writers have better things to do than to tell
            await asyncio.sleep(0.01)


@pytest.mark.long
async def test_a_crew_goes_on_with_the_standby() -> None:
    async with a_pair(()) as pair, a_gate() as gate:
        gate.open()
        with a_crew("--agents", "research=0,code=0,communicate=0,planner=0", CREWLOG_DATABASE_URL=pair.url(), CREWLOG_SWEEP_INTERVAL_S="0.5") as crew:
            async with Client.connect(load(home=crew.home, database_url=pair.url())) as client, gated_agents(crew, gate) as agents:
                await agents.start()
                runs = [(await client.submit("stamp send stamp finish", kind=KIND)).run_id for _ in range(30)]
                await pair.fail_over()
                runs += [(await client.submit("stamp finish", kind=KIND)).run_id for _ in range(5)]
                await ended_well(client, runs)
    assert len({call.key for call in gate.seen}) == 30 * 3 + 5


def test_an_address_with_several_hosts_is_one_for_each() -> None:
    assert split_hosts("postgresql://u:p%40@a:1/db") == ("postgresql://u:p%40@a:1/db",)
    first, second = split_hosts("postgresql://u:p%40@a:1, b/db?application_name=x&target_session_attrs=any")
    assert first == "postgresql://u:p%40@a:1/db?application_name=x&target_session_attrs=primary"
    assert second.startswith("postgresql://u:p%40@b/db?")


async def test_a_host_that_is_silent_or_not_there_does_not_use_up_the_time_of_the_others() -> None:
    left = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the caller is gone
        writer.close()
        left.set()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with silent:
        connect = connector(f"postgresql://u:p@127.0.0.1:{port},127.0.0.1:1/db", application="test")
        async with asyncio.timeout(90):
            with pytest.raises(ConnectionRefusedError):  # by the second one: the first one's time was over long before that of a connection is
                await connect()
            await left.wait()
