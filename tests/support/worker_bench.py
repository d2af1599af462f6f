"""One worker on a log and a bus in memory, with an orchestrator that only accepts registrations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from support.scripted import Line, Recorder, ScriptedModel

from crewlog.agents.model import Model
from crewlog.agents.rederive import replay_task
from crewlog.agents.spec import AgentSpec
from crewlog.agents.work import Workshop
from crewlog.agents.worker import Worker
from crewlog.events.artifact_store import open_artifacts
from crewlog.events.bus import Message
from crewlog.events.clock import SystemClock
from crewlog.events.memory_bus import MemoryBus
from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import NO_STREAM, AppendRequest, Recorded, Write
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.ids import RunId, TaskId, task_stream
from crewlog.schemas.payload import Payload
from crewlog.schemas.subjects import work
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.task_events import TaskEvent, TaskOpened

WITHIN_S = 30.0
"""Nothing takes that long but the first import of an SDK on a busy machine."""
RUN_ID = RunId(UUID("00000000-0000-4000-8000-00000000000a"))


@dataclass
class Bench:
    """One worker, its log, its bus, and an orchestrator that only accepts registrations."""

    store: MemoryStore
    bus: MemoryBus
    tmp: Path
    clock: SystemClock
    workers: list[Worker]
    woken: asyncio.Queue[str]
    committed: asyncio.Event

    async def worker(
        self, agent: Recorder | AgentSpec, *lines: Line, name: str = "w1", slots: int = 4, provider: str = "", chain: tuple[Model, ...] = (), **shop: Any
    ) -> ScriptedModel:
        """Start a worker with the models of `chain`, or one that says `lines`, offline or of a provider; `shop` overrides fields of its `Workshop`."""
        scripted = ScriptedModel(list(lines), provider=provider, wire="test.wire", simulated=False) if provider else ScriptedModel(list(lines))
        artifacts = await open_artifacts(self.tmp / "artifacts")
        spec = agent.agent() if isinstance(agent, Recorder) else agent
        worker = Worker(Workshop(name, spec, chain or (scripted,), artifacts, self.clock, self.tmp / "work", **shop), self.store, self.bus, slots=slots)
        await worker.start()
        self.workers.append(worker)
        return scripted

    async def open(self, *, number: int = 1, scopes: Sequence[ScopeLimit] = (), **changes: object) -> AgentTask:
        task = parse_task({"task_id": str(UUID(int=number)), "run_id": str(RUN_ID), "type": "data", "key": "a", "objective": "count", **changes})
        body = msgspec.json.encode(task)
        await self.append(task, TaskOpened("data", "a", 0, msgspec.Raw(body)), expected=NO_STREAM, scopes=scopes)
        return task

    async def dispatch(self, task: AgentTask, *, attempt: int = 1, version: int = 1) -> None:
        headers = {"Attempt": str(attempt), "Task-Version": str(version)}
        message_id = f"{task.task_id}:{attempt}:{version}"
        await self.bus.enqueue(work("data", "normal"), msgspec.json.encode(task), message_id=message_id, headers=headers)

    async def append(self, task: AgentTask, *events: TaskEvent, expected: int, scopes: Sequence[ScopeLimit] = ()) -> None:
        write = Write(task_stream(TaskId(task.task_id)), events, expected, "data", scopes)
        ids = [self.clock.new_id() for _ in events]
        await self.store.append(AppendRequest((write,), ids, self.clock.now_us(), RUN_ID, TaskId(task.task_id)))

    async def recorded(self, task: AgentTask) -> list[Recorded]:
        return list(await self.store.read_streams({task_stream(TaskId(task.task_id)): 0}))

    async def events(self, task: AgentTask) -> list[TaskEvent]:
        return [r.event() for r in await self.recorded(task)]  # type: ignore[misc]

    def read(self, payload: Payload) -> str:
        """Return the text of a payload, from the log alone."""
        return payload.inline if payload.inline is not None else self.store.log.blobs[payload.ref].decode()  # type: ignore[index]

    async def reach(self, task: AgentTask, last: str) -> None:
        """Wait until the last event of a task is of this type."""
        async with asyncio.timeout(WITHIN_S):
            while names(await self.events(task))[-1] != last:
                self.committed.clear()
                await self.committed.wait()

    async def rest(self, task: AgentTask, *, within_s: float = WITHIN_S) -> list[TaskEvent]:
        """Wait until the worker wakes the orchestrator for this task, then return its events, replayed and found consistent."""
        async with asyncio.timeout(within_s):
            await self.woken.get()
        events = await self.recorded(task)
        replayed = replay_task(events, self.read)
        assert replayed.divergence is None, str(replayed.divergence)
        return [r.event() for r in events]  # type: ignore[misc]


def payloads(value: object) -> list[Payload]:
    if isinstance(value, Payload):
        return [value]
    if isinstance(value, msgspec.Struct):
        return [p for name in value.__struct_fields__ for p in payloads(getattr(value, name))]
    return [p for item in value for p in payloads(item)] if isinstance(value, tuple) else []


@asynccontextmanager
async def worker_bench(folder: Path) -> AsyncIterator[Bench]:
    """Set up the bench; its workers are stopped at the end."""
    bus, woken, committed = MemoryBus(), asyncio.Queue[str](), asyncio.Event()
    store = MemoryStore(on_commit=lambda _: committed.set())
    await bus.ensure_kind("data")

    async def registered(message: Message) -> None:
        await bus.publish(message.reply, b'{"ok":true}')

    async def wake(message: Message) -> None:
        woken.put_nowait(message.data.decode())

    await bus.subscribe("api.system.agents.*.*", registered)
    await bus.subscribe("wake.*", wake)
    bench = Bench(store, bus, folder, SystemClock(), [], woken, committed)
    yield bench
    for worker in bench.workers:
        await worker.stop(grace_s=0)
    await bus.close()


def names(events: list[TaskEvent]) -> list[str]:
    """Return the types of events."""
    return [type(e).__name__ for e in events]
