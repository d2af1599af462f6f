"""The one table of JetStream streams and consumers, and the raw JSON API that creates them.

    stream     subjects      kept until                           when full                            in
    TASKS      tasks.>       the orchestrator acks (7 days)       publishers are refused               files
    WORK       work.>        an agent acks (24 hours)             publishers are refused               memory
    EVENTS     events.>      7 days or 8 GiB                      the oldest go: the log has them all  files
    REJECTED   rejected.>    14 days or 1 GiB                     the oldest go                        files
    DLQ        dlq.>         30 days or 1 GiB                     the oldest go                        files

TASKS takes a tenth of what it holds from each tenant for each type, so that one who publishes for ever is refused while others have room.
EVENTS is confirmed before it is in its file, and written there some milliseconds later, many messages at once: a quarter less of the server's
work. What a killed server loses, the relay publishes again, as the same messages. Servers of a cluster keep it as any other stream.
WORK is in memory because the log has what lies there: a server that starts again finds an empty queue, and orchestrators fill it. In files it
cost a file made and one removed whenever the last message was acknowledged.

Raw JSON rather than the client library's dataclasses: those drop fields they do not know, and a round trip through them resets what
an operator has set. Durations are seconds here and nanoseconds on the wire.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Protocol

import msgspec

from crewlog.events.bus import Kept, Message, Queued
from crewlog.schemas import subjects
from crewlog.schemas.errors import TransientError
from crewlog.schemas.task import TASK_BYTES_MAX

_MIB: Final = 1024 * 1024
_GIB: Final = 1024 * _MIB
_HOUR_S: Final = 3600
_DAY_S: Final = 24 * _HOUR_S

API_TIMEOUT_S: Final = 5.0
ACK_WAIT_S: Final = 30.0
"""A delivery without any sign of life for this long is handed out again, unless the configuration says otherwise."""

_WRITTEN_LATE: Final = "async"
"""Persist mode of a stream whose messages are confirmed before they are in its file."""
PULLS_MAX: Final = 2048
"""Pulls that may stand on one consumer at once: a few for each worker."""

STREAM_NOT_FOUND: Final = 10059
MESSAGE_NOT_FOUND: Final = 10037
WRONG_LAST_SEQUENCE: Final = 10071
_CONSUMER_NOT_FOUND: Final = 10014
_NO_SUCH_SEQUENCE: Final = 10043
_NO_MESSAGE_FOUND: Final = 10057


class Provision(NamedTuple):
    """What the operator decides about streams and consumers.

    `replicas`: servers of a cluster that keep each stream; None leaves what is there and makes new ones with one. `ack_wait_s`: as
    `ACK_WAIT_S`.
    """

    replicas: int | None = None
    ack_wait_s: float = ACK_WAIT_S


AS_USUAL: Final = Provision()


class StreamSpec(NamedTuple):
    """One stream. `deliver_max`: after so many hand-outs without an end a message is moved to the DLQ; None means never. `subject_messages_max`: so
    many may wait on one subject. `is_copy`: whatever its end loses is published again."""

    name: str
    subjects: str
    retention: Literal["workqueue", "limits"]
    discard: Literal["new", "old"]
    bytes_max: int
    age_max_s: int
    duplicate_window_s: int
    messages_max: int = -1
    message_bytes_max: int = -1
    deliver_max: int | None = None
    storage: Literal["file", "memory"] = "file"
    subject_messages_max: int | None = None
    is_copy: bool = False

    def config(self, provision: Provision = AS_USUAL) -> dict[str, Any]:
        """Return the stream as the server's API wants it."""
        replicas = {} if provision.replicas is None else {"num_replicas": provision.replicas}
        per_subject = {} if self.subject_messages_max is None else {"max_msgs_per_subject": self.subject_messages_max, "discard_new_per_subject": True}
        return {
            "name": self.name,
            "subjects": [self.subjects],
            "retention": self.retention,
            "discard": self.discard,
            "max_bytes": self.bytes_max,
            "max_age": _ns(self.age_max_s),
            "max_msgs": self.messages_max,
            "max_msg_size": self.message_bytes_max,
            "duplicate_window": _ns(self.duplicate_window_s),
            "compression": "s2" if self.storage == "file" else "none",
            "allow_direct": True,
            "storage": self.storage,
            **replicas,
            **per_subject,
        }


