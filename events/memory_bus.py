"""The bus inside one process, for tests and experiments: same contract, same streams and consumers, no server.

Every `MemoryBus` made from the same broker sees the others' messages, as connections to one server do.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Final

import msgspec

from crewlog.events import jetstream
from crewlog.events.bus import LAST_SEQUENCE, DeliveryHandler, Handler, Kept, Message, Queued
from crewlog.events.clock import Clock, SystemClock
from crewlog.events.jetstream import ConsumerSpec, StreamSpec
from crewlog.events.lanes import in_turn
from crewlog.events.letters import dead_letters
from crewlog.events.slots import Slots
from crewlog.schemas import subjects
from crewlog.schemas.errors import LimitExceeded, Unavailable

MESSAGE_BYTES_MAX: Final = 1024 * 1024

_log = logging.getLogger(__name__)
_serial = attrgetter("serial")
_ANY: Final = "*"


@lru_cache(maxsize=4096)
def matches(pattern: str, subject: str) -> bool:
    """Tell whether a subject fits a NATS pattern: `*` is one token, a last `>` is one or more.

    >>> matches("events.*.>", "events.default.r1.RunCompleted"), matches("wake.>", "wake")
    (True, False)
    """
    wanted, got = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(got) >= len(wanted) and _fits(wanted[:-1], got)
    return len(got) == len(wanted) and _fits(wanted, got)


def _fits(wanted: list[str], got: list[str]) -> bool:
    return all(token in {"*", part} for token, part in zip(wanted, got, strict=False))


@lru_cache(maxsize=4096)
def _stream_name(subject: str) -> str | None:
    return next((spec.name for spec in jetstream.STREAMS.values() if matches(spec.subjects, subject)), None)


def _first_token(subject: str) -> str:
    first = subject.partition(".")[0]
    return _ANY if first == ">" else first


class _Stored:
    """A message in a stream."""

    def __init__(self, message: Message, sequence: int, kept_us: int) -> None:
        self.subject, self.data, self.headers, self.sequence, self.kept_us = message.subject, message.data, message.headers, sequence, kept_us
        self.deliveries = 0
        self.in_flight = False
        self.is_done = False
        """Its consumer has finished it, though the stream keeps it: none of the streams has two consumers for a subject."""


class _Stream:
    def __init__(self, spec: StreamSpec) -> None:
        self.spec = spec
        self.messages: dict[int, _Stored] = {}
        self.last_sequence = 0
        self.known_ids: dict[str, int] = {}


class MemoryBroker:
    """What a NATS server would hold: subscriptions, streams, consumers."""

    def __init__(self, clock: Clock | None = None) -> None:
        """Begin without messages; `clock` says when messages are taken."""
        self._clock = clock or SystemClock()
        self._streams = {spec.name: _Stream(spec) for spec in jetstream.STREAMS.values()}
        self._consumers: dict[tuple[str, str], ConsumerSpec] = {(spec.stream, spec.name): spec for spec in (jetstream.INTAKE, jetstream.LETTERS)}
        self._pulling: list[MemoryConsuming] = []
        self._subscriptions: dict[str, list[MemorySubscription]] = {}
        """By subject or pattern, those that came first in front."""
        self._patterns: dict[str, list[str]] = {}
        """First token -> subjects of subscriptions that stand for more than one; under `_ANY` those whose first token is a wildcard."""
        self._turn = itertools.count()
        self._inboxes, self._serials = itertools.count(1), itertools.count()

    def inbox(self) -> str:
        """Return a fresh subject for answers."""
        return f"_INBOX.{next(self._inboxes)}"

    def messages(self, stream: str) -> list[Message]:
        """Return what a stream holds, in order: what a test looks at."""
        return [Message(m.subject, m.data, m.headers) for m in self._streams[stream].messages.values()]

    def publish(self, message: Message) -> int:
        """Hand a message to its subscribers and its stream; returns how many took it."""
        taken = self._notify(message)
        if self._stream_of(message.subject) is not None:
            sequence, stream = self.store(message, message.headers.get("Nats-Msg-Id"))
            if message.reply:
                self._notify(Message(message.reply, msgspec.json.encode({"stream": stream, "seq": sequence}), {}))
            taken += 1
        return taken

    def enqueue(self, message: Message, message_id: str) -> int:
        """Put a message into its stream, and hand it to core subscribers as well; returns its sequence."""
        sequence, _ = self.store(message, message_id)
        self._notify(message)
        return sequence

    def lose(self, stream: str) -> None:
        """Forget what a stream holds and remembers, as a server that starts again does with one that it keeps in memory."""
        self._streams[stream].messages.clear()
        self._streams[stream].known_ids.clear()

    def store(self, message: Message, message_id: str | None) -> tuple[int, str]:
        """Put a message into the stream that takes its subject; returns its sequence and the stream's name."""
        stream = self._stream_of(message.subject)
        if stream is None:
            raise Unavailable(f"enqueue to {message.subject}: no stream takes this subject")
        spec, size = stream.spec, len(message.data)
        if spec.message_bytes_max >= 0 and size > spec.message_bytes_max:
            raise LimitExceeded(f"{spec.name}.message_bytes_max", used=size, limit_max=spec.message_bytes_max)
        if message_id is not None and message_id in stream.known_ids:
            return stream.known_ids[message_id], spec.name
        stream.last_sequence += 1
        stream.messages[stream.last_sequence] = _Stored(message, stream.last_sequence, self._clock.now_us())
        if message_id is not None:
            stream.known_ids[message_id] = stream.last_sequence
        self.hand_out()
        return stream.last_sequence, spec.name

    def add_consumers(self, kind: str, lanes: Collection[str] = ()) -> None:
        """Create the work consumers of a kind: for the lanes that every kind has, and for these."""
        for lane in (*subjects.QUEUES, *lanes):
            spec = jetstream.work_consumer(kind, lane)
            self._consumers[spec.stream, spec.name] = spec
        self.hand_out()

    def backlog(self, stream: str, consumer: str) -> int:
        """Count what a consumer has not finished."""
        spec = self._consumers.get((stream, consumer))
        return 0 if spec is None else sum(matches(spec.filter, m.subject) and not m.is_done for m in self._streams[stream].messages.values())

    def waiting(self, stream: str) -> int:
        """Count what a stream has that nobody was handed yet."""
        return sum(not m.in_flight and not m.is_done for m in self._streams[stream].messages.values())

    def queued(self, stream: str) -> Queued:
        """Count what a stream keeps, by subject."""
        found = self._streams[stream]
        return Queued(found.last_sequence, Counter(m.subject for m in found.messages.values() if not m.is_done))

    def subscribe(self, subscription: MemorySubscription) -> None:
        """Add a core subscription."""
        subscription.serial = next(self._serials)
        fellows = self._subscriptions.setdefault(subscription.subject, [])
        if not fellows and subscription.is_pattern:
            self._patterns.setdefault(_first_token(subscription.subject), []).append(subscription.subject)
        fellows.append(subscription)

    def unsubscribe(self, subscription: MemorySubscription) -> None:
        """Remove a core subscription; a second time does nothing."""
        fellows = self._subscriptions.get(subscription.subject, [])
        if subscription in fellows:
            fellows.remove(subscription)
        if not fellows and self._subscriptions.pop(subscription.subject, None) is not None and subscription.is_pattern:
            self._patterns[_first_token(subscription.subject)].remove(subscription.subject)

    def pull(self, consuming: MemoryConsuming) -> None:
        """Add a pull loop."""
        self._pulling.append(consuming)
        self.hand_out()

    def stop_pull(self, consuming: MemoryConsuming) -> None:
        """Remove a pull loop; a second time does nothing."""
        if consuming in self._pulling:
            self._pulling.remove(consuming)

    def hand_out(self) -> None:
        """Give waiting messages to free slots: round robin over pull loops, in the order of `lanes` in each."""
        progress = True
        while progress:
            progress = False
            for consuming in list(self._pulling):
                stored = self._next_for(consuming) if consuming.slots.free > 0 and not consuming.is_paused else None
                if stored is not None:
                    stored.in_flight = True
                    stored.deliveries += 1
                    consuming.taken += 1
                    consuming.slots.take(MemoryDelivery(self, consuming.stream, stored))
                    progress = True
            if progress and len(self._pulling) > 1:
                self._pulling.append(self._pulling.pop(0))

    def finish(self, stream: str, stored: _Stored) -> None:
        """Take note that a message was acked or terminated; a work queue does not keep it any longer."""
        stored.is_done, stored.in_flight = True, False
        if self._streams[stream].spec.retention == "workqueue":
            self.remove(stream, stored.sequence)
        self.hand_out()

    def first_kept(self, stream: str, sequence: int, subject: str = "") -> Kept | None:
        """Return the first message at or behind a sequence, of those that fit a pattern if one is given."""
        messages = self._streams[stream].messages.values()
        found = next((m for m in messages if m.sequence >= sequence and (not subject or matches(subject, m.subject))), None)
        return None if found is None else Kept(found.sequence, found.subject, found.data, found.headers, found.kept_us)

    def remove(self, stream: str, sequence: int) -> bool:
        """Delete a message."""
        return self._streams[stream].messages.pop(sequence, None) is not None

    def give_back(self, stored: _Stored) -> None:
        """Let a message be handed out again."""
        stored.in_flight = False
        self.hand_out()

    def _notify(self, message: Message) -> int:
        named = self._subscriptions.get(message.subject, ())
        patterns = chain(self._patterns.get(_first_token(message.subject), ()), self._patterns.get(_ANY, ()))
        wider = [self._subscriptions[pattern] for pattern in patterns if matches(pattern, message.subject)]
        found = sorted(chain(named, *wider), key=_serial) if wider else list(named)
        taken = 0
        groups: dict[tuple[str, str], list[MemorySubscription]] = {}
        for subscription in found:
            if subscription.queue:
                groups.setdefault((subscription.subject, subscription.queue), []).append(subscription)
            else:
                subscription.receive(message)
                taken += 1
        for members in groups.values():
            members[next(self._turn) % len(members)].receive(message)
        return taken + len(groups)

    def _next_for(self, consuming: MemoryConsuming) -> _Stored | None:
        messages = self._streams[consuming.stream].messages
        if not messages:
            return None
        for name in in_turn(consuming.lanes, consuming.taken):
            spec = self._consumers.get((consuming.stream, name))
            if spec is None:
                continue
            mine = [m for m in messages.values() if matches(spec.filter, m.subject) and not m.is_done]
            waiting = next((m for m in mine if not m.in_flight), None)
            if waiting is not None and sum(m.in_flight for m in mine) < spec.in_flight_max:
                return waiting
        return None

    def _stream_of(self, subject: str) -> _Stream | None:
        name = _stream_name(subject)
        return None if name is None else self._streams[name]


