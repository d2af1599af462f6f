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
from crewlog.schemas.ids import Hash
from crewlog.schemas.system_events import DocumentIngested

DOCUMENTS: Final = Table("documents", DocumentRow, key=("tenant", "content"))
PASSAGES: Final = Table("passages", PassageRow, key=("tenant", "content", "number"))

DOCUMENTS_PER_TRANSACTION_MAX: Final = 16
"""Indexing is slow work: more of it in one transaction would keep other views waiting."""


class KnowledgeChanges(msgspec.Struct):
    """Documents to index."""

    store: EventStore
    documents: dict[tuple[str, str], DocumentRow]

    async def apply(self, connection: asyncpg.Connection) -> None:
        """Write the documents and replace their passages.

        Raises:
            ContractError: the text of a document is not in the log.
        """
        await DOCUMENTS.write(connection, self.documents.values())
        for row in self.documents.values():
            text = (await self.store.get_blobs([Hash(row.text_hash)])).get(Hash(row.text_hash))
            if text is None:
                raise ContractError(f"document {row.name!r} of tenant {row.tenant}: its text, blob {row.text_hash}, does not exist")
            await connection.execute("DELETE FROM passages WHERE tenant = $1 AND content = $2", row.tenant, row.content)
            passages = [PassageRow(row.tenant, row.content, n, p.line, p.heading, p.text) for n, p in enumerate(cut(text.decode()), 1)]
            await PASSAGES.write(connection, passages)


class KnowledgeProjection:
    """Keeps the documents of all tenants and their search index."""

    name = "knowledge"
    version = 1
    types: frozenset[type] = frozenset((DocumentIngested,))
    tables = (DOCUMENTS.name, PASSAGES.name)
    facts_max = DOCUMENTS_PER_TRANSACTION_MAX

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._documents: dict[tuple[str, str], DocumentRow] = {}

    async def load(self, begins: Begins, *, after: int, skipped: Collection[int]) -> None:
        """Nothing: the last fact about a document is the whole document."""

    def fold(self, fact: Fact) -> None:
        """The last fact about a document counts."""
        event = fact.event
        assert isinstance(event, DocumentIngested)
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
        return KnowledgeChanges(self._store, documents)

    def forget(self) -> None:
        """Drop what was not handed out."""
        self._documents = {}
