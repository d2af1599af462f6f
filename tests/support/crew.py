"""A whole crew inside one process: real orchestrators on the memory log and bus, and agents that do as the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from crewlog.events.bus import Delivery, Message
from crewlog.events.clock import SystemClock
from crewlog.events.grants import BUILT_IN_KINDS, ORCHESTRATOR
from crewlog.events.memory_bus import MemoryBroker, MemoryBus
from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.events.store import ANY, Appended, AppendRequest, Recorded, Write
from crewlog.orchestrator.rederive import verify_run
from crewlog.orchestrator.service import OrchestratorService, Settings
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.ids import RunId, TaskId, run_stream, task_stream
from crewlog.schemas.subjects import LANES, wake
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.task_events import NOTICED_TYPES, TERMINAL_TYPES, AttemptFailed, TaskCompleted, TaskEvent
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Failure, Outcome

WITHIN_S = 60.0

Behaviour = Callable[[AgentTask, int], TaskEvent | None]
"""(task, attempt) -> what the agent appends; None: it takes the message and is never heard of again."""


def diligent(task: AgentTask, attempt: int) -> TaskEvent:
    """Do everything at once."""
    del attempt
    output = {"steps": [{"key": "a", "type": "data", "objective": "Count"}]} if task.key == "@plan" else None
    return TaskCompleted(Outcome(f"result of {task.key}", output=output), Usage(10, 5), 7, 1, 0)


class Moody(MemoryStore):
    """A log whose next appends fail: before they are written, or with the answer lost."""

    failing: list[Exception | str]

    async def append(self, request: AppendRequest) -> Appended:
        mood = self.failing.pop(0) if getattr(self, "failing", None) else None
        if isinstance(mood, Exception):
            raise mood
        written = await super().append(request)
        if mood == "answer lost":
            raise Unavailable("the log went away")
        return written


class LeapingClock(SystemClock):
    """Real time, in which a test may leap ahead."""

    ahead_s = 0.0

    def now_us(self) -> int:
        return super().now_us() + round(self.ahead_s * 1e6)

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


class Crew:
    """The log, the bus, and who is on them."""

    def __init__(self, behaviour: Behaviour = diligent, *, log: MemoryLog | None = None, broker: MemoryBroker | None = None) -> None:
        self.log = log or MemoryLog()
        self.broker = broker or MemoryBroker()
        self.bus = MemoryBus(self.broker)
        self.clock = LeapingClock()
        self.behaviour = behaviour
        self.wakes = True
        """Whether agents wake the orchestrator."""
        self.deliveries: list[tuple[str, dict[str, str]]] = []
        """(step key, headers) of every message the agents were handed."""
        self._changed = asyncio.Event()
        self._store = self.store()

    def store(self, role: str = "owner") -> MemoryStore:
        """Open the log."""
        return MemoryStore(self.log, role=role, on_commit=self._on_commit)

    def _on_commit(self, *_: object) -> None:
        self._changed.set()

    @asynccontextmanager
    async def orchestrator(self, *, store: MemoryStore | None = None, bus: MemoryBus | None = None, **settings: Any) -> AsyncIterator[OrchestratorService]:
        """Run one orchestrator with the rights of its role. No sweep by itself beyond the first, unless the test says so."""
        chosen = Settings(**{"sweep_interval_s": 3600.0, "shutdown_grace_s": 2.0, **settings})
        service = OrchestratorService(store or self.store(ORCHESTRATOR), bus or MemoryBus(self.broker), self.clock, chosen)
        await service.start()
        try:
            yield service
        finally:
            await service.stop()

    @asynccontextmanager
    async def agents(self, kinds: Sequence[str] = BUILT_IN_KINDS, *, lanes: Sequence[str] = LANES) -> AsyncIterator[None]:
        """Run one worker for all these kinds."""
        consumers = {f"{kind}-{lane}": n for kind in kinds for n, lane in enumerate(lanes)}
        for kind in kinds:
            await self.bus.ensure_kind(kind)
        consuming = await self.bus.consume("WORK", consumers, self._work, slots=8)
        try:
            yield
        finally:
            await consuming.stop(grace_s=1)

    async def _work(self, delivery: Delivery) -> None:
        task = parse_task(delivery.data)
        self.deliveries.append((task.key or "", dict(delivery.headers)))
        self._changed.set()
        event = self.behaviour(task, int(delivery.headers["Attempt"]))
        if event is not None and not self.is_closed(TaskId(task.task_id)):
            await self.says(task, event)
        await delivery.ack()

    async def says(self, task: AgentTask, event: TaskEvent) -> None:
        """Append an agent's event, and wake the orchestrator as agents do."""
        run_id, task_id = RunId(task.run_id), TaskId(task.task_id)
        writes = (Write(task_stream(task_id), (event,), ANY),)
        await self._store.append(AppendRequest(writes, [self.clock.new_id()], self.clock.now_us(), run_id, task_id))
        if self.wakes and type(event).__name__ in NOTICED_TYPES:
            await self.bus.publish(wake(run_id), str(task_id).encode())

    def is_closed(self, task_id: TaskId) -> bool:
        """Say whether the task has its end."""
        stream = self.log.streams.get(task_stream(task_id))
        return stream is not None and stream.closed

    async def ask(self, what: str, body: Any, *, tenant: str = "default") -> dict[str, Any]:
        """Send one request to the orchestrators."""
        data = body if isinstance(body, bytes) else json.dumps(body, default=str).encode()
        answer: dict[str, Any] = json.loads((await self.bus.request(f"api.{tenant}.{what}", data, timeout_s=WITHIN_S)).data)
        return answer

    async def submit(self, **fields: Any) -> RunId:
        """Submit a task by request and return its run."""
        answer = await self.ask("tasks.submit", {"task_id": self.clock.random_id(), "type": "run", "objective": "Do it", **fields})
        assert answer["ok"], answer
        return RunId(UUID(answer["run_id"]))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the log fulfils a condition."""
        async with asyncio.timeout(WITHIN_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_handed(self, messages: int) -> None:
        """Wait until the agents were handed so many messages."""
        await self.until(lambda: len(self.deliveries) >= messages)

    async def ended(self, run_id: RunId) -> Recorded:
        """Wait for the run's one terminal event, and check that its whole log follows from itself."""
        await self.until(lambda: any(r.type in TERMINAL_TYPES for r in self.events(run_id)))
        (end,) = [r for r in self.events(run_id) if r.type in TERMINAL_TYPES]
        tasks = [r for r in await self._store.read_run(run_id) if r.stream.startswith("task/")]
        assert verify_run(self.events(run_id), tasks) is None
        return end

    def events(self, run_id: RunId) -> list[Recorded]:
        """Return the run stream."""
        stream = self.log.streams.get(run_stream(run_id))
        return stream.events if stream else []

    def types(self, run_id: RunId) -> list[str]:
        """Return the types of the run stream."""
        return [r.type for r in self.events(run_id)]

    def rejected(self) -> list[Message]:
        """Return what was kept of bad messages."""
        return self.broker.messages("REJECTED")


def crash_once(task: AgentTask, attempt: int) -> TaskEvent:
    """Fail the first attempt in a way that is worth another."""
    return AttemptFailed(1, Failure("model_server", "it broke", True, 0.0)) if attempt == 1 else diligent(task, attempt)
