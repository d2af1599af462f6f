"""A whole crew inside this process, on a log and a bus in memory: the orchestrator and the workers of the product, nothing of them replaced.

For golden tasks, which need no server and no network; and for whoever wants to try an agent of their own in a test.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from crewlog.agents.model import Model
from crewlog.agents.spec import AgentSpec
from crewlog.agents.work import Workshop
from crewlog.agents.worker import Worker
from crewlog.events.artifacts import ArtifactStore
from crewlog.events.clock import Clock
from crewlog.events.grants import ORCHESTRATOR, kind_role
from crewlog.events.memory_bus import MemoryBroker, MemoryBus
from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.events.store import Recorded
from crewlog.orchestrator.service import OrchestratorService, Settings
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId, run_stream
from crewlog.schemas.subjects import LANES, SHADOW_LANE
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import TERMINAL_TYPES

REQUEST_TIMEOUT_S = 30.0
SLOTS = 4
QUIET = Settings(sweep_interval_s=3600.0, shutdown_grace_s=1.0)
"""Nothing gets lost inside of one process, so that nobody has to look for it."""


class MemoryCrew:
    """A crew that is up."""

    def __init__(self, log: MemoryLog, broker: MemoryBroker) -> None:
        self.log = log
        self.bus = MemoryBus(broker)
        self.store = MemoryStore(log)
        self.grown = asyncio.Event()

    async def ask(self, what: str, body: AgentTask | dict[str, Any], *, tenant: str = "default") -> dict[str, Any]:
        """Send one request to the orchestrator, as `api.<tenant>.<what>`.

        Raises:
            ContractError: it was refused.
        """
        data = msgspec.json.encode(body, enc_hook=str)
        answer: dict[str, Any] = json.loads((await self.bus.request(f"api.{tenant}.{what}", data, timeout_s=REQUEST_TIMEOUT_S)).data)
        if not answer["ok"]:
            error = answer["error"]
            raise ContractError(error["message"], problems=tuple((problem["pointer"], problem["message"]) for problem in error["problems"]))
        return answer

    async def submit(self, task: AgentTask) -> RunId:
        """Hand in a task."""
        await self.ask("tasks.submit", task, tenant=task.tenant)
        return RunId(task.run_id)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the log fulfils a condition. Use `asyncio.timeout` around it."""
        while not condition():
            self.grown.clear()
            await self.grown.wait()

    async def end(self, run_id: RunId) -> Recorded:
        """Wait for the end of a run and return it."""
        await self.until(lambda: self.ended(run_id) is not None)
        end = self.ended(run_id)
        assert end is not None
        return end

    def ended(self, run_id: RunId) -> Recorded | None:
        """Return the terminal event of a run, None while it goes on."""
        stream = self.log.streams.get(run_stream(run_id))
        last = stream.events[-1] if stream is not None else None
        return last if last is not None and last.type in TERMINAL_TYPES else None


@asynccontextmanager
async def memory_crew(
    agents: Sequence[AgentSpec],
    chain_of: Callable[[str], tuple[Model, ...]],
    *,
    clock: Clock,
    artifacts: ArtifactStore,
    folder: Path,
    log: MemoryLog | None = None,
    settings: Settings = QUIET,
    shadow_agents: Sequence[AgentSpec] = (),
    **shop: Any,
) -> AsyncIterator[MemoryCrew]:
    """Run a crew for as long as the context lasts.

    Args:
        chain_of: agent kind -> the models of its worker, in order of preference.
        folder: where tools of the code specialist work.
        log: a log that exists, such as that of a bundle; None begins with an empty one.
        shadow_agents: those that take the work of shadows and no other.
        shop: further fields of each `Workshop`.
    """
    broker = MemoryBroker()
    crew = MemoryCrew(log if log is not None else MemoryLog(), broker)

    def store(role: str, actor: str) -> MemoryStore:
        return MemoryStore(crew.log, role=role, actor=actor, on_commit=lambda _: crew.grown.set())

    async with AsyncExitStack() as exits:
        service = OrchestratorService(store(ORCHESTRATOR, "orchestrator"), MemoryBus(broker), clock, settings)
        await service.start()
        exits.push_async_callback(service.stop)
        for spec, lanes in [*((spec, LANES) for spec in agents), *((spec, (SHADOW_LANE,)) for spec in shadow_agents)]:
            workshop = Workshop(f"{spec.kind}-{'worker' if lanes == LANES else SHADOW_LANE}", spec, chain_of(spec.kind), artifacts, clock, folder, **shop)
            worker = Worker(workshop, store(kind_role(spec.kind), f"agent@{spec.kind}"), MemoryBus(broker), slots=SLOTS, lanes=lanes)
            await worker.start()
            exits.push_async_callback(worker.stop, grace_s=0.0)
        yield crew