class ConsumerSpec(NamedTuple):
    """One durable pull consumer. `in_flight_max` counts deliveries handed out to all workers together."""

    name: str
    stream: str
    filter: str
    in_flight_max: int

    def config(self, provision: Provision = AS_USUAL) -> dict[str, Any]:
        """Return the consumer as the server's API wants it. It is kept by as many servers as its stream.

        No `backoff`: it replaces the ack wait and skews the delay of a nak. No `max_deliver`: on a work queue an exhausted message
        would stay stored and invisible; the puller moves it to the DLQ instead.
        """
        return {
            "name": self.name,
            "durable_name": self.name,
            "filter_subject": self.filter,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": _ns(provision.ack_wait_s),
            "max_deliver": -1,
            "max_ack_pending": self.in_flight_max,
            "max_waiting": PULLS_MAX,
            "replay_policy": "instant",
        }


TASKS: Final = StreamSpec(
    *("TASKS", "tasks.>", "workqueue", "new", 4 * _GIB, 7 * _DAY_S, _HOUR_S),
    messages_max=1_000_000,
    message_bytes_max=TASK_BYTES_MAX + 8 * 1024,
    subject_messages_max=100_000,
)
WORK: Final = StreamSpec(
    # larger messages than TASKS: the orchestrator adds the outcomes a task depends on
    "WORK", "work.>", "workqueue", "new", 256 * _MIB, _DAY_S, 600, messages_max=100_000, message_bytes_max=_MIB - 64 * 1024, deliver_max=5, storage="memory"
)  # fmt: skip
EVENTS: Final = StreamSpec(
    "EVENTS", "events.>", "limits", "old", 8 * _GIB, 7 * _DAY_S, 10, is_copy=True  # a busy log would fill the server's memory with ids
)  # fmt: skip
REJECTED: Final = StreamSpec("REJECTED", "rejected.>", "limits", "old", _GIB, 14 * _DAY_S, 600)
DLQ: Final = StreamSpec("DLQ", "dlq.>", "limits", "old", _GIB, 30 * _DAY_S, _HOUR_S)

STREAMS: Final = {spec.name: spec for spec in (TASKS, WORK, EVENTS, REJECTED, DLQ)}
FILE_BYTES_MAX: Final = sum(spec.bytes_max for spec in STREAMS.values() if spec.storage == "file")
MEMORY_BYTES_MAX: Final = sum(spec.bytes_max for spec in STREAMS.values() if spec.storage == "memory")
"""What a server must be allowed to store: the sum of all streams' limits is reserved."""

INTAKE: Final = ConsumerSpec("intake", "TASKS", "tasks.>", 256)
NO_KINDS: Final[Mapping[str, Iterable[str]]] = MappingProxyType({})
LETTERS: Final = ConsumerSpec("letters", "DLQ", "dlq.>", 256)
"""Which dead letters the orchestrators have taken note of; the letters themselves stay."""


_ELECTED: Final = "$JS.EVENT.ADVISORY.{}.LEADER_ELECTED.{}"
"""Where a cluster says that another server leads a stream or a consumer from now on."""


def stream_elected(stream: str) -> str:
    """Return the subject that says: this stream has a new leader. What was published to it unconfirmed shortly before may be lost."""
    return _ELECTED.format("STREAM", stream)


def consumer_elected(stream: str, consumer: str) -> str:
    """Return the subject that says: this consumer has a new leader. It knows nothing of the pulls that stood with the old one."""
    return _ELECTED.format("CONSUMER", f"{stream}.{consumer}")


@lru_cache(maxsize=256)
def work_consumer(kind: str, lane: str) -> ConsumerSpec:
    """Return the consumer that all workers of a kind share for one lane."""
    return ConsumerSpec(f"{kind}-{lane}", "WORK", subjects.work(kind, lane), 1024)


