"""The projection of documents: the list of them, and the passages that search looks through.

Texts are fetched while writing, a few at a time, so that a page with many documents needs little memory.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import asyncpg
import msgspec

from crewlog.events.store import EventStore
from crewlog.projections.passages import cut
from crewlog.projections.projection import Begins, Fact
from crewlog.projections.rows import DocumentRow, PassageRow
from crewlog.projections.table import Table
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Hash, document_stream
from crewlog.schemas.system_events import DocumentErased, DocumentIngested

DOCUMENTS: Final = Table("documents", DocumentRow, key=("tenant", "content"))
PASSAGES: Final = Table("passages", PassageRow, key=("tenant", "content", "number"))

DOCUMENTS_PER_TRANSACTION_MAX: Final = 16
"""Indexing is slow work: more of it in one transaction would keep other views waiting."""


class KnowledgeChanges(msgspec.Struct):
    """Documents to index."""

    store: EventStore
    documents: dict[tuple[str, str], DocumentRow]
    erased: set[tuple[str, str]]

    async def apply(self, connection: asyncpg.Connection) -> None:
        """Write the documents and replace their passages.

        Raises:
            ContractError: the text of a document is not in the log.
        """
        for tenant, content in self.erased:
            await connection.execute("DELETE FROM passages WHERE tenant = $1 AND content = $2", tenant, content)
            await connection.execute("DELETE FROM documents WHERE tenant = $1 AND content = $2", tenant, content)
        await DOCUMENTS.write(connection, self.documents.values())
        for row in self.documents.values():
            text = (await self.store.get_blobs([Hash(row.text_hash)])).get(Hash(row.text_hash))
            if text is None and await self._is_erased(row):
                text = b""  # its row goes with the event that says so, which is still to come
            if text is None:
                raise ContractError(f"document {row.name!r} of tenant {row.tenant}: its text, blob {row.text_hash}, does not exist")
            await connection.execute("DELETE FROM passages WHERE tenant = $1 AND content = $2", row.tenant, row.content)
            passages = [PassageRow(row.tenant, row.content, n, p.line, p.heading, p.text) for n, p in enumerate(cut(text.decode()), 1)]
            await PASSAGES.write(connection, passages)

    async def _is_erased(self, row: DocumentRow) -> bool:
        stream = document_stream(row.tenant, Hash(row.content))
        return bool(await self.store.read_streams({stream: 0}, types=frozenset({DocumentErased.__name__})))


class KnowledgeProjection:
    """Keeps the documents of all tenants and their search index."""

    name = "knowledge"
    version = 1
    types: frozenset[type] = frozenset((DocumentIngested, DocumentErased))
    tables = (DOCUMENTS.name, PASSAGES.name)
    facts_max = DOCUMENTS_PER_TRANSACTION_MAX

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._documents: dict[tuple[str, str], DocumentRow] = {}
        self._erased: set[tuple[str, str]] = set()

    async def load(self, begins: Begins, *, after: int, skipped: Collection[int]) -> None:
        """Nothing: the last fact about a document is the whole document."""

    def fold(self, fact: Fact) -> None:
        """The last fact about a document counts."""
        event = fact.event
        if isinstance(event, DocumentErased):
            self._documents.pop((event.tenant, event.content), None)
            self._erased.add((event.tenant, event.content))
            return
        assert isinstance(event, DocumentIngested)
        self._erased.discard((event.tenant, event.content))
        self._documents[event.tenant, event.content] = DocumentRow(
            tenant=event.tenant,
            content=event.content,
            name=event.name,
            title=event.title,
            media_type=event.media_type,
            size=event.size,
            lines=event.lines,
            library=event.library,
            text_hash=event.text,
            position=fact.position,
        )

    def take(self) -> KnowledgeChanges:
        """Hand out the documents to index."""
        documents, self._documents = self._documents, {}
        erased, self._erased = self._erased, set()
        return KnowledgeChanges(self._store, documents, erased)

    def forget(self) -> None:
        """Drop what was not handed out."""
        self._documents, self._erased = {}, set()
