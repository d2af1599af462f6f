"""Starting a child may be cancelled at any moment: it neither hangs nor leaves the child behind."""

from __future__ import annotations

import asyncio
import os
from itertools import count

import pytest
from support.reaper import descendants

from crewlog.events.child_launch import spawn

QUIET = asyncio.subprocess.DEVNULL
_numbers = count(1)
"""What each child sleeps for tells it from what else runs below this process."""


@pytest.mark.parametrize("output", [QUIET, asyncio.subprocess.PIPE])
@pytest.mark.parametrize("turns", range(8))
async def test_a_start_that_is_cancelled_after_so_many_turns_of_the_loop_ends(turns: int, output: int) -> None:
    seconds = f"60.{next(_numbers)}"
    starting = asyncio.create_task(spawn("sleep", seconds, stdin=QUIET, stdout=output))
    for _ in range(turns):
        await asyncio.sleep(0)
    starting.cancel()
    async with asyncio.timeout(60):
        try:
            process = await starting
        except asyncio.CancelledError:
            pass
        else:
            process.kill()
            await process.wait()
        while f"sleep {seconds}" in descendants(os.getpid()).values():  # noqa: ASYNC110 — nobody waits for it any more
            await asyncio.sleep(0.01)
