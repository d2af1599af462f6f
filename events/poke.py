"""Tell the projector and the relay that the log has grown: soon after the first append, then ten times a second, however many there are.

The message is a hint without content. Losing one costs latency, never an event: readers look for themselves every few seconds.
"""

from __future__ import annotations

import asyncio
from typing import Final

from crewlog.events.bus import Bus
from crewlog.schemas.subjects import POKE

DELAY_S: Final = 0.025
"""Time between the first append after a quiet moment and its poke, in seconds."""
INTERVAL_S: Final = 0.1
"""Shortest time between two pokes, in seconds: followers gather for as long."""


class Poke:
    """Coalesces pokes of one process: the first append starts a delay, one poke at its end stands for all appends in it.

    At the end rather than at once, because what is poked for comes in bursts: a task's appends are a few milliseconds apart, and each
    poke wakes the server and every reader.
    """

    def __init__(self, bus: Bus, *, delay_s: float = DELAY_S, interval_s: float = INTERVAL_S) -> None:
        self._bus = bus
        self._delay_s, self._interval_s = delay_s, interval_s
        self._next_at = 0.0
        self._wanted = False
        self._pause: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()

    def notify(self, position: int = 0) -> None:  # noqa: ARG002 — the log's `on_commit` passes it
        """Note that something was appended. Cheap, returns at once; call it on the event loop's thread."""
        self._wanted = True
        if self._pause is None:
            loop = asyncio.get_running_loop()
            self._pause = loop.call_at(max(loop.time() + self._delay_s, self._next_at), self._send)

    async def close(self) -> None:
        """Send what is still wanted. Safe to call twice."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._wanted:
            self._wanted = False
            await self._bus.publish(POKE)
        await asyncio.gather(*self._sending)

    def _send(self) -> None:
        self._pause, self._wanted = None, False
        loop = asyncio.get_running_loop()
        self._next_at = loop.time() + self._interval_s
        task = loop.create_task(self._bus.publish(POKE))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
