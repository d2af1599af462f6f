"""A run that is followed is told in the order of the log, however much of it comes at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from support.played import histories, quiet_log

from crewlog.events.memory_store import MemoryStore, restored
from crewlog.events.store import Recorded
from crewlog.orchestrator.client_events import run_events
from crewlog.schemas.errors import NotFound
from crewlog.schemas.ids import RunId, Stream

PLANNED = next(run for run in histories(quiet_log()) if len(run.task_streams) == 3)
"""A run whose tasks are dispatched one after the other."""


@pytest.mark.hand_written("the log ends in the middle of an append")
def test_events_of_tasks_that_begin_meanwhile_stand_among_the_others() -> None:
    whole = restored(PLANNED.events, ())

    async def follow(known: int) -> list[Recorded]:
        log, hint, told = restored(PLANNED.events[:known], ()), asyncio.Event(), []
        async for recorded in run_events(MemoryStore(log), PLANNED.run_id, hint):
            told.append(recorded)
            if len(told) == known:  # all the rest is recorded before the next look
                log.events, log.streams = whole.events, whole.streams
                hint.set()
        return told

    for known in range(1, len(PLANNED.events)):
        assert asyncio.run(follow(known)) == list(PLANNED.events)


@pytest.mark.hand_written("the log ends in the middle of an append")
def test_without_following_it_ends_with_what_is_there_and_a_run_that_is_not_there_is_not_found() -> None:
    store = MemoryStore(restored(PLANNED.events[:2], ()))

    async def read(run_id: RunId) -> list[Recorded]:
        return [recorded async for recorded in run_events(store, run_id, None)]

    assert asyncio.run(read(PLANNED.run_id)) == list(PLANNED.events[:2])
    with pytest.raises(NotFound):
        asyncio.run(read(RunId(PLANNED.events[0].event_id)))


@pytest.mark.hand_written("the log ends in the middle of an append")
def test_a_task_that_is_over_is_not_asked_about_again() -> None:
    known = next(n for n, recorded in enumerate(PLANNED.events, 1) if recorded.type == "TaskCompleted")
    log, whole, asked = restored(PLANNED.events[:known], ()), restored(PLANNED.events, ()), set[Stream]()

    class Asked(MemoryStore):
        async def read_streams(self, after: Mapping[Stream, int], *, types: frozenset[str] | None = None) -> Sequence[Recorded]:
            asked.update(after)
            return await super().read_streams(after, types=types)

    async def follow() -> list[Recorded]:
        told, hint = [], asyncio.Event()
        async for recorded in run_events(Asked(log), PLANNED.run_id, hint):
            told.append(recorded)
            if len(told) == known:
                log.events, log.streams = whole.events, whole.streams
                hint.set()
        return told

    assert asyncio.run(follow()) == list(PLANNED.events)
    assert PLANNED.events[known - 1].stream not in asked
