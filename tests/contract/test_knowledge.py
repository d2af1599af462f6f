"""One suite for the knowledge port: in memory, and in Postgres behind the real projection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import pytest
import pytest_asyncio
from support.postgres import Database

from crewlog.agents.ingest import Ingested, ingest
from crewlog.agents.knowledge import Knowledge
from crewlog.agents.knowledge_memory import MemoryKnowledge
from crewlog.agents.knowledge_postgres import PostgresKnowledge
from crewlog.events.clock import SystemClock
from crewlog.events.grants import PROJECTOR, kind_role
from crewlog.events.memory_store import MemoryStore
from crewlog.events.migrate import connect
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import ANY, AppendRequest, EventStore, Write
from crewlog.projections.catalog import all_projections
from crewlog.projections.read_model import ReadModel
from crewlog.schemas.errors import ConfigError, ContractError, Unavailable
from crewlog.schemas.ids import Hash, document_stream
from crewlog.schemas.system_events import DocumentErased

CLOCK = SystemClock()
RESEARCH = kind_role("research")

REPLAY = "# Replay\n\nReplaying a run costs nothing.\nThe log holds every event.\n\n## Limits\n\nA run has at most 4096 steps.\n"
MAIL = "# Mail\n\nThe mail server keeps a message for five days.\n\nAn approval expires after a day.\n"
PENGUINS = "# Penguins\n\nAdelie penguins breed on all three islands.\n"


class Shelf(Protocol):
    """A log with an index behind it."""

    store: EventStore
    knowledge: Knowledge

    async def index(self) -> None:
        """Let the index catch up with the log."""


class InMemory:
    def __init__(self) -> None:
        self.store: EventStore = MemoryStore(role=RESEARCH)
        self.knowledge: Knowledge = MemoryKnowledge(self.store)

    async def index(self) -> None: ...


class InPostgres:
    def __init__(self, store: EventStore, knowledge: Knowledge, projector: EventStore, model: ReadModel) -> None:
        self.store, self.knowledge, self._projector, self._model = store, knowledge, projector, model

    async def index(self) -> None:
        page = await self._projector.read_all(self._model.position, 1_000)
        await self._model.advance(page.events)


@pytest.fixture(params=["memory", "postgres"])
def database_or_none(request: pytest.FixtureRequest) -> Database | None:
    return request.getfixturevalue("database") if request.param == "postgres" else None


@pytest_asyncio.fixture
async def shelf(database_or_none: Database | None) -> AsyncIterator[Shelf]:
    if database_or_none is None:
        yield InMemory()
        return
    database = database_or_none
    store = await PostgresStore.open(database.url(RESEARCH), actor="research@test", clock=CLOCK)
    projector = await PostgresStore.open(database.url(PROJECTOR), actor="projector@test", clock=CLOCK)
    knowledge = PostgresKnowledge(database.url(RESEARCH))
    connection = await connect(database.url(PROJECTOR))
    try:
        await connection.execute("SET search_path = rm")
        model = ReadModel(connection, all_projections(projector))
        await model.open()
        yield InPostgres(store, knowledge, projector, model)
    finally:
        await connection.close()
        await knowledge.close()
        await store.close()
        await projector.close()


async def add(shelf: Shelf, name: str, text: str, *, library: bool = True, tenant: str = "default") -> Ingested:
    ingested = await ingest(shelf.store, CLOCK, tenant=tenant, name=name, data=text.encode(), library=library)
    await shelf.index()
    await shelf.knowledge.wait_indexed(ingested.position, 5)
    return ingested


async def test_words_are_found_in_all_their_forms_with_the_line_they_stand_at(shelf: Shelf) -> None:
    added = await add(shelf, "replay.md", REPLAY)
    await add(shelf, "mail.md", MAIL)
    found, *_ = await shelf.knowledge.search("default", "replayed", None, 10)
    assert (found.document, found.name) == (added.document.content, "replay.md")
    assert found.rank > 0
    lines = REPLAY.split("\n")
    assert found.text.split("\n") == lines[found.line - 1 : found.line - 1 + len(found.text.split("\n"))]
    assert "Replaying a run costs nothing." in found.text


async def test_the_best_passage_comes_first_and_the_limit_holds(shelf: Shelf) -> None:
    await add(shelf, "replay.md", REPLAY)
    await add(shelf, "mail.md", MAIL)
    await add(shelf, "other.md", "# Other\n\nA message about nothing.\n")
    found = await shelf.knowledge.search("default", "how many days does the server keep a message", None, 10)
    assert found[0].name == "mail.md"
    assert [p.rank for p in found] == sorted((p.rank for p in found), reverse=True)
    assert len(found) >= 2
    assert await shelf.knowledge.search("default", "how many days does the server keep a message", None, 1) == found[:1]


@pytest.mark.parametrize("query", ["zebra", "", "the of and", "'; drop table rm.documents; --", "& | ! ( ) : *", '"', "\\", "%_%"])
async def test_what_fits_nothing_finds_nothing(shelf: Shelf, query: str) -> None:
    await add(shelf, "penguins.md", PENGUINS)
    assert await shelf.knowledge.search("default", query, None, 10) == []


async def test_a_tenant_never_sees_another_ones_documents(shelf: Shelf) -> None:
    theirs = await add(shelf, "penguins.md", PENGUINS, tenant="acme")
    assert await shelf.knowledge.search("default", "penguins", None, 10) == []
    assert await shelf.knowledge.search("default", "penguins", [theirs.document.content], 10) == []
    assert await shelf.knowledge.documents("default", [theirs.document.content]) == []
    assert await shelf.knowledge.documents("default", None) == []
    assert [p.name for p in await shelf.knowledge.search("acme", "penguins", None, 10)] == ["penguins.md"]


async def test_attached_documents_are_found_by_name_only(shelf: Shelf) -> None:
    attached = await add(shelf, "penguins.md", PENGUINS, library=False)
    library = await add(shelf, "mail.md", MAIL)
    assert await shelf.knowledge.search("default", "penguins", None, 10) == []
    assert [i.name for i in await shelf.knowledge.documents("default", None)] == ["mail.md"]
    (found,) = await shelf.knowledge.search("default", "penguins", [attached.document.content], 10)
    assert found.name == "penguins.md"
    assert await shelf.knowledge.search("default", "approval", [attached.document.content], 10) == []
    both = await shelf.knowledge.documents("default", [library.document.content, attached.document.content, Hash("0" * 64)])
    assert [(i.name, i.library, i.lines, i.title) for i in both] == [("mail.md", True, 5, "Mail"), ("penguins.md", False, 3, "Penguins")]
    assert both[1].document == attached.document.content
    assert both[1].text == attached.document.text
    assert both[1].media_type == "text/markdown"


async def test_an_attached_document_can_join_the_library_later(shelf: Shelf) -> None:
    first = await add(shelf, "draft.md", PENGUINS, library=False)
    second = await add(shelf, "penguins.md", PENGUINS)
    assert second.added
    assert second.document.text == first.document.text
    assert [(i.name, i.library) for i in await shelf.knowledge.documents("default", None)] == [("penguins.md", True)]
    again = await add(shelf, "attached.md", PENGUINS, library=False)
    assert (again.added, again.position) == (False, second.position)
    assert [i.name for i in await shelf.knowledge.documents("default", None)] == ["penguins.md"]


async def test_waiting_ends_with_the_position_of_the_index(shelf: Shelf) -> None:
    added = await add(shelf, "mail.md", MAIL)
    with pytest.raises(Unavailable, match=rf"{added.position}.*{added.position + 1}"):
        await shelf.knowledge.wait_indexed(added.position + 1, 0.05)


async def test_postgres_answers_bad_queries_and_bad_databases_in_words(database: Database) -> None:
    knowledge = PostgresKnowledge(database.url(RESEARCH))
    try:
        with pytest.raises(ContractError, match="at most 1000 characters and no NUL"):
            await knowledge.search("default", "a\0b", None, 10)
    finally:
        await knowledge.close()
    empty = PostgresKnowledge(database.server.admin_url("postgres"))
    try:
        with pytest.raises(ConfigError, match="crewlog db migrate"):
            await empty.documents("default", None)
    finally:
        await empty.close()
    away = PostgresKnowledge("postgresql://crewlog@127.0.0.1:1/crewlog")
    with pytest.raises(Unavailable, match="cannot list documents"):
        await away.documents("default", None)


async def test_in_memory_what_was_erased_is_found_no_more() -> None:
    shelf = InMemory()
    shelf.store = store = MemoryStore()
    early = shelf.knowledge = MemoryKnowledge(store)
    await add(shelf, "mail.md", MAIL)
    gone = (await add(shelf, "replay.md", REPLAY)).document
    assert len(await early.search("default", "event message", None, 10)) == 2
    write = Write(document_stream("default", gone.content), (DocumentErased("default", gone.content, "ada"),), ANY)
    await store.append(AppendRequest((write,), (CLOCK.new_id(),), CLOCK.now_us()))
    del store.log.blobs[gone.text]
    for knowledge in (early, MemoryKnowledge(store)):
        assert [info.name for info in await knowledge.documents("default", None)] == ["mail.md"]
        assert {passage.name for passage in await knowledge.search("default", "event message", None, 10)} == {"mail.md"}
