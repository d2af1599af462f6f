"""Workers that died without a word get the end of their registration, once, and who is there after all is registered again: on both logs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
from support.crew import Crew, LeapingClock
from support.logs import Log

from crewlog.events.bus import Message
from crewlog.events.grants import ORCHESTRATOR
from crewlog.events.memory_bus import MemoryBroker, MemoryBus
from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import AppendRequest, EventStore, Recorded, Write
from crewlog.orchestrator.silent_workers import LATEST, SilentWorkers, Worker
from crewlog.schemas.codec import Event
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.ids import Stream, agent_stream
from crewlog.schemas.subjects import control_worker, telemetry
from crewlog.schemas.system_events import AgentRegistered, AgentStopped

GRACE_S = 100.0
ROUND_S = 50.0

pytestmark = pytest.mark.hand_written("workers that never were")


def registered(worker: str, kind: str = "data") -> AgentRegistered:
    return AgentRegistered(kind, worker, "Counts.", "1", 4, "acme/a", simulated=False, tools=())


class Cut(MemoryBus):
    """A bus that may be out of reach."""

    is_away = False

    async def request(self, *args: object, **named: object) -> Message:
        if self.is_away:
            raise Unavailable("no connection")
        return await super().request(*args, **named)  # type: ignore[arg-type]

    async def flush(self) -> None:
        if self.is_away:
            raise Unavailable("no connection")
        await super().flush()


class World:
    """A log, a bus, and orchestrators that look after workers."""

    def __init__(self, log: Log) -> None:
        self.clock, self.broker, self._log = LeapingClock(), MemoryBroker(), log
        self.store: EventStore
        self.told: list[AgentRegistered | AgentStopped] = []

    async def looking(self, *, bus: MemoryBus | None = None) -> SilentWorkers:
        """Start one orchestrator's part."""
        self.store = await self._log.open(ORCHESTRATOR)
        return SilentWorkers(self.store, bus or MemoryBus(self.broker), self.clock, grace_s=GRACE_S, on_fact=self.told.append)

    async def says(self, event: Event, kind: str = "data") -> None:
        await self.store.append(AppendRequest((Write(agent_stream(kind), (event,)),), (self.clock.new_id(),), self.clock.now_us()))

    async def pass_by(self, seconds: float, *all_of_them: SilentWorkers) -> None:
        """Let time pass, and have everybody look when it is time; at the same moment."""
        for _ in range(round(seconds / ROUND_S)):
            self.clock.ahead_s += ROUND_S
            await asyncio.gather(*(one.look(["data", "code"]) for one in all_of_them))

    async def facts(self) -> list[tuple[str, str]]:
        """Return what stands in the stream of the kind."""
        return [(recorded.type, json.loads(recorded.data)["worker"]) for recorded in await self._stream()]

    async def last(self) -> Event:
        event = (await self._stream())[-1].event()
        assert isinstance(event, AgentRegistered | AgentStopped)
        return event

    async def _stream(self) -> list[Recorded]:
        return list(await self.store.read_streams({agent_stream("data"): 0}))

    @asynccontextmanager
    async def answering(self, worker: str) -> AsyncIterator[None]:
        """Let a worker be there."""
        bus = MemoryBus(self.broker)

        async def answer(message: Message) -> None:
            await bus.publish(message.reply, b'{"holds": false}')

        subscription = await bus.subscribe(control_worker(worker), answer)
        try:
            yield
        finally:
            await subscription.stop()


@pytest.fixture
def world(log: Log) -> World:
    return World(log)


async def test_the_end_of_a_dead_worker_is_written_once_by_two_at_the_same_time(world: World) -> None:
    one, two = await world.looking(), await world.looking()
    began_us = world.clock.now_us()
    await world.says(registered("dead"))
    await world.says(registered("dead too"))
    await world.says(registered("alive"))
    await world.says(registered("left"))
    await world.says(AgentStopped("data", "left"))
    until_us, before = world.clock.now_us(), await world.facts()
    async with world.answering("alive"):
        await world.pass_by(150, one, two)
        await world.pass_by(50, one, two)  # whoever came second to one of them sees it in the next round
        assert sorted((await world.facts())[len(before) :]) == [("AgentStopped", "dead"), ("AgentStopped", "dead too")]
        stopped = [recorded.event() for recorded in await world.store.read_streams({agent_stream("data"): len(before)})]
        assert all(isinstance(event, AgentStopped) and isinstance(event.heard_us, int) and began_us <= event.heard_us <= until_us for event in stopped)
        await world.pass_by(500, one, two)
    assert len(await world.facts()) == len(before) + 2


async def test_when_it_was_heard_is_told(world: World) -> None:
    one = await world.looking()
    await world.says(registered("w1"))
    await world.pass_by(50, one)
    heard_from_us = world.clock.now_us()
    one.heard("data", "w1")
    heard_until_us = world.clock.now_us()
    await world.pass_by(50, one)
    assert len(await world.facts()) == 1
    await world.pass_by(50, one)
    end = await world.last()
    assert isinstance(end, AgentStopped)
    assert isinstance(end.heard_us, int)
    assert heard_from_us <= end.heard_us <= heard_until_us


