"""Budgets in the orchestrator, on the memory log and bus: held, raised, found by the sweep, settled after dead workers; trees and terms."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from support.crew import Crew, Moody, diligent
from support.decider import a_plan

from crewlog.events import faults
from crewlog.events.grants import ORCHESTRATOR
from crewlog.events.limits import parse_limits
from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import ANY, Appended, AppendRequest, Reservation, Settlement, Write
from crewlog.orchestrator.budgets import Budgets
from crewlog.orchestrator.terms import Allowance
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.errors import OverBudget
from crewlog.schemas.ids import Hash, RunId, TaskId, budget_stream, reservation_id, settled_event_id, spend_stream, task_stream
from crewlog.schemas.run_events import RunCompleted, RunFailed, RunHeld, RunReleased
from crewlog.schemas.subjects import NO_RUN, events
from crewlog.schemas.system_events import BudgetChanged, CallSettled
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.task_events import AttemptFailed, ModelCallStarted, TaskEvent
from crewlog.schemas.usage import Price, Usage
from crewlog.schemas.values import Failure, Shortfall

COST = 40
LIMIT = {"hard_micro_usd": 100}


class Spender:
    """Agents whose every task reserves what one model call costs, and stops where the gate refuses that."""

    def __init__(self, crew: Crew, *, cost: int = COST) -> None:
        self.crew, self.cost, self.calls = crew, cost, 0
        self.store = crew.store()

    async def reserve(self, task: AgentTask, call_id: str) -> TaskEvent | None:
        task_id, run_id = TaskId(task.task_id), RunId(task.run_id)
        started = ModelCallStarted(call_id, 1, "fake", "model-1", Hash("a" * 64), 1)
        request = AppendRequest(
            (Write(task_stream(task_id), (started,), ANY),),
            (self.crew.clock.new_id(),),
            self.crew.clock.now_us(),
            run_id,
            task_id,
            reserve=Reservation(reservation_id(task_id, call_id), self.cost),
        )
        try:
            await self.store.append(request)
        except OverBudget as over:
            short = Shortfall(over.scope, over.limit_micro_usd, over.used_micro_usd, over.needed_micro_usd)
            return AttemptFailed(int(call_id), Failure("budget", str(over)), Usage(), 0, shortfall=short)
        self.calls += 1
        return None


class SpendingCrew(Crew):
    """A crew of spenders."""

    def __init__(self, *, cost: int = COST, **crew: Any) -> None:
        super().__init__(**crew)
        self.spender = Spender(self, cost=cost)

    async def _work(self, delivery: Any) -> None:
        task = parse_task(delivery.data)
        refused = await self.spender.reserve(task, delivery.headers["Attempt"])
        self.behaviour = (lambda *_: refused) if refused is not None else diligent
        await super()._work(delivery)


async def spent(crew: Crew, scope: str) -> int:
    state = (await crew.store().budgets([scope]))[scope]
    return state.spent + state.reserved


async def held(crew: Crew, run_id: RunId) -> RunHeld:
    await crew.until(lambda: "RunHeld" in crew.types(run_id))
    event = next(r for r in crew.events(run_id) if r.type == "RunHeld").event()
    assert isinstance(event, RunHeld)
    return event


def raising(run_id: RunId, hard: int, **fields: Any) -> dict[str, Any]:
    return {"scope": f"run/{run_id}", "hard_micro_usd": hard, "actor": "eve", "reason": "worth it", **fields}


async def test_a_run_over_its_budget_is_held_and_goes_on_when_it_is_raised() -> None:
    crew = SpendingCrew()
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(plan=a_plan(a="data", b="data a", c="data b", d="data c"), budget=LIMIT)
        event = await held(crew, run_id)
        got = (await crew.ask("runs.get", {"run_id": run_id}))["run"]
        answer = await crew.ask("budgets.raise", raising(run_id, 200))
        end = (await crew.ended(run_id)).event()

    assert (event.scope, event.limit_micro_usd, event.used_micro_usd, event.needed_micro_usd) == (f"run/{run_id}", 100, 80, 40)
    assert (got["status"], got["hold"]["scope"], got["text"]) == ("open", event.scope, "## a\n\nresult of a\n\n## b\n\nresult of b")
    assert answer == {"ok": True, "scope": event.scope, "hard_micro_usd": 200, "soft_micro_usd": 140, "spent_micro_usd": 0, "reserved_micro_usd": 80}
    assert isinstance(end, RunCompleted)
    assert await spent(crew, event.scope) == 160
    (changed,) = [r.event() for r in crew.log.events if r.type == "BudgetChanged"]
    assert changed == BudgetChanged(event.scope, 140, 200, "eve", "worth it")


async def test_parallel_tasks_cannot_pass_the_limit_together() -> None:
    crew = SpendingCrew(cost=30)
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(plan=a_plan(**{f"s{n}": "data" for n in range(8)}), budget=LIMIT)
        await held(crew, run_id)
        assert await spent(crew, f"run/{run_id}") == 90
        await crew.ask("budgets.raise", raising(run_id, 1000))
        await crew.ended(run_id)

    assert crew.spender.calls == 8


async def test_a_raise_that_nobody_told_of_is_noticed_by_what_the_relay_tells() -> None:
    crew = SpendingCrew()
    async with crew.orchestrator(), crew.agents():  # a sweep is far away
        run_id = await crew.submit(plan=a_plan(a="data", b="data a", c="data b"), budget=LIMIT)
        scope = (await held(crew, run_id)).scope
        write = Write(budget_stream(scope), (BudgetChanged(scope, None, 200, "eve"),), ANY)
        limits = (ScopeLimit(scope, None, 200),)
        await crew.store().append(AppendRequest((write,), (crew.clock.new_id(),), crew.clock.now_us(), limits=limits))
        await crew.bus.publish(events(NO_RUN, NO_RUN, "BudgetChanged"))
        await crew.ended(run_id)


async def test_a_raise_that_is_too_small_holds_on() -> None:
    crew = SpendingCrew()
    async with crew.orchestrator() as service, crew.agents():
        run_id = await crew.submit(plan=a_plan(a="data", b="data a", c="data b"), budget=LIMIT)
        await held(crew, run_id)
        assert (await crew.ask("budgets.raise", raising(run_id, 110)))["ok"]
        await service.sweep.sweep()
        assert "RunReleased" not in crew.types(run_id)
        await crew.ask("budgets.raise", raising(run_id, 120))
        await crew.ended(run_id)


class Crossed(MemoryStore):
    """A log in which something else happens just before a limit is changed."""

    before: Callable[[], Awaitable[object]] | None = None

    async def append(self, request: AppendRequest) -> Appended:
        if request.limits and self.before is not None:
            before, self.before = self.before, None
            await before()
        return await super().append(request)


@pytest.mark.parametrize(("first", "stays"), [(200, 200), (150, 180)])
async def test_of_two_raises_that_cross_the_lower_one_takes_nothing_back(first: int, stays: int) -> None:
    crew = SpendingCrew()
    store = Crossed(crew.log, role=ORCHESTRATOR)
    async with crew.orchestrator(store=store) as service:
        run_id = await crew.submit(plan=a_plan(a="data"), budget=LIMIT)
        scope = f"run/{run_id}"
        other = Budgets(crew.store(ORCHESTRATOR), crew.clock, service.driver.folds, on_change=lambda: None)
        store.before = lambda: other.raise_limit("default", scope, hard=first, soft=None, actor="ann", reason="")
        answer = await crew.ask("budgets.raise", raising(run_id, 180))
        assert (await store.budgets([scope]))[scope].hard == stays
    assert answer["ok"] == (stays == 180)
    assert answer["ok"] or "would not raise it" in answer["error"]["message"]
    changes = [event.hard_micro_usd for recorded in crew.log.events if isinstance(event := recorded.event(), BudgetChanged)]
    assert changes == sorted({first, stays})


async def test_a_budget_of_the_operator_holds_all_runs_it_covers_and_releases_them() -> None:
    crew = SpendingCrew()
    allowance = Allowance(parse_limits("tenant/day=100micro"))
    async with crew.orchestrator(allowance=allowance), crew.agents():
        runs = [await crew.submit(plan=a_plan(a="data", b="data a")) for _ in range(3)]
        scope = (await held(crew, runs[-1])).scope
        waiting = [run_id for run_id in runs if "RunHeld" in crew.types(run_id)]
        assert scope.startswith("tenant/default/")
        await crew.ask("budgets.raise", {"scope": scope, "hard_micro_usd": 10_000, "actor": "eve"})
        for run_id in runs:
            assert isinstance((await crew.ended(run_id)).event(), RunCompleted)

    assert waiting


async def test_two_orchestrators_release_a_run_once() -> None:
    crew = SpendingCrew()
    async with crew.orchestrator(sweep_interval_s=0.01), crew.orchestrator(sweep_interval_s=0.01), crew.agents():
        runs = [await crew.submit(plan=a_plan(a="data", b="data a", c="data b"), budget=LIMIT) for _ in range(10)]
        for run_id in runs:
            await held(crew, run_id)
            await crew.ask("budgets.raise", raising(run_id, 120))
        for run_id in runs:
            assert isinstance((await crew.ended(run_id)).event(), RunCompleted)

    for run_id in runs:
        assert crew.types(run_id).count("RunReleased") == 1


async def test_an_orchestrator_that_dies_behind_the_change_leaves_the_rest_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = SpendingCrew()

    def die(point: str) -> None:
        if point == "after_budget_change":
            raise faults.InjectedFault(point)

    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(plan=a_plan(a="data", b="data a", c="data b"), budget=LIMIT)
        await held(crew, run_id)
        monkeypatch.setattr(faults, "hook", die)
        assert (await crew.ask("budgets.raise", raising(run_id, 120)))["error"]["code"] == "internal"
        monkeypatch.setattr(faults, "hook", None)
        assert "RunReleased" not in crew.types(run_id)
    async with crew.orchestrator(), crew.agents():
        await crew.ended(run_id)


async def test_a_release_whose_answer_was_lost_is_taken_again() -> None:
    crew = SpendingCrew()
    store = Moody(crew.log, role=ORCHESTRATOR, on_commit=crew._on_commit)
    async with crew.orchestrator(store=store, sweep_interval_s=0.01, dispatch_lease_s=0.5), crew.agents():
        run_id = await crew.submit(plan=a_plan(a="data", b="data a", c="data b"), budget=LIMIT)
        await held(crew, run_id)
        await crew.ask("budgets.raise", raising(run_id, 120))
        store.failing = ["answer lost"]
        await crew.ended(run_id)

    assert crew.types(run_id).count("RunReleased") == 1


async def test_a_run_that_nobody_helps_fails_with_what_it_has() -> None:
    crew = SpendingCrew()
    async with crew.orchestrator(sweep_interval_s=0.01, allowance=Allowance(hold_s=600)), crew.agents():
        run_id = await crew.submit(plan=a_plan(a="data", b="data a", c="data b"), budget=LIMIT, timeout_seconds=60)
        await held(crew, run_id)
        crew.clock.ahead_s = 601
        end = (await crew.ended(run_id)).event()

    assert isinstance(end, RunFailed)
    assert (end.error.code, end.partial.inline) == ("budget", "## a\n\nresult of a\n\n## b\n\nresult of b")


async def test_a_held_run_can_be_cancelled() -> None:
    crew = SpendingCrew()
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(type="data", budget={"hard_micro_usd": 0})
        await held(crew, run_id)
        assert (await crew.ask("runs.cancel", {"run_id": run_id}))["status"] == "cancelled"


@pytest.mark.parametrize(
    ("body", "tenant", "code", "text"),
    [
        ({"hard_micro_usd": 100}, "default", "contract", "is limited to $0.0001; $0.0001 would not raise it"),
        ({"hard_micro_usd": 200, "soft_micro_usd": 300}, "default", "contract", "above the hard limit"),
        ({"hard_micro_usd": -1}, "default", "contract", "$.hard_micro_usd"),
        ({"hard_micro_usd": 200, "actor": " "}, "default", "contract", "who did it"),
        ({"hard_micro_usd": 200}, "acme", "not_found", "matches nothing"),
        ({"hard_micro_usd": 200, "scope": "run/nonsense"}, "default", "not_found", "matches nothing"),
        ({"hard_micro_usd": 200, "scope": "tenant/acme/2026-11-21"}, "default", "not_found", "matches nothing"),
        ({"hard_micro_usd": 200, "scope": "tenant/default/1999-01-01"}, "default", "not_found", "matches nothing"),
        ({"hard_micro_usd": 200, "scope": "tree"}, "default", "contract", "no hard limit"),
    ],
)
async def test_what_cannot_be_raised(body: dict[str, Any], tenant: str, code: str, text: str) -> None:
    crew = Crew(lambda *_: None)
    async with crew.orchestrator():
        run_id = await crew.submit(type="data", budget=LIMIT)
        request = raising(run_id, 0) | body
        request["scope"] = f"tree/{run_id}" if request["scope"] == "tree" else request["scope"]
        answer = await crew.ask("budgets.raise", request, tenant=tenant)

    assert (answer["ok"], answer["error"]["code"]) == (False, code)
    assert text in answer["error"]["message"] + str(answer["error"]["problems"])
    assert not [r for r in crew.log.events if r.type == "BudgetChanged"]


async def test_a_limit_can_be_set_where_none_was_lowered_and_taken_away() -> None:
    crew = SpendingCrew()
    async with crew.orchestrator(), crew.agents():
        first = await crew.submit(type="data")
        await crew.ended(first)
        scope = next(name for name in crew.log.streams[task_stream(TaskId(first))].scopes if name.startswith("tenant/"))
        body = {"scope": scope, "actor": "eve"}
        lowered = await crew.ask("budgets.set", {**body, "hard_micro_usd": 10})
        assert (lowered["hard_micro_usd"], lowered["soft_micro_usd"], lowered["reserved_micro_usd"]) == (10, 7, COST)
        second = await crew.submit(type="data")
        assert (await held(crew, second)).scope == scope
        assert (await crew.ask("budgets.set", {**body, "hard_micro_usd": None}))["hard_micro_usd"] is None
        assert isinstance((await crew.ended(second)).event(), RunCompleted)


async def test_a_child_run_is_charged_to_the_tree_of_its_parent_and_a_parent_must_exist() -> None:
    crew = Crew()
    async with crew.orchestrator(), crew.agents():
        root = await crew.submit(plan=a_plan(a="data"))
        await crew.ended(root)
        step = next(r for r in crew.log.events if r.type == "TaskOpened").task_id
        child = await crew.submit(type="data", parent_task_id=str(step))
        grandchild = await crew.submit(type="data", parent_task_id=str(child))
        body = {"task_id": str(UUID(int=3)), "type": "data", "objective": "x", "parent_task_id": str(root)}
        foreign = await crew.ask("tasks.submit", body, tenant="acme")

    for run_id in (child, grandchild):
        scopes = crew.log.streams[task_stream(TaskId(run_id))].scopes
        assert (scopes[0], scopes[1]) == (f"run/{run_id}", f"tree/{root}")
    assert foreign["error"]["problems"] == [{"pointer": "/parent_task_id", "message": f"tenant acme has no task {root}; leave it out"}]


async def test_what_a_dead_worker_left_reserved_is_settled_once_its_task_is_over() -> None:
    crew = Crew(lambda *_: None)
    spender = Spender(crew)
    allowance = Allowance(parse_limits("run=1"))
    async with crew.orchestrator(allowance=allowance) as one, crew.orchestrator(settle_grace_s=60, allowance=allowance) as two:
        run_id = await crew.submit(type="data")
        opened = next(r for r in crew.log.events if r.type == "TaskOpened")
        task = AgentTask(task_id=run_id, run_id=run_id, type="data", objective="x")
        assert await spender.reserve(task, "1") is None
        crew.clock.ahead_s = 1000
        await two.sweep.sweep()
        assert await spent(crew, f"run/{run_id}") == COST
        assert spend_stream(TaskId(run_id)) not in crew.log.streams, "a task that is open belongs to the worker that takes it over"
        await crew.ask("runs.cancel", {"run_id": run_id})
        await two.sweep.sweep()
        await one.sweep.sweep()

    (settled,) = crew.log.streams[spend_stream(TaskId(run_id))].events
    assert settled.event() == CallSettled(opened.task_id, run_id, "1", "fake", "model-1", Usage(), Price(COST, "worst case"))  # type: ignore[arg-type]
    state = (await crew.store().budgets([f"run/{run_id}"]))[f"run/{run_id}"]
    assert (state.spent, state.reserved) == (COST, 0)
    assert not await crew.store().open_reservations(crew.clock.now_us(), 10)

    real = CallSettled(TaskId(run_id), run_id, "1", "fake", "model-1", Usage(10, 5), Price(COST // 2, "config"))
    late = AppendRequest(
        (Write(spend_stream(TaskId(run_id)), (real,)),),
        (settled_event_id(TaskId(run_id), "1"),),
        crew.clock.now_us(),
        run_id,
        TaskId(run_id),
        settle=(Settlement(reservation_id(TaskId(run_id), "1"), COST // 2),),
    )
    assert (await spender.store.append(late)).duplicate, "a worker that wakes up with the real bill: the first settlement counts"
    assert (await crew.store().budgets([f"run/{run_id}"]))[f"run/{run_id}"] == state
    assert len(crew.log.streams[spend_stream(TaskId(run_id))].events) == 1


async def test_room_that_a_settlement_makes_releases_a_run_without_anybody() -> None:
    crew = SpendingCrew()
    async with crew.orchestrator(sweep_interval_s=0.01, settle_grace_s=3600), crew.agents():
        run_id = await crew.submit(plan=a_plan(a="data", b="data a", c="data b"), budget=LIMIT)
        await held(crew, run_id)
        first = next(r for r in crew.log.events if r.type == "ModelCallStarted")
        assert first.task_id is not None
        event = CallSettled(first.task_id, run_id, "1", "fake", "model-1", Usage(), Price(1, "config"))
        settle = (Settlement(reservation_id(first.task_id, "1"), 1),)
        writes = (Write(spend_stream(first.task_id), (event,), ANY),)
        await crew.store().append(AppendRequest(writes, (crew.clock.new_id(),), crew.clock.now_us(), run_id, first.task_id, settle=settle))
        await crew.ended(run_id)

    released = next(r for r in crew.events(run_id) if r.type == "RunReleased").event()
    assert isinstance(released, RunReleased)
    assert (released.limit_micro_usd, released.used_micro_usd) == (100, 41)
