"""The orchestrator with its own login on a real Postgres and a real NATS: rights, subjects, timers, shutdown."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any
from uuid import UUID

from support.decider import a_plan
from support.postgres import Database

from crewlog.events.bus import Delivery, Message
from crewlog.events.clock import SystemClock
from crewlog.events.grants import BUILT_IN_KINDS, ORCHESTRATOR, kind_role
from crewlog.events.jetstream import ensure_topology
from crewlog.events.nats_bus import NatsBus
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import AppendRequest, Write
from crewlog.orchestrator.rederive import verify_run
from crewlog.orchestrator.service import OrchestratorService, Settings
from crewlog.schemas.ids import RunId, TaskId, run_stream, task_stream
from crewlog.schemas.run_events import RunSubmitted
from crewlog.schemas.subjects import LANES, wake
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import TERMINAL_TYPES, TaskCompleted
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Outcome


async def test_runs_on_real_servers(database: Database, nats_url: str) -> None:
    clock = SystemClock()
    bus = await NatsBus.connect(nats_url, name="agents")
    await ensure_topology(bus)
    services, stores, buses = [], [], []
    changed = asyncio.Event()
    for n in range(2):
        stores.append(await PostgresStore.open(database.url(ORCHESTRATOR), actor=f"orchestrator@o{n}", clock=clock, on_commit=lambda *_: changed.set()))
        buses.append(await NatsBus.connect(nats_url, name=f"o{n}"))
        services.append(OrchestratorService(stores[-1], buses[-1], clock, Settings(shutdown_grace_s=2)))
        await services[-1].start()
    agents = {kind: await PostgresStore.open(database.url(kind_role(kind)), actor=f"agent@{kind}", clock=clock, lanes=1) for kind in BUILT_IN_KINDS}
    handed: list[str] = []

    async def work(delivery: Delivery) -> None:
        task = parse_task(delivery.data)
        handed.append(delivery.headers["Nats-Msg-Id"])
        stream, run_id, task_id = task_stream(TaskId(task.task_id)), RunId(task.run_id), TaskId(task.task_id)
        done = TaskCompleted(Outcome(f"result of {task.key}"), Usage(10, 5), 7, 1, 0)
        request = AppendRequest((Write(stream, (done,), int(delivery.headers["Task-Version"])),), [clock.new_id()], clock.now_us(), run_id, task_id)
        await agents[task.type].append(request)
        await bus.publish(wake(run_id))
        await delivery.ack()

    try:
        consumers = {f"{kind}-{lane}": n for kind in BUILT_IN_KINDS for n, lane in enumerate(LANES)}
        consuming = await bus.consume("WORK", consumers, work, slots=16)
        runs = await asyncio.gather(*(_submit(bus, UUID(int=n + 1)) for n in range(20)))
        await bus.publish("tasks.default.data", json.dumps({"task_id": str(UUID(int=99)), "objective": "Count"}).encode())
        await _ended(stores[0], {*runs, RunId(UUID(int=99))}, changed)

        assert len(handed) == len(set(handed)) == 81
        for run_id in runs:
            events = await stores[0].read_run(run_id)
            assert verify_run([r for r in events if r.stream == run_stream(run_id)], [r for r in events if r.stream != run_stream(run_id)]) is None
            assert {r.writer for r in events if r.stream == run_stream(run_id)} == {ORCHESTRATOR}
        await consuming.stop(grace_s=1)
    finally:
        for service in services:
            await service.stop()
        for store in (*stores, *agents.values()):
            await store.close()
        for one in (bus, *buses):
            await one.close()


async def test_a_task_overtakes_those_of_another_tenant_on_real_servers(database: Database, nats_url: str) -> None:
    clock, heard = SystemClock(), asyncio.Event()

    async def note(_: Message) -> None:
        heard.set()

    bus, own = await NatsBus.connect(nats_url, name="senders"), await NatsBus.connect(nats_url, name="o")
    store = await PostgresStore.open(database.url(ORCHESTRATOR), actor="orchestrator@o", clock=clock)
    service = OrchestratorService(store, own, clock, Settings(shutdown_grace_s=2))
    try:
        await ensure_topology(bus)
        await bus.subscribe("replies.quiet.me", note)
        for n in range(400):
            await bus.publish("tasks.noisy.data", json.dumps({"objective": f"Count {n}"}).encode())
        await bus.enqueue("tasks.quiet.data", b'{"objective": "Count"}', message_id="quiet", headers={"Reply-To": "replies.quiet.me"})
        await service.start()
        async with asyncio.timeout(60):
            await heard.wait()
            while (await bus.queued("TASKS")).subjects:  # noqa: ASYNC110  (the server sends no signal for it)
                await asyncio.sleep(0.02)
        order = await _tenants(store)
        assert Counter(order) == {"noisy": 400, "quiet": 1}, "each message once, whichever way it came"
        assert order.index("quiet") < 200
    finally:
        await service.stop()
        await store.close()
        await own.close()
        await bus.close()


async def _tenants(store: PostgresStore) -> list[str]:
    """Return whose the open runs are, in the order in which they were recorded."""
    runs = await store.open_runs(after=None, limit=1000)
    events = await store.read_streams({run_stream(run_id): 0 for run_id in runs}, types=frozenset({RunSubmitted.__name__}))
    submitted = [(recorded.position, event.tenant) for recorded in events if isinstance(event := recorded.event(), RunSubmitted)]
    return [tenant for _, tenant in sorted(submitted)]


async def _submit(bus: NatsBus, run_id: UUID) -> RunId:
    plan = a_plan(research="research", code="code", data="data", communicate="communicate research code data")
    body = {"task_id": str(run_id), "type": "run", "objective": "Do it", "plan": plan}
    answer: dict[str, Any] = json.loads((await bus.request("api.default.tasks.submit", json.dumps(body).encode(), timeout_s=60)).data)
    assert answer["status"] == "accepted", answer
    return RunId(UUID(answer["run_id"]))


async def _ended(store: PostgresStore, runs: set[RunId], changed: asyncio.Event) -> None:
    async with asyncio.timeout(120):
        while True:
            changed.clear()
            if len(await store.read_streams({run_stream(run_id): 0 for run_id in runs}, types=TERMINAL_TYPES)) == len(runs):
                return
            await changed.wait()
