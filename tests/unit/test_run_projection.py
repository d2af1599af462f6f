"""The fold of runs over random histories: what it says does not depend on how the log was cut into pages."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.histories import recorded_history, write_history
from support.run_tables import Tables, fold_in_bulk, fold_page, fold_pages

from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import Recorded
from crewlog.projections import runs, tasks
from crewlog.projections.catalog import all_projections
from crewlog.projections.rows import FINISHED
from crewlog.projections.run_projection import RunProjection
from crewlog.schemas.codec import EVENT_TYPES, Unknown
from crewlog.schemas.errors import ContractError
from crewlog.schemas.run_events import RUN_EVENTS
from crewlog.schemas.system_events import (
    BudgetChanged,
    ClaimsOpened,
    EffectClaimed,
    EffectSettled,
    McpToolPinned,
    RunStoodStill,
    ScheduleAdded,
    ScheduleFired,
    SchedulePaused,
    ScheduleRemoved,
    ScheduleResumed,
    WorkerDrained,
)
from crewlog.schemas.task_events import TASK_EVENTS, TERMINAL_TYPES

pytestmark = pytest.mark.hand_written("views are tried on histories of every shape")


def cut(events: Sequence[Recorded], random: Random) -> list[Sequence[Recorded]]:
    at, pages = 0, []
    while at < len(events):
        size = random.randrange(1, 12)
        pages.append(events[at : at + size])
        at += size
    return pages


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 300))
async def test_rows_do_not_depend_on_the_pages(seed: int, runs: int, moves: int) -> None:
    store, events = await recorded_history(write_history(Random(seed), runs=runs, moves=moves))
    at_once = await fold_pages(store, [events])
    in_pages = await fold_pages(store, cut(events, Random(seed)))
    forgetful = await fold_pages(store, cut(events, Random(seed + 1)), open_runs_max=1)
    rebuilt = await fold_in_bulk(store, cut(events, Random(seed + 2)), keep_max=Random(seed).choice([0, 5, 1000]))
    assert vars(at_once) == vars(in_pages) == vars(forgetful) == vars(rebuilt)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 150))
async def test_an_unfinished_task_has_one_reason_at_any_moment(seed: int, runs: int, moves: int) -> None:
    store, events = await recorded_history(write_history(Random(seed), runs=runs, moves=moves))
    projection, tables = RunProjection(store), Tables()
    for event in events:
        await fold_page(projection, [event], after=event.position - 1)
        tables.write(projection.take())
        for task in tables.tasks.values():
            assert (task["waiting_reason"] is None) == (task["status"] in FINISHED), task
            assert (task["finished_us"] is not None) == (task["status"] in FINISHED), task


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
async def test_totals_follow_from_the_calls(seed: int) -> None:
    store, events = await recorded_history(write_history(Random(seed), runs=3, moves=400))
    tables = await fold_pages(store, [events])
    for (run_id, _, _), task in tables.tasks.items():
        calls = [call for call in tables.model_calls.values() if call["task_id"] == task["task_id"]]
        assert task["model_calls"] == len(calls)
        assert task["turns"] == sum(call["status"] == "ok" for call in calls)
        assert task["cost_micro_usd"] == sum(call["cost_micro_usd"] or 0 for call in calls)
        assert task["tool_calls"] == sum(call["task_id"] == task["task_id"] for call in tables.tool_calls.values())
        if tables.runs[run_id,]["finished_us"] is not None:
            assert task["status"] in FINISHED
            assert all(call["status"] != "running" for call in calls)
    ended = [event for event in events if event.type in TERMINAL_TYPES and event.stream.startswith("run/")]
    assert len(ended) == sum(run["finished_us"] is not None for run in tables.runs.values())


def test_every_event_has_exactly_one_fold() -> None:
    assert set(runs.RUN_FOLDS) == set(RUN_EVENTS)
    assert {*tasks.TASK_FOLDS, *tasks.IN_TASK_STREAM} == set(TASK_EVENTS)
    folded = [type_ for projection in all_projections(MemoryStore()) for type_ in projection.types]
    assert len(set(folded)) == len(folded)
    # the gate itself keeps what budgets say, in es.budgets; workers fold pins and drains themselves, orchestrators schedules;
    # standstills are a view of the log itself, and claims are read by those who dedupe
    schedules = {ScheduleAdded, ScheduleFired, SchedulePaused, ScheduleRemoved, ScheduleResumed}
    without_a_view = {BudgetChanged, McpToolPinned, WorkerDrained, RunStoodStill, ClaimsOpened, EffectClaimed, EffectSettled} | schedules
    assert set(folded) == {*EVENT_TYPES.values(), Unknown, ContractError} - without_a_view