class MemoryDelivery:
    """One delivery of a message in a memory stream."""

    def __init__(self, broker: MemoryBroker, stream: str, stored: _Stored) -> None:
        self._broker, self._stream, self._stored = broker, stream, stored
        self.subject, self.data, self.headers, self.sequence = stored.subject, stored.data, stored.headers, stored.sequence
        self.deliveries, self.kept_us, self.waiting = stored.deliveries, stored.kept_us, broker.waiting(stream)
        self.ended = False

    async def ack(self) -> None:
        self._end(lambda: self._broker.finish(self._stream, self._stored))

    async def nak(self, delay_s: float = 0.0) -> None:
        def again() -> None:
            self._broker.give_back(self._stored)

        self._end(again if delay_s <= 0 else lambda: asyncio.get_running_loop().call_later(delay_s, again))

    async def term(self, reason: str) -> None:
        _log.info("%s #%d terminated: %s", self.subject, self.sequence, reason)
        self._end(lambda: self._broker.finish(self._stream, self._stored))

    async def in_progress(self) -> None:
        """Nothing to do: a memory delivery never times out."""

    def _end(self, verdict: Callable[[], object]) -> None:
        if not self.ended:
            self.ended = True
            verdict()


class MemoryConsuming:
    """A running pull loop of the memory bus."""

    def __init__(self, broker: MemoryBroker, stream: str, consumers: Mapping[str, int], slots: Callable[[Callable[[], None]], Slots]) -> None:
        self._broker = broker
        self.stream = stream
        self.lanes = sorted(consumers, key=lambda name: consumers[name])
        self.taken = 0
        self.slots = slots(broker.hand_out)
        self.is_paused = False

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False
        self._broker.hand_out()

    async def stop(self, *, grace_s: float) -> None:
        self._broker.stop_pull(self)
        await self.slots.stop(grace_s=grace_s)


