"""Opening stores of either implementation, and small requests to append."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

import msgspec
from support.postgres import Database

from crewlog.events.clock import SystemClock
from crewlog.events.grants import ORCHESTRATOR
from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.events.personal_store import KeepsKeys
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import ANY, NO_STREAM, AppendRequest, EventStore, Write
from crewlog.schemas.codec import Event
from crewlog.schemas.ids import RunId, Stream, TaskId, run_stream, task_stream
from crewlog.schemas.payload import EMPTY
from crewlog.schemas.run_events import RunCancelled, RunSubmitted, TaskDispatched
from crewlog.schemas.task_events import ModelCallStarted, TaskCompleted, TaskOpened, TaskStarted
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Outcome

CLOCK = SystemClock()


class Log(Protocol):
    """One log that several processes open."""

    async def open(self, role: str = ORCHESTRATOR) -> KeepsKeys: ...
    async def close(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.log = MemoryLog()

    async def open(self, role: str = ORCHESTRATOR) -> KeepsKeys:
        return MemoryStore(self.log, role=role, actor=f"{role}@test")

    async def close(self) -> None: ...


class InPostgres:
    def __init__(self, database: Database) -> None:
        self.database = database
        self._opened: list[PostgresStore] = []

    async def open(self, role: str = ORCHESTRATOR) -> KeepsKeys:
        store = await PostgresStore.open(self.database.url(role), actor=f"{role}@test", clock=CLOCK)
        self._opened.append(store)
        return store

    async def open_as_owner(self) -> EventStore:
        store = await PostgresStore.open(self.database.admin_url, actor="owner@test", clock=CLOCK)
        self._opened.append(store)
        return store

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


def request(*writes: Write, run_id: RunId | None = None, task_id: TaskId | None = None, ids: Sequence[UUID] | None = None) -> AppendRequest:
    """Make a request with fresh event ids."""
    count = sum(len(write.events) for write in writes)
    return AppendRequest(writes, ids if ids is not None else [CLOCK.new_id() for _ in range(count)], CLOCK.now_us(), run_id, task_id)


def new_run() -> RunId:
    return RunId(CLOCK.random_id())


def new_task() -> TaskId:
    return TaskId(CLOCK.random_id())


def to_run(run_id: RunId, *events: Event, expected: int = ANY) -> AppendRequest:
    """Append to the run's stream."""
    return request(Write(run_stream(run_id), events, expected), run_id=run_id)


def to_task(task_id: TaskId, *events: Event, expected: int = ANY, run_id: RunId | None = None) -> AppendRequest:
    """Append to the task's stream."""
    return request(Write(task_stream(task_id), events, expected), run_id=run_id, task_id=task_id)


def opening(run_id: RunId, task_id: TaskId | None = None, *, kind: str = "research") -> AppendRequest:
    """Open a run, and a task of it if wanted, as the orchestrator does."""
    writes = [Write(run_stream(run_id), [submitted(run_id)], NO_STREAM)]
    if task_id is not None:
        writes.append(Write(task_stream(task_id), [TaskOpened(kind, "step", 0, msgspec.Raw(b"{}"))], NO_STREAM, kind))
    return request(*writes, run_id=run_id, task_id=task_id)


def submitted(run_id: RunId) -> RunSubmitted:
    return RunSubmitted(run_id, "default", "anonymous", "goal", msgspec.Raw(b"{}"), "api")


def dispatched(task_id: TaskId, key: str = "step") -> TaskDispatched:
    return TaskDispatched(task_id, key, "research", 1, 0, 0)


def cancelled() -> RunCancelled:
    return RunCancelled("enough", "tester")


def started() -> TaskStarted:
    return TaskStarted("worker", 1, "1", "offline", "offline", simulated=True, setup=EMPTY, opening=EMPTY)


def asked(call_id: str = "call") -> ModelCallStarted:
    return ModelCallStarted(call_id, 1, "offline", "offline", "0" * 64, 1)  # type: ignore[arg-type]


def completed() -> TaskCompleted:
    return TaskCompleted(Outcome("done"), Usage(), 0, 1, 0)


def stream_of(write_to: AppendRequest) -> Stream:
    return write_to.writes[0].stream
