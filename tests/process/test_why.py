"""`crewlog why` about real states: who holds a task, that nobody is there, a question to a person, and a turn that has not come."""

from __future__ import annotations

import asyncio
from typing import Any

from support.gate import a_gate, gated_agents
from support.gated_agent import KIND
from support.live_crew import LiveCrew

from crewlog.orchestrator.client import Client
from crewlog.schemas.parse import parse
from crewlog.schemas.plan import Plan


async def waits(crew: LiveCrew, name: object) -> dict[str, Any]:
    """Return the reason of each unfinished task of a run, by its key."""
    return {found["key"]: found for found in await asyncio.to_thread(crew.json, "why", str(name))}


async def until(client: Client, run_id: Any, status: str) -> None:
    async with asyncio.timeout(60):
        while status not in {task.status for task in await client.tasks(run_id)}:  # noqa: ASYNC110 — views send no signal
            await asyncio.sleep(0.05)


async def test_every_state_of_a_task_has_one_reason_that_says_what_ends_it(crew: LiveCrew, client: Client) -> None:
    async with a_gate() as gate, gated_agents(crew, gate) as agents:
        first = await agents.start(slots=1)
        keys = ("a", "b", "c", "d", "e")
        steps = [{"key": key, "type": KIND, "objective": "stamp finish"} for key in keys]
        plan = parse(Plan, {"steps": [*steps, {"key": "z", "type": KIND, "objective": "stamp finish", "depends_on": ["a"]}]}, "no plan")
        run_id = (await client.submit(plan)).run_id
        call = await gate.call()
        await until(client, run_id, "running")
        found = await waits(crew, run_id)
        (working,) = [one for one in found.values() if one["reason"] == "lease"]
        assert f"held by {working['worker']} since" in working["detail"]
        assert found["z"]["reason"] == "dependency"
        # how many of them lie in the queue depends on whether the orchestrator has heard of the worker's slots yet
        waiting = [found[key] for key in keys if found[key]["reason"] in ("queue", "fairness")]
        assert len(waiting) == 4
        held_back = [one for one in waiting if one["reason"] == "fairness"]
        assert sum("it is next" in one["detail"] for one in held_back) == bool(held_back)

        await agents.kill(first)
        found = await waits(crew, run_id)
        assert "does not answer" in found[working["key"]]["detail"]
        assert {found[key]["reason"] for key in keys if key != working["key"]} == {"no_worker"}
        said = (await asyncio.to_thread(crew.run, "why", working["task_id"][:13])).stdout
        assert f"an agent of kind {KIND}: crewlog agent module:ATTR" in said
        assert call.pid == first

        await client.cancel(run_id, reason="enough was seen")
        await client.wait(run_id)
        assert await waits(crew, run_id) == {}
