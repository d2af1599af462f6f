"""An orchestrator that dies is missed at once; one that leaves, or is only slow to speak, is not; one by itself is quiet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from crewlog.events.clock import SystemClock
from crewlog.events.memory_bus import MemoryBroker, MemoryBus
from crewlog.orchestrator.holders import Holders
from crewlog.orchestrator.peers import ALONE_S, BEAT_S
from crewlog.schemas.subjects import ORCHESTRATORS, control_orchestrator


class Several:
    """Orchestrators on one bus, and who of them was told of a death."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.deaths: list[str] = []
        self.by_name: dict[str, Holders] = {}

    async def begin(self, name: str) -> Holders:
        holders = Holders(MemoryBus(self.broker), SystemClock(), name, waiting=lambda: ({}, ()), held=lambda _: {}, take=lambda _: None, is_heard_idle=True)
        await holders.start(lambda: self.deaths.append(name))
        self.by_name[name] = holders
        return holders

    async def all_know_each_other(self) -> None:
        await until(lambda: all(len(holders._peers.others) == len(self.by_name) - 1 for holders in self.by_name.values()))

    async def kill(self, name: str, *, is_deaf: bool = True) -> None:
        """Let one fall silent without a word; it still answers unless it is deaf."""
        holders = self.by_name[name]
        assert holders._peers._beating is not None
        holders._peers._beating.cancel()
        for subscription in (holders._peers._hearing, *([holders._answering] if is_deaf else [])):
            assert subscription is not None
            await subscription.stop()

    async def heard(self, subject: str, times: int) -> None:
        """Wait until so much more was said on a subject."""
        count, enough = 0, asyncio.Event()

        async def hear(_: object) -> None:
            nonlocal count
            count += 1
            if count >= times:
                enough.set()

        listening = await MemoryBus(self.broker).subscribe(subject, hear)
        async with asyncio.timeout(60):
            await enough.wait()
        await listening.stop()


@asynccontextmanager
async def several(*names: str) -> AsyncIterator[Several]:
    crew = Several()
    async with AsyncExitStack() as exits:
        for name in names:
            exits.push_async_callback((await crew.begin(name)).stop)
        await crew.all_know_each_other()
        yield crew


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_whoever_falls_silent_is_missed_once_and_whoever_leaves_is_not() -> None:
    async with several("one", "two", "three") as crew:
        await crew.kill("two")
        await until(lambda: len(crew.deaths) == 2)
        await crew.by_name["three"].stop()
        await until(lambda: not crew.by_name["one"]._peers.others)
        assert sorted(crew.deaths) == ["one", "three"]


async def test_whoever_is_only_silent_is_asked_and_not_missed() -> None:
    async with several("one", "two") as crew:
        await crew.kill("two", is_deaf=False)
        await crew.heard(control_orchestrator("two"), 3)
        assert crew.deaths == []
        assert "two" in crew.by_name["one"]._peers.others


async def test_one_by_itself_says_nothing_until_another_begins() -> None:
    async with several("one") as crew:
        one = crew.by_name["one"]._peers
        assert one._period_s() == ALONE_S
        listening = asyncio.create_task(crew.heard(ORCHESTRATORS, 4))
        two = await crew.begin("two")
        await crew.all_know_each_other()
        assert one._period_s() == BEAT_S
        await listening
        await two.stop()
        await until(lambda: one._period_s() == ALONE_S)
        assert crew.deaths == []
