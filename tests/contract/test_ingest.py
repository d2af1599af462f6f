"""Documents enter the log once, however many workers try at the same time."""

from __future__ import annotations

import asyncio

import pytest
from support.logs import Log

from crewlog.agents.ingest import ingest
from crewlog.events.clock import SystemClock
from crewlog.events.grants import OPERATOR, kind_role
from crewlog.schemas.errors import ContractError, NotAuthorised
from crewlog.schemas.ids import document_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.system_events import DocumentIngested

CLOCK = SystemClock()
RULES = b"# Refunds\r\n\r\nWithin 14 days.\r\n"
STREAM = document_stream("default", content_hash(RULES))


async def test_the_fact_holds_what_the_index_needs(log: Log) -> None:
    store = await log.open(kind_role("research"))
    ingested = await ingest(store, CLOCK, tenant="default", name="rules.md", data=RULES, library=False)
    text = b"# Refunds\n\nWithin 14 days."
    (recorded,) = await store.read_streams({STREAM: 0})
    assert recorded.position == ingested.position
    assert recorded.event() == ingested.document
    assert ingested.document == DocumentIngested(
        tenant="default",
        content=content_hash(RULES),
        library=False,
        name="rules.md",
        media_type="text/markdown",
        size=len(RULES),
        text=content_hash(text),
        lines=3,
        title="Refunds",
    )
    assert await store.get_blobs([ingested.document.text]) == {content_hash(text): text}


async def test_racing_workers_write_one_fact(log: Log) -> None:
    stores = [await log.open(kind_role("research")) for _ in range(4)]
    results = await asyncio.gather(*(ingest(store, CLOCK, tenant="default", name=f"{n}.md", data=RULES, library=False) for n, store in enumerate(stores)))
    assert len({result.position for result in results}) == 1
    assert [result.added for result in results].count(True) == 1
    assert len(await stores[0].read_streams({STREAM: 0})) == 1


async def test_library_and_attachment_at_the_same_time_end_in_the_library(log: Log) -> None:
    research, operator = await log.open(kind_role("research")), await log.open(OPERATOR)
    await asyncio.gather(
        *(ingest(research, CLOCK, tenant="default", name="attached.md", data=RULES, library=False) for _ in range(2)),
        *(ingest(operator, CLOCK, tenant="default", name="rules.md", data=RULES, library=True) for _ in range(2)),
    )
    events = [recorded.event() for recorded in await research.read_streams({STREAM: 0})]
    last = events[-1]
    assert len(events) <= 2
    assert isinstance(last, DocumentIngested)
    assert (last.library, last.name) == (True, "rules.md")


async def test_a_renamed_library_document_keeps_its_text_and_place(log: Log) -> None:
    store = await log.open(OPERATOR)
    first = await ingest(store, CLOCK, tenant="default", name="old.md", data=RULES, library=True)
    assert not (await ingest(store, CLOCK, tenant="default", name="old.md", data=RULES, library=True)).added
    second = await ingest(store, CLOCK, tenant="default", name="new.md", data=RULES, library=True)
    assert (second.added, second.document.name, second.document.text) == (True, "new.md", first.document.text)


async def test_tenants_are_apart(log: Log) -> None:
    store = await log.open(OPERATOR)
    first, second = [await ingest(store, CLOCK, tenant=tenant, name="rules.md", data=RULES, library=True) for tenant in ("default", "acme")]
    assert first.position != second.position
    assert (first.added, second.added) == (True, True)


async def test_what_cannot_be_read_leaves_no_trace(log: Log) -> None:
    store = await log.open(OPERATOR)
    with pytest.raises(ContractError, match="seems to be damaged"):
        await ingest(store, CLOCK, tenant="default", name="a.pdf", data=b"%PDF-1.7", library=True)
    assert await store.read_streams({document_stream("default", content_hash(b"%PDF-1.7")): 0}) == []


async def test_only_some_may_ingest(log: Log) -> None:
    store = await log.open(kind_role("communicate"))
    with pytest.raises(NotAuthorised):
        await ingest(store, CLOCK, tenant="default", name="rules.md", data=RULES, library=True)
