"""Measure how fast all views are folded again from the log, beside the least that can be: reading the log and decoding every event.

    python benchmarks/rebuild.py [--log long|short] [--events 200000] [--rounds 5]

The log holds whole runs, several under way at any time: long ones of five tasks with twenty turns each, as a crew writes them; or short
ones, those of the golden tasks as crews recorded them, again and again under other ids. The views are made by following the log live. Then
each rebuild folds it into fresh tables and compares all of them with the live ones: nothing may differ. That is what `crewlog db rebuild`
does. At the end the views are emptied, so that a rebuild has to write every row: what it takes when all was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
from debugger import Recorder
from measure import cpu_seconds, descendants, machine

import crewlog.projections
from crewlog.events.clock import SystemClock
from crewlog.events.memory import settle_memory
from crewlog.events.migrate import LOG_FOLDER, ensure_database, migrate
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.server_postgres import PostgresServer
from crewlog.events.store import Recorded
from crewlog.orchestrator.bundle import read_bundle
from crewlog.projections.catalog import all_projections
from crewlog.projections.read_model import ReadModel
from crewlog.projections.rebuild import Rebuilt, rebuild
from crewlog.projections.view_connection import connect_views
from crewlog.schemas.ids import RunId

STEPS = 5
AT_ONCE = 16
PAGE_EVENTS = 2_000
GOLDEN = Path(__file__).parent.parent / "tests" / "golden_tasks"
FOLDERS = (LOG_FOLDER, Path(crewlog.projections.__file__).with_name("sql"))
_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_EVENTS = ("position", "version", "occurred_us", "event_id", "run_id", "task_id", "schema_version", "stream_id", "type", "actor", "writer", "data")


class Took(NamedTuple):
    """One run of something over the whole log: seconds, and CPU seconds of this process and of the server."""

    wall_s: float
    own_cpu_s: float
    server_cpu_s: float


async def fill_long(store: PostgresStore, _: asyncpg.Connection, events: int) -> None:
    """Write long runs until there are that many events."""
    clock = SystemClock()
    while (await store.read_all(0, 1)).high_water < events:
        await asyncio.gather(*(Recorder(store, clock, RunId(uuid4())).record(STEPS) for _ in range(AT_ONCE)))


async def fill_short(_: PostgresStore, owner: asyncpg.Connection, events: int) -> None:
    """Write copies of recorded runs until there are that many events, past the gate."""
    recorded = [read_bundle(path).events for path in sorted(GOLDEN.glob("*.run"))]
    versions: dict[str, tuple[int, UUID]] = {}
    rows: list[tuple[Any, ...]] = []
    while len(rows) < events:
        under_way = [iter(list(copy(run))) for run in recorded]
        while under_way:  # as if all of them ran at the same time
            for run in list(under_way):
                if (event := next(run, None)) is None:
                    under_way.remove(run)
                    continue
                of_event = (event.occurred_us, uuid4(), event.run_id, event.task_id, event.schema_version, event.stream, event.type, "benchmark", "benchmark")
                rows.append((len(rows) + 1, event.version, *of_event, event.data.decode()))
                assert event.run_id is not None
                versions[event.stream] = event.version, event.run_id
    streams = [(stream, version, run_id) for stream, (version, run_id) in versions.items()]
    await owner.copy_records_to_table("streams", schema_name="es", records=streams, columns=("stream_id", "version", "run_id"))
    await owner.copy_records_to_table("events", schema_name="es", records=rows, columns=_EVENTS)
    await owner.execute("SELECT setval('es.event_position', $1)", len(rows))


def copy(run: Sequence[Recorded]) -> Iterator[Recorded]:
    """Yield the events of a run as those of another one: every id in them is another, the same one everywhere."""
    ids: dict[bytes, bytes] = {}

    def other(found: re.Match[bytes]) -> bytes:
        return ids.setdefault(found[0], str(uuid4()).encode())

    def renamed(text: str) -> str:
        return _ID.sub(other, text.encode()).decode()

    for event in run:
        yield Recorded(
            position=0,
            stream=type(event.stream)(renamed(event.stream)),
            version=event.version,
            event_id=event.event_id,
            type=event.type,
            schema_version=event.schema_version,
            data=_ID.sub(other, event.data),
            occurred_us=event.occurred_us,
            run_id=None if event.run_id is None else RunId(UUID(renamed(str(event.run_id)))),
        )


class Bench:
    """The log, its views, and what is measured on them."""

    def __init__(self, url: str, store: PostgresStore) -> None:
        self.url, self.store = url, store
        self.events = 0

    async def timed(self, work: Callable[[], Awaitable[None]]) -> Took:
        """Do something once."""
        servers = descendants(os.getpid()) - {os.getpid()}
        cpu, own, began = cpu_seconds(servers), time.process_time(), time.perf_counter()
        await work()
        wall, own = time.perf_counter() - began, time.process_time() - own
        return Took(wall, own, cpu_seconds((descendants(os.getpid()) | servers) - {os.getpid()}) - cpu)

    async def follow(self) -> None:
        """Make the views as the projector does."""
        connection = await connect_views(self.url, "rm")
        model = ReadModel(connection, all_projections(self.store))
        await model.open()
        while (page := await self.store.read_all(model.position, PAGE_EVENTS)).events:
            await model.advance(page.events)
            self.events += len(page.events)
        await connection.close()

    async def bare(self) -> None:
        """Read and decode the whole log."""
        after = 0
        while (page := await self.store.read_all(after, PAGE_EVENTS)).events:
            for recorded in page.events:
                recorded.event()
            after = page.events[-1].position

    async def again(self) -> None:
        """Rebuild views that are right."""
        done = await self._rebuilt()
        assert done.corrected == {}, done

    async def lost(self) -> None:
        """Rebuild views that are empty."""
        done = await self._rebuilt()
        assert done.corrected["runs"] > 0, done

    async def _rebuilt(self) -> Rebuilt:
        done = await rebuild(self.url, self.store)
        assert done.events == self.events, done
        return done

    def line(self, name: str, taken: Sequence[Took]) -> str:
        """Say how fast that was."""
        rate, best = (of(self.events / took.wall_s for took in taken) for of in (statistics.median, max))
        cpu = (f"{min(took[of] for took in taken) / self.events * 1e6:.2f}" for of in (1, 2))
        return f"{name:<22}{rate:>10,.0f} events/s (best {best:,.0f}); least CPU, µs an event: {next(cpu)} here, {next(cpu)} in the server"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", choices=("long", "short"), default="long")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="crewlog-bench-", dir="/tmp"))
    folder.chmod(0o755)
    server = PostgresServer(folder / "postgres", admin_password=uuid4().hex)
    await server.start()
    try:
        url = server.admin_url()
        await ensure_database(url)
        await migrate(url, FOLDERS)
        store, owner = await PostgresStore.open(url, actor="benchmark", clock=SystemClock()), await asyncpg.connect(url)
        await (fill_long if given.log == "long" else fill_short)(store, owner, given.events)
        await owner.execute("VACUUM (ANALYZE) es.events")
        settle_memory()
        bench = Bench(url, store)
        live = await bench.timed(bench.follow)
        bare, again = [], []
        for _ in range(given.rounds):
            bare.append(await bench.timed(bench.bare))
            again.append(await bench.timed(bench.again))
        rows = await owner.fetch("SELECT relname, n_live_tup FROM pg_stat_user_tables WHERE schemaname = 'rm' AND n_live_tup > 0 ORDER BY 2 DESC")
        mean = await owner.fetchval("SELECT round(avg(octet_length(data::text))) FROM es.events")
        await owner.execute("TRUNCATE rm.runs, rm.tasks, rm.model_calls, rm.tool_calls, rm.approvals")
        lost = await bench.timed(bench.lost)
        await bench.again()
        await owner.close()
        await store.close()
    finally:
        await server.stop()
    print(machine())
    print(f"{bench.events} events of {mean} bytes; rows: {', '.join(f'{name} {count}' for name, count in rows)}")
    for name, taken in (("rebuild", again), ("reading and decoding", bare), ("rebuild of lost views", [lost]), ("followed live", [live])):
        print(bench.line(name, taken))
    print(f"rebuild / bare: {statistics.median(b.wall_s / a.wall_s for a, b in zip(again, bare, strict=True)):.2f}×")


if __name__ == "__main__":
    asyncio.run(main())
