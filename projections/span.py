"""A finished span: what a tracing tool is sent, before it is written in anybody's format."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, NamedTuple

from crewlog.schemas.payload import Payload
from crewlog.schemas.trace_context import SpanRef

Value = str | int | float | bool | tuple[str, ...]
Attributes = dict[str, Value]


class SpanKind(IntEnum):
    """As OTLP numbers them."""

    INTERNAL = 1
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class Part(NamedTuple):
    """A part of a message of a conversation. Its text may still have to be fetched."""

    role: Literal["user", "assistant", "tool"]
    type: Literal["text", "tool_call", "tool_call_response"]
    text: Payload
    call_id: str = ""
    tool: str = ""


class Content(NamedTuple):
    """What was said, where that is wanted."""

    inputs: tuple[Part, ...] = ()
    outputs: tuple[Part, ...] = ()
    arguments: Payload | None = None
    result: Payload | None = None


class Span(NamedTuple):
    """Times are microseconds since 1970. `parent_id` is empty for the root of a trace."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    name: str
    kind: SpanKind
    begin_us: int
    end_us: int
    attributes: Attributes
    actor: str
    """The process that did it, as `<role>@<name>`."""
    links: tuple[SpanRef, ...] = ()
    error: str = ""
    """Why it failed, as a stable code: never in words, which may hold what nobody should read there."""
    content: Content | None = None
