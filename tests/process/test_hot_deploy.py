"""Another version of an agent is rolled out while a hundred runs wait for people and some are being worked on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from support.gate import a_gate, gated_agents
from support.gated_agent import KIND
from support.live_crew import LiveCrew

from crewlog.orchestrator.client import Client
from crewlog.schemas.ids import RunId
from crewlog.schemas.task_events import TaskMoved, TaskStarted, ToolStarted

SUSPENDED = 100
IN_FLIGHT = 4


async def asked(client: Client, runs: Sequence[RunId]) -> dict[RunId, str]:
    """Wait until every run asks a person, and return what to answer."""
    wanted = set(runs)
    async with asyncio.timeout(40):
        while True:
            found = {RunId(a.run_id): a.approval_id for a in await client.queries().approvals(limit=1000) if a.run_id in wanted}
            if len(found) == len(wanted):
                return found  # type: ignore[return-value]
            await asyncio.sleep(0.1)


@pytest.mark.timeout(180)
async def test_runs_finish_under_the_version_they_planned_with_or_move_when_that_is_wanted(crew: LiveCrew, client: Client) -> None:
    async with a_gate() as gate, gated_agents(crew, gate) as agents:
        before = await agents.start(slots=64)
        submitted = await asyncio.gather(*(client.submit("pay finish", kind=KIND) for _ in range(SUSPENDED)))
        suspended = [one.run_id for one in submitted]
        working = [(await client.submit("stamp pay finish", kind=KIND)).run_id for _ in range(IN_FLIGHT)]
        for _ in range(IN_FLIGHT):
            (await gate.call()).let_through()
        runs = [*suspended, *working]
        answers = await asked(client, runs)
        # the new version beside the old one, which then leaves in good order
        later = {"GATED_VERSION": "2"}
        await asyncio.gather(agents.start(slots=64, env=later), agents.start(slots=64, env={**later, "CREWLOG_AGENT_CHANGE": "move"}))
        old = agents.processes.pop(before)
        old.terminate()
        assert await asyncio.to_thread(old.wait, 30) == 0
        await asyncio.gather(*(client.decide(run_id, answers[run_id], "approved", actor="tester") for run_id in runs))  # type: ignore[arg-type]
        fresh = (await client.submit("pay finish", kind=KIND)).run_id
        answers = await asked(client, [fresh])
        await client.decide(fresh, answers[fresh], "approved", actor="tester")  # type: ignore[arg-type]
        ended = await asyncio.gather(*(client.wait(run_id) for run_id in (*runs, fresh)))
        assert Counter(run.status for run in ended) == {"completed": len(runs) + 1}
        versions, moved = Counter[str](), 0
        for run_id in runs:
            events = [recorded.event() async for recorded in client.events(run_id)]
            versions.update(event.tool_version for event in events if isinstance(event, ToolStarted) and event.tool == "pay")
            moves = [event for event in events if isinstance(event, TaskMoved)]
            moved += len(moves)
            assert len({event.setup for event in events if isinstance(event, TaskStarted)}) == 1, "every stretch began with the prompt of the first"
        assert versions == {"1": len(runs)}, "what people agreed to is what was done"
        assert 0 < moved < len(runs), "those that the moving worker took went on under its version"
        events = [recorded.event() async for recorded in client.events(fresh)]
        assert [event.tool_version for event in events if isinstance(event, ToolStarted) and event.tool == "pay"] == ["2"]
        for run_id in (suspended[0], working[0], fresh):
            assert "identical" in (await asyncio.to_thread(crew.run, "replay", str(run_id), "--verify")).stderr
