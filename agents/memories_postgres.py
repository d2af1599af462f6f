"""Memories in Postgres: calls the documented search functions over what the projector keeps up to date."""

from __future__ import annotations

from typing import Final

from crewlog.agents.memories import QUERY_CHARS_MAX, Memory
from crewlog.agents.view_pool import ViewPool
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Hash

_SEARCH: Final = "select content, user_name, memory, about, trust, kind, remembered_us from crewlog.search_memories($1, $2, $3, $4, $5)"
_COUNT: Final = "select crewlog.count_memories($1, $2)"


class PostgresMemories:
    """The `Memories` port over the read model in Postgres."""

    def __init__(self, url: str, *, connections_max: int = 2) -> None:
        self._views = ViewPool(url, connections_max=connections_max)

    async def close(self) -> None:
        """Close the connections. Safe to call twice, and without ever having connected."""
        await self._views.close()

    async def search(self, tenant: str, user: str, query: str, limit: int, *, trusted_only: bool = False) -> list[Memory]:
        if "\0" in query or len(query) > QUERY_CHARS_MAX:
            raise ContractError(f"a query has at most {QUERY_CHARS_MAX} characters and no NUL; got {len(query)} characters")
        rows = await self._views.fetch("look up memories", _SEARCH, tenant, user, query, limit, trusted_only)
        return [Memory(Hash(r["content"]), r["user_name"] or "", r["memory"], r["about"], r["trust"], r["kind"], r["remembered_us"]) for r in rows]

    async def count(self, tenant: str, user: str) -> int:
        ((count,),) = await self._views.fetch("count memories", _COUNT, tenant, user)
        return int(count)
