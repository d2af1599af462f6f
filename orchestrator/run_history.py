"""The recorded events of one run in the order of the log, and the texts they refer to: what every look at a past run starts from.

Events are numbered from 1 within their run: that number is their index. Positions are those of the whole log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final
from uuid import UUID

import msgspec

from crewlog.events.prefix import fork_of, read_history, successors
from crewlog.events.store import EventStore, Recorded
from crewlog.schemas.codec import Event, Unknown
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.ids import Hash, RunId, Stream, category, person_stream, run_stream
from crewlog.schemas.payload import Payload
from crewlog.schemas.run_events import RunForked, RunSubmitted
from crewlog.schemas.system_events import PersonErased

_REF: Final = b'"ref":'
_PLACE: Final = re.compile(r"(?P<name>.+?)(?:(?P<mark>[:@])(?P<number>[0-9]{1,18}))?")


class Place(msgspec.Struct, frozen=True):
    """A place in a run as a person writes it: `RUN:N` is the event with index N, `RUN@N` the one at position N, `RUN` alone its end."""

    name: str
    index: int | None = None
    position: int | None = None


class Unreadable(Recorded, frozen=True, gc=False):
    """An event whose data is not what its type says: it was changed behind the log's back, or damaged. It is shown, and nobody folds it."""

    error: str = ""

    def event(self) -> Unknown:
        """Return the data as it stands."""
        return Unknown(self.type, self.schema_version, self.data)


class RunHistory(msgspec.Struct, frozen=True, dict=True):
    """One run as recorded; a fork begins with the events that it shares. `texts` holds the blobs that were fetched, by their hash."""

    run_id: RunId
    events: tuple[Recorded, ...]
    texts: Mapping[Hash, str] = {}
    follows: Mapping[Stream, Stream] = {}
    """Shared stream -> the stream of this run that goes on from it."""

    @cached_property
    def streams(self) -> Mapping[Stream, tuple[Recorded, ...]]:
        """The streams of the run, each in its order; in front of the events of a forked one stand those that it shares."""
        found: dict[Stream, list[Recorded]] = {}
        for recorded in self.events:
            found.setdefault(self.stream_of(recorded.stream), []).append(recorded)
        return {stream: tuple(sorted(events, key=lambda r: r.position)) for stream, events in found.items()}

    @cached_property
    def decoded(self) -> tuple[Event | Unknown, ...]:
        """The data of all events, decoded once."""
        return tuple(recorded.event() for recorded in self.events)

    @cached_property
    def first_own(self) -> int:
        """Index of the first event that a fork does not share; 1 for any other run."""
        return next((n for n, recorded in enumerate(self.events, 1) if recorded.stream == run_stream(self.run_id)), 1)

    @property
    def forked(self) -> RunForked | None:
        """How the run began, when it is a fork."""
        return fork_of(self.events[self.first_own - 1 :])

    @property
    def erased_us(self) -> int:
        """When its person's data was erased; 0 when it was not. What is left folds, but nothing can be derived from it again."""
        return max((recorded.erased_us for recorded in self.events), default=0)

    def stream_of(self, stream: Stream) -> Stream:
        """Return the stream that this one is a part of: itself, or the fork that shares it."""
        return self.follows.get(stream, stream)

    def in_front(self, recorded: Recorded) -> list[Recorded]:
        """Return what stands in front of an event in its stream."""
        return [other for other in self.streams[self.stream_of(recorded.stream)] if other.position < recorded.position]

    @property
    def run_events(self) -> tuple[Recorded, ...]:
        """The run stream."""
        return self.streams.get(run_stream(self.run_id), ())

    @property
    def task_streams(self) -> list[Stream]:
        """The streams of its tasks in the order they were opened."""
        return [stream for stream in self.streams if category(stream) == "task"]

    def read(self, payload: Payload) -> str:
        """Return the text of a payload.

        Raises:
            ContractError: it stands in a blob that is not in the log.
        """
        if payload.inline is not None:
            return payload.inline
        text = self.texts.get(Hash(str(payload.ref)))
        if text is None:
            raise ContractError(f"run {self.run_id} refers to blob {payload.ref} of {payload.size} bytes, which is not there")
        return text

    def shown(self, payload: Payload) -> str:
        """Return the text of a payload, or say that it is not there."""
        try:
            return self.read(payload)
        except ContractError:
            return f"({payload.size} bytes that are not in the log: {payload.ref})"

    def index_of(self, place: Place) -> int:
        """Return the index that a place means; a position between two events means the one before it.

        Raises:
            NotFound: the run has no such event.
        """
        last = len(self.events)
        if place.position is not None:
            index = sum(recorded.position <= place.position for recorded in self.events)
            given = f"{place.name}@{place.position}"
        else:
            index = last if place.index is None else place.index
            given = f"{place.name}:{index}"
        if not 1 <= index <= last:
            raise NotFound(f"event (run {self.run_id} has events 1 to {last}, positions {self.events[0].position} to {self.events[-1].position})", given)
        return index

    def until(self, index: int) -> RunHistory:
        """Return the run as it was behind the event with this index."""
        return RunHistory(self.run_id, self.events[:index], self.texts, self.follows)


