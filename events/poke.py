"""Tell the projector and the relay that the log has grown: at most one message in 20 ms, however many appends there were.

The message is a hint without content. Losing one costs latency, never an event: readers look for themselves every few seconds.
"""

from __future__ import annotations

import asyncio
from typing import Final

from crewlog.events.bus import Bus
from crewlog.schemas.subjects import POKE

INTERVAL_S: Final = 0.025


class Poke:
    """Coalesces pokes of one process: the first append starts the interval, one poke at its end stands for all appends in it.

    At the end rather than at once, because what is poked for comes in bursts: a task's appends are a few milliseconds apart, and each
    poke wakes the server and every reader.
    """

    def __init__(self, bus: Bus, *, interval_s: float = INTERVAL_S) -> None:
        self._bus = bus
        self._interval_s = interval_s
        self._wanted = False
        self._pause: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()

    def notify(self, position: int = 0) -> None:  # noqa: ARG002 — the log's `on_commit` passes it
        """Note that something was appended. Cheap, returns at once; call it on the event loop's thread."""
        self._wanted = True
        if self._pause is None:
            self._pause = asyncio.get_running_loop().call_later(self._interval_s, self._send)

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
        task = asyncio.get_running_loop().create_task(self._bus.publish(POKE))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
