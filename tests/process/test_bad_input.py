"""Mistakes of people: unknown and ambiguous ids, tools that do not exist, agents that lack something, Ctrl-C at any moment."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.audit import ended_well, events
from support.gate import Gate, a_gate, gated_agents
from support.gated_agent import KIND
from support.live_crew import CLI, LiveCrew

from crewlog.events.bus import Message
from crewlog.events.credentials import load_credentials
from crewlog.events.nats_bus import NatsBus
from crewlog.events.readiness import READY_FD
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.home import Home
from crewlog.schemas.errors import NotFound
from crewlog.schemas.task_events import ToolFinished

LACKING = """
from crewlog.agents import AgentSpec, Requirement

AGENT = AgentSpec("surveyor", "Measures land.", "Measure.", requires=(Requirement("no_such_module", "data"),))
"""


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    async with a_gate() as gate:
        yield gate


@pytest.mark.parametrize("command", ["show", "watch", "events", "why", "replay", "cancel", "approve"])
def test_what_does_not_exist_is_not_found(crew: LiveCrew, command: str) -> None:
    assert "ffffffff" in crew.run(command, "ffffffff", code=3).stderr


@pytest.mark.parametrize("name", ["zz", "00000000-0000-4000-8000-000000000000", "no such run", "' or 1=1 --", "%", "_", "a\0b"])
async def test_a_name_that_is_no_id_is_not_found(client: Client, name: str) -> None:
    with pytest.raises(NotFound, match="matches nothing"):
        await client.run(name)


async def test_an_id_that_fits_two_runs_names_both(crew: LiveCrew, client: Client) -> None:
    ids = ["abcdef00-0000-4000-8000-00000000000a", "abcdef00-0000-4000-8000-00000000000b"]
    for task_id in ids:
        task = json.dumps({"task_id": task_id, "type": "data", "objective": "Count the rows."})
        await asyncio.to_thread(crew.run, "submit", "--file", "-", "--wait", stdin=task)
    said = (await asyncio.to_thread(crew.run, "show", "abcdef", code=3)).stderr
    assert all(task_id in said for task_id in ids)
    assert (await asyncio.to_thread(crew.json, "show", ids[0]))["run_id"] == ids[0]


async def test_a_tool_that_does_not_exist_is_told_to_the_model_and_nothing_runs(crew: LiveCrew, client: Client, gate: Gate) -> None:
    async with gated_agents(crew, gate) as agents:
        await agents.start()
        run_id = (await client.submit("conjure finish", kind=KIND)).run_id
        await ended_well(client, [run_id])
    refused = next(event for r in await events(client, run_id) if isinstance(event := r.event(), ToolFinished))
    assert (refused.tool, refused.status) == ("conjure", "refused")
    assert "there is no tool 'conjure'; the tools are" in (refused.result.inline or "")
    assert gate.seen == []


async def test_an_agent_that_lacks_an_extra_says_how_to_get_it_and_is_given_no_task(crew: LiveCrew, tmp_path: Path) -> None:
    (tmp_path / "land.py").write_text(LACKING)
    ready, child = os.pipe()
    process = subprocess.Popen([*CLI, "agent", "land:AGENT"], cwd=tmp_path, env={**crew.env, READY_FD: str(child)}, pass_fds=(child,))  # noqa: ASYNC220
    os.close(child)
    try:
        assert await asyncio.to_thread(os.read, ready, 1) == b"1"
        (shown,) = await asyncio.to_thread(crew.agents, "surveyor")
        assert "crewlog[data]" in shown["unavailable"]
        plan = {"steps": [{"key": "a", "type": "surveyor", "objective": "Measure."}]}
        for arguments, stdin in ((("Measure.", "--type", "surveyor"), ""), (("--file", "-"), json.dumps(plan))):
            refused = await asyncio.to_thread(crew.run, "submit", *arguments, stdin=stdin, code=2)
            assert "crewlog[data]" in refused.stderr
    finally:
        os.close(ready)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 90) == 0


@pytest.mark.parametrize("command", ["submit", "watch"])
async def test_ctrl_c_detaches_and_the_run_goes_on(crew: LiveCrew, client: Client, gate: Gate, command: str) -> None:
    async with gated_agents(crew, gate) as agents:
        await agents.start()
        arguments = ["submit", "stamp finish", "--type", KIND, "--wait"]
        if command == "watch":
            arguments = ["watch", str((await client.submit("stamp finish", kind=KIND)).run_id)]
        process = await asyncio.create_subprocess_exec(
            *CLI, *arguments, env=crew.env, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        call = await gate.call()
        async with asyncio.timeout(90):
            while b"ToolStarted" not in await process.stderr.readline():
                pass
            process.send_signal(signal.SIGINT)
            _, said = await process.communicate()
        found = re.search(r"crewlog watch ([0-9a-f]{8})", said.decode())
        assert process.returncode == 130
        assert found
        assert b"Traceback" not in said
        call.let_through()
        await ended_well(client, [await client.find_run(found[1])])
    assert (await asyncio.to_thread(crew.run, "watch", found[1])).returncode == 0


async def test_ctrl_c_while_a_task_is_being_sent_still_says_how_to_come_back(crew: LiveCrew, client: Client) -> None:
    orchestrator = next(process.pid for process in await client.processes() if process.name == "orchestrator") or 0
    state = Home(crew.home).state()
    assert state is not None
    ear = await NatsBus.connect(load_credentials(crew.home).nats_url("orchestrator", state.nats_port or 0), name="test")
    sent = asyncio.Event()

    async def hear(_: Message) -> None:
        sent.set()

    await ear.subscribe("api.default.tasks.submit", hear)
    os.kill(orchestrator, signal.SIGSTOP)  # nobody answers
    try:
        process = await asyncio.create_subprocess_exec(*CLI, "submit", "Count.", "--type", "data", env=crew.env, stderr=asyncio.subprocess.PIPE)
        async with asyncio.timeout(90):
            await sent.wait()
        process.send_signal(signal.SIGINT)
    finally:
        os.kill(orchestrator, signal.SIGCONT)
        await ear.close()
    async with asyncio.timeout(90):
        _, said = await process.communicate()
    assert process.returncode in (0, 130)  # 0: the answer was quicker than the signal
    found = re.search(r"crewlog watch ([0-9a-f]{8})", said.decode())
    assert found
    await asyncio.to_thread(crew.run, "watch", found[1])
