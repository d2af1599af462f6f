"""Looking at the log of a crew, and at nothing else of it: no message bus, no settings but where it is. Quick to start, and NATS may be down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from crewlog.events.clock import SystemClock
from crewlog.events.whereabouts import find_whereabouts
from crewlog.orchestrator.disclosed_views import DisclosedViews
from crewlog.orchestrator.endpoints import database_at
from crewlog.projections.queries import Queries

if TYPE_CHECKING:
    from crewlog.events.postgres_store import PostgresStore
    from crewlog.events.store import EventStore


class LogReader:
    """The views, and the log behind them; a connection to either is opened when it is first needed."""

    def __init__(self, url: str, home: Path | None, exits: AsyncExitStack) -> None:
        self._url, self._home, self._clock, self._exits = url, home, SystemClock(), exits
        self.queries = Queries(url, self._clock, disclose=DisclosedViews(self.store))
        exits.push_async_callback(self.queries.close)
        self._store: EventStore | None = None

    async def store(self) -> EventStore:
        """Return the log.

        Raises:
            Unavailable: the database does not answer.
        """
        if self._store is None:
            from crewlog.events.postgres_store import PostgresStore

            opened = await PostgresStore.open(self._url, actor="reader", clock=self._clock, readers=2)
            self._exits.push_async_callback(opened.close)
            self._store = await _disclosing(opened, self._home)
        return self._store


@asynccontextmanager
async def open_log(home: Path | None) -> AsyncIterator[LogReader]:
    """Look at the log with the operator's login.

    Args:
        home: folder of the crew from the command line; None reads the configuration.

    Raises:
        Unavailable: no crew runs there.
    """
    where = find_whereabouts(home)
    async with AsyncExitStack() as exits:
        yield LogReader(database_at(where, "operator"), home, exits)


async def _disclosing(store: PostgresStore, home: Path | None) -> EventStore:
    """Return the log as it was written. The whole configuration is only read where persons have keys: it says where the key to them is."""
    if not await store.person_keys.exist():
        return store
    from crewlog.events.config import load
    from crewlog.events.personal_store import personal_log

    return await personal_log(store, load() if home is None else load(home=home), SystemClock())
