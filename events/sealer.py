"""The sealer: follows the log at a distance and seals it, one seal for what came together, without taking much of the server from anybody.

It runs in the process that leads the projection; a second one would do no harm, since the database makes one seal at a time. The newest
seal is written to the process's log now and then: whoever collects logs elsewhere has something to verify against.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from crewlog.events.bus import Bus, Message
from crewlog.events.clock import Clock
from crewlog.events.connections import Connections
from crewlog.events.seals import Seal, SealMark
from crewlog.events.verify import PAGE_EVENTS, seal
from crewlog.schemas.subjects import POKE

log = logging.getLogger(__name__)

GATHER_S: Final = 5.0
"""How long after an append its seal is made, in seconds: that long it could be changed unseen, and a seal costs a row."""
POLL_S: Final = 60.0
"""How often the log is looked at without a poke, in seconds."""
SHARE: Final = 0.2
"""Most of the time that may be spent sealing while much is waiting: runs go first, seals catch up."""
TELL_EVERY_S: Final = 600.0
"""How often the newest seal is written to the process's log, in seconds."""


class Sealer:
    """Seals the log until cancelled."""

    def __init__(self, connections: Connections, bus: Bus, clock: Clock, *, gather_s: float = GATHER_S, poll_s: float = POLL_S) -> None:
        self._connections, self._bus, self._clock = connections, bus, clock
        self._gather_s, self._poll_s = gather_s, poll_s
        self._woken = asyncio.Event()
        self._tell_at = 0.0

    async def run(self) -> None:
        """Seal what comes.

        Raises:
            Unavailable: Postgres stayed away.
        """
        subscription = await self._bus.subscribe(POKE, self._wake)
        try:
            while True:
                self._woken.clear()
                await self._catch_up()
                try:
                    async with asyncio.timeout(self._poll_s):
                        await self._woken.wait()
                except TimeoutError:
                    continue  # a poke may have been lost: look again
                await asyncio.sleep(self._gather_s)
        finally:
            await subscription.stop()

    async def _catch_up(self) -> None:
        while True:
            began = self._clock.monotonic()
            made = await seal(self._connections)
            if made is None:
                return
            now = self._clock.monotonic()
            self._tell(made, now)
            if made.events < PAGE_EVENTS:
                return
            await asyncio.sleep((now - began) * (1 / SHARE - 1))

    def _tell(self, made: Seal, now: float) -> None:
        if now >= self._tell_at:
            self._tell_at = now + TELL_EVERY_S
            log.info("the log is sealed up to position %s: %s", made.last, SealMark(made.number, made.hash.hex()))

    async def _wake(self, _: Message) -> None:
        self._woken.set()
