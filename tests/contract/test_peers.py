"""An orchestrator that dies is missed at once, one that leaves is not, and one that stood still itself accuses nobody."""

from __future__ import annotations

import asyncio

from support.crew import LeapingClock

from crewlog.events.bus import Bus
from crewlog.events.memory_bus import MemoryBroker, MemoryBus
from crewlog.orchestrator.peers import SUBJECT, Peers

BEAT_S = 0.05


async def a_peer(bus: Bus, deaths: list[str], name: str = "") -> Peers:
    peers = Peers(bus, LeapingClock(), on_death=lambda: deaths.append(name), beat_s=BEAT_S)
    await peers.start()
    return peers


async def test_whoever_falls_silent_is_missed_once_and_whoever_leaves_is_not() -> None:
    broker, deaths, heard = MemoryBroker(), list[str](), asyncio.Event()
    one, two, three = [await a_peer(MemoryBus(broker), deaths, name) for name in ("one", "two", "three")]

    async def hear(_: object) -> None:
        heard.set()

    listening = await MemoryBus(broker).subscribe(SUBJECT, hear)
    await heard.wait()
    assert two._beating is not None
    while len(one._heard) < 2 or len(three._heard) < 2:  # noqa: ASYNC110
        await asyncio.sleep(BEAT_S / 5)
    two._beating.cancel()  # as a kill would
    await asyncio.gather(two._beating, return_exceptions=True)
    async with asyncio.timeout(10):
        while len(deaths) < 2:  # noqa: ASYNC110
            await asyncio.sleep(BEAT_S / 5)
    await three.stop()
    for _ in range(8):
        await asyncio.sleep(BEAT_S)
    assert sorted(deaths) == ["one", "three"]
    await one.stop()
    await two.stop()
    await listening.stop()
