"""What open runs hold and cost while nothing happens to them, by what they wait for. With the product's own settings.

    uv run python benchmarks/open_runs.py [person] [dependency] [budget] [retry] [pause] [queue] [--runs 10000] [--watch 70]

person      a task has asked a person
dependency  the same, and further steps wait for that task
budget      the money of the run is spent
retry       an attempt failed, and the next one follows in two hours
pause       the tenant is paused
queue       a task is dispatched, waits for its turn, and no agent of its kind is there

All but the last are made by appends through the product's own decisions, without a process each. What looking after them costs is the CPU
time of each process by /proc, less what it is without any run; bound: 1 % of a core for the orchestrator. Connections are counted again when
the load is over: those that it opened must be closed.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final
from uuid import uuid4

import asyncpg
from measure import cpu_seconds, descendants, machine
from recovery import CLOCK, Bench, a_bench

from crewlog.events import jetstream
from crewlog.events.connections import SPARE_S
from crewlog.events.credentials import ADMIN, load_credentials
from crewlog.events.memory_bus import MemoryBroker, MemoryBus
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import ANY, AppendRequest, Write
from crewlog.orchestrator.home import Home
from crewlog.orchestrator.run import RunState, active_tasks
from crewlog.orchestrator.service import OrchestratorService
from crewlog.schemas.budget import run_scope
from crewlog.schemas.ids import CONTROL_STREAM, Hash, RunId, TaskId, derived_approval_id, task_stream
from crewlog.schemas.payload import Payload
from crewlog.schemas.system_events import ScopePaused
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import ApprovalRequested, AttemptFailed, TaskEvent
from crewlog.schemas.values import Failure, Shortfall

KINDS: Final = ("person", "dependency", "budget", "retry", "pause", "queue")
KIND: Final = "research"
"""Nobody of this kind is there."""
DAY_S: Final = 86_400


def asks(task_id: TaskId, _run_id: RunId) -> TaskEvent:
    """Make the question of an agent to a person."""
    approval = derived_approval_id(task_id, call_id="c")
    expires_us = CLOCK.now_us() + DAY_S * 1_000_000
    return ApprovalRequested(approval, "c", "send_email", Payload(2, inline="{}"), Hash("0" * 64), "it needs a person", expires_us)


def fails(_task_id: TaskId, _run_id: RunId) -> TaskEvent:
    """Make an attempt that failed and need not be repeated soon."""
    return AttemptFailed(1, Failure("rate_limit", "come back later", retryable=True, retry_after_s=7200.0))


def starves(_task_id: TaskId, run_id: RunId) -> TaskEvent:
    """Make an attempt that had no money left."""
    short = Shortfall(run_scope(run_id), 1_000, 0, 5_000)
    return AttemptFailed(1, Failure("budget", "no room"), shortfall=short)


PARTS: Final = {"person": asks, "dependency": asks, "budget": starves, "retry": fails}
"""What the agents have done."""


async def measured(what: str, runs: int, watch_s: float) -> None:
    """Make runs that wait for one thing, and print what they hold and cost."""
    async with a_bench(workers=0, orchestrators=1) as bench:
        state = Home(bench.home).state()
        assert state is not None
        assert state.database_port is not None
        url = load_credentials(bench.home).postgres_url(ADMIN, state.database_port)
        idle, before = await cost(bench, watch_s), await held(bench, url)
        began = time.monotonic()
        await (submit_all(bench, runs) if what == "queue" else make(url, what, runs))
        print(f"{what}: {runs} open runs, made in {time.monotonic() - began:.0f} s", flush=True)
        async with asyncio.timeout(600):
            while [view for view in await bench.client.queries().lag() if view.waiting_since is not None]:
                await asyncio.sleep(1)
        await asyncio.sleep(max(25.0, 2 * SPARE_S + 15))
        await looked_at(bench)
        busy, after = await cost(bench, watch_s), await held(bench, url)
        print(f"        held before: {before}; with them: {after}")
        more = {part: busy[part] - idle[part] for part in idle}
        print("        " + ", ".join(f"{part} {idle[part]:.2%} -> {busy[part]:.2%}" for part in idle) + f"; together {sum(more.values()):+.2%} of a core")
        print(f"        {'kept' if more['orchestrator'] <= 0.01 else 'MISSED'}: the orchestrator uses at most 1 % of a core more", flush=True)


async def looked_at(bench: Bench) -> None:
    """Wait until the orchestrator has looked at each run once, which folds it: what is measured is looking again."""
    for _ in range(24):
        if (await cost(bench, 5.0))["orchestrator"] < 0.05:
            return
    print("        the orchestrator does not come to rest", flush=True)


async def cost(bench: Bench, watch_s: float) -> Mapping[str, float]:
    """Return the share of a core that each process uses, Postgres with all of its own."""
    pids = {victim.name.removesuffix("-1"): victim.pid for victim in bench.crew.victims() if victim.name != "a backend"}
    families = {name: descendants(pid) if name == "postgres" else {pid} for name, pid in pids.items()}
    before = {name: cpu_seconds(family) for name, family in families.items()}
    await asyncio.sleep(watch_s)
    return {name: (cpu_seconds(family) - before[name]) / watch_s for name, family in families.items()}


async def held(bench: Bench, url: str) -> str:
    """Count processes of the crew, connections to Postgres and messages in the queues."""
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(
        """SELECT split_part(split_part(application_name, ' ', 2), '@', 1) AS whose, count(*) FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() GROUP BY 1 ORDER BY 1"""
    )
    await connection.close()
    connections = f"{sum(count for _, count in rows)} connections ({', '.join(f'{whose or chr(63)} {count}' for whose, count in rows)})"
    infos = [await jetstream.api(bench.bus, f"STREAM.INFO.{stream}") for stream in ("WORK", "TASKS")]
    processes = sum(victim.name != "a backend" for victim in bench.crew.victims())
    return f"{processes} processes, {connections}, {sum(info['state']['messages'] for info in infos)} queued messages"


async def submit_all(bench: Bench, runs: int) -> None:
    """Hand in runs of one task through the API."""
    left = iter(range(runs))

    async def submit() -> None:
        for n in left:
            await bench.client.submit(f"Wait {n}", kind=KIND, timeout_seconds=DAY_S)

    await asyncio.gather(*(submit() for _ in range(32)))


async def make(url: str, what: str, runs: int) -> None:
    """Submit runs through the product's own decisions, and append what their agents would."""
    store = await PostgresStore.open(url, actor="bench", clock=CLOCK, lanes=2)
    if what == "pause":
        paused = Write(CONTROL_STREAM, (ScopePaused("tenant/default", "bench", "to see what it costs"),), ANY)
        await store.append(AppendRequest((paused,), [CLOCK.new_id()], CLOCK.now_us()))
    service = OrchestratorService(store, MemoryBus(MemoryBroker()), CLOCK)
    await service.kinds.start()
    await service.driver.folds.read_controls()
    driving = service.driver.start()
    for first in range(0, runs, 200):
        await asyncio.gather(*map(partial(one, service, store, what), range(first, min(first + 200, runs))))
    await service.driver.stop(grace_s=30)
    await asyncio.gather(driving, return_exceptions=True)
    await store.close()


