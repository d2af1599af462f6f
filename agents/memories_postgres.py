"""Memories in Postgres: calls the documented search functions over what the projector keeps up to date."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from crewlog.agents.memories import QUERY_CHARS_MAX, Memory
from crewlog.events.connections import explain, is_retryable
from crewlog.schemas.errors import ContractError, Unavailable
from crewlog.schemas.ids import Hash

_SEARCH: Final = "select content, user_name, memory, about, trust, kind, remembered_us from crewlog.search_memories($1, $2, $3, $4, $5)"
_COUNT: Final = "select crewlog.count_memories($1, $2)"
_COMMAND_TIMEOUT_S: Final = 15.0


class PostgresMemories:
    """The `Memories` port over the read model in Postgres."""

    def __init__(self, url: str, *, connections_max: int = 2) -> None:
        self._url, self._connections_max = url, connections_max
        self._pool: asyncpg.Pool[Any] | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections. Safe to call twice, and without ever having connected."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    async def _open(self) -> asyncpg.Pool[Any]:
        # most workers never look anything up: the first call connects
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(self._url, min_size=0, max_size=self._connections_max, command_timeout=_COMMAND_TIMEOUT_S)
            return self._pool

    async def search(self, tenant: str, user: str, query: str, limit: int, *, trusted_only: bool = False) -> list[Memory]:
        if "\0" in query or len(query) > QUERY_CHARS_MAX:
            raise ContractError(f"a query has at most {QUERY_CHARS_MAX} characters and no NUL; got {len(query)} characters")
        async with _mapped("look up memories"):
            rows = await (await self._open()).fetch(_SEARCH, tenant, user, query, limit, trusted_only)
        return [Memory(Hash(r["content"]), r["user_name"] or "", r["memory"], r["about"], r["trust"], r["kind"], r["remembered_us"]) for r in rows]

    async def count(self, tenant: str, user: str) -> int:
        async with _mapped("count memories"):
            return int(await (await self._open()).fetchval(_COUNT, tenant, user))


@asynccontextmanager
async def _mapped(action: str) -> AsyncIterator[None]:
    try:
        yield
    except Exception as error:
        raise Unavailable(f"cannot {action}: {error or type(error).__name__}") if is_retryable(error, None) else explain(error, f"cannot {action}") from error
