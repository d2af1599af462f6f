"""Nothing that we start outlives us, however we end; and the guard that watches the tests for it does notice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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


def _lives(pid: int) -> bool:
    return pid in descendants(os.getpid())


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 — other people's processes send no signal
            await asyncio.sleep(0.01)
