"""The projector: tails the log and keeps the read model behind it by a moment.

It is woken by a poke, waits a little so that what comes together is folded together, and reads until nothing is left. Without a poke
it looks for itself every few seconds, because a poke is only a hint.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from crewlog.events.bus import Bus, Message, Subscription
from crewlog.events.store import EventStore
from crewlog.projections.read_model import ReadModel
from crewlog.schemas.subjects import POKE

PAGE_EVENTS_MAX: Final = 4_000
"""Most events in one transaction."""
GATHER_S: Final = 0.05
"""How long after a poke the log is read, in seconds: rows that change several times meanwhile are written once."""
POLL_S: Final = 5.0
"""How often the log is read without a poke, in seconds."""


class Projector:
    """Keeps one read model. Whoever starts it must hold the leader's lock on the read model's connection."""

    def __init__(self, store: EventStore, bus: Bus, model: ReadModel, *, gather_s: float = GATHER_S, poll_s: float = POLL_S) -> None:
        self._store, self._bus, self._model = store, bus, model
        self._gather_s, self._poll_s = gather_s, poll_s
        self._woken = asyncio.Event()
        self._subscription: Subscription | None = None
        self._tail: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read where the views stand, then follow the log."""
        await self._model.open()
        self._subscription = await self._bus.subscribe(POKE, self._wake)
        self._tail = asyncio.create_task(self._follow())

    async def failed(self) -> None:
        """Wait until following the log ends, and raise what ended it: it never ends by itself."""
        assert self._tail is not None
        await asyncio.shield(self._tail)

    async def stop(self) -> None:
        """Stop; a page being written is rolled back and read again by whoever goes on. Safe to call twice."""
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            await subscription.stop()
        if self._tail is not None:
            tail, self._tail = self._tail, None
            tail.cancel()
            await asyncio.gather(tail, return_exceptions=True)

    async def catch_up(self) -> None:
        """Take in everything the log has now."""
        while True:
            page = await self._store.read_all(self._model.position, PAGE_EVENTS_MAX)
            if page.events:
                await self._model.advance(page.events)
            if len(page.events) < PAGE_EVENTS_MAX:
                return

    async def _follow(self) -> None:
        while True:
            self._woken.clear()
            await self.catch_up()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._woken.wait()
                await asyncio.sleep(self._gather_s)

    async def _wake(self, _: Message) -> None:
        self._woken.set()
