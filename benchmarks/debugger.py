"""Measure how quickly a person sees into one run of a large log: show, explain, replay --to, diff, fork and export, from Postgres.

    python benchmarks/debugger.py [--events 1000000] [--run-events 5000] [--rounds 9]

First each look from its call to the finished text, the reading of the log included; then whole commands, from the start of the process to its
end. The other runs of the log are groups of five tasks. The plan of the read is printed: it must go through an index.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
from measure import machine
from replay import SETUP, TURNS, History, task_history

import crewlog.projections
from crewlog.agents.recorded_task import conversation
from crewlog.agents.setup import opening_message
from crewlog.events.clock import SystemClock
from crewlog.events.connections import connector
from crewlog.events.migrate import LOG_FOLDER, connect, ensure_database, migrate
from crewlog.events.postgres_store import _READ_RUN, PostgresStore
from crewlog.events.server_postgres import PostgresServer
from crewlog.events.store import ANY, AppendRequest, Write
from crewlog.orchestrator.batch import Batch
from crewlog.orchestrator.bundle import collect, pack_bundle
from crewlog.orchestrator.commands import Command, ForkRun, SubmitRun, TaskEnded
from crewlog.orchestrator.debug_text import conversation_lines, explanation_lines, timeline_lines, tree_lines
from crewlog.orchestrator.decide import decide
from crewlog.orchestrator.explain import explain, needed
from crewlog.orchestrator.folds import Fold
from crewlog.orchestrator.forks import ForkRequest, Forks
from crewlog.orchestrator.moments import describe_moment, moment_at
from crewlog.orchestrator.planning import Offer
from crewlog.orchestrator.replay import replay
from crewlog.orchestrator.run import RunState, initial_state
from crewlog.orchestrator.run_diff import diff_runs
from crewlog.orchestrator.run_history import RunHistory, all_payloads, load_history, with_texts
from crewlog.orchestrator.run_timeline import timeline
from crewlog.orchestrator.run_tree import build_tree
from crewlog.orchestrator.terms import Allowance
from crewlog.projections.queries import Queries
from crewlog.schemas.ids import RunId, TaskId, run_stream, task_stream
from crewlog.schemas.payload import pack
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.task_events import TaskCompleted, TaskEvent, TaskOpened, TaskStarted
from crewlog.schemas.values import Outcome

KINDS = {"data": Offer("counts")}
PER_TASK = 4 * TURNS + 6
"""Events of one task: its own, and those of the run about it."""
STEPS_MAX = 64
EXPLAINED = ("ModelCallStarted", "ToolFinished", "TaskReviewed")


def work(opened: TaskOpened) -> list[TaskEvent]:
    """Carry out a task as a worker could have: everything behind its opening."""
    task: AgentTask = parse_task(bytes(opened.task))
    history = History(task)
    history.record(opened)
    setup, opening = pack(msgspec.json.encode(SETUP).decode())[0], pack(opening_message(task), inline_max=1 << 20)[0]
    history.record(TaskStarted("w1", 1, "1", "script-1", "offline", simulated=True, setup=setup, opening=opening))
    for number in range(1, TURNS):
        history.turn(number, "look")
    history.turn(TURNS, "submit", Outcome("344"))
    state = history.state
    history.record(TaskCompleted(Outcome("344", flags=("simulated",)), state.usage, 0, state.turn, state.tool_calls))
    return history.events[1:]


class Recorder:
    """Writes one run as its orchestrator and its workers would have."""

    def __init__(self, store: PostgresStore, clock: SystemClock, run_id: RunId) -> None:
        self.store, self.clock, self.run_id = store, clock, run_id
        self.state: RunState = initial_state()
        self.opened: dict[TaskId, TaskOpened] = {}

    async def append(self, *writes: Write, now_us: int | None = None) -> None:
        ids = [self.clock.new_id() for write in writes for _ in write.events]
        await self.store.append(AppendRequest(writes, ids, now_us or self.clock.now_us(), self.run_id))

    async def decide(self, command: Command) -> None:
        now_us = self.clock.now_us()
        decision = decide(command, self.state, now_us, KINDS)
        self.state = decision.state
        await self.store.put_blobs(decision.blobs)
        writes = [Write(w.stream, w.events, w.expected, w.kind) for w in decision.writes]
        for write in writes:
            for event in write.events:
                if isinstance(event, TaskOpened):
                    self.opened[TaskId(parse_task(bytes(event.task)).task_id)] = event
        await self.append(Write(run_stream(self.run_id), decision.events, ANY), *writes, now_us=now_us)

    async def record(self, steps: int) -> None:
        plan = {"steps": [{"key": f"s{n}", "type": "data", "objective": f"Count the penguins of island {n}."} for n in range(steps)]}
        task = parse_task({"task_id": str(self.run_id), "type": "run", "objective": "Count.", "plan": plan, "synthesis": "collect"})
        await self.decide(SubmitRun(task, "api"))
        for task_id, opened in list(self.opened.items()):
            events = work(opened)
            await self.append(Write(task_stream(task_id), events, ANY))
            await self.decide(TaskEnded(task_id, events[-1]))  # type: ignore[arg-type]


_COPY_EVENTS = """
INSERT INTO es.events (position, version, occurred_us, event_id, run_id, task_id, schema_version, stream_id, type, actor, writer, data)
SELECT nextval('es.event_position'), e.version, e.occurred_us, gen_random_uuid(), md5('run' || c.n / 5 || $2)::uuid, md5('task' || c.n || $2)::uuid,
       e.schema_version, 'task/' || md5('task' || c.n || $2)::uuid, e.type, e.actor, e.writer, e.data
  FROM generate_series(1, $3::integer) AS c (n) CROSS JOIN (SELECT * FROM es.events WHERE stream_id = $1 ORDER BY version OFFSET 0) AS e
