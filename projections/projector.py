"""The projector: tails the log and keeps the read model behind it by a moment.

It is woken by a poke, waits a little so that what comes together is folded together (longer while much comes), and reads until nothing is
left. Without a poke it looks for itself every few seconds, because a poke is only a hint.
"""

from __future__ import annotations

import asyncio
from typing import Final

from crewlog.events.bus import Bus, Message
from crewlog.events.shared_pages import PageReader
from crewlog.projections.read_model import ReadModel
from crewlog.schemas.subjects import POKE

PAGE_EVENTS: Final = 512
"""Events read and folded at once: few enough to stay in the processor's cache."""
WRITE_EVENTS: Final = 4_096
"""Events whose rows are written in one transaction, when there are so many."""
GATHER_S: Final = 0.1
"""How long after a poke the log is read, in seconds: rows that change several times meanwhile are written once."""
BUSY_EVENTS: Final = 500
"""So many events in one gathering are a busy log: views of single events are of little use then, and more of what changes is over when it is written."""
BUSY_TIMES: Final = 2.5
"""How many times longer is gathered then."""
POLL_S: Final = 5.0
"""How often the log is read without a poke, in seconds."""


class Projector:
    """Keeps one read model, which is open already. Whoever runs it must hold the leader's lock on the read model's connection."""

    def __init__(self, pages: PageReader, bus: Bus, model: ReadModel, *, gather_s: float = GATHER_S, poll_s: float = POLL_S) -> None:
        self._pages, self._bus, self._model = pages, bus, model
        self._gather_s, self._poll_s = gather_s, poll_s
        self._woken = asyncio.Event()
        self._is_busy = False

    async def run(self) -> None:
        """Follow the log until cancelled; a page being written then is rolled back and read again by whoever goes on.

        Raises:
            ConflictError: another process moved a checkpoint: this one must not write any more.
        """
        subscription = await self._bus.subscribe(POKE, self._wake)
        try:
            while True:
                self._woken.clear()
                await self.catch_up()
                await self._wait()
        finally:
            await subscription.stop()

    async def catch_up(self) -> None:
        """Take in everything the log has now."""
        is_more, taken = True, 0
        while is_more:
            page = await self._pages.read_all(self._model.folded, PAGE_EVENTS)
            await self._model.take_in(page.events)
            taken += len(page.events)
            is_more = len(page.events) == PAGE_EVENTS
            if not is_more or self._model.unwritten >= WRITE_EVENTS:
                await self._model.write()
            await asyncio.sleep(0)  # the relay goes on meanwhile
        self._is_busy = taken >= BUSY_EVENTS

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._poll_s):
                await self._woken.wait()
        except TimeoutError:
            return  # a poke may have been lost: look again
        await asyncio.sleep(self._gather_s * BUSY_TIMES if self._is_busy else self._gather_s)

    async def _wake(self, _: Message) -> None:
        self._woken.set()
