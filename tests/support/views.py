"""A log in Postgres with its read model beside it, kept in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from support.postgres import Database

from crewlog.events.clock import SystemClock
from crewlog.events.postgres_store import PostgresStore
from crewlog.projections.catalog import all_projections
from crewlog.projections.read_model import ReadModel
from crewlog.projections.view_connection import connect_views

PROJECTOR = "crewlog_projector"


@asynccontextmanager
async def log_of(database: Database) -> AsyncIterator[PostgresStore]:
    """Open the log with all rights."""
    store = await PostgresStore.open(database.admin_url, actor="test", clock=SystemClock())
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def model_of(database: Database, store: PostgresStore) -> AsyncIterator[ReadModel]:
    """Open the read model as the projector does."""
    connection = await connect_views(database.url(PROJECTOR), "rm")
    try:
        model = ReadModel(connection, all_projections(store))
        await model.open()
        yield model
    finally:
        await connection.close()


async def follow(model: ReadModel, store: PostgresStore, page_max: int = 1000) -> None:
    """Take in everything the log has, in pages of at most `page_max` events."""
    while (page := await store.read_all(model.position, page_max)).events:
        await model.advance(page.events)
