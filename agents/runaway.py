"""Tools that do not stop when they are told to: each call gets its time and a moment to end, whatever it makes of being cancelled.

What may run again is left to itself: its call has failed, its slot is free, and it is only counted. What must not happen twice keeps its call open,
since nobody may ask yet what became of it: it can still have its effect until this process has ended. So a worker that has such a call, or as many
that were left to themselves as it has slots, gives itself up, and another one takes its tasks over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

OBEYS_S: Final = 20.0
"""How long a call may take to end once it was cancelled, in seconds: that of a child which has to be killed takes 10."""

log = logging.getLogger(__name__)


class Runaways:
    """The calls of one worker that went on although they were cancelled."""

    def __init__(self) -> None:
        self.left: set[asyncio.Task[Any]] = set()
        self.gave_up = False
        """Nothing but the end of this process ends a call, or as many go on by themselves as there are slots."""
        self._slots = 1
        self._on_give_up: Callable[[], None] = lambda: None
        self.end_process: Callable[[], None] = lambda: None
        """Called when a call that must not happen twice has to be given up, before anybody hears of that."""

    def watch(self, slots: int, on_give_up: Callable[[], None]) -> None:
        """Have `on_give_up` called once the worker, which has so many slots, should leave."""
        self._slots, self._on_give_up = slots, on_give_up

    async def within(self, work: Callable[[], Awaitable[Any]], seconds: float, *, what: str, may_be_left: bool) -> Any:
        """Call a tool, await what it does for so many seconds, and return what comes of it.

        Args:
            what: it, for the log.
            may_be_left: it may happen again while this one goes on.

        Raises:
            TimeoutError: the time is over.
            RuntimeError: it was cancelled by itself, or wanted to end the process: no call ends a worker, and each has an outcome.
            Exception: whatever it raised.
        """
        running = asyncio.ensure_future(_contained(work))
        told = await _until(running, seconds)
        if running.done() and not running.cancelled() and told is None:
            return running.result()
        if running.done() and told is None:
            raise RuntimeError("what it waited for was cancelled")
        running.cancel()
        told = await _until(running, OBEYS_S, told=told, is_patient=True)
        if not running.done():
            told = await self._leave(running, what, told, may_be_left=may_be_left)
        if told is not None:
            raise told
        if not running.done() or running.cancelled():
            raise TimeoutError
        return running.result()

    async def _leave(self, running: asyncio.Future[Any], what: str, told: asyncio.CancelledError | None, *, may_be_left: bool) -> asyncio.CancelledError | None:
        assert isinstance(running, asyncio.Task)
        self.left.add(running)
        running.add_done_callback(self._ended)
        log.error("%s goes on although it was cancelled %g s ago; %d such calls are left in this worker", what, OBEYS_S, len(self.left))
        if not self.gave_up and (not may_be_left or len(self.left) >= self._slots):
            log.error("this worker gives itself up: its process must end before its calls do")
            self.gave_up = True
            self._on_give_up()
        if may_be_left:
            return told
        # until the worker stops, which it does now; who was told to stop already may not be told again
        told = await _until(running, None if told is None else OBEYS_S) or told
        if not running.done():
            self.end_process()
        return told

    def _ended(self, running: asyncio.Task[Any]) -> None:
        self.left.discard(running)
        if not running.cancelled() and (error := running.exception()) is not None:
            log.info("a call that had been left to itself has ended: %s: %s", type(error).__name__, error)


async def _contained(work: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await work()
    except SystemExit as error:  # such as of a parser of command lines; in a task of its own it would end the loop
        raise RuntimeError(f"it wanted to end the process: {error}") from error


async def _until(
    running: asyncio.Future[Any], seconds: float | None, *, told: asyncio.CancelledError | None = None, is_patient: bool = False
) -> asyncio.CancelledError | None:
    """Wait for a call, at most so long; returns what told us to stop, if anything did: then only the patient wait on."""
    loop = asyncio.get_running_loop()
    ends = None if seconds is None else loop.time() + seconds
    while not running.done():
        left = None if ends is None else ends - loop.time()
        if left is not None and left <= 0:
            break
        try:
            await asyncio.wait({running}, timeout=left)
        except asyncio.CancelledError as error:
            told = error
            if not is_patient:
                break
    return told
