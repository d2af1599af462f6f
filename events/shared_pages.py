"""The end of the log, read once for several followers in one process: each event is fetched and decoded one time, not once per follower.

What was read last is kept for whoever asks for it a moment later. A follower that is further behind than that reads for itself until
it has caught up, so nobody waits for anybody.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import Final, Protocol

from crewlog.events.store import Page, Recorded

KEPT_MAX: Final = 8_192
"""Events kept for followers that come later: what a busy log takes in while one of them works on a page."""
READ_MAX: Final = 2_048
"""How many events are asked for at once, however few a follower wants now: finding how far the log may be read costs the server as much as many events."""

_position = attrgetter("position")


class PageReader(Protocol):
    """The part of the log that its followers need."""

    async def read_all(self, after: int, limit: int) -> Page:
        """See `EventStore.read_all`."""


class SharedPages:
    """A `PageReader` that asks the log for no event twice while its followers keep pace with each other."""

    def __init__(self, log: PageReader, *, kept_max: int = KEPT_MAX, read_max: int = READ_MAX) -> None:
        self._log, self._kept_max, self._read_max = log, kept_max, read_max
        self._kept: list[Recorded] = []
        self._begin = self._end = 0
        """Positions between which `_kept` has every event: behind `_begin`, up to `_end`."""
        self._high_water = 0
        self._reading = asyncio.Lock()

    async def read_all(self, after: int, limit: int) -> Page:
        """Read behind `after` as the log itself would answer now: from what is kept, and what is missing from the log."""
        async with self._reading:
            if after > self._end:
                self._keep_from(after)
            if after >= self._begin:
                known = self._behind(after, limit)
                if len(known) < limit:
                    known = [*known, *await self._read_on(max(limit, self._read_max))][:limit]
                return Page(known, self._high_water)
        return await self._log.read_all(after, limit)  # too far behind: on its own, without making the others wait

    def _behind(self, after: int, limit: int) -> Sequence[Recorded]:
        first = bisect_right(self._kept, after, key=_position)
        return self._kept[first : first + limit]

    async def _read_on(self, limit: int) -> Sequence[Recorded]:
        fresh, self._high_water = await self._log.read_all(self._end, limit)
        if fresh:
            self._kept += fresh
            self._end = fresh[-1].position
            if surplus := max(len(self._kept) - self._kept_max, 0):
                self._begin = self._kept[surplus - 1].position
                del self._kept[:surplus]
        return fresh

    def _keep_from(self, position: int) -> None:
        """Start over at a follower that is ahead of all that is kept."""
        self._kept.clear()
        self._begin = self._end = position
