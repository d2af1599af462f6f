"""The fold of runs over random histories: what it says does not depend on how the log was cut into pages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.histories import recorded_history, write_history
from support.run_tables import Tables, fold_in_bulk, fold_page, fold_pages

from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import AppendRequest, Recorded, Write
from crewlog.projections import runs, tasks
from crewlog.projections.catalog import all_projections
from crewlog.projections.folding import Folding
from crewlog.projections.projection import begins, facts_of
from crewlog.projections.rows import FINISHED
from crewlog.projections.run_projection import RunChanges, RunProjection
from crewlog.schemas.codec import EVENT_TYPES, Unknown
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId, TaskId, spend_stream
from crewlog.schemas.run_events import RUN_EVENTS
from crewlog.schemas.system_events import (
    BudgetChanged,
    CallSettled,
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
from crewlog.schemas.usage import Price, Usage

pytestmark = pytest.mark.hand_written("views are tried on histories of every shape")


def cut(events: Sequence[Recorded], random: Random) -> list[Sequence[Recorded]]:
    at, pages = 0, []
    while at < len(events):
        size = random.randrange(1, 12)
        pages.append(events[at : at + size])
        at += size
    return pages


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 300))
async def test_rows_do_not_depend_on_the_pages(seed: int, runs: int, moves: int) -> None:
    store, events = await recorded_history(write_history(Random(seed), runs=runs, moves=moves))
    at_once = await fold_pages(store, [events])
    in_pages = await fold_pages(store, cut(events, Random(seed)))
    forgetful = await fold_pages(store, cut(events, Random(seed + 1)), open_runs_max=1)
    rebuilt = await fold_in_bulk(store, cut(events, Random(seed + 2)), keep_max=Random(seed).choice([0, 5, 1000]))
    assert vars(at_once) == vars(in_pages) == vars(forgetful) == vars(rebuilt)


async def test_an_event_that_names_another_run_changes_neither() -> None:
    """The gate did not always look at which run an event names: whoever folds a run again may meet such events of before in its streams."""
    store, events = await recorded_history(write_history(Random(3), runs=2, moves=120))
    opened = {event.run_id: event.stream for event in events if event.type == "TaskOpened" and event.run_id is not None}
    tasks_of = {RunId(run_id): TaskId(UUID(stream.removeprefix("task/"))) for run_id, stream in opened.items()}
    ours = next(iter(tasks_of))
    for run_id, task_id in tasks_of.items():
        settled = CallSettled(task_id, run_id, "late", "acme", "a", Usage(), Price(7, "config"))
        await store.append(AppendRequest([Write(spend_stream(tasks_of[ours]), [settled])], [UUID(int=run_id.int ^ 1)], events[-1].occurred_us, ours))
        store.log.events[-1] = store.log.streams[spend_stream(tasks_of[ours])].events[-1] = msgspec.structs.replace(store.log.events[-1], run_id=run_id)
    *_, own, foreign = events = list((await store.read_all(0, 1_000_000)).events)
    assert (own.run_id, foreign.run_id) == tuple(tasks_of)
    found = []
    for pages in ([events], [[event] for event in events]):
        folding, tables = Folding([RunProjection(store, open_runs_max=1)]), Tables()
        for page in pages:
            await folding.load(partial(begins, page))
            problems = folding.fold(facts_of(page))
            assert [problem.position for problem in problems] == [foreign.position] * (foreign in page)
            folding.reach(page[-1].position, problems)
            for changes in folding.take():
                assert isinstance(changes, RunChanges)
                tables.write(changes)
        await folding.load(lambda _: dict.fromkeys(tasks_of, ""))
        found.append(vars(tables))
    assert found == [vars(await fold_pages(store, [events[:-1]]))] * 2


@settings(max_examples=25)
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


@settings(max_examples=25)
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
