"""Pokes are merged, in virtual time: one soon after the first append, then one for all that came meanwhile, and none that was wanted is lost."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest
from sim.loop import SimLoop

from crewlog.events.bus import Message
from crewlog.events.memory_bus import MemoryBus
from crewlog.events.poke import Poke
from crewlog.schemas import subjects

DELAY_S, INTERVAL_S, APART_S = 0.005, 0.05, 0.001


async def poked(loop: SimLoop, appends: int) -> list[float]:
    """Return when a reader was poked while so many appends came one after the other, in seconds since the first; the last ones as the process ends."""
    bus, found = MemoryBus(), list[float]()

    async def note(_: Message) -> None:
        found.append(loop.time() - began)

    await bus.subscribe(subjects.POKE, note)
    poke, began = Poke(bus, delay_s=DELAY_S, interval_s=INTERVAL_S), loop.time()
    for _ in range(appends):
        poke.notify(1)
        await asyncio.sleep(APART_S)
    await poke.close()
    await poke.close()
    await asyncio.sleep(1)
    await bus.close()
    return found


def played(appends: int) -> list[float]:
    loop = SimLoop(random.Random(1))
    try:
        return loop.run_until_complete(poked(loop, appends))
    finally:
        loop.close()


def test_the_first_append_is_told_after_a_moment_and_those_that_follow_together() -> None:
    found = played(1000)
    assert found[0] == pytest.approx(DELAY_S)
    *regular, last = found
    assert all(later - earlier == pytest.approx(INTERVAL_S) for earlier, later in itertools.pairwise(regular))
    assert last == pytest.approx(1000 * APART_S), "what came since is told at the end"
    assert len(found) == 21


def test_a_process_that_ends_at_once_has_told_its_append_once() -> None:
    assert played(1) == [pytest.approx(APART_S)]
    assert played(0) == []
