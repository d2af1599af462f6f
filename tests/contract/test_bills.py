"""The bill of a call that was settled as a worst case comes after all: it takes that place, once. Memory and Postgres alike, and through a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, model_validator
from support.logs import InPostgres, Log, new_task, request, to_task
from support.money import calling, opened, settling_elsewhere
from support.postgres import Database
from support.scripted import Recorder, ScriptedModel, calls
from support.worker_bench import WITHIN_S, Bench, names, worker_bench

from crewlog.agents.model import OnText
from crewlog.events.grants import ORCHESTRATOR, PROJECTOR
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import ANY, AppendRequest, BudgetState, EventStore, Settlement, Write
from crewlog.orchestrator.invariants import charged_micro_usd
from crewlog.schemas.blocks import ModelReply, ModelRequest
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.errors import ContractError, NotAuthorised
from crewlog.schemas.ids import RunId, TaskId, corrected_event_id, reservation_id, settled_event_id, spend_stream, task_stream
from crewlog.schemas.price_table import TokenPrices
from crewlog.schemas.system_events import BillCorrected, CallSettled
from crewlog.schemas.task_events import AttemptFailed, ModelCallFailed, TaskCancelled, TaskCompleted
from crewlog.schemas.usage import WORST_CASE, Price, Usage
from crewlog.schemas.values import Failure

RESERVED = 60
LIMITS = (ScopeLimit("run/1", 700, 1000), ScopeLimit("tenant/a", None, None))
PRICES = {"paid:*": TokenPrices(input=Decimal(1), output=Decimal(2))}
"""Tasks of these tests stand alone: each is its own run."""


def lost(task_id: TaskId, amount: int = RESERVED, source: str = WORST_CASE) -> AppendRequest:
    """Settle a call as who takes a task over does."""
    failed = ModelCallFailed("m1-1", 1, "provider", "model", Failure("interrupted", "its worker died"), 0, Price(amount, source))
    return to_task(task_id, failed)._replace(settle=[Settlement(reservation_id(task_id, "m1-1"), amount)])


def correcting(task_id: TaskId, actual: int, *, settled: int = RESERVED, source: str = "config", call_id: str = "m1-1") -> AppendRequest:
    """Say what a call cost in fact."""
    event = BillCorrected(task_id, RunId(task_id), call_id, "provider", "model", Usage(10, 5), Price(actual, source), settled)
    return request(Write(spend_stream(task_id), [event]), run_id=RunId(task_id), task_id=task_id, ids=[corrected_event_id(task_id, call_id)])


async def a_call(log: Log, *, kind: str = "research") -> tuple[EventStore, TaskId]:
    """Begin a call that may cost 60 micro-USD; returns the store of its worker."""
    worker, task_id = await log.open("crewlog_research"), new_task()
    await (await log.open()).append(opened(task_id, *LIMITS, kind=kind)._replace(run_id=RunId(task_id)))
    await (worker if kind == "research" else await log.open(f"crewlog_{kind}")).append(calling(task_id, RESERVED))
    return worker, task_id


async def spent(store: EventStore) -> list[tuple[int, int]]:
    found = await store.budgets(["run/1", "tenant/a"])
    return [(found[scope].spent, found[scope].reserved) for scope in ("run/1", "tenant/a")]


@pytest.mark.hand_written("calls without a run")
@pytest.mark.parametrize("actual", [0, 12, RESERVED, 95])
async def test_a_bill_takes_the_place_of_a_worst_case_once(log: Log, actual: int) -> None:
    store, task_id = await a_call(log)
    await store.append(lost(task_id))
    assert await spent(store) == [(60, 0)] * 2
    late = correcting(task_id, actual)
    first = await store.append(late)
    assert (list(first.versions), first.duplicate) == ([1], False)
    again = await store.append(late)
    assert (again.versions, again.positions, again.duplicate) == (first.versions, first.positions, True)
    with pytest.raises(ContractError, match="no worst case of 60 stands for it"):
        await store.append(correcting(task_id, 5)._replace(event_ids=[new_task()]))
    assert await spent(store) == [(actual, 0)] * 2
    events = await store.read_streams({task_stream(task_id): 0, spend_stream(task_id): 0})
    assert charged_micro_usd(events) == actual
    assert [(e.stream, e.version, e.type, e.writer) for e in events[-1:]] == [(spend_stream(task_id), 1, "BillCorrected", "crewlog_research")]
    assert [e.position for e in (await store.read_all(0, 100)).events][-1:] == list(first.positions), "readers of the whole log see it"
    assert (await store.append(settling_elsewhere(task_id, 1))).versions == [2], "the stream counts on"
    assert await spent(store) == [(actual, 0)] * 2


@pytest.mark.hand_written("calls without a run")
async def test_what_the_sweep_settled_is_corrected_too(log: Log) -> None:
    store, task_id = await a_call(log)
    orchestrator = await log.open()
    await orchestrator.append(to_task(task_id, TaskCancelled("enough", "ann")))
    settled = CallSettled(task_id, RunId(task_id), "m1-1", "provider", "model", Usage(), Price(RESERVED, WORST_CASE))
    by_the_sweep = request(Write(spend_stream(task_id), [settled]), task_id=task_id)._replace(settle=[Settlement(reservation_id(task_id, "m1-1"), RESERVED)])
    await orchestrator.append(by_the_sweep)
    assert (await store.append(correcting(task_id, 7))).versions == [2]
    assert await spent(store) == [(7, 0)] * 2


@pytest.mark.hand_written("calls without a run")
async def test_nothing_is_corrected_that_is_no_worst_case_of_just_this_amount(log: Log) -> None:
    store, task_id = await a_call(log)
    with pytest.raises(ContractError, match="is not corrected"):
        await store.append(correcting(task_id, 7))
    assert not await store.read_streams({spend_stream(task_id): 0})
    await store.append(lost(task_id, source="config"))
    for late in (correcting(task_id, 7), correcting(task_id, 7, call_id="m2-1")):
        with pytest.raises(ContractError, match="is not corrected"):
            await store.append(late)
    assert await spent(store) == [(60, 0)] * 2

    store, other = await a_call(log)
    await store.append(lost(other))
    for late in (correcting(other, 7, settled=59), correcting(other, 7, call_id="m2-1")):
        with pytest.raises(ContractError, match="is not corrected"):
            await store.append(late)
    with pytest.raises(ContractError, match="corrected to what is known"):
        await store.append(correcting(other, RESERVED, source=WORST_CASE))
    with pytest.raises(ContractError, match="by an append of its own"):
        await store.append(correcting(other, 7)._replace(settle=[Settlement(reservation_id(other, "m1-1"), 7)]))
    assert await spent(store) == [(120, 0)] * 2
    assert not await store.read_streams({spend_stream(task_id): 0, spend_stream(other): 0})


@pytest.mark.hand_written("calls without a run")
async def test_nothing_is_given_back_that_was_never_charged(log: Log) -> None:
    store, task_id = await a_call(log)
    await store.append(lost(task_id)._replace(settle=[]))
    with pytest.raises(ContractError):
        await store.append(correcting(task_id, 12))
    assert await spent(store) == [(0, 60)] * 2
    assert not await store.read_streams({spend_stream(task_id): 0})


@pytest.mark.hand_written("calls without a run")
async def test_who_may_not_settle_a_call_may_not_correct_it(log: Log) -> None:
    research, of_data = await a_call(log, kind="data")
    await (await log.open("crewlog_data")).append(lost(of_data))
    for store, task_id in ((research, of_data), (await log.open(PROJECTOR), of_data), (research, new_task())):
        with pytest.raises(NotAuthorised):
            await store.append(correcting(task_id, 7))
    event = correcting(of_data, 7).writes[0].events[0]
    for role, stream in ((ORCHESTRATOR, task_stream(of_data)), ("crewlog_data", task_stream(of_data))):
        with pytest.raises(NotAuthorised, match="BillCorrected on task/"):  # around es.correct_bill there is no way
            await (await log.open(role)).append(request(Write(stream, [event]), task_id=of_data))
    assert (await spent(research))[0] == (60, 0)


@pytest.mark.hand_written("calls without a run")
async def test_of_many_who_correct_a_bill_at_the_same_time_one_does(log: Log) -> None:
    store, task_id = await a_call(log)
    await store.append(lost(task_id))
    others = [await log.open("crewlog_research") for _ in range(5)]
    found = await asyncio.gather(*(other.append(correcting(task_id, 20)) for other in others))
    assert sorted(one.duplicate for one in found) == [False, True, True, True, True]
    assert {tuple(one.positions) for one in found} == {tuple(found[0].positions)}
    assert await spent(store) == [(20, 0)] * 2


@pytest.mark.hand_written("calls without a run")
async def test_the_gate_itself_refuses_a_correction(database: Database) -> None:
    log = InPostgres(database)
    store, task_id = await a_call(log)
    await store.append(lost(task_id))
    assert isinstance(store, PostgresStore)
    with pytest.raises(NotAuthorised, match="BillCorrected on spend/"):
        await store._appender.submit(correcting(task_id, 7))
    assert await spent(store) == [(60, 0)] * 2
    await log.close()


@dataclass
class Stopped(ScriptedModel):
    """A model whose answer comes when the test says so."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        self.asked.set()
        await self.answer.wait()
        return await super().complete(request, timeout_s=timeout_s, on_text=on_text)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worker_bench(tmp_path) as bench:
        yield bench


