"""Looking at the log of a crew, and at nothing else of it: no message bus, no settings but where it is. Quick to start, and NATS may be down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from crewlog.events.clock import SystemClock
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import EventStore
from crewlog.events.whereabouts import find_whereabouts
from crewlog.orchestrator.endpoints import database_at
from crewlog.projections.queries import Queries


class LogReader(NamedTuple):
    """The log and the views."""

    store: EventStore
    queries: Queries


@asynccontextmanager
async def open_log(home: Path | None) -> AsyncIterator[LogReader]:
    """Open the log with the operator's login.

    Args:
        home: folder of the crew from the command line; None reads the configuration.

    Raises:
        Unavailable: no crew runs there, or its database does not answer.
    """
    url, clock = database_at(find_whereabouts(home), "operator"), SystemClock()
    async with AsyncExitStack() as exits:
        queries = Queries(url, clock)
        exits.push_async_callback(queries.close)
        store = await PostgresStore.open(url, actor="reader", clock=clock, readers=2)
        exits.push_async_callback(store.close)
        yield LogReader(await _disclosing(store, home), queries)


async def _disclosing(store: PostgresStore, home: Path | None) -> EventStore:
    """Return the log as it was written. The whole configuration is only read where persons have keys: it says where the key to them is."""
    if not await store.person_keys.exist():
        return store
    from crewlog.events.config import load
    from crewlog.events.personal_store import personal_log

    return await personal_log(store, load() if home is None else load(home=home), SystemClock())
