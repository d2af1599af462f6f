"""A second model beside a slow one, through the worker: one answer, both calls in the log and in the ledger, and the same replay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec import structs
from support.scripted import Recorder, ScriptedModel, calls, says
from support.worker_bench import Bench, names, worker_bench

from crewlog.agents.breaker import FAILURES_MAX, Breakers
from crewlog.agents.chain import HEDGE_LOST
from crewlog.agents.model import ModelError, OnText
from crewlog.agents.rederive import replay_task
from crewlog.events.store import BudgetState, Recorded
from crewlog.orchestrator.causes import causes
from crewlog.orchestrator.event_text import describe
from crewlog.schemas.blocks import ModelReply, ModelRequest
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.codec import encode
from crewlog.schemas.ids import TaskId, spend_stream
from crewlog.schemas.price_table import TokenPrices
from crewlog.schemas.system_events import CallSettled
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import (
    AttemptFailed,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallSkipped,
    ModelCallStarted,
    TaskCancelled,
    TaskCompleted,
    TaskEvent,
    TaskStarted,
)
from crewlog.schemas.usage import ESTIMATE, WORST_CASE

AFTER_S = 0.01
WITHIN_S = 20.0
RUN = ScopeLimit("run/1", None, 10_000_000)
PRICES = {"acme:*": TokenPrices(input=1, output=10)}
"""USD per million tokens, so micro-USD per token."""
SCHEMA = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"], "additionalProperties": False}
DONE, RESULT = calls(("submit", '{"text":"42 rows"}')), says('{"count": 42}')
BROKEN = ModelError("malformed", "it broke", status=500)


@dataclass
class Held(ScriptedModel):
    """Keeps a structured answer back until its gate is open, once it has said `piece`."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    piece: str = ""

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        if request.output is None:
            return await super().complete(request, timeout_s=timeout_s, on_text=on_text)
        if self.piece and on_text is not None:
            on_text(self.piece)
        self.entered.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return await super().complete(request, timeout_s=timeout_s, on_text=on_text)


def held(name: str, *lines: ModelReply | ModelError, provider: str = "acme", piece: str = "", is_open: bool = False) -> Held:
    model = Held(list(lines), wire="test", provider=provider, name=name, simulated=False, piece=piece)
    if is_open:
        model.gate.set()
    return model


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worker_bench(tmp_path) as made:
        yield made


async def begun(
    bench: Bench, *chain: Held, scope: ScopeLimit = RUN, after_s: float | None = AFTER_S, task: AgentTask | None = None, **shop: object
) -> AgentTask:
    await bench.worker(Recorder(), chain=chain, prices=PRICES, hedge_after_s=after_s, **shop)
    given = task or await bench.open(scopes=[scope], output_schema=SCHEMA)
    await bench.dispatch(given)
    return given


async def entered(*models: Held) -> None:
    async with asyncio.timeout(WITHIN_S):
        for model in models:
            await model.entered.wait()


async def money(bench: Bench) -> BudgetState:
    return (await bench.store.budgets([RUN.scope]))[RUN.scope]


def costs(events: list[TaskEvent]) -> int:
    return sum(e.price.cost_micro_usd or 0 for e in events if isinstance(e, ModelCallFinished | ModelCallFailed))


def failures(events: list[TaskEvent]) -> list[tuple[str, str]]:
    return [(e.model, e.error.code) for e in events if isinstance(e, ModelCallFailed)]


async def check_whole(bench: Bench, events: list[TaskEvent]) -> None:
    """The task has its result, and the ledger holds what the log says."""
    ended = events[-1]
    assert isinstance(ended, TaskCompleted)
    assert ended.outcome.output == {"count": 42}
    assert ended.cost_micro_usd == costs(events)
    state = await money(bench)
    assert (state.spent, state.reserved) == (costs(events), 0)


async def test_the_second_model_answers_first(bench: Bench) -> None:
    a, b = held("a", DONE), held("b", RESULT, is_open=True)
    task = await begun(bench, a, b)
    events = await bench.rest(task)
    assert names(events)[6:] == ["ModelCallStarted", "ModelCallStarted", "ModelCallFailed", "ModelCallFinished", "TaskCompleted"]
    first, second, lost, won = events[6:10]
    assert isinstance(first, ModelCallStarted)
    assert isinstance(second, ModelCallStarted)
    assert isinstance(lost, ModelCallFailed)
    assert isinstance(won, ModelCallFinished)
    assert [(e.call_id, e.model, e.link, e.hedge) for e in (first, second)] == [("m2-1", "a", 0, False), ("m2-2", "b", 1, True)]
    assert (lost.call_id, lost.error.code, lost.price.cost_micro_usd, lost.price.source) == ("m2-1", HEDGE_LOST, first.reserved_micro_usd, WORST_CASE)
    assert (won.call_id, won.price.cost_micro_usd) == ("m2-2", 60)
    recorded = await bench.recorded(task)
    assert recorded[8].occurred_us == recorded[9].occurred_us, "loser and winner stand in one append"
    assert a.cancelled.is_set()
    await check_whole(bench, events)
    assert "made beside" in [cause.relation for cause in causes(recorded)[7]]
    assert describe(second).endswith("messages to acme/b beside the slow one")
    assert describe(lost) == "turn 2: hedge_lost: another model answered first"


