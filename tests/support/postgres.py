"""A real Postgres for tests: one embedded server per session, a fresh database per test, cloned from a migrated template."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from support.replayed import Replayed, is_hand_written

import crewlog.projections
from crewlog.events.credentials import ADMIN, POSTGRES_ROLES, Credentials
from crewlog.events.migrate import LOG_FOLDER, close_to_public, connect, ensure_database, ensure_roles, migrate
from crewlog.events.server_postgres import PostgresServer

TEMPLATE = "crewlog_template"
FOLDERS = [LOG_FOLDER, *(folder for root in crewlog.projections.__path__ if (folder := Path(root) / "sql").is_dir())]
UNSAFE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "on"}
"""Tests kill processes, never the machine: what the kernel has survives without fsync."""

_numbers = count(1)


class Database(NamedTuple):
    """One migrated database. `url(role)` logs in as any of the roles of `crewlog.events.grants`."""

    server: PostgresServer
    credentials: Credentials
    name: str

    @property
    def admin_url(self) -> str:
        return self.server.admin_url(self.name)

    def url(self, role: str) -> str:
        return self.credentials.postgres_url(role, self.server.port, self.name)

    async def admin(self) -> Any:
        """Open a superuser's connection; the caller closes it."""
        return await connect(self.admin_url)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_server() -> AsyncIterator[PostgresServer]:
    folder = Path(tempfile.mkdtemp(prefix="crewlog-test-"))  # not below pytest's own folder: root's server runs as a user who may not enter that
    server = PostgresServer(folder, admin_password="admin", settings=UNSAFE)
    try:
        await server.start()
        await ensure_database(server.admin_url(TEMPLATE))
        await migrate(server.admin_url(TEMPLATE), FOLDERS)
        await ensure_roles(server.admin_url(TEMPLATE), _passwords())
        await close_to_public(server.admin_url(TEMPLATE))
        yield server
    finally:
        await server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture
async def database(postgres_server: PostgresServer, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    name = f"test_{next(_numbers)}"
    connection = await connect(postgres_server.admin_url("postgres"))
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY wal_log")
        yield Database(postgres_server, Credentials(postgres=_passwords(), nats={}), name)
        found = [] if is_hand_written(request) else await Replayed().violations(postgres_server.admin_url(name))
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        assert not found, "\n".join(found)
    finally:
        await connection.close()


def _passwords() -> dict[str, str]:
    return {role: "admin" if role == ADMIN else f"password of {role}" for role in POSTGRES_ROLES}
