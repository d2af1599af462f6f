"""The shell around schedules: keep them in memory, wait for what is due next, submit its run, record it.

Every orchestrator does so. The run is submitted before it is recorded: whoever dies in between leaves a due time that the next one
submits again, under the same id, which is a duplicate. The version of the schedule's stream lets one of them record it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from crewlog.events import faults
from crewlog.events.clock import Clock
from crewlog.events.controls import tenant_scope
from crewlog.events.store import ANY, AppendRequest, EventStore, Write
from crewlog.orchestrator.driver import Driver, Submitted
from crewlog.orchestrator.schedule import AddSchedule, ChangeSchedule, Schedule, ScheduleEvent, decide, due, evolve, next_due_us, run_of, task_for
from crewlog.schemas.codec import Event, Unknown
from crewlog.schemas.errors import ConflictError, ContractError, NotFound, OrchestrationError, TenantFull, Unavailable
from crewlog.schemas.ids import RunId, Stream, TaskId, run_stream, schedule_stream, task_stream
from crewlog.schemas.run_events import RunSubmitted
from crewlog.schemas.system_events import ScheduleAdded, ScheduleFired
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.task_events import TaskOpened
from crewlog.schemas.text import shorten

DIRECTORY: Final = Stream("schedule/@all")
POLL_S: Final = 10.0
"""Longest time until an orchestrator knows what another was told, in seconds."""
RACES_MAX: Final = 20
ERROR_CHARS_MAX: Final = 500
IDS_MAX: Final = 16
"""Ids that the run of a due time may have: enough that nobody keeps a schedule from running by submitting tasks under them."""

log = logging.getLogger(__name__)


class _Known(msgspec.Struct):
    """One schedule as far as its stream was read."""

    state: Schedule = Schedule()
    version: int = 0


class Schedules:
    """All schedules of all tenants."""

    def __init__(self, store: EventStore, clock: Clock, driver: Driver, *, poll_s: float = POLL_S) -> None:
        self._store, self._clock, self._driver, self._poll_s = store, clock, driver, poll_s
        self._known: dict[Stream, _Known] = {}
        self._directory_version = 0
        self._named: set[Stream] = set()
        """Schedules that the directory names and that were not read since."""
        self._changed = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin to wait for due times; the returned task ends only with `stop` or a defect."""
        self._running = asyncio.create_task(self._run(), name="schedules")
        return self._running

    def soon(self) -> None:
        """Look now at what is due: a tenant was paused, or goes on."""
        self._changed.set()

    async def stop(self) -> None:
        """Stop. What was submitted and not recorded is found by the next one. Safe to call twice."""
        if self._running is not None:
            running, self._running = self._running, None
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def of(self, tenant: str) -> list[Schedule]:
        """Return a tenant's schedules, by name."""
        await self._refresh()
        return sorted((known.state for known in self._known.values() if known.state.is_there and known.state.tenant == tenant), key=lambda state: state.name)

    async def add(self, command: AddSchedule) -> Schedule:
        """Add a schedule. Errors are those of `decide`."""
        return await self._execute(command, command.tenant, command.name)

    async def change(self, tenant: str, name: str, command: ChangeSchedule) -> Schedule:
        """Pause, resume or remove a schedule. Errors are those of `decide`."""
        return await self._execute(command, tenant, name)

    async def run_now(self, tenant: str, name: str, *, actor: str) -> ScheduleFired:
        """Submit a run of a schedule now, also while it is paused; its due times stay as they are.

        Raises:
            NotFound: there is no such schedule.
        """
        state = (await self._look_up(tenant, name)).state
        if not state.is_there:
            raise NotFound("schedule", name)
        now_us = self._clock.now_us()
        fired = await self._submit(state, ScheduleFired(now_us, run_of(state, now_us), actor=actor))
        await self._append(schedule_stream(tenant, name), (fired,), ANY)
        return fired

    async def _execute(self, command: AddSchedule | ChangeSchedule, tenant: str, name: str) -> Schedule:
        for _ in range(RACES_MAX):
            known = await self._look_up(tenant, name)
            events = decide(command, known.state, self._clock.now_us(), name=name)
            try:
                if events:
                    await self._append(schedule_stream(tenant, name), events, known.version)
            except ConflictError as error:
                log.info("schedule %s of %s: %s", name, tenant, error)
                continue
            self._changed.set()
            return (await self._look_up(tenant, name)).state
        raise Unavailable(f"schedule {name}: somebody else changed it {RACES_MAX} times; try again")

    async def _look_up(self, tenant: str, name: str) -> _Known:
        stream = schedule_stream(tenant, name)
        await self._refresh(stream)
        return self._known.get(stream) or _Known()

    async def _append(self, stream: Stream, events: Sequence[ScheduleEvent], expected: int) -> None:
        writes = [Write(stream, tuple(events), expected)]
        if added := [event for event in events if isinstance(event, ScheduleAdded)]:
            writes.append(Write(DIRECTORY, tuple(added), ANY))
        if faults.hook is not None:
            faults.hook("before_schedule_append")
        await self._store.append(AppendRequest(writes, [self._clock.new_id() for write in writes for _ in write.events], self._clock.now_us()))
        if faults.hook is not None:
            faults.hook("after_schedule_append")

    # ── what is due ──

    async def _run(self) -> None:
        while True:
            wait_s = self._poll_s
            self._changed.clear()
            try:
                wait_s = await self.look()
            except OrchestrationError as error:
                log.warning("looking at schedules: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):  # `wait_for` would swallow a `stop` that comes at the same moment
                    await self._changed.wait()

    async def look(self) -> float:
        """Fire what is due, and return how long nothing will be, in seconds.

        Raises:
            Unavailable: the log cannot be reached; what was due still is.
        """
        await self._refresh()
        wait_s = self._poll_s
        for stream, known in list(self._known.items()):
            if tenant_scope(known.state.tenant) in self._driver.folds.controls.pauses:
                continue  # behind the pause, its catch-up policy says what is made up for
            try:
                await self._fire(stream, known)
                now_us = self._clock.now_us()
                due_us = next_due_us(known.state, now_us)
            except ContractError as error:  # a zone, say, that another orchestrator's tables have; the other schedules go on
                log.warning("schedule %s: %s", stream, error)
                continue
            if due_us is not None:
                wait_s = min(wait_s, (due_us - now_us) / 1e6)
        return max(wait_s, 0.0)

    async def _fire(self, stream: Stream, known: _Known) -> None:
        wanted = due(known.state, self._clock.now_us())
        if not wanted:
            return
        state = known.state
        fired = [await self._submit(state, event) for event in wanted]
        for _ in range(RACES_MAX):
            left = [event for event in fired if event.due_us > known.state.after_us]
            if not left:
                return
            with contextlib.suppress(ConflictError):  # another orchestrator recorded it, or somebody changed the schedule meanwhile
                await self._append(stream, left, known.version)
            await self._refresh(stream)

    async def _submit(self, state: Schedule, fired: ScheduleFired) -> ScheduleFired:
        try:
            submitted = await self._begin(state, fired.due_us)
        except (ContractError, TenantFull) as error:
            log.warning("schedule %s of %s: its task was refused: %s", state.name, state.tenant, error)
            return replace(fired, error=shorten(str(error), ERROR_CHARS_MAX))
        if submitted.status == "accepted":
            log.info("schedule %s of %s: run %s", state.name, state.tenant, submitted.run_id)
        return replace(fired, run_id=submitted.run_id)

    async def _begin(self, state: Schedule, due_us: int) -> Submitted:
        """Begin the run of a due time. Whoever submits a task chooses its id: the one of this run may be another's already."""
        for number in range(1, IDS_MAX + 1):
            task = task_for(state, run_of(state, due_us, number))
            if not await self._is_taken(task):
                submitted = await self._driver.submit(task, "api")
                if submitted.status == "accepted" or not await self._is_taken(task):
                    return submitted
            log.warning("schedule %s of %s: run %s is not its own: somebody submitted another task under that id", state.name, state.tenant, task.run_id)
        raise ContractError(f"all {IDS_MAX} ids for the run of this due time are taken by other tasks")

    async def _is_taken(self, task: AgentTask) -> bool:
        """Say whether a run or a task that is another one has the id of this."""
        streams = {run_stream(RunId(task.run_id)): 0, task_stream(TaskId(task.task_id)): 0}
        found = await self._store.read_streams(streams, types=frozenset({RunSubmitted.__name__, TaskOpened.__name__}))
        return bool(found) and not any(recorded.erased_us or _submits(recorded.event(), task) for recorded in found)

    async def _refresh(self, *more: Stream) -> None:
        """Read what is new of all schedules there are, and of these. Of one that was removed there is nothing new until the directory names it again."""
        for recorded in await self._store.read_streams({DIRECTORY: self._directory_version}):
            self._directory_version = recorded.version
            event = recorded.event()
            if isinstance(event, ScheduleAdded):
                self._named.add(schedule_stream(event.tenant, event.name))
        there = (stream for stream, known in self._known.items() if known.state.is_there)
        wanted = {stream: self._known[stream].version if stream in self._known else 0 for stream in (*there, *self._named, *more)}
        if not wanted:
            return
        for recorded in await self._store.read_streams(wanted):
            known = self._known.setdefault(recorded.stream, _Known())
            event = recorded.event()
            if recorded.version > known.version and isinstance(event, ScheduleEvent):
                known.state, known.version = evolve(known.state, event), recorded.version
        self._named -= wanted.keys()


def _submits(event: Event | Unknown, task: AgentTask) -> bool:
    """Say whether an event submits just this task."""
    if not isinstance(event, RunSubmitted):
        return False
    try:
        return parse_task(msgspec.json.decode(event.task)) == task
    except ContractError:
        return False
