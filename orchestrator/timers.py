"""When runs must be looked at again although nobody wakes them: retries, deadlines, approvals that expire.

The due time is derived from the run's state. This process keeps those of its own runs in memory; rows in the log's `timers` are for
the case that it dies, and are written with a delay, so that short runs never write one.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Sequence
from typing import Final

from crewlog.events import faults
from crewlog.events.clock import Clock
from crewlog.events.store import EventStore
from crewlog.orchestrator.run import RunState, next_due_us
from crewlog.schemas.errors import OrchestrationError
from crewlog.schemas.ids import RunId

WRITE_DELAY_S: Final = 1.0
POLL_S: Final = 5.0
"""How often rows of others are looked for: only those of a process whose death nobody noticed, as all of its runs are looked at otherwise."""
LATE_US: Final = 2_000_000
"""A row this late belongs to a process that is gone: a living one acts in time and then moves the row."""
TAKE_MAX: Final = 256
GONE_MAX: Final = 1024
"""Times in the heap that no run has any more, at least, before they are dropped: a run may end a day before its deadline."""

log = logging.getLogger(__name__)


class Timers:
    """Due times of runs."""

    def __init__(self, store: EventStore, clock: Clock, *, write_delay_s: float = WRITE_DELAY_S, poll_s: float = POLL_S) -> None:
        self._store, self._clock = store, clock
        self._write_delay_s, self._poll_s = write_delay_s, poll_s
        self._due: dict[RunId, int] = {}
        self._heap: list[tuple[int, RunId]] = []
        self._changed: set[RunId] = set()
        self._stored: dict[RunId, int] = {}
        self._earlier = asyncio.Event()
        self._write_soon = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    def start(self, wake: Callable[[RunId], None]) -> list[asyncio.Task[None]]:
        """Begin to watch the clock and wake runs that are due; the returned tasks end only with `stop` or a defect."""
        self._loops = [asyncio.create_task(loop, name="timers") for loop in (self._watch(wake), self._poll(wake), self._write())]
        return self._loops

    async def stop(self) -> None:
        """Write what is not written yet, and stop. Safe to call twice."""
        loops, self._loops = self._loops, []
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        if loops:
            await self._write_changed()

    def note(self, state: RunState) -> None:
        """Take the due time from a run's state."""
        run_id, due_us = state.run_id, next_due_us(state)
        if due_us == self._due.get(run_id):
            return
        if due_us is None:
            del self._due[run_id]
        else:
            self._due[run_id] = due_us
            heapq.heappush(self._heap, (due_us, run_id))
            if self._heap[0] == (due_us, run_id):
                self._earlier.set()
            if len(self._heap) > 2 * len(self._due) + GONE_MAX:
                self._heap = [(due, run) for run, due in self._due.items()]
                heapq.heapify(self._heap)
        self._changed.add(run_id)
        self._write_soon.set()

    async def _watch(self, wake: Callable[[RunId], None]) -> None:
        """Wake runs of this process in time."""
        while True:
            now_us = self._clock.now_us()
            while self._heap and self._heap[0][0] <= now_us:
                due_us, run_id = heapq.heappop(self._heap)
                if self._due.get(run_id) == due_us:
                    wake(run_id)
            self._earlier.clear()
            wait_s = (self._heap[0][0] - now_us) / 1e6 if self._heap else None
            try:
                async with asyncio.timeout(wait_s):
                    await self._earlier.wait()
            except TimeoutError:
                continue

    async def _poll(self, wake: Callable[[RunId], None]) -> None:
        """Wake runs whose process is gone."""
        while True:
            try:
                runs = await self._take()
            except OrchestrationError as error:
                log.warning("taking due timers: %s", error)
                runs = ()
            for run_id in runs:
                self._stored.pop(run_id, None)
                wake(run_id)
            if len(runs) < TAKE_MAX:
                await asyncio.sleep(self._poll_s)

    async def _take(self) -> Sequence[RunId]:
        due_us = self._clock.now_us() - LATE_US
        if faults.hook is not None:
            faults.hook("before_timers_taken")
        runs = await self._store.take_due(due_us, TAKE_MAX)
        if not runs:
            return ()
        if faults.hook is not None:
            faults.hook("after_timers_taken")
        return runs

    async def _write(self) -> None:
        while True:
            await self._write_soon.wait()
            await asyncio.sleep(self._write_delay_s)
            self._write_soon.clear()
            await self._write_changed()

    async def _write_changed(self) -> None:
        changed, self._changed = self._changed, set()
        rows = {run_id: due for run_id in changed if (due := self._due.get(run_id)) != self._stored.get(run_id)}
        if not rows:
            return
        try:
            await self._store.set_timers(rows)
        except OrchestrationError as error:
            log.warning("writing %d timers, the sweep finds these runs: %s", len(rows), error)
            return
        for run_id, due in rows.items():
            if due is None:
                self._stored.pop(run_id, None)
            else:
                self._stored[run_id] = due
