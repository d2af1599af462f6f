"""How fast many tasks are taken in, in virtual time: no faster than anybody has something from, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable

import pytest
from sim.loop import SimLoop
from sim.network import SimClock

from crewlog.events.bus import Delivery
from crewlog.events.memory_bus import MemoryBroker, MemoryBus
from crewlog.orchestrator.overtaking import CROWD, PLENTY, REST, Overtaking

MESSAGES, TAKES_S = 200, 0.005


async def taken_in(loop: SimLoop, waiting_of: Callable[[str], int]) -> dict[str, list[float]]:
    """Return tenant -> when each of its messages was dealt with, in seconds: many of a noisy one, then one of a quiet one."""
    bus, found = MemoryBus(MemoryBroker()), {"noisy": list[float](), "quiet": list[float]()}
    ended = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(TAKES_S)
        await delivery.ack()
        found[delivery.subject.split(".")[1]].append(loop.time())
        if sum(map(len, found.values())) > MESSAGES:
            ended.set()

    for n in range(MESSAGES):
        await bus.publish("tasks.noisy.data", json.dumps(n).encode())
    await bus.publish("tasks.quiet.data", b"{}")
    overtaking = Overtaking(bus, SimClock(loop, random.Random(1)), handle, waiting_of)
    overtaking.start()
    consuming = await bus.consume("TASKS", {"intake": 0}, overtaking.take, slots=1)
    await ended.wait()
    await consuming.stop(grace_s=1)
    await overtaking.stop(grace_s=1)
    await bus.close()
    return found


def played(waiting_of: Callable[[str], int]) -> dict[str, list[float]]:
    loop = SimLoop(random.Random(1))
    try:
        return loop.run_until_complete(taken_in(loop, waiting_of))
    finally:
        loop.close()


def test_while_agents_may_want_more_nobody_rests() -> None:
    found = played(lambda _: PLENTY - 1)
    assert found["noisy"][-1] == pytest.approx(MESSAGES * TAKES_S, rel=0.1)


def test_what_would_only_wait_for_an_agent_is_taken_in_at_leisure_and_the_quiet_tenant_at_once() -> None:
    found = played(lambda tenant: PLENTY if tenant == "noisy" else 0)
    assert found["noisy"][-1] == pytest.approx((MESSAGES + (MESSAGES - CROWD) * REST) * TAKES_S, rel=0.1)
    assert found["quiet"][0] < 0.1
