"""A cluster of three NATS servers that keep each stream three times: the server that leads is killed under load, and every run ends well."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from support.audit import ended_well
from support.gate import a_gate, gated_agents
from support.gated_agent import KIND
from support.live_crew import a_crew
from support.nats_trio import a_trio

from crewlog.events import jetstream
from crewlog.events.config import load
from crewlog.events.nats_bus import NatsBus
from crewlog.orchestrator.client import Client
from crewlog.schemas.errors import TransientError

RECOVERS_WITHIN_S = 40.0
"""An election takes 4 to 9 s on a busy machine. Above all it is less than the 60 s after which a task that gave no sign of life is published again."""
SLOTS = 16
NOBODY = "research=0,code=0,communicate=0,planner=0,data=0"


async def until_clustered(bus: NatsBus, *, replicas: int = 3) -> None:
    """Wait until the cluster can make streams that are kept so many times."""
    async with asyncio.timeout(60):
        while True:
            try:
                await jetstream.ensure_topology(bus, provision=jetstream.Provision(replicas=replicas))
            except TransientError:
                await asyncio.sleep(0.2)
            else:
                return


async def info(bus: NatsBus, stream: str) -> dict[str, Any]:
    return await jetstream.api(bus, f"STREAM.INFO.{stream}")


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_cluster_loses_the_leader_of_its_queue_under_load() -> None:
    async with a_trio() as trio, a_gate() as gate:
        bus = await NatsBus.connect(trio.url, name="test", connect_timeout_s=30)
        try:
            await until_clustered(bus)
            env = {"CREWLOG_NATS_URL": trio.url, "CREWLOG_NATS_REPLICAS": "3", "CREWLOG_SWEEP_INTERVAL_S": "0.5", "CREWLOG_ACK_WAIT_S": "5"}
            with a_crew("--agents", NOBODY, **env) as crew:
                assert {(await info(bus, name))["config"]["num_replicas"] for name in jetstream.STREAMS} == {3}
                async with Client.connect(load(home=crew.home, nats_url=trio.url)) as client, gated_agents(crew, gate) as agents:
                    await agents.start(slots=SLOTS)
                    runs = [(await client.submit("stamp send stamp finish", kind=KIND)).run_id for _ in range(20)]
                    under_way = [await gate.call() for _ in range(SLOTS)]
                    trio.kill((await info(bus, "WORK"))["cluster"]["leader"])
                    killed_s = asyncio.get_running_loop().time()
                    gate.open()
                    for call in under_way:
                        call.let_through()
                    tasks = [await client.prepare("stamp finish", kind=KIND) for _ in range(10)]
                    for task in tasks:
                        await bus.enqueue(f"tasks.{task.tenant}.{KIND}", msgspec.json.encode(task), message_id=str(task.task_id))
                    async with asyncio.timeout_at(killed_s + RECOVERS_WITHIN_S):
                        while len([run for run in await client.runs() if run.finished_at is not None]) < 30:  # noqa: ASYNC110
                            await asyncio.sleep(0.1)
                    await ended_well(client, runs)
            assert len({call.key for call in gate.seen}) == 20 * 3 + 10
            assert len([call for call in gate.seen if call.tool == "send"]) == 20
        finally:
            await bus.close()


@pytest.mark.long
async def test_a_cluster_takes_over_the_streams_of_one_server() -> None:
    async with a_trio() as trio:
        bus = await NatsBus.connect(trio.url, name="test", connect_timeout_s=30)
        try:
            for replicas in (1, 3):
                await until_clustered(bus, replicas=replicas)
                modes = {name: (await info(bus, name))["config"].get("persist_mode") for name in jetstream.STREAMS}
                assert modes == dict.fromkeys(jetstream.STREAMS) | ({"EVENTS": "async"} if replicas == 1 else {})
        finally:
            await bus.close()
