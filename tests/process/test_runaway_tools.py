"""A worker with a tool that does not stop when it is cancelled ends all the same: by itself, or when it is told to."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.live_crew import CLI, LiveCrew
from support.ready import ready

from crewlog.agents.process import GAVE_UP

AGENT = """
import asyncio
from pydantic import BaseModel
from crewlog.agents import AgentSpec, ToolSpec, runaway

runaway.OBEYS_S = 0.5

class Nothing(BaseModel):
    pass

async def look(_, __):
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

AGENT = AgentSpec("stubborn", "Looks.", "Look.", (ToolSpec("look", "Look at it.", Nothing, look, effect="read", trust="trusted", timeout_s=0.5),))
"""


@contextmanager
def stubborn(crew: LiveCrew, folder: Path, *, slots: int) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "stubborn.py").write_text(AGENT)
    with ready([*CLI, "agent", "stubborn:AGENT"], env={**crew.env, "CREWLOG_SLOTS": str(slots)}, cwd=folder) as process:
        yield process


def test_the_process_ends_when_it_is_told_to_and_by_itself_when_no_slot_is_worth_anything(crew: LiveCrew, tmp_path: Path) -> None:
    with stubborn(crew, tmp_path, slots=50) as process:
        done = crew.json("submit", "Look at it", "--type", "stubborn", "--wait", "--timeout", "100")
        assert "look failed: look did not finish within 0.5 s" in done["answer"]
        process.terminate()
        assert process.wait(60) == 0
    with stubborn(crew, tmp_path, slots=1) as process:
        run = crew.json("submit", "Look at it again", "--type", "stubborn")["run_id"]
        assert process.wait(60) == GAVE_UP
    with stubborn(crew, tmp_path, slots=50):
        crew.run("watch", run)
