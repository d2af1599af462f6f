"""An agent on another machine, as good as: in a network namespace of its own, whose link is cut in the middle of its work and mended again."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from itertools import count

import pytest
from support.audit import ended_well, events
from support.gate import COMMAND, TESTS, Gate, a_gate, gated_agents
from support.gated_agent import KIND
from support.live_crew import LiveCrew, a_crew

from crewlog.events.credentials import load_credentials
from crewlog.events.readiness import READY_FD
from crewlog.orchestrator.home import Home

HERE, THERE = "10.213.77.1", "10.213.77.2"
_numbers = count()
"""A link goes away a moment after its namespace: each has a name of its own."""
NOBODY = "research=0,code=0,communicate=0,planner=0,data=0"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def a_namespace() -> Iterator[tuple[str, str]]:
    """Make a namespace with one link to us; yields its name and that of our end of the link."""
    number = f"{os.getpid() % 10_000}{next(_numbers)}"
    name, link = f"crew{number}", f"cw{number}"
    try:
        _ip("netns", "add", name)
        _ip("link", "add", link, "type", "veth", "peer", "name", "far", "netns", name)
        _ip("addr", "add", f"{HERE}/30", "dev", link)
        _ip("link", "set", link, "up")
        for arguments in (("addr", "add", f"{THERE}/30", "dev", "far"), ("link", "set", "far", "up"), ("link", "set", "lo", "up")):
            _ip("-n", name, *arguments)
        yield name, link
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@asynccontextmanager
async def forwarded(port: int) -> AsyncIterator[int]:
    """Let the other end of the link reach a server that listens on loopback."""
    running: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(65_536):
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.transport.abort()  # what is still buffered may have nowhere to go

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        running.update(asyncio.create_task(pair) for pair in (copy(reader, far_writer), copy(far_reader, writer)))

    server = await asyncio.start_server(serve, HERE, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@asynccontextmanager
async def a_far_agent(crew: LiveCrew, gate: Gate, namespace: str, nats: int, postgres: int) -> AsyncIterator[int]:
    credentials = load_credentials(crew.home)
    env = {
        **crew.env,
        "GATE": str(gate.path),
        "PYTHONPATH": str(TESTS),
        "CREWLOG_SLOTS": "1",
        "CREWLOG_NATS_URL": credentials.nats_url("specialist", nats).replace("127.0.0.1", HERE),
        "CREWLOG_DATABASE_URL": credentials.postgres_url("crewlog_specialist", postgres).replace("127.0.0.1", HERE),
    }
    ready, child = os.pipe()
    command = ["ip", "netns", "exec", namespace, *COMMAND]  # it becomes the agent: same process
    process = subprocess.Popen(command, env={**env, READY_FD: str(child)}, pass_fds=(child,))  # noqa: ASYNC220
    os.close(child)
    try:
        async with asyncio.timeout(60):
            assert await asyncio.to_thread(os.read, ready, 1) == b"1"
        yield process.pid
    finally:
        os.close(ready)
        process.kill()
        process.wait()


def missing() -> str:
    if shutil.which("ip") is None:
        return "ip is not installed (package iproute2)"
    if os.geteuid() != 0:
        return "making a network namespace takes root"
    try:
        with a_namespace():
            return ""
    except subprocess.CalledProcessError as error:
        return f"this machine makes no network namespace: {error.stderr.decode().strip()}"


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_an_agent_is_cut_off_its_task_goes_on_elsewhere_and_it_comes_back() -> None:
    if reason := missing():
        pytest.skip(reason)
    env = {"CREWLOG_SWEEP_INTERVAL_S": "0.3", "CREWLOG_DISPATCH_LEASE_S": "0.5", "CREWLOG_ACK_WAIT_S": "2"}
    with a_namespace() as (namespace, link), a_crew("--agents", NOBODY, **env) as crew:
        state = Home(crew.home).state()
        assert state is not None
        async with AsyncExitStack() as closing:
            client, gate = await closing.enter_async_context(crew.client()), await closing.enter_async_context(a_gate())
            nats = await closing.enter_async_context(forwarded(state.nats_port or 0))
            postgres = await closing.enter_async_context(forwarded(state.database_port or 0))
            async with a_far_agent(crew, gate, namespace, nats, postgres) as far, gated_agents(crew, gate) as agents:
                run_id = (await client.submit("stamp finish", kind=KIND)).run_id
                held = await gate.call()
                assert held.pid == far
                _ip("link", "set", link, "down")
                held.let_through()  # the effect has happened, and nobody can be told
                near = await agents.start(slots=1)
                repeated = await gate.call()
                assert (repeated.pid, repeated.key) == (near, held.key)
                repeated.let_through()
                await ended_well(client, [run_id])
                before = await events(client, run_id)
                _ip("link", "set", link, "up")
                await agents.kill(near)
                later = (await client.submit("stamp finish", kind=KIND)).run_id
                call = await gate.call()
                assert call.pid == far, "it is there again, without its old task"
                call.let_through()
                await ended_well(client, [later])
                assert await events(client, run_id) == before
