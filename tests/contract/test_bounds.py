"""Where a task stops by itself, carried out by a real worker: loops, standstill, and what a replay makes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.scripted import Recorder, ScriptedModel, calls
from support.worker_bench import Bench, names, worker_bench

from crewlog.agents.model import ModelError, OnText
from crewlog.agents.rederive import replay_task
from crewlog.schemas.blocks import ModelReply, ModelRequest, Text, ToolResult
from crewlog.schemas.task_events import AttemptFailed, ContextCompacted, ModelCallFailed, Nudged, TaskCompleted, ToolFinished
from crewlog.schemas.usage import OFFLINE, Price
from crewlog.schemas.values import ContextItem, Outcome

SUBMIT = calls(("submit", '{"text":"done"}'))
LOOK = calls(("look", '{"text":"a"}'))
LOOK_SPACED = calls(("look", '{ "text": "a" }'))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worker_bench(tmp_path) as bench:
        yield bench


async def test_an_agent_that_goes_round_in_circles_is_told_and_can_go_on(bench: Bench) -> None:
    model = await bench.worker(Recorder(), LOOK, LOOK_SPACED, LOOK, SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)

    events = await bench.rest(task)

    assert isinstance(events[-1], TaskCompleted)
    (nudged,) = [e for e in events if isinstance(e, Nudged)]
    result, told = model.requests[3].messages[-1].content
    assert isinstance(result, ToolResult)
    assert told == Text(nudged.text)


async def test_an_agent_that_goes_on_in_circles_is_stopped_and_the_loop_named(bench: Bench) -> None:
    recorder = Recorder()
    other = calls(("put", '{"text":"b"}'))
    await bench.worker(recorder, *[LOOK, other] * 6)
    task = await bench.open()
    await bench.dispatch(task)

    events = await bench.rest(task)

    assert names(events).count("Nudged") == 1
    assert isinstance(events[-1], AttemptFailed)
    assert events[-1].error.code == "loop_detected"
    assert 'look {"text":"a"} → put {"text":"b"} 3 times' in events[-1].error.message
    assert len(recorder.calls) == 12


async def test_a_nudge_nobody_decided_is_found_by_a_replay(bench: Bench) -> None:
    await bench.worker(Recorder(), LOOK, LOOK, LOOK, SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    await bench.rest(task)
    recorded = await bench.recorded(task)
    at = next(n for n, r in enumerate(recorded) if r.type == "Nudged")

    shortened = replay_task([r for n, r in enumerate(recorded) if n != at], bench.read)

    assert shortened.divergence is not None
    assert (shortened.divergence.field, shortened.divergence.expected) == ("step", "Nudge")


async def test_a_task_that_stands_still_ends_with_the_limit_it_reached(bench: Bench) -> None:
    recorder = Recorder(gate=asyncio.Event())  # never set: the tool hangs
    await bench.worker(recorder, LOOK)
    task = await bench.open(limits={"idle_seconds": 1})
    await bench.dispatch(task)

    events = await bench.rest(task)

    assert isinstance(events[-1], AttemptFailed)
    error = events[-1].error
    assert (error.code, error.retryable) == ("limit_idle_seconds", True)
    assert error.message == "limit idle_seconds reached: 1 of max 1, raise limits.idle_seconds to go on"


async def test_the_time_of_a_task_has_an_end(bench: Bench) -> None:
    recorder = Recorder(gate=asyncio.Event())
    await bench.worker(recorder, LOOK)
    task = await bench.open(timeout_seconds=1)
    await bench.dispatch(task)

    error = (await bench.rest(task))[-1].error  # type: ignore[attr-defined]

    assert (error.code, error.retryable) == ("timeout", False)
    assert error.message == "limit timeout_seconds reached: 1 of max 1, raise timeout_seconds to go on"


async def test_what_a_tool_has_done_when_the_time_is_over_is_in_the_log(bench: Bench) -> None:
    class Slow(ScriptedModel):
        async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
            if self.requests:
                await asyncio.Event().wait()
            return await super().complete(request, timeout_s=timeout_s, on_text=on_text)

    await bench.worker(Recorder(), chain=(Slow([calls(("send", '{"text":"x"}'))]),))
    task = await bench.open(timeout_seconds=1)
    await bench.dispatch(task)

    events = await bench.rest(task)

    assert names(events)[-4:] == ["ToolFinished", "ModelCallStarted", "ModelCallFailed", "AttemptFailed"]
    assert isinstance(given_up := events[-2], ModelCallFailed)
    assert given_up.price == Price(0, OFFLINE)


def page(n: int) -> ModelReply:
    """A call whose result is long, and different each time."""
    return calls(("look", f'{{"text":"{n} {"row " * 800}"}}'))


TOO_LONG = ModelError("context_length", "too many tokens")


async def test_a_conversation_the_provider_finds_too_long_is_cut_and_goes_on(bench: Bench) -> None:
    model = await bench.worker(Recorder(), *map(page, range(8)), TOO_LONG, SUBMIT, provider="openai")
    task = await bench.open()
    await bench.dispatch(task)

    events = await bench.rest(task)

    assert isinstance(events[-1], TaskCompleted)
    (cut,) = [e for e in events if isinstance(e, ContextCompacted)]
    assert (cut.reason, cut.turn, {r.call_id for r in cut.replaced}) == ("refused", 9, {"t1-1", "t2-1", "t3-1", "t4-1"})
    assert len(model.requests[9].canonical()) < len(model.requests[8].canonical())


async def test_what_was_left_out_can_be_read_back(bench: Bench) -> None:
    recall = calls(("recall_result", '{"call_id":"t2-1"}'), ("recall_result", '{"call_id":"t77-1"}'))
    model = await bench.worker(Recorder(), *map(page, range(8)), TOO_LONG, recall, SUBMIT, provider="openai")
    task = await bench.open()
    await bench.dispatch(task)

    finished = {e.call_id: e for e in await bench.rest(task) if isinstance(e, ToolFinished)}

    assert finished["t9-1"].result == finished["t2-1"].result, "the same bytes are stored once"
    assert finished["t9-2"].status == "error"
    assert "recall_result" not in str(model.requests[8].tools)
    assert "recall_result" in str(model.requests[9].tools)


async def test_another_worker_goes_on_with_the_conversation_as_it_was_cut(bench: Bench) -> None:
    recorder = Recorder()
    await bench.worker(recorder, *map(page, range(8)), TOO_LONG, ModelError("auth", "the key was revoked"), provider="openai", name="w1")
    task = await bench.open()
    await bench.dispatch(task)
    events = await bench.rest(task)
    assert names(events)[-3:] == ["ModelCallStarted", "ModelCallFailed", "AttemptFailed"]
    await bench.workers.pop().stop(grace_s=1)

    model = await bench.worker(Recorder(), SUBMIT, provider="openai", name="w2")
    await bench.dispatch(task, attempt=2, version=len(events))

    assert isinstance((await bench.rest(task))[-1], TaskCompleted)
    assert "left out to make room" in str(model.requests[0].messages[2])


async def test_a_task_that_is_too_long_from_the_start_says_so(bench: Bench) -> None:
    await bench.worker(Recorder(), TOO_LONG, provider="openai")
    task = await bench.open()
    await bench.dispatch(task)

    last = (await bench.rest(task))[-1]

    assert isinstance(last, AttemptFailed)
    assert (last.error.code, last.error.retryable) == ("model_context_length", False)
    assert "no model has room for the conversation: openai/script-1 context_length: too many tokens" in last.error.message


async def test_outcomes_that_are_only_listed_are_fetched_and_keep_their_label(bench: Bench) -> None:
    read = calls(("read_context", '{"key":"facts"}'), ("read_context", '{"key":"numbers"}'))
    model = await bench.worker(Recorder(), read, SUBMIT, context="retrieve")
    facts, numbers = Outcome("It lasts two years."), Outcome("344", trust="untrusted")
    task = await bench.open(context=[ContextItem("facts", "research", "Find", facts), ContextItem("numbers", "data", "Count", numbers)])
    await bench.dispatch(task)

    events = await bench.rest(task)

    fetched = [e for e in events if isinstance(e, ToolFinished) and e.tool == "read_context"]
    assert [(json.loads(e.result.inline or "")["summary"], e.trust) for e in fetched] == [("It lasts two years.", "trusted"), ("344", "untrusted")]
    opening = model.requests[0].messages[0].content[0]
    assert isinstance(opening, Text)
    assert "It lasts two years." not in opening.text
    assert '"available_context":[{"key":"facts"' in opening.text
    assert "read_context" in str(model.requests[0].tools)


async def test_an_agent_may_say_how_it_wants_its_context(bench: Bench) -> None:
    agent = replace(Recorder().agent(), context="inject")
    model = await bench.worker(agent, SUBMIT, context="retrieve")
    task = await bench.open(context=[ContextItem("facts", "research", "Find", Outcome("It lasts two years."))])
    await bench.dispatch(task)
    await bench.rest(task)

    assert "It lasts two years." in str(model.requests[0].messages[0])
    assert "read_context" not in str(model.requests[0].tools)
