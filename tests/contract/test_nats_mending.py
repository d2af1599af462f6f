"""The bus over NATS mends itself where the client library gives up for good: a new client takes over what was begun on the old one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import nats.errors
import pytest
import pytest_asyncio

from crewlog.events.bus import Delivery, Message
from crewlog.events.nats_bus import NatsBus


@pytest_asyncio.fixture
async def other(nats_url: str) -> AsyncIterator[NatsBus]:
    """Yield another process's bus."""
    bus = await NatsBus.connect(nats_url, name="other")
    yield bus
    await bus.close()


class Heard:
    """The subjects of messages, in the order in which they came."""

    def __init__(self) -> None:
        self.subjects: asyncio.Queue[str] = asyncio.Queue()

    async def __call__(self, message: Message | Delivery) -> None:
        self.subjects.put_nowait(message.subject)
        if not isinstance(message, Message):
            await message.ack()

    async def next(self) -> str:
        async with asyncio.timeout(60):
            return await self.subjects.get()


async def give_up(bus: NatsBus) -> None:
    """Close the client as the library does when the server refuses its user, and wait until another one has taken over."""
    over = asyncio.Event()
    await bus.watch("", over.set)
    await bus._nc.close()
    async with asyncio.timeout(60):
        await over.wait()


async def test_what_listens_and_pulls_goes_on_with_a_new_client(nats_bus: NatsBus, other: NatsBus) -> None:
    heard, worked = Heard(), Heard()
    await nats_bus.subscribe("wake.*", heard)
    consuming = await nats_bus.consume("WORK", {"research-normal": 0}, worked, slots=2)
    await give_up(nats_bus)
    await nats_bus.flush()
    await other.publish("wake.1")
    await other.enqueue("work.research.normal", b"{}", message_id="1")
    assert (await heard.next(), await worked.next()) == ("wake.1", "work.research.normal")
    await consuming.stop(grace_s=1)


class Silent(asyncio.Protocol):
    """What listens, and says nothing. It is told when somebody comes and when he has gone."""

    def __init__(self) -> None:
        self.came, self.left = asyncio.Event(), asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.came.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.left.set()


async def test_whoever_stops_connecting_leaves_nothing_that_goes_on_trying() -> None:
    silent = Silent()
    async with await asyncio.get_running_loop().create_server(lambda: silent, "127.0.0.1", 0) as server:
        before = asyncio.all_tasks()
        url = f"nats://a:b@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        connecting = asyncio.create_task(NatsBus.connect(url, name="test", connect_timeout_s=60))
        await silent.came.wait()
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        assert asyncio.all_tasks() <= before
        async with asyncio.timeout(60):
            await silent.left.wait()


async def test_what_was_stopped_is_not_begun_again_nor_kept(nats_bus: NatsBus, other: NatsBus) -> None:
    heard, stopped = Heard(), Heard()
    for _ in range(3):
        await (await nats_bus.subscribe("wake.*", stopped)).stop()
    await nats_bus.subscribe("wake.*", heard)
    assert len(nats_bus._subscriptions) == 1
    await give_up(nats_bus)
    await nats_bus.flush()
    await other.publish("wake.1")
    assert await heard.next() == "wake.1"
    assert stopped.subjects.empty()


async def test_whoever_subscribes_or_stops_while_a_new_client_takes_over_is_heard(nats_bus: NatsBus, other: NatsBus) -> None:
    heard = {n: Heard() for n in range(8)}
    before = [await nats_bus.subscribe(f"wake.{n}", heard[n]) for n in range(4)]
    mending = asyncio.create_task(give_up(nats_bus))
    for n in range(4, 8):
        await asyncio.sleep(0)
        await nats_bus.subscribe(f"wake.{n}", heard[n])
    await before[0].stop()
    await mending
    await nats_bus.flush()
    for n in range(8):
        await other.publish(f"wake.{n}")
    for n in range(1, 8):
        assert await heard[n].next() == f"wake.{n}"
    assert heard[0].subjects.empty()


async def test_whoever_is_stopped_while_he_subscribes_does_not_listen_on(nats_bus: NatsBus, other: NatsBus, monkeypatch: pytest.MonkeyPatch) -> None:
    never, asked = asyncio.Event(), asyncio.Event()
    gone, there = Heard(), Heard()

    async def silence(_: int = 0) -> None:
        asked.set()
        await never.wait()

    with monkeypatch.context() as patched:
        patched.setattr(nats_bus._nc, "flush", silence)
        subscribing = asyncio.create_task(nats_bus.subscribe("wake.*", gone))
        await asked.wait()
        subscribing.cancel()
        await asyncio.gather(subscribing, return_exceptions=True)
    await nats_bus.subscribe("wake.*", there)
    await other.publish("wake.1")
    assert await there.next() == "wake.1"
    await give_up(nats_bus)
    await nats_bus.flush()
    await other.publish("wake.2")
    assert await there.next() == "wake.2"
    assert gone.subjects.empty()


async def test_stopping_does_not_fail_where_the_server_answers_no_more(nats_bus: NatsBus, other: NatsBus, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped, next_one, asked = Heard(), Heard(), asyncio.Event()
    consuming = await nats_bus.consume("WORK", {"research-normal": 0}, stopped, slots=2)

    async def cut(_: int = 0) -> None:
        asked.set()
        raise nats.errors.FlushTimeoutError

    with monkeypatch.context() as patched:
        patched.setattr(nats_bus._nc, "flush", cut)
        await consuming.stop(grace_s=1)
    assert asked.is_set()
    await other.consume("WORK", {"research-normal": 0}, next_one, slots=2)
    await other.enqueue("work.research.normal", b"{}", message_id="1")
    assert await next_one.next() == "work.research.normal"
    assert stopped.subjects.empty()


async def test_pulling_outlives_a_client_that_is_closed_in_the_middle_of_it(nats_bus: NatsBus, other: NatsBus, monkeypatch: pytest.MonkeyPatch) -> None:
    worked, tried = Heard(), asyncio.Event()
    consuming = await nats_bus.consume("WORK", {"research-normal": 0}, worked, slots=2)

    async def closed(*_: object, **__: object) -> None:
        tried.set()
        raise nats.errors.ConnectionClosedError

    with monkeypatch.context() as patched:
        patched.setattr(nats_bus._nc, "subscribe", closed)
        patched.setattr(type(nats_bus._nc), "is_connected", property(lambda _: not tried.is_set()))
        consuming.reconnected(nats_bus._nc)
        await tried.wait()
    await give_up(nats_bus)
    await other.enqueue("work.research.normal", b"{}", message_id="1")
    assert await worked.next() == "work.research.normal"
