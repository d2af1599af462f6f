"""Connections to the documented views in Postgres, for the indexes that tools look things up in. Most workers never do: the first call connects."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg

from crewlog.events.connections import explain, is_retryable
from crewlog.schemas.errors import Unavailable

_COMMAND_TIMEOUT_S: Final = 15.0


class ViewPool:
    """Asks one statement at a time. What goes wrong is told with what was attempted."""

    def __init__(self, url: str, *, connections_max: int) -> None:
        self._url, self._connections_max = url, connections_max
        self._pool: asyncpg.Pool[Any] | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections. Safe to call twice, and without ever having connected."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    async def fetch(self, action: str, sql: str, *values: Any) -> list[Any]:
        """Return the rows of a statement.

        Args:
            action: what is attempted, behind `cannot`.

        Raises:
            Unavailable: the database cannot be reached; another error of the tree for what it refuses.
        """
        try:
            return list(await (await self._open()).fetch(sql, *values))
        except Exception as error:
            raise (
                Unavailable(f"cannot {action}: {error or type(error).__name__}") if is_retryable(error, None) else explain(error, f"cannot {action}")
            ) from error

    async def _open(self) -> asyncpg.Pool[Any]:
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(self._url, min_size=0, max_size=self._connections_max, command_timeout=_COMMAND_TIMEOUT_S)
            return self._pool
