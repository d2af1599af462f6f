"""The gate at which the tools of `gated_agent` stop: a test sees each call as it happens and decides when it returns."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from support.live_crew import LiveCrew

from crewlog.events.readiness import READY_FD

COMMAND = (sys.executable, "-P", "-m", "support.gated_agent")
TESTS = Path(__file__).parents[1]
READY_WITHIN_S = 120.0
PROBE = "probe "
"""What the name of a tool is preceded by when its probe asks."""


class Call(NamedTuple):
    """One call of a tool that is under way right now, in process `pid`."""

    tool: str
    task_id: str
    key: str
    pid: int
    writer: asyncio.StreamWriter
    answer: str = "done"

    def let_through(self) -> None:
        """Let the call return."""
        self.writer.write(f"{self.answer}\n".encode())


class Gate:
    """Calls in the order in which they came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[Call] = []
        self._waiting: asyncio.Queue[Call] = asyncio.Queue()
        self._open = False

    async def call(self) -> Call:
        """Wait for the next call and hold it."""
        async with asyncio.timeout(120):
            return await self._waiting.get()

    def open(self) -> None:
        """Let every call through from now on."""
        self._open = True
        while not self._waiting.empty():
            self._waiting.get_nowait().let_through()

    async def arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = Call(**json.loads(await reader.readline()), writer=writer)
        if call.tool.startswith(PROBE):  # what has reached the gate under this key has happened
            happened = any((one.tool, one.key) == (call.tool.removeprefix(PROBE), call.key) for one in self.seen)
            call = call._replace(answer="happened" if happened else "did_not_happen")
        self.seen.append(call)
        if self._open:
            call.let_through()
        else:
            self._waiting.put_nowait(call)
        await reader.read()  # until the other end is closed, by whatever
        writer.close()


@asynccontextmanager
async def a_gate() -> AsyncIterator[Gate]:
    """Hold a gate until the test is over."""
    with tempfile.TemporaryDirectory(prefix="gate-") as folder:
        gate = Gate(Path(folder) / "socket")
        server = await asyncio.start_unix_server(gate.arrived, gate.path)
        try:
            yield gate
        finally:
            server.close()
            for call in gate.seen:
                call.writer.close()


class GatedAgents:
    """Processes of the gated kind beside a crew, in the place of a user who runs them."""

    def __init__(self, crew: LiveCrew, gate: Gate) -> None:
        self._env = {**crew.env, "GATE": str(gate.path), "PYTHONPATH": str(TESTS)}
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    async def start(self, *, slots: int = 16, env: Mapping[str, str] | None = None) -> int:
        """Start one that works on so many tasks at once, wait until it is registered, and return its pid."""
        ready, child = os.pipe()
        process = subprocess.Popen(COMMAND, env={**self._env, **(env or {}), "CREWLOG_SLOTS": str(slots), READY_FD: str(child)}, pass_fds=(child,))  # noqa: ASYNC220
        self.processes[process.pid] = process
        os.close(child)
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                assert await asyncio.to_thread(os.read, ready, 1) == b"1"
        finally:
            os.close(ready)
        return process.pid

    async def kill(self, pid: int) -> None:
        """Kill one with SIGKILL."""
        os.kill(pid, signal.SIGKILL)
        assert await asyncio.to_thread(self.processes.pop(pid).wait) == -signal.SIGKILL

    async def stop(self) -> None:
        """Stop all in good order."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            assert await asyncio.to_thread(process.wait, 90) == 0


@asynccontextmanager
async def gated_agents(crew: LiveCrew, gate: Gate) -> AsyncIterator[GatedAgents]:
    """Give the means to start gated agents; none is left afterwards."""
    agents = GatedAgents(crew, gate)
    try:
        yield agents
        gate.open()
        await agents.stop()
    finally:
        for process in agents.processes.values():
            process.kill()
            process.wait()
