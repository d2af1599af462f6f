"""Typed reads of the views, over random histories: they agree with each other and with the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, date, datetime, timedelta
from random import Random
from time import perf_counter
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from support.histories import store_history, write_history
from support.logs import new_run, to_run
from support.postgres import Database
from support.views import follow, log_of, model_of

from crewlog.events.clock import SystemClock
from crewlog.events.store import NO_STREAM
from crewlog.orchestrator.cli_live import _LiveTree
from crewlog.projections.queries import LAST, CostFilter, Queries
from crewlog.schemas.errors import ContractError, NotFound
from crewlog.schemas.ids import RunId
from crewlog.schemas.run_events import RunSubmitted

pytestmark = pytest.mark.hand_written("the views are tried on histories of every shape")


class Views(NamedTuple):
    """Views over a filled log."""

    queries: Queries
    database: Database

    async def sql(self, statement: str, *arguments: Any) -> list[Any]:
        connection = await asyncpg.connect(self.database.url("crewlog_operator"))
        try:
            rows: list[Any] = await connection.fetch(statement, *arguments)
            return rows
        finally:
            await connection.close()


@pytest_asyncio.fixture
async def views(database: Database) -> AsyncIterator[Views]:
    async with log_of(database) as store, model_of(database, store) as model:
        await store_history(store, write_history(Random(19), runs=15, moves=250))
        await follow(model, store)
    async with Queries(database.url("crewlog_operator"), SystemClock()) as queries:
        yield Views(queries, database)


async def test_runs_come_newest_first_in_pages(views: Views) -> None:
    runs = await views.queries.runs()
    assert len(runs) > 5
    assert [run.submitted_at for run in runs] == sorted((run.submitted_at for run in runs), reverse=True)
    assert (await views.queries.runs(limit=2)) + (await views.queries.runs(behind=runs[1], limit=100)) == runs
    assert await views.queries.runs(before=runs[1].submitted_at) == runs[2:]
    completed = await views.queries.runs(status="completed")
    assert completed == [run for run in runs if run.status == "completed"]
    assert completed
    assert completed[0].answer == "The answer."
    assert completed[0].flags == ("simulated",)
    assert await views.queries.runs(tenant="nobody") == await views.queries.runs(user="nobody") == []


async def test_pages_leave_out_no_run_and_tell_none_twice_when_many_were_submitted_in_the_same_microsecond(database: Database) -> None:
    run_ids, now_us = [new_run() for _ in range(5)], SystemClock().now_us()
    async with log_of(database) as store, model_of(database, store) as model:
        for run_id in run_ids:
            task = msgspec.Raw(msgspec.json.encode({"task_id": run_id, "type": "data", "objective": "Count"}))
            event = RunSubmitted(run_id, "default", "ada", "Count", task, "api")
            await store.append(to_run(run_id, event, expected=NO_STREAM)._replace(occurred_us=now_us))
        await follow(model, store)
    async with Queries(database.url("crewlog_operator"), SystemClock()) as queries:
        runs = await queries.runs()
        assert {run.run_id for run in runs} == {*run_ids}
        assert len({run.submitted_at for run in runs}) == 1
        for page_max in (1, 2, 5):
            assert [run async for run in queries.every_run(page_max=page_max)] == runs


async def test_a_run_is_found_by_the_beginning_of_its_id(views: Views) -> None:
    runs = await views.queries.runs()
    for run in runs:
        assert await views.queries.run(str(run.run_id)) == run
        assert await views.queries.run(run.run_id.hex[:12].upper()) == run
    assert await views.queries.run(LAST) == runs[0]
    by_first: dict[str, set[str]] = {}
    for run in runs:
        by_first.setdefault(run.run_id.hex[0], set()).add(str(run.run_id))
    digit, several = next((digit, ids) for digit, ids in by_first.items() if len(ids) > 1)
    with pytest.raises(NotFound, match="ambiguous") as caught:
        await views.queries.run(digit)
    assert set(caught.value.candidates) == several
    for nothing in ("", "xyz", "'", "0" * 33, "00000000-0000"):
        with pytest.raises(NotFound, match="matches nothing"):
            await views.queries.run(nothing)


async def test_the_live_tree_shows_the_run_that_is_watched_however_many_came_later(views: Views) -> None:
    for run in await views.queries.runs():
        tree = _LiveTree(views.queries, RunId(run.run_id))
        await tree._look()
        assert (tree._run, tree._tasks) == (run, await views.queries.tasks(run.run_id))
    unheard = _LiveTree(views.queries, RunId(UUID(int=1)))
    await unheard._look()
    assert unheard._run is None


async def test_no_runs_no_last(database: Database) -> None:
    async with Queries(database.url("crewlog_operator"), SystemClock()) as queries:
        with pytest.raises(NotFound):
            await queries.run(LAST)
        assert await queries.lag() == []


async def test_totals_of_runs_tasks_and_costs_agree(views: Views) -> None:
    costs = {row.group["run_id"]: row for row in await views.queries.costs(["run_id"])}
    for run in await views.queries.runs():
        tasks = await views.queries.tasks(run.run_id)
        assert run.cost_micro_usd == sum(task.cost_micro_usd for task in tasks)
        assert run.tasks_done == sum(task.status == "completed" for task in tasks)
        assert run.tool_calls == sum(task.tool_calls for task in tasks) == len(await views.queries.tool_calls(run.run_id))
        if sum(task.model_calls for task in tasks):
            cost = costs[run.run_id]
            assert (cost.cost_micro_usd, cost.unpriced_calls, cost.input_tokens) == (run.cost_micro_usd, run.unpriced_calls, run.input_tokens)
            assert cost.calls == sum(task.model_calls for task in tasks)
        for task in tasks:
            assert (task.waiting_reason is None) == (task.finished_at is not None)
            if task.status == "completed":
                assert task.outcome is not None
                assert {"report.md"} <= {artifact.name for artifact in task.artifacts}


async def test_costs_by_every_column(views: Views) -> None:
    total = sum(row.cost_micro_usd for row in await views.queries.costs(["tenant"]))
    for column in ("run_id", "task_id", "key", "kind", "provider", "model", "user_name", "day"):
        assert sum(row.cost_micro_usd for row in await views.queries.costs([column])) == total
    rows = await views.queries.costs(["kind", "model"])
    assert {tuple(row.group) for row in rows} == {("kind", "model")}
    assert [row.cost_micro_usd for row in rows] == sorted((row.cost_micro_usd for row in rows), reverse=True)
    run = (await views.queries.runs())[-1]
    assert sum(row.cost_micro_usd for row in await views.queries.costs(["kind"], CostFilter(run_id=run.run_id))) == run.cost_micro_usd
    assert await views.queries.costs(["kind"], CostFilter(since=date(2100, 1, 1))) == []
    for bad in (["kind; DROP TABLE rm.runs"], [], ["calls"]):
        with pytest.raises(ContractError, match="costs cannot be grouped by"):
            await views.queries.costs(bad)  # type: ignore[arg-type]


async def test_approvals(views: Views) -> None:
    everything = await views.queries.approvals(pending_only=False)
    pending = await views.queries.approvals()
    assert {approval.status for approval in everything} >= {"approved", "denied"}
    assert sorted(pending, key=lambda a: a.approval_id) == sorted((a for a in everything if a.status == "pending"), key=lambda a: a.approval_id)
    assert [a.requested_at for a in everything] == sorted((a.requested_at for a in everything), reverse=True), "the latest first, as runs are"
    assert [a.requested_at for a in pending] == sorted(a.requested_at for a in pending), "who waits longest comes first"
    assert await views.queries.approvals(tenant="nobody") == []
    (tenant,) = {run.tenant for run in await views.queries.runs()}
    assert await views.queries.approvals(tenant=tenant) == pending
    for approval in everything:
        assert approval.tool == "send_email"
        assert approval.arguments.inline == '{"x":1}'
        assert approval.expires_at - approval.requested_at > timedelta(hours=23)
        assert await views.queries.approval(str(approval.approval_id)) == approval
    assert sum(run.approvals_pending for run in await views.queries.runs()) == len(pending)
    with pytest.raises(NotFound):
        await views.queries.approval("ffffffff-ffff")


async def test_events_are_the_log(views: Views) -> None:
    for run in (await views.queries.runs())[:3]:
        events = await views.queries.events(run.run_id)
        assert {event.run_id for event in events} == {run.run_id}
        assert [event.position for event in events] == sorted(event.position for event in events)
        assert await views.queries.events(run.run_id, after=events[1].position, limit=3) == events[2:5]
        assert await views.queries.event(str(events[1].position)) == await views.queries.event(str(events[1].event_id)[:20]) == events[1]
        for event in events:
            assert (event.task_id is None) == event.stream.startswith("run/")
        (submitted,) = [event for event in events if event.type == "RunSubmitted"]
        assert submitted.data["goal"] == run.goal
        assert submitted.occurred_at == run.submitted_at


async def test_tool_calls_have_arguments_and_results(views: Views) -> None:
    for run in await views.queries.runs():
        for call in await views.queries.tool_calls(run.run_id):
            assert call.arguments is not None
            assert call.arguments.inline == '{"x":1}'
            assert (call.result is not None) == (call.status in ("ok", "error", "refused", "unknown"))


async def test_waiting_tasks_of_all_runs(views: Views) -> None:
    waiting = await views.queries.waiting()
    assert waiting
    assert all(task.waiting_reason for task in waiting)
    assert len(waiting) == len(await views.sql("SELECT FROM crewlog.tasks WHERE finished_at IS NULL"))


async def test_agents_lag_and_problems(views: Views) -> None:
    (agent,) = await views.queries.agents()
    assert (agent.kind, agent.worker, agent.model, agent.slots) == ("data", "data-1", "offline/rules-1", 4)
    assert agent.tools[0]["name"] == "run_sql"
    assert agent.stopped_at is not None
    assert await views.queries.agents(running_only=True) == []
    lags = await views.queries.lag()
    assert {lag.name for lag in lags} == {"runs", "controls", "agents", "knowledge", "memories", "unreadable"}
    assert all(lag.position == lag.head > 0 and lag.waiting_since is None for lag in lags)
    assert await views.queries.problems() == []
    assert await views.queries.documents("default") == []


async def test_lag_names_the_oldest_event_not_taken_in(database: Database) -> None:
    async with log_of(database) as store, model_of(database, store), Queries(database.url("crewlog_operator"), SystemClock()) as queries:
        appends = write_history(Random(1), runs=1, moves=5)
        await store_history(store, appends)
        lags = await queries.lag()
        assert lags
        for lag in lags:
            assert lag.position == 0 < lag.head
            assert lag.waiting_since == datetime.fromtimestamp(appends[0].occurred_us / 1e6, UTC)


async def test_timeline_effects_and_artifacts(views: Views) -> None:
    spans = await views.sql("SELECT * FROM crewlog.timeline")
    assert {span["span"] for span in spans} == {"task", "turn", "tool", "approval"}
    assert all(span["started_at"] is not None for span in spans)
    assert all(span["finished_at"] is None or span["finished_at"] >= span["started_at"] for span in spans)
    effects = await views.sql("SELECT * FROM crewlog.effects")
    assert {effect["effect"] for effect in effects} == {"idempotent", "irreversible"}
    assert all(effect["starts"] >= 1 and effect["kind"] for effect in effects)
    (tenant,) = {run.tenant for run in await views.queries.runs()}
    listed = await views.queries.effects(tenant)
    assert [effect.started_at for effect in listed] == sorted(effect["started_at"] for effect in effects)
    assert await views.queries.effects(tenant, limit=2) == listed[-2:], "of many the latest"
    artifacts = await views.sql("SELECT DISTINCT name, size, media_type FROM crewlog.artifacts WHERE name = 'report.md'")
    assert [tuple(row) for row in artifacts] == [("report.md", 9, "text/markdown")]


async def test_answers_are_json(views: Views) -> None:
    (run, *_) = await views.queries.runs()
    shown = msgspec.json.decode(msgspec.json.encode(run))
    assert UUID(shown["run_id"]) == run.run_id
    assert datetime.fromisoformat(shown["submitted_at"]) == run.submitted_at


async def test_a_tenants_budgets_are_listed_behind_many_runs_and_beside_a_scope_that_names_none(database: Database) -> None:
    """Each run leaves two scopes behind, so what a row costs is paid for all runs that ever were."""
    run_id, admin = new_run(), await database.admin()
    await admin.execute("INSERT INTO es.budgets (scope, hard) SELECT 'run/' || gen_random_uuid(), 5 FROM generate_series(1, 20000)")
    await admin.execute(f"INSERT INTO es.budgets (scope, hard) VALUES ('run/{run_id}', 5), ('run/{'-' * 36}', 5)")
    await admin.execute(
        "INSERT INTO rm.runs (run_id, tenant, user_name, type, goal, source, status, submitted_us, flags, artifacts) "
        f"VALUES ('{run_id}', 'acme', 'anna', 'run', '', 'api', 'running', 0, '[]', '[]')"
    )
    search = "SELECT count(substring(scope FROM '/([0-9a-f-]{36})$')) FROM es.budgets"
    searched_s = min([await _seconds(admin.fetch(search)) for _ in range(3)])
    async with Queries(database.url("crewlog_operator"), SystemClock()) as queries:
        assert [budget.scope for budget in await queries.budgets(tenant="acme")] == [f"run/{run_id}"]
        took_s = min([await _seconds(queries.budgets(tenant="acme")) for _ in range(3)])
    await admin.close()
    assert took_s < searched_s, f"{took_s:.3f} s; one search with a regular expression in each name takes {searched_s:.3f} s"


async def _seconds(work: Awaitable[object]) -> float:
    began = perf_counter()
    await work
    return perf_counter() - began
