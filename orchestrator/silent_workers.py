"""Workers that died without a word: the end of their registration is written for them.

A worker that leaves in good order says so. One that is killed cannot, and whoever reads the log would take it to be there for ever. So who has
registered and not left, was not heard for long, and does not answer either, is recorded as stopped, with when it was last heard. One that
stood still and is there after all is recorded as registered again, by whoever hears it. Nothing is decided by any of this, and no worker is refused
anything: whoever wants to know who can work asks the bus.

A round costs one question to the log, about what was added since the last one. All orchestrators ask whoever is silent, and the first one writes it:
the version of the kind's stream, and an id that is derived from the fact before, let it be written once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from crewlog.events.bus import Bus
from crewlog.events.clock import Clock
from crewlog.events.store import ANY, AppendRequest, EventStore, Recorded, Write
from crewlog.orchestrator.handing_on import is_there
from crewlog.schemas.errors import ConflictError, ContractError, NotFound
from crewlog.schemas.ids import Stream, agent_stream, behind_event_id
from crewlog.schemas.system_events import AgentRegistered, AgentStopped

Fact = AgentRegistered | AgentStopped

LOOK_S: Final = 60.0
"""Longest pause between two rounds, in seconds."""
LOOKS_IN_GRACE: Final = 2
"""With little patience, as tests have it, there are so many rounds within it."""
ASKED_MAX: Final = 100
"""Workers that are asked in one round."""
LATEST: Final = 500
"""Registrations and ends of a kind that an orchestrator reads when it starts: a worker that so many came after is not missed when it dies."""
GONE_MAX: Final = 500
"""Workers without an answer that are listened for; one that stood still behind so many others is shown as gone until it registers."""

log = logging.getLogger(__name__)


class Worker(NamedTuple):
    """Which worker."""

    kind: str
    name: str


class Sign(msgspec.Struct):
    """What is known of a worker: the last fact about it, its registration, and when it was heard."""

    event_id: UUID
    registered: AgentRegistered
    at_s: float
    """When it was last heard, or this process began to listen; minus infinity for one that is gone, and was not heard since."""
    heard_us: int
    """The same in microseconds since 1970; the time of the fact while it was not heard."""


class Registrations:
    """Who has registered and not left, as far as the log was read, and who fell silent and may be heard again."""

    def __init__(self) -> None:
        self.there: dict[Worker, Sign] = {}
        self.gone: dict[Worker, Sign] = {}

    def fold(self, recorded: Recorded, event: Fact, now_s: float) -> None:
        """Take in a fact of an agent stream."""
        match event:
            case AgentRegistered():
                self.gone.pop(worker := Worker(event.kind, event.worker), None)
                self.there[worker] = Sign(recorded.event_id, event, now_s, recorded.occurred_us)
            case AgentStopped():
                known = self.there.pop(worker := Worker(event.kind, event.worker), None)
                known = self.gone.pop(worker, None) or known
                if known is not None and event.heard_us is not msgspec.UNSET:
                    self.gone[worker] = Sign(recorded.event_id, known.registered, -math.inf, event.heard_us)
                    while len(self.gone) > GONE_MAX:
                        del self.gone[next(iter(self.gone))]

    def heard(self, worker: Worker, now_s: float, now_us: int) -> None:
        """Take note of a worker that is there."""
        if (known := self.there.get(worker) or self.gone.get(worker)) is not None:
            known.at_s, known.heard_us = now_s, now_us

    def listen_anew(self, now_s: float) -> None:
        """Begin to be patient with everybody: this process may have missed what they said."""
        for known in self.there.values():
            known.at_s = now_s

    def silent(self, since_s: float) -> list[Worker]:
        """Return who was not heard since."""
        return [worker for worker, known in self.there.items() if known.at_s <= since_s]

    def otherwise(self, worker: Worker, *, answers: bool) -> Sign | None:
        """Return what is known of a worker if that is the other way round; who is gone, and was only thought to be heard, is listened for anew."""
        if answers:
            return self.gone.get(worker)
        if (known := self.gone.get(worker)) is not None:
            known.at_s = -math.inf
        return self.there.get(worker)

    def back(self) -> list[Worker]:
        """Return who is recorded as gone and was heard all the same."""
        return [worker for worker, known in self.gone.items() if known.at_s > -math.inf]


class SilentWorkers:
    """Looks after registrations, in the rounds of the sweep."""

    def __init__(self, store: EventStore, bus: Bus, clock: Clock, *, grace_s: float, on_fact: Callable[[Fact], None]) -> None:
        """Prepare.

        Args:
            grace_s: how long a worker may be silent before it is asked whether it is there, in seconds.
            on_fact: told each fact that is read, in the order of its kind's.
        """
        self._on_fact = on_fact
        self._store, self._bus, self._clock, self._grace_s = store, bus, clock, grace_s
        self._pause_s = min(LOOK_S, grace_s / LOOKS_IN_GRACE)
        self._due_s = clock.monotonic() + self._pause_s
        self._known = Registrations()
        self._versions: dict[Stream, int] = {}
        """Stream of a kind -> up to where it was read."""
        self._cut: set[Stream] = set()
        """Those that had more facts at first than were read."""

    def heard(self, kind: str, worker: str) -> None:
        """Take note of a worker's heartbeat."""
        self._known.heard(Worker(kind, worker), self._clock.monotonic(), self._clock.now_us())

    def listen_anew(self) -> None:
        """Begin to be patient with everybody: the connection to the bus was lost."""
        self._known.listen_anew(self._clock.monotonic())

    async def look(self, kinds: Iterable[str]) -> None:
        """Record who has died, and who is back; nothing while the next round is not due.

        Raises:
            Unavailable: the log or the bus cannot be reached.
        """
        now_s = self._clock.monotonic()
        if now_s < self._due_s:
            return
        self._due_s = now_s + self._pause_s
        await self._read(kinds)
        asked = list(islice((*self._known.back(), *self._known.silent(now_s - self._grace_s)), ASKED_MAX))
        if not asked:
            return
        answers = await asyncio.gather(*(is_there(self._bus, worker.name) for worker in asked))
        await self._bus.flush()  # who cannot reach the bus hears nobody, which says nothing about them
        for worker, answered in zip(asked, answers, strict=True):
            if answered:
                self.heard(*worker)
            if (known := self._known.otherwise(worker, answers=answered)) is not None:
                await self._record(worker, known, answers=answered)

    async def sign_off(self, worker: Worker) -> None:
        """Record that a worker has left in good order, because somebody says so; one that was taken for dead has its end already.

        Raises:
            NotFound: no such worker is registered.
            ContractError: it answers, so it has not left.
            Unavailable: the log or the bus cannot be reached.
        """
        await self._read([worker.kind])
        known = self._known.there.get(worker)
        if known is None and worker not in self._known.gone and agent_stream(worker.kind) not in self._cut:
            raise NotFound(f"{worker.kind} worker", worker.name)
        if await is_there(self._bus, worker.name):
            raise ContractError(f"{worker.kind} worker {worker.name} still answers, so it has not left; to have it leave: crewlog drain {worker.name}")
        if worker not in self._known.gone:
            event_id = self._clock.new_id() if known is None else behind_event_id(known.event_id)
            write = Write(agent_stream(worker.kind), (AgentStopped(*worker),), ANY)
            await self._store.append(AppendRequest((write,), (event_id,), self._clock.now_us()))

    async def _read(self, kinds: Iterable[str]) -> None:
        new = [stream for stream in map(agent_stream, kinds) if stream not in self._versions]
        found = [*(await self._store.read_last(new, LATEST) if new else ()), *await self._store.read_streams(self._versions)]
        self._versions = dict.fromkeys(new, 0) | self._versions
        for recorded in found:
            if recorded.version <= self._versions[recorded.stream]:
                continue  # two read at the same time
            if self._versions[recorded.stream] == 0 and recorded.version > 1:
                self._cut.add(recorded.stream)
            self._versions[recorded.stream] = recorded.version
            if isinstance(event := recorded.event(), AgentRegistered | AgentStopped):
                self._known.fold(recorded, event, self._clock.monotonic())
                self._on_fact(event)

    async def _record(self, worker: Worker, known: Sign, *, answers: bool) -> None:
        """Write down that a worker has died, or that it is back; when somebody else wrote first, the next round sees what."""
        event = known.registered if answers else AgentStopped(*worker, heard_us=known.heard_us)
        stream = agent_stream(worker.kind)
        write = Write(stream, (event,), self._versions[stream])
        with contextlib.suppress(ConflictError):
            await self._store.append(AppendRequest((write,), (behind_event_id(known.event_id),), self._clock.now_us()))
            log.warning("worker %s of kind %s %s", worker.name, worker.kind, "is there again" if answers else "is gone")
        await self._read(())
