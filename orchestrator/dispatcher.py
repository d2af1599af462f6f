"""What stands in front of the work queue: dispatched tasks are sent in fair order, and only as many as agents can take.

The log stays the truth: a task is dispatched when `TaskDispatched` is committed, and what waits here is only its message. So the order
in which messages are sent is no decision that a replay must find again, a queue costs no write, and a process that dies loses nothing:

- While there is room and nobody waits for the kind, a message is sent at once. Nothing is asked and nothing is written.
- Otherwise it waits in this process. Whatever has an end makes room for the next; from time to time the bus is asked what is really out,
  because other orchestrators send, too, and hear of the ends of each other's tasks. That is every `LOOK_S` while tasks come and go, and
  hardly ever beside agents that think for minutes, or where nobody takes anything.
- Turns are taken within one queue for each kind of agent: others give what they would hold back to the orchestrator that does (`holders`).
- Shadows, and work that needs a certain version of its agent, have queues and windows of their own, and wait without a look at the bus while no
  worker is there for them.
- An orchestrator that holds something back says so. When one falls silent or leaves, the others take over what the log says
  is dispatched, as an orchestrator does that starts. A message sent twice has the same id, and the stream drops the second.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from crewlog.events.bus import Bus, Queued
from crewlog.events.clock import Clock
from crewlog.orchestrator.dispatch import Dispatch
from crewlog.orchestrator.fair_queue import FairQueue, Waiting
from crewlog.orchestrator.folds import Folds
from crewlog.orchestrator.holders import GIVEN_AT_ONCE_MAX, Held, Holders
from crewlog.orchestrator.publisher import Publisher
from crewlog.orchestrator.run import RunState, current_task
from crewlog.orchestrator.window import Window
from crewlog.schemas.errors import OrchestrationError
from crewlog.schemas.ids import RunId, TaskId
from crewlog.schemas.subjects import SHADOW_LANE, control_kind, worker_group

LOOK_S: Final = 0.02
"""Pause between two looks at the bus while something waits for room, in seconds."""
LOOK_SHARE: Final = 0.05
"""While nothing changes it grows to this part of the time since something did: no agent is idle for longer beside tasks that take so long."""
LOOK_LONGEST_S: Final = 1.0
PLACES_TOLD_MAX: Final = 32
"""Who asks about more messages at once, as a sweep does, wants to know whether they wait and not where."""
STARVED_LOOKS: Final = 5
"""After so many looks without room, while others went on sending, one is sent all the same: another orchestrator was always quicker."""
WORKER_SILENCE_S: Final = 25.0
"""A worker that was not heard for so long takes nothing more, in seconds: two of its heartbeats and a bit."""
ANSWER_S: Final = 2.0
"""Time in which every worker that is there has answered an orchestrator that starts."""
KEPT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Messages that are kept while they wait, in bytes; others are read from the log again when it is their turn."""
KEPT_OF_TENANT: Final = 64
"""So many of each tenant are kept however much the others have waiting: what a quiet one waits for is not slower for it."""

log = logging.getLogger(__name__)