"""
_COPY_STREAMS = """
INSERT INTO es.streams (stream_id, version, run_id, kind)
SELECT 'task/' || md5('task' || c.n || $2)::uuid, s.version, md5('run' || c.n / 5 || $2)::uuid, s.kind
  FROM generate_series(1, $3::integer) AS c (n) CROSS JOIN es.streams AS s WHERE s.stream_id = $1
"""


async def fill(store: PostgresStore, clock: SystemClock, admin: Any, events: int) -> int:
    """Write other runs, five tasks each, until there are that many events: one task through the gate, copies of it as the owner."""
    task, history = task_history()
    stream = task_stream(TaskId(task.task_id))
    request = AppendRequest((Write(stream, history, 0, "data"),), [clock.new_id() for _ in history], clock.now_us(), RunId(uuid4()), TaskId(task.task_id))
    await store.append(request)
    copies = max(events // len(history) - 1, 0)
    for sql in (_COPY_STREAMS, _COPY_EVENTS):
        await admin.execute(sql, stream, str(task.task_id), copies)
    return len(history) * (copies + 1)


async def timed(look: Callable[[], Awaitable[Any]], rounds: int) -> tuple[float, float, float]:
    """Return the median and the slowest of several looks, and the median of the CPU time of this process, in milliseconds."""
    took, busy = [], []
    for _ in range(rounds):
        began, used = time.perf_counter(), time.process_time()
        await look()
        took.append((time.perf_counter() - began) * 1000)
        busy.append((time.process_time() - used) * 1000)
    return statistics.median(took), max(took), statistics.median(busy)


class Beginner:
    """The part of the orchestrator's driver that begins a run."""

    def __init__(self, store: PostgresStore) -> None:
        self.store = store

    async def begin(self, fold: Fold, command: ForkRun) -> None:
        """Decide and append."""
        clock = SystemClock()
        batch, now_us = Batch(fold.state), clock.now_us()
        batch.add(decide(command, fold.state, now_us, KINDS))
        await self.store.append(batch.request(fold.run_id, 0, now_us, clock))


class Looks:
    """What a person does with the run, each from the log to the finished text."""

    def __init__(self, store: PostgresStore, queries: Queries, history: RunHistory) -> None:
        self.store, self.queries, self.history = store, queries, history
        self.run_id = history.run_id
        self.forked: RunId | None = None
        """The last fork that was made."""

    def last_of(self, type_: str) -> int:
        return max(n for n, recorded in enumerate(self.history.events, 1) if recorded.type == type_)

    async def whole(self) -> RunHistory:
        history = await load_history(self.store, self.run_id)
        return await with_texts(self.store, history, all_payloads(history.events))

    async def tree(self) -> None:
        assert list(tree_lines(build_tree(await load_history(self.store, self.run_id))))

    async def timeline(self) -> None:
        assert list(timeline_lines(timeline(await load_history(self.store, self.run_id))))

    async def conversations(self) -> None:
        history = await self.whole()
        assert [line for s in history.task_streams for line in conversation_lines(s, conversation(history.streams[s], history.read))]

    async def explain(self, type_: str) -> None:
        recorded = self.history.events[self.last_of(type_) - 1]
        found = await self.queries.event(str(recorded.event_id)[:30])
        history = await load_history(self.store, self.run_id)
        index = next(n for n, r in enumerate(history.events, 1) if r.position == found.position)
        told = explain(await with_texts(self.store, history, needed(history, index)), index)
        assert told.request is None or told.request["is_exact"]
        assert list(explanation_lines(told))

    async def moment(self) -> None:
        history = await self.whole()
        assert describe_moment(history, moment_at(history, len(history.events)))

    async def diff(self) -> None:
        assert diff_runs(await self.whole(), await self.whole()).is_identical

    async def fork(self) -> None:
        """Begin a fork in the middle of the last task, durably; what the orchestrator publishes afterwards is left out."""
        fork_id = uuid4()
        asked = ForkRequest(self.run_id, self.last_of("ModelCallStarted"), "benchmark", fork_id, message="Count again.")
        await Forks(self.store, SystemClock(), Beginner(self.store), Allowance()).fork("default", asked)  # type: ignore[arg-type]
        self.forked = RunId(fork_id)

    async def export(self) -> None:
        assert pack_bundle(await collect(self.store, self.run_id))


