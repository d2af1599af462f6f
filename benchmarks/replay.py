"""Measure how fast recorded events are folded again, from Postgres and from memory, against a bare fold of the same events.

    python benchmarks/replay.py [--events 200000] [--rounds 3]

The bare fold is the least a replay can be: fetch `data` in pages, decode it with msgspec into its struct, add one field up. A replay
decodes every event, runs the turn machine over it; `--verify` also derives every decision and rebuilds every
model request. Both read the same table in the same run, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import msgspec
from measure import machine

from crewlog.agents.conversation import build_request
from crewlog.agents.rederive import replay_task
from crewlog.agents.setup import Setup, SetupTool, opening_message
from crewlog.agents.task_state import TaskState, evolve, initial_state
from crewlog.events.clock import SystemClock
from crewlog.events.memory import settle_memory
from crewlog.events.migrate import ensure_database, migrate
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.server_postgres import PostgresServer
from crewlog.events.store import AppendRequest, Recorded, Write
from crewlog.schemas.blocks import ToolDef
from crewlog.schemas.codec import decode
from crewlog.schemas.ids import RunId, Stream, TaskId, idempotency_key, task_stream
from crewlog.schemas.payload import pack
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.task_events import (
    ModelCallFinished,
    ModelCallStarted,
    TaskCompleted,
    TaskEvent,
    TaskOpened,
    TaskStarted,
    ToolCall,
    ToolFinished,
    ToolStarted,
)
from crewlog.schemas.usage import Price, Usage
from crewlog.schemas.values import Outcome

TURNS = 20
TOOL = SetupTool(ToolDef("look", "Look something up.", {"type": "object"}), "1", "read", "trusted", needs_approval=False, ends_task=False, calls_max=None)
FINISH = SetupTool(ToolDef("submit", "Finish.", {"type": "object"}), "1", "read", "trusted", needs_approval=False, ends_task=True, calls_max=None)
SETUP = Setup("data", "1", "You answer questions.", (TOOL, FINISH), 1000, "")
RUN_ID = RunId(UUID("00000000-0000-4000-8000-0000000000ff"))
PAGE = 2_000


class History:
    """Writes down one task that a worker could have had."""

    def __init__(self, task: AgentTask) -> None:
        self.state: TaskState = initial_state()
        self.events: list[TaskEvent] = []
        self._task = task

    def record(self, event: TaskEvent) -> None:
        self.state = evolve(self.state, event)
        self.events.append(event)

    def turn(self, number: int, tool: str, outcome: Outcome | None = None) -> None:
        request = build_request(self.state, SETUP, lambda p: p.inline or "")
        self.record(ModelCallStarted(f"m{number}-1", number, "offline", "script-1", request.request_hash(), len(request.messages)))
        call = ToolCall(f"t{number}-1", tool, pack('{"query":"' + "penguin " * 8 + '"}')[0])
        answer = ModelCallFinished(
            f"m{number}-1",
            number,
            "tool_use",
            pack("I look it up.")[0],
            (call,),
            Usage(500, 40),
            Price(0, "offline"),
            "offline",
            "script-1",
            simulated=True,
            latency_ms=3,
        )
        self.record(answer)
        key = idempotency_key(RunId(self._task.run_id), TaskId(self._task.task_id), call.call_id)
        self.record(ToolStarted(call.call_id, tool, "1", "read", key))
        self.record(ToolFinished(call.call_id, tool, "ok", pack("a result of a few words " * 12)[0], 2, outcome=outcome))


def task_history() -> tuple[AgentTask, list[TaskEvent]]:
    """Make a finished task of `TURNS` turns."""
    task = parse_task({"task_id": str(uuid4()), "run_id": str(RUN_ID), "type": "data", "objective": "Count the penguins."})
    history = History(task)
    history.record(TaskOpened("data", "a", 0, msgspec.Raw(msgspec.json.encode(task))))
    setup, opening = pack(msgspec.json.encode(SETUP).decode())[0], pack(opening_message(task))[0]
    history.record(TaskStarted("w1", 1, "1", "script-1", "offline", simulated=True, setup=setup, opening=opening))
    for number in range(1, TURNS):
        history.turn(number, "look")
    history.turn(TURNS, "submit", Outcome("344"))
    state = history.state
    history.record(TaskCompleted(Outcome("344", flags=("simulated",)), state.usage, 0, state.turn, state.tool_calls))
    return task, history.events


async def fill(store: PostgresStore, events: int) -> dict[Stream, list[Recorded]]:
    """Write tasks until the log holds that many events, and return it as the store reads it."""
    clock, written = SystemClock(), 0
    appends = []
    while written < events:
        task, history = task_history()
        write = Write(task_stream(TaskId(task.task_id)), history, 0, "data")
        appends.append(store.append(AppendRequest((write,), [clock.new_id() for _ in history], clock.now_us(), RUN_ID, TaskId(task.task_id))))
        written += len(history)
        if len(appends) == 64:
            await asyncio.gather(*appends)
            appends.clear()
    await asyncio.gather(*appends)
    streams: dict[Stream, list[Recorded]] = {}
    for recorded in await store.read_run(RUN_ID):
        streams.setdefault(recorded.stream, []).append(recorded)
    return streams


async def bare_from_postgres(url: str) -> tuple[int, float]:
    """Fetch, decode and add up; returns events and seconds."""
    connection = await asyncpg.connect(url)
    began, after, count, total = time.perf_counter(), 0, 0, 0
    while rows := await connection.fetch("SELECT position, type, data::text FROM es.events WHERE position > $1 ORDER BY position LIMIT $2", after, PAGE):
        for _, type_, data in rows:
            total += len(type(decode(type_, 1, data.encode())).__name__)
        after, count = rows[-1][0], count + len(rows)
    seconds = time.perf_counter() - began
    await connection.close()
    assert total > 0
    return count, seconds


async def fold_from_postgres(store: PostgresStore) -> tuple[int, float]:
    """Read the log in pages and fold every task with the turn machine."""
    began, after, count = time.perf_counter(), 0, 0
    states: dict[Stream, TaskState] = {}
    while (page := await store.read_all(after, PAGE)).events:
        for recorded in page.events:
            event = recorded.event()
            assert isinstance(event, TaskEvent)
            states[recorded.stream] = evolve(states.get(recorded.stream) or initial_state(), event)
        after, count = page.events[-1].position, count + len(page.events)
    return count, time.perf_counter() - began


def bare_in_memory(events: Sequence[Recorded]) -> float:
    """Decode and add up; returns seconds."""
    began, total = time.perf_counter(), 0
    for recorded in events:
        total += len(type(decode(recorded.type, recorded.schema_version, recorded.data)).__name__)
    assert total > 0
    return time.perf_counter() - began


def replay_in_memory(streams: dict[Stream, list[Recorded]], *, verify: bool) -> float:
    """Replay all task streams as `crewlog replay` does; returns seconds."""
    began = time.perf_counter()
    for events in streams.values():
        replayed = replay_task(events, lambda payload: payload.inline or "", verify=verify)
        assert replayed.divergence is None, str(replayed.divergence)
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
    try:
        await ensure_database(server.admin_url())
        await migrate(server.admin_url())
        store = await PostgresStore.open(server.admin_url(), actor="benchmark", clock=SystemClock())
        streams = await fill(store, given.events)
        events = [r for recorded in streams.values() for r in recorded]
        names = ("bare, Postgres", "fold, Postgres", "bare, memory", "replay, memory", "replay --verify")
        settle_memory()
        rates: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(given.rounds):
            count, seconds = await bare_from_postgres(server.admin_url())
            rates["bare, Postgres"].append(count / seconds)
            count, seconds = await fold_from_postgres(store)
            rates["fold, Postgres"].append(count / seconds)
            rates["bare, memory"].append(len(events) / bare_in_memory(events))
            rates["replay, memory"].append(len(events) / replay_in_memory(streams, verify=False))
            rates["replay --verify"].append(len(events) / replay_in_memory(streams, verify=True))
        await store.close()
    finally:
        await server.stop()
    print(machine())
    print(f"{len(events)} events, {len(streams)} tasks of {TURNS} turns")
    for name, floor in (("fold, Postgres", "bare, Postgres"), ("replay, memory", "bare, memory"), ("replay --verify", "bare, memory")):
        ratio = statistics.median(a / b for a, b in zip(rates[name], rates[floor], strict=True))
        print(f"{name:<16} {statistics.median(rates[name]):>10,.0f} events/s   {floor:<15} {statistics.median(rates[floor]):>10,.0f}   {ratio:.2f}×")


if __name__ == "__main__":
    asyncio.run(main())
