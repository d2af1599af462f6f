"""A worker that has lost its task writes nothing more, whatever others wrote meanwhile."""

from __future__ import annotations

import pytest
from support.logs import CLOCK, asked, new_run, new_task, opening, started, to_task

from crewlog.agents.journal import Journal
from crewlog.agents.task_state import opened_state
from crewlog.events.memory_store import MemoryStore
from crewlog.schemas.errors import ConflictError
from crewlog.schemas.ids import task_stream
from crewlog.schemas.task import AgentTask


@pytest.mark.hand_written("two workers of one task, played by hand")
async def test_what_follows_a_refused_append_is_not_written_although_its_version_is_there() -> None:
    store, run_id, task_id = MemoryStore(), new_run(), new_task()
    await store.append(opening(run_id, task_id))
    task = AgentTask(task_id=task_id, run_id=run_id, type="research", objective="x", key="step")
    journal = Journal(store, CLOCK, opened_state(task))
    await store.append(to_task(task_id, started(), expected=1))  # another worker was faster, by exactly one event
    journal.record(started())
    journal.send()
    journal.record(asked())
    with pytest.raises(ConflictError):
        await journal.commit()
    assert [recorded.type for recorded in await store.read_streams({task_stream(task_id): 0})] == ["TaskOpened", "TaskStarted"]
