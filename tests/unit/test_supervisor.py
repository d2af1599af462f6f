"""What a supervisor says and writes about its crew when a disk is full or its console is gone: the crew is kept, and stopped, all the same."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from crewlog.events.clock import SystemClock
from crewlog.events.config import load
from crewlog.events.grants import BUILT_IN_KINDS
from crewlog.events.memory_bus import MemoryBroker, MemoryBus
from crewlog.orchestrator import control
from crewlog.orchestrator.control import ask_supervisor
from crewlog.orchestrator.home import Home
from crewlog.orchestrator.servers import Servers
from crewlog.orchestrator.supervised import Program, Supervised
from crewlog.orchestrator.supervisor import Supervisor
from crewlog.schemas.errors import ConfigError, Unavailable


class Gone(io.StringIO):
    """A console that nobody reads any more."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


@contextmanager
def a_supervisor(home: Path, console: io.StringIO, said: list[str], copies: Mapping[str, int] | None = None) -> Iterator[Supervisor]:
    Home(home).prepare()
    crew = Supervisor(load(home=home), copies or {}, clock=SystemClock(), console=console, on_phase=said.append)
    yield crew
    crew._close_logs()


def test_what_a_child_says_is_in_its_log_although_the_console_is_gone(tmp_path: Path) -> None:
    with a_supervisor(tmp_path, Gone(), []) as crew:
        crew._write_line("research", "I am up")
        crew._write_line("research", "and working")
    assert (tmp_path / "logs" / "research.log").read_text() == "I am up\nand working\n"


def test_what_a_child_says_is_on_the_console_although_the_disk_is_full(tmp_path: Path) -> None:
    console = io.StringIO()
    with a_supervisor(tmp_path, console, []) as crew:
        (tmp_path / "logs" / "research.log").symlink_to("/dev/full")
        crew._write_line("research", "I am up")
    assert console.getvalue().split() == ["research", "I", "am", "up"]


def test_a_state_that_cannot_be_written_is_said_and_stops_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    with a_supervisor(tmp_path, io.StringIO(), said) as crew:
        (tmp_path / "state.new").mkdir()
        crew._set_phase("stopping")
        assert [line.split(":")[0] for line in said] == ["state.json is not up to date"]
        assert crew.state().phase == "stopping"


@pytest.mark.parametrize("body", [b"{", b"5", b"[1]", b'{"research": "many"}', b'{"nobody": 2}'])
async def test_what_is_no_number_of_copies_is_refused_with_an_answer(tmp_path: Path, body: bytes) -> None:
    broker = MemoryBroker()
    with a_supervisor(tmp_path, io.StringIO(), []) as crew:
        await crew._listen(MemoryBus(broker))
        answer = json.loads((await MemoryBus(broker).request("supervisor.scale", body, timeout_s=5)).data)
    assert (answer["ok"], answer["error"]["code"]) == (False, "contract")


class Struck:
    """A server that has ended, and that no disk has room for at first."""

    port, pid = 1, None

    def __init__(self) -> None:
        self.starts = 0
        self.runs = asyncio.Event()

    async def wait(self) -> int:
        if self.runs.is_set():
            await asyncio.get_running_loop().create_future()
        return 1

    async def start(self) -> None:
        self.starts += 1
        if self.starts == 1:
            raise OSError(errno.ENOSPC, "No space left on device", "nats.conf")
        self.runs.set()

    async def stop(self) -> None:
        """Nothing runs."""


