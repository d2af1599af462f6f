"""Find what stands still: wakes that were lost, dispatched tasks whose message was, queues that the server has lost with its store, runs
held by a budget that has room again, and money that dead workers left reserved.

It runs all the time, at a slow pace, over the runs that are open. A task counts as alive while a worker's heartbeat names it or its
stream grows. Publishing one again that is alive after all does no harm: the version of its stream fences the second worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from crewlog.events.bus import Bus, Message, Subscription
from crewlog.events.clock import Clock
from crewlog.events.store import EventStore
from crewlog.orchestrator.dispatch import Dispatch
from crewlog.orchestrator.driver import Driver
from crewlog.orchestrator.holds import Holds
from crewlog.orchestrator.kinds import KindDirectory
from crewlog.orchestrator.left_over import settle_left_over
from crewlog.orchestrator.publisher import Publisher
from crewlog.orchestrator.run import RunState, TaskState, active_tasks
from crewlog.schemas.errors import OrchestrationError
from crewlog.schemas.ids import RunId, Stream, TaskId, task_stream

PAGE: Final = 500
BUSY_QUEUE_LEASES: Final = 10
"""While its queue is not empty a task may just be waiting: it is published again only after this many leases."""

log = logging.getLogger(__name__)


class Heartbeat(msgspec.Struct):
    """What a worker says every few seconds."""

    kind: str
    worker: str
    busy: tuple[TaskId, ...] = ()


class _Sign(msgspec.Struct):
    """The last sign of life of a dispatched task."""

    at_s: float
    dispatches: int
    version: int = 1
    """Up to where its stream is known; the first event is there from the start."""


_decode: Final = msgspec.json.Decoder(Heartbeat).decode


class Sweep:
    """Looks after open runs."""

    def __init__(
        self,
        store: EventStore,
        bus: Bus,
        clock: Clock,
        driver: Driver,
        publisher: Publisher,
        kinds: KindDirectory,
        holds: Holds,
        *,
        interval_s: float,
        lease_s: float,
        settle_grace_s: float,
    ) -> None:
        """Prepare.

        Args:
            interval_s: pause between two rounds, in seconds.
            lease_s: how long a dispatched task may give no sign of life, in seconds.
            settle_grace_s: age of a reservation from which on nobody alive can be about to settle it, in seconds.
        """
        self._holds, self._settle_grace_s = holds, settle_grace_s
        self._soon = asyncio.Event()
        self._store, self._bus, self._clock, self._driver, self._publisher, self._kinds = store, bus, clock, driver, publisher, kinds
        self._interval_s, self._lease_s = interval_s, lease_s
        self._signs: dict[TaskId, _Sign] = {}
        self._heard: Subscription | None = None
        self._round: asyncio.Task[None] | None = None

    async def start(self) -> asyncio.Task[None]:
        """Listen to heartbeats and begin with a first round; the returned task ends only with `stop` or a defect."""
        self._heard = await self._bus.subscribe("telemetry.>", self._hear)
        self._round = asyncio.create_task(self._run(), name="sweep")
        return self._round

    async def stop(self) -> None:
        """Stop. Safe to call twice."""
        if self._round is not None:
            self._round.cancel()
            await asyncio.gather(self._round, return_exceptions=True)
            self._round = None
        if self._heard is not None:
            await self._heard.stop()
            self._heard = None

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except OrchestrationError as error:
                log.warning("sweep: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._soon.wait(), self._interval_s)
            self._soon.clear()

    def soon(self) -> None:
        """Begin the next round now, or right behind the one under way: a budget was changed."""
        self._soon.set()

    async def sweep(self) -> None:
        """Look at every open run once.

        Raises:
            Unavailable: the log or the bus cannot be reached; the next round begins anew.
        """
        await self._bus.ensure_kinds(self._kinds.offers)
        after: RunId | None = None
        dispatched: set[TaskId] = set()
        while True:
            page = await self._store.open_runs(after=after, limit=PAGE)
            states = await self._driver.folds.states(page)
            for run_id in page:
                self._driver.wake(run_id)
            waiting = [(state, task) for state in states.values() for task in active_tasks(state) if task.phase == "dispatched"]
            dispatched.update(task.task_id for _, task in waiting)
            await self._check(waiting)
            await self._holds.release(states.values())
            if len(page) < PAGE:
                break
            after = page[-1]
        self._signs = {task_id: sign for task_id, sign in self._signs.items() if task_id in dispatched}
        await settle_left_over(self._store, self._clock, grace_s=self._settle_grace_s)

    async def _check(self, waiting: Iterable[tuple[RunState, TaskState]]) -> None:
        now_s = self._clock.monotonic()
        silent: list[tuple[RunState, TaskState, _Sign]] = []
        for state, task in waiting:
            sign = self._signs.get(task.task_id)
            if sign is None or sign.dispatches != task.dispatches:
                self._signs[task.task_id] = _Sign(now_s, task.dispatches)
            elif now_s - sign.at_s >= self._lease_s:
                silent.append((state, task, sign))
        if not silent:
            return
        await self._note_progress({task_stream(task.task_id): sign for _, task, sign in silent}, now_s)
        backlogs: dict[tuple[str, str], int] = {}
        for state, task, sign in silent:
            if now_s - sign.at_s >= self._lease_s and await self._is_lost(state, task, sign, backlogs, now_s):
                log.warning("task %s of run %s gave no sign of life for %.0f s, published again", task.task_id, state.run_id, now_s - sign.at_s)
                again = Dispatch(task.task_id, task.kind, state.brief.priority, task.attempt, task.dispatches, None)
                await self._publisher.publish_again(state.run_id, again, nonce=self._clock.random_id().hex[:8])
                sign.at_s = now_s

    async def _note_progress(self, signs: Mapping[Stream, _Sign], now_s: float) -> None:
        for recorded in await self._store.read_streams({stream: sign.version for stream, sign in signs.items()}):
            sign = signs[recorded.stream]
            sign.at_s, sign.version = now_s, recorded.version

    async def _is_lost(self, state: RunState, task: TaskState, sign: _Sign, backlogs: dict[tuple[str, str], int], now_s: float) -> bool:
        lane = task.kind, state.brief.priority
        if lane not in backlogs:
            backlogs[lane] = await self._bus.backlog("WORK", f"{task.kind}-{state.brief.priority}")
        return backlogs[lane] == 0 or now_s - sign.at_s >= self._lease_s * BUSY_QUEUE_LEASES

    async def _hear(self, message: Message) -> None:
        try:
            beat = _decode(message.data)
        except msgspec.MsgspecError as error:
            log.debug("a heartbeat on %s does not decode: %s", message.subject, error)
            return
        now_s = self._clock.monotonic()
        for task_id in beat.busy:
            if sign := self._signs.get(task_id):
                sign.at_s = now_s
