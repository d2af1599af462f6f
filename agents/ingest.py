"""Put documents into the log: the text as a blob, the fact as `DocumentIngested` in the document's own stream.

A document is its bytes: ingesting them again changes nothing, whatever the file is called by then. Two facts about one document differ only
when it was attached to a task first and added to the library later, or when the library renames it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from crewlog.agents.documents import extract
from crewlog.events.clock import Clock
from crewlog.events.store import NO_STREAM, AppendRequest, EventStore, Recorded, Write
from crewlog.schemas.errors import ConflictError
from crewlog.schemas.ids import document_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.system_events import DocumentErased, DocumentIngested

TRIES_MAX: Final = 5
"""Appends tried before giving up: each lost one means that another writer won."""


class Ingested(NamedTuple):
    """Where a document stands in the log. `added` is False when an earlier event says all of it already."""

    position: int
    document: DocumentIngested
    added: bool


async def ingest(store: EventStore, clock: Clock, *, tenant: str, name: str, data: bytes, media_type: str = "", library: bool) -> Ingested:
    """Extract a document's text and record it, once.

    Args:
        data: the file, at most 32 MiB.
        library: True puts it where every task of the tenant may search it; False only where it is attached.

    Returns:
        The event that holds, old or new; wait until the knowledge index has passed its position before searching.

    Raises:
        ContractError: the file is no readable document.
        ConfigError: the library that reads this kind of file is not installed.
        NotAuthorised: this login may not record documents.
        ConflictError: other writers won every try.
    """
    content = content_hash(data)
    stream = document_stream(tenant, content)
    fresh: DocumentIngested | None = None
    conflict: ConflictError | None = None
    for _ in range(TRIES_MAX):
        history = await store.read_streams({stream: 0})
        known = _latest(history)
        if known is not None and _covers(known.document, name=name, library=library):
            return known
        if known is None:
            event = fresh = fresh or await _read(store, tenant=tenant, name=name, data=data, media_type=media_type, library=library)
        else:
            event = msgspec.structs.replace(known.document, library=True, name=name)
        request = AppendRequest([Write(stream, [event], expected=history[-1].version if history else NO_STREAM)], [clock.new_id()], clock.now_us())
        try:
            appended = await store.append(request)
        except ConflictError as error:
            # somebody else wrote about the same bytes meanwhile: read what, and decide again
            conflict = error
        else:
            return Ingested(appended.positions[0], event, added=True)
    assert conflict is not None
    raise conflict


def _latest(history: Sequence[Recorded]) -> Ingested | None:
    for recorded in reversed(history):
        event = recorded.event()
        if isinstance(event, DocumentErased):
            return None  # its text is gone: whoever brings it again begins anew
        if isinstance(event, DocumentIngested):
            return Ingested(recorded.position, event, added=False)
    return None


def _covers(known: DocumentIngested, *, name: str, library: bool) -> bool:
    return not library or (known.library and known.name == name)


async def _read(store: EventStore, *, tenant: str, name: str, data: bytes, media_type: str, library: bool) -> DocumentIngested:
    document = await extract(name, data, media_type)
    (text,) = await store.put_blobs([document.text.encode()])
    return DocumentIngested(
        tenant=tenant,
        content=content_hash(data),
        library=library,
        name=name,
        media_type=document.media_type,
        size=len(data),
        text=text,
        lines=document.lines,
        title=document.title,
    )
