"""The process of the projector: one leader keeps the views, relays the log and seals it, any number of others stand by."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import asyncpg

from crewlog.events import faults
from crewlog.events.clock import Clock, SystemClock
from crewlog.events.config import Config
from crewlog.events.connections import explain, is_retryable
from crewlog.events.memory import settle_memory
from crewlog.events.nats_bus import NatsBus
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.readiness import announce_ready
from crewlog.events.relay import Relay
from crewlog.events.sealer import Sealer
from crewlog.events.shared_pages import SharedPages
from crewlog.events.stop_signal import stop_on_signals
from crewlog.events.verify import open_connections
from crewlog.projections.catalog import all_projections
from crewlog.projections.projector import Projector
from crewlog.projections.read_model import ReadModel
from crewlog.projections.rebuild import rebuild
from crewlog.projections.telemetry import StoredProgress, Telemetry
from crewlog.projections.view_connection import connect_views, lead
from crewlog.schemas.errors import ConfigError, ConflictError, TransientError

log = logging.getLogger(__name__)

NICENESS: Final = 10
"""Priority below the other processes, as nice(2) counts it."""
CANCEL_AGAIN_S: Final = 1.0
"""How long a cancelled part may take before it is told once more, in seconds."""
RETRY_S: Final = 1.0
"""Wait after losing the leadership or the database, in seconds."""


async def run_projector(config: Config) -> None:
    """Keep the views and relay the log until SIGTERM or SIGINT.

    Raises:
        ConfigError: an address is missing, or the database does not fit this program.
    """
    if config.database_url is None or config.nats_url is None:
        raise ConfigError("the projector needs CREWLOG_DATABASE_URL and CREWLOG_NATS_URL", hint="`crewlog up` passes them")
    faults.install_from_environment()
    clock = SystemClock()
    url = config.database_url.get_secret_value()
    actor = f"projector@{socket.gethostname()}"
    bus = await NatsBus.connect(config.nats_url.get_secret_value(), name=actor, provision=config.provision)
    try:
        store = await PostgresStore.open(url, actor=actor, clock=clock, lanes=1, readers=3)
        try:
            settle_memory()
            # views and the relay may lag a moment; decisions may not: where cores are short, they go first
            os.nice(NICENESS)
            announce_ready()
            await _until_signalled(_serve(config, url, store, bus, clock))
        finally:
            await store.close()
    finally:
        await bus.close()


async def _until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Run until the work ends or SIGTERM or SIGINT comes, then cancel it and wait until it has cleaned up."""
    stop = stop_on_signals()
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        task.result()
    await _end([task])
    log.info("stopped")


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: Python 3.11 forgets a cancellation that comes when what `wait_for` waits for is done just then."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=CANCEL_AGAIN_S)


async def _serve(config: Config, url: str, store: PostgresStore, bus: NatsBus, clock: Clock) -> None:
    while True:
        try:
            await _lead_once(config, url, store, bus, clock)
        except (ConflictError, TransientError) as error:
            log.warning("the projector starts over in %g s: %s", RETRY_S, error)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:  # the third: it was cut between two statements
            if isinstance(error, asyncpg.PostgresError) and not is_retryable(error, None):
                raise explain(error, "keep the views") from error
            log.warning("the projector starts over in %g s: Postgres: %s", RETRY_S, error or type(error).__name__)
        await asyncio.sleep(RETRY_S)


async def _lead_once(config: Config, url: str, store: PostgresStore, bus: NatsBus, clock: Clock) -> None:
    connection = await connect_views(url, "rm")
    try:
        await lead(connection)
        log.info("this process keeps the views and relays the log")
        model = ReadModel(connection, all_projections(store))
        if outdated := await model.outdated():
            log.warning("rebuilding %s, which an older program made", ", ".join(outdated))
            await rebuild(url, store, names=outdated)
        await model.open()
        pages = SharedPages(store)
        sealing = open_connections(url, clock, name="sealer")
        try:
            async with _telemetry(config, store, bus, clock, pages) as telemetry:
                relay = Relay(store, bus, clock, pages=pages, provision=config.provision)
                following = (Projector(pages, bus, model).run(), relay.run(), *(one.run() for one in telemetry))
                await _until_one_ends(*following, Sealer(sealing, bus, clock).run(), _watch(connection))
        finally:
            await sealing.close()
    finally:
        connection.terminate()  # its lock goes with it, and a standby takes over at once


@asynccontextmanager
async def _telemetry(config: Config, store: PostgresStore, bus: NatsBus, clock: Clock, pages: SharedPages) -> AsyncIterator[Sequence[Telemetry]]:
    """Make what sends the log to a collector, when there is one. Without one, nothing of OpenTelemetry is imported."""
    if config.otlp_endpoint is None or config.database_url is None:
        yield ()
        return
    from crewlog.projections.otlp import open_collector

    async with AsyncExitStack() as closing:
        connection = await connect_views(config.database_url.get_secret_value(), "rm")
        closing.callback(connection.terminate)
        collector = open_collector(config.otlp_endpoint, config.otlp_headers.get_secret_value(), config.otlp_resource)
        closing.push_async_callback(collector.close)
        progress = StoredProgress(connection)
        yield (Telemetry(pages, store, bus, clock, collector, progress, share=config.trace_share, content=config.trace_content),)


async def _until_one_ends(*work: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await _end(tasks)
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(connection: asyncpg.Connection) -> None:
    """Raise when the connection that holds the lock is lost, also while nothing is written."""
    lost = asyncio.Event()
    connection.add_termination_listener(lambda _: lost.set())
    if not connection.is_closed():
        await lost.wait()
    raise ConnectionResetError("the connection that holds the leader's lock was lost")
