"""What a worker is told while it works: what is paused, whether it is to leave, and which of its tasks somebody else has ended.

Nothing is begun by what was read more than a second ago. While the worker holds tasks it looks every second anyway, since a model call under
way must be cut off soon when its run is terminated; an idle worker looks when it is told to, and before it takes a task.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from crewlog.agents.journal import Journal
from crewlog.events import controls
from crewlog.events.clock import Clock
from crewlog.events.controls import CONTROL_TYPES, FRESH_S, Controls, kind_scope, run_scope, tenant_scope, worker_scope
from crewlog.events.store import EventStore
from crewlog.schemas.errors import OrchestrationError
from crewlog.schemas.ids import CONTROL_STREAM, RunId, Stream
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import TaskCancelled, TaskFailed

LOOKS_MAX: Final = 5
"""Looks before a step begins by what was read, although the log takes longer to answer than that stays fresh."""
ENDED_TYPES: Final = frozenset((TaskCancelled.__name__, TaskFailed.__name__))
"""Ends of a task that others write."""

log = logging.getLogger(__name__)


class _Held(NamedTuple):
    journal: Journal
    cut: Callable[[], None]


class Orders:
    """What one worker is told."""

    def __init__(self, store: EventStore, clock: Clock, *, kind: str, worker: str, on_change: Callable[[], None]) -> None:
        """Prepare; `follow` keeps it up to date.

        Args:
            on_change: called behind each look that found something new.
        """
        self._store, self._clock, self._kind, self._worker, self._on_change = store, clock, kind, worker, on_change
        self._controls = Controls()
        self._looked_s = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        self._held: dict[Stream, _Held] = {}
        self._told = asyncio.Event()
        self._stirred = asyncio.Event()
        """Set when there may be something to look after."""
        self._changed = asyncio.Event()
        self._leaves = False

    @property
    def is_kind_paused(self) -> bool:
        """Say whether tasks of the worker's kind must wait in their queue."""
        return kind_scope(self._kind) in self._controls.pauses

    @property
    def is_drained(self) -> bool:
        """Say whether somebody wants the worker to leave."""
        return self._worker in self._controls.drained

    def tell(self) -> None:
        """Have it look now."""
        self._told.set()
        self._stirred.set()

    def leave(self) -> None:
        """Begin no further step of any task."""
        self._leaves = True
        self._changed.set()

    def hold(self, journal: Journal, cut: Callable[[], None]) -> None:
        """Look after a task from now on: `cut` is called once somebody else has ended it."""
        self._held[journal.stream] = _Held(journal, cut)
        self._stirred.set()

    def drop(self, journal: Journal) -> None:
        """Look after a task no more."""
        self._held.pop(journal.stream, None)

    async def against(self, task: AgentTask) -> str:
        """Return the scope that keeps a task's next step from beginning, or an empty string.

        Raises:
            Unavailable: the log cannot be reached, so nobody knows.
        """
        for _ in range(LOOKS_MAX):
            if self._clock.monotonic() - self._looked_s <= FRESH_S:
                break
            await self.look()  # again, should this process have stood still meanwhile
        return self._against(task)

    async def wait(self, task: AgentTask, wait_s: float) -> bool:
        """Wait, and return True as soon as something keeps the task from going on, or False when the time is over."""
        ends = self._clock.monotonic() + wait_s
        while (left_s := ends - self._clock.monotonic()) > 0:
            if self._against(task):
                return True
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._changed.wait()
        return False

    async def look(self) -> None:
        """Read what is new. Those who ask while a look is under way share the next one.

        Raises:
            Unavailable: the log cannot be reached.
        """
        if self._looking is not None and not self._looking.done():
            await asyncio.wait([self._looking])  # it may have read before what the caller knows of was written
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._read())
        await asyncio.shield(self._looking)

    async def follow(self) -> None:
        """Look whenever told to, and every second while there is something to look after; never ends by itself."""
        while True:
            if not (self._held or self.is_kind_paused or self._told.is_set()):
                self._stirred.clear()
                await self._stirred.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FRESH_S):
                    await self._told.wait()
            self._told.clear()
            try:
                await self.look()
            except OrchestrationError as error:
                log.warning("reading what is paused: %s", error)
                await asyncio.sleep(FRESH_S)

    async def stop(self) -> None:
        """Give up a look that is under way. Safe to call twice."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _read(self) -> None:
        began_s = self._clock.monotonic()
        after = {CONTROL_STREAM: self._controls.version} | {stream: held.journal.sent for stream, held in self._held.items()}
        before = self._controls
        for recorded in await self._store.read_streams(after, types=CONTROL_TYPES | ENDED_TYPES):
            if recorded.stream == CONTROL_STREAM:
                self._controls = controls.evolve(self._controls, recorded)
            elif (held := self._held.get(recorded.stream)) is not None:
                held.cut()
        self._looked_s = began_s
        if self._controls is not before:
            self._changed.set()
            self._stirred.set()
            self._on_change()

    def _against(self, task: AgentTask) -> str:
        if self._leaves or self.is_drained:
            return worker_scope(self._worker)
        pauses = self._controls.pauses
        if not pauses:
            return ""
        scopes = (run_scope(RunId(task.run_id)), tenant_scope(task.tenant), kind_scope(self._kind))
        return next((scope for scope in scopes if scope in pauses), "")
