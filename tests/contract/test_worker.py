"""The worker on a real log and bus in memory: every way a task can go, and what a crash between two appends leaves behind."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.scripted import Recorder, calls, says
from support.worker_bench import WITHIN_S, Bench, names, worker_bench

from crewlog.agents.journal import Journal
from crewlog.agents.model import ModelError
from crewlog.agents.patience import Patience
from crewlog.agents.tool_calls import ToolCalls
from crewlog.events import slots
from crewlog.events.bus import Message
from crewlog.schemas.subjects import control_worker, work
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    AttemptFailed,
    ModelCallFinished,
    TaskCancelled,
    TaskCompleted,
    ToolFinished,
    ToolStarted,
)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worker_bench(tmp_path) as bench:
        yield bench


SUBMIT = calls(("submit", '{"text":"done"}'))


async def test_a_task_runs_to_its_outcome_with_intent_before_effect(bench: Bench) -> None:
    recorder = Recorder()
    await bench.worker(recorder, calls(("look", '{"text":"a"}'), ("put", '{"text":"b"}')), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    events = await bench.rest(task)
    assert names(events) == [
        *("TaskOpened", "TaskStarted", "ModelCallStarted", "ModelCallFinished", "ToolStarted", "ToolStarted", "ToolFinished", "ToolFinished"),
        *("ModelCallStarted", "ModelCallFinished", "ToolStarted", "ToolFinished", "TaskCompleted"),
    ]
    assert [c[:2] for c in recorder.calls] == [("look", "a"), ("put", "b"), ("submit", "done")]
    last = events[-1]
    assert isinstance(last, TaskCompleted)
    assert last.outcome.summary == "done"
    assert last.outcome.flags == ("simulated",)
    assert not await bench.store.open_reservations(2**60, 10), "what is free keeps nothing reserved"


async def test_what_was_made_for_a_task_is_free_with_its_last_use(bench: Bench) -> None:
    await bench.worker(Recorder(), calls(("look", '{"text":"a"}'), ("put", '{"text":"b"}')), SUBMIT)
    gc.collect()
    known = {id(o) for o in gc.get_objects() if isinstance(o, Journal | ToolCalls | Patience)}  # an error of another test may hold its frames
    gc.disable()
    try:
        await bench.dispatch(await bench.open())
        async with asyncio.timeout(WITHIN_S):
            await bench.woken.get()
        await bench.workers[0].stop(grace_s=WITHIN_S)
        left = [o for o in gc.get_objects() if isinstance(o, Journal | ToolCalls | Patience) and id(o) not in known]
    finally:
        gc.enable()
    assert not left, "waiting for the garbage collector costs a worker under load a tenth of its time"


async def test_bad_arguments_and_unknown_tools_go_back_to_the_model_and_run_nothing(bench: Bench) -> None:
    recorder = Recorder()
    model = await bench.worker(recorder, calls(("look", '{"txt":1}'), ("fly", "{}"), ("look", "not json")), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    events = await bench.rest(task)
    refused = [e for e in events if isinstance(e, ToolFinished) and e.status == "refused"]
    assert len(refused) == 3
    assert [c[0] for c in recorder.calls] == ["submit"]
    shown = str(model.requests[1].messages[-1])
    assert "Field required" in shown
    assert "there is no tool 'fly'; the tools are look, put" in shown


async def test_failing_and_crashing_tools_are_results(bench: Bench) -> None:
    await bench.worker(Recorder(), calls(("look", '{"text":"fail"}'), ("look", '{"text":"crash"}')), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    results = [e.result.inline for e in await bench.rest(task) if isinstance(e, ToolFinished) and e.status == "error"]
    assert results == ["it does not work", "look failed: ZeroDivisionError: a bug"]


async def test_a_tool_with_a_limit_is_refused_beyond_it(bench: Bench) -> None:
    recorder = Recorder()
    await bench.worker(recorder, calls(("once", '{"text":"a"}'), ("once", '{"text":"b"}')), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    await bench.rest(task)
    assert [c[1] for c in recorder.calls] == ["a", "done"]


async def test_an_approval_suspends_the_task_and_the_permit_is_used_once(bench: Bench) -> None:
    recorder = Recorder()
    await bench.worker(recorder, calls(("mail", '{"text":"hello"}')), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    events = await bench.rest(task)
    asked = events[-1]
    assert isinstance(asked, ApprovalRequested)
    assert not recorder.calls
    await bench.append(task, ApprovalDecided(asked.approval_id, asked.call_id, asked.digest, "approved", "maria"), expected=len(events))
    await bench.dispatch(task, version=len(events) + 1)
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert [c[0] for c in recorder.calls] == ["mail", "submit"]
    assert [e.approval_id for e in events if isinstance(e, ToolStarted)] == [asked.approval_id, None]


async def test_a_denied_call_does_not_run_and_the_model_is_told_by_whom(bench: Bench) -> None:
    recorder = Recorder()
    model = await bench.worker(recorder, calls(("mail", '{"text":"hello"}')), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    events = await bench.rest(task)
    asked = events[-1]
    assert isinstance(asked, ApprovalRequested)
    await bench.append(task, ApprovalDecided(asked.approval_id, asked.call_id, asked.digest, "denied", "maria", "too early"), expected=len(events))
    await bench.dispatch(task, version=len(events) + 1)
    await bench.rest(task)
    assert [c[0] for c in recorder.calls] == ["submit"]
    assert "mail was not run: denied by maria: too early" in str(model.requests[1].messages[-1])


async def test_auto_approve_asks_nobody(bench: Bench) -> None:
    recorder = Recorder()
    await bench.worker(recorder, calls(("mail", '{"text":"hello"}')), SUBMIT)
    task = await bench.open(auto_approve=True)
    await bench.dispatch(task)
    assert isinstance((await bench.rest(task))[-1], TaskCompleted)


async def crashed_inside(bench: Bench, tool: str) -> tuple[AgentTask, Recorder]:
    """A worker dies while `tool` runs: the intent is durable and no outcome is."""
    recorder = Recorder(gate=asyncio.Event())
    await bench.worker(recorder, calls((tool, '{"text":"x"}')), name="dead")
    task = await bench.open()
    await bench.dispatch(task)
    async with asyncio.timeout(WITHIN_S):
        await recorder.entered.wait()
    await bench.reach(task, "ToolStarted")  # a read's intent may still be on its way
    await bench.workers.pop().stop(grace_s=0)
    return task, recorder


@pytest.mark.parametrize("tool", ["look", "put"])
async def test_after_a_crash_a_repeatable_call_runs_again_under_the_same_key(bench: Bench, tool: str) -> None:
    task, first = await crashed_inside(bench, tool)
    second = Recorder()
    await bench.worker(second, SUBMIT, name="w2")
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert second.calls[0] == first.calls[0], "same tool, same arguments, same idempotency key"


async def test_after_a_crash_an_irreversible_call_is_never_repeated_blindly(bench: Bench) -> None:
    task, _ = await crashed_inside(bench, "send")
    second = Recorder()
    await bench.worker(second, SUBMIT, name="w2")
    events = await bench.rest(task)
    asked = events[-1]
    assert isinstance(asked, ApprovalRequested)
    assert "may or may not have happened" in asked.reason
    assert not second.calls
    await bench.append(task, ApprovalDecided(asked.approval_id, asked.call_id, asked.digest, "denied", "maria"), expected=len(events))
    await bench.dispatch(task, version=len(events) + 1)
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert [e.status for e in events if isinstance(e, ToolFinished)] == ["unknown", "ok"]
    assert [c[0] for c in second.calls] == ["submit"]


async def test_a_worker_that_lost_its_task_stops_and_its_outcome_never_happened(bench: Bench) -> None:
    recorder = Recorder(gate=asyncio.Event())
    await bench.worker(recorder, calls(("put", '{"text":"x"}')))
    task = await bench.open()
    await bench.dispatch(task)
    async with asyncio.timeout(WITHIN_S):
        await recorder.entered.wait()
    version = len(await bench.events(task))
    await bench.append(task, TaskCancelled("not needed", "maria"), expected=version)
    assert recorder.gate is not None
    recorder.gate.set()
    await bench.workers.pop().stop(grace_s=5)
    assert await bench.bus.backlog("WORK", "data-normal") == 0
    assert names(await bench.events(task))[-1] == "TaskCancelled"


async def test_a_task_that_another_worker_holds_is_handed_back(bench: Bench) -> None:
    recorder = Recorder(gate=asyncio.Event())
    await bench.worker(recorder, calls(("put", '{"text":"x"}')), SUBMIT, slots=1)
    task = await bench.open()
    await bench.dispatch(task)
    async with asyncio.timeout(WITHIN_S):
        await recorder.entered.wait()
    answer = await bench.bus.request(control_worker("w1"), json.dumps({"task_id": str(task.task_id)}).encode(), timeout_s=WITHIN_S)
    assert json.loads(answer.data) == {"holds": True}
    before = names(await bench.events(task))
    other = Recorder()
    await bench.worker(other, name="w2")
    asked = asyncio.Event()

    async def hear(_: Message) -> None:
        asked.set()

    await bench.bus.subscribe(control_worker("w1"), hear)
    await bench.dispatch(task, version=len(before))  # delivered a second time although the first worker lives
    async with asyncio.timeout(WITHIN_S):
        await asked.wait()
    await bench.workers.pop().stop(grace_s=5)
    assert recorder.gate is not None
    recorder.gate.set()
    events = await bench.rest(task)
    assert names(events)[: len(before)] == before
    assert names(events).count("TaskStarted") == 1
    assert not other.calls
    assert await bench.bus.backlog("WORK", "data-normal") == 1, "the second delivery waits for its next turn"


async def test_a_failed_model_call_ends_the_attempt_and_the_next_one_goes_on(bench: Bench) -> None:
    recorder = Recorder()
    overloaded = ModelError("overloaded", "try later", retry_after_s=3)
    model = await bench.worker(recorder, calls(("look", '{"text":"a"}')), overloaded, SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    failed = (await bench.rest(task))[-1]
    assert isinstance(failed, AttemptFailed)
    assert failed.error.retryable
    assert failed.error.retry_after_s == 3
    await bench.dispatch(task, attempt=2, version=99)
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert len(model.requests) == 3
    assert [c[0] for c in recorder.calls] == ["look", "submit"], "what was done stays done"


async def test_large_texts_are_blobs_and_come_back_byte_for_byte(bench: Bench) -> None:
    large = "é" * 50_000
    recorder = Recorder()
    model = await bench.worker(recorder, calls(("look", json.dumps({"text": large})), ("put", json.dumps({"text": large + "!"}))), says("thinking"), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    events = await bench.rest(task)
    asked = next(e for e in events if isinstance(e, ModelCallFinished))
    assert asked.tool_calls[0].arguments.ref is not None
    assert recorder.calls[0][1] == large
    assert "characters left out" in str(model.requests[1].messages[-1])


async def test_a_message_that_is_no_task_becomes_a_dead_letter_with_its_reason(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "NAK_DELAY_MAX_S", 0.01)
    dead: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    async def buried(message: Message) -> None:
        dead.set_result(message)

    await bench.bus.subscribe("dlq.data", buried)
    await bench.worker(Recorder())
    await bench.bus.enqueue(work("data", "normal"), b"{}", message_id="bad")
    async with asyncio.timeout(60):
        letter = await dead
    await bench.workers.pop().stop(grace_s=5)
    assert letter.headers["Dead-Reason"].startswith("ContractError: this is not a task that an orchestrator dispatched: Object missing required field")
    assert await bench.bus.backlog("WORK", "data-normal") == 0
