"""Every fault point, in a real process: killed there, or stopped there and woken when another one has finished the work."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from support.audit import ended_well, follows_the_rules
from support.gate import Gate, a_gate, gated_agents
from support.gated_agent import KIND
from support.live_crew import CLI, LiveCrew, a_crew

from crewlog.events import faults
from crewlog.events.readiness import READY_FD
from crewlog.orchestrator.client import Client
from crewlog.schemas.ids import RunId
from crewlog.schemas.task import parse_task

OF_ORCHESTRATOR: Final = ("after_run_append", "after_work_published")
OF_REQUESTS: Final = ("after_budget_change",)
"""Struck in test_budget_crew: nobody asks for these here."""
OF_AGENT: Final = tuple(point for point in faults.POINTS if point not in OF_ORCHESTRATOR + OF_REQUESTS)
ACTIONS: Final = ("kill", "stop")


@pytest.fixture(scope="module")
def sturdy() -> Iterator[LiveCrew]:
    with a_crew("--agents", "research=0,code=0,communicate=0,planner=0,data=0", CREWLOG_SWEEP_INTERVAL_S="0.1", CREWLOG_DISPATCH_LEASE_S="0.05") as crew:
        yield crew


@pytest.fixture
async def client(sturdy: LiveCrew) -> AsyncIterator[Client]:
    async with sturdy.client() as connected:
        yield connected


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    async with a_gate() as gate:
        gate.open()
        yield gate


def armed(point: str, action: str, markers: Path) -> dict[str, str]:
    return {"CREWLOG_FAULT": f"{point}:1:{action}", "CREWLOG_FAULT_ONCE": str(markers)}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 — what stops itself gives no signal
            await asyncio.sleep(0.02)


async def struck(process: subprocess.Popen[bytes], marker: Path, action: str) -> None:
    """Wait until the process was struck by its fault."""
    if action == "kill":
        assert await asyncio.to_thread(process.wait, 30) == -signal.SIGKILL
    else:
        await until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    assert marker.exists(), "the point was reached"  # noqa: ASYNC240


async def wake_and_stop(process: subprocess.Popen[bytes]) -> None:
    """Let a stopped process go on where it was, to the end of what it was doing."""
    process.send_signal(signal.SIGCONT)
    process.terminate()
    assert await asyncio.to_thread(process.wait, 30) == 0


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("point", OF_AGENT)
async def test_an_agent_is_struck(sturdy: LiveCrew, client: Client, gate: Gate, tmp_path: Path, point: str, action: str) -> None:
    async with gated_agents(sturdy, gate) as agents:
        first = await agents.start(slots=1, env=armed(point, action, tmp_path))
        victim = agents.processes.pop(first)
        try:
            run_id = (await client.submit("stamp send finish", kind=KIND)).run_id
            await struck(victim, tmp_path / point, action)
            await agents.start()
            await ended_well(client, [run_id])
            if action == "stop":
                await wake_and_stop(victim)
                await follows_the_rules(client, run_id)
        finally:
            victim.kill()
            victim.wait()
    keys = {tool: [call.key for call in gate.seen if call.tool == tool] for tool in ("stamp", "send")}
    assert len(keys["send"]) == 1, "what cannot be repeated was not"
    assert len(set(keys["stamp"])) == 1
    assert len(keys["stamp"]) <= 2


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("point", OF_ORCHESTRATOR)
async def test_an_orchestrator_is_struck(sturdy: LiveCrew, client: Client, gate: Gate, tmp_path: Path, point: str, action: str) -> None:
    async with gated_agents(sturdy, gate) as agents, a_second_orchestrator(sturdy, armed(point, action, tmp_path)) as victim:
        await agents.start()
        runs = []
        while not (tmp_path / point).exists():  # who of the two takes a message is up to NATS: one after the other, until it was the armed one
            assert len(runs) < 50
            runs.append(await publish(sturdy, client))
            await ended_well(client, runs[-1:])
        await struck(victim, tmp_path / point, action)
        if action == "stop":
            await wake_and_stop(victim)
        for run_id in runs:
            await follows_the_rules(client, run_id)
    assert [call.tool for call in gate.seen] == ["stamp", "send"] * len(runs)


async def publish(crew: LiveCrew, client: Client) -> RunId:
    """Put a task on the queue and wait until it is in the log."""
    task = parse_task({"task_id": str(uuid.uuid4()), "type": KIND, "objective": "stamp send finish"})
    await client._bus.publish(f"tasks.default.{KIND}", task.model_dump_json().encode())
    async with asyncio.timeout(30):
        while not await (await client.store()).read_run(RunId(task.run_id)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return RunId(task.run_id)


@asynccontextmanager
async def a_second_orchestrator(crew: LiveCrew, env: dict[str, str]) -> AsyncIterator[subprocess.Popen[bytes]]:
    ready, child = os.pipe()
    process = subprocess.Popen([*CLI, "orchestrator"], env={**crew.env, **env, READY_FD: str(child)}, pass_fds=(child,))  # noqa: ASYNC220
    os.close(child)
    try:
        async with asyncio.timeout(30):
            assert await asyncio.to_thread(os.read, ready, 1) == b"1"
        yield process
    finally:
        os.close(ready)
        process.kill()
        process.wait()