class ApiError(TransientError):
    """The JetStream API refused; `err_code` is the server's own number."""

    code = "jetstream"

    def __init__(self, subject: str, err_code: int, description: str) -> None:
        super().__init__(f"{subject}: {description} ({err_code})")
        self.err_code = err_code
        self.description = description


class Requester(Protocol):
    """The part of the bus the API needs."""

    async def request(self, subject: str, data: bytes, *, timeout_s: float) -> Message: ...


async def api(bus: Requester, verb: str, body: Any = None) -> dict[str, Any]:
    """Ask the JetStream API.

    Args:
        verb: what stands behind `$JS.API.`.

    Raises:
        ApiError: the server refused.
        Unavailable: nobody answered: JetStream is off or the server is away.
    """
    subject = f"$JS.API.{verb}"
    reply = await bus.request(subject, b"" if body is None else msgspec.json.encode(body), timeout_s=API_TIMEOUT_S)
    return decode_reply(subject, reply.data)


def decode_reply(subject: str, data: bytes) -> dict[str, Any]:
    """Decode an answer of the API or a publish confirmation.

    Raises:
        ApiError: it holds an error.
    """
    answer: dict[str, Any] = msgspec.json.decode(data)
    error = answer.get("error")
    if error:
        raise ApiError(subject, int(error.get("err_code", 0)), str(error.get("description", "no description")))
    return answer


async def ensure_topology(bus: Requester, kinds: Mapping[str, Iterable[str]] = NO_KINDS, *, provision: Provision = AS_USUAL) -> None:
    """Create or update all streams, the orchestrators' consumers, and the work consumers of the given kinds. Idempotent.

    Args:
        kinds: kind -> lanes that it has besides `QUEUES`.
    """
    for spec in STREAMS.values():
        await ensure_stream(bus, spec, provision=provision)
    for consumer in (INTAKE, LETTERS):
        await ensure_consumer(bus, consumer, provision=provision)
    for kind, lanes in kinds.items():
        await ensure_work_consumers(bus, kind, lanes, provision=provision)


async def missing(bus: Requester, kinds: Mapping[str, Iterable[str]] = NO_KINDS) -> list[str]:
    """Return which streams, and which consumers of the given kinds, the server does not have. `kinds`: as for `ensure_topology`."""
    streams = set((await api(bus, "STREAM.NAMES"))["streams"] or ())
    lost = [name for name in STREAMS if name not in streams]
    wanted = [INTAKE, LETTERS, *(work_consumer(kind, lane) for kind, lanes in kinds.items() for lane in (*subjects.QUEUES, *lanes))]
    for stream in ("TASKS", "WORK", "DLQ"):
        if stream in streams:
            there = await _consumers(bus, stream)
            lost += [f"{stream}/{spec.name}" for spec in wanted if spec.stream == stream and spec.name not in there]
    return lost


async def _consumers(bus: Requester, stream: str) -> set[str]:
    names: set[str] = set()
    while True:
        page = await api(bus, f"CONSUMER.NAMES.{stream}", {"offset": len(names)})
        names.update(page["consumers"] or ())
        if not page["consumers"] or len(names) >= page["total"]:
            return names


async def ensure_work_consumers(bus: Requester, kind: str, lanes: Iterable[str] = (), *, provision: Provision = AS_USUAL) -> None:
    """Create or update the consumers of one kind: one for each of `QUEUES`, and for each of `lanes`. The stream must exist."""
    for lane in (*subjects.QUEUES, *lanes):
        await ensure_consumer(bus, work_consumer(kind, lane), provision=provision)


