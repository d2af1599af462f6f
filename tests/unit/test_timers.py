"""Due times of runs: those that are over, or moved, leave nothing behind until their time would have come."""

from __future__ import annotations

import asyncio
from uuid import UUID

from msgspec.structs import replace
from support.decider import Spec, submit

from crewlog.events.clock import SystemClock
from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.events.store import OCCURRED_US_END
from crewlog.orchestrator.commands import ApprovalAsked
from crewlog.orchestrator.timers import Timers
from crewlog.schemas.ids import ApprovalId, Hash, RunId
from crewlog.schemas.payload import EMPTY
from crewlog.schemas.task_events import ApprovalRequested


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


async def test_a_question_that_an_agent_lets_expire_never_stops_no_clock() -> None:
    other = Spec().given(submit(type="data")).state
    spec = Spec().given(submit(type="communicate"))
    never = ApprovalRequested(ApprovalId(UUID(int=1)), "t1-1", "send_email", EMPTY, Hash("d" * 64), "sends", 10**400)
    asking = spec.given(ApprovalAsked(spec.task("task"), never)).state
    store, woken = MemoryStore(MemoryLog()), asyncio.Event()
    timers = Timers(store, SystemClock())
    watching, *_ = timers.start(lambda _: woken.set())
    timers.note(asking)
    await asyncio.wait({watching}, timeout=0)
    timers.note(replace(other, run_id=RunId(UUID(int=2)), deadline_us=1))
    waking = asyncio.create_task(woken.wait())
    await asyncio.wait({watching, waking}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    await timers.stop()

    assert woken.is_set()
    assert asking.run_id in await store.take_due(OCCURRED_US_END, 10)
