"""Notice soon that another orchestrator has died: wakes that it had taken are lost with it, and its runs must not wait for the next sweep.

Each says a few times a second that it is there. Whoever falls silent without having said that it leaves is looked after by one sweep of
those that remain. A hint like any other: a silence that means nothing costs a sweep too many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from crewlog.events.bus import Bus, Message, Subscription
from crewlog.events.clock import Clock

SUBJECT: Final = "control.peers"
BEAT_S: Final = 0.2
SILENT_BEATS: Final = 3
"""So many beats that did not come are a death."""
_LEAVES: Final = "-"


class Peers:
    """Listens to the other orchestrators, and is heard by them."""

    def __init__(self, bus: Bus, clock: Clock, *, on_death: Callable[[], None], beat_s: float) -> None:
        """Prepare.

        Args:
            on_death: called when another orchestrator has fallen silent.
            beat_s: time between two signs of life, in seconds.
        """
        self._bus, self._clock, self._on_death, self._beat_s = bus, clock, on_death, beat_s
        self._name = clock.random_id().hex
        self._heard: dict[str, float] = {}
        self._hearing: Subscription | None = None
        self._beating: asyncio.Task[None] | None = None

    async def start(self) -> asyncio.Task[None]:
        """Begin; the returned task ends only with `stop` or a defect."""
        self._hearing = await self._bus.subscribe(SUBJECT, self._hear)
        self._beating = asyncio.create_task(self._beat(), name="peers")
        return self._beating

    async def stop(self) -> None:
        """Say that this one leaves. Safe to call twice."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
            self._beating = None
            await self._bus.publish(SUBJECT, (_LEAVES + self._name).encode())
        if self._hearing is not None:
            await self._hearing.stop()
            self._hearing = None

    async def _beat(self) -> None:
        before = self._clock.monotonic()
        while True:
            await self._bus.publish(SUBJECT, self._name.encode())
            await asyncio.sleep(self._beat_s)
            now = self._clock.monotonic()
            if now - before > 2 * self._beat_s:  # it was this process that stood still: what others said waits to be heard
                self._heard = dict.fromkeys(self._heard, now)
            before = now
            silent = [name for name, heard in self._heard.items() if now - heard > SILENT_BEATS * self._beat_s]
            for name in silent:
                del self._heard[name]
            if silent:
                self._on_death()

    async def _hear(self, message: Message) -> None:
        said = message.data.decode(errors="replace")
        if said.startswith(_LEAVES):
            self._heard.pop(said.removeprefix(_LEAVES), None)
        elif said != self._name:
            self._heard[said] = self._clock.monotonic()
