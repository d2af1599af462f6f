"""How long a worker goes on with a task: until its time is over, nothing has moved in it for too long, or somebody else has ended it.

It knows nothing of the task, and whoever reports progress knows only this: what is made for one task stays free of cycles, so that its memory is
free with its last use, not when the garbage collector comes by.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Literal


class Patience:
    """A time limit around what is awaited inside it, that each sign of progress moves on:

    async with patience: …    raises TimeoutError once it is at its end; then `why` says how it came to that
    """

    def __init__(self, *, left_s: float, idle_s: float) -> None:
        """Begin.

        Args:
            left_s: what is left of the task's time, in seconds.
            idle_s: the longest time between two signs of progress, in seconds.
        """
        self._loop = asyncio.get_running_loop()
        self._ends_at, self._idle_s = self._loop.time() + left_s, idle_s
        self._moved_at = 0.0
        self._limit = asyncio.timeout(None)
        self._watch: asyncio.TimerHandle | None = None
        self.why: Literal["", "over", "idle", "cut"] = ""

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def moved(self, _: str = "") -> None:
        """Note a sign of progress: an event, a piece of an answer. They come by the thousand, so the timer is not moved for each."""
        self._moved_at = self._loop.time()
        if self._watch is None:
            self._look()

    def cut(self) -> None:
        """End it at once: somebody else has ended the task, so nothing that comes of it counts any more."""
        self._end("cut")

    def _look(self) -> None:
        """End it if the time is over or nothing moves; otherwise look again when that may be."""
        due = min(self._ends_at, self._moved_at + self._idle_s)
        if due > self._loop.time():
            self._watch = self._loop.call_at(due, self._look)
        elif not self.why:
            self._end("over" if due == self._ends_at else "idle")

    def _end(self, why: Literal["over", "idle", "cut"]) -> None:
        self.why = why
        if not self._limit.expired():
            self._limit.reschedule(self._loop.time())
