"""A worker whose agent has tools of an MCP server: approval first, results untrusted, and a replay that needs no server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from support.scripted import Recorder, calls, says
from support.worker_bench import Bench, names, worker_bench

from crewlog.agents import worker
from crewlog.agents.mcp_hub import McpHub
from crewlog.agents.spec import AgentSpec
from crewlog.events.bus import Message
from crewlog.events.config_mcp import McpServer, McpToolRules
from crewlog.schemas.system_events import AgentRegistered, McpToolPinned
from crewlog.schemas.task_events import ApprovalDecided, ApprovalRequested, TaskCompleted, ToolFinished, ToolStarted

SERVER = str(Path(__file__).parents[1] / "support" / "mcp_server.py")
SUBMIT = calls(("submit", '{"text":"done"}'))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worker_bench(tmp_path) as bench:
        yield bench


@pytest.fixture
async def hub(bench: Bench) -> AsyncIterator[McpHub]:
    rules = {"add": McpToolRules(effect="read", needs_approval=False)}
    settings = McpServer(kinds=("data",), command=sys.executable, args=(SERVER,), tools=("add", "pid", "die"), rules=rules)
    hub = McpHub({"testing": settings}, bench.store, bench.clock)
    await hub.start(wait_s=60)
    yield hub
    await hub.stop()


def agent(hub: McpHub) -> AgentSpec:
    return replace(Recorder().agent(), more_tools=hub.tools)


async def test_a_call_is_recorded_checked_and_untrusted(bench: Bench, hub: McpHub) -> None:
    wrong, right = ("testing__add", '{"a":"x"}'), ("testing__add", '{"a":2,"b":3}')
    model = await bench.worker(agent(hub), calls(wrong, right), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    events = await bench.rest(task)
    finished = [e for e in events if isinstance(e, ToolFinished)]
    assert [(e.status, e.trust) for e in finished[:2]] == [("refused", "trusted"), ("ok", "untrusted")]
    assert finished[1].result.inline == "5"
    assert "'b' is a required property" in str(model.requests[1].messages[-1])
    (started,) = [e for e in events if isinstance(e, ToolStarted) and e.tool == "testing__add"]
    (pin,) = [p for p in await pins(bench) if p.tool == "add"]
    assert (started.effect, started.tool_version) == ("read", pin.digest[:12])
    last = events[-1]
    assert isinstance(last, TaskCompleted)
    assert last.outcome.trust == "untrusted"


async def pins(bench: Bench) -> list[McpToolPinned]:
    return [event for r in (await bench.store.read_all(0, 1000)).events if isinstance(event := r.event(), McpToolPinned)]


async def test_what_nobody_vouched_for_asks_a_person_whatever_the_server_says_of_it(bench: Bench, hub: McpHub) -> None:
    await bench.worker(agent(hub), calls(("testing__pid", "{}")), SUBMIT)
    task = await bench.open()
    await bench.dispatch(task)
    events = await bench.rest(task)
    asked = events[-1]
    assert isinstance(asked, ApprovalRequested)
    assert "ToolStarted" not in names(events)
    await bench.append(task, ApprovalDecided(asked.approval_id, asked.call_id, asked.digest, "approved", "ada"), expected=len(events))
    await bench.dispatch(task, version=len(events) + 1)
    (finished, _) = [e for e in await bench.rest(task) if isinstance(e, ToolFinished)]
    assert (finished.tool, finished.status) == ("testing__pid", "ok")


async def test_a_server_that_dies_in_a_call_leaves_a_question_and_costs_no_task(bench: Bench, hub: McpHub) -> None:
    model = await bench.worker(agent(hub), calls(("testing__die", "{}")), SUBMIT)
    task = await bench.open(auto_approve=True)
    await bench.dispatch(task)
    events = await bench.rest(task)
    asked = events[-1]
    assert isinstance(asked, ApprovalRequested)
    assert "broke while die was running (the server ended with 3)" in asked.reason
    await bench.append(task, ApprovalDecided(asked.approval_id, asked.call_id, asked.digest, "give_up", "ada"), expected=len(events))
    await bench.dispatch(task, version=len(events) + 1)
    assert names(await bench.rest(task))[-1] == "TaskCompleted"
    assert "testing__die may or may not have happened and is not done again" in str(model.requests[1].messages[-1])


async def test_a_task_goes_on_with_the_tools_it_began_with_when_the_server_is_gone(bench: Bench, hub: McpHub) -> None:
    await hub.stop()
    down = McpHub({"testing": McpServer(kinds=("data",), command="no-such-command")}, bench.store, bench.clock)
    await down.start(wait_s=60)
    try:
        model = await bench.worker(agent(down), calls(("testing__add", '{"a":1,"b":1}')), says("I could not."), says("Really not."), says("No."))
        task = await bench.open(auto_approve=True)
        await bench.dispatch(task)
        await bench.rest(task)
        assert {tool.name for tool in model.requests[0].tools} >= {"testing__add", "testing__pid"}
        assert "MCP server testing cannot be used now: there is no command" in str(model.requests[1].messages[-1])
    finally:
        await down.stop()


SLOW = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]):\n    time.sleep(0.05)\nos.execv(sys.executable, [sys.executable, sys.argv[2]])"


async def test_a_server_that_is_there_late_is_missed_in_words_and_used_from_then_on(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "HEARTBEAT_S", 0.05)
    known: asyncio.Queue[set[str]] = asyncio.Queue()

    async def registered(message: Message) -> None:
        known.put_nowait({tool.name for tool in msgspec.json.decode(message.data, type=AgentRegistered).tools})

    await bench.bus.subscribe("api.system.agents.register.*", registered)
    settings = McpServer(kinds=("data",), command=sys.executable, args=("-c", SLOW, str(tmp_path / "go"), SERVER), tools=("add",))
    hub = McpHub({"testing": settings}, bench.store, bench.clock)
    await hub.start(wait_s=0.05)
    try:
        spec = replace(Recorder().agent(), more_tools=hub.tools, lacking=hub.lacking)
        model = await bench.worker(spec, SUBMIT, SUBMIT)
        first, second = await bench.open(number=1), await bench.open(number=2)
        await bench.dispatch(first)
        await bench.rest(first)
        assert "The tools of the MCP server testing are not there: it was not reached yet" in str(model.requests[0].messages[0])
        assert "testing__add" not in {tool.name for tool in model.requests[0].tools}
        assert "testing__add" not in await known.get()
        (tmp_path / "go").touch()
        async with asyncio.timeout(60):
            assert "testing__add" in await known.get()
        await bench.dispatch(second)
        await bench.rest(second)
        assert "testing__add" in {tool.name for tool in model.requests[1].tools}
        assert "not_available" not in str(model.requests[1].messages[0])
        assert known.empty(), "it is told once"
    finally:
        await hub.stop()
