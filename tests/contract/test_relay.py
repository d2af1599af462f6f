"""The relay: every fact of the log on `events.>`, once and in order, whatever happens to it, to NATS or to the stream."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
import pytest
import pytest_asyncio
from support.postgres import Database

from crewlog.events import jetstream, relay
from crewlog.events.bus import Message
from crewlog.events.clock import SystemClock
from crewlog.events.grants import ORCHESTRATOR, PROJECTOR
from crewlog.events.memory_store import MemoryLog, MemoryStore, restored
from crewlog.events.nats_bus import NatsBus
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.relay import Relay
from crewlog.events.server_nats import NatsServer
from crewlog.events.store import AppendRequest, EventStore, Recorded, Write
from crewlog.schemas import subjects
from crewlog.schemas.ids import Hash, RunId, TaskId, agent_stream, archive_stream, run_stream, task_stream
from crewlog.schemas.run_events import RunCancelled, RunSubmitted
from crewlog.schemas.system_events import AgentStopped, RunArchived
from crewlog.schemas.task_events import AttemptFailed, TaskOpened
from crewlog.schemas.values import Failure

pytestmark = pytest.mark.hand_written("tries the copy of the log")

CLOCK = SystemClock()


class Copy(NamedTuple):
    """One message of the stream."""

    subject: str
    sequence: int
    envelope: dict[str, Any]


class World:
    """A log, a bus and the means to look at the copy."""

    def __init__(self, bus: NatsBus, store: EventStore) -> None:
        self.bus, self.store = bus, store

    @property
    def log(self) -> list[Recorded]:
        assert isinstance(self.store, MemoryStore)
        return self.store.log.events

    @asynccontextmanager
    async def relaying(self, bus: NatsBus | None = None) -> AsyncIterator[Relay]:
        running = Relay(self.store, bus or self.bus, CLOCK)
        task = asyncio.ensure_future(running.run())
        try:
            yield running
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def append_run(self, tenant: str = "acme", *, attempts: int = 1, occurred_us: int | None = None) -> RunId:
        run_id, task_id = RunId(CLOCK.random_id()), TaskId(CLOCK.random_id())
        failed = [AttemptFailed(n + 1, Failure("x", "y")) for n in range(attempts)]
        writes = [
            Write(task_stream(task_id), [TaskOpened("research", "a", 0, msgspec.Raw(b"{}")), *failed], 0, kind="research"),
            Write(run_stream(run_id), [RunSubmitted(run_id, tenant, "u", "g", msgspec.Raw(b'{"text":"\xc3\xa4"}'), "api")], 0),
        ]
        await self.append(writes, run_id=run_id, task_id=task_id, occurred_us=occurred_us)
        return run_id

    async def append(self, writes: list[Write], *, run_id: RunId | None = None, task_id: TaskId | None = None, occurred_us: int | None = None) -> None:
        ids = [CLOCK.new_id() for write in writes for _ in write.events]
        await self.store.append(AppendRequest(writes, ids, occurred_us or CLOCK.now_us(), run_id, task_id))
        await self.bus.publish(subjects.POKE)

    async def copies(self) -> list[Copy]:
        state = (await jetstream.api(self.bus, "STREAM.INFO.EVENTS"))["state"]
        found = []
        for sequence in range(state["first_seq"], state["last_seq"] + 1):
            msg = await self.bus.request("$JS.API.DIRECT.GET.EVENTS", msgspec.json.encode({"seq": sequence}), timeout_s=5)
            if msg.headers.get("Status") == "404":  # removed meanwhile
                continue
            found.append(Copy(msg.headers["Nats-Subject"], int(msg.headers["Nats-Sequence"]), msgspec.json.decode(msg.data)))
        return found

    async def until_relayed(self, running: Relay) -> None:
        async with asyncio.timeout(60):
            while running.position < self.log[-1].position:  # noqa: ASYNC110 — no signal tells what a follower may not rely on
                await asyncio.sleep(0.01)

    async def until_copied(self) -> None:
        async with asyncio.timeout(60):
            while [copy.envelope["event_id"] for copy in await self.copies()] != [str(event.event_id) for event in self.log]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def assert_faithful(self) -> None:
        copies = await self.copies()
        assert [copy.envelope["event_id"] for copy in copies] == [str(event.event_id) for event in self.log]
        assert [copy.envelope["position"] for copy in copies] == [event.position for event in self.log]
        assert len({copy.sequence for copy in copies}) == len(copies)


@pytest_asyncio.fixture
async def world(nats_bus: NatsBus) -> World:
    """Return an empty log and an empty stream."""
    return World(nats_bus, MemoryStore())


async def test_a_follower_gets_every_fact_as_documented(world: World) -> None:
    got: list[Message] = []
    done = asyncio.Event()

    async def follow(message: Message) -> None:
        got.append(message)
        if len(got) == 4:
            done.set()

    await world.bus.subscribe("events.>", follow)
    async with world.relaying():
        run_id = await world.append_run()
        await world.append([Write(agent_stream("research"), [AgentStopped("research", "w1")])])
        async with asyncio.timeout(60):
            await done.wait()
    by_subject = {message.subject: message for message in got}
    assert set(by_subject) == {f"events.acme.{run_id}.{name}" for name in ("TaskOpened", "AttemptFailed", "RunSubmitted")} | {
        "events.system.system.AgentStopped"
    }
    message, event = by_subject[f"events.acme.{run_id}.RunSubmitted"], world.log[2]
    envelope = msgspec.json.decode(message.data)
    assert envelope.pop("occurred_at").endswith("Z")
    assert envelope == {
        "event_id": str(event.event_id),
        "type": "RunSubmitted",
        "schema_version": 1,
        "stream": f"run/{run_id}",
        "version": 1,
        "position": event.position,
        "run_id": str(run_id),
        "task_id": str(event.task_id),
        "causation_id": None,
        "actor": "owner",
        "data": msgspec.json.decode(event.data),
    }


async def test_batches_keep_order_and_tenants_are_looked_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "BATCH", 7)
    monkeypatch.setattr(relay, "TENANTS_MAX", 2)
    runs = {await world.append_run(f"tenant-{n}", attempts=5): f"tenant-{n}" for n in range(10)}
    for run_id in runs:  # long after their beginning: the relay has forgotten their tenants
        await world.append([Write(run_stream(run_id), [RunCancelled("enough", "me")])], run_id=run_id)
    async with world.relaying() as running:
        await world.until_relayed(running)
    await world.assert_faithful()
    assert {tuple(copy.subject.split(".")[1:3]) for copy in await world.copies()} == {(tenant, str(run_id)) for run_id, tenant in runs.items()}


async def test_a_relay_goes_on_where_another_was_cut_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "BATCH", 5)
    for _ in range(30):
        await world.append_run(attempts=3)
    for position in (11, 37, 80):
        async with world.relaying() as running:
            while running.position < position:  # noqa: ASYNC110 — cut off in the middle of whatever it does then
                await asyncio.sleep(0)
    async with world.relaying() as running:
        await world.until_relayed(running)
    await world.assert_faithful()


async def test_two_relays_at_once_still_make_one_faithful_copy(world: World, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "BATCH", 3)
    monkeypatch.setattr(relay, "RETRY_FIRST_S", 0.01)
    other = await NatsBus.connect(nats_url, name="zombie")
    async with world.relaying() as first, world.relaying(other) as second:
        for _ in range(20):
            await world.append_run(attempts=2)
        await asyncio.gather(world.until_relayed(first), world.until_relayed(second))
    await world.assert_faithful()
    await other.close()


async def test_a_deleted_stream_is_made_again_and_filled_from_the_log(world: World) -> None:
    await world.append_run()
    async with world.relaying() as running:
        await world.until_relayed(running)
        await jetstream.api(world.bus, "STREAM.DELETE.EVENTS")
        await world.append_run()
        await world.until_relayed(running)
        await world.until_copied()


async def test_copies_of_a_run_go_when_it_is_archived_and_come_back_with_it(world: World) -> None:
    gone, kept = await world.append_run(), await world.append_run()
    said = RunArchived(gone, "acme", "u", "run", "g", "completed", 0, 0, 0, 3, Hash("0" * 64), "f", Hash("0" * 64), "somebody")
    async with world.relaying() as running:
        await world.until_relayed(running)
        await world.append([Write(archive_stream(gone), [said], 0)])
        await world.append([Write(run_stream(gone), [RunCancelled("behind it", "somebody")], 1)], run_id=gone)
        await world.until_relayed(running)
        subjects_left = [copy.subject for copy in await world.copies()]
    assert sorted(subject.split(".")[-1] for subject in subjects_left if str(gone) in subject) == ["RunCancelled"]
    assert sum(str(kept) in subject for subject in subjects_left) == 3
    assert subjects_left.count("events.system.system.RunArchived") == 1


async def test_a_purged_stream_is_filled_again(world: World) -> None:
    for _ in range(3):
        await world.append_run()
    async with world.relaying() as running:
        await world.until_relayed(running)
    await jetstream.api(world.bus, "STREAM.PURGE.EVENTS")
    await world.append_run()
    async with world.relaying() as running:
        await world.until_relayed(running)
    await world.assert_faithful()


async def test_a_stream_that_somebody_else_wrote_to_is_filled_anew(world: World) -> None:
    await world.append_run()
    async with world.relaying() as running:
        await world.until_relayed(running)
    await world.bus.enqueue("events.acme.x.y", b'{"event_id": "of no log"}', message_id="strange")
    async with world.relaying():
        await world.until_copied()


async def test_a_stream_of_another_log_is_filled_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "LOG_BEHIND_S", 0.2)
    monkeypatch.setattr(relay, "RETRY_LONGEST_S", 0.1)
    for attempts in (1, 5):  # the new log is longer than the copy, then shorter
        await world.append_run(attempts=attempts)
        async with world.relaying() as running:
            await world.until_relayed(running)
        world.store = MemoryStore(MemoryLog())
        await world.append_run(attempts=2)
        async with world.relaying():
            await world.until_copied()


async def test_a_fact_that_nobody_can_read_stops_no_other(world: World) -> None:
    """A login that was taken over may write what is not what its type says."""
    assert isinstance(world.store, MemoryStore)
    await world.append_run()
    for type_, stream in (("RunSubmitted", run_stream), ("RunArchived", archive_stream)):
        run_id = RunId(CLOCK.random_id())
        recorded = Recorded(world.log[-1].position + 1, stream(run_id), 1, CLOCK.new_id(), type_, 1, b'{"run_id":7}', CLOCK.now_us(), run_id)
        world.log.append(recorded)
        world.store.log.streams[recorded.stream] = restored([recorded], []).streams[recorded.stream]
    await world.append_run()
    async with world.relaying() as running:
        await world.until_relayed(running)
    await world.assert_faithful()


async def test_events_older_than_the_stream_keeps_are_left_out(world: World) -> None:
    await world.append_run("old", occurred_us=CLOCK.now_us() - (jetstream.EVENTS.age_max_s + 60) * 1_000_000)
    await world.append_run("new")
    async with world.relaying() as running:
        await world.until_relayed(running)
    assert {copy.subject.split(".")[1] for copy in await world.copies()} == {"new"}


async def test_the_copy_is_complete_after_nats_was_killed_under_load(real_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "BATCH", 16)
    monkeypatch.setattr(relay, "CONFIRM_TIMEOUT_S", 1.0)
    supervisor = await NatsBus.connect(real_server.url("supervisor"), name="supervisor")
    await jetstream.ensure_topology(supervisor)
    projector = await NatsBus.connect(real_server.url("projector"), name="projector")
    world = World(supervisor, MemoryStore())
    async with world.relaying(projector) as running:
        for kill in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            for _ in range(40):
                await world.append_run(attempts=2)
            async with asyncio.timeout(60):
                while running.position < world.log[-100].position:  # noqa: ASYNC110 — kill it in the middle
                    await asyncio.sleep(0)
            assert running.position < world.log[-1].position
            assert real_server.pid is not None
            os.kill(real_server.pid, kill)
            await real_server.wait()
            await world.append_run()
            await real_server.start()
        await world.until_relayed(running)
    async with asyncio.timeout(60):
        await supervisor.flush()
    await world.assert_faithful()
    await projector.close()
    await supervisor.close()


async def test_the_real_log_is_relayed_while_several_processes_append(nats_bus: NatsBus, database: Database) -> None:
    writers = [await PostgresStore.open(database.url(ORCHESTRATOR), actor=f"writer-{n}", clock=CLOCK) for n in range(3)]
    reader = await PostgresStore.open(database.url(PROJECTOR), actor="relay", clock=CLOCK)
    worlds = [World(nats_bus, writer) for writer in writers]
    relaying = Relay(reader, nats_bus, CLOCK)
    task = asyncio.ensure_future(relaying.run())
    await asyncio.gather(*(world.append_run(f"tenant-{n % 3}", attempts=0) for n in range(40) for world in worlds))
    logged = (await reader.read_all(0, 1000)).events
    async with asyncio.timeout(60):
        while relaying.position < logged[-1].position:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    copies = await worlds[0].copies()
    assert len(logged) == 3 * 40 * 2
    assert [copy.envelope["event_id"] for copy in copies] == [str(event.event_id) for event in logged]
    assert {copy.subject.split(".")[1] for copy in copies} == {"tenant-0", "tenant-1", "tenant-2"}
    for store in (*writers, reader):
        await store.close()