def parse_place(text: str) -> Place:
    """Read `RUN`, `RUN:INDEX` or `RUN@POSITION`. `@last` is a run's name."""
    found = _PLACE.fullmatch(text)
    if found is None or found["number"] is None:
        return Place(text)
    number = int(found["number"])
    return Place(found["name"], index=number) if found["mark"] == ":" else Place(found["name"], position=number)


async def load_history(store: EventStore, run_id: RunId) -> RunHistory:
    """Read the events of a run, those that a fork shares among them, without the texts they refer to.

    Raises:
        NotFound: the log has no such run.
    """
    events = await read_history(store, run_id)
    if not events:
        raise NotFound("run", str(run_id))
    return RunHistory(run_id, tuple(events), follows=successors(events))


async def load_shown(store: EventStore, run_id: RunId) -> RunHistory:
    """Read the events of a run to look at them: what cannot be read hides none of the others.

    Raises:
        NotFound: the log has no such run.
    """
    return shown(await load_history(store, run_id))


def shown(history: RunHistory) -> RunHistory:
    """Return a run in which events that cannot be read stand as they are."""
    events = tuple(as_shown(history.events))
    return history if events == history.events else RunHistory(history.run_id, events, history.texts, history.follows)


def as_shown(events: Iterable[Recorded]) -> Iterator[Recorded]:
    """Pass events on; those that cannot be read as `Unreadable`."""
    for recorded in events:
        try:
            recorded.event()
        except ContractError as error:
            yield Unreadable(**msgspec.structs.asdict(recorded), error=str(error.__cause__ or error))
        else:
            yield recorded


def refuse_erased(history: RunHistory, what: str) -> None:
    """Refuse something that needs what was said in a run.

    Args:
        what: what cannot be done with it, such as `forked`.

    Raises:
        ContractError: the data of its person was erased.
    """
    if history.erased_us:
        raise ContractError(f"run {history.run_id} cannot be {what}: {erased_text(history.erased_us)}")


def erased_text(erased_us: int) -> str:
    """Say when a person's data was erased, to the second."""
    return f"its person's data was erased on {datetime.fromtimestamp(erased_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"


async def told_erased(store: EventStore, history: RunHistory) -> str | None:
    """Say when the data of a run's person was erased, at whose order and why, as far as this log knows; None when it was not."""
    if not history.erased_us:
        return None
    begun = next(event for event in reversed(history.decoded) if isinstance(event, RunSubmitted | RunForked))
    told = [recorded.event() for recorded in await store.read_streams({person_stream(begun.tenant, begun.user): 0})]
    fact = next((event for event in told if isinstance(event, PersonErased) and history.run_id in event.runs), None)
    ordered = "" if fact is None else f", ordered by {fact.actor}" + (f": {fact.reason}" if fact.reason else "")
    return f"{erased_text(history.erased_us)}{ordered}; [erased] stands where something was said or made"


async def with_texts(store: EventStore, history: RunHistory, payloads: Iterable[Payload]) -> RunHistory:
    """Fetch the texts of these payloads; what the log does not have stays out."""
    wanted = sorted({p.ref for p in payloads if p.ref is not None and p.ref not in history.texts})
    blobs = await store.get_blobs(wanted) if wanted else {}
    return RunHistory(history.run_id, history.events, {**history.texts, **{ref: data.decode() for ref, data in blobs.items()}}, history.follows)


def payloads_in(value: Any) -> list[Payload]:
    """List the payloads anywhere inside an event."""
    if isinstance(value, Payload):
        return [value]
    if isinstance(value, msgspec.Struct):
        return [p for name in value.__struct_fields__ for p in payloads_in(getattr(value, name))]
    if isinstance(value, tuple):
        return [p for item in value for p in payloads_in(item)]
    return []


def all_payloads(events: Iterable[Recorded]) -> list[Payload]:
    """List every payload of these events that stands in a blob."""
    # few events have one, and looking for its key in their bytes costs a hundredth of looking through the values
    return [p for recorded in events if _REF in recorded.data for p in payloads_in(recorded.event()) if p.ref is not None]


def event_id_of(text: str) -> UUID | None:
    """Return the event id that a text is, or None when it is something else."""
    try:
        return UUID(text)
    except ValueError:
        return None