async def test_a_worker_that_stood_still_is_registered_again_once_and_may_die_again(world: World) -> None:
    one, two = await world.looking(), await world.looking()
    await world.says(registered("w1"))
    await world.pass_by(150, one, two)
    assert await world.facts() == [("AgentRegistered", "w1"), ("AgentStopped", "w1")]
    async with world.answering("w1"):
        await world.pass_by(100, one, two)
        assert len(await world.facts()) == 2, "nobody has heard it"
        one.heard("data", "w1")
        two.heard("data", "w1")
        await world.pass_by(50, one, two)
        assert (await world.facts())[2:] == [("AgentRegistered", "w1")]
        assert await world.last() == registered("w1")
        await world.pass_by(300, one, two)
        assert len(await world.facts()) == 3
    await world.pass_by(200, one, two)
    assert (await world.facts())[3:] == [("AgentStopped", "w1")]


async def test_who_died_while_no_orchestrator_was_there_is_found_by_the_next_one(world: World) -> None:
    await world.looking()
    await world.says(registered("code-1", "code"), "code")
    for number in range(3):
        await world.says(registered(f"w{number}"))
    await world.says(AgentStopped("data", "w1"))
    await world.pass_by(200, await world.looking())
    assert (await world.facts())[4:] == [("AgentStopped", "w0"), ("AgentStopped", "w2")]
    assert [recorded.type for recorded in await world.store.read_streams({agent_stream("code"): 1})] == ["AgentStopped"]


async def test_who_cannot_reach_the_bus_takes_nobody_for_dead(world: World) -> None:
    bus = Cut(world.broker)
    one = await world.looking(bus=bus)
    await world.says(registered("w1"))
    await world.pass_by(50, one)
    bus.is_away = True
    with pytest.raises(Unavailable):
        await world.pass_by(150, one)
    bus.is_away = False
    one.listen_anew()
    await world.pass_by(50, one)
    assert len(await world.facts()) == 1, "it was deaf, and listens as long as ever before it judges"
    await world.pass_by(50, one)
    assert len(await world.facts()) == 2


class Counting(MemoryStore):
    """A log that counts how often it is read."""

    reads = 0

    async def read_last(self, streams: Collection[Stream], count: int) -> Sequence[Recorded]:
        self.reads += 1
        return await super().read_last(streams, count)

    async def read_streams(self, after: Mapping[Stream, int], *, types: frozenset[str] | None = None) -> Sequence[Recorded]:
        self.reads += 1
        return await super().read_streams(after, types=types)


async def test_nothing_is_asked_of_the_log_before_it_is_time() -> None:
    clock, store = LeapingClock(), Counting()
    one = SilentWorkers(store, MemoryBus(MemoryBroker()), clock, grace_s=GRACE_S, on_fact=lambda _: None)
    for _ in range(5):
        await one.look(["data"])
    assert store.reads == 0
    for reads in (2, 3, 4):  # the beginning, and what was added since; then only that
        clock.ahead_s += ROUND_S
        await one.look(["data"])
        await one.look(["data"])
        assert store.reads == reads


async def test_the_sweep_hears_and_looks() -> None:
    crew = Crew()
    async with crew.orchestrator(worker_grace_s=GRACE_S) as service:
        await crew.ask("agents.register.data", msgspec.to_builtins(registered("w1")), tenant="system")
        facts = crew.log.streams[agent_stream("data")].events

        async def sweep_after(seconds: float) -> list[str]:
            crew.clock.ahead_s += seconds
            await service.sweep.sweep()
            return [recorded.type for recorded in facts]

        await sweep_after(50)
        assert await sweep_after(100) == ["AgentRegistered", "AgentStopped"]
        beat = json.dumps({"kind": "data", "worker": "w1", "slots": 1}).encode()
        await crew.bus.publish(telemetry("data", "w1"), beat)
        while "w1" not in service.dispatcher.workers("data"):  # noqa: ASYNC110  (one turn of the loop)
            await asyncio.sleep(0)
        assert len(await sweep_after(50)) == 2, "it was heard, and does not answer"

        async def answer(message: Message) -> None:
            await crew.bus.publish(message.reply, b"{}")

        await crew.bus.subscribe(control_worker("w1"), answer)
        service.sweep._silent.heard("data", "w1")
        assert await sweep_after(50) == ["AgentRegistered", "AgentStopped", "AgentRegistered"]


async def test_a_worker_that_leaves_has_one_end_though_it_is_taken_for_dead_at_the_same_moment(world: World) -> None:
    one, two = await world.looking(), await world.looking()
    await world.says(registered("w1"))
    await world.pass_by(50, one, two)
    await asyncio.gather(world.pass_by(50, one), two.sign_off(Worker("data", "w1")))
    await world.pass_by(100, one, two)
    assert await world.facts() == [("AgentRegistered", "w1"), ("AgentStopped", "w1")]


async def test_the_word_of_a_worker_that_too_many_came_after_to_be_known_counts(world: World) -> None:
    one = await world.looking()
    for number in range(LATEST + 1):
        await world.says(registered(f"w{number}"))
    await one.sign_off(Worker("data", "w0"))
    assert (await world.facts())[-1] == ("AgentStopped", "w0")


def test_so_many_facts_are_read_at_first() -> None:
    assert LATEST >= 100, "of a crew that has died as a whole, every worker is to be found"