async def test_a_server_that_has_no_room_to_start_again_is_started_once_it_has(tmp_path: Path) -> None:
    said: list[str] = []
    server = Struck()
    keeping = asyncio.create_task(Servers(load(home=tmp_path), Home(tmp_path), say=said.append)._keep(server))
    async with asyncio.timeout(60):
        await asyncio.wait({keeping, asyncio.ensure_future(server.runs.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert (keeping.done(), server.starts) == (False, 2)
    assert any("No space left on device" in line for line in said)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_who_scales_is_told_that_it_takes_long_and_not_that_nobody_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ANSWER_WITHIN_S", 0.2)
    broker = MemoryBroker()
    bus = MemoryBus(broker)
    with pytest.raises(Unavailable, match="no `crewlog up` runs"):
        await ask_supervisor(bus, "scale", {"research": 2})
    with a_supervisor(tmp_path, io.StringIO(), []) as crew:
        await crew._listen(MemoryBus(broker))
        async with crew._scaling:  # somebody else scales down, and a copy still works
            with pytest.raises(Unavailable, match=r"goes on.*\n.*crewlog status"):
                await ask_supervisor(bus, "scale", {"research": 2})
        crew.request_stop()


BUSY = """
import os, signal, sys, threading
told = threading.Event()
def finish(*_):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a worker does: a second one ends it at once
    print("finishing", flush=True)
    told.set()
signal.signal(signal.SIGTERM, finish)
os.write(int(os.environ['CREWLOG_READY_FD']), b'1')
while not told.is_set():
    signal.pause()
os.read(os.open(sys.argv[1], os.O_RDONLY), 1)
print("finished", flush=True)
"""
"""A worker that finishes what it works on, which takes until somebody writes to the pipe."""


class Console(io.StringIO):
    """Wakes whoever waits for what a child says."""

    def __init__(self) -> None:
        super().__init__()
        self.said = asyncio.Event()

    def write(self, text: str) -> int:
        self.said.set()
        return super().write(text)

    async def until(self, text: str) -> None:
        async with asyncio.timeout(60):
            while text not in self.getvalue():
                self.said.clear()
                await self.said.wait()


@asynccontextmanager
async def scaled_down(tmp_path: Path) -> AsyncIterator[tuple[Supervisor, Console, Supervised, asyncio.Task[dict[str, int]], Path]]:
    """A crew that has been told to have no research agents, and one of them that still finishes its work."""
    console, pipe = Console(), tmp_path / "pipe"
    os.mkfifo(pipe)
    with a_supervisor(tmp_path, console, [], dict.fromkeys(BUILT_IN_KINDS, 0) | {"research": 1}) as crew:
        argv = (sys.executable, "-c", BUSY, str(pipe))
        child = crew._children["research"] = Supervised(Program("research", "research", argv, dict(os.environ)), crew._write_line, clock=SystemClock())
        child.start()
        assert await child.settled()
        scaling = asyncio.create_task(crew.scale({"research": 0}))
        await console.until("finishing")
        try:
            yield crew, console, child, scaling, pipe
        finally:
            child.kill()
            await asyncio.gather(scaling, child.stop(grace_s=60), return_exceptions=True)


async def test_a_copy_that_goes_is_seen_until_it_has_gone(tmp_path: Path) -> None:
    async with scaled_down(tmp_path) as (crew, _, _, scaling, pipe):
        assert [(p.name, p.state) for p in crew.state().processes] == [("research", "stopping")]
        await asyncio.to_thread(pipe.write_text, "x")
        async with asyncio.timeout(60):
            assert (await scaling)["research"] == 0
        assert crew.state().processes == ()


async def test_a_crew_that_is_stopped_waits_for_a_copy_that_goes_and_begins_no_other(tmp_path: Path) -> None:
    async with scaled_down(tmp_path) as (crew, console, child, scaling, pipe):
        crew.request_stop()
        stopping = asyncio.create_task(crew._shut_down())
        later = asyncio.create_task(crew.scale({"research": 2}))
        await asyncio.sleep(0)
        assert not stopping.done()
        await asyncio.to_thread(pipe.write_text, "x")
        async with asyncio.timeout(60):
            await stopping
            refused = await asyncio.gather(scaling, later, return_exceptions=True)
        assert "finished" in console.getvalue()
        assert (child.state, child.exit_code) == ("stopped", 0)
        assert [(type(error), "being stopped" in str(error)) for error in refused] == [(ConfigError, True)] * 2
