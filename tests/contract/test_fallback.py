"""Chains of models on real wires and in scripts: what one provider's trouble means for a task, its money and its log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from support.model_server import Canned, ModelServer, serve_models
from support.scripted import Line, Recorder, ScriptedModel, calls, says
from support.wires import ANTHROPIC, GEMINI, RESPONSES, Said, Wire
from support.worker_bench import Bench, names, worker_bench

from crewlog.agents.breaker import FAILURES_MAX, Breakers
from crewlog.agents.model import Closable, ErrorKind, Model, ModelError, OnText
from crewlog.agents.turn import PAUSES_MAX
from crewlog.events.store import AppendRequest, BudgetState, Reservation, Write
from crewlog.schemas.blocks import ModelReply, ModelRequest, Text
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.ids import Hash, TaskId, reservation_id, spend_stream, task_stream
from crewlog.schemas.price_table import TokenPrices
from crewlog.schemas.system_events import CallSettled
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import (
    AttemptFailed,
    BudgetWarned,
    Link,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallSkipped,
    ModelCallStarted,
    TaskCancelled,
    TaskCompleted,
    TaskEvent,
    TaskStarted,
)
from crewlog.schemas.usage import Price, Usage

RUN = ScopeLimit("run/1", None, 10_000_000)
PRICES = {"*:*": TokenPrices(input=1, output=10)}
"""USD per million tokens, so micro-USD per token."""


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worker_bench(tmp_path) as made:
        yield made


def fails(kind: ErrorKind, *, retry_after_s: float | None = None, usage: Usage | None = None) -> ModelError:
    return ModelError(kind, f"{kind} it is", retry_after_s=retry_after_s, status=500, request_id="req-7", usage=usage)


def a_model(name: str, *lines: Line, provider: str = "acme") -> ScriptedModel:
    """A model that is asked as a real one is."""
    return ScriptedModel(list(lines), wire="test", provider=provider, name=name, simulated=False)


async def carried_out(bench: Bench, *chain: Model, task: AgentTask | None = None, **shop: object) -> list[TaskEvent]:
    await bench.worker(Recorder(), chain=chain, prices=PRICES, **shop)
    given = task or await bench.open(scopes=[RUN])
    await bench.dispatch(given)
    return await bench.rest(given, within_s=120)  # the first call over a wire loads its SDK, which takes long on a busy machine


async def money(bench: Bench, scope: str = RUN.scope) -> BudgetState:
    return (await bench.store.budgets([scope]))[scope]


def of(kind: type[TaskEvent], events: list[TaskEvent]) -> list[TaskEvent]:
    return [event for event in events if isinstance(event, kind)]


async def on_loopback(closing: AsyncExitStack, wire: Wire, *answers: Canned) -> tuple[Model, ModelServer]:
    server = await closing.enter_async_context(serve_models(*answers))
    model = wire.make(server.url)
    assert isinstance(model, Closable)
    closing.push_async_callback(model.close)
    return model, server


async def test_a_is_rate_limited_b_breaks_in_the_middle_and_c_finishes(bench: Bench) -> None:
    limited = Canned(429, ANTHROPIC.problem(429, "rate_limit_error", "slow down"), {"retry-after": "60", "request-id": "req_a"})
    broken = Canned(events=RESPONSES.events(Said("Once upon a time"))[:2], then="cut")
    whole = Canned(events=GEMINI.events(Said("", ((None, "submit", '{"text":"42"}'),))))
    async with AsyncExitStack() as closing:
        (a, at_a), (b, at_b), (c, at_c) = [
            await on_loopback(closing, wire, answer) for wire, answer in ((ANTHROPIC, limited), (RESPONSES, broken), (GEMINI, whole))
        ]
        events = await carried_out(bench, a, b, c)
    failed = [e for e in events if isinstance(e, ModelCallFailed)]
    assert [(e.provider, e.error.code, e.status) for e in failed] == [
        ("anthropic", "model_rate_limit", 429),
        ("openai", "model_cut", None),
    ]
    assert (len(at_a.requests), len(at_b.requests), len(at_c.requests)) == (1, 1, 1)
    (answered,) = [e for e in events if isinstance(e, ModelCallFinished)]
    assert (answered.provider, answered.wire, answered.usage) == ("google", "gemini.generate_content", Usage(140, 20, 100, 0, 12))
    ended = events[-1]
    assert isinstance(ended, TaskCompleted)
    assert ended.outcome.summary == "42"
    paid = sum(e.price.cost_micro_usd or 0 for e in events if isinstance(e, ModelCallFinished | ModelCallFailed))
    assert ended.cost_micro_usd == paid
    assert answered.price.cost_micro_usd == 140 + 20 * 10
    state = await money(bench)
    assert (state.spent, state.reserved) == (paid, 0), "what is reserved is settled to the micro-dollar"


async def test_what_the_log_cannot_hold_costs_a_provider_its_call_and_no_task(bench: Bench) -> None:
    odd = Canned(500, ANTHROPIC.problem(500, "api_\0error", "boom \0 \ud800"), {"request-id": "r" * 1000})
    answers = [
        Canned(events=GEMINI.events(Said("", (("call\0", "look\0around", "{}"),)))),
        Canned(events=GEMINI.events(Said("A\0", (("call-2", "submit", '{"text":"42"}'),)))),
    ]
    async with AsyncExitStack() as closing:
        a, _ = await on_loopback(closing, ANTHROPIC, odd)
        c, at_c = await on_loopback(closing, GEMINI, *answers)
        events = await carried_out(bench, a, c)
    failed = [e for e in events if isinstance(e, ModelCallFailed)]
    assert {(e.error.code, e.error.message, len(e.request_id)) for e in failed} == {
        ("model_server", "claude-test refused: boom \ufffd \ufffd", 200),
    }
    named = [call.tool for e in events if isinstance(e, ModelCallFinished) for call in e.tool_calls]
    assert named == ["look\ufffdaround", "submit"], "the model is told that there is no such tool"
    assert (type(events[-1]), len(at_c.requests)) == (TaskCompleted, 2)


async def test_what_passes_is_tried_twice_and_the_next_model_answers(bench: Bench) -> None:
    a, b = a_model("a", fails("overloaded"), fails("overloaded")), a_model("b", calls(("submit", '{"text":"42"}')))
    events = await carried_out(bench, a, b)
    assert names(events)[:8] == [
        "TaskOpened", "TaskStarted", "ModelCallStarted", "ModelCallFailed", "ModelCallStarted", "ModelCallFailed", "ModelCallStarted", "ModelCallFinished",
    ]  # fmt: skip
    assert [e.call_id for e in events if isinstance(e, ModelCallStarted)] == ["m1-1", "m1-2", "m1-3"]
    assert isinstance(events[-1], TaskCompleted)


async def test_a_refused_key_is_loud_and_the_next_model_answers(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    events = await carried_out(bench, a_model("a", fails("auth")), a_model("b", calls(("submit", '{"text":"42"}'))))
    assert isinstance(events[-1], TaskCompleted)
    assert any("acme/a refused the call" in record.message for record in caplog.records if record.levelname == "ERROR")


async def test_a_bad_request_ends_the_task_whatever_stands_behind(bench: Bench) -> None:
    untouched = a_model("b")
    events = await carried_out(bench, a_model("a", fails("bad_request")), untouched)
    ended = events[-1]
    assert isinstance(ended, AttemptFailed)
    assert (ended.error.code, ended.error.retryable) == ("model_bad_request", False)
    assert untouched.requests == []


async def test_when_nobody_answers_one_failure_lists_every_call(bench: Bench) -> None:
    events = await carried_out(bench, a_model("a", fails("rate_limit", retry_after_s=60)), a_model("b", fails("malformed")))
    ended = events[-1]
    assert isinstance(ended, AttemptFailed)
    assert (ended.error.code, ended.error.retryable) == ("model_unavailable", True)
    for said in ("acme/a rate_limit, HTTP 500, request req-7: rate_limit it is", "acme/b malformed, HTTP 500"):
        assert said in ended.error.message


async def test_an_open_breaker_is_recorded_and_the_model_not_asked(bench: Bench) -> None:
    a, b = a_model("a"), a_model("b", calls(("submit", '{"text":"42"}')))
    breakers = Breakers()
    for _ in range(FAILURES_MAX):
        admitted = breakers.of(a).admit(bench.clock.monotonic())
        admitted.failed("server", bench.clock.monotonic())  # type: ignore[union-attr]
    events = await carried_out(bench, a, b, breakers=breakers)
    (skipped,) = [e for e in events if isinstance(e, ModelCallSkipped)]
    assert (skipped.reason, skipped.model, skipped.detail) == ("breaker_open", "a", "server")
    assert bench.clock.now_us() < skipped.until_us < bench.clock.now_us() + 21_000_000
    assert a.requests == []
    assert isinstance(events[-1], TaskCompleted)


async def test_a_budget_without_room_for_the_first_model_takes_the_next_one_that_fits(bench: Bench) -> None:
    scope = ScopeLimit("run/1", None, 100_000)
    a, b = a_model("a", provider="dear"), a_model("b", calls(("submit", '{"text":"42"}')))
    prices = {"dear:*": TokenPrices(input=100, output=1000), "*:*": TokenPrices(input=1, output=10)}
    await bench.worker(Recorder(), chain=(a, b), prices=prices)
    task = await bench.open(scopes=[scope])
    await bench.dispatch(task)
    events = await bench.rest(task)
    (skipped,) = [e for e in events if isinstance(e, ModelCallSkipped)]
    assert skipped.reason == "over_budget"
    assert "run/1" in skipped.detail
    assert a.requests == []
    assert isinstance(events[-1], TaskCompleted)
    assert await money(bench) == BudgetState(None, 100_000, 10 + 5 * 10, 0)


async def test_a_budget_that_no_model_fits_into_ends_the_attempt_with_what_is_missing(bench: Bench) -> None:
    task = await bench.open(scopes=[ScopeLimit("run/1", None, 10)])
    events = await carried_out(bench, a_model("a"), task=task)
    ended = events[-1]
    assert isinstance(ended, AttemptFailed)
    assert ended.error.code == "budget"
    assert ended.shortfall.scope == "run/1"  # type: ignore[union-attr]
    assert ended.shortfall.needed_micro_usd > 10  # type: ignore[union-attr]
    assert await money(bench) == BudgetState(None, 10, 0, 0)


async def test_a_soft_limit_is_warned_of_once_and_the_chain_goes_on_from_its_cheapest_model(bench: Bench) -> None:
    a = a_model("a", calls(("look", '{"text":"1"}')), provider="dear")
    b = a_model("b", calls(("look", '{"text":"2"}')), calls(("submit", '{"text":"42"}')))
    prices = {"dear:*": TokenPrices(input=2, output=20), "*:*": TokenPrices(input=1, output=10)}
    await bench.worker(Recorder(), chain=(a, b), prices=prices, saves_money=True)
    task = await bench.open(scopes=[ScopeLimit("run/1", 1, 10_000_000)])
    await bench.dispatch(task)
    events = await bench.rest(task)
    assert of(BudgetWarned, events) == [BudgetWarned("run/1", "m1-1", 1)]
    assert [e.model for e in events if isinstance(e, ModelCallStarted)] == ["a", "b", "b"]


async def test_a_model_without_a_price_is_passed_over_under_a_limit(bench: Bench) -> None:
    a, b = a_model("a", provider="unheard-of"), a_model("b", calls(("submit", '{"text":"42"}')))
    await bench.worker(Recorder(), chain=(a, b), prices={"acme:*": TokenPrices(input=1, output=10)})
    task = await bench.open(scopes=[RUN], budget={"hard_micro_usd": 10_000_000})
    await bench.dispatch(task)
    events = await bench.rest(task)
    (skipped,) = [e for e in events if isinstance(e, ModelCallSkipped)]
    assert skipped.reason == "unpriced"
    assert isinstance(events[-1], TaskCompleted)


@pytest.mark.parametrize(("hard", "reasons"), [(5_000_000, ["unpriced"]), (None, [])])
async def test_any_hard_limit_the_task_is_charged_to_counts(bench: Bench, hard: int | None, reasons: list[str]) -> None:
    a, b = a_model("a", calls(("submit", '{"text":"42"}')), provider="unheard-of"), a_model("b", calls(("submit", '{"text":"42"}')))
    await bench.worker(Recorder(), chain=(a, b), prices={"acme:*": TokenPrices(input=1, output=10)})
    task = await bench.open(scopes=[ScopeLimit("run/1", None, None), ScopeLimit("tenant/default/2026-11-25", None, hard)])
    await bench.dispatch(task)
    assert [e.reason for e in await bench.rest(task) if isinstance(e, ModelCallSkipped)] == reasons


async def test_a_failed_call_is_settled_with_what_was_billed(bench: Bench) -> None:
    events = await carried_out(bench, a_model("a", fails("malformed", usage=Usage(100, 7))), a_model("b", calls(("submit", '{"text":"42"}'))))
    failed = of(ModelCallFailed, events)[0]
    assert isinstance(failed, ModelCallFailed)
    assert failed.price.cost_micro_usd == 170
    assert (await money(bench)).spent == 170 + 60


async def test_a_call_without_a_whole_answer_in_time_counts_as_its_worst_whatever_was_told_before(bench: Bench) -> None:
    """The provider may be writing still, and bills that."""
    slow = ModelError("timeout", "no whole answer", usage=Usage(10, 5))
    events = await carried_out(bench, a_model("a", slow, slow), a_model("b", calls(("submit", '{"text":"42"}'))))
    (started, *_), (failed, *_) = of(ModelCallStarted, events), of(ModelCallFailed, events)
    assert isinstance(started, ModelCallStarted)
    assert isinstance(failed, ModelCallFailed)
    assert (failed.price.cost_micro_usd, failed.price.source) == (started.reserved_micro_usd, "worst case")


async def test_a_call_that_is_cut_off_by_the_deadline_counts_as_its_worst(bench: Bench) -> None:
    class Hanging(ScriptedModel):
        async def complete(self, request: ModelRequest, **_: object) -> ModelReply:
            await asyncio.Event().wait()
            raise AssertionError

    task = await bench.open(scopes=[RUN], timeout_seconds=1)
    events = await carried_out(bench, Hanging([], wire="test", provider="acme", name="a", simulated=False), task=task)
    started, failed, ended = events[-3:]
    assert isinstance(started, ModelCallStarted)
    assert isinstance(failed, ModelCallFailed)
    assert isinstance(ended, AttemptFailed)
    assert (failed.error.code, failed.price.source) == ("interrupted", "worst case")
    assert ended.error.code == "timeout"
    assert failed.price.cost_micro_usd == started.reserved_micro_usd > 0
    assert await money(bench) == BudgetState(None, 10_000_000, started.reserved_micro_usd, 0)


async def test_a_pause_is_answered_with_what_was_said(bench: Bench) -> None:
    paused = ModelReply((Text("thinking aloud"),), "pause", Usage(10, 5), "a")
    model = a_model("a", paused, calls(("submit", '{"text":"42"}')))
    events = await carried_out(bench, model)
    assert isinstance(events[-1], TaskCompleted)
    assert [m.role for m in model.requests[1].messages] == ["user", "assistant"]


async def test_a_model_that_only_pauses_is_stopped(bench: Bench) -> None:
    paused = ModelReply((Text("thinking aloud"),), "pause", Usage(10, 5), "a")
    model = a_model("a", *[paused] * 9)
    events = await carried_out(bench, model)
    ended = events[-1]
    assert isinstance(ended, AttemptFailed)
    assert ended.error.code == "model_paused"
    assert len(model.requests) == PAUSES_MAX + 1


async def test_the_offline_model_behind_a_real_one_labels_the_outcome(bench: Bench) -> None:
    offline = ScriptedModel([calls(("submit", '{"text":"42"}'))])
    events = await carried_out(bench, a_model("a", fails("auth")), offline)
    ended, begun = events[-1], events[1]
    assert isinstance(begun, TaskStarted)
    assert not begun.simulated
    assert isinstance(ended, TaskCompleted)
    assert ended.outcome.flags == ("simulated",)


SCHEMA = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"], "additionalProperties": False}


async def test_a_task_with_a_schema_ends_with_output_that_satisfies_it(bench: Bench) -> None:
    model = a_model("a", calls(("submit", '{"text":"42 rows"}')), says('{"count": "many"}'), says('Here: ```json\n{"count": 42}\n```'))
    events = await carried_out(bench, model, task=await bench.open(scopes=[RUN], output_schema=SCHEMA))
    ended = events[-1]
    assert isinstance(ended, TaskCompleted)
    assert (ended.outcome.summary, ended.outcome.output) == ("42 rows", {"count": 42})
    assert [e.purpose for e in events if isinstance(e, ModelCallStarted)] == ["turn", "output", "output"]
    first, second = model.requests[1:]
    assert first.output is not None
    assert first.output.schema == SCHEMA
    assert "'many' is not of type 'integer'" in second.messages[-1].content[-1].text  # type: ignore[union-attr]


async def test_output_that_never_satisfies_the_schema_is_corrected_twice_and_then_fails(bench: Bench) -> None:
    model = a_model("a", calls(("submit", '{"text":"42 rows"}')), says("no JSON"), says("[1, 2]"), calls(("look", '{"text":"x"}')))
    events = await carried_out(bench, model, task=await bench.open(scopes=[RUN], output_schema=SCHEMA))
    ended = events[-1]
    assert isinstance(ended, AttemptFailed)
    assert (ended.error.code, ended.error.retryable) == ("output_invalid", False)
    assert [e.problems for e in events if isinstance(e, ModelCallFinished)] == [
        (), ("the answer holds no JSON value",), ("$: [1, 2] is not of type 'object'",), ("the answer holds no JSON value",),
    ]  # fmt: skip


async def test_a_structured_answer_that_was_cut_is_no_schema_failure(bench: Bench) -> None:
    cut = ModelReply((Text('{"count": 4'),), "max_tokens", Usage(10, 5), "a")
    events = await carried_out(bench, a_model("a", calls(("submit", '{"text":"x"}')), cut), task=await bench.open(scopes=[RUN], output_schema=SCHEMA))
    ended = events[-1]
    assert isinstance(ended, AttemptFailed)
    assert ended.error.code == "model_truncated"


async def test_what_was_to_be_written_before_a_call_without_money_is_written_all_the_same(bench: Bench) -> None:
    dear_later = a_model("a", ModelReply(calls(("look", '{"text":"x"}')).content, "tool_use", Usage(10, 9_000), "a"))
    task = await bench.open(scopes=[ScopeLimit("run/1", None, 100_000)])  # the worst case of one call, not of a second one behind it
    events = await carried_out(bench, dear_later, task=task)
    assert names(events)[2:] == ["ModelCallStarted", "ModelCallFinished", "ToolStarted", "ToolFinished", "ModelCallSkipped", "AttemptFailed"]
    assert await money(bench) == BudgetState(None, 100_000, 90_010, 0)


async def test_a_call_that_was_paid_for_a_task_cancelled_meanwhile_is_settled_beside_it(bench: Bench) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    class Slow(ScriptedModel):
        async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
            asked.set()
            await answer.wait()
            return await super().complete(request, timeout_s=timeout_s, on_text=on_text)

    slow = Slow([calls(("submit", '{"text":"42"}'))], wire="test", provider="acme", name="a", simulated=False)
    await bench.worker(Recorder(), chain=(slow,), prices=PRICES)
    task = await bench.open(scopes=[RUN])
    await bench.dispatch(task)
    async with asyncio.timeout(60):
        await asked.wait()
        assert (await money(bench)).reserved > 0
        await bench.append(task, TaskCancelled("not needed any more", "ann"), expected=3)
        answer.set()
        stream = spend_stream(TaskId(task.task_id))
        while not (found := await bench.store.read_streams({stream: 0})):
            bench.committed.clear()
            await bench.committed.wait()
    settled = found[0].event()
    assert isinstance(settled, CallSettled)
    assert (settled.call_id, settled.price.cost_micro_usd, settled.usage) == ("m1-1", 60, Usage(10, 5))
    assert await money(bench) == BudgetState(None, 10_000_000, 60, 0)


@pytest.mark.hand_written("the dead worker's call is written without its request")
async def test_a_worker_that_takes_over_gives_up_the_call_of_the_dead_one(bench: Bench) -> None:
    task = await bench.open(scopes=[RUN])
    link = Link("test", "acme", "a")
    model = a_model("a", calls(("submit", '{"text":"42"}')))
    await carried_out(bench, a_model("a", fails("bad_request")), task=task)  # leaves a setup that the next worker reads
    begun = next(e for e in await bench.events(task) if isinstance(e, TaskStarted))
    setup, opening = begun.setup, begun.opening
    other = await bench.open(number=2, scopes=[RUN])
    started = TaskStarted("dead", 1, begun.agent_version, "a", "acme", False, setup, opening, "", (link,))
    await bench.append(other, started, expected=1)
    call = ModelCallStarted("m1-1", 1, "acme", "a", Hash("0" * 64), 1, wire="test", reserved_micro_usd=500)
    write = Write(task_stream(TaskId(other.task_id)), (call,), 2, "data")
    reserve = Reservation(reservation_id(TaskId(other.task_id), "m1-1"), 500)
    await bench.store.append(AppendRequest((write,), (bench.clock.new_id(),), bench.clock.now_us(), reserve=reserve))
    await bench.worker(Recorder(), chain=(model,), prices=PRICES, name="w2")
    await bench.workers[0].stop(grace_s=0)
    before = (await money(bench)).spent
    await bench.dispatch(other, version=0)
    await bench.reach(other, "TaskCompleted")
    given_up = next(e for e in await bench.events(other) if isinstance(e, ModelCallFailed))
    assert (given_up.error.code, given_up.price) == ("interrupted", Price(500, "worst case"))
    state = await money(bench)
    assert (state.spent, state.reserved) == (before + 500 + 60, 0)
