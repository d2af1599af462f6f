"""Evaluations by the public client, of runs that a whole crew in this process carried out and tries again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from support.crew import LeapingClock
from support.scripted import Recorder, calls
from support.toolbox import MemoryArtifacts

from crewlog.agents.model import Model, OnText
from crewlog.events.bus import Message
from crewlog.events.config import Config
from crewlog.events.memory_bus import MemoryBus
from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import BudgetState, Recorded
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.client_evaluation import Evaluation, Pace
from crewlog.orchestrator.client_trials import Tried
from crewlog.orchestrator.memory_crew import QUIET, MemoryCrew, memory_crew
from crewlog.projections.query_rows import RunView
from crewlog.schemas import subjects
from crewlog.schemas.blocks import ModelReply, ModelRequest
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.ids import RunId, Stream
from crewlog.schemas.price_table import TokenPrices
from crewlog.schemas.task import parse_task
from crewlog.schemas.trial import Trial

CALL_MICRO_USD = 20
"""What every answer costs: 10 tokens for 1 and 5 for 2 micro-USD each."""
PRICES = {"puppets:*": TokenPrices(input=Decimal(1), output=Decimal(2))}
WITHIN_S = 20.0
FAR = 8
"""Turns of the event loop that an answer of the log takes."""


@dataclass
class PaidModel:
    """Looks once, then submits. `gate` holds answers back until it is set."""

    wire: str = "puppet.wire"
    provider: str = "puppets"
    name: str = "other-1"
    simulated: bool = False
    gate: asyncio.Event | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        turn = sum(message.role == "assistant" for message in request.messages)
        return calls(("submit", '{"text":"done"}') if turn else ("look", '{"text":"x"}'))


class LateBus(MemoryBus):
    """A bus on which an answer may arrive late, or never: `late(subject, body)` is waited for before it does. Requests that `lost` names arrive nowhere."""

    late: Callable[[str, Mapping[str, Any]], Awaitable[None]] | None = None
    lost: tuple[str, ...] = ()

    async def request(self, subject: str, data: bytes, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> Message:
        if self.lost and subject.endswith(self.lost):
            raise Unavailable(f"no answer on {subject}")
        answer = await super().request(subject, data, timeout_s=timeout_s, headers=headers)
        if self.late is not None:
            await self.late(subject, json.loads(data))
        return answer


class FarStore(MemoryStore):
    """A log whose answers take a few turns of the event loop, as over a network."""

    async def read_streams(self, after: Mapping[Stream, int], *, types: frozenset[str] | None = None) -> Sequence[Recorded]:
        await turns(FAR)
        return await super().read_streams(after, types=types)

    async def read_run(self, run_id: RunId) -> Sequence[Recorded]:
        await turns(FAR)
        return await super().read_run(run_id)

    async def budgets(self, scopes: Sequence[str]) -> Mapping[str, BudgetState]:
        await turns(FAR)
        return await super().budgets(scopes)


def view(run_id: RunId) -> RunView:
    """A finished run as the views list it; an evaluation takes the rest from the log."""
    counts = dict.fromkeys(("tasks_done", "tasks_total", "agents", "turns", "tool_calls", "input_tokens", "output_tokens", "cost_micro_usd"), 0)
    nothing = dict.fromkeys(("answer", "answer_ref", "citations", "error_code", "error", "hold", "parent_run_id"))
    whose: dict[str, Any] = {"tenant": "default", "user_name": "ann", "type": "data", "goal": "count", "status": "completed", "source": "api"}
    more: dict[str, Any] = {"unpriced_calls": 0, "simulated": False, "approvals_pending": 0, "flags": (), "artifacts": (), "warnings": ()}
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return RunView(run_id=run_id, submitted_at=at, finished_at=at, **whose, **counts, **nothing, **more)


class Evaluated:
    """A crew, the client of whoever evaluates, and what it was told."""

    def __init__(self, crew: MemoryCrew, client: Client, bus: LateBus, clock: LeapingClock, model: PaidModel) -> None:
        self.crew, self.client, self.bus, self.clock, self.model = crew, client, bus, clock, model
        self.told: list[str] = []
        self.on_told: Callable[[str], None] = lambda _: None

    async def finished(self, count: int, **fields: Any) -> list[RunView]:
        """Have runs carried out."""
        tasks = [{"task_id": self.clock.random_id(), "type": "data", "objective": "count", **fields} for _ in range(count)]
        runs = [await self.crew.submit(parse_task(task)) for task in tasks]
        for run_id in runs:
            await self.crew.end(run_id)
        return [view(run_id) for run_id in runs]

    def evaluation(self, hard_micro_usd: int | None, *, at_once: int = 2, patience_s: float = 600.0) -> Evaluation:
        """Prepare an evaluation that looks and tells at every turn."""
        trial = Trial(name="eval-1", models="puppets:other-1", hard_micro_usd=hard_micro_usd)
        pace = Pace(at_once, patience_s, look_s=0.01, tell_s=0.0)
        return Evaluation(self.client, self.clock, trial, tenant="default", tell=self._tell, pace=pace)

    def _tell(self, text: str) -> None:
        self.told.append(text)
        self.on_told(text)

    async def held(self, count: int) -> None:
        """Wait until so many trials have been held."""
        await self.crew.until(lambda: sum(recorded.type == "RunHeld" for recorded in self.crew.log.events) >= count)

    async def relay(self) -> None:
        """Hint at everything recorded so far, as the relay of the log does."""
        for recorded in self.crew.log.events:
            await self.bus.publish(subjects.events("default", recorded.run_id or "system", recorded.type))

    def ends(self) -> list[str]:
        """Name how the trials ended, in the order of the log."""
        trials = {r.run_id for r in self.crew.log.events if r.type == "RunSubmitted" and b'"eval-1"' in r.data}
        return [
            r.type
            for r in self.crew.log.events
            if r.run_id in trials and r.stream.startswith("run/") and r.type in ("RunCompleted", "RunFailed", "RunCancelled")
        ]


async def turns(count: int) -> None:
    """Let everybody else in this event loop go on for a while."""
    for _ in range(count):
        await asyncio.sleep(0)


async def tried(evaluation: Evaluation, runs: list[RunView]) -> list[Tried]:
    """Let an evaluation take its course."""
    async with asyncio.timeout(WITHIN_S), aclosing(evaluation.run(runs)) as trying:
        return [one async for one in trying]


@asynccontextmanager
async def evaluated(folder: Path, *, agents: int = 1) -> AsyncIterator[Evaluated]:
    """Run a crew whose trials ask a model that costs money."""
    clock, model, free = LeapingClock(), PaidModel(), PaidModel(provider="offline", wire="offline", name="script-1", simulated=True)

    def chain(models: str, _: str) -> tuple[Model, ...]:
        assert models == "puppets:other-1"
        return (model,)

    own = {"trial_chain": chain, "prices": PRICES, "settings": QUIET._replace(sweep_interval_s=0.01)}
    async with AsyncExitStack() as exits:
        crew = await exits.enter_async_context(
            memory_crew([Recorder().agent()] * agents, lambda _: (free,), clock=clock, artifacts=MemoryArtifacts(), folder=folder, **own)
        )
        bus = LateBus(crew.bus.broker)
        yield Evaluated(crew, Client(Config(), bus, clock=clock, exits=exits, store=FarStore(crew.log)), bus, clock, model)
