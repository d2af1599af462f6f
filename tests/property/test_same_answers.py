"""The memory log and Postgres answer alike, whatever travels together: a batch is no transaction, and no request sees that it has company."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.logs import CLOCK, cancelled, completed, dispatched, new_run, new_task, request, started, submitted
from support.postgres import Database

from crewlog.events.grants import ORCHESTRATOR, kind_role
from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import Appended, AppendRequest, EventStore, Write
from crewlog.schemas.ids import RunId, TaskId, alert_stream, mcp_stream, run_stream, spend_stream, task_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.system_events import CallSettled, McpToolPinned, RunStoodStill
from crewlog.schemas.task_events import TaskOpened
from crewlog.schemas.usage import WORST_CASE, Price, Usage

pytestmark = pytest.mark.hand_written("tries the log with requests of every kind of rightness")

RESEARCH = kind_role("research")
Answers = tuple[list[list[str]], list[tuple[object, ...]]]


class Move(NamedTuple):
    """What one write of a request is about: numbers of a run and a task, and the version it expects."""

    what: str
    run: int
    task: int
    expected: int


MOVES = st.builds(
    Move,
    st.sampled_from(["open run", "end run", "to run", "open task", "open task of code", "to task", "end task", "spend", "pin", "alert"]),
    st.integers(0, 1),
    st.integers(0, 1),
    st.sampled_from([0, 0, -1, -1, 1, 2]),
)
REQUESTS = st.tuples(
    st.lists(MOVES, min_size=1, max_size=2, unique_by=lambda move: (move.what.split()[-1], move.run, move.task)), st.sampled_from([0, 0, 1, None])
)
BATCHES = st.lists(st.tuples(st.sampled_from([ORCHESTRATOR, ORCHESTRATOR, RESEARCH]), st.lists(REQUESTS, min_size=1, max_size=4)), min_size=1, max_size=4)


def write(move: Move, run_id: RunId, task_id: TaskId) -> Write:
    match move.what:
        case "open run":
            return Write(run_stream(run_id), [submitted(run_id)], move.expected)
        case "end run":
            return Write(run_stream(run_id), [cancelled()], move.expected)
        case "to run":
            return Write(run_stream(run_id), [dispatched(task_id)], move.expected)
        case "open task":
            return Write(task_stream(task_id), [TaskOpened("research", "step", 0, msgspec.Raw(b"{}"))], move.expected, "research")
        case "open task of code":
            return Write(task_stream(task_id), [TaskOpened("code", "step", 0, msgspec.Raw(b"{}"))], move.expected, "code")
        case "to task":
            return Write(task_stream(task_id), [started()], move.expected)
        case "end task":
            return Write(task_stream(task_id), [completed()], move.expected)
        case "spend":
            return Write(spend_stream(task_id), [CallSettled(task_id, run_id, "m1-1", "provider", "model", Usage(), Price(0, WORST_CASE))], move.expected)
        case "alert":
            return Write(alert_stream(run_id), [RunStoodStill(run_id, "nobody works on it", 1)], move.expected)
        case _:
            return Write(mcp_stream(f"of-{task_id}"), [McpToolPinned("one", "tool", content_hash(b"{}"), msgspec.Raw(b"{}"), accepted=False)], move.expected)


def told(answer: Appended | BaseException) -> str:
    return f"{list(answer.versions)} {answer.duplicate}" if isinstance(answer, Appended) else type(answer).__name__


async def answers(stores: dict[str, EventStore], batches: Sequence[tuple[str, Sequence[AppendRequest]]], runs: Sequence[RunId]) -> Answers:
    """Send batch by batch; returns what was answered, and what the log then holds."""
    said = []
    for role, requests in batches:
        said.append([told(answer) for answer in await asyncio.gather(*map(stores[role].append, requests), return_exceptions=True)])
    streams = {write.stream for _, requests in batches for one in requests for write in one.writes}
    found = await stores[ORCHESTRATOR].read_streams(dict.fromkeys(streams, 0))
    held = [(event.stream, event.version, event.event_id, event.type, event.run_id) for event in found]
    of_runs = [(run_id, [event.event_id for event in await stores[ORCHESTRATOR].read_run(run_id)]) for run_id in runs]
    are_open = set(await stores[ORCHESTRATOR].open_runs(after=None, limit=100_000))
    return said, [*held, *of_runs, tuple(run_id in are_open for run_id in runs)]


def test_what_travels_together_is_answered_as_what_travels_alone(database: Database) -> None:
    loop = asyncio.new_event_loop()
    opened: dict[str, EventStore] = {
        role: loop.run_until_complete(PostgresStore.open(database.url(role), actor=f"{role}@test", clock=CLOCK, lanes=1)) for role in (ORCHESTRATOR, RESEARCH)
    }

    @given(batches=BATCHES)
    @settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
    def agree(batches: list[tuple[str, list[tuple[list[Move], int | None]]]]) -> None:
        runs, tasks = [new_run(), new_run()], [new_task(), new_task()]
        made = [
            (role, [request(*(write(m, runs[m.run], tasks[m.task]) for m in moves), run_id=None if run is None else runs[run]) for moves, run in requests])
            for role, requests in batches
        ]
        log = MemoryLog()
        inside: dict[str, EventStore] = {role: MemoryStore(log, role=role, actor=f"{role}@test") for role in opened}
        assert loop.run_until_complete(answers(opened, made, runs)) == loop.run_until_complete(answers(inside, made, runs))

    try:
        agree()
    finally:
        for store in opened.values():
            loop.run_until_complete(store.close())
        loop.close()
