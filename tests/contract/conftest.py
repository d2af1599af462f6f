"""The log as every contract wants it: once in memory, once in Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from support.logs import InMemory, InPostgres, Log


@pytest.fixture(params=["memory", "postgres"])
def kept_in(request: pytest.FixtureRequest) -> Log:
    """Return a fresh log of each kind."""
    return InMemory() if request.param == "memory" else InPostgres(request.getfixturevalue("database"))


@pytest_asyncio.fixture
async def log(kept_in: Log) -> AsyncIterator[Log]:
    """Return it, and close what was opened of it."""
    yield kept_in
    await kept_in.close()