class MemorySubscription:
    """A core subscription of the memory bus."""

    def __init__(self, broker: MemoryBroker, subject: str, handler: Handler, queue: str) -> None:
        self._broker, self._handler = broker, handler
        self.subject, self.queue = subject, queue
        self.is_pattern = "*" in subject or ">" in subject
        self.serial = 0
        """Its place among all that were ever added: messages reach subscribers in this order."""
        self._running: set[asyncio.Task[None]] = set()

    def receive(self, message: Message) -> None:
        """Handle one message in a task of its own."""
        task = asyncio.get_running_loop().create_task(self._handle(message))
        self._running.add(task)
        task.add_done_callback(self._handled)

    async def stop(self) -> None:
        self._broker.unsubscribe(self)
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _handle(self, message: Message) -> None:
        await self._handler(message)

    def _handled(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a message on %s could not be handled: %s", self.subject, type(error).__name__, exc_info=error)


class MemoryBus:
    """The `Bus` inside one process."""

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        """Connect to a broker; without one, to a new broker of its own."""
        self.broker = broker or MemoryBroker()
        self._running: list[MemoryConsuming] = []
        self._subscriptions: list[MemorySubscription] = []

    async def publish(self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None) -> None:
        _check_size(data)
        self.broker.publish(Message(subject, data, headers or {}))

    async def publish_behind(self, sequence: int, messages: Sequence[tuple[str, bytes]]) -> None:
        for _, data in messages:
            _check_size(data)
        for last, (subject, data) in enumerate(messages, sequence):
            self.broker.publish(Message(subject, data, {LAST_SEQUENCE: str(last)}))

    async def flush(self) -> None:
        """Nothing is buffered."""

    async def enqueue(self, subject: str, data: bytes, *, message_id: str, headers: Mapping[str, str] | None = None) -> int:
        _check_size(data)
        return self.broker.enqueue(Message(subject, data, {**(headers or {}), "Nats-Msg-Id": message_id}), message_id)

    async def request(self, subject: str, data: bytes, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> Message:
        _check_size(data)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        async def answered(message: Message) -> None:
            if not answer.done():
                answer.set_result(message)

        inbox = await self.subscribe(self.broker.inbox(), answered)
        try:
            if not self.broker.publish(Message(subject, data, headers or {}, inbox.subject)):
                raise Unavailable(f"nobody listens on {subject}")
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise Unavailable(f"no answer on {subject}: none within {timeout_s:g} s") from None
        finally:
            self.broker.unsubscribe(inbox)

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> MemorySubscription:
        subscription = MemorySubscription(self.broker, subject, handler, queue)
        self.broker.subscribe(subscription)
        self._subscriptions.append(subscription)
        return subscription

    async def consume(self, stream: str, consumers: Mapping[str, int], handler: DeliveryHandler, *, slots: int) -> MemoryConsuming:
        deliver_max = jetstream.STREAMS[stream].deliver_max
        keep = dead_letters(self, stream)
        consuming = MemoryConsuming(self.broker, stream, consumers, lambda freed: Slots(handler, slots, deliver_max=deliver_max, bury=keep, freed=freed))
        self._running.append(consuming)
        self.broker.pull(consuming)
        return consuming

    async def watch(self, stream: str, on_gap: Callable[[], None]) -> None:
        """Nothing is lost on the way."""

    async def backlog(self, stream: str, consumer: str) -> int:
        return self.broker.backlog(stream, consumer)

    async def queued(self, stream: str) -> Queued:
        return self.broker.queued(stream)

    async def first_kept(self, stream: str, sequence: int, *, subject: str = "") -> Kept | None:
        return self.broker.first_kept(stream, sequence, subject)

    async def remove(self, stream: str, sequence: int) -> bool:
        return self.broker.remove(stream, sequence)

    async def ensure_kind(self, kind: str, *, lanes: Collection[str] = ()) -> None:
        self.broker.add_consumers(kind, lanes)

    async def ensure_kinds(self, kinds: Mapping[str, Collection[str]]) -> None:
        for kind, lanes in kinds.items():
            self.broker.add_consumers(kind, lanes)

    async def close(self) -> None:
        for consuming in self._running:
            await consuming.stop(grace_s=0)
        for subscription in self._subscriptions:
            await subscription.stop()


def _check_size(data: bytes) -> None:
    if len(data) > MESSAGE_BYTES_MAX:
        raise LimitExceeded("message_bytes", used=len(data), limit_max=MESSAGE_BYTES_MAX)