def commands(admin_url: str, looks: Looks, rounds: int, folder: Path) -> None:
    """Measure whole commands, from the start of the process to its end, as a person feels them; beside them what starting Python takes.

    Args:
        folder: for compiled modules: an installed package has them, and a checkout whose environment forbids to write them has none.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env |= {"CREWLOG_DATABASE_URL": admin_url, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    run, crewlog_ = str(looks.run_id), [sys.executable, "-P", "-m", "crewlog.orchestrator"]
    named = {"(python -c pass)": [sys.executable, "-c", "pass"], "(crewlog --help)": [*crewlog_, "--help"]}
    named |= {f"crewlog show --as {view}": [*crewlog_, "show", run, "--as", view] for view in ("tree", "timeline", "conversation", "events")}
    named |= {
        f"crewlog explain {type_}": [*crewlog_, "explain", f"{run}:{looks.last_of(type_)}"] for type_ in ("ModelCallStarted", "ToolFinished", "TaskReviewed")
    }
    middle = looks.last_of("ModelCallStarted")
    named |= {"crewlog replay --to": [*crewlog_, "replay", run, "--to", str(middle)], "crewlog lineage": [*crewlog_, "lineage", run]}
    named |= {"crewlog diff": [*crewlog_, "diff", f"{run}:{middle}", f"{run}:{middle}"]}
    for name, command in named.items():
        took, busy = [], []
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)  # the first one compiles
        for _ in range(rounds):
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
            took.append((time.perf_counter() - began) * 1000)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            busy.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000)
        print(f"{name:<34} {statistics.median(took):8.1f} ms   quickest {min(took):8.1f} ms   CPU of the process {statistics.median(busy):8.1f} ms")


async def measure(admin_url: str, events: int, run_events: int, rounds: int, folder: Path) -> None:
    clock = SystemClock()
    store = await PostgresStore.open(admin_url, actor="benchmark", clock=clock)
    before, after = events // 2, events - events // 2 - run_events
    admin = await connect(admin_url)
    written = await fill(store, clock, admin, before)
    recorder = Recorder(store, clock, RunId(uuid4()))
    await recorder.record(min(max(run_events // PER_TASK, 1), STEPS_MAX))
    written += await fill(store, clock, admin, after)
    await admin.execute("VACUUM ANALYZE es.events, es.streams")
    history = await load_history(store, recorder.run_id)
    report = await replay(store, recorder.run_id)
    assert report.divergence is None, str(report.divergence)
    print(f"{machine()}\n{written + len(history.events):,} events in the log, {len(history.events):,} of them of the run that is looked at")
    async with Queries(admin_url, clock) as queries:
        looks = Looks(store, queries, history)
        named = {"show --as tree": looks.tree, "show --as timeline": looks.timeline, "show --as conversation": looks.conversations}
        for type_ in EXPLAINED:
            named[f"explain {type_}"] = lambda type_=type_: looks.explain(type_)
        for name, look in (named | {"replay --to (last)": looks.moment, "diff with itself": looks.diff, "fork": looks.fork, "export": looks.export}).items():
            median, slowest, busy = await timed(look, rounds)
            print(f"{name:<26} {median:8.1f} ms   slowest {slowest:8.1f} ms   CPU of this process {busy:8.1f} ms")
    assert looks.forked is not None
    stored = await store.read_run(looks.forked)
    print(f"fork: {sum(len(r.data) for r in stored):,} bytes stored in {len(stored)} events")
    commands(admin_url, looks, rounds, folder)
    bundle = await collect(store, recorder.run_id)
    distinct = b"\n".join([*(r.data for r in bundle.events), *bundle.blobs.values()])
    size, alone = len(pack_bundle(bundle)), len(gzip.compress(distinct))
    ids = len(gzip.compress(b"".join(r.event_id.bytes for r in bundle.events)))  # nearly all of each is random: nothing packs it, and an import needs it
    print(f"export: {size:,} bytes; {size / (alone + ids):.3f} of what is in it once, packed alone: {alone:,} bytes of data and texts, {ids:,} of event ids")
    print(f"    {size / alone:.3f} of data and texts, which are {len(distinct):,} bytes unpacked")
    await admin.close()
    connection = await connector(admin_url, application="benchmark")()
    plan = await connection.fetch(f"EXPLAIN (COSTS OFF) {_READ_RUN.replace('$1', repr(str(recorder.run_id)))}")
    await connection.close()
    print("plan:\n" + "\n".join(f"    {row[0]}" for row in plan))
    await store.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--run-events", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="crewlog-bench-", dir="/tmp"))
    folder.chmod(0o755)
    server = PostgresServer(folder / "postgres", admin_password=uuid4().hex)
    await server.start()
    try:
        await ensure_database(server.admin_url())
        await migrate(server.admin_url(), [LOG_FOLDER, *(Path(root) / "sql" for root in crewlog.projections.__path__)])
        await measure(server.admin_url(), given.events, given.run_events, given.rounds, folder)
    finally:
        await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
