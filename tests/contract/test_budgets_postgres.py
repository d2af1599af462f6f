"""Budgets of runs against the real gate: two orchestrators on Postgres, many tasks at once, held at the limit and raised to the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from support.decider import a_plan
from support.postgres import Database

from crewlog.events.bus import Delivery
from crewlog.events.clock import SystemClock
from crewlog.events.grants import ORCHESTRATOR, kind_role
from crewlog.events.limits import parse_limits
from crewlog.events.memory_bus import MemoryBroker, MemoryBus
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import ANY, AppendRequest, EventStore, Recorded, Reservation, Settlement, Write
from crewlog.orchestrator.service import OrchestratorService, Settings
from crewlog.orchestrator.terms import Allowance
from crewlog.schemas.errors import OverBudget
from crewlog.schemas.ids import Hash, RunId, TaskId, reservation_id, run_stream, task_stream
from crewlog.schemas.payload import EMPTY
from crewlog.schemas.subjects import LANES, wake
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.task_events import AttemptFailed, ModelCallFinished, ModelCallStarted, TaskCompleted, TaskEvent
from crewlog.schemas.usage import Price, Usage
from crewlog.schemas.values import Failure, Outcome, Shortfall

CLOCK = SystemClock()
WORST, COST = 40, 25
STEPS = 20


class Workers:
    """Agents of the kind `data` with the rights of that kind: each task is one model call that is reserved, then settled for less."""

    def __init__(self, store: EventStore, bus: MemoryBus) -> None:
        self.store, self.bus = store, bus
        self.calls = 0
        self.most_used = 0

    async def handle(self, delivery: Delivery) -> None:
        task = parse_task(delivery.data)
        call_id = f"m1-{delivery.headers['Attempt']}"
        money = reservation_id(TaskId(task.task_id), call_id)
        try:
            await self._append(task, ModelCallStarted(call_id, 1, "acme", "m", Hash("a" * 64), 1), reserve=Reservation(money, WORST))
        except OverBudget as over:
            short = Shortfall(over.scope, over.limit_micro_usd, over.used_micro_usd, over.needed_micro_usd)
            failed = AttemptFailed(int(delivery.headers["Attempt"]), Failure("budget", str(over)), shortfall=short)
            await self._append(task, failed)
        else:
            self.calls += 1
            scope = f"run/{task.run_id}"
            state = (await self.store.budgets([scope]))[scope]
            self.most_used = max(self.most_used, state.spent + state.reserved)
            answered = ModelCallFinished(call_id, 1, "end_turn", EMPTY, (), Usage(), Price(COST, "config"), "acme", "m", False, 1)
            done = TaskCompleted(Outcome(f"result of {task.key}"), Usage(), COST, 1, 0)
            await self._append(task, answered, done, settle=(Settlement(money, COST),))
        await self.bus.publish(wake(RunId(task.run_id)))
        await delivery.ack()

    async def _append(self, task: AgentTask, *events: TaskEvent, **money: Any) -> None:
        writes = (Write(task_stream(TaskId(task.task_id)), events, ANY),)
        ids = [CLOCK.new_id() for _ in events]
        await self.store.append(AppendRequest(writes, ids, CLOCK.now_us(), RunId(task.run_id), TaskId(task.task_id), **money))


class Crew:
    """Two orchestrators and the workers."""

    def __init__(self, database: Database, exits: AsyncExitStack) -> None:
        self.broker = MemoryBroker()
        self.bus = MemoryBus(self.broker)
        self._database, self._exits = database, exits
        self._changed = asyncio.Event()

    async def open(self, role: str) -> PostgresStore:
        store = await PostgresStore.open(self._database.url(role), actor=role, clock=CLOCK, on_commit=lambda *_: self._changed.set())
        self._exits.push_async_callback(store.close)
        return store

    async def start(self) -> None:
        self.store = await self.open(ORCHESTRATOR)
        settings = Settings(sweep_interval_s=0.2, allowance=Allowance(parse_limits("tenant/day=1")))
        for _ in range(2):
            service = OrchestratorService(await self.open(ORCHESTRATOR), MemoryBus(self.broker), CLOCK, settings)
            await service.start()
            self._exits.push_async_callback(service.stop)
        await self.bus.ensure_kind("data")
        self.workers = Workers(await self.open(kind_role("data")), self.bus)
        consuming = await self.bus.consume("WORK", {f"data-{lane}": n for n, lane in enumerate(LANES)}, self.workers.handle, slots=16)

        async def stop() -> None:
            await consuming.stop(grace_s=2)

        self._exits.push_async_callback(stop)

    async def ask(self, what: str, **body: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads((await self.bus.request(f"api.default.{what}", json.dumps(body).encode(), timeout_s=15)).data)
        assert answer["ok"], answer
        return answer

    async def until(self, run_id: RunId, condition: Callable[[list[Recorded]], bool]) -> list[Recorded]:
        async with asyncio.timeout(30):
            while True:
                self._changed.clear()
                events = list(await self.store.read_streams({run_stream(run_id): 0}))
                if condition(events):
                    return events
                await self._changed.wait()

    async def until_spent(self, scope: str, amount: int) -> None:
        async with asyncio.timeout(30):
            while True:
                self._changed.clear()
                if (await self.store.budgets([scope]))[scope].spent >= amount:
                    return
                await self._changed.wait()


@pytest.fixture
async def crew(database: Database) -> AsyncIterator[Crew]:
    async with _crew(database) as made:
        yield made


@asynccontextmanager
async def _crew(database: Database) -> AsyncIterator[Crew]:
    async with AsyncExitStack() as exits:
        made = Crew(database, exits)
        await made.start()
        yield made


async def test_many_tasks_at_once_stay_within_the_limit_and_go_on_when_it_is_raised(crew: Crew) -> None:
    plan = a_plan(**{f"s{n}": "data" for n in range(STEPS)})
    task = {"task_id": str(CLOCK.random_id()), "type": "run", "objective": "x", "plan": plan, "budget": {"hard_micro_usd": 200}}
    run_id = RunId(UUID((await crew.ask("tasks.submit", **task))["run_id"]))
    scope = f"run/{run_id}"

    # refused together, tasks may fit one by one: it is held for good when what is spent leaves no room for one more
    await crew.until_spent(scope, 200 - WORST + 1)
    await crew.until(run_id, lambda events: events[-1].type == "RunHeld")
    state = (await crew.store.budgets([scope]))[scope]
    assert (state.hard, state.soft, state.spent, state.reserved) == (200, 140, 7 * COST, 0)
    assert crew.workers.most_used <= 200

    await crew.ask("budgets.raise", scope=scope, hard_micro_usd=1_000, actor="eve", reason="worth it")
    events = await crew.until(run_id, lambda events: events[-1].type == "RunCompleted")

    assert [event.type for event in events].count("RunReleased") >= 1
    assert crew.workers.calls == STEPS
    ledger = await crew.store.budgets(await _scopes(crew, run_id))
    assert {(state.spent, state.reserved) for state in ledger.values()} == {(STEPS * COST, 0)}
    assert not await crew.store.open_reservations(CLOCK.now_us() + 1, 10)


async def _scopes(crew: Crew, run_id: RunId) -> list[str]:
    connection = await crew._database.admin()
    try:
        rows = await connection.fetch("SELECT DISTINCT scope FROM crewlog.budget_tasks WHERE run_id = $1 ORDER BY scope", run_id)
    finally:
        await connection.close()
    assert len(rows) == 5
    return [row["scope"] for row in rows]
