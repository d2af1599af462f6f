"""How fast the gate appends, beside two floors measured in the same run.

    python benchmarks/append.py [--seconds 0.2] [--rounds 25] [--producers 1,32,128] [--money]

Closed loop: N producers, each appending one event of about 580 bytes of JSON to a stream of its own with the exact expected version,
and waiting for the answer. All three share the same group-commit idea and an embedded Postgres with durability on:

    F0    a minimal client and INSERT … SELECT unnest into (position, stream, version, data) with two unique indexes; no checks
    F1    the store's own client and the same statement into a table equal to es.events; one connection, no checks, no streams
    gate  PostgresStore.append with two lanes, as a login bound to one agent kind

With --money: what reservations add to the gate. Every producer reserves for a call with one event and settles it with the next:

    free      no scopes, no reservations
    one run   all tasks are charged to the same five scopes: run, tree, kind, user, tenant
    own runs  every task has a run and a tree of its own, and shares the other three

Rounds are short and interleaved, and ratios are medians of the rounds' own ratios, with the quartiles beside them, because a shared machine drifts.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from crewlog.events.append_call import SQL_PLAIN
from crewlog.events.appender import REQUESTS_PER_CALL_MAX, Appender
from crewlog.events.clock import SystemClock
from crewlog.events.credentials import ADMIN, POSTGRES_ROLES, Credentials
from crewlog.events.grants import ORCHESTRATOR, kind_role
from crewlog.events.migrate import connect, ensure_database, ensure_roles, migrate
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.server_postgres import PostgresServer
from crewlog.events.store import NO_STREAM, AppendRequest, EventStore, Reservation, Settlement, Write
from crewlog.schemas.budget import ScopeLimit, kind_scope, run_scope, tenant_scope, tree_scope, user_scope
from crewlog.schemas.codec import encode
from crewlog.schemas.ids import RunId, TaskId, task_stream
from crewlog.schemas.payload import pack
from crewlog.schemas.task_events import TaskOpened, ToolFinished

CLOCK = SystemClock()
CALLS_MAX: Final = 500_000
"""Model calls of one measurement at most."""
EVENT = ToolFinished("call_0123456789", "search_documents", "ok", pack("0123456789 " * 38)[0], 12)

Append = Callable[[int, int], Awaitable[object]]
"""Append the n-th event of one producer."""


class Cell(NamedTuple):
    """One measurement."""

    events_per_s: float
    p50_ms: float


async def measure(append: Append, producers: int, seconds: float, start: list[int]) -> Cell:
    """Let `producers` append for a while; `start` keeps the versions between rounds."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def produce(producer: int) -> None:
        while (before := time.perf_counter()) < end:
            await append(producer, start[producer])
            start[producer] += 1
            latencies.append(time.perf_counter() - before)

    began = time.perf_counter()
    await asyncio.gather(*map(produce, range(producers)))
    return Cell(len(latencies) / (time.perf_counter() - began), statistics.median(latencies) * 1000)