@pytest.mark.hand_written("who takes over writes nothing but the call it gives up")
@pytest.mark.parametrize("is_over", [False, True])
async def test_a_worker_that_was_taken_for_dead_brings_the_bill(bench: Bench, is_over: bool) -> None:
    model = Stopped([calls(("submit", '{"text":"done"}'))] * 2, provider="paid", wire="test.wire", name="m", simulated=False)
    await bench.worker(Recorder(), chain=(model,), prices=PRICES)
    task = await bench.open(scopes=(ScopeLimit("run/x", None, 1_000_000),))
    await bench.dispatch(task)
    async with asyncio.timeout(WITHIN_S):
        await model.asked.wait()
    task_id = TaskId(task.task_id)
    (held,) = await bench.store.open_reservations(2**60, 10)
    worst = Price(held.amount_micro_usd, WORST_CASE)
    settlement = Settlement(held.reservation_id, held.amount_micro_usd)
    if is_over:  # cancelled, then settled by the sweep
        await bench.append(task, TaskCancelled("enough", "ada"), expected=ANY)
        event = CallSettled(task_id, RunId(task.run_id), "m1-1", "paid", "m", Usage(), worst)
        write, event_id = Write(spend_stream(task_id), (event,)), settled_event_id(task_id, "m1-1")
    else:
        failed = ModelCallFailed("m1-1", 1, "paid", "m", Failure("interrupted", "taken over"), 0, worst, wire="test.wire")
        write, event_id = Write(task_stream(task_id), (failed,)), bench.clock.new_id()
    await bench.store.append(AppendRequest((write,), (event_id,), bench.clock.now_us(), RunId(task.run_id), task_id, settle=(settlement,)))
    assert (await bench.store.budgets(["run/x"]))["run/x"] == BudgetState(None, 1_000_000, held.amount_micro_usd, 0)

    model.answer.set()
    async with asyncio.timeout(WITHIN_S):
        while not (found := await bench.store.read_streams({spend_stream(task_id): 0}, types=frozenset({"BillCorrected"}))):
            bench.committed.clear()
            await bench.committed.wait()
    event = found[0].event()
    assert isinstance(event, BillCorrected)
    assert (event.usage, event.price, event.settled_micro_usd) == (Usage(10, 5), Price(20, "config"), held.amount_micro_usd)
    if not is_over:  # it has read the task again and asked once more
        assert names(await bench.rest(task))[-1] == "TaskCompleted"
    cost = 20 if is_over else 40
    assert (await bench.store.budgets(["run/x"]))["run/x"] == BudgetState(None, 1_000_000, cost, 0)
    recorded = await bench.store.read_streams({task_stream(task_id): 0, spend_stream(task_id): 0})
    assert charged_micro_usd(recorded) == cost
    assert [r.type for r in recorded if r.stream.startswith("spend/")] == (["CallSettled"] * is_over) + ["BillCorrected"]


class Broken(BaseModel):
    """Arguments whose check is a bug."""

    @model_validator(mode="before")
    @classmethod
    def _check(cls, _: Any) -> Any:
        raise ZeroDivisionError("a bug")


@pytest.mark.parametrize("bug", [False, True])
async def test_the_bill_of_an_answer_behind_which_something_broke_is_no_worst_case(bench: Bench, bug: bool) -> None:
    spec = Recorder().agent()
    assert not callable(spec.tools)
    tools = tuple(replace(tool, args=Broken) if bug and tool.name == "submit" else tool for tool in spec.tools)
    lines = calls(("submit", '{"text":"done"}'))
    await bench.worker(replace(spec, tools=tools), lines, provider="paid", prices=PRICES)
    task = await bench.open(scopes=(ScopeLimit("run/x", None, 1_000_000),))
    await bench.dispatch(task)
    events = await bench.rest(task)
    end = events[-1]
    assert isinstance(end, AttemptFailed if bug else TaskCompleted)
    assert (end.usage, end.cost_micro_usd) == (Usage(10, 5), 20)
    assert (await bench.store.budgets(["run/x"]))["run/x"] == BudgetState(None, 1_000_000, 20, 0)
