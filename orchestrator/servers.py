"""The two servers under a supervisor: embedded ones that it starts and watches, or the ones the configuration names."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from crewlog import projections
from crewlog.events.bus import Bus
from crewlog.events.config import Config
from crewlog.events.credentials import Credentials, load_credentials
from crewlog.events.grants import BUILT_IN_KINDS, ROLES
from crewlog.events.jetstream import ensure_topology
from crewlog.events.migrate import LOG_FOLDER, close_to_public, ensure_database, ensure_roles, migrate
from crewlog.events.nats_bus import NatsBus
from crewlog.events.server_nats import NatsServer
from crewlog.events.server_postgres import PostgresServer
from crewlog.orchestrator.endpoints import role_of
from crewlog.orchestrator.home import Home
from crewlog.schemas.errors import OrchestrationError

_RESTART_FIRST_S: Final = 0.2
_RESTART_LONGEST_S: Final = 5.0

SQL_FOLDERS: Final = (LOG_FOLDER, Path(projections.__file__).with_name("sql"))
"""Where the database's shape is written down: the log, and the views on it."""


class Server(Protocol):
    """What both embedded servers have in common."""

    port: int

    @property
    def pid(self) -> int | None: ...
    async def start(self) -> None: ...
    async def wait(self) -> int: ...
    async def stop(self) -> None: ...


async def migrate_all(admin_url: str, passwords: Mapping[str, str]) -> list[str]:
    """Bring log and views to the shape this program needs and set the logins' rights; returns the files that were applied."""
    await ensure_database(admin_url)
    applied = await migrate(admin_url, SQL_FOLDERS)
    await ensure_roles(admin_url, passwords)
    return applied


class Servers:
    """Postgres and NATS, reachable and in shape once `start` has returned.

    Args:
        config: an address in it means that this server is not ours to start.
        say: called with one line per phase or incident.
    """

    bus: Bus

    def __init__(self, config: Config, home: Home, *, say: Callable[[str], None]) -> None:
        self._config, self._home, self._say = config, home, say
        self._credentials: Credentials | None = None
        self._postgres: PostgresServer | None = None
        self._nats: NatsServer | None = None
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def database_port(self) -> int | None:
        """Port of the embedded Postgres; None when it is not ours."""
        return self._postgres.port if self._postgres else None

    @property
    def nats_port(self) -> int | None:
        """Port of the embedded NATS server; None when it is not ours."""
        return self._nats.port if self._nats else None

    def pid_of(self, server: Literal["postgres", "nats"]) -> int | None:
        """Return the process of an embedded server; None while it does not run, or when it is not ours."""
        found = self._postgres if server == "postgres" else self._nats
        return None if found is None else found.pid

    async def start(self) -> None:
        """Start what is ours, then migrate the database and create the streams."""
        before = self._home.state()
        if self._config.database_url is None or self._config.nats_url is None:
            self._credentials = load_credentials(self._home.path)
        if self._config.database_url is None:
            assert self._credentials is not None
            password = self._credentials.postgres["crewlog_admin"]
            port = (before and before.database_port) or 0
            self._postgres = PostgresServer(self._home.path / "postgres", admin_password=password, port=port, say=self._say)
            if not (self._home.path / "postgres" / "data").exists():
                self._say("first start: making the database")
        if self._config.nats_url is None:
            assert self._credentials is not None
            self._nats = NatsServer(self._home.path / "nats", self._credentials.nats, port=(before and before.nats_port) or 0)
        await _all(*(server.start() for server in self._embedded()))
        self._keepers = [asyncio.create_task(self._keep(server)) for server in self._embedded()]
        await _all(self._prepare_database(), self._prepare_streams())

    def env_for(self, process: str) -> dict[str, str]:
        """Return the two addresses with the credentials of this kind of process."""
        role, database = role_of(process), self._config.database_url
        return {
            "CREWLOG_DATABASE_URL": database.get_secret_value()
            if database
            else _known(self._credentials).postgres_url(f"crewlog_{role}", _port(self._postgres)),
            "CREWLOG_NATS_URL": self._nats_url(role),
        }

    async def stop(self) -> None:
        """Stop NATS, then Postgres. Safe to call at any time."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if hasattr(self, "bus"):
            await self.bus.close()
        for server in reversed(self._embedded()):
            await server.stop()

    def kill(self) -> None:
        """End the servers at once; what was committed stays."""
        for keeper in self._keepers:
            keeper.cancel()
        for server in self._embedded():
            if server.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(server.pid, signal.SIGQUIT)

    def _nats_url(self, user: str) -> str:
        given = self._config.nats_url
        return given.get_secret_value() if given else _known(self._credentials).nats_url(user, _port(self._nats))

    def _embedded(self) -> list[Server]:
        return [server for server in (self._postgres, self._nats) if server is not None]

    async def _prepare_database(self) -> None:
        if self._postgres is not None:
            passwords = {role: _known(self._credentials).postgres[role] for role in ROLES}
            applied = await migrate_all(self._postgres.admin_url(), passwords)
            await close_to_public(self._postgres.admin_url())
        else:
            assert self._config.database_url is not None
            applied = await migrate_all(self._config.database_url.get_secret_value(), {})
        if applied:
            self._say(f"database: {len(applied)} migrations applied")

    async def _prepare_streams(self) -> None:
        self.bus = await NatsBus.connect(self._nats_url("supervisor"), name="supervisor", provision=self._config.provision)
        await ensure_topology(self.bus, dict.fromkeys(BUILT_IN_KINDS, ()), provision=self._config.provision)

    async def _keep(self, server: Server) -> None:
        """Start a server again when it ends by itself: the processes reconnect, and the log is on disk."""
        wait_s = _RESTART_FIRST_S
        while True:
            code = await server.wait()
            self._say(f"{type(server).__name__} ended with exit code {code}, starts again in {wait_s:g} s")
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _RESTART_LONGEST_S)
            try:
                await server.start()
                wait_s = _RESTART_FIRST_S
            except (OrchestrationError, OSError) as error:  # such as a disk that is full, and will not be for ever
                self._say(f"{type(server).__name__} did not start: {error}")


async def _all(*steps: Coroutine[Any, Any, None]) -> None:
    """Carry out steps side by side. When one fails the others still come to their end: nothing may be half started when everything is stopped."""
    for outcome in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _known(credentials: Credentials | None) -> Credentials:
    assert credentials is not None, "embedded servers have credentials"
    return credentials


def _port(server: Server | None) -> int:
    assert server is not None
    return server.port
