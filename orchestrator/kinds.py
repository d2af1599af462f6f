"""The agent kinds there are: from the log, and from every registration on the bus.

Registrations are appended to `agent/<kind>`. Whenever one changes what is known of its kind, it goes into the directory stream as
well, which therefore stays short: reading it tells an orchestrator that starts all kinds there ever were.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from crewlog.events.bus import Bus
from crewlog.events.clock import Clock
from crewlog.events.store import ANY, AppendRequest, EventStore, Write
from crewlog.orchestrator.planning import Kinds, Offer
from crewlog.schemas.ids import Stream, agent_stream
from crewlog.schemas.system_events import AgentRegistered, AgentStopped, SystemEvent
from crewlog.schemas.text import shorten

DIRECTORY: Final = Stream("agent/@kinds")
"""No kind can have this name: `@` is not allowed in one."""

TEXT_CHARS_MAX: Final = 300
"""What a planner is told about one kind."""

BUILT_IN: Final[Kinds] = MappingProxyType(
    {
        "planner": Offer("Breaks a goal into steps for the other kinds and writes the final answer."),
        "research": Offer("Finds answers in documents and quotes them with file and line."),
        "code": Offer("Changes code in a workspace and runs its tests."),
        "data": Offer("Answers questions about tables with SQL and draws charts."),
        "communicate": Offer("Writes messages and sends them by mail or webhook."),
    }
)
"""Known before their first worker has registered: their tasks wait in the queue until one is there."""

log = logging.getLogger(__name__)


class KindDirectory:
    """What this process knows about kinds. Read by decisions through `offers`."""

    def __init__(self, store: EventStore, bus: Bus, clock: Clock, *, known: Kinds = BUILT_IN) -> None:
        self._store, self._bus, self._clock = store, bus, clock
        self._offers: dict[str, Offer] = dict(known)
        self._able: dict[str, set[str]] = {}
        """Kind -> workers heard of that can work."""
        self._recorded: dict[str, Offer] = {}
        """What the directory stream says, as far as it was read."""
        self._version = 0

    @property
    def offers(self) -> Mapping[str, Offer]:
        """All known kinds."""
        return self._offers

    async def start(self) -> None:
        """Read the directory and make sure that every kind has its queues."""
        await self.refresh()
        for kind in self._offers:
            await self._bus.ensure_kind(kind)

    async def refresh(self) -> bool:
        """Read what others have added to the directory; returns whether that changed anything."""
        before = dict(self._offers)
        for recorded in await self._store.read_streams({DIRECTORY: self._version}):
            self._version = recorded.version
            event = recorded.event()
            if isinstance(event, AgentRegistered):
                self._offers[event.kind] = self._recorded[event.kind] = _offer(event, event.unavailable)
        return self._offers != before

    def learn(self, event: AgentRegistered) -> None:
        """Take note of a worker that is up. A kind is unavailable only while none of the workers that were heard of can work; those that take no
        work but that of shadows say nothing about it."""
        if event.lane is not msgspec.UNSET:
            return
        able = self._able.setdefault(event.kind, set())
        (able.discard if event.unavailable else able.add)(event.worker)
        self._offers[event.kind] = _offer(event, "" if able else event.unavailable)

    async def register(self, event: AgentRegistered) -> None:
        """Record a worker that is up, and make sure that its kind has its queues.

        Raises:
            Unavailable: the log or the bus cannot be reached; the worker asks again.
        """
        await self._bus.ensure_kind(event.kind)
        await self.refresh()
        self.learn(event)
        offer = self._offers.get(event.kind)
        is_known = offer is None or self._recorded.get(event.kind) == offer or (event.unavailable and not offer.unavailable)
        await self._append(event, agent_stream(event.kind), *(() if is_known else (DIRECTORY,)))
        log.info("agent %s of kind %s registered%s", event.worker, event.kind, f" as unavailable: {event.unavailable}" if event.unavailable else "")

    async def stopped(self, event: AgentStopped) -> None:
        """Record a worker that left in good order. Its kind stays known: tasks wait for the next worker."""
        self._able.get(event.kind, set()).discard(event.worker)
        await self._append(event, agent_stream(event.kind))

    async def _append(self, event: SystemEvent, *streams: Stream) -> None:
        writes = [Write(stream, (event,), ANY) for stream in streams]
        await self._store.append(AppendRequest(writes, [self._clock.new_id() for _ in writes], self._clock.now_us()))


def _offer(event: AgentRegistered, unavailable: str) -> Offer:
    return Offer(shorten(event.description, TEXT_CHARS_MAX), shorten(unavailable, TEXT_CHARS_MAX))
