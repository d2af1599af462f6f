"""Connections to Postgres: how they are opened, what an error means, and a small pool for statements that may be repeated.

A call that takes too long ends by closing its connection, never by asking the server to cancel: cancelling ends the wait for a
synchronous standby and makes the row visible although it is not replicated; a duplicate check would then vouch for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg

from crewlog.events.clock import Clock
from crewlog.events.postgres_hosts import cluster
from crewlog.schemas.errors import ConfigError, ContractError, NotAuthorised, OrchestrationError, Unavailable

CALL_TIMEOUT_S: Final = 10.0
SPARE_S: Final = 15.0
"""How long connections are kept that nobody needs, in seconds."""
WAIT_S: Final = 30.0
"""How long a caller waits for a server that is away before it gets `Unavailable`."""

Connect = Callable[[], Awaitable[Any]]

_SESSION: Final = {
    # every statement of the log goes through an index; without statistics the planner would not know
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    # an append that idles inside its transaction would hold back every reader of the whole log
    "idle_in_transaction_session_timeout": "10s",
}
_RETRYABLE: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InternalClientError,  # a connection that died in the middle of an answer
    asyncpg.OperatorInterventionError,  # shutting down, starting up
    asyncpg.ReadOnlySQLTransactionError,  # this server was the primary, and another one is now
    asyncpg.TransactionRollbackError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,  # the server's own disk
    asyncpg.LockNotAvailableError,  # this and the next two: limits that an operator has set for the login, met while others were busy
    asyncpg.TransactionTimeoutError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    OSError,
    TimeoutError,
)


def connector(url: str, *, application: str) -> Connect:
    """Return a function that opens connections to `url`."""

    async def connect() -> Any:
        return await cluster(url).connect({**_SESSION, "application_name": application[:60]})

    return connect


async def fetch(connection: Any, sql: str, arguments: list[Any] | tuple[Any, ...], *, timeout_s: float = CALL_TIMEOUT_S) -> list[Any]:
    """Run one statement; close the connection when it takes too long or the caller is cancelled."""
    watchdog = asyncio.get_running_loop().call_later(timeout_s, connection.terminate)
    try:
        rows: list[Any] = await connection.fetch(sql, *arguments)
    except asyncio.CancelledError:
        connection.terminate()  # before the cancel request that asyncpg has queued goes out
        raise
    finally:
        watchdog.cancel()
    return rows


def is_retryable(error: BaseException, connection: Any) -> bool:
    """Say whether the same call may succeed on a new connection."""
    if isinstance(error, asyncpg.InterfaceError):
        return connection is not None and bool(connection.is_closed())  # on a live connection it is our own mistake
    return isinstance(error, _RETRYABLE)


def explain(error: Exception, what: str) -> OrchestrationError:
    """Turn an error that no retry cures into ours."""
    if isinstance(error, OrchestrationError):
        return error
    if isinstance(error, (asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError, asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError)):
        return ConfigError(f"{what}: the database does not fit this program: {error}", hint="run: crewlog db migrate")
    if isinstance(error, (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError, asyncpg.ClientConfigurationError)):
        return ConfigError(f"{what}: Postgres refused the connection: {error}", hint="check CREWLOG_DATABASE_URL")
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return NotAuthorised("this database login", what, reason=str(error))
    return ContractError(f"{what}: refused by Postgres: {error}")


class Connections:
    """Up to `size` connections, opened when needed; every statement run through it may be run twice.

    Those that nobody has needed for `SPARE_S` are closed: each is a process of the server with memory of its own, and most workers wait most
    of the time. A new one costs a few milliseconds.
    """

    def __init__(
        self, connect: Connect, clock: Clock, *, size: int, call_timeout_s: float = CALL_TIMEOUT_S, wait_s: float = WAIT_S, spare_s: float = SPARE_S
    ) -> None:
        self._connect, self._clock = connect, clock
        self._call_timeout_s, self._wait_s, self._spare_s = call_timeout_s, wait_s, spare_s
        self._slots = asyncio.Semaphore(size)
        self._idle: list[Any] = []
        self._unneeded = 0
        """How many were idle all the time since surplus was closed last."""
        self._thinning: asyncio.TimerHandle | None = None

    async def fetch(self, what: str, sql: str, *arguments: Any) -> list[Any]:
        """Run one statement, on a new connection if need be.

        Args:
            what: what is being done, for the error's text.

        Raises:
            Unavailable: the server stayed away.
            OrchestrationError: what else the server had against it.
        """
        deadline = self._clock.monotonic() + self._wait_s
        delay = 0.05
        async with self._slots:
            while True:
                connection = None
                try:
                    connection = self._take() or await self._connect()
                    rows = await fetch(connection, sql, arguments, timeout_s=self._call_timeout_s)
                except Exception as error:
                    if connection is not None:
                        connection.terminate()
                    if not is_retryable(error, connection):
                        raise explain(error, what) from error
                    if self._clock.monotonic() > deadline:
                        raise Unavailable(f"{what}: Postgres has been away for {self._wait_s:g} s: {error or type(error).__name__}") from error
                else:
                    self._put_back(connection)
                    return rows
                await asyncio.sleep(delay * (0.5 + self._clock.fraction() / 2))
                delay = min(delay * 2, 2.0)

    def _take(self) -> Any:
        connection = self._idle.pop() if self._idle else None
        self._unneeded = min(self._unneeded, len(self._idle))
        return connection

    def _put_back(self, connection: Any) -> None:
        self._idle.append(connection)
        if self._thinning is None:
            self._thinning = asyncio.get_running_loop().call_later(self._spare_s, self._thin)

    def _thin(self) -> None:
        """Close what was idle all the time."""
        for _ in range(self._unneeded):
            self._idle.pop(0).terminate()
        self._unneeded = len(self._idle)
        self._thinning = asyncio.get_running_loop().call_later(self._spare_s, self._thin) if self._idle else None

    async def close(self) -> None:
        """Close what is idle."""
        if self._thinning is not None:
            self._thinning.cancel()
            self._thinning = None
        self._unneeded = 0
        while self._idle:
            self._idle.pop().terminate()
