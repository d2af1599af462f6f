"""Wall clock and standstill, in virtual time: nothing is waited for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from sim.loop import SimLoop
from support.scripted import Recorder, calls
from support.toolbox import MemoryArtifacts

from crewlog.agents.journal import Journal
from crewlog.agents.model import OnText
from crewlog.agents.task_state import opened_state
from crewlog.agents.work import Workshop, work
from crewlog.events.clock import SystemClock
from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import NO_STREAM, AppendRequest, Write
from crewlog.schemas.blocks import ModelReply, ModelRequest
from crewlog.schemas.ids import RunId, TaskId, task_stream
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import AttemptFailed, TaskEvent, TaskOpened

TASK_ID = UUID(int=1)


@dataclass
class SlowModel:
    """Says one word after the other, `pause_s` apart."""

    words: int
    pause_s: float
    wire: str = "test.wire"
    provider: str = "test"
    name: str = "slow"
    simulated: bool = False

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        for _ in range(self.words):
            await asyncio.sleep(self.pause_s)
            if on_text is not None:
                on_text("word ")
        return calls(("submit", '{"text":"done"}'))


def carried_out(model: SlowModel, **limits: Any) -> tuple[str, TaskEvent]:
    """Carry a task out; returns how it ended and its last event."""

    async def scenario() -> tuple[str, TaskEvent]:
        store, clock = MemoryStore(), SystemClock()
        task = parse_task({"task_id": str(TASK_ID), "type": "data", "objective": "count", **limits})
        opened = TaskOpened("data", "a", 0, msgspec.Raw(task.model_dump_json().encode()))
        write = Write(task_stream(TaskId(TASK_ID)), (opened,), NO_STREAM, "data")
        await store.append(AppendRequest((write,), [clock.new_id()], clock.now_us(), RunId(TASK_ID), TaskId(TASK_ID)))
        shop = Workshop("w1", Recorder().agent(), (model,), MemoryArtifacts(), clock, Path("/nonexistent"))
        ended = await work(shop, Journal(store, clock, opened_state(task)), attempt=1)
        recorded = await store.read_streams({task_stream(TaskId(TASK_ID)): 0})
        return ended, recorded[-1].event()  # type: ignore[return-value]

    return _in_virtual_time(scenario())


def _in_virtual_time(scenario: Coroutine[Any, Any, Any]) -> Any:
    loop = SimLoop(random.Random(1))
    try:
        return loop.run_until_complete(scenario)
    finally:
        loop.close()


def failure(model: SlowModel, **limits: Any) -> tuple[str, bool, str]:
    ended, last = carried_out(model, **limits)
    assert ended == "failed"
    assert isinstance(last, AttemptFailed)
    return last.error.code, last.error.retryable, last.error.message


def test_an_answer_that_keeps_coming_is_no_standstill_however_long_it_takes() -> None:
    assert carried_out(SlowModel(words=20, pause_s=9.0), limits={"idle_seconds": 10})[0] == "completed"


def test_an_answer_that_stops_coming_is_a_standstill_worth_another_attempt() -> None:
    found = failure(SlowModel(words=20, pause_s=11.0), limits={"idle_seconds": 10})
    assert found == ("limit_idle_seconds", True, "limit idle_seconds reached: 10 of max 10, raise limits.idle_seconds to go on")


def test_the_time_of_a_task_has_an_end_whatever_still_comes() -> None:
    found = failure(SlowModel(words=200, pause_s=1.0), timeout_seconds=60, limits={"idle_seconds": 10})
    assert found == ("timeout", False, "limit timeout_seconds reached: 60 of max 60, raise timeout_seconds to go on")
