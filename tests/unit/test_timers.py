"""Due times of runs: those that are over, or moved, leave nothing behind until their time would have come."""

from __future__ import annotations

from uuid import UUID

from msgspec.structs import replace
from support.decider import Spec, submit

from crewlog.events.clock import SystemClock
from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.orchestrator.timers import Timers
from crewlog.schemas.ids import RunId


async def test_runs_that_are_over_long_before_their_deadline_are_not_kept() -> None:
    timers = Timers(MemoryStore(MemoryLog()), SystemClock())
    a_run = Spec().given(submit(type="data", timeout_seconds=86_400)).state
    for number in range(20_000):
        state = replace(a_run, run_id=RunId(UUID(int=number)))
        timers.note(state)
        if number % 100:
            timers.note(replace(state, status="completed"))

    assert len(timers._due) == 200
    assert len(timers._heap) < 5_000
    assert {(due_us, run_id) for run_id, due_us in timers._due.items()} <= set(timers._heap), "those that are open are all waited for"
