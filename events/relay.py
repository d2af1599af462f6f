"""Publish every fact of the log, in its order and once, to `events.<tenant>.<run>.<type>`.

The stream EVENTS is a copy for followers, never a source. Where to go on is read from the copy itself: its last message says which
event it is, so no checkpoint can disagree with it. Every message names the sequence it must follow (`Nats-Expected-Last-Sequence`);
the server refuses it otherwise. That alone gives order, exactly-once and fencing: of a batch only the last message is confirmed, and
when its sequence is right, so are all before it. A relay that was replaced is refused at its first message. So no message has an id for
the server to remember: a fifth of what storing it costs.

What can happen to the copy:
- NATS restarts: what was not stored is published again from the tail on.
- EVENTS was deleted, or its last message is no event of the log (the database was replaced): it is made anew, empty. Events younger than the stream's own
  age limit (7 days) are published again, under new sequences; older ones would be removed at once and are left out.
- A run was archived: its copies are removed with the events themselves. A relay that dies in between leaves them to the age limit.
- EVENTS was purged: a running relay goes on; a fresh one publishes the last 7 days again.
"""

from __future__ import annotations

import asyncio
import logging
from base64 import b64decode
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, NoReturn
from uuid import UUID

import msgspec

from crewlog.events import faults, jetstream
from crewlog.events.bus import LAST_SEQUENCE, Bus, Message
from crewlog.events.clock import Clock
from crewlog.events.jetstream import AS_USUAL, Provision
from crewlog.events.shared_pages import PageReader
from crewlog.events.store import EventStore, Recorded
from crewlog.schemas import subjects
from crewlog.schemas.codec import Event, Unknown
from crewlog.schemas.errors import ContractError, OrchestrationError
from crewlog.schemas.ids import TOKEN, RunId, run_stream
from crewlog.schemas.run_events import RunForked, RunSubmitted
from crewlog.schemas.system_events import RunArchived

BATCH: Final = 512
"""Most events that are published before one is confirmed."""
POLL_S: Final = 5.0
"""How long to wait for a poke before looking all the same, in seconds."""
LINGER_S: Final = 0.1
"""Pause after a batch that emptied the log: under load events are then published by the dozen, which costs a fraction of one by one."""
CONFIRM_TIMEOUT_S: Final = 10.0
RETRY_FIRST_S: Final = 0.1
RETRY_LONGEST_S: Final = 5.0
LOG_BEHIND_S: Final = 30.0
"""A log that ends before the stream for this long is another one. Shorter than that, an append under way may hide its end."""
TENANTS_MAX: Final = 10_000
_NO_RUN: Final = subjects.events(subjects.NO_RUN, subjects.NO_RUN, "")
_BEGINNINGS: Final = frozenset({RunSubmitted.__name__, RunForked.__name__})
_ARCHIVED: Final = RunArchived.__name__
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_log = logging.getLogger(__name__)
_encode: Final = msgspec.json.Encoder().encode


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """One fact as followers get it, as JSON. `data` is the event as the log holds it. Ids are text: made by the driver's own ids, which costs a fifth."""

    event_id: str
    type: str
    schema_version: int
    stream: str
    version: int
    position: int
    run_id: str | None
    task_id: str | None
    occurred_at: datetime
    causation_id: str | None
    actor: str
    data: msgspec.Raw


class Tail(NamedTuple):
    """Where the copy ends: the sequence of its last message, and the log position up to which it is complete."""

    sequence: int
    position: int


_Outgoing = tuple[str, bytes]
"""Subject and data."""


class _Last(msgspec.Struct, frozen=True):
    """The last message of the copy: which event it is."""

    event_id: UUID
    position: int


_read_last: Final = msgspec.json.Decoder(_Last).decode


class OutOfStep(OrchestrationError):
    """The copy does not end where this relay thought."""

    code = "out_of_step"


