"""The bus's port: transport, backlog and wake-up. Never the truth: whatever is pending can be published again from the log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

LAST_SEQUENCE: Final = "Nats-Expected-Last-Sequence"
"""Header: which message of its stream a message must follow; the stream refuses it otherwise."""


class Message(NamedTuple):
    """A core message. `reply` is the subject an answer goes to, empty when none is wanted, or the one that is named is not for answers."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    reply: str = ""


class Kept(NamedTuple):
    """A message as a stream keeps it."""

    sequence: int
    subject: str
    data: bytes
    headers: Mapping[str, str]
    kept_us: int
    """When the stream took it, in microseconds since 1970."""


class Queued(NamedTuple):
    """What a stream keeps."""

    last_sequence: int
    """Number of the last message it took."""
    subjects: Mapping[str, int]
    """Subject -> messages that nobody has ended, handed out or not; subjects without any are missing."""


class Delivery(Protocol):
    """One delivery of a queued message. Exactly one of `ack`, `nak`, `term` ends it; until then `in_progress` keeps it."""

    @property
    def subject(self) -> str: ...
    @property
    def data(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def deliveries(self) -> int:
        """How often this message has been handed out, this time included."""

    @property
    def sequence(self) -> int:
        """Number of the message in its JetStream stream."""

    @property
    def kept_us(self) -> int:
        """When the stream took it, in microseconds since 1970; with the sequence it names the message even if the stream is made anew."""

    @property
    def waiting(self) -> int:
        """How many messages of its consumer were still waiting when it was handed out."""

    async def ack(self) -> None: ...
    async def nak(self, delay_s: float = 0.0) -> None: ...
    async def term(self, reason: str) -> None: ...
    async def in_progress(self) -> None: ...


Handler = Callable[[Message], Awaitable[None]]
DeliveryHandler = Callable[[Delivery], Awaitable[None]]


class Subscription(Protocol):
    """A running core subscription."""

    async def stop(self) -> None: ...


class Consuming(Protocol):
    """A running pull loop: it hands out at most `slots` deliveries at a time and keeps each alive until its handler returns."""

    def pause(self) -> None:
        """Fetch nothing more until `resume`; running handlers go on. Safe to call twice."""

    def resume(self) -> None:
        """Fetch again. Safe to call twice."""

    async def stop(self, *, grace_s: float) -> None:
        """Stop fetching, let running handlers finish within `grace_s`, hand the rest back, and return."""


class Bus(Protocol):
    """Core messages, queues and requests. Reconnects by itself; `publish` while disconnected is buffered or lost, never an error."""

    async def publish(self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None) -> None:
        """Send a hint or a telemetry message; nobody confirms it."""

    async def publish_behind(self, sequence: int, messages: Sequence[tuple[str, bytes]]) -> None:
        """Send messages that a stream takes one behind the other, the first of them behind its message `sequence`, or not at all.

        Nobody confirms them: if one that is sent behind them is confirmed at its sequence, so were they.

        Args:
            sequence: number of the last message of the stream.
            messages: subject and data of each.
        """

    async def flush(self) -> None:
        """Wait until what was published has left this process."""

    async def enqueue(self, subject: str, data: bytes, *, message_id: str, headers: Mapping[str, str] | None = None) -> int:
        """Publish into a JetStream stream and wait for its confirmation; returns the sequence.

        Raises:
            Unavailable: no confirmation in time. It may be stored all the same; send it again with the same id.
            LimitExceeded: the stream is full or the message is too large.
        """

    async def request(self, subject: str, data: bytes, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> Message:
        """Ask and wait for one answer.

        Raises:
            Unavailable: nobody listens on the subject, or no answer in time.
        """

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Hand every message on a core subject to `handler`, each in a task of its own."""

    async def consume(self, stream: str, consumers: Mapping[str, int], handler: DeliveryHandler, *, slots: int) -> Consuming:
        """Pull from durable consumers of one JetStream stream and hand deliveries to `handler`, at most `slots` at a time.

        Args:
            consumers: consumer name -> priority (smaller is served first).
        """

    async def watch(self, stream: str, on_gap: Callable[[], None]) -> None:
        """Call `on_gap` whenever what was published to a stream without a confirmation may be lost: the connection was, or another server of a
        cluster leads the stream. Without the name of a stream: when words to this process may be lost, as the connection was."""

    async def backlog(self, stream: str, consumer: str) -> int:
        """Return how many messages wait or are being worked on: the lag an autoscaler reads."""

    async def queued(self, stream: str) -> Queued:
        """Look at a stream with one question, however many consumers it has.

        Raises:
            Unavailable: the server cannot be reached.
        """

    async def first_kept(self, stream: str, sequence: int, *, subject: str = "") -> Kept | None:
        """Return the first message that a stream still has at or behind `sequence`; None when there is none.

        Args:
            subject: only messages that fit this subject or pattern; empty: all.

        Raises:
            Unavailable: the server cannot be reached.
        """

    async def remove(self, stream: str, sequence: int) -> bool:
        """Delete one message of a stream; False when it was gone already.

        Raises:
            Unavailable: the server cannot be reached.
        """

    async def ensure_kind(self, kind: str, *, lanes: Collection[str] = ()) -> None:
        """Create the work consumers of an agent kind, one per lane. Idempotent; the orchestrator's duty.

        Args:
            lanes: those that it has besides the ones that every kind has.
        """

    async def ensure_kinds(self, kinds: Mapping[str, Collection[str]]) -> None:
        """Create again whatever is missing of the streams and of these kinds' consumers: a server may lose its store. Cheap when nothing is.

        Args:
            kinds: kind -> `lanes` as in `ensure_kind`.

        Raises:
            Unavailable: the server cannot be reached.
        """

    async def close(self) -> None: ...