async def one(service: OrchestratorService, store: PostgresStore, what: str, number: int) -> None:
    """Make one run, and wait until it has taken note of what its agent did."""
    task = parse_task(body(what, number))
    run_id = RunId(task.run_id)
    await service.driver.submit(task, "api")
    if (part := PARTS.get(what)) is not None:
        task_id = next(active_tasks(service.driver.folds.get(run_id).state)).task_id
        event = part(task_id, run_id)
        await store.append(AppendRequest((Write(task_stream(task_id), (event,), ANY),), [CLOCK.new_id()], CLOCK.now_us(), run_id, task_id))
        service.driver.wake(run_id)
        async with asyncio.timeout(60):
            while not waits(service.driver.folds.get(run_id).state):
                await asyncio.sleep(0.01)


def body(what: str, number: int) -> dict[str, Any]:
    given = {"task_id": uuid4(), "type": KIND, "objective": f"Wait {number}", "timeout_seconds": DAY_S, "budget": {"hard_micro_usd": 1_000}}
    if what == "dependency":
        steps = [{"key": f"s{n}", "type": KIND, "objective": "Wait", "depends_on": [f"s{n - 1}"] if n else []} for n in range(4)]
        given |= {"type": "run", "plan": {"steps": steps}}
    return given


def waits(state: RunState) -> bool:
    return all(task.phase != "dispatched" for task in active_tasks(state))


async def main(what: Sequence[str], runs: int, watch_s: float) -> None:
    """Measure what was asked for."""
    print(f"{machine()}\n", flush=True)
    for kind in what:
        await measured(kind, runs, watch_s)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=list(KINDS))
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--watch", type=float, default=70.0, help="in seconds; in 70 all that are open are listed once")
    given = parser.parse_args()
    asyncio.run(main(given.what, given.runs, given.watch))
