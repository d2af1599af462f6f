"""Measure how fast all views are folded again from the log, beside the least that can be: reading the log and decoding every event.

    python benchmarks/rebuild.py [--events 200000] [--rounds 3]

The log holds whole runs of five tasks with twenty turns each, as a crew writes them. A rebuild folds them into fresh tables, compares these
with the live ones, and corrects what differs, which is nothing: that is what `crewlog db rebuild` does.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import asyncpg
from debugger import Recorder
from measure import machine

import crewlog.projections
from crewlog.events.clock import SystemClock
from crewlog.events.memory import settle_memory
from crewlog.events.migrate import LOG_FOLDER, ensure_database, migrate
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.server_postgres import PostgresServer
from crewlog.projections.rebuild import PAGE_EVENTS_MAX, rebuild
from crewlog.schemas.ids import RunId

STEPS = 5
AT_ONCE = 16
FOLDERS = (LOG_FOLDER, Path(crewlog.projections.__file__).with_name("sql"))


async def fill(store: PostgresStore, clock: SystemClock, events: int) -> int:
    """Write runs until there are that many events; returns how many there are."""
    while (head := (await store.read_all(0, 1)).high_water) < events:
        await asyncio.gather(*(Recorder(store, clock, RunId(uuid4())).record(STEPS) for _ in range(AT_ONCE)))
    return head


async def bare(store: PostgresStore) -> float:
    """Read and decode the whole log; returns seconds."""
    began, after = time.perf_counter(), 0
    while (page := await store.read_all(after, PAGE_EVENTS_MAX)).events:
        for recorded in page.events:
            recorded.event()
        after = page.events[-1].position
    return time.perf_counter() - began


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="crewlog-bench-", dir="/tmp"))
    folder.chmod(0o755)
    server = PostgresServer(folder / "postgres", admin_password=uuid4().hex)
    await server.start()
    rates: dict[str, list[float]] = {"bare": [], "rebuild": []}
    try:
        await ensure_database(server.admin_url())
        await migrate(server.admin_url(), FOLDERS)
        clock = SystemClock()
        store = await PostgresStore.open(server.admin_url(), actor="benchmark", clock=clock)
        await fill(store, clock, given.events)
        admin = await asyncpg.connect(server.admin_url())
        await admin.execute("VACUUM (ANALYZE) es.events")
        first = await rebuild(server.admin_url(), store)
        settle_memory()
        for _ in range(given.rounds):
            rates["bare"].append(first.events / await bare(store))
            began = time.perf_counter()
            done = await rebuild(server.admin_url(), store)
            rates["rebuild"].append(done.events / (time.perf_counter() - began))
            assert (done.events, done.corrected) == (first.events, {})
        rows = await admin.fetch("SELECT relname, n_live_tup FROM pg_stat_user_tables WHERE schemaname = 'rm' AND n_live_tup > 0 ORDER BY 2 DESC")
        await admin.close()
        await store.close()
    finally:
        await server.stop()
    print(machine())
    print(f"{first.events} events; rows: {', '.join(f'{name} {count}' for name, count in rows)}")
    ratio = statistics.median(a / b for a, b in zip(rates["rebuild"], rates["bare"], strict=True))
    print(f"rebuild {statistics.median(rates['rebuild']):>10,.0f} events/s   bare {statistics.median(rates['bare']):>10,.0f}   {ratio:.2f}×")


if __name__ == "__main__":
    asyncio.run(main())