async def ensure_stream(bus: Requester, spec: StreamSpec, *, provision: Provision = AS_USUAL) -> None:
    """Create or update one stream. What an operator set beyond this table (placement, and replicas unless configured) is kept.

    No stream can move from files into memory, and none that is written late to several servers. Such a one is made anew: what lay in it is in
    the log.
    """
    wanted = spec.config(provision)
    is_alone = wanted.get("num_replicas", 1) == 1
    making = {**wanted, "persist_mode": _WRITTEN_LATE} if spec.is_copy and is_alone else wanted  # no update can change it
    try:
        # asked first: a server that was restarted counts the stream's room twice when it is created again, and refuses
        info = await api(bus, f"STREAM.INFO.{spec.name}")
    except ApiError as error:
        if error.err_code != STREAM_NOT_FOUND:
            raise
        await api(bus, f"STREAM.CREATE.{spec.name}", making)
    else:
        current = info["config"]
        if spec.subject_messages_max is not None and info["state"]["messages"] > spec.subject_messages_max:
            # a limit that is set later deletes what is over it: the next start with fewer messages sets it
            wanted = spec._replace(subject_messages_max=None).config(provision)
        is_late = current.get("persist_mode") == _WRITTEN_LATE
        if (spec.storage == "memory" and current["storage"] == "file") or (is_late and not is_alone):
            await api(bus, f"STREAM.DELETE.{spec.name}")
            await api(bus, f"STREAM.CREATE.{spec.name}", making)
        elif any(current.get(key) != value for key, value in wanted.items()):
            await api(bus, f"STREAM.UPDATE.{spec.name}", {**current, **wanted})


async def ensure_consumer(bus: Requester, spec: ConsumerSpec, *, provision: Provision = AS_USUAL) -> None:
    """Create or update one consumer."""
    await api(bus, f"CONSUMER.CREATE.{spec.stream}.{spec.name}.{spec.filter}", {"stream_name": spec.stream, "config": spec.config(provision)})


async def backlog(bus: Requester, stream: str, consumer: str) -> int:
    """Return how many messages of a consumer wait or are being worked on; 0 when it does not exist yet."""
    try:
        info = await api(bus, f"CONSUMER.INFO.{stream}.{consumer}")
    except ApiError as error:
        if error.err_code in {STREAM_NOT_FOUND, _CONSUMER_NOT_FOUND}:
            return 0
        raise
    return int(info["num_pending"]) + int(info["num_ack_pending"])


async def queued(bus: Requester, stream: str) -> Queued:
    """Count what a stream keeps, by subject; nothing when it does not exist yet."""
    try:
        state = (await api(bus, f"STREAM.INFO.{stream}", {"subjects_filter": STREAMS[stream].subjects}))["state"]
    except ApiError as error:
        if error.err_code != STREAM_NOT_FOUND:
            raise
        return Queued(0, {})
    return Queued(state["last_seq"], state.get("subjects") or {})


async def first_kept(bus: Requester, stream: str, sequence: int, *, subject: str = "") -> Kept | None:
    """Return the first message that a stream still has at or behind `sequence`, of those that fit `subject` if one is given; None when there is none."""
    try:
        # from the leader: a replica that is asked directly may still show what was just deleted
        answer = await api(bus, f"STREAM.MSG.GET.{stream}", {"seq": max(sequence, 1), "next_by_subj": subject or STREAMS[stream].subjects})
    except ApiError as error:
        if error.err_code in {MESSAGE_NOT_FOUND, STREAM_NOT_FOUND}:
            return None
        raise
    found = answer["message"]
    taken = datetime.fromisoformat(found["time"])
    kept_us = int(taken.timestamp()) * 1_000_000 + taken.microsecond
    return Kept(found["seq"], found["subject"], b64decode(found.get("data", "")), decode_headers(found.get("hdrs", "")), kept_us)


def decode_headers(encoded: str) -> dict[str, str]:
    """Read the headers of a stored message as the API gives them: base64 of `NATS/1.0` and one line for each."""
    lines = b64decode(encoded).decode(errors="replace").split("\r\n")[1:]
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


async def remove(bus: Requester, stream: str, sequence: int) -> bool:
    """Delete one message of a stream; False when it was gone already."""
    try:
        await api(bus, f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
    except ApiError as error:
        if error.err_code in {_NO_SUCH_SEQUENCE, _NO_MESSAGE_FOUND, MESSAGE_NOT_FOUND, STREAM_NOT_FOUND}:
            return False
        raise
    return True


def _ns(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
