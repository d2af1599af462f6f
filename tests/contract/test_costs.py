"""What `crewlog costs` says is what the log says, to the micro-dollar; prices of another table change nothing that is recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

import msgspec
import pytest
from support.histories import store_history, write_history
from support.postgres import Database
from support.views import follow, log_of, model_of

from crewlog.events.clock import SystemClock
from crewlog.events.store import Recorded
from crewlog.orchestrator.reprice import Repriced, reprice
from crewlog.projections.queries import CostColumn, CostFilter, Queries
from crewlog.projections.query_rows import CostView
from crewlog.schemas.price_table import TokenPrices
from crewlog.schemas.system_events import BillCorrected, CallSettled
from crewlog.schemas.task_events import ModelCallFailed, ModelCallFinished
from crewlog.schemas.usage import WORST_CASE

pytestmark = pytest.mark.hand_written("costs are tried on histories of every shape")

Bill = ModelCallFinished | ModelCallFailed | CallSettled
COLUMNS: Sequence[CostColumn] = ("run_id", "task_id", "key", "kind", "provider", "model", "user_name", "tenant", "day")


def billed(events: Sequence[Recorded]) -> list[tuple[UUID | None, Bill]]:
    """List the bills in the log, each with its run: a call that is settled again is billed once, and one that is corrected at what is known then."""
    bills: list[tuple[UUID | None, Bill]] = []
    known: dict[tuple[str, str], int] = {}
    for recorded in events:
        event = recorded.event()
        if not isinstance(event, Bill | BillCorrected):
            continue
        call = recorded.stream.partition("/")[2], event.call_id
        if isinstance(event, BillCorrected):
            run_id, settled = bills[known[call]]
            bills[known[call]] = (run_id, msgspec.structs.replace(settled, usage=event.usage, price=event.price))
        elif not isinstance(event, CallSettled) or call not in known:
            known[call] = len(bills)
            bills.append((recorded.run_id, event))
    return bills


def total(rows: Sequence[CostView], field: str) -> int:
    return sum(getattr(row, field) for row in rows)


@pytest.mark.parametrize("seed", range(3))
async def test_costs_are_the_sum_of_the_recorded_prices(database: Database, seed: int) -> None:
    async with log_of(database) as store, model_of(database, store) as model, Queries(database.url("crewlog_operator"), SystemClock()) as queries:
        await store_history(store, write_history(Random(seed), runs=10, moves=600))
        await follow(model, store, page_max=Random(seed).randrange(1, 50))
        calls = billed((await store.read_all(0, 100_000)).events)
        by_run = Counter[Any]()
        for run_id, event in calls:
            by_run[run_id] += event.price.cost_micro_usd or 0
        assert sum(by_run.values()) > 0
        found = {row.group["run_id"]: row.cost_micro_usd for row in await queries.costs(["run_id"])}
        assert {run: cost for run, cost in found.items() if cost} == {run: cost for run, cost in by_run.items() if cost}
        for run in await queries.runs():
            assert run.cost_micro_usd == by_run[run.run_id] == total(await queries.costs(["kind"], CostFilter(run_id=run.run_id)), "cost_micro_usd")
        for columns in (*([column] for column in COLUMNS), COLUMNS):
            assert total(await queries.costs(columns), "cost_micro_usd") == sum(by_run.values())
        await _turns_are_what_their_calls_are(database)


async def _turns_are_what_their_calls_are(database: Database) -> None:
    """Every model call is in one turn of its task, and every tool call that came of one."""
    sums = "sum(cost_micro_usd), sum(input_tokens), min(started_at)"
    connection = await database.admin()
    try:
        turns = await connection.fetch(f"SELECT sum(model_calls), count(*), {sums} FROM crewlog.turns")
        calls = await connection.fetch(f"SELECT count(*), count(DISTINCT (task_id, turn)), {sums} FROM crewlog.model_calls")
        assert [tuple(row) for row in turns] == [tuple(row) for row in calls]
        odd = "SELECT count(*) FROM crewlog.turns WHERE tool_calls <> cardinality(tools) OR finished_at < started_at"
        called = "SELECT count(*) FROM crewlog.tool_calls c WHERE EXISTS (SELECT FROM crewlog.model_calls m WHERE m.task_id = c.task_id AND m.turn = c.turn)"
        assert await connection.fetchval(odd) == 0
        assert await connection.fetchval("SELECT sum(tool_calls) FROM crewlog.turns") == await connection.fetchval(called)
    finally:
        await connection.close()


async def test_parts_are_shown_apart_and_add_up(database: Database) -> None:
    async with log_of(database) as store, model_of(database, store) as model, Queries(database.url("crewlog_operator"), SystemClock()) as queries:
        await store_history(store, write_history(Random(4), runs=40, moves=1500))
        await follow(model, store)
        events = [event for _, event in billed((await store.read_all(0, 100_000)).events)]
        rows = await queries.costs(["kind", "day"])
        worst = [e.price.cost_micro_usd or 0 for e in events if e.price.source == WORST_CASE]
        failed = [e.price.cost_micro_usd or 0 for e in events if isinstance(e, ModelCallFailed) and e.price.source != WORST_CASE]
        assert (total(rows, "worst_case_calls"), total(rows, "worst_case_micro_usd")) == (len(worst), sum(worst)) > (0, 0)
        assert (total(rows, "failed_calls"), total(rows, "failed_micro_usd")) == (len(failed), sum(failed)) > (0, 0)
        assert total(rows, "unpriced_calls") == sum(e.price.cost_micro_usd is None for e in events) > 0
        assert total(rows, "calls") == len(events) + total(rows, "open_calls")
        assert total(rows, "open_calls") > 0
        saved = [e.price.uncached_micro_usd - (e.price.cost_micro_usd or 0) for e in events if e.price.uncached_micro_usd is not None]
        assert total(rows, "saved_micro_usd") == sum(saved) > 0
        for field in ("cached_tokens", "cache_write_tokens", "reasoning_tokens", "input_tokens", "output_tokens"):
            used = [getattr(e.usage, "cache_read_tokens" if field == "cached_tokens" else field) for e in events if not isinstance(e, ModelCallFailed)]
            assert total(rows, field) == sum(used) > 0, field


async def test_costs_are_narrowed_by_day_user_and_tenant(database: Database) -> None:
    async with log_of(database) as store, model_of(database, store) as model, Queries(database.url("crewlog_operator"), SystemClock()) as queries:
        await store_history(store, write_history(Random(1), runs=6, moves=200))
        await follow(model, store)
        days = sorted(day for row in await queries.costs(["day"]) if isinstance(day := row.group["day"], date))
        everything = total(await queries.costs(["run_id"]), "calls")
        assert total(await queries.costs(["run_id"], CostFilter(since=days[0], until=days[-1], user="ann", tenant="default")), "calls") == everything
        assert await queries.costs(["run_id"], CostFilter(user="bob")) == []
        assert await queries.costs(["run_id"], CostFilter(tenant="acme")) == []
        assert await queries.costs(["run_id"], CostFilter(until=date(2000, 1, 1))) == []


async def test_other_prices_are_a_projection_of_recorded_usage(database: Database) -> None:
    async with log_of(database) as store, model_of(database, store) as model, Queries(database.url("crewlog_operator"), SystemClock()) as queries:
        await store_history(store, write_history(Random(2), runs=8, moves=400))
        await follow(model, store)
        before = await queries.costs(["kind"])
        answered = [e for _, e in billed((await store.read_all(0, 100_000)).events) if isinstance(e, ModelCallFinished)]
        table = {"offline:rules-*": TokenPrices(input=Decimal("1.5"), output=Decimal(10), cache_read=Decimal("0.1"))}
        groups = await reprice(queries.calls(["kind"], page_max=7), table)

        def listed(event: ModelCallFinished) -> int:
            read = event.usage.cache_read_tokens
            tenths = (event.usage.input_tokens - read) * 15 + read + event.usage.output_tokens * 100
            return -(-tenths // 10)

        assert sum(g.repriced_micro_usd for g in groups) == sum(map(listed, answered))
        assert sum(g.recorded_micro_usd for g in groups) == sum(e.price.cost_micro_usd or 0 for e in answered)
        assert sum(g.repriced_calls for g in groups) == len(answered)
        assert sum(g.unmeasured_micro_usd + g.recorded_micro_usd for g in groups) == total(before, "cost_micro_usd")
        assert sum(g.calls for g in groups) == total(before, "calls")
        assert groups == sorted(groups, key=lambda g: -g.repriced_micro_usd)
        assert await queries.costs(["kind"]) == before


async def test_a_model_the_other_table_does_not_know_is_named(database: Database) -> None:
    async with log_of(database) as store, model_of(database, store) as model, Queries(database.url("crewlog_operator"), SystemClock()) as queries:
        await store_history(store, write_history(Random(2), runs=4, moves=150))
        await follow(model, store)
        connection = await database.admin()
        try:
            await connection.execute("UPDATE rm.model_calls SET provider = 'acme', model = 'm-1' WHERE status = 'ok'")
        finally:
            await connection.close()
        (group,) = await reprice(queries.calls(["tenant"]), {"acme:m-2": TokenPrices(input=Decimal(1), output=Decimal(1))})
        assert group.unlisted_models == ("acme:m-1",)
        assert group.unlisted_calls > 0
        assert group.repriced_micro_usd == 0
        (listed,) = await reprice(queries.calls(["tenant"]), None)
        assert listed == group
        assert isinstance(listed, Repriced)


async def test_the_list_counts_as_of_the_moment_of_the_call(database: Database) -> None:
    async with log_of(database) as store, model_of(database, store) as model, Queries(database.url("crewlog_operator"), SystemClock()) as queries:
        await store_history(store, write_history(Random(2), runs=1, moves=20))
        await follow(model, store)
        connection = await database.admin()
        try:
            await connection.execute(
                """UPDATE rm.model_calls SET provider = 'google', model = 'gemini-3.8-flash', input_tokens = 1000000, cache_read_tokens = 0,
                   cache_write_tokens = 0, output_tokens = 0, started_us = $1 WHERE status = 'ok'""",
                round(datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp() * 1e6),
            )
            (old,) = await reprice(queries.calls(["tenant"]), None)
            await connection.execute("UPDATE rm.model_calls SET started_us = started_us + 1000000 WHERE status = 'ok'")
            (new,) = await reprice(queries.calls(["tenant"]), None)
        finally:
            await connection.close()
        assert old.repriced_calls == new.repriced_calls > 0
        assert old.repriced_micro_usd != new.repriced_micro_usd