async def test_a_replay_derives_the_second_call_and_its_end(bench: Bench) -> None:
    task = await begun(bench, held("a", DONE), held("b", RESULT, is_open=True))
    await bench.rest(task)
    recorded = await bench.recorded(task)

    def field_of(events: list[Recorded]) -> str:
        found = replay_task(events, bench.read).divergence
        return found.field if found else ""

    def changed(at: int, **fields: object) -> list[Recorded]:
        event = structs.replace(recorded[at].event(), **fields)  # type: ignore[type-var]
        return [*recorded[:at], structs.replace(recorded[at], data=encode(event)), *recorded[at + 1 :]]

    assert field_of(recorded) == ""
    assert field_of([*recorded[:8], *recorded[9:]]) == "calls beside it", "an answer while the other call is open"
    assert field_of([*recorded[:7], *recorded[8:]]) == "calls beside it", "a call that lost against none"
    assert field_of(changed(7, call_id="m2-3")) == "call_id"
    assert field_of(changed(7, link=0)) == "link"
    assert field_of(changed(1, hedge_after_s=None)) == "step"


async def test_the_first_model_answers_first(bench: Bench) -> None:
    a, b = held("a", DONE, RESULT), held("b", piece='{"count":')
    task = await begun(bench, a, b)
    await entered(a, b)
    assert (await money(bench)).reserved > 160_000, "each call has a reservation of its own"
    a.gate.set()
    events = await bench.rest(task)
    assert failures(events) == [("b", HEDGE_LOST)]
    lost = next(e for e in events if isinstance(e, ModelCallFailed))
    assert lost.price.source == ESTIMATE
    assert 0 < (lost.price.cost_micro_usd or 0) < 5_000, "its input and what was heard of it"
    assert b.cancelled.is_set()
    await check_whole(bench, events)


async def test_when_the_slow_model_fails_the_other_goes_on(bench: Bench) -> None:
    a, b = held("a", DONE, BROKEN), held("b", RESULT)
    task = await begun(bench, a, b)
    await entered(a, b)
    a.gate.set()
    await bench.reach(task, "ModelCallFailed")
    b.gate.set()
    events = await bench.rest(task)
    assert failures(events) == [("a", "model_malformed")]
    await check_whole(bench, events)


async def test_when_both_fail_the_chain_goes_on(bench: Bench) -> None:
    a, b, c = held("a", DONE, BROKEN), held("b", BROKEN), held("c", RESULT, is_open=True)
    task = await begun(bench, a, b, c)
    await entered(a, b)
    b.gate.set()
    await bench.reach(task, "ModelCallFailed")
    a.gate.set()
    events = await bench.rest(task)
    assert failures(events) == [("b", "model_malformed"), ("a", "model_malformed")]
    assert [e.hedge for e in events if isinstance(e, ModelCallStarted)] == [False, False, True, False]
    await check_whole(bench, events)


async def test_a_call_that_lost_is_nothing_to_its_breaker(bench: Bench) -> None:
    breakers = Breakers()
    a, b = held("a", DONE), held("b", RESULT)
    breaker = breakers.of(a)
    task = await begun(bench, a, b, breakers=breakers)
    await entered(a, b)
    for _ in range(FAILURES_MAX - 1):
        breaker.admit(bench.clock.monotonic()).failed("server", bench.clock.monotonic())  # type: ignore[union-attr]
    b.gate.set()
    assert failures(await bench.rest(task)) == [("a", HEDGE_LOST)]
    assert breaker.shown == "closed", "it has not failed"
    breaker.admit(bench.clock.monotonic()).failed("server", bench.clock.monotonic())  # type: ignore[union-attr]
    assert breaker.shown == "open", "nor has it answered"


