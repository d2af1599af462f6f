"""What was said in a run, as attributes of its spans: fetched, cut and written as the conventions have it. Only where it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import msgspec

from crewlog.events.store import EventStore
from crewlog.projections import span_names as names
from crewlog.projections.span import Part, Span
from crewlog.schemas.errors import TerminalError
from crewlog.schemas.ids import Hash
from crewlog.schemas.payload import Payload
from crewlog.schemas.text import shorten

log = logging.getLogger(__name__)

TEXT_CHARS_MAX: Final = 16_384
"""Of each text; the log has the rest. Backends refuse or cut large attributes."""


async def with_content(spans: Sequence[Span], store: EventStore) -> list[Span]:
    """Write what the spans' content refers to into their attributes. A span whose texts are stored with other bytes goes without."""
    try:
        return await _filled(spans, store)
    except TerminalError as error:
        if len(spans) == 1:
            log.warning("span %s of run %s goes without its content: %s", spans[0].name, spans[0].trace_id.hex(), error)
            return [spans[0]._replace(content=None)]
        return [filled for span in spans for filled in await with_content([span], store)]


async def _filled(spans: Sequence[Span], store: EventStore) -> list[Span]:
    wanted = dict.fromkeys(payload.ref for span in spans for payload in _payloads(span) if payload.ref is not None)
    blobs = await store.get_blobs(list(wanted)) if wanted else {}
    return [span if span.content is None else span._replace(attributes=span.attributes | _attributes(span, blobs), content=None) for span in spans]


def _payloads(span: Span) -> Iterator[Payload]:
    if span.content is not None:
        yield from (part.text for part in (*span.content.inputs, *span.content.outputs))
        yield from (payload for payload in (span.content.arguments, span.content.result) if payload is not None)


def _attributes(span: Span, blobs: Mapping[Hash, bytes]) -> dict[str, str]:
    content = span.content
    assert content is not None
    found = {}
    for name, parts in ((names.INPUT_MESSAGES, content.inputs), (names.OUTPUT_MESSAGES, content.outputs)):
        if parts:
            found[name] = msgspec.json.encode(_messages(parts, blobs)).decode()
    for name, payload in ((names.TOOL_ARGUMENTS, content.arguments), (names.TOOL_RESULT, content.result)):
        if payload is not None:
            found[name] = _text(payload, blobs)
    return found


def _messages(parts: Sequence[Part], blobs: Mapping[Hash, bytes]) -> list[dict[str, Any]]:
    return [{"role": role, "parts": [_part(part, _text(part.text, blobs)) for part in of_role]} for role, of_role in groupby(parts, lambda part: part.role)]


def _part(part: Part, text: str) -> dict[str, Any]:
    match part.type:
        case "text":
            return {"type": "text", "content": text}
        case "tool_call":
            return {"type": "tool_call", "id": part.call_id, "name": part.tool, "arguments": text}
        case _:
            return {"type": "tool_call_response", "id": part.call_id, "response": text}


def _text(payload: Payload, blobs: Mapping[Hash, bytes]) -> str:
    if payload.inline is not None:
        return shorten(payload.inline, TEXT_CHARS_MAX)
    found = blobs.get(payload.ref) if payload.ref is not None else None
    return "[not stored]" if found is None else shorten(found.decode(errors="replace"), TEXT_CHARS_MAX)
