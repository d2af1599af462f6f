"""The agent kinds there are: from the log, and from every registration on the bus.

Registrations are appended to `agent/<kind>`. Whenever one changes what is known of its kind, or is the first of its version, it goes into
the directory stream as well, which therefore stays short: reading it tells an orchestrator that starts all kinds and versions there ever were.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from crewlog.events.bus import Bus
from crewlog.events.clock import Clock
from crewlog.events.store import ANY, AppendRequest, EventStore, Write
from crewlog.orchestrator.planning import Kinds, Offer
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Stream, agent_stream
from crewlog.schemas.subjects import version_lane
from crewlog.schemas.system_events import AgentRegistered, AgentStopped
from crewlog.schemas.text import shorten
from crewlog.schemas.trial import named_versions

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
        self._lacking: dict[str, dict[str, str]] = {}
        """Kind -> workers heard of that have not left -> what they lack, empty for those that can work."""
        self._recorded: dict[str, Offer] = {}
        """What the directory stream says, as far as it was read."""
        self._versions: dict[str, list[str]] = {}
        """Kind -> the versions that the directory stream names."""
        self._lanes: dict[str, set[str]] = {}
        """Kind -> the lanes that workers heard of serve besides the usual ones."""
        self._version = 0

    @property
    def offers(self) -> Mapping[str, Offer]:
        """All known kinds."""
        return self._offers

    def queues(self) -> dict[str, set[str]]:
        """Return every kind, with the lanes that it has for work that needs one of its versions."""
        return {kind: {*map(version_lane, self._versions.get(kind, ())), *self._lanes.get(kind, ())} for kind in self._offers}

    async def start(self) -> None:
        """Read the directory and make sure that every kind has its queues."""
        await self.refresh()
        for kind, lanes in self.queues().items():
            await self._bus.ensure_kind(kind, lanes=lanes)

    async def refresh(self) -> bool:
        """Read what others have added to the directory; returns whether that changed anything."""
        before = dict(self._offers)
        for recorded in await self._store.read_streams({DIRECTORY: self._version}):
            self._version = recorded.version
            event = recorded.event()
            if isinstance(event, AgentRegistered):
                self._offers[event.kind] = self._recorded[event.kind] = _offer(event, event.unavailable)
                _note_version(self._versions, event)
        return self._offers != before

    def learn(self, event: AgentRegistered) -> None:
        """Take note of a worker that is up. A kind is unavailable only while none of the workers that were heard of can work; those that take no
        work but that of shadows say nothing about it."""
        if event.lane is not msgspec.UNSET:
            return
        if (lane := lane_beside(event)) is not None:
            self._lanes.setdefault(event.kind, set()).add(lane)
        lacking = self._lacking.setdefault(event.kind, {})
        lacking[event.worker] = event.unavailable
        self._offers[event.kind] = _offer(event, event.unavailable if all(lacking.values()) else "")

    def follow(self, event: AgentRegistered | AgentStopped) -> None:
        """Take note of what the log says of a worker, that it has left or died as well. While only such are there that cannot work, neither can their
        kind; once nobody is there it stays as it was, and tasks wait for the next worker."""
        if isinstance(event, AgentRegistered):
            self.learn(event)
            return
        lacking = self._lacking.get(event.kind, {})
        if lacking.pop(event.worker, None) is not None and lacking and all(lacking.values()):
            self._offers[event.kind] = self._offers[event.kind]._replace(unavailable=_told(next(iter(lacking.values()))))

    async def register(self, event: AgentRegistered) -> None:
        """Record a worker that is up, and make sure that its kind has its queues.

        Raises:
            Unavailable: the log or the bus cannot be reached; the worker asks again.
        """
        await self._bus.ensure_kind(event.kind, lanes=() if (lane := lane_beside(event)) is None else (lane,))
        await self.refresh()
        self.learn(event)
        offer = self._offers.get(event.kind)
        is_same = self._recorded.get(event.kind) == offer and (lane is None or event.version in self._versions.get(event.kind, ()))
        is_known = offer is None or is_same or (event.unavailable and not offer.unavailable)
        writes = [Write(stream, (event,), ANY) for stream in (agent_stream(event.kind), *(() if is_known else (DIRECTORY,)))]
        await self._store.append(AppendRequest(writes, [self._clock.new_id() for _ in writes], self._clock.now_us()))
        log.info("agent %s of kind %s registered%s", event.worker, event.kind, f" as unavailable: {event.unavailable}" if event.unavailable else "")


async def known_versions(store: EventStore) -> dict[str, list[str]]:
    """Read which versions of each kind have been there, the latest one last.

    Raises:
        Unavailable: the log cannot be reached.
    """
    versions: dict[str, list[str]] = {}
    for recorded in await store.read_streams({DIRECTORY: 0}):
        if isinstance(event := recorded.event(), AgentRegistered):
            _note_version(versions, event)
    return versions


async def refuse_unknown(store: EventStore, kinds: Iterable[str], *, what: str) -> None:
    """Refuse to go on with something that is said of agent kinds which there are none of.

    Args:
        kinds: those that are named; `*` stands for all that are not.
        what: what is said of them, such as `a prompt`.

    Raises:
        ContractError: one of them is none; with those that there are.
        Unavailable: the log cannot be reached.
    """
    if not (named := set(kinds) - {"*"}):
        return
    there = {*BUILT_IN, *[e.kind for recorded in await store.read_streams({DIRECTORY: 0}) if isinstance(e := recorded.event(), AgentRegistered)]}
    if unknown := sorted(named - there):
        raise ContractError(f"{what} is named for kind {', '.join(unknown)}, which no agent has; there are {', '.join(sorted(there))}, and * for all others")


def versions_meant(text: str, known: Mapping[str, Sequence[str]]) -> str:
    """Say of which kinds versions are wanted that somebody names: `KIND=VERSION` with commas. One without a kind is wanted of the kinds that had it.

    Args:
        text: see `named_versions`.
        known: kind -> versions that have been there.

    Raises:
        ContractError: no kind ever had a version that is named without one.
    """
    versions = named_versions(text)
    if (version := versions.pop("*", None)) is not None:
        kinds = [kind for kind, had in known.items() if version in had and kind not in versions]
        if not kinds:
            had = "; ".join(f"{kind} {', '.join(had)}" for kind, had in sorted(known.items())) or "none"
            told = f"no agent has been there in version {version!r}; versions known: {had}. Start one, or name the kind that is to wait for it: KIND={version}"
            raise ContractError(told)
        versions |= dict.fromkeys(kinds, version)
    return ",".join(f"{kind}={version}" for kind, version in sorted(versions.items()))


def lane_beside(event: AgentRegistered) -> str | None:
    """Return the lane that a worker serves besides the usual ones: that of its version. None for one that takes the work of shadows or none."""
    return None if event.unavailable or event.lane is not msgspec.UNSET else version_lane(event.version)


def _note_version(versions: dict[str, list[str]], event: AgentRegistered) -> None:
    if lane_beside(event) is not None and event.version not in (had := versions.setdefault(event.kind, [])):
        had.append(event.version)


def _offer(event: AgentRegistered, unavailable: str) -> Offer:
    return Offer(_told(event.description), _told(unavailable))


def _told(text: str) -> str:
    return shorten(text, TEXT_CHARS_MAX)
