"""Find what stands still: wakes that were lost, dispatched tasks whose message was, queues that the server has lost with its store, runs
held by a budget that has room again, money that dead workers left reserved, and their registrations.

It runs all the time, at a slow pace, over the runs that are open, and looks at those that give cause for it (`looks`): nothing can follow
from a second look at a run to which nothing happened. A round asks the log which runs have grown since the last one; every `COUNT_ROUNDS`
it lists all that are open with one number for each, so that nothing rests on one way of finding out. All are looked at when this process
starts, when another orchestrator is gone, and when operators have paused, resumed or released anything.

A task counts as alive while a worker's heartbeat names it, its stream grows, or an orchestrator holds its message back until its turn
comes. Publishing one again that is alive after all does no harm: the version of its stream fences the second worker.

When an orchestrator starts, and when another one is gone that held messages back, nobody knows which messages were sent. Then every
dispatched task that no worker has begun is queued for its turn under its own message id: what was sent already is dropped by the stream.
The same happens, with what this process sent itself too, when the connection to the bus was lost or the queue has a new leader. A task that
was begun then is sent again as well if its worker does not answer, a moment later: by then everybody has reconnected.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from crewlog.events.bus import Bus, Message, Subscription
from crewlog.events.clock import Clock
from crewlog.events.controls import kind_scope
from crewlog.events.store import Changes, EventStore
from crewlog.orchestrator.admission import Admission
from crewlog.orchestrator.dispatch import Dispatch
from crewlog.orchestrator.dispatcher import Dispatcher
from crewlog.orchestrator.driver import Driver
from crewlog.orchestrator.fair_queue import Waiting
from crewlog.orchestrator.handing_on import is_there
from crewlog.orchestrator.holds import Holds, needed_of
from crewlog.orchestrator.interventions import due_interventions
from crewlog.orchestrator.kinds import KindDirectory
from crewlog.orchestrator.left_over import settle_left_over
from crewlog.orchestrator.looks import Looks
from crewlog.orchestrator.run import RunState, TaskState, active_tasks, current_task, next_due_us
from crewlog.orchestrator.silent_workers import SilentWorkers
from crewlog.orchestrator.standstill import Standstills
from crewlog.schemas.errors import OrchestrationError
from crewlog.schemas.ids import RunId, Stream, TaskId, task_stream
from crewlog.schemas.subjects import worker_group
from crewlog.schemas.task_events import TaskStarted

PAGE: Final = 500
"""Runs that are listed, or tasks that are asked about, with one query."""
COUNT_ROUNDS: Final = 6
"""Rounds from one list of all open runs to the next: thousands of them cost the log and this process more than all the rounds in between."""
CHANGED_POSITIONS_MAX: Final = 20_000
"""With more events than that between two rounds the list costs less than to find out which runs they are of."""
RECONNECTED_S: Final = 2.0
"""Time in which every process that is there has connected again to a bus that was away, in seconds."""
BUSY_QUEUE_LEASES: Final = 10
"""While its queue is not empty a task may just be waiting: it is published again only after this many leases."""

log = logging.getLogger(__name__)


class Heartbeat(msgspec.Struct):
    """What a worker says every few seconds; its kind and its name stand in the subject, where the bus lets nobody speak for another kind."""

    busy: tuple[TaskId, ...] = ()
    slots: int = 0
    lane: str = ""
    """The one lane that it takes work from, when it does not serve the usual ones."""
    lanes: tuple[str, ...] = ()
    """Lanes that it serves besides: that of its version."""


class _Sign(msgspec.Struct):
    """The last sign of life of a dispatched task."""

    at_s: float
    kind: str
    dispatches: int
    again: int = 0
    """How often it was put on its queue again since."""
    version: int = 1
    """Up to where its stream is known; the first event is there from the start."""


_decode: Final = msgspec.json.Decoder(Heartbeat).decode
_BEGUN: Final = frozenset({TaskStarted.__name__})


class Sweep:
    """Looks after open runs."""

    def __init__(
        self,
        store: EventStore,
        bus: Bus,
        clock: Clock,
        driver: Driver,
        dispatcher: Dispatcher,
        kinds: KindDirectory,
        holds: Holds,
        admission: Admission,
        silent: SilentWorkers,
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
        self._holds, self._admission, self._silent, self._settle_grace_s = holds, admission, silent, settle_grace_s
        self._soon = asyncio.Event()
        self._store, self._bus, self._clock, self._driver, self._dispatcher, self._kinds = store, bus, clock, driver, dispatcher, kinds
        self._interval_s, self._lease_s = interval_s, lease_s
        self._standstills = Standstills(store, clock, patience_s=lease_s)
        self.looks = Looks()
        """What is known of the runs that are open."""
        self._controls = -1
        """Version of what operators have in force that all runs were looked at under."""
        self._signs: dict[TaskId, _Sign] = {}
        self._seen = 0
        """Position of the log up to which it is known what happened."""
        self._rounds_to_count = 0
        """Rounds before all open runs are listed again."""
        self._adopts = True
        """Whether the next round takes over what no worker has begun: nobody is known to hold it."""
        self._doubts = False
        """Whether it takes over what this process has sent as well: the queue may have lost it."""
        self._begun: dict[TaskId, tuple[RunId, str]] = {}
        """Tasks that had been begun when it took over -> their run and worker, which the next round asks whether it is still there."""
        self._heard: Subscription | None = None
        self._round: asyncio.Task[None] | None = None

    async def start(self) -> asyncio.Task[None]:
        """Listen to heartbeats and begin with a first round; the returned task ends only with `stop` or a defect."""
        self._heard = await self._bus.subscribe("telemetry.*.*", self._hear)
        await self._bus.watch("WORK", self.doubt)
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
                # `wait_for` would swallow a `stop` that comes at the same moment
                async with asyncio.timeout(RECONNECTED_S if self._begun else self._interval_s):
                    await self._soon.wait()
            self._soon.clear()

    def soon(self) -> None:
        """Begin the next round now, or right behind the one under way: a budget was changed."""
        self._soon.set()

    def adopt(self) -> None:
        """Take over what is dispatched and not begun, in a round that begins now: who held it back is gone."""
        self._adopts = True
        self.soon()

    def doubt(self) -> None:
        """Send again what is dispatched and not begun, in a round that begins now: the queue may have lost any of it."""
        self._doubts = True
        self._silent.listen_anew()
        self.adopt()

    def note(self, state: RunState) -> None:
        """Take note of a run that is over."""
        if state.status != "open":
            self.looks.forget(state.run_id)

    def left(self, run_id: RunId) -> None:
        """Take note of a run that could not be looked at: the next round comes back to it."""
        self.looks.forget(run_id)
        self._rounds_to_count = 0  # it is found again among all that are open

    async def sweep(self) -> None:
        """Look at every open run that gives cause for it.

        Raises:
            Unavailable: the log or the bus cannot be reached; the next round begins anew.
        """
        await self._bus.ensure_kinds(self._kinds.queues())
        await self._take_over_begun()
        adopts, self._adopts = self._adopts, False
        doubts, self._doubts = self._doubts, False
        controls = await self._driver.folds.read_controls()
        try:
            await self._look_at_open(adopts=adopts, doubts=doubts, all_of_them=adopts or controls.version != self._controls)
        except OrchestrationError:
            self._adopts |= adopts
            self._doubts |= doubts
            self._rounds_to_count = 0
            raise
        self._controls = controls.version
        await self._silent.look(self._kinds.offers)

    async def _look_at_open(self, *, adopts: bool, doubts: bool, all_of_them: bool) -> None:
        self._admission.begin_count()
        changes = await self._store.changed_runs(self._seen, positions_max=CHANGED_POSITIONS_MAX)
        if all_of_them or not changes.is_complete or self._rounds_to_count <= 0:
            await self._look_at_listed(adopts=adopts, doubts=doubts, all_of_them=all_of_them)
        else:
            self._rounds_to_count -= 1
            await self._look_at_changed(changes)
        self._seen = changes.high_water
        self._admission.end_count(self.looks.tenants())
        await self._check(now_s=self._clock.monotonic())
        await self._release()
        await settle_left_over(self._store, self._clock, grace_s=self._settle_grace_s)

    async def _look_at_listed(self, *, adopts: bool, doubts: bool, all_of_them: bool) -> None:
        """Look at what gives cause for it among all that are open."""
        self._rounds_to_count = COUNT_ROUNDS
        after: RunId | None = None
        listed: set[RunId] = set()
        while True:
            page = await self._store.count_open(after=after, limit=PAGE)
            now_us = self._clock.now_us()
            due = {run_id: events for run_id, events in page.items() if all_of_them or self.looks.is_due(run_id, events, now_us)}
            await self._look_at(due, adopts=adopts, doubts=doubts)
            listed.update(page)
            if len(page) < PAGE:
                break
            after = list(page)[-1]
        self.looks.keep(listed)
        self._standstills.keep(listed)

    async def _look_at_changed(self, changes: Changes) -> None:
        """Look at what gives cause for it among those to which something happened, and at those whose time has come."""
        for run_id in changes.over:
            self.looks.forget(run_id)
        now_us = self._clock.now_us()
        due = dict(self.looks.timed(now_us))
        due |= {run_id: events for run_id, events in changes.open.items() if self.looks.is_due(run_id, events, now_us)}
        runs = list(due.items())
        for page in (runs[first : first + PAGE] for first in range(0, len(runs), PAGE)):
            await self._look_at(dict(page), adopts=False, doubts=False)

    async def _look_at(self, due: Mapping[RunId, int], *, adopts: bool, doubts: bool) -> None:
        """Look at some runs. `due`: how many events each had."""
        if not due:
            return
        states = await self._driver.folds.states(due)
        for run_id, events in due.items():
            if run_id in states:
                self.looks.note(states[run_id], events)
            if run_id not in states or self._may_go_on(states[run_id]):
                self._driver.wake(run_id)
        if adopts:
            dispatched = [(state, task) for state in states.values() for task in active_tasks(state) if task.phase == "dispatched"]
            await self._take_over(dispatched, doubts=doubts)
        await self._standstills.look(states.values(), self._sent_again)
        for state in states.values():
            sent_again = any(self._sent_again(state, task) for task in active_tasks(state))
            self.looks.mark(state.run_id, restless=sent_again or self._standstills.suspects(state.run_id))

    async def _release(self) -> None:
        """Let runs go on whose budget has room again."""
        held = self.looks.held()
        roomy = await self._store.budgets_with_room(needed_of(held)) if held else ()
        for_some = [run_id for run_id, short in held.items() if any(scope in roomy for scope, _ in short)] if roomy else []
        for page in (for_some[first : first + PAGE] for first in range(0, len(for_some), PAGE)):
            await self._holds.release((await self._driver.folds.states(page)).values())

    def _may_go_on(self, state: RunState) -> bool:
        """Say whether anything can follow from a look at a run. Nothing does while all of its tasks wait for a person: nobody writes to them, and the
        answer is a decision of its own. Most of many open runs are such."""
        tasks = list(active_tasks(state))
        is_known = self._driver.folds.get(state.run_id).version > 0  # the first look at a run also notes its timers
        if not is_known or not tasks or any(task.phase != "suspended" for task in tasks):
            return True
        due_us = next_due_us(state)
        is_due = due_us is None or due_us <= self._clock.now_us()
        return is_due or next(due_interventions(state, self._driver.folds.controls), None) is not None

    async def _take_over(self, waiting: Iterable[tuple[RunState, TaskState]], *, doubts: bool) -> None:
        found = {task.task_id: (state, task) for state, task in waiting if doubts or not self._dispatcher.has(state.run_id, task.task_id)}
        workers: defaultdict[TaskId | None, list[str]] = defaultdict(list)
        for recorded in await self._store.read_streams({task_stream(task_id): 0 for task_id in found}, types=_BEGUN):
            if isinstance(event := recorded.event(), TaskStarted):
                workers[recorded.task_id].append(event.worker)
        held = await self._dispatcher.held(found)
        taken: list[Waiting] = []
        for task_id, (state, task) in found.items():
            if len(workers[task_id]) >= task.dispatches:
                self._begun[task_id] = state.run_id, workers[task_id][-1]
            elif task_id not in held:
                taken.append(_again(state, task))
        await self._dispatcher.offer(taken)

    async def _take_over_begun(self) -> None:
        """Send again what workers have begun that are gone. A queue that still has such a message drops this one, and hands out its own in time."""
        begun = self._begun
        workers = list({worker for _, worker in begun.values()})
        are_there = dict(zip(workers, await asyncio.gather(*(is_there(self._bus, worker) for worker in workers)), strict=True))
        orphans = {task_id: run_id for task_id, (run_id, worker) in begun.items() if not are_there[worker]}
        states = await self._driver.folds.states(set(orphans.values())) if orphans else {}
        tasks = [(states[run_id], current_task(states[run_id], task_id)) for task_id, run_id in orphans.items() if run_id in states]
        await self._dispatcher.offer([_again(state, task) for state, task in tasks if task is not None and task.phase == "dispatched"])
        self._begun = {}

    async def _check(self, *, now_s: float) -> None:
        """Find dispatched tasks that have given no sign of life for too long, and put them on their queue again if their message is lost."""
        paused = self._driver.folds.controls.pauses
        dispatched: dict[TaskId, _Sign] = {}
        silent: dict[TaskId, RunId] = {}
        for run_id, (task_id, kind, group, dispatches) in self.looks.dispatched():
            sign = self._signs.get(task_id)
            if sign is None or sign.dispatches != dispatches:
                sign = _Sign(now_s, kind, dispatches)
            elif now_s - sign.at_s >= self._lease_s and kind_scope(kind) not in paused:  # of a paused kind nobody takes any
                if self._dispatcher.waits(task_id, group):
                    sign.at_s = now_s
                else:
                    silent[task_id] = run_id
            dispatched[task_id] = sign
        self._signs = dispatched
        for page in (list(silent.items())[first : first + PAGE] for first in range(0, len(silent), PAGE)):
            await self._check_silent(dict(page), now_s)

    async def _check_silent(self, silent: Mapping[TaskId, RunId], now_s: float) -> None:
        await self._note_progress({task_stream(task_id): self._signs[task_id] for task_id in silent}, now_s)
        for task_id in await self._dispatcher.held(silent):
            self._signs[task_id].at_s = now_s
        left = {task_id: run_id for task_id, run_id in silent.items() if now_s - self._signs[task_id].at_s >= self._lease_s}
        states = await self._driver.folds.states(set(left.values())) if left else {}
        backlogs: dict[str, int] = {}
        for task_id, run_id in left.items():
            state, sign = states.get(run_id), self._signs[task_id]
            task = None if state is None else current_task(state, task_id)
            if state is None or task is None or task.phase != "dispatched" or task.dispatches != sign.dispatches:
                continue  # it went on since it was noted
            if await self._is_lost(state, task, sign, backlogs, now_s):
                log.warning("task %s of run %s gave no sign of life for %.0f s, published again", task_id, run_id, now_s - sign.at_s)
                await self._dispatcher.offer([_again(state, task, self._clock.random_id().hex[:8])])
                sign.at_s = now_s
                sign.again += 1
                self.looks.mark(run_id, restless=True)

    def _sent_again(self, state: RunState, task: TaskState) -> int:
        sign = self._signs.get(task.task_id)
        return sign.again if sign is not None and self._dispatcher.capacity(worker_group(task.kind, state.brief.lane_of(task.kind))) > 0 else 0

    async def _note_progress(self, signs: Mapping[Stream, _Sign], now_s: float) -> None:
        for recorded in await self._store.read_streams({stream: sign.version for stream, sign in signs.items()}):
            sign = signs[recorded.stream]
            sign.at_s, sign.version, sign.again = now_s, recorded.version, 0

    async def _is_lost(self, state: RunState, task: TaskState, sign: _Sign, backlogs: dict[str, int], now_s: float) -> bool:
        queue = f"{task.kind}-{state.brief.lane_of(task.kind)}"
        if queue not in backlogs:
            backlogs[queue] = await self._bus.backlog("WORK", queue)
        return backlogs[queue] == 0 or now_s - sign.at_s >= self._lease_s * BUSY_QUEUE_LEASES

    async def _hear(self, message: Message) -> None:
        try:
            beat = _decode(message.data)
        except msgspec.MsgspecError as error:
            log.debug("a heartbeat on %s does not decode: %s", message.subject, error)
            return
        _, kind, worker = message.subject.split(".")
        self._silent.heard(kind, worker)
        for lane in (beat.lane, *beat.lanes):
            self._dispatcher.heard(worker_group(kind, lane), worker, beat.slots)
        now_s = self._clock.monotonic()
        for task_id in beat.busy:
            if (sign := self._signs.get(task_id)) and sign.kind == kind:
                sign.at_s = now_s


def _again(state: RunState, task: TaskState, nonce: str = "") -> Waiting:
    dispatch = Dispatch(task.task_id, task.kind, state.brief.lane_of(task.kind), task.attempt, task.dispatches, None)
    return Waiting(state.brief.tenant, state.run_id, dispatch, nonce)
