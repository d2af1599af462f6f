"""Check an append request where it is made, and turn its events into JSON.

What passes here cannot make Postgres refuse the whole batch that a request travels in; what does not, fails in its caller alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from crewlog.events.append_money import check_money, is_plain
from crewlog.events.envelope import DataKey
from crewlog.events.store import ANY, EVENT_BYTES_MAX, EVENTS_PER_APPEND_MAX, NAME_CHARS_MAX, OCCURRED_US_END, STREAMS_PER_APPEND_MAX, AppendRequest
from crewlog.schemas.codec import encode, type_name
from crewlog.schemas.errors import ContractError
from crewlog.schemas.task_events import TERMINAL_TYPES

_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


class Encoded(NamedTuple):
    """A request, the JSON of its events in the order of the writes, their size in bytes, whether anything in it is about money, and whether it is plain."""

    request: AppendRequest
    documents: Sequence[str]
    size: int
    has_money: bool
    is_plain: bool


def encode_request(request: AppendRequest) -> Encoded:
    """Check a request and turn its events into JSON.

    Raises:
        ContractError: the request is malformed: the text says how.
    """
    writes, event_ids = request.writes, request.event_ids
    if not 1 <= len(writes) <= STREAMS_PER_APPEND_MAX:
        raise ContractError(f"an append writes to 1 to {STREAMS_PER_APPEND_MAX} streams, not {len(writes)}")
    documents: list[str] = []
    size = 0
    has_money = request.reserve is not None or bool(request.settle or request.limits)
    for stream, events, expected, kind, scopes in writes:
        if not events or expected < ANY or not _is_name(stream) or (kind is not None and not _is_name(kind)):
            raise ContractError(
                f"append to {stream[:80]!r} of {len(events)} events at version {expected}: it needs an event, a version from {ANY} up, and names of 1 to "
                f"{NAME_CHARS_MAX} characters that can be printed"
            )
        for event in events:
            try:
                document = encode(event)
            except (TypeError, ValueError, RecursionError) as error:
                raise ContractError(f"append to {stream}: {type_name(event)} cannot be stored: {error}") from error
            if len(document) > EVENT_BYTES_MAX:
                raise ContractError(
                    f"append to {stream}: {type_name(event)} has {len(document)} bytes of at most {EVENT_BYTES_MAX}; put large text into a blob"
                )
            if b"\\" in document and b"\\u" in document:  # one byte is found many times faster than two
                _check_escapes(document, stream)
            documents.append(document.decode())
            size += len(document)
        if len(events) > 1 and any(type_name(event) in TERMINAL_TYPES for event in events[:-1]):
            raise ContractError(f"append to {stream}: the event that closes it must be the last one")
        has_money = has_money or bool(scopes) or stream.startswith("budget/")
    if len(writes) > 1 and len({write.stream for write in writes}) < len(writes):
        raise ContractError(f"an append names each stream once, got {', '.join(write.stream for write in writes)}")
    if not 0 <= request.occurred_us < OCCURRED_US_END:
        raise ContractError(f"append to {writes[0].stream}: {request.occurred_us} microseconds since 1970 is not before the year 10000")
    _check_ids(event_ids, len(documents), writes[0].stream)
    if has_money:
        check_money(request)
    if request.key is not None:
        documents = _enclosed(request.key, request, documents)
        size = sum(map(len, documents))
    return Encoded(request, documents, size, has_money, is_plain(request))


def _is_name(text: str) -> bool:
    return 1 <= len(text) <= NAME_CHARS_MAX and text.isprintable()


def _enclosed(key: DataKey, request: AppendRequest, documents: Sequence[str]) -> list[str]:
    """Replace each document by what is stored of it under a person's key."""
    events = ((event, write.stream) for write in request.writes for event in write.events)
    given = zip(events, documents, request.event_ids, strict=True)
    return [key.enclose(event, document.encode(), event_id, stream).decode() for (event, stream), document, event_id in given]


def _check_ids(event_ids: Sequence[UUID], count: int, stream: str) -> None:
    if not len(event_ids) == count <= EVENTS_PER_APPEND_MAX:
        raise ContractError(f"append to {stream}: {count} events with {len(event_ids)} ids; one each, at most {EVENTS_PER_APPEND_MAX}")
    if count > 1 and len(set(event_ids)) < count:
        raise ContractError(f"append to {stream}: one event id stands for two events")
    for event_id in event_ids:
        if not isinstance(event_id, UUID):
            raise ContractError(f"append to {stream}: event id {event_id!r} is not a UUID")


def _check_escapes(document: bytes, stream: str) -> None:
    # the json type takes escaped NUL and lone surrogates, and then fails every reader that asks for the text
    escapes = document.replace(b"\\\\", b"")
    if b"\\u0000" in escapes:
        raise ContractError(f"append to {stream}: text with NUL cannot be stored; clean it first")
    if _SURROGATE.search(escapes):
        try:
            json.dumps(json.loads(document), ensure_ascii=False).encode()
        except ValueError:
            raise ContractError(f"append to {stream}: text with a lone surrogate cannot be stored; clean it first") from None
