"""Two Postgres servers, one of which follows the other synchronously, and the moment in which it takes over."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support.postgres import FOLDERS, UNSAFE

from crewlog.events.credentials import ADMIN
from crewlog.events.migrate import connect, ensure_database, ensure_roles, migrate
from crewlog.events.postgres_hosts import cluster
from crewlog.events.server_postgres import PostgresServer

STANDBY = "follower"
PASSWORD = "admin"
SETTINGS = {
    **UNSAFE,
    "wal_level": "replica",
    "hot_standby": "on",
    "wal_retrieve_retry_interval": "100ms",
    "wal_receiver_status_interval": "1s",
    "max_wal_senders": "4",
}


class Follower(PostgresServer):
    """A server whose data is a copy that follows another one; it is up when it is a standby."""

    def _is_ready(self, pid: int) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() in ("standby", "ready")

    async def copy_from(self, source: PostgresServer) -> None:
        """Copy the data of a running server, and remember to follow it."""
        self._prepare_directory()
        binaries = await self._binaries()
        where = f"host=127.0.0.1 port={source.port} user={ADMIN} password={PASSWORD} application_name={STANDBY}"
        code, output = await self._run(binaries / "pg_basebackup", "-D", self._data, "-X", "stream", "-c", "fast", "-R", "-d", where)
        assert code == 0, output


class Pair:
    """`url(role)` names both servers; nobody who connects needs to know which one is the primary."""

    def __init__(self, primary: PostgresServer, follower: Follower) -> None:
        self.primary, self.follower = primary, follower

    def url(self, role: str = ADMIN) -> str:
        password = PASSWORD if role == ADMIN else role
        return f"postgresql://{role}:{password}@127.0.0.1:{self.primary.port},127.0.0.1:{self.follower.port}/crewlog"

    async def ask(self, server: PostgresServer, *statements: str) -> Any:
        """Run statements on one of the servers and return what the last one says."""
        connection = await connect(server.admin_url("postgres"))
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    async def ask_log(self, query: str) -> list[Any]:
        """Read one column of the log from whoever is the primary now."""
        connection = await cluster(self.url()).connect({})
        try:
            return [row[0] for row in await connection.fetch(query)]
        finally:
            await connection.close()

    async def until_synchronous(self) -> None:
        """From here on a commit that is acknowledged is on both servers."""
        await self.ask(self.primary, f"ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 ({STANDBY})'", "SELECT pg_reload_conf()")
        async with asyncio.timeout(90):
            while not await self.ask(self.primary, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def fail_over(self) -> None:
        """Kill the primary and let the follower take over, alone."""
        assert self.primary.pid is not None
        os.kill(self.primary.pid, signal.SIGKILL)
        await self.primary.wait()
        await self.ask(self.follower, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        assert await self.ask(self.follower, "SELECT pg_promote(true, 20)")


@asynccontextmanager
async def a_pair(roles: tuple[str, ...]) -> AsyncIterator[Pair]:
    """Run a migrated primary and its synchronous follower."""
    home = Path(tempfile.mkdtemp(prefix="crewlog-test-"))
    home.chmod(0o755)  # noqa: ASYNC240
    primary = PostgresServer(home / "one", admin_password=PASSWORD, settings=SETTINGS)
    follower = Follower(home / "two", admin_password=PASSWORD, settings=SETTINGS)
    try:
        await primary.start()
        url = primary.admin_url("crewlog")
        await ensure_database(url)
        await migrate(url, FOLDERS)
        await ensure_roles(url, {role: role for role in roles})
        await follower.copy_from(primary)
        await follower.start()
        pair = Pair(primary, follower)
        await pair.until_synchronous()
        yield pair
    finally:
        await follower.stop()
        await primary.stop()
        shutil.rmtree(home, ignore_errors=True)
