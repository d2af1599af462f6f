"""A fingerprint of every table of the read model, to show that a rebuild gives the same rows as following the log did."""

from __future__ import annotations

import hashlib
from typing import Final

import asyncpg

from crewlog.projections.view_connection import connect_views

_TABLES: Final = """
SELECT c.relname AS name, c.oid::regclass::text AS source,
       (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY k.n) FROM unnest(i.indkey) WITH ORDINALITY k (attnum, n)
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum) AS key
  FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
 WHERE c.relnamespace = 'rm'::regnamespace AND c.relkind = 'r' AND c.relname NOT IN ('checkpoints', 'telemetry') ORDER BY c.relname
"""


async def digest(url: str) -> dict[str, str]:
    """Return table -> sha-256 of all its rows in the order of the primary key, all as of one moment.

    Args:
        url: login of the projector or of the database's owner.
    """
    connection = await connect_views(url, "rm")
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return {name: await _hash(connection, source, key) for name, source, key in await connection.fetch(_TABLES)}
    finally:
        await connection.close()


async def _hash(connection: asyncpg.Connection, source: str, key: str) -> str:
    sha256 = hashlib.sha256()

    async def feed(data: bytes) -> None:
        sha256.update(data)

    await connection.copy_from_query(f"SELECT * FROM {source} ORDER BY {key}", output=feed)  # noqa: S608 - names as the catalog quotes them
    return sha256.hexdigest()
