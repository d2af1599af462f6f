"""Tools at work: a question to a person, other implementations, versions that go on living; on the log, and replayed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from support.scripted import Recorder, calls
from support.worker_bench import WITHIN_S, Bench, worker_bench

from crewlog.agents import runaway
from crewlog.agents.escalation import ESCALATE
from crewlog.agents.spec import AgentSpec, Implementation, ToolContext, ToolOutput, ToolUnavailable
from crewlog.agents.specialist_code import code_agent
from crewlog.agents.tool_ways import ToolHealth
from crewlog.events.artifact_store import open_artifacts
from crewlog.schemas.blocks import ModelRequest, ToolResult
from crewlog.schemas.effects import Effect
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import ApprovalDecided, ApprovalRequested, TaskCompleted, TaskMoved, ToolFinished, ToolStarted, ToolWays

SUBMIT = calls(("submit", '{"text":"42"}'))
QUESTION = json.dumps({"reason": "Which of the two files?", "context": "a.csv and b.csv look alike"})


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worker_bench(tmp_path) as made:
        yield made


def told(request: ModelRequest) -> str:
    """What the last results say."""
    return "\n".join(block.content for block in request.messages[-1].content if isinstance(block, ToolResult))


@pytest.mark.parametrize("decision", ["approved", "denied"])
@pytest.mark.parametrize("auto_approve", [False, True])
async def test_a_question_waits_for_a_person_whose_words_are_the_result(bench: Bench, decision: Any, auto_approve: bool) -> None:
    model = await bench.worker(Recorder(), calls((ESCALATE, QUESTION)), SUBMIT)
    task = await bench.open(auto_approve=auto_approve)
    await bench.dispatch(task)
    events = await bench.rest(task)
    asked = events[-1]
    assert isinstance(asked, ApprovalRequested), "also where tools run unasked: nobody else can answer"
    await bench.append(task, ApprovalDecided(asked.approval_id, asked.call_id, asked.digest, decision, "maria", "take b.csv"), expected=len(events))
    await bench.dispatch(task, version=len(events) + 1)
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert told(model.requests[-1]) == f"{decision} by maria: take b.csv"
    (answer,) = [e for e in events if isinstance(e, ToolFinished) and e.tool == ESCALATE]
    assert answer.status == "ok"
    assert not [e for e in events if isinstance(e, ToolStarted) and e.tool == ESCALATE], "nothing ran"


async def test_a_person_is_asked_when_nothing_else_of_the_turn_is_on_its_way(bench: Bench) -> None:
    """The answer is written to the task: whoever still worked on it would lose what it did meanwhile."""
    recorder = Recorder(gate=asyncio.Event())
    await bench.worker(recorder, calls(("mail", '{"text":"a"}'), ("send", '{"text":"b"}')), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    await recorder.entered.wait()
    assert not [e for e in await bench.events(task) if isinstance(e, ApprovalRequested)]
    assert recorder.gate is not None
    recorder.gate.set()
    events = await bench.rest(task)
    assert isinstance(events[-2], ToolFinished)
    assert (events[-2].tool, events[-2].status) == ("send", "ok")
    assert isinstance(asked := events[-1], ApprovalRequested)
    assert (asked.tool, asked.question) == ("mail", msgspec.UNSET)


async def test_who_answered_is_in_the_log(bench: Bench) -> None:
    async def down(_: ToolContext, __: Any) -> ToolOutput:
        raise ToolUnavailable("no connection")

    recorder = Recorder()
    look = recorder.tool("look")
    spec = AgentSpec(
        "data", "test", "x", (replace(look, run=down, implementation="near", fallbacks=(Implementation("far", look.run),)), recorder.agent().tools[-1])
    )  # type: ignore[index]
    model = await bench.worker(spec, calls(("look", '{"text":"x"}')), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    events = await bench.rest(task)
    (looked,) = [e for e in events if isinstance(e, ToolFinished) and e.tool == "look"]
    assert looked.ways == ToolWays("far", 2, ("near: no connection",))
    assert "no connection" in told(model.requests[-1])


async def test_a_task_goes_on_with_the_tools_it_began_with(bench: Bench) -> None:
    old, new = Recorder(), Recorder()
    await bench.worker(old, calls(("mail", '{"text":"hello"}')), name="old")
    task = await bench.open()
    await bench.dispatch(task)
    events = await bench.rest(task)
    asked = events[-1]
    assert isinstance(asked, ApprovalRequested)
    await bench.workers.pop().stop(grace_s=1)

    changed = replace(new.tool("mail", "irreversible", needs_approval=True), version="2")
    kept = replace(old.tool("mail", "irreversible", needs_approval=True), retired=True)
    spec = AgentSpec("data", "test", "x", (kept, changed, new.tool("submit", ends_task=True)))
    await bench.worker(spec, SUBMIT, name="new")
    await bench.append(task, ApprovalDecided(asked.approval_id, asked.call_id, asked.digest, "approved", "maria"), expected=len(events))
    await bench.dispatch(task, version=len(events) + 1)
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert ([c[0] for c in old.calls], [c[0] for c in new.calls]) == (["mail"], ["submit"])
    assert [e.tool_version for e in events if isinstance(e, ToolStarted) and e.tool == "mail"] == ["1"]


@pytest.mark.parametrize("moves", [False, True])
async def test_a_task_finishes_as_it_began_or_moves_between_two_turns_when_the_operator_wants_that(bench: Bench, moves: bool) -> None:
    old, new = Recorder(), Recorder()
    await bench.worker(old, calls(("mail", '{"text":"hello"}')), name="old")
    task = await bench.open()
    await bench.dispatch(task)
    events = await bench.rest(task)
    asked = events[-1]
    assert isinstance(asked, ApprovalRequested)
    await bench.workers.pop().stop(grace_s=1)

    kept = replace(old.tool("mail", "irreversible", needs_approval=True), retired=True)
    spec = AgentSpec("data", "test", "Do it the new way.", (kept, replace(new.tool("look"), version="2"), new.tool("submit", ends_task=True)), version="2")
    model = await bench.worker(spec, calls(("look", '{"text":"x"}')), SUBMIT, name="new", moves_tasks=moves)
    await bench.append(task, ApprovalDecided(asked.approval_id, asked.call_id, asked.digest, "approved", "maria"), expected=len(events))
    await bench.dispatch(task, version=len(events) + 1)
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert [c[0] for c in old.calls] == ["mail"], "what was asked for is done as it was asked for"
    moved = [e for e in events if isinstance(e, TaskMoved)]
    assert [(e.worker, e.from_version != "2", e.agent_version) for e in moved] == ([("new", True, "2")] if moves else [])
    assert ["Do it the new way." in request.system for request in model.requests] == [moves, moves]
    looked = next(e for e in events if isinstance(e, ToolFinished) and e.tool == "look")
    assert looked.status == ("ok" if moves else "refused"), "a task knows the tools and the versions it plans with"


async def test_a_version_that_is_gone_is_refused_in_words(bench: Bench) -> None:
    recorder = Recorder()
    await bench.worker(recorder, calls(("mail", '{"text":"hello"}')), name="old")
    task = await bench.open()
    await bench.dispatch(task)
    events = await bench.rest(task)
    asked = events[-1]
    assert isinstance(asked, ApprovalRequested)
    await bench.workers.pop().stop(grace_s=1)

    spec = AgentSpec(
        "data", "test", "x", (replace(recorder.tool("mail", "irreversible", needs_approval=True), version="2"), recorder.tool("submit", ends_task=True))
    )
    model = await bench.worker(spec, SUBMIT, name="new")
    await bench.append(task, ApprovalDecided(asked.approval_id, asked.call_id, asked.digest, "approved", "maria"), expected=len(events))
    await bench.dispatch(task, version=len(events) + 1)
    await bench.rest(task)
    assert "mail version 1, with which this task began, is not here any more" in told(model.requests[-1])
    assert [c[0] for c in recorder.calls] == ["submit"]


async def test_of_two_edits_of_one_file_in_one_turn_none_is_lost(bench: Bench) -> None:
    given = await (await open_artifacts(bench.tmp / "artifacts")).put("a.py", b"one = 1\ntwo = 2\n", "text/x-python")
    edits = [("replace_in_file", json.dumps({"path": "a.py", "old": old, "new": new})) for old, new in (("one = 1", "one = 11"), ("two = 2", "two = 22"))]
    tools = code_agent().tools_for(parse_task({"task_id": str(UUID(int=1)), "type": "code", "objective": "x"}))
    spec = AgentSpec("data", "test", "x", (*tools, Recorder().tool("submit", ends_task=True)))
    model = await bench.worker(spec, calls(*edits, ("read_file", '{"path":"a.py"}')), SUBMIT)
    task = await bench.open(attachments=[{"name": "a.py", "hash": given.hash, "size": given.size, "media_type": given.media_type}])
    await bench.dispatch(task)
    events = await bench.rest(task)
    assert isinstance(events[-1], TaskCompleted)
    assert "one = 11" in told(model.requests[-1])
    assert "two = 22" in told(model.requests[-1]), "what is behind an edit sees it"


def stubborn(name: str, effect: Effect, over: asyncio.Event) -> AgentSpec:
    """An agent one of whose tools goes on until `over` is set, however often it is cancelled."""

    async def run(_: ToolContext, __: Any) -> ToolOutput:
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()
        return ToolOutput("late")

    agent = Recorder().agent()
    assert not callable(agent.tools)
    others = tuple(tool for tool in agent.tools if tool.name != name)
    return replace(agent, tools=(replace(Recorder().tool(name, effect), run=run, timeout_s=0.2), *others))


async def test_a_reading_tool_that_does_not_stop_keeps_neither_its_task_nor_its_slot(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runaway, "OBEYS_S", 0.1)
    over, health = asyncio.Event(), ToolHealth()
    look = calls(("look", '{"text":"x"}'))
    model = await bench.worker(stubborn("look", "read", over), look, SUBMIT, look, slots=2, health=health)
    (worker,) = bench.workers
    first, second = await bench.open(number=1), await bench.open(number=2)
    await bench.dispatch(first)
    assert isinstance((await bench.rest(first))[-1], TaskCompleted)
    assert "look did not finish within 0.2 s" in told(model.requests[1])
    assert not health.runaways.gave_up
    await bench.dispatch(second)
    async with asyncio.timeout(WITHIN_S):
        await worker.drained.wait()
    assert health.runaways.gave_up, "as many go on by themselves as there are slots"
    over.set()


async def test_a_tool_that_does_not_stop_and_may_have_an_effect_is_not_given_up_before_its_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runaway, "OBEYS_S", 0.1)
    over, health, ended = asyncio.Event(), ToolHealth(), asyncio.Event()
    health.runaways.end_process = ended.set
    await bench.worker(stubborn("send", "irreversible", over), calls(("send", '{"text":"x"}')), health=health)
    task = await bench.open()
    await bench.dispatch(task)
    (worker,) = bench.workers
    async with asyncio.timeout(WITHIN_S):
        await worker.drained.wait()
    assert health.runaways.gave_up
    assert isinstance((await bench.events(task))[-1], ToolStarted), "what became of it can be asked once nothing comes of it any more"
    assert not ended.is_set()
    async with asyncio.timeout(WITHIN_S):
        await worker.stop(grace_s=0)
    assert ended.is_set()
    over.set()
