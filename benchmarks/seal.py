"""Measure how fast the log is sealed and verified, beside the least that either can be.

    python benchmarks/seal.py [--events 500000] [--rounds 3]

Sealing is one call of `es.seal` for every 10 000 events; its floor is one statement that hashes `data` alone over the same rows. Verifying
reads every column and hashes it in this process; its floor is reading the same pages with `data` alone and no hash. All in turn, over the same table.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
from measure import machine
from replay import fill

from crewlog.events.clock import SystemClock
from crewlog.events.connections import Connections
from crewlog.events.memory import settle_memory
from crewlog.events.migrate import ensure_database, migrate
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.server_postgres import PostgresServer
from crewlog.events.verify import PAGE_EVENTS, open_connections, seal, verify

HASH_DATA = "SELECT count(sha256(convert_to(data::text, 'UTF8'))) FROM es.events"
READ_DATA = "SELECT position, data FROM es.events WHERE position > $1 ORDER BY position LIMIT $2"


async def hash_data(admin: Any) -> float:
    """Hash `data` of all events in one statement; returns seconds."""
    began = time.perf_counter()
    assert await admin.fetchval(HASH_DATA) > 0
    return time.perf_counter() - began


async def seal_everything(connections: Connections) -> float:
    """Seal the whole log; returns seconds."""
    began = time.perf_counter()
    while await seal(connections):
        pass
    return time.perf_counter() - began


async def read_data(admin: Any) -> float:
    """Read `data` of all events in pages; returns seconds."""
    began, after = time.perf_counter(), 0
    while rows := await admin.fetch(READ_DATA, after, PAGE_EVENTS):
        after = rows[-1][0]
    return time.perf_counter() - began


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="crewlog-bench-", dir="/tmp"))
    folder.chmod(0o755)
    server = PostgresServer(folder / "postgres", admin_password=uuid4().hex)
    await server.start()
    names = ("hash data", "seal", "read data", "verify")
    rates: dict[str, list[float]] = {name: [] for name in names}
    try:
        await ensure_database(server.admin_url())
        await migrate(server.admin_url())
        store = await PostgresStore.open(server.admin_url(), actor="benchmark", clock=SystemClock())
        events = sum(map(len, (await fill(store, given.events)).values()))
        await store.close()
        admin = await asyncpg.connect(server.admin_url())
        await admin.execute("VACUUM (ANALYZE) es.events")
        connections = open_connections(server.admin_url(), SystemClock(), name="benchmark")
        settle_memory()
        for _ in range(given.rounds):
            await admin.execute("SET session_replication_role = replica; TRUNCATE es.seals; SET session_replication_role = origin")
            rates["hash data"].append(events / await hash_data(admin))
            rates["seal"].append(events / await seal_everything(connections))
            rates["read data"].append(events / await read_data(admin))
            began = time.perf_counter()
            found = await verify(connections)
            rates["verify"].append(events / (time.perf_counter() - began))
            assert (found.events, found.unsealed, list(found.faults)) == (events, 0, [])
        size = await admin.fetchval("SELECT pg_total_relation_size('es.seals')::float8 / pg_total_relation_size('es.events')")
        await connections.close()
        await admin.close()
    finally:
        await server.stop()
    print(machine())
    print(f"{events} events; seals take {size:.1%} of what the events take")
    for name, floor in (("seal", "hash data"), ("verify", "read data")):
        ratio = statistics.median(a / b for a, b in zip(rates[name], rates[floor], strict=True))
        print(f"{name:<8} {statistics.median(rates[name]):>10,.0f} events/s   {floor:<10} {statistics.median(rates[floor]):>10,.0f}   {ratio:.2f}×")
    both = statistics.median(1 / (1 / s + 1 / v) for s, v in zip(rates["seal"], rates["verify"], strict=True))
    print(f"one after the other: {both:,.0f} events/s")


if __name__ == "__main__":
    asyncio.run(main())