class Dispatcher:
    """Sends the tasks that this process dispatched."""

    def __init__(self, publisher: Publisher, bus: Bus, clock: Clock, *, in_flight_max: Mapping[str, int] | None = None, is_heard_idle: bool = False) -> None:
        """Prepare; what is published before `start` is sent at once.

        Args:
            in_flight_max: kind, or kind of shadows -> most tasks of it that may be with agents at once; others are bounded by their workers' slots.
            is_heard_idle: see `Peers`.
        """
        self._publisher, self._bus, self._clock, self._in_flight_max = publisher, bus, clock, in_flight_max or {}
        self.name = clock.random_id().hex[:12]
        self._folds: Folds | None = None
        self._holders = Holders(bus, clock, self.name, waiting=self._what_waits, held=self._held_here, take=self._hold, is_heard_idle=is_heard_idle)
        self._queues: dict[str, FairQueue] = {}
        self._windows: defaultdict[str, Window] = defaultdict(Window)
        self._runs: defaultdict[RunId, dict[TaskId, str]] = defaultdict(dict)
        """Run -> its tasks that wait -> the groups of workers they wait for."""
        self._out: defaultdict[RunId, dict[TaskId, str]] = defaultdict(dict)
        """Run -> its tasks whose messages this process sent, as far as it knows of no end -> the groups they went to."""
        self._workers: dict[str, dict[str, tuple[int, float]]] = {}
        """Group -> worker -> its slots, and when it was heard."""
        self._starved: Counter[str] = Counter()
        self._sequence = 0
        self._out_last: Mapping[str, int] = {}
        """What was out when the bus was asked last."""
        self._changed_s = 0.0
        """When anything was last sent, or seen to end."""
        self._all_heard_s = clock.monotonic() + ANSWER_S
        self._more = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    async def start(self, folds: Folds, adopt: Callable[[], None]) -> list[asyncio.Task[None]]:
        """Begin to send what waits; the returned tasks end only with `stop` or a defect.

        Args:
            folds: what tells whether a message is still wanted.
            adopt: called when another orchestrator is gone.
        """
        self._folds = folds
        self._loops = [await self._holders.start(adopt), asyncio.create_task(self._send_all(), name="dispatcher")]
        return self._loops

    async def ask_workers(self, kinds: Iterable[str]) -> None:
        """Ask the workers of all kinds for a heartbeat, which `heard` is told of: how much they can take is not in the log."""
        for kind in kinds:
            await self._bus.publish(control_kind(kind))
        self._all_heard_s = self._clock.monotonic() + ANSWER_S

    async def stop(self) -> None:
        """Leave what waits to the others. Safe to call twice."""
        loops, self._loops = self._loops, []
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await self._holders.stop()

    # ── what comes in ──

    async def publish(self, run_id: RunId, tenant: str, dispatches: Sequence[Dispatch]) -> None:
        """Send tasks whose dispatch was committed, or let them wait for their turn."""
        await self.offer([Waiting(tenant, run_id, dispatch) for dispatch in dispatches])

    async def offer(self, entries: Sequence[Waiting]) -> None:
        """Send messages, or let them wait for their turn."""
        if self._holders.holding:
            entries = await self._give(entries)
        for entry in entries:
            group = entry.dispatch.group
            if self._loops and (self._queues.get(group) or self._room(group) <= 0):
                self._hold(entry)
            else:
                await self._send(entry)

    async def _give(self, entries: Sequence[Waiting]) -> Sequence[Waiting]:
        """Give messages to the orchestrators that keep the queues of their groups; returns those that stay here."""
        by_group: dict[str, list[Waiting]] = {}
        for entry in entries:
            by_group.setdefault(entry.dispatch.group, []).append(entry)
        kept: list[Waiting] = []
        for group, found in by_group.items():
            for batch in (found[first : first + GIVEN_AT_ONCE_MAX] for first in range(0, len(found), GIVEN_AT_ONCE_MAX)):
                keeper = self._holders.keeper_of(group, holds=bool(self._queues.get(group)))
                if keeper is None or not await self._holders.give(keeper, batch):
                    kept += batch
        return kept

    async def _give_queues(self) -> None:
        """Give what waits here to the orchestrators that keep the queues of these groups."""
        for group, queue in list(self._queues.items()):
            if queue and self._holders.keeper_of(group, holds=True) is not None:
                entries = [queue.pop() for _ in range(len(queue))]
                for entry in entries:
                    self._forget(entry.run_id, entry.dispatch.task_id)
                for entry in await self._give(entries):
                    self._hold(entry)

    def _hold(self, entry: Waiting) -> None:
        dispatch = entry.dispatch
        queue = self._queues.setdefault(dispatch.group, FairQueue())
        is_full = sum(kept.bytes for kept in self._queues.values()) >= KEPT_BYTES_MAX and queue.waiting_of(entry.tenant) >= KEPT_OF_TENANT
        if is_full or _is_shadow(dispatch.group):
            entry = entry._replace(dispatch=dispatch._replace(message=None))
        queue.push(entry)
        self._runs[entry.run_id][dispatch.task_id] = dispatch.group
        self._more.set()
        self._holders.begin()

    def ended(self, run_id: RunId, task_id: TaskId) -> None:
        """Take note that a task is said to be done: its place is free. A hint; the next look at the bus knows better."""
        out = self._out.get(run_id)
        group = None if out is None else out.pop(task_id, None)
        if out is not None and not out:
            del self._out[run_id]
        if group is not None:
            self._windows[group].ended(task_id, self._clock.monotonic())
            if self._queues.get(group):
                self._more.set()

    def note(self, state: RunState) -> None:
        """Forget the messages of a run that nobody waits for any more, those that are out as well as those that wait."""
        for task_id in list(self._out.get(state.run_id, ())):
            if not _is_dispatched(state, task_id):
                self.ended(state.run_id, task_id)
        waiting = self._runs.get(state.run_id)
        if not waiting:
            return
        for task_id, group in list(waiting.items()):
            if not _is_dispatched(state, task_id):
                self._queues[group].drop(task_id)
                self._forget(state.run_id, task_id)

    def heard(self, group: str, worker: str, slots: int) -> None:
        """Take note of a worker that is there."""
        if worker not in self._workers.get(group, {}):  # names are never used again: those that fell silent would gather for ever
            self._workers[group] = self._heard_lately(group)
        self._workers[group][worker] = (slots, self._clock.monotonic())
        if self._queues.get(group):
            self._more.set()

    # ── what is known ──

    @property
    def waiting(self) -> int:
        """How many messages wait here."""
        return sum(map(len, self._queues.values()))

    def _what_waits(self) -> tuple[dict[str, int], tuple[str, ...]]:
        waiting = {group: queue for group, queue in self._queues.items() if queue}
        tenants: Counter[str] = Counter()
        for group, queue in waiting.items():
            tenants.update({"": len(queue)} if _is_shadow(group) else queue.tenants())
        return dict(tenants), tuple(waiting)

    def waiting_of(self, tenant: str) -> int:
        """Count the messages of a tenant that wait, but for shadows, here and as far as they say so with the other orchestrators."""
        return self._holders.waiting_of(tenant) + sum(queue.waiting_of(tenant) for group, queue in self._queues.items() if not _is_shadow(group))

    def has(self, run_id: RunId, task_id: TaskId) -> bool:
        """Say whether this process has seen to a message: it waits here, or was sent and nothing came of it yet."""
        return task_id in self._out.get(run_id, ()) or any(task_id in queue for queue in self._queues.values())

    def waits(self, task_id: TaskId, group: str) -> bool:
        """Say whether a message waits here for its turn."""
        return task_id in self._queues.get(group, ())

    async def held(self, task_ids: Collection[TaskId]) -> dict[TaskId, Held]:
        """Find out which of these messages wait for their turn, here or with another orchestrator that answers."""
        return self._held_here(task_ids) | await self._holders.held(task_ids)

    async def out(self) -> dict[str, int]:
        """Ask the bus how many tasks are with the agents of each group, or on their queue.

        Raises:
            Unavailable: the bus does not answer.
        """
        return _by_group(await self._bus.queued("WORK"))

    def _held_here(self, task_ids: Collection[TaskId]) -> dict[TaskId, Held]:
        is_exact = len(task_ids) <= PLACES_TOLD_MAX
        found: dict[TaskId, Held] = {}
        for group, queue in self._queues.items():
            for task_id in filter(queue.__contains__, task_ids):
                ahead = queue.ahead_of(task_id) if is_exact else len(queue) - 1
                found[task_id] = Held(group, ahead, self._windows[group].in_flight, self._size(group), self._most(group) is not None)
        return found

    def capacity(self, group: str) -> int:
        """Count the slots of the workers of a group that were heard lately."""
        return sum(self.workers(group).values())

    def workers(self, group: str) -> dict[str, int]:
        """Return the workers of a group that were heard lately, with their slots."""
        return {worker: slots for worker, (slots, _) in self._heard_lately(group).items()}

    def _heard_lately(self, group: str) -> dict[str, tuple[int, float]]:
        now_s = self._clock.monotonic()
        return {worker: (slots, heard_s) for worker, (slots, heard_s) in self._workers.get(group, {}).items() if now_s - heard_s < WORKER_SILENCE_S}

    def _size(self, group: str) -> int:
        now_s = self._clock.monotonic()
        return self._windows[group].size(self.capacity(group), all_heard=now_s >= self._all_heard_s, most=self._most(group))

    def _most(self, group: str) -> int | None:
        """Return the operator's limit; that of a kind holds as well for its work that needs a version."""
        return self._in_flight_max.get(group if _is_shadow(group) else group.partition(".")[0])

    def _room(self, group: str) -> int:
        return self._size(group) - self._windows[group].in_flight

    def _is_waiting_for_room(self) -> bool:
        """Say whether it is worth asking the bus again and again: not for a lane apart that nobody is there for. A worker that comes is heard."""
        return any(queue and ("." not in group or self.capacity(group)) for group, queue in self._queues.items())

    # ── what goes out ──

    async def _send(self, entry: Waiting) -> None:
        dispatch = entry.dispatch
        self._changed_s = self._clock.monotonic()
        self._windows[dispatch.group].sent(dispatch.task_id)
        self._out[entry.run_id][dispatch.task_id] = dispatch.group
        await self._publisher.publish(entry.run_id, dispatch, nonce=entry.nonce)

    async def _send_all(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            await self._send_waiting()
            while self._is_waiting_for_room():
                await self._give_queues()
                try:
                    await self._look()
                except OrchestrationError as error:
                    log.info("the bus does not say what is out: %s", error)
                await self._send_waiting()
                now_s = self._clock.monotonic()
                await self._send_until(now_s + min(max(LOOK_S, (now_s - self._changed_s) * LOOK_SHARE), LOOK_LONGEST_S))

    async def _send_until(self, until_s: float) -> None:
        """Fill every place that becomes free, until it is time to look again."""
        while self._is_waiting_for_room() and (wait_s := until_s - self._clock.monotonic()) > 0:
            try:
                async with asyncio.timeout(wait_s):
                    await self._more.wait()
            except TimeoutError:
                return
            self._more.clear()
            await self._send_waiting()

    async def _send_waiting(self) -> None:
        for group, queue in list(self._queues.items()):
            queue.fit(self.capacity(group))
            while queue and (room := self._room(group)) > 0:
                await self._send_next(queue, room)

    async def _send_next(self, queue: FairQueue, count: int) -> None:
        """Send so many of those that wait, at once: one whose message is read from the log holds up none behind it."""
        entries = [queue.pop() for _ in range(min(count, len(queue)))]
        for entry in entries:
            self._forget(entry.run_id, entry.dispatch.task_id)
        wanted = [entry for entry in entries if self._is_wanted(entry)]
        if wanted:
            self._starved.pop(wanted[0].dispatch.group, None)
            await asyncio.gather(*map(self._send, wanted))

    def _is_wanted(self, entry: Waiting) -> bool:
        assert self._folds is not None
        state, dispatch = self._folds.get(entry.run_id).state, entry.dispatch
        if state.status == "new":  # not known here; an agent that gets a task which is over leaves it alone
            return not self._folds.has_ended(entry.run_id)
        return _is_dispatched(state, dispatch.task_id)

    def _forget(self, run_id: RunId, task_id: TaskId) -> None:
        waiting = self._runs[run_id]
        waiting.pop(task_id, None)
        if not waiting:
            del self._runs[run_id]

    async def _look(self) -> None:
        """Ask the bus what is out, and see to it that this process is not always the one that comes too late.

        Raises:
            Unavailable: the bus does not answer.
        """
        own = {group: window.own() for group, window in self._windows.items()}
        queued = await self._bus.queued("WORK")
        now_s = self._clock.monotonic()
        others_send, self._sequence = queued.last_sequence > self._sequence, queued.last_sequence
        out = _by_group(queued)
        if others_send or out != self._out_last:
            self._changed_s, self._out_last = now_s, out
        for group, sent in own.items():
            gone = set(self._windows[group].seen(out[group], sent, now_s))
            if gone:
                self._out = defaultdict(dict, {run: left for run, tasks in self._out.items() if (left := {t: g for t, g in tasks.items() if t not in gone})})
        for group, queue in list(self._queues.items()):  # another one may come while one of them is sent
            if queue and self._room(group) <= 0 and others_send and not _is_shadow(group):
                self._starved[group] += 1
                if self._starved[group] >= STARVED_LOOKS and self._most(group) is None:
                    await self._send_next(queue, 1)


def _is_dispatched(state: RunState, task_id: TaskId) -> bool:
    task = current_task(state, task_id)
    return task is not None and task.phase == "dispatched"


def _is_shadow(group: str) -> bool:
    return group.endswith(f".{SHADOW_LANE}")


def _by_group(queued: Queued) -> Counter[str]:
    out: Counter[str] = Counter()
    for subject, count in queued.subjects.items():
        tokens = subject.split(".")
        out[worker_group(tokens[1], tokens[-1])] += count
    return out
