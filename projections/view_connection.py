"""Connections of the projector: to which schema they write, and who may use one."""

from __future__ import annotations

import asyncio
from typing import Final, Literal

import asyncpg

from crewlog.events.connections import explain, is_retryable
from crewlog.events.postgres_hosts import cluster
from crewlog.schemas.errors import Unavailable

STANDBY_POLL_S: Final = 1.0
"""How often a standby tries to take over, in seconds."""

LEADER: Final = 0x63726577_70726F6A
REBUILDER: Final = 0x63726577_7265626C
"""Advisory locks: one process keeps the views, one process rebuilds them."""


async def connect_views(url: str, schema: Literal["rm", "rm_build"]) -> asyncpg.Connection:
    """Open a connection whose unqualified table names are those of the live read model, or of the one being rebuilt.

    Raises:
        ConfigError: the login is refused or the database is missing.
        Unavailable: the server cannot be reached.
    """
    settings = {
        "search_path": schema,
        "application_name": f"crewlog projector {schema}",
        "synchronous_commit": "off",  # a crash loses views and checkpoint together, and the log has it all
        "plan_cache_mode": "force_generic_plan",
        "jit": "off",
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
    }
    try:
        return await cluster(url).connect(settings)
    except Exception as error:
        if is_retryable(error, None):
            raise Unavailable(f"connect to keep the views: Postgres cannot be reached: {error or type(error).__name__}") from error
        raise explain(error, "connect to keep the views") from error


async def lead(connection: asyncpg.Connection, *, poll_s: float = STANDBY_POLL_S) -> None:
    """Wait until this connection holds the leader's lock. The lock lives and dies with the connection that writes."""
    # polled: a session that blocks inside pg_advisory_lock() holds a snapshot, which migrations may have to wait for
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LEADER):  # noqa: ASYNC110 - nobody here could set an event
        await asyncio.sleep(poll_s)
