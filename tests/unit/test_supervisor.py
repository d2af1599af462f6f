"""What a supervisor says and writes about its crew when a disk is full or its console is gone: the crew is kept, and stopped, all the same."""

from __future__ import annotations

import asyncio
import errno
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crewlog.events.clock import SystemClock
from crewlog.events.config import load
from crewlog.events.memory_bus import MemoryBroker, MemoryBus
from crewlog.orchestrator.home import Home
from crewlog.orchestrator.servers import Servers
from crewlog.orchestrator.supervisor import Supervisor


class Gone(io.StringIO):
    """A console that nobody reads any more."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


@contextmanager
def a_supervisor(home: Path, console: io.StringIO, said: list[str]) -> Iterator[Supervisor]:
    Home(home).prepare()
    crew = Supervisor(load(home=home), {}, clock=SystemClock(), console=console, on_phase=said.append)
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
    async with asyncio.timeout(10):
        await asyncio.wait({keeping, asyncio.ensure_future(server.runs.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert (keeping.done(), server.starts) == (False, 2)
    assert any("No space left on device" in line for line in said)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
