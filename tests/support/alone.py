"""One stretch of one task in virtual time: the real turn machine, journal and log, and a model of the test's own. Nothing is waited for."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from sim.loop import SimLoop
from support.scripted import Recorder
from support.toolbox import MemoryArtifacts

from crewlog.agents.journal import Journal
from crewlog.agents.model import Model
from crewlog.agents.task_state import opened_state
from crewlog.agents.work import Workshop, work
from crewlog.events.clock import SystemClock
from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import NO_STREAM, AppendRequest, Recorded, Write
from crewlog.schemas.ids import RunId, TaskId, task_stream
from crewlog.schemas.payload import Payload
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import TaskOpened

TASK_ID = UUID(int=1)


class Stretch(NamedTuple):
    """How it ended, and what stands in the log."""

    ended: str
    recorded: list[Recorded]
    store: MemoryStore

    def read(self, payload: Payload) -> str:
        """Return the text of a payload, from the log alone."""
        return payload.inline if payload.inline is not None else self.store.log.blobs[payload.ref].decode()  # type: ignore[index]


def carried_out(model: Model, *, context_window: int = 128_000, **task: Any) -> Stretch:
    """Carry a task of the recorder's agent as far as it goes; `task` overrides its fields."""
    loop = SimLoop(random.Random(1))
    try:
        stretch: Stretch = loop.run_until_complete(_carry_out(model, context_window, task))
        return stretch
    finally:
        loop.close()


async def _carry_out(model: Model, context_window: int, fields: dict[str, Any]) -> Stretch:
    store, clock = MemoryStore(), SystemClock()
    task = parse_task({"task_id": str(TASK_ID), "type": "data", "objective": "count", **fields})
    stream = task_stream(TaskId(TASK_ID))
    write = Write(stream, (TaskOpened("data", "a", 0, msgspec.Raw(msgspec.json.encode(task))),), NO_STREAM, "data")
    await store.append(AppendRequest((write,), [clock.new_id()], clock.now_us(), RunId(TASK_ID), TaskId(TASK_ID)))
    shop = Workshop("w1", Recorder().agent(), (model,), MemoryArtifacts(), clock, Path("/nonexistent"), context_window=context_window)
    ended = await work(shop, Journal(store, clock, opened_state(task)), attempt=1)
    return Stretch(ended, list(await store.read_streams({stream: 0})), store)
