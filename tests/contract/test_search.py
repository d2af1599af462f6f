"""Search over documents: whole words first, any word otherwise, headings count, tenants and attachments stay apart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from support.postgres import Database

from crewlog.events.clock import SystemClock
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import AppendRequest, Write
from crewlog.projections.knowledge import KnowledgeProjection
from crewlog.projections.read_model import ReadModel
from crewlog.projections.view_connection import connect_views
from crewlog.schemas.ids import document_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.system_events import DocumentIngested

GUIDE = """# Operations guide

## Retention

Audit logs are kept for 30 days, then deleted.

## Backups

A backup runs every night. Backups are encrypted and stored in two regions. Nobody deletes a backup by hand.
"""
PENGUINS = """# Penguins

Penguins huddle to keep warm. The huddle moves slowly.

# Seals

Seals also keep warm, with blubber. Retention of heat matters to a seal.
"""


class Library:
    """Documents in the log and the index over them."""

    def __init__(self, store: PostgresStore, model: ReadModel, reader: asyncpg.Connection) -> None:
        self._store, self._model, self._reader = store, model, reader

    async def add(self, name: str, body: str, *, tenant: str = "default", library: bool = True, content: str = "") -> str:
        content = content or content_hash(f"{tenant}{name}{body}".encode())
        (text,) = await self._store.put_blobs([body.encode()])
        event = DocumentIngested(tenant, content_hash(content.encode()), library, name, "text/markdown", len(body), text, body.count("\n"), name)
        await self._store.append(AppendRequest([Write(document_stream(tenant, event.content), [event])], [SystemClock().new_id()], 1))
        while (page := await self._store.read_all(self._model.position, 100)).events:
            await self._model.advance(page.events)
        return str(event.content)

    async def search(self, query: str, documents: Sequence[str] | None = None, *, tenant: str = "default", limit: int = 10) -> list[Any]:
        rows: list[Any] = await self._reader.fetch("SELECT * FROM crewlog.search_documents($1, $2, $3, $4)", tenant, query, documents, limit)
        return rows


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[Library]:
    store = await PostgresStore.open(database.admin_url, actor="test", clock=SystemClock())
    writer = await connect_views(database.url("crewlog_projector"), "rm")
    reader = await asyncpg.connect(database.url("crewlog_research"))
    model = ReadModel(writer, [KnowledgeProjection(store)])
    await model.open()
    try:
        yield Library(store, model, reader)
    finally:
        await store.close()
        await writer.close()
        await reader.close()


@pytest_asyncio.fixture
async def library(database: Database) -> AsyncIterator[Library]:
    async with opened(database) as library:
        yield library


async def test_all_words_in_one_passage(library: Library) -> None:
    guide = await library.add("guide.md", GUIDE)
    await library.add("penguins.md", PENGUINS)
    (found,) = await library.search("are the audit logs deleted after some days")
    assert (found["document"], found["name"], found["line"]) == (guide, "guide.md", 3)
    assert found["passage"] == "## Retention\n\nAudit logs are kept for 30 days, then deleted."
    assert found["rank"] > 1


async def test_any_word_when_no_passage_has_them_all(library: Library) -> None:
    await library.add("guide.md", GUIDE)
    await library.add("penguins.md", PENGUINS)
    found = await library.search("do penguins write encrypted audit logs")
    assert [(row["name"], row["line"]) for row in found] == [("guide.md", 3), ("penguins.md", 1), ("guide.md", 7)]
    assert all(0 < row["rank"] <= 1 for row in found)


async def test_headings_count_more_than_text(library: Library) -> None:
    await library.add("guide.md", GUIDE)
    await library.add("penguins.md", PENGUINS)
    found = await library.search("retention")
    assert [row["name"] for row in found] == ["guide.md", "penguins.md"]


async def test_words_are_stemmed_and_stop_words_find_nothing(library: Library) -> None:
    await library.add("penguins.md", PENGUINS)
    assert [row["line"] for row in await library.search("huddling penguin")] == [1]
    assert await library.search("the of and") == []
    assert await library.search("") == []
    assert await library.search("submarine") == []


async def test_phrases_and_exclusions(library: Library) -> None:
    await library.add("guide.md", GUIDE)
    assert [row["line"] for row in await library.search('"audit logs"')] == [3]
    assert await library.search("backup -encrypted") == []
    await library.add("penguins.md", PENGUINS)
    assert [row["line"] for row in await library.search("warm backups -blubber")] == [7, 1]
    assert [row["line"] for row in await library.search('warm backups -"two regions"')] == [1, 5]
    assert await library.search("-backup") == []


@pytest.mark.parametrize(
    "query", ["'; DROP TABLE rm.passages; --", "a & | ! <-> ( b", "\\ ' \" % _ $1", "http://example.com/a?b=1&c=2 penguins", "é😀 \t x" * 50]
)
async def test_any_text_is_a_query(library: Library, query: str) -> None:
    await library.add("penguins.md", PENGUINS)
    for row in await library.search(query):
        assert row["name"] == "penguins.md"


async def test_tenants_see_their_own(library: Library) -> None:
    await library.add("guide.md", GUIDE)
    theirs = await library.add("guide.md", GUIDE, tenant="other")
    assert [row["document"] for row in await library.search("audit logs", tenant="other")] == [theirs]
    assert await library.search("audit logs", [theirs]) == []
    assert await library.search("audit logs", tenant="nobody") == []


async def test_attached_documents_are_searched_only_when_named(library: Library) -> None:
    await library.add("guide.md", GUIDE)
    attached = await library.add("attached.md", GUIDE, library=False)
    assert [row["name"] for row in await library.search("audit logs")] == ["guide.md"]
    assert [row["name"] for row in await library.search("audit logs", [attached])] == ["attached.md"]
    assert await library.search("audit logs", []) == []


async def test_a_later_fact_replaces_the_document(library: Library) -> None:
    content = await library.add("draft.md", PENGUINS, library=False, content="the same file")
    assert await library.search("penguins") == []
    assert await library.add("penguins.md", PENGUINS, content="the same file") == content
    assert [row["name"] for row in await library.search("huddle")] == ["penguins.md"]


async def test_the_limit_holds_and_ties_keep_their_order(library: Library) -> None:
    for n in range(4):
        await library.add(f"copy{n}.md", PENGUINS + f"\n# End {n}\n")
    first = await library.search("huddle", limit=3)
    assert len(first) == 3
    assert first == await library.search("huddle", limit=3)
    assert [row["document"] for row in first] == sorted(row["document"] for row in first)