class Floor:
    """Grouped inserts by the plainest client: whatever waits goes into one statement."""

    SQL = "INSERT INTO floor_zero (stream, version, data) SELECT * FROM unnest($1::text[], $2::bigint[], $3::bytea[])"

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._waiting: list[tuple[str, int, bytes, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._streams = [task_stream(TaskId(CLOCK.random_id())) for _ in range(1000)]
        self._task = asyncio.create_task(self._flush())

    async def append(self, producer: int, version: int) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((self._streams[producer], version, encode(EVENT), future))
        self._wake.set()
        await future

    async def _flush(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(0)
            batch, self._waiting = self._waiting[:REQUESTS_PER_CALL_MAX], self._waiting[REQUESTS_PER_CALL_MAX:]
            if not self._waiting:
                self._wake.clear()
            streams, versions, documents, futures = zip(*batch, strict=True)
            await self._connection.fetch(self.SQL, streams, versions, documents)
            for future in futures:
                future.set_result(None)

    async def close(self) -> None:
        self._task.cancel()
        await self._connection.close()


async def floor_zero(url: str) -> Floor:
    """Make F0: the least a log could store."""
    connection = await connect(url)
    await connection.execute(
        "CREATE TABLE floor_zero (position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, stream text, version bigint, data bytea, UNIQUE (stream, version))"
    )
    return Floor(connection)


class PlainInsert:
    """A connection for the store's own group commit that answers the gate's calls with one INSERT: the same client, without the gate."""

    SQL = (
        "INSERT INTO floor_one (position, version, occurred_us, event_id, run_id, task_id, schema_version, stream_id, type, actor, writer, data) "
        "SELECT nextval('floor_position'), v + 1, t, i, r, k, 1, s, ($9::text[])[y], $10, 'bench', d "
        "FROM unnest($1::text[], $2::bigint[], $3::uuid[], $4::json[], $5::bigint[], $6::uuid[], $7::uuid[], $8::int[]) u (s, v, i, d, t, r, k, y) "
        "RETURNING position"
    )

    def __init__(self, connection: Any) -> None:
        self.terminate, self.is_closed = connection.terminate, connection.is_closed
        self._connection = connection

    async def fetch(self, asked: str, *given: Any) -> list[Any]:
        assert asked == SQL_PLAIN, "all that is appended here is plain"
        streams, expected, _, occurred, run, task, _, _, types, _, e_type, e_id, e_data, actor = given
        rows = await self._connection.fetch(self.SQL, streams, expected, e_id, e_data, occurred, run, task, e_type, types, actor)
        return [([row[0] for row in rows],)]


async def floor_one(url: str) -> Appender:
    """Make F1: grouped inserts into the columns and indexes of the log, on one connection."""
    connection = await connect(url)
    await connection.execute("CREATE TABLE floor_one (LIKE es.events INCLUDING ALL)")
    await connection.execute("CREATE SEQUENCE floor_position")

    async def plain() -> PlainInsert:
        return PlainInsert(connection)

    return Appender(plain, actor="bench@1", clock=CLOCK, lanes=1)


Scopes = Callable[[RunId, TaskId], Sequence[str]]
"""What a task is charged to."""
DAILY: Final = (kind_scope("default", "research", "2026-01-01"), user_scope("default", "anna", "2026-01-01"), tenant_scope("default", "2026-01-01"))


def free(run_id: RunId, task_id: TaskId) -> Sequence[str]:  # noqa: ARG001
    """Charge nothing."""
    return ()


def one_run(run_id: RunId, task_id: TaskId) -> Sequence[str]:  # noqa: ARG001
    """Charge all tasks to the same scopes, as agents of one run do."""
    return (run_scope(RunId(UUID(int=1))), tree_scope(TaskId(UUID(int=1))), *DAILY)


def own_runs(run_id: RunId, task_id: TaskId) -> Sequence[str]:
    """Charge every task to a run of its own."""
    return (run_scope(run_id), tree_scope(task_id), *DAILY)


async def open_tasks(store: EventStore, count: int, scopes: Scopes = free) -> list[tuple[RunId, TaskId]]:
    """Open a task stream for each producer."""
    tasks = [(RunId(CLOCK.random_id()), TaskId(CLOCK.random_id())) for _ in range(count)]
    opened = TaskOpened("research", "step", 0, msgspec.Raw(b"{}"))
    await asyncio.gather(
        *(
            store.append(
                AppendRequest(
                    [Write(task_stream(task), [opened], NO_STREAM, "research", [ScopeLimit(scope, None, 10**12) for scope in scopes(run, task)])],
                    *([CLOCK.new_id()], CLOCK.now_us(), run, task),
                )
            )
            for run, task in tasks
        )
    )
    return tasks


def producer_of(store: EventStore | Appender, tasks: list[tuple[RunId, TaskId]]) -> Append:
    """Return what appends one event to a producer's own task stream."""
    streams = [task_stream(task) for _, task in tasks]
    send = store.submit if isinstance(store, Appender) else store.append

    async def append(producer: int, version: int) -> object:
        run_id, task_id = tasks[producer]
        write = Write(streams[producer], (EVENT,), version)
        return await send(AppendRequest((write,), (CLOCK.new_id(),), CLOCK.now_us(), run_id, task_id))

    return append


def spender_of(store: EventStore, tasks: list[tuple[RunId, TaskId]]) -> Append:
    """Return what appends one event to a producer's own task stream and reserves or settles with it, in turn."""
    streams = [task_stream(task) for _, task in tasks]

    # ids of calls are made before the clock runs: they are no part of an append
    fresh = iter([CLOCK.random_id() for _ in range(CALLS_MAX)])
    calls: dict[int, UUID] = {}

    async def append(producer: int, version: int) -> object:
        run_id, task_id = tasks[producer]
        write = Write(streams[producer], (EVENT,), version)
        if version % 2:
            call = calls[producer] = next(fresh)
            return await store.append(AppendRequest((write,), (CLOCK.new_id(),), CLOCK.now_us(), run_id, task_id, reserve=Reservation(call, 100)))
        return await store.append(AppendRequest((write,), (CLOCK.new_id(),), CLOCK.now_us(), run_id, task_id, settle=(Settlement(calls[producer], 70),)))

    return append


async def compare_money(server: PostgresServer, credentials: Credentials, *, loads: list[int], seconds: float, rounds: int) -> None:
    """Measure the gate with and without reservations and print the table."""
    orchestrator = await PostgresStore.open(credentials.postgres_url(ORCHESTRATOR, server.port), actor="bench@0", clock=CLOCK)
    worker = await PostgresStore.open(credentials.postgres_url(kind_role("research"), server.port), actor="bench@1", clock=CLOCK)
    print("producers |          free |       one run |      own runs |        one run adds |        own runs add   (events/s, p50 ms)")
    for producers in loads:
        contenders = {
            "free": producer_of(worker, await open_tasks(orchestrator, producers)),
            "one run": spender_of(worker, await open_tasks(orchestrator, producers, one_run)),
            "own runs": spender_of(worker, await open_tasks(orchestrator, producers, own_runs)),
        }
        cells = await measure_in_turn(contenders, {name: [1] * producers for name in contenders}, producers, seconds=seconds, rounds=rounds)
        added = [spread([c.p50_ms - f.p50_ms for c, f in zip(cells[n], cells["free"], strict=True)]) for n in ("one run", "own runs")]
        print(f"{producers:9} | {' | '.join(map(shown, cells.values()))} | {added[0]} | {added[1]}", flush=True)
    for closing in (orchestrator, worker):
        await closing.close()


async def measure_in_turn(
    contenders: Mapping[str, Append], versions: Mapping[str, list[int]], producers: int, *, seconds: float, rounds: int
) -> dict[str, list[Cell]]:
    """Measure each contender in every round; a shorter round before the first warms up."""
    cells: dict[str, list[Cell]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, append in contenders.items():
            cell = await measure(append, producers, seconds if number else seconds / 4, versions[name])
            if number:
                cells[name].append(cell)
    return cells


def shown(cells: list[Cell]) -> str:
    """Show the medians of a contender's rounds."""
    return f"{statistics.median(c.events_per_s for c in cells):7.0f} {statistics.median(c.p50_ms for c in cells):5.2f}"


def spread(values: Sequence[float]) -> str:
    """Show the median of the rounds, and their quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:5.2f} ({low:5.2f}-{high:5.2f})"


async def compare(server: PostgresServer, credentials: Credentials, *, loads: list[int], seconds: float, rounds: int) -> None:
    """Measure all cells and print the table."""
    orchestrator = await PostgresStore.open(credentials.postgres_url(ORCHESTRATOR, server.port), actor="bench@0", clock=CLOCK)
    worker = await PostgresStore.open(credentials.postgres_url(kind_role("research"), server.port), actor="bench@1", clock=CLOCK)
    zero, one = await floor_zero(server.admin_url()), await floor_one(server.admin_url())
    print("producers |            F0 |            F1 |          gate |             gate/F0 |             gate/F1   (events/s, p50 ms)")
    for producers in loads:
        tasks = await open_tasks(orchestrator, producers)
        contenders = {"F0": zero.append, "F1": producer_of(one, tasks), "gate": producer_of(worker, tasks)}
        versions = {"F0": [1 + producers * 10**7] * producers, "F1": [1] * producers, "gate": [1] * producers}
        cells = await measure_in_turn(contenders, versions, producers, seconds=seconds, rounds=rounds)
        ratios = [spread([g.events_per_s / f.events_per_s for g, f in zip(cells["gate"], cells[n], strict=True)]) for n in ("F0", "F1")]
        print(f"{producers:9} | {' | '.join(map(shown, cells.values()))} | {ratios[0]} | {ratios[1]}", flush=True)
    for closing in (zero, one, orchestrator, worker):
        await closing.close()


async def main() -> None:
    """Start a server, compare, stop it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.2, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--producers", default="1,32,128", help="how many append at once, one table row each")
    parser.add_argument("--money", action="store_true", help="compare the gate with and without reservations instead")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="crewlog-bench-"))
    credentials = Credentials(postgres=dict.fromkeys(POSTGRES_ROLES, "bench"), nats={})
    server = PostgresServer(folder, admin_password=credentials.postgres[ADMIN], settings={"shared_buffers": "256MB"})
    try:
        await server.start()
        await ensure_database(server.admin_url())
        await migrate(server.admin_url())
        await ensure_roles(server.admin_url(), {role: "bench" for role in POSTGRES_ROLES if role != ADMIN})
        work = compare_money if options.money else compare
        await work(server, credentials, loads=[int(n) for n in options.producers.split(",")], seconds=options.seconds, rounds=options.rounds)
    finally:
        await server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(main())
