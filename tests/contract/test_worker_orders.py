"""What a worker does when something is paused, it is to leave, or somebody ends its task: the step under way ends, no other begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest
from support.scripted import Recorder, ScriptedModel, calls
from support.worker_bench import RUN_ID, WITHIN_S, Bench, names, worker_bench

from crewlog.agents import orders
from crewlog.agents.model import OnText
from crewlog.events.controls import kind_scope, run_scope, tenant_scope, worker_scope
from crewlog.events.store import ANY, AppendRequest, Write
from crewlog.schemas.blocks import ModelReply, ModelRequest
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.ids import CONTROL_STREAM, TaskId, spend_stream
from crewlog.schemas.price_table import TokenPrices
from crewlog.schemas.subjects import control_kind
from crewlog.schemas.system_events import CallSettled, ScopePaused, ScopeResumed, SystemEvent, WorkerDrained
from crewlog.schemas.task_events import TaskCancelled, TaskHandedBack
from crewlog.schemas.usage import WORST_CASE

SUBMIT = calls(("submit", '{"text":"done"}'))
LOOK = calls(("look", '{"text":"a"}'))
PRICES = {"paid:*": TokenPrices(input=Decimal(1), output=Decimal(2))}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worker_bench(tmp_path) as bench:
        yield bench


async def say(bench: Bench, event: SystemEvent, *, told: bool = True) -> None:
    """Give a command as an orchestrator does; without `told`, nobody says on the bus that there is one."""
    await bench.store.append(AppendRequest((Write(CONTROL_STREAM, (event,), ANY),), [bench.clock.new_id()], bench.clock.now_us()))
    if told:
        await bench.bus.publish(control_kind("data"))


@dataclass
class Hanging(ScriptedModel):
    """A model that never answers."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        raise AssertionError


@pytest.mark.parametrize("scope", [run_scope(RUN_ID), tenant_scope("default"), kind_scope("data")])
async def test_a_tool_under_way_ends_and_the_task_is_handed_back_and_goes_on_later(bench: Bench, scope: str) -> None:
    recorder = Recorder(gate=asyncio.Event())
    model = await bench.worker(recorder, LOOK)
    task = await bench.open()
    await bench.dispatch(task)
    async with asyncio.timeout(WITHIN_S):
        await recorder.entered.wait()
    await say(bench, ScopePaused(scope, "ada"))
    await bench.workers[0]._orders.look()
    recorder.gate.set()  # type: ignore[union-attr]

    events = await bench.rest(task)

    assert names(events)[-2:] == ["ToolFinished", "TaskHandedBack"]
    assert events[-1] == TaskHandedBack(1, scope, 1)
    assert len(model.requests) == 1
    assert bench.bus.broker.messages("WORK") == []
    await say(bench, ScopeResumed(scope, "ada"))
    await bench.worker(Recorder(), SUBMIT, name="w2")
    await bench.workers[0].stop(grace_s=0)
    await bench.dispatch(task, version=0)
    assert names(await bench.rest(task))[-6:] == ["TaskStarted", "ModelCallStarted", "ModelCallFinished", "ToolStarted", "ToolFinished", "TaskCompleted"]


async def test_a_task_that_waited_in_the_queue_is_not_begun(bench: Bench) -> None:
    task = await bench.open()
    await bench.dispatch(task)
    await say(bench, ScopePaused(run_scope(RUN_ID), "ada"), told=False)
    model = await bench.worker(Recorder(), SUBMIT)

    assert names(await bench.rest(task)) == ["TaskOpened", "TaskHandedBack"]
    assert model.requests == []


async def test_a_paused_kind_fetches_nothing_until_it_is_resumed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "FRESH_S", 0.05)
    await say(bench, ScopePaused(kind_scope("data"), "ada"), told=False)
    await bench.worker(Recorder(), SUBMIT)
    await bench.workers[0]._orders.look()
    task = await bench.open()
    await bench.dispatch(task)
    await bench.workers[0]._orders.look()
    assert [await bench.bus.backlog("WORK", "data-normal"), names(await bench.events(task))] == [1, ["TaskOpened"]]

    await say(bench, ScopeResumed(kind_scope("data"), "ada"), told=False)  # it looks by itself while it is paused

    assert names(await bench.rest(task))[-1] == "TaskCompleted"


@pytest.mark.parametrize("told", [True, False])
async def test_a_model_call_of_a_terminated_run_is_cut_off_and_settled_at_its_reservation(bench: Bench, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    # who is told need not look by itself, and who is not told does
    monkeypatch.setattr(orders, "FRESH_S", 3600.0 if told else 0.05)
    hanging = Hanging([], provider="paid", wire="test.wire", name="m", simulated=False)
    await bench.worker(Recorder(), chain=(hanging,), prices=PRICES)
    task = await bench.open(scopes=(ScopeLimit("run/x", None, 1_000_000),))
    await bench.dispatch(task)
    async with asyncio.timeout(WITHIN_S):
        await hanging.asked.wait()
    reserved = (await bench.store.budgets(["run/x"]))["run/x"].reserved
    assert reserved > 0

    await bench.append(task, TaskCancelled("enough", "ada"), expected=ANY)
    if told:
        await bench.bus.publish(control_kind("data"))
    async with asyncio.timeout(WITHIN_S):
        await hanging.cancelled.wait()
    async with asyncio.timeout(WITHIN_S):
        while (await bench.store.budgets(["run/x"]))["run/x"].reserved:
            bench.committed.clear()
            await bench.committed.wait()

    (settled,) = [r.event() for r in await bench.store.read_streams({spend_stream(TaskId(task.task_id)): 0})]
    assert isinstance(settled, CallSettled)
    assert (settled.price.cost_micro_usd, settled.price.source) == (reserved, WORST_CASE)
    assert (await bench.store.budgets(["run/x"]))["run/x"].spent == reserved


async def test_a_drained_worker_hands_back_and_wants_to_leave(bench: Bench) -> None:
    recorder = Recorder(gate=asyncio.Event())
    await bench.worker(recorder, LOOK)
    task = await bench.open()
    await bench.dispatch(task)
    async with asyncio.timeout(WITHIN_S):
        await recorder.entered.wait()

    await say(bench, WorkerDrained("w1", "ada"))
    async with asyncio.timeout(WITHIN_S):
        await bench.workers[0].drained.wait()
    recorder.gate.set()  # type: ignore[union-attr]

    assert (await bench.rest(task))[-1] == TaskHandedBack(1, worker_scope("w1"), 1)


async def test_what_concerns_others_changes_nothing(bench: Bench) -> None:
    for event in (ScopePaused(kind_scope("code"), "ada"), ScopePaused(tenant_scope("other"), "ada"), WorkerDrained("w9", "ada")):
        await say(bench, event)
    await bench.worker(Recorder(), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)

    assert names(await bench.rest(task))[-1] == "TaskCompleted"


async def test_a_stop_ends_the_step_under_way_and_hands_the_task_back(bench: Bench) -> None:
    recorder = Recorder(gate=asyncio.Event())
    await bench.worker(recorder, LOOK)
    task = await bench.open()
    await bench.dispatch(task)
    async with asyncio.timeout(WITHIN_S):
        await recorder.entered.wait()
    stopping = asyncio.create_task(bench.workers[0].stop(grace_s=WITHIN_S))
    recorder.gate.set()  # type: ignore[union-attr]

    events = await bench.rest(task)
    await stopping

    assert names(events)[-2:] == ["ToolFinished", "TaskHandedBack"]
    assert bench.bus.broker.messages("WORK") == []
