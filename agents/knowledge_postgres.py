"""Knowledge in Postgres: reads the documented views and the search function that the projector keeps up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from crewlog.agents.knowledge import DOCUMENTS_MAX, DocumentInfo, Passage
from crewlog.agents.view_pool import ViewPool
from crewlog.schemas.errors import ContractError, Unavailable
from crewlog.schemas.ids import Hash

_SEARCH: Final = "select document, name, line, passage, rank from crewlog.search_documents($1, $2, $3, $4) order by rank desc, document, line"
_COLUMNS: Final = "select content, name, title, media_type, lines, library, text_hash from crewlog.documents"
_LIBRARY: Final = f"{_COLUMNS} where tenant = $1 and library order by name, content limit {DOCUMENTS_MAX}"
_CHOSEN: Final = f"{_COLUMNS} where tenant = $1 and content = any($2::text[]) order by name, content limit {DOCUMENTS_MAX}"
_CHECKPOINT: Final = "select position from crewlog.checkpoints where name = 'knowledge'"

QUERY_CHARS_MAX: Final = 1_000
_POLL_MIN_S: Final = 0.02
_POLL_MAX_S: Final = 0.5


class PostgresKnowledge:
    """The `Knowledge` port over the read model in Postgres."""

    def __init__(self, url: str, *, connections_max: int = 4) -> None:
        self._views = ViewPool(url, connections_max=connections_max)

    async def close(self) -> None:
        """Close the connections. Safe to call twice, and without ever having connected."""
        await self._views.close()

    async def search(self, tenant: str, query: str, documents: Sequence[Hash] | None, limit: int) -> list[Passage]:
        if "\0" in query or len(query) > QUERY_CHARS_MAX:
            raise ContractError(f"a query has at most {QUERY_CHARS_MAX} characters and no NUL; got {len(query)} characters")
        rows = await self._views.fetch("search documents", _SEARCH, tenant, query, None if documents is None else list(documents), limit)
        return [Passage(Hash(row["document"]), row["name"], row["line"], row["passage"], row["rank"]) for row in rows]

    async def documents(self, tenant: str, hashes: Sequence[Hash] | None) -> list[DocumentInfo]:
        asked = (_LIBRARY, tenant) if hashes is None else (_CHOSEN, tenant, list(hashes))
        rows = await self._views.fetch("list documents", *asked)
        return [DocumentInfo(Hash(r["content"]), r["name"], r["title"], r["media_type"], r["lines"], r["library"], Hash(r["text_hash"])) for r in rows]

    async def wait_indexed(self, position: int, timeout_s: float) -> None:
        # the checkpoint moves in the transaction that writes the index, so seeing it is seeing the documents
        reached, pause_s = 0, _POLL_MIN_S
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    rows = await self._views.fetch("read how far the knowledge index is", _CHECKPOINT)
                    reached = rows[0]["position"] if rows else 0
                    if reached >= position:
                        return
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 1.5, _POLL_MAX_S)
        except TimeoutError:
            raise Unavailable(
                f"the knowledge index is at position {reached} of the log and has not reached {position} within {timeout_s:g} s; "
                "the projector lags or is not running (see `crewlog status`)"
            ) from None
