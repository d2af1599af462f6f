"""Nothing that we start outlives us, however we end; and the guard that watches the tests for it does notice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.reaper import descendants, left_over

SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from crewlog.events.server_nats import NatsServer

async def main():
    server = NatsServer(Path(sys.argv[1]), {"operator": "x"})
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

ENDLESS = """
import os, time, pytest

@pytest.fixture(scope="session")
def crew():
    yield
    os.write(1, b"the crew was stopped\\n")

def test_endless(crew):
    os.write(1, b"it runs\\n")
    time.sleep(300)
"""


async def test_the_server_ends_with_its_killed_parent(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", SUPERVISOR, str(tmp_path / "nats"), stdout=subprocess.PIPE)
    assert parent.stdout is not None
    server = int(await parent.stdout.readline())
    assert _lives(server)
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    await _until(lambda: not _lives(server))


async def test_the_guard_finds_a_daemon_that_detached_itself(tmp_path: Path) -> None:
    ready = tmp_path / "pid"
    script = f"setsid sh -c 'echo $$ > {ready}.new; mv {ready}.new {ready}; exec sleep 60' & while [ ! -e {ready} ]; do :; done"
    shell = await asyncio.create_subprocess_exec("sh", "-c", script)
    await shell.wait()
    daemon = int(ready.read_text())
    try:
        assert "sleep 60" in left_over(os.getpid(), patience_s=0)[daemon]
    finally:
        os.kill(daemon, signal.SIGKILL)
    await _until(lambda: daemon not in descendants(os.getpid()))


async def test_a_test_run_that_is_told_to_end_stops_what_it_started(tmp_path: Path) -> None:
    (tmp_path / "test_endless.py").write_text(ENDLESS)
    (tmp_path / "pytest.ini").touch()  # none of the settings of this run, but its plugins
    command = (sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-p", "conftest", tmp_path)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, env=env, stdout=subprocess.PIPE)
    assert run.stdout is not None
    async with asyncio.timeout(60):
        while (line := await run.stdout.readline()) != b"it runs\n":
            assert line
        run.terminate()
        rest = await run.stdout.read()
        assert await run.wait() == pytest.ExitCode.INTERRUPTED
    assert b"the crew was stopped\n" in rest


def _lives(pid: int) -> bool:
    return pid in descendants(os.getpid())


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 — other people's processes send no signal
            await asyncio.sleep(0.01)
