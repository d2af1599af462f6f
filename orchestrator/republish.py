"""Publish a recorded run again, event by event with its original timing, for any consumer: a dashboard, a test, a tool of one's own.

Each message is an event in the shape of `events.>`, without what models thought. The header `Replay-Of` names the run, `Event-Type` the
type. Nothing is stored, and no crew listens where it is published.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

import msgspec

from crewlog.events.clock import Clock
from crewlog.events.nats_bus import NatsBus
from crewlog.events.store import Recorded
from crewlog.orchestrator.event_text import event_json
from crewlog.orchestrator.run_history import RunHistory

Told = Callable[[int, float], None]
"""Called with the index of an event and the seconds until it is published."""


def schedule(events: Sequence[Recorded], speed: float) -> Iterator[float]:
    """Yield for each event how long after the first one it is due, in seconds. Clocks of several machines may differ: time never goes back."""
    latest_us = first_us = events[0].occurred_us if events else 0
    for recorded in events:
        latest_us = max(latest_us, recorded.occurred_us)
        yield (latest_us - first_us) / 1e6 / speed


async def republish(
    history: RunHistory, subject: str, bus: NatsBus, clock: Clock, *, speed: float, told: Told, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> int:
    """Publish all events of a run.

    Args:
        subject: checked by `parse_foreign`.
        speed: 1 is the original timing, 10 ten times as fast.

    Returns:
        How many there were.

    Raises:
        NotAuthorised: this login may not publish there.
        Unavailable: the connection is lost.
    """
    began = clock.monotonic()
    for index, (recorded, due_s) in enumerate(zip(history.events, schedule(history.events, speed), strict=True), 1):
        wait_s = due_s - (clock.monotonic() - began)
        told(index, max(wait_s, 0.0))
        if wait_s > 0:
            await sleep(wait_s)
        headers = {"Replay-Of": str(history.run_id), "Event-Type": recorded.type}
        await bus.publish(subject, msgspec.json.encode(event_json(recorded, with_reasoning=False)), headers=headers)
        if index == 1:
            await bus.confirm(subject)  # a login without the right to publish is told so once, not at every event
    await bus.confirm(subject)
    return len(history.events)