@pytest.mark.parametrize("reason", ["over_budget", "breaker_open", "unpriced"])
async def test_where_no_second_call_can_be_made_the_first_goes_on_alone(bench: Bench, reason: str) -> None:
    breakers = Breakers()
    a, b = held("a", DONE, RESULT), held("b", provider="unheard-of" if reason == "unpriced" else "acme")
    for _ in range(FAILURES_MAX if reason == "breaker_open" else 0):
        breakers.of(b).admit(bench.clock.monotonic()).failed("server", bench.clock.monotonic())  # type: ignore[union-attr]
    scope = ScopeLimit("run/1", None, 100_000) if reason == "over_budget" else RUN
    task = await begun(bench, a, b, scope=scope, breakers=breakers)
    await bench.reach(task, "ModelCallSkipped")
    a.gate.set()
    events = await bench.rest(task)
    (skipped,) = [e for e in events if isinstance(e, ModelCallSkipped)]
    assert (skipped.call_id, skipped.model, skipped.reason, skipped.hedge) == ("m2-2", "b", reason, True)
    assert b.requests == []
    await check_whole(bench, events)


async def test_a_model_that_has_begun_its_answer_is_waited_for(bench: Bench) -> None:
    a, b = held("a", DONE, RESULT, piece='{"count":'), held("b", RESULT, is_open=True)
    task = await begun(bench, a, b)
    await entered(a)
    asyncio.get_running_loop().call_later(10 * AFTER_S, a.gate.set)
    events = await bench.rest(task)
    assert not b.entered.is_set()
    await check_whole(bench, events)


async def test_off_nothing_is_asked_beside_and_the_log_looks_as_before(bench: Bench) -> None:
    a, b = held("a", DONE, RESULT), held("b", RESULT, is_open=True)
    task = await begun(bench, a, b, after_s=None)
    await entered(a)
    asyncio.get_running_loop().call_later(10 * AFTER_S, a.gate.set)
    events = await bench.rest(task)
    assert not b.entered.is_set()
    assert all(b"hedge" not in r.data for r in await bench.recorded(task))
    await check_whole(bench, events)


async def test_a_worker_that_takes_over_gives_both_calls_up(bench: Bench) -> None:
    a, b = held("a", DONE), held("b")
    task = await begun(bench, a, b)
    await entered(a, b)
    await bench.workers[0].stop(grace_s=0)
    await bench.worker(Recorder(), chain=(held("a", RESULT, is_open=True), held("b")), prices=PRICES, hedge_after_s=WITHIN_S, name="w2")
    await bench.dispatch(task, version=0)
    await bench.reach(task, "TaskCompleted")
    recorded = await bench.recorded(task)
    events = await bench.events(task)
    assert failures(events) == [("b", "interrupted"), ("a", "interrupted")]
    reserved = [e.reserved_micro_usd for e in events if isinstance(e, ModelCallStarted)]
    assert costs(events) == reserved[1] + reserved[2] + 2 * 60
    assert [e.worker for e in events if isinstance(e, TaskStarted)] == ["w1", "w2"]
    assert replay_task(recorded, bench.read).divergence is None
    await check_whole(bench, events)


async def test_a_deadline_ends_both_calls_at_their_worst(bench: Bench) -> None:
    a, b = held("a", DONE), held("b")
    task = await bench.open(scopes=[RUN], output_schema=SCHEMA, timeout_seconds=3)
    await begun(bench, a, b, task=task)
    events = await bench.rest(task)
    ended = events[-1]
    assert isinstance(ended, AttemptFailed)
    assert ended.error.code == "timeout"
    assert failures(events) == [("b", "interrupted"), ("a", "interrupted")]
    reserved = [e.reserved_micro_usd for e in events if isinstance(e, ModelCallStarted)]
    assert await money(bench) == BudgetState(None, 10_000_000, 60 + reserved[1] + reserved[2], 0)
    assert a.cancelled.is_set()
    assert b.cancelled.is_set()


async def test_what_both_calls_cost_a_task_cancelled_meanwhile_is_settled_beside_it(bench: Bench) -> None:
    a, b = held("a", DONE, RESULT), held("b", piece='{"count":')
    task = await begun(bench, a, b)
    await entered(a, b)
    version = len(await bench.events(task))
    await bench.append(task, TaskCancelled("not needed any more", "ann"), expected=version)
    a.gate.set()
    stream = spend_stream(TaskId(task.task_id))
    async with asyncio.timeout(WITHIN_S):
        while len(found := await bench.store.read_streams({stream: 0})) < 2:
            bench.committed.clear()
            await bench.committed.wait()
    settled = [e for e in (r.event() for r in found) if isinstance(e, CallSettled)]
    assert {e.call_id for e in settled} == {"m2-1", "m2-2"}
    state = await money(bench)
    assert (state.spent, state.reserved) == (60 + sum(e.price.cost_micro_usd or 0 for e in settled), 0)
