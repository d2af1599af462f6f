"""Another version of an agent is rolled out while a hundred runs wait for people and some are being worked on, and past runs are tried again under each
of several that are up."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from support.gate import GatedAgents, a_gate, gated_agents
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
    async with asyncio.timeout(90):  # a hundred runs beside another test's crew: the limit of the test is the one that counts
        while True:
            found = {RunId(a.run_id): a.approval_id for a in await client.queries().approvals(limit=1000) if a.run_id in wanted}
            if len(found) == len(wanted):
                return found  # type: ignore[return-value]
            await asyncio.sleep(0.1)


async def leave(agents: GatedAgents, pid: int) -> None:
    """Let one leave in good order."""
    process = agents.processes.pop(pid)
    process.terminate()
    assert await asyncio.to_thread(process.wait, 90) == 0


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
        await leave(agents, before)
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


async def begun_by(client: Client, run_id: RunId) -> set[str]:
    """Wait for the end of a run and return the versions that its tasks were begun under."""
    assert (await client.wait(run_id)).status == "completed"
    return {event.agent_version async for recorded in client.events(run_id) if isinstance(event := recorded.event(), TaskStarted)}


async def test_past_runs_are_tried_again_under_the_version_that_is_named_whoever_fetches_first(crew: LiveCrew, client: Client) -> None:
    def command(*arguments: str) -> Any:
        return asyncio.to_thread(crew.json, *arguments)

    async with a_gate() as gate, gated_agents(crew, gate) as agents:
        gate.open()
        second, _, _ = await asyncio.gather(*(agents.start(slots=slots, env={"GATED_VERSION": v}) for v, slots in (("2", 2), ("1", 64), ("3", 64))))
        parent = (await client.submit("look finish", kind=KIND)).run_id
        await client.wait(parent)
        named = ["1", "2", "3"] * 4
        forks = await asyncio.gather(*(client.forks.fork(parent, 1, agent_version=f"{KIND}={version}") for version in named))
        assert [await begun_by(client, fork.run_id) for fork in forks] == [{version} for version in named]

        is_first = f"{sys.executable} -c 'import sys; sys.exit(\"by version 1\" not in sys.stdin.read())'"
        found = await command("bisect", str(parent), "--over", "versions", "1,2,3", "--check", is_first)
        assert [(one["candidate"], one["verdict"]) for one in found["tried"]] == [("1", "good"), ("3", "bad"), ("2", "bad")]
        assert (found["outcome"], found["first_bad"]) == ("first bad", "2")
        for one, version in zip(found["tried"], "132", strict=True):
            assert await begun_by(client, RunId(UUID(one["run_id"]))) == {version}
        evaluated = await command("eval", "--last", "1", "--type", KIND, "--agent-version", f"{KIND}=2", "--model", "offline")
        assert await begun_by(client, RunId(UUID(evaluated["pairs"][0]["trial_id"]))) == {"2"}

        # what people agree to is done by who has it, although most slots are with others
        planned = [(await client.submit("pay finish", kind=KIND)).run_id for _ in range(8)]
        answers = await asked(client, planned)
        await asyncio.gather(*(client.decide(run_id, answers[run_id], "approved", actor="tester") for run_id in planned))  # type: ignore[arg-type]
        for run_id in planned:
            (version,) = await begun_by(client, run_id)
            events = [recorded.event() async for recorded in client.events(run_id)]
            assert [event.tool_version for event in events if isinstance(event, ToolStarted) and event.tool == "pay"] == [version]

        await leave(agents, second)
        waiting = (await client.forks.fork(parent, 1, agent_version=f"{KIND}=2")).run_id
        other = (await client.submit("look finish", kind=KIND)).run_id
        assert len(await begun_by(client, other)) == 1, "nothing else waits behind it"
        await client.indexed(max([recorded.position async for recorded in client.events(waiting)]), "runs")
        (told,) = await command("why", str(waiting))
        assert told["detail"] == f"waits for a worker of version 2 of kind {KIND}; versions live: 1, 3"
        assert told["ended_by"] == f"a worker of kind {KIND} that starts with version 2"
        await agents.start(env={"GATED_VERSION": "2"})
        assert await begun_by(client, waiting) == {"2"}
        assert "identical" in (await asyncio.to_thread(crew.run, "replay", str(waiting), "--verify")).stderr