class Relay:
    """Keeps EVENTS a copy of the log. One runs at a time; the caller sees to that, and a second one does no harm but double work."""

    def __init__(self, store: EventStore, bus: Bus, clock: Clock, *, pages: PageReader | None = None, provision: Provision = AS_USUAL) -> None:
        """Prepare; `run` does the work.

        Args:
            pages: reads the log in place of `store`, for a process with several followers.
            provision: how EVENTS is made.
        """
        self._store = store
        self._pages = pages or store
        self._bus = bus
        self._provision = provision
        self._clock = clock
        self._prefixes: dict[RunId, str] = {}
        """Run -> what its events' subjects begin with."""
        self._poked = asyncio.Event()
        self._tail = Tail(0, 0)
        self._behind_since: float | None = None

    @property
    def position(self) -> int:
        """Log position up to which everything is published."""
        return self._tail.position

    async def run(self) -> None:
        """Relay until cancelled. Trouble with either server is waited out."""
        subscription = await self._bus.subscribe(subjects.POKE, self._on_poke)
        retry_s = RETRY_FIRST_S
        try:
            while True:
                try:
                    await self._find_tail()
                    while True:
                        await self._step()
                        retry_s = RETRY_FIRST_S
                except (OrchestrationError, TimeoutError) as error:
                    level = logging.INFO if isinstance(error, OutOfStep) else logging.WARNING
                    _log.log(level, "relay at position %d pauses %g s: %s", self._tail.position, retry_s, error)
                    await asyncio.sleep(retry_s)
                    retry_s = min(retry_s * 2, RETRY_LONGEST_S)
        finally:
            await subscription.stop()

    async def _on_poke(self, _: Message) -> None:
        self._poked.set()

    async def _step(self) -> None:
        """Publish one batch, or wait until there may be one."""
        self._poked.clear()
        page = await self._pages.read_all(self._tail.position, BATCH)
        if not page.events:
            await self._wait()
            return
        wanted = self._wanted(page.events)
        await self._learn_runs(wanted)
        outgoing = [self._message(event) for event in wanted]
        if faults.hook is not None:
            faults.hook("before_relay_publish")
        sequence = await self._publish(outgoing, page.events[-1].position)
        if faults.hook is not None:
            faults.hook("after_relay_publish")
        await self._remove_archived(page.events, wanted)
        self._tail = Tail(sequence, page.events[-1].position)
        if len(page.events) < BATCH:
            await asyncio.sleep(LINGER_S)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(POLL_S):
                await self._poked.wait()
        except TimeoutError:
            return  # a poke may have been lost: look again

    # ── publishing ──

    async def _publish(self, outgoing: Sequence[_Outgoing], position: int) -> int:
        """Publish a batch up to a position and have its last message confirmed; returns the sequence it got."""
        sequence = self._tail.sequence
        if not outgoing:
            return sequence
        *before, last = outgoing
        if before:
            await self._bus.publish_behind(sequence, before)
            sequence += len(before)
        stored = await self._confirmed(last, sequence, position)
        if stored != sequence + 1:
            raise OutOfStep(f"the batch up to position {position} ended at message {stored} of EVENTS, expected {sequence + 1}")
        return stored

    async def _confirmed(self, message: _Outgoing, sequence: int, position: int) -> int:
        subject, data = message
        reply = await self._bus.request(subject, data, timeout_s=CONFIRM_TIMEOUT_S, headers={LAST_SEQUENCE: str(sequence)})
        try:
            answer = jetstream.decode_reply(subject, reply.data)
        except jetstream.ApiError as error:
            if error.err_code == jetstream.WRONG_LAST_SEQUENCE:
                raise OutOfStep(f"the batch up to position {position} was to end behind message {sequence} of EVENTS: {error.description}") from None
            raise
        return int(answer["seq"])

    async def _remove_archived(self, events: Sequence[Recorded], published: Sequence[Recorded]) -> None:
        """Remove the copies of runs of which these events say that they went to files, up to that place: a run may come back behind it."""
        for recorded in events:
            if recorded.type == _ARCHIVED and isinstance(event := _read(recorded), RunArchived):
                behind = self._tail.sequence + sum(message.position <= recorded.position for message in published)
                tenant = event.tenant if TOKEN.fullmatch(event.tenant) else "invalid"
                await jetstream.api(self._bus, "STREAM.PURGE.EVENTS", {"filter": subjects.events(tenant, event.run_id, ">"), "seq": behind + 1})

    # ── where to go on ──

    async def _find_tail(self) -> None:
        """Read from the stream where it ends; make the stream when it is not there."""
        await jetstream.ensure_stream(self._bus, jetstream.EVENTS, provision=self._provision)
        sequence = int((await jetstream.api(self._bus, "STREAM.INFO.EVENTS"))["state"]["last_seq"])
        last = await self._last_message()
        if last is not None:
            await self._check_same_log(last)
        self._tail = Tail(sequence, last.position if last else 0)
        _log.info("relay goes on behind position %d, message %d of EVENTS", self._tail.position, sequence)

    async def _last_message(self) -> _Last | None:
        try:
            answer = await jetstream.api(self._bus, "STREAM.MSG.GET.EVENTS", {"last_by_subj": jetstream.EVENTS.subjects})
        except jetstream.ApiError as error:
            if error.err_code == jetstream.MESSAGE_NOT_FOUND:
                return None
            raise
        try:
            return _read_last(b64decode(answer["message"].get("data", "")))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            await self._start_over("its last message was not published by a relay")

    async def _check_same_log(self, last: _Last) -> None:
        page = await self._pages.read_all(last.position - 1, 1)
        if page.events and (page.events[0].event_id, page.events[0].position) != (last.event_id, last.position):
            await self._start_over(f"event {last.event_id} at position {last.position} is not in this log")
        if page.events:
            self._behind_since = None
            return
        now = self._clock.monotonic()
        self._behind_since = now if self._behind_since is None else self._behind_since
        if now - self._behind_since >= LOG_BEHIND_S:
            self._behind_since = None
            await self._start_over(f"the log ends at position {page.high_water}, the stream at {last.position}")
        raise OutOfStep(f"the log ends at position {page.high_water}, before the stream at {last.position}")

    async def _start_over(self, why: str) -> NoReturn:
        _log.error("EVENTS does not fit the log and is filled anew: %s", why)
        await jetstream.api(self._bus, "STREAM.PURGE.EVENTS")
        raise OutOfStep(f"EVENTS was purged: {why}")

    # ── what is published ──

    def _wanted(self, events: Sequence[Recorded]) -> Sequence[Recorded]:
        """Leave out what the stream would remove at once for its age."""
        oldest_us = self._clock.now_us() - jetstream.EVENTS.age_max_s * 1_000_000
        return [event for event in events if event.occurred_us >= oldest_us]

    async def _learn_runs(self, events: Sequence[Recorded]) -> None:
        """Know the tenant of every run that has one among these events."""
        while len(self._prefixes) > TENANTS_MAX:  # whoever is forgotten is looked up again
            del self._prefixes[next(iter(self._prefixes))]
        for event in events:
            if event.type in _BEGINNINGS:
                self._learn_run(event)
        unknown = {run_id for event in events if (run_id := event.run_id) is not None and run_id not in self._prefixes}
        if unknown:
            for event in await self._store.read_streams({run_stream(run_id): 0 for run_id in unknown}, types=_BEGINNINGS):
                self._learn_run(event)

    def _learn_run(self, recorded: Recorded) -> None:
        event = _read(recorded)
        if isinstance(event, RunSubmitted | RunForked) and recorded.run_id is not None:
            tenant = event.tenant if TOKEN.fullmatch(event.tenant) else "invalid"
            self._prefixes[recorded.run_id] = subjects.events(tenant, recorded.run_id, "")

    def _message(self, event: Recorded) -> _Outgoing:
        run_id = event.run_id
        prefix = _NO_RUN if run_id is None else self._prefixes.get(run_id) or subjects.events(subjects.NO_RUN, run_id, "")
        return prefix + event.type, _encode(envelope_of(event))


def _read(recorded: Recorded) -> Event | Unknown | None:
    """Decode an event; None when it is not what its type says: it is published all the same, as of a run of no tenant, and stops no other."""
    try:
        return recorded.event()
    except ContractError as error:
        _log.warning("nobody can read %s", error)
        return None


def envelope_of(event: Recorded) -> Envelope:
    """Return what followers get of an event."""
    run_id, task_id, causation_id = event.run_id, event.task_id, event.causation_id
    return Envelope(
        str(event.event_id),
        event.type,
        event.schema_version,
        event.stream,
        event.version,
        event.position,
        None if run_id is None else str(run_id),
        None if task_id is None else str(task_id),
        _EPOCH + timedelta(0, 0, event.occurred_us),
        None if causation_id is None else str(causation_id),
        event.actor,
        msgspec.Raw(event.data),
    )
