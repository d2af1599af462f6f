"""Runs whose agents called tools of an MCP server, or looked at the web, kept as golden tasks: they are played without either."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from support.paid_agent import AGENT, KIND
from support.scripted import ScriptedModel, calls
from support.toolbox import MemoryArtifacts
from support.website import page, serving

from crewlog.agents.knowledge_memory import MemoryKnowledge
from crewlog.agents.mcp_hub import McpHub
from crewlog.agents.memories_local import LocalMemories
from crewlog.agents.memory_tools import with_memory
from crewlog.agents.spec import AgentSpec
from crewlog.agents.specialist_research import research_agent
from crewlog.agents.url_guard import Hosts
from crewlog.agents.web_pages import HOSTS_SETTING, WebPages
from crewlog.events.clock import SystemClock
from crewlog.events.config_mcp import McpServer, McpToolRules
from crewlog.events.memory_store import MemoryStore
from crewlog.orchestrator.bundle import collect, pack_bundle, read_bundle
from crewlog.orchestrator.golden import SUFFIX, golden_of, read_golden, recording_of, write_golden
from crewlog.orchestrator.golden_observe import differences, observe
from crewlog.orchestrator.golden_play import Tools, play
from crewlog.orchestrator.memory_crew import memory_crew
from crewlog.orchestrator.run_history import all_payloads, load_history, with_texts
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import ToolFinished, ToolStarted

SERVER = str(Path(__file__).parents[1] / "support" / "mcp_server.py")
SCRIPT = [("testing__add", '{"a":"x"}')], [("testing__add", '{"a":2,"b":3}'), ("testing__pid", "{}")], [("finish", "{}")]
CLOCK = SystemClock()


async def kept(folder: Path, agent: AgentSpec, turns: Iterable[list[tuple[str, str]]]) -> Path:
    """Carry out a task whose model calls these tools, and keep it as a golden task."""
    model = ScriptedModel([calls(*turn) for turn in turns])
    task = parse_task({"task_id": str(CLOCK.random_id()), "type": agent.kind, "objective": "look it up", "auto_approve": True})
    async with memory_crew([agent], lambda _: (model,), clock=CLOCK, artifacts=MemoryArtifacts(), folder=folder / "work") as crew:
        run_id = await crew.submit(task)
        await crew.end(run_id)
        history = await load_history(crew.store, run_id)
        history = await with_texts(crew.store, history, all_payloads(history.events))
        path = folder / f"kept{SUFFIX}"
        write_golden(path, golden_of(history, "kept"), pack_bundle(await collect(crew.store, run_id)), {})
    return path


async def recorded(folder: Path) -> Path:
    """Keep a run that called a server: wrongly, then rightly, then with what a person had to allow; the server ends with it."""
    rules = {"add": McpToolRules(effect="read", needs_approval=False), "pid": McpToolRules(effect="irreversible")}
    hub = McpHub({"testing": McpServer(kinds=(KIND,), command=sys.executable, args=(SERVER,), tools=("add", "pid"), rules=rules)}, MemoryStore(), CLOCK)
    await hub.start(wait_s=60)
    try:
        return await kept(folder, replace(AGENT, more_tools=hub.tools), SCRIPT)
    finally:
        await hub.stop()


async def played(path: Path, tools: Tools) -> tuple[list[str], list[ToolStarted], list[str], list[str]]:
    """Play it; returns how it differs, the calls, their results, and which model calls were asked otherwise."""
    golden = read_golden(path)
    found = await play(golden, read_bundle(recording_of(path)), path, CLOCK, agents=["support.paid_agent:AGENT"], tools=tools)
    events = [recorded.event() for recorded in found.history.events]
    results = [found.history.read(event.result) for event in events if isinstance(event, ToolFinished)]
    begun = [event for event in events if isinstance(event, ToolStarted)]
    return list(map(str, differences(golden.expect, observe(found.history), is_exact=True))), begun, results, list(found.drift)


async def test_what_a_server_answered_is_answered_again_without_it(tmp_path: Path) -> None:
    found, begun, results, drift = await played(await recorded(tmp_path), "recorded")
    assert (found, drift) == ([], [])
    assert [(event.tool, event.stub) for event in begun] == [("testing__add", "recorded"), ("testing__pid", "recorded"), ("finish", "recorded")]
    assert "'b' is a required property" in results[0]
    assert results[1] == "5"


async def test_a_tool_of_a_server_cannot_really_run_and_says_so(tmp_path: Path) -> None:
    found, begun, results, _ = await played(await recorded(tmp_path), "real")
    assert [(event.tool, event.stub) for event in begun][:2] == [("testing__add", ""), ("testing__pid", "recorded")]
    assert "testing__add is a tool of the MCP server testing, which no golden task reaches; with --tools recorded it answers as it did" in results
    assert [line.split(":")[0] for line in found] == ["tasks.task.tools"]


async def test_a_page_that_was_cited_is_cited_again_without_the_web(tmp_path: Path) -> None:
    store = MemoryStore()
    async with serving({"/refunds": page("Refunds are paid within 14 days.", "text/plain")}) as site:
        pages, url = WebPages(store, CLOCK, Hosts((site.host,), HOSTS_SETTING)), site.url("/refunds")
        cited = {"answer": "Within 14 days [1].", "citations": [{"source": url, "line": 3, "quote": "paid within 14 days"}]}
        turns = [[("fetch_url", json.dumps({"url": url}))], [("submit_findings", json.dumps(cited))]]
        agent = research_agent(store, MemoryKnowledge(store), web=(pages.tool(),))
        path = await kept(tmp_path, with_memory(agent, store, LocalMemories(store), CLOCK), turns)
    assert [task["tools"] for task in (read_golden(path).expect.tasks or {}).values()] == [["fetch_url", "submit_findings"]]
    found, begun, results, drift = await played(path, "recorded")
    assert (found, drift) == ([], [])
    assert [(event.tool, event.stub) for event in begun] == [("fetch_url", "recorded"), ("submit_findings", "recorded")]
    assert "Refunds are paid" in results[0]
