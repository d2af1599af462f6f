"""What becomes of a call between whose intent and outcome something broke, for every effect class, with and without a probe and a compensation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.effects import Mode, Outside
from support.scripted import Recorder, calls
from support.worker_bench import Bench, names, worker_bench

from crewlog.agents.spec import AgentSpec, ToolContext, ToolOutput, ToolSpec, Undo
from crewlog.agents.tool_runner import STARTS_MAX
from crewlog.schemas.effects import COMPENSATION_BYTES_MAX
from crewlog.schemas.errors import ConfigError, ContractError, TerminalError, TransientError
from crewlog.schemas.ids import RunId, TaskId, compensation_key, idempotency_key
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalDecision,
    ApprovalRequested,
    AttemptFailed,
    CompensationFinished,
    TaskCompleted,
    TaskEvent,
    ToolFinished,
    ToolInDoubt,
    ToolProbed,
    ToolStarted,
)

SUBMIT = calls(("submit", '{"text":"done"}'))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worker_bench(tmp_path) as bench:
        yield bench


def key_of(task: AgentTask) -> str:
    return idempotency_key(RunId(task.run_id), TaskId(task.task_id), "t1-1")


def changed(outside: Outside, tool: str, **fields: Any) -> AgentSpec:
    """The agent of `outside` with another tool of this name."""
    spec = outside.agent()
    assert not callable(spec.tools)
    return replace(spec, tools=tuple(replace(t, **fields) if t.name == tool else t for t in spec.tools))


async def crashed(bench: Bench, outside: Outside, tool: str, mode: Mode = "done_and_hangs", *, spec: AgentSpec | None = None) -> AgentTask:
    """A worker dies inside a tool; the next one finds the outside world answering again."""
    outside.mode = mode
    await bench.worker(spec or outside.agent(), calls((tool, '{"text":"x"}')), name="dead")
    task = await bench.open()
    await bench.dispatch(task)
    async with asyncio.timeout(60):
        await outside.entered.wait()
    await bench.workers.pop().stop(grace_s=0)
    outside.mode = "answers"
    return task


async def unanswered(bench: Bench, outside: Outside, tool: str, mode: Mode) -> list[TaskEvent]:
    """The worker lives, and no answer comes."""
    outside.mode = mode
    await bench.worker(outside.agent(), calls((tool, '{"text":"x"}')), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    return await bench.rest(task)


async def decided(bench: Bench, task: AgentTask, events: list[TaskEvent], decision: ApprovalDecision) -> list[TaskEvent]:
    asked = events[-1]
    assert isinstance(asked, ApprovalRequested)
    assert asked.question == "outcome"
    await bench.append(task, ApprovalDecided(asked.approval_id, asked.call_id, asked.digest, decision, "maria", "I looked"), expected=len(events))
    await bench.dispatch(task, version=len(events) + 1)
    return await bench.rest(task)


def outcome(events: list[TaskEvent]) -> ToolFinished:
    """The outcome of the call in question: the one before the task is handed in."""
    return next(e for e in events if isinstance(e, ToolFinished))


@pytest.mark.parametrize("tool", ["book", "pay"])
async def test_a_probe_that_finds_the_effect_makes_it_the_outcome(bench: Bench, tool: str) -> None:
    outside = Outside()
    task = await crashed(bench, outside, tool)
    await bench.worker(outside.agent(), SUBMIT, name="w2")
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert [e.verdict for e in events if isinstance(e, ToolProbed)] == ["happened"]
    assert (outcome(events).status, outcome(events).result.inline) == ("ok", f"{tool} was found")
    assert outside.arrivals == {key_of(task): 1}
    if tool == "book":
        assert isinstance(found := outcome(events).compensation, msgspec.Struct)
        assert (found.tool, found.resource) == ("unmake", f"id-{key_of(task)}")


@pytest.mark.parametrize("tool", ["book", "pay"])
async def test_a_probe_that_finds_nothing_lets_it_run_again_under_the_same_key(bench: Bench, tool: str) -> None:
    outside = Outside()
    task = await crashed(bench, outside, tool, "hangs")
    await bench.worker(outside.agent(), SUBMIT, name="w2")
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert outcome(events).status == "ok"
    assert outside.arrivals == {key_of(task): 2}
    assert [e.idempotency_key for e in events if isinstance(e, ToolStarted) and e.tool == tool] == [key_of(task)] * 2


@pytest.mark.parametrize("mode", ["hangs", "done_and_hangs"])
async def test_without_a_probe_what_can_be_taken_back_is(bench: Bench, mode: Mode) -> None:
    outside = Outside()
    task = await crashed(bench, outside, "rent", mode)
    model = await bench.worker(outside.agent(), SUBMIT, name="w2")
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert outside.undone == [(f"id-{key_of(task)}", compensation_key(key_of(task)))]
    assert outside.things == {}
    assert outcome(events).status == "error"
    assert "was taken back; call it again if it is still wanted" in str(model.requests[0].messages[-1])
    assert names(events).count("CompensationStarted") == 1


async def test_a_compensation_that_was_interrupted_is_done_again_under_its_key(bench: Bench) -> None:
    outside = Outside()
    task = await crashed(bench, outside, "rent")
    held = Outside(things=outside.things)

    async def hang(*_: object) -> None:
        held.entered.set()
        await asyncio.Event().wait()

    spec = held.agent()
    hanging = tuple(replace(t, run=hang) if t.name == "unmake" else t for t in spec.tools if isinstance(t, ToolSpec))
    await bench.worker(replace(spec, tools=hanging), name="w2")
    async with asyncio.timeout(60):
        await held.entered.wait()
    await bench.workers.pop().stop(grace_s=0)
    await bench.worker(outside.agent(), SUBMIT, name="w3")
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert names(events).count("CompensationStarted") == 2
    assert outside.undone == [(f"id-{key_of(task)}", compensation_key(key_of(task)))]


async def test_a_compensation_that_fails_leaves_the_question_to_a_person(bench: Bench) -> None:
    outside = Outside(undo_fails=True)
    task = await crashed(bench, outside, "rent")
    await bench.worker(outside.agent(), SUBMIT, name="w2")
    events = await bench.rest(task)
    assert [e.status for e in events if isinstance(e, CompensationFinished)] == ["error"]
    events = await decided(bench, task, events, "happened")
    assert outcome(events).status == "ok"
    assert "happened by maria: I looked" in (outcome(events).result.inline or "")


@pytest.mark.parametrize("tool", ["book", "pay", "post", "hire"])
async def test_when_nothing_can_be_found_out_a_person_is_asked_and_nothing_runs(bench: Bench, tool: str) -> None:
    outside = Outside(probes=False)
    task = await crashed(bench, outside, tool)
    await bench.worker(outside.agent(), SUBMIT, name="w2")
    events = await bench.rest(task)
    asked = events[-1]
    assert isinstance(asked, ApprovalRequested)
    assert "a worker died while" in asked.reason
    assert outside.arrivals == {key_of(task): 1}
    events = await decided(bench, task, events, "give_up")
    assert outcome(events).status == "unknown"
    assert isinstance(events[-1], TaskCompleted)
    assert outside.arrivals == {key_of(task): 1}


async def test_who_says_that_it_did_not_happen_lets_it_run_again_under_the_same_key(bench: Bench) -> None:
    outside = Outside()
    task = await crashed(bench, outside, "post", "hangs")
    await bench.worker(outside.agent(), SUBMIT, name="w2")
    events = await decided(bench, task, await bench.rest(task), "did_not_happen")
    assert outcome(events).status == "ok"
    assert outside.arrivals == {key_of(task): 2}


@pytest.mark.parametrize("mode", ["done_and_silent", "breaks"])
async def test_no_answer_is_not_taken_for_a_failure(bench: Bench, mode: Mode) -> None:
    outside = Outside()
    events = await unanswered(bench, outside, "post", mode)
    assert isinstance(asked := events[-1], ApprovalRequested)
    assert isinstance(doubt := events[-2], ToolInDoubt)
    assert doubt.reason in asked.reason
    assert len(outside.arrivals) == 1


async def test_no_answer_and_a_probe_that_knows_ask_nobody(bench: Bench) -> None:
    outside = Outside()
    events = await unanswered(bench, outside, "pay", "done_and_silent")
    assert isinstance(events[-1], TaskCompleted)
    assert outcome(events).result.inline == "pay was found"
    assert list(outside.arrivals.values()) == [1]


async def test_what_never_happens_is_tried_a_few_times_not_for_ever(bench: Bench) -> None:
    outside = Outside()
    events = await unanswered(bench, outside, "pay", "lost")
    assert isinstance(events[-1], TaskCompleted)
    assert (outcome(events).status, outcome(events).result.inline) == ("error", f"pay was tried {STARTS_MAX} times and never happened: the connection broke")
    assert set(outside.arrivals.values()) == {STARTS_MAX}


@pytest.mark.parametrize("error", [TransientError("the gateway gave up"), TerminalError("no more of it"), ContractError("an answer nobody understands")])
async def test_an_error_that_does_not_say_that_nothing_happened_leaves_the_call_in_doubt(bench: Bench, error: Exception) -> None:
    async def breaks(_: ToolContext, __: Any) -> ToolOutput:
        raise error

    spec = changed(Outside(), "post", run=breaks)
    await bench.worker(spec, calls(("post", '{"text":"x"}')), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    events = await bench.rest(task)
    asked = events[-1]
    assert isinstance(asked, ApprovalRequested)
    assert asked.question == "outcome"
    assert str(error) in asked.reason


async def test_a_call_that_counts_once_within_a_window_is_looked_for_as_any_other(bench: Bench) -> None:
    outside = Outside()
    spec = changed(outside, "book", dedupe_window_s=3600.0)
    task = await crashed(bench, outside, "book", spec=spec)
    await bench.worker(spec, SUBMIT, name="w2")
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert (outcome(events).status, outcome(events).result.inline) == ("ok", "book was found")


@pytest.mark.parametrize("allowed", [1, 2])
async def test_a_call_that_goes_on_after_a_crash_is_not_a_further_one(bench: Bench, allowed: int) -> None:
    recorder = Recorder(gate=asyncio.Event())
    note = recorder.tool("note", "idempotent", calls_max=allowed)
    spec = AgentSpec("data", "test agent", "x", (note, Recorder().tool("submit", ends_task=True)))
    await bench.worker(spec, calls(("note", '{"text":"x"}')), name="dead")
    task = await bench.open()
    await bench.dispatch(task)
    await recorder.entered.wait()
    await bench.workers.pop().stop(grace_s=0)
    assert recorder.gate is not None
    recorder.gate.set()
    await bench.worker(spec, calls(("note", '{"text":"y"}')), SUBMIT, name="w2")
    events = await bench.rest(task)
    assert [e.status for e in events if isinstance(e, ToolFinished) and e.tool == "note"] == ["ok", "ok" if allowed == 2 else "refused"]


async def test_a_call_that_cannot_be_repeated_any_more_is_not_said_to_have_had_no_effect(bench: Bench) -> None:
    recorder = Recorder(gate=asyncio.Event())
    submit = Recorder().tool("submit", ends_task=True)
    await bench.worker(AgentSpec("data", "test agent", "x", (recorder.tool("note", "idempotent"), submit)), calls(("note", '{"text":"x"}')), name="dead")
    task = await bench.open()
    await bench.dispatch(task)
    await recorder.entered.wait()
    await bench.workers.pop().stop(grace_s=0)
    await bench.worker(AgentSpec("data", "test agent", "x", (submit,)), SUBMIT, name="w2")
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert outcome(events).status == "unknown"


@pytest.mark.parametrize("arguments", [{"text": "x" * COMPENSATION_BYTES_MAX}, {"nonsense": 1}])
async def test_an_effect_that_cannot_be_taken_back_as_it_says_is_kept_all_the_same(bench: Bench, arguments: dict[str, Any]) -> None:
    async def hire(_: ToolContext, __: Any) -> ToolOutput:
        return ToolOutput("hired", undo=Undo("unmake", arguments, resource="number 7"))

    await bench.worker(changed(Outside(), "hire", run=hire), calls(("hire", '{"text":"x"}')), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert outcome(events).status == "ok"
    assert isinstance(kept := outcome(events).compensation, msgspec.Struct)
    assert (kept.version, kept.resource) == ("", "number 7")


async def test_a_compensation_nobody_can_carry_out_is_refused_before_anything_happens(bench: Bench) -> None:
    outside = Outside()
    spec = outside.agent()
    without = tuple(t for t in spec.tools if isinstance(t, ToolSpec) and t.name != "unmake")
    await bench.worker(replace(spec, tools=without), calls(("rent", '{"text":"x"}')))
    task = await bench.open()
    await bench.dispatch(task)
    failed = (await bench.rest(task))[-1]
    assert isinstance(failed, AttemptFailed)
    assert "rent is taken back by 'unmake', which is no tool" in failed.error.message
    assert not outside.arrivals


def test_a_tool_that_takes_back_must_be_repeatable() -> None:
    spec = Outside().undoing()
    with pytest.raises(ConfigError, match="make it idempotent"):
        replace(spec, effect="irreversible")
