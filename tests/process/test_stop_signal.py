"""A process that is told to stop does so in good order; told twice, at once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

STUBBORN = """
import asyncio
from crewlog.events.event_loop import new_event_loop
from crewlog.events.stop_signal import stop_on_signals

async def main():
    stop = stop_on_signals()
    print("ready", flush=True)
    await stop.wait()
    print("stopping", flush=True)
    try:
        await asyncio.Event().wait()  # work that never comes to its end
    finally:
        print("cleaned up", flush=True)

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_ends_a_process_that_is_still_stopping(signum: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", STUBBORN, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    process.send_signal(signum)
    assert await process.stdout.readline() == b"stopping\n"
    process.send_signal(signum)
    async with asyncio.timeout(60):
        assert await process.wait() == -signum
    assert await process.stdout.read() == b"", "it took the time to clean up"
