"""What `es.append` itself refuses, called by hand with arguments that our own client never makes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from support.logs import asked, cancelled, completed, dispatched, new_run, new_task, opening, request, started, submitted, to_run, to_task
from support.money import calling, changing, opened, settling
from support.postgres import Database

from crewlog.events.append_call import SQL_OPENING, SQL_PLAIN, SQL_PLAIN_WITH_CALLS, arguments, opening_arguments, plain_arguments, statement
from crewlog.events.append_request import encode_request
from crewlog.events.grants import ORCHESTRATOR
from crewlog.events.store import AppendRequest, Reservation, Settlement, Write
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.ids import TaskId, reservation_id, run_stream, task_stream

pytestmark = pytest.mark.hand_written("tries the gate with events of every kind")

# places of the arguments of es.append
STREAMS, W_REQUEST, W_STREAM, W_EVENTS, TYPES, E_TYPE, E_ID, E_DATA = 0, 1, 2, 4, 11, 13, 14, 15
HELD, R_REQUEST, R_HELD, R_AMOUNT, T_REQUEST, T_HELD, T_ACTUAL, SCOPE, SOFT, HARD, B_WRITE, B_LIMIT, L_REQUEST, L_LIMIT = range(17, 31)
PLAIN = (
    *("streams", "expected", "events", "occurred_us", "run", "task", "cause", "trace", "types", "schemas", "e_type", "e_id", "documents", "actor"),
    *("ids", "amounts", "prices"),
)
"""Places of the arguments of es.append_plain."""
OPENING = (
    *("streams", "kinds", "events", "request", "occurred_us", "run", "task", "cause", "trace", "types", "schemas", "e_type", "e_id", "documents", "actor"),
    *("scopes", "soft", "hard", "b_write", "b_limit"),
)
"""Places of the arguments of es.append_opening."""


@pytest_asyncio.fixture
async def connection(database: Database) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database.url(ORCHESTRATOR))
    yield connection
    await connection.close()


@pytest_asyncio.fixture
async def owner(database: Database) -> AsyncIterator[Any]:
    """Return a connection that may write everything."""
    connection = await database.admin()
    yield connection
    await connection.close()


def by_hand(*requests: AppendRequest) -> list[Any]:
    return arguments([encode_request(r) for r in requests], "by hand")


async def call(connection: Any, given: list[Any]) -> Any:
    return await connection.fetchrow(statement(given), *given)


async def test_arrays_that_do_not_fit_are_refused(connection: Any) -> None:
    misfits: list[tuple[int, list[Any]]] = [
        *((E_DATA, ["{}"]), (E_TYPE, [1]), (W_EVENTS, [1, 2]), (W_EVENTS, [0, 2]), (W_EVENTS, [3, -1]), (W_REQUEST, [1, 3]), (W_REQUEST, [2, 2])),
        *((W_STREAM, [1]), (E_ID, [])),
    ]
    for place, value in misfits:
        given = by_hand(opening(new_run()), opening(new_run()))
        given[place] = value
        with pytest.raises(asyncpg.PostgresError) as caught:
            pytest.fail(f"{place} {value}: {await call(connection, given)}")
        assert caught.value.sqlstate in ("ES006", "23514"), (place, value)  # a check constraint may notice first
    assert await connection.fetchval("SELECT count(*) FROM es.streams") == 0


async def test_streams_must_be_ascending_because_that_prevents_deadlocks(connection: Any) -> None:
    for wrong in (lambda names: names[::-1], lambda names: [names[0]] * 2):
        given = by_hand(opening(new_run()), opening(new_run()))
        given[STREAMS] = wrong(given[STREAMS])
        with pytest.raises(asyncpg.PostgresError, match="ascending") as caught:
            await call(connection, given)
        assert caught.value.sqlstate == "ES006"


async def test_one_event_id_twice_in_a_call_is_refused_before_anything_is_written(connection: Any) -> None:
    made = to_run(new_run(), submitted(new_run()))
    with pytest.raises(asyncpg.PostgresError) as caught:
        await call(connection, by_hand(made, made))
    assert caught.value.sqlstate == "ES007"
    assert await connection.fetchval("SELECT count(*) FROM es.events") == 0


async def test_nothing_may_follow_a_terminal_event(connection: Any) -> None:
    run_id = new_run()
    given = by_hand(opening(run_id), to_run(run_id, dispatched(new_task()), cancelled()))
    given[E_TYPE][1:] = given[E_TYPE][:0:-1]
    given[E_DATA][1:] = given[E_DATA][:0:-1]
    row = await call(connection, given)
    (special,) = msgspec.json.decode(row[2])
    assert (special["request"], special["status"], row[0]) == (2, "malformed", [1, 0, 0])
    assert await connection.fetchval("SELECT version FROM es.streams WHERE closed_at IS NULL") == 1


async def test_the_gate_needs_read_committed(connection: Any) -> None:
    async with connection.transaction(isolation="repeatable_read"):
        with pytest.raises(asyncpg.PostgresError) as caught:
            await call(connection, by_hand(opening(new_run())))
    assert caught.value.sqlstate == "ES005"


async def test_closing_is_part_of_the_append(connection: Any) -> None:
    run_id = new_run()
    await call(connection, by_hand(opening(run_id)))
    transaction = connection.transaction()
    await transaction.start()
    await call(connection, by_hand(to_run(run_id, cancelled())))
    assert await connection.fetchval("SELECT closed_at IS NOT NULL FROM es.streams") is True
    await transaction.rollback()
    assert await connection.fetchval("SELECT closed_at IS NULL AND version = 1 FROM es.streams") is True


async def test_every_answer_stands_at_its_request(connection: Any) -> None:
    run_id, other = new_run(), new_run()
    first, known = opening(run_id), to_run(run_id, dispatched(new_task()))
    await call(connection, by_hand(first, known))
    calls = [
        opening(other),
        first,
        to_run(run_id, dispatched(new_task()), expected=9),
        request(Write(run_stream(run_id), [dispatched(new_task())], 2), Write(run_stream(other), [dispatched(new_task())], 1)),
        request(Write(run_stream(other), [dispatched(new_task()), submitted(other)]), run_id=other)._replace(event_ids=[known.event_ids[0], new_task()]),
        to_run(other, dispatched(new_task()), expected=2),
    ]
    row = await call(connection, by_hand(*calls))
    special = {answer["request"]: answer["status"] for answer in msgspec.json.decode(row[2])}
    assert special == {2: "duplicate", 3: "conflict", 5: "partial"}
    assert row[0] == [1, 0, 0, 3, 2, 0, 0, 3]


# money


async def told(connection: Any, given: list[Any]) -> dict[int, str]:
    row = await call(connection, given)
    return {answer["request"]: answer["status"] for answer in msgspec.json.decode(row[2])} if row[2] else {}


async def test_money_that_does_not_fit_together_is_refused(owner: Any) -> None:
    task_id = new_task()
    await call(owner, by_hand(opened(task_id, ScopeLimit("run/1", None, 100)), calling(task_id, 10, "b"), calling(task_id, 10, "a")))
    misfits: list[tuple[int, list[Any]]] = [
        *((R_AMOUNT, [-1]), (R_AMOUNT, [None]), (R_AMOUNT, [2**62]), (R_AMOUNT, []), (R_REQUEST, [9]), (R_HELD, [])),
        *((T_ACTUAL, [-1, 1]), (T_ACTUAL, [1]), (T_ACTUAL, [10**15 + 1, 1]), (T_REQUEST, [2, 9]), (T_REQUEST, [2, 1]), (HARD, [-1]), (HARD, []), (SOFT, [10])),
        *((B_WRITE, [2]), (B_WRITE, [9]), (B_LIMIT, [])),
    ]
    for place, value in misfits:
        settles = [Settlement(reservation_id(task_id, call_id), 1) for call_id in ("a", "b")]
        given = by_hand(opened(new_task(), ScopeLimit("run/2", None, 9)), calling(task_id, 1, "c")._replace(settle=settles))
        given[place] = value
        with pytest.raises(asyncpg.PostgresError) as caught:
            pytest.fail(f"{place} {value}: {await call(owner, given)}")
        assert caught.value.sqlstate in ("ES006", "23514"), (place, value)
    given = by_hand(opened(new_task(), ScopeLimit("run/2", None, 9)))
    given[STREAMS] = ["doc/default/x"]
    with pytest.raises(asyncpg.PostgresError, match="task stream"):
        await call(owner, given)
    given = by_hand(to_task(task_id, started())._replace(settle=[Settlement(reservation_id(task_id, call_id), 1) for call_id in ("a", "b")]))
    given[HELD] = given[HELD][::-1]
    with pytest.raises(asyncpg.PostgresError, match="ascending"):
        await call(owner, given)
    assert await owner.fetch("SELECT scope, spent, reserved FROM es.budgets") == [("run/1", 0, 20)]


async def test_the_gate_itself_asks_for_reservations_and_for_the_events_of_limits(owner: Any) -> None:
    task_id, limit = new_task(), ScopeLimit("run/1", None, 100)
    await call(owner, by_hand(opened(task_id, limit)))
    silent, loud, other = changing(limit), changing(ScopeLimit("run/1", None, 5)), changing(ScopeLimit("run/2", None, 5))
    given = by_hand(silent, loud, other, to_task(task_id, asked("x")), calling(task_id, 0))
    given[L_REQUEST], given[L_LIMIT] = [2, 3], [2, 2]
    assert await told(owner, given) == {1: "malformed", 3: "malformed", 4: "unreserved"}
    assert await owner.fetch("SELECT scope, hard FROM es.budgets") == [("run/1", 5)]
    hidden = to_task(task_id, asked("x"))
    assert await told(owner, by_hand(hidden)) == {1: "unreserved"}  # also as a call without the arguments about money


async def test_one_reservation_in_two_streams_of_a_batch_is_made_once(owner: Any) -> None:
    tasks = [new_task(), new_task()]
    same = [calling(task_id, 7)._replace(reserve=Reservation(reservation_id(tasks[0], "x"), 7)) for task_id in tasks]
    await call(owner, by_hand(*(opened(task_id, ScopeLimit("run/1", None, 100)) for task_id in tasks)))
    assert await told(owner, by_hand(*same)) == {2: "reserved"}
    assert await told(owner, by_hand(same[1])) == {1: "reserved"}
    assert await owner.fetch("SELECT spent, reserved FROM es.budgets") == [(0, 7)]


@pytest.mark.parametrize("trees", [1, 2])
async def test_money_of_a_batch_is_looked_at_one_by_one(owner: Any, trees: int) -> None:
    """Batches of calls and settlements without anything special, and such that claim to be, charged to the same rows or not."""
    limit = ScopeLimit("run/1", None, 1000)
    tasks = [new_task() for _ in range(6)]
    await call(owner, by_hand(*(opened(task_id, limit, ScopeLimit(f"tree/{number % trees}", None, 1000)) for number, task_id in enumerate(tasks))))

    async def books() -> tuple[int, int, int]:
        sums = "SELECT sum(spent)::int, sum(reserved)::int, (SELECT count(*)::int FROM es.open_reservations) FROM es.budgets GROUP BY scope LIKE 'run/%'"
        rows = await owner.fetch(sums)
        assert rows[0] == rows[1]
        return tuple(rows[0])

    assert await told(owner, by_hand(*(calling(task_id, 10) for task_id in tasks))) == {}
    assert await books() == (0, 60, 6)
    first = settling(tasks[0], 4)
    foreign = settling(tasks[1], 4)._replace(settle=first.settle)
    assert await told(owner, by_hand(first, foreign, settling(tasks[2], 4), settling(tasks[2], 4), settling(tasks[3], 4))) == {}
    assert await books() == (12, 30, 3)
    again = [calling(task_id, 1, "again") for task_id in tasks]
    again[1] = again[1]._replace(reserve=again[0].reserve)
    assert await told(owner, by_hand(*again)) == {2: "reserved"}
    assert await books() == (12, 35, 8)
    stale = [to_task(task_id, started(), expected=99) for task_id in tasks[:1]]
    assert await told(owner, by_hand(*stale, *(calling(task_id, 5, "more") for task_id in tasks[1:]))) == {1: "conflict"}
    assert await books() == (12, 60, 13)


async def test_rows_are_locked_in_one_order(owner: Any) -> None:
    """The plans that keep batches from deadlocking: rows are reached one by one from a sorted list."""
    for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin"):
        await owner.execute(f"SET {setting} = off")
    sums = "WITH c AS MATERIALIZED (SELECT x AS id, sum(x) AS n FROM unnest('{3,1,2}'::bigint[]) x GROUP BY x ORDER BY x)"
    names = "(SELECT * FROM unnest('{b,a}'::text[]) x (name) ORDER BY name COLLATE \"C\") u"
    for outer, inner, update in (
        ("CTE Scan on c", "budgets_pkey", f"{sums} UPDATE es.budgets b SET spent = b.spent + c.n FROM c WHERE b.scope_id = c.id"),
        ("Function Scan on unnest c", "budgets_pkey", "UPDATE es.budgets b SET spent = b.spent + c FROM unnest('{1,2,3}'::bigint[]) c WHERE b.scope_id = c"),
        ("Subquery Scan on u", "streams_pkey", f"UPDATE es.streams t SET version = t.version + 1 FROM {names} WHERE t.stream_id = u.name"),
    ):
        text = "\n".join(row[0] for row in await owner.fetch(f"EXPLAIN {update}"))
        assert "Nested Loop" in text
        assert text.index(outer) < text.index(f"Index Scan using {inner}")
    await owner.execute("SET enable_bitmapscan = off")
    text = "\n".join(row[0] for row in await owner.fetch("EXPLAIN UPDATE es.budgets b SET spent = b.spent + 1 WHERE b.scope_id = ANY ('{3,1,2}')"))
    assert re.search(r"^ +->  Index Scan using budgets_pkey on budgets b .*\n +Index Cond: \(scope_id = ANY", text, re.MULTILINE), text


async def test_plain_requests_are_written_or_left_to_the_whole_gate(database: Database, connection: Any, owner: Any) -> None:
    """es.append_plain as a kind: what is not plain changes nothing, also not what travels with it, and es.append says why."""
    worker = await asyncpg.connect(database.url("crewlog_research"))
    task_id, theirs, charged, beside = new_task(), new_task(), new_task(), new_task()
    await call(owner, by_hand(opened(task_id), opened(beside), opened(theirs, kind="data"), opened(charged, ScopeLimit("run/1", None, 100))))

    async def plain(*requests: AppendRequest, **changes: Any) -> Any:
        given = plain_arguments([encode_request(request) for request in requests], "by hand")
        assert given is not None
        for place, value in changes.items():
            given[PLAIN.index(place)] = value
        return await worker.fetchval(SQL_PLAIN if len(given) == 14 else SQL_PLAIN_WITH_CALLS, *given)

    fine = to_task(beside, started(), expected=1)
    call_ = calling(charged, 5, expected=1)
    first = to_task(task_id, started(), asked("m1-1"), expected=1)._replace(**free_call(task_id))
    assert len(await plain(first)) == 2
    refused: list[tuple[AppendRequest, dict[str, Any]]] = [
        (first._replace(writes=[first.writes[0]._replace(expected=3)]), {}),  # a duplicate
        (to_task(task_id, started(), expected=1), {}),
        (to_task(new_task(), started(), expected=1), {}),
        (to_task(theirs, started(), expected=1), {}),
        (to_task(charged, asked("m1-1"), expected=1), {}),
        (to_task(charged, asked("m1-1"), asked("m1-2"), expected=1)._replace(reserve=call_.reserve), {}),
        (settling(charged, 1, expected=1), {}),
        (calling(charged, 101, expected=1), {}),
        (call_, {"amounts": [None, -1]}),
        (call_, {"amounts": [None, 10**15 + 1]}),
        (call_, {"amounts": [None, None]}),
        (call_, {"ids": []}),
        (call_, {"prices": [None, 3]}),
        (to_task(task_id, started(), expected=3), {"types": ["BudgetChanged"]}),
        (to_task(task_id, started(), expected=3), {"types": ["RunCompleted"]}),
        (to_task(task_id, started(), expected=3), {"expected": [1, 0]}),
        (to_task(task_id, started(), expected=3), {"expected": [1, None]}),
        (to_task(task_id, started(), expected=3), {"streams": [task_stream(beside), task_stream(beside)]}),
        (to_task(task_id, started(), expected=3), {"streams": [task_stream(beside), "run/" + str(task_id)]}),
        (to_task(task_id, started(), started(), expected=3), {"types": ["TaskCompleted", "TaskStarted"], "e_type": [2, 1, 2]}),
    ]
    for request_, changes in refused:
        assert await plain(fine, request_, **changes) is None, (request_, changes)
    misfits = (
        {"e_type": [1]},
        {"documents": []},
        {"events": [1]},
        {"events": [2, 0]},
        {"events": [1, 2]},
        {"events": [3, -1]},
        {"events": None},
        {"expected": [1]},
    )
    for misfit in misfits:
        with pytest.raises(asyncpg.PostgresError) as caught:
            await plain(fine, to_task(task_id, started(), expected=3), **misfit)
        assert caught.value.sqlstate == "ES006", misfit
    with pytest.raises(asyncpg.PostgresError, match="do not fit"):
        await plain(to_task(task_id, started(), started(), expected=3), events=[])
    assert len(await plain(to_task(charged, asked("m1-1"), expected=1)._replace(**free_call(charged)))) == 1
    assert len(await plain(fine, to_task(task_id, completed(), expected=3))) == 2
    assert await plain(to_task(task_id, started(), expected=4)) is None, "it is closed"
    assert await told(owner, by_hand(to_task(task_id, started(), expected=4))) == {1: "conflict"}
    versions = await owner.fetch("SELECT stream_id, version, closed_at IS NULL FROM es.streams")
    there = [(task_stream(task_id), 4, False), (task_stream(beside), 2, True), (task_stream(theirs), 1, True), (task_stream(charged), 2, True)]
    assert sorted(map(tuple, versions)) == sorted(there)
    assert await owner.fetch("SELECT spent, reserved, (SELECT count(*) FROM es.open_reservations) FROM es.budgets") == [(0, 0, 0)]
    await worker.close()


async def test_requests_that_open_streams_are_written_or_left_to_the_whole_gate(database: Database, connection: Any, owner: Any) -> None:
    """es.append_opening as an orchestrator: whatever is not as it must be changes nothing, also not what travels with it."""
    there, limited, known = new_task(), new_task(), opening(new_run())
    await call(owner, by_hand(opened(there), known))
    limits = ScopeLimit("run/1", 5, 100), ScopeLimit("run/2", None, 7)

    def laid_out(*requests: AppendRequest, **changes: Any) -> list[Any]:
        given = opening_arguments([encode_request(request) for request in requests], "by hand")
        assert given is not None
        for place, value in changes.items():
            given[OPENING.index(place)] = value
        return given

    fine, charged = opening(new_run(), new_task()), opened(limited, *limits)
    copied = opening(new_run())._replace(event_ids=known.event_ids)
    refused: list[tuple[AppendRequest, dict[str, Any]]] = [
        (opened(there), {}),
        (copied, {}),
        (charged, {"types": ["RunSubmitted", "TaskOpened", "TaskStarted"], "e_type": [1, 2, 3]}),
        *((charged, {"types": ["RunSubmitted", "TaskOpened", name], "e_type": [1, 2, 3]}) for name in ("ModelCallStarted", "BudgetChanged", "TaskCancelled")),
        (charged, {"e_type": [1, 2, 9]}),
        *((charged, {"b_write": bound}) for bound in ([1, 1], [3, 9], [None, 3])),
        *((charged, {"b_limit": bound}) for bound in ([1, 1], [1, 3], [0, 1])),
        (charged, {"b_write": [], "b_limit": []}),
        *((charged, {name: [5, amount]}) for name in ("soft", "hard") for amount in (-1, 10**15 + 1)),
        *((opened(new_task()), {"streams": ["run/x", "task/y", name]}) for name in ("task", "agents/research", "budget/run/1", "task/y")),
    ]
    for request_, changes in refused:
        assert await connection.fetchval(SQL_OPENING, *laid_out(fine, request_, **changes)) is None, changes
    misfits: list[dict[str, Any]] = [{"e_type": [1]}, {"documents": []}, {"events": [1, 1]}, {"events": [2, 1, 0]}, {"events": [1, 1, 2]}]
    for misfit in (*misfits, {"request": [1, 1, 3]}, {"request": [0, 1, 2]}, {"soft": []}, {"b_limit": [1]}):
        with pytest.raises(asyncpg.PostgresError) as caught:
            await connection.fetchval(SQL_OPENING, *laid_out(fine, charged, **misfit))
        assert caught.value.sqlstate == "ES006", misfit
    worker = await asyncpg.connect(database.url("crewlog_research"))
    assert await worker.fetchval(SQL_OPENING, *laid_out(fine)) is None, "a worker opens no runs"
    await worker.close()
    assert await owner.fetchval("SELECT count(*) FROM es.streams") == 2
    assert await owner.fetchval("SELECT count(*) FROM es.budgets") == 0

    assert len(await connection.fetchval(SQL_OPENING, *laid_out(fine, charged))) == 3
    bound = await owner.fetchrow("SELECT scopes, kind, version FROM es.streams WHERE stream_id = $1", task_stream(limited))
    rows = await owner.fetch("SELECT scope_id, scope, soft, hard FROM es.budgets ORDER BY scope_id")
    assert [tuple(row)[1:] for row in rows] == [("run/1", 5, 100), ("run/2", None, 7)]
    assert tuple(bound) == ([row[0] for row in rows], "research", 1)


async def test_plain_batches_charge_each_scope_with_the_sum_of_its_calls(database: Database, owner: Any) -> None:
    """Streams with the same scopes, with some in common, and with none; up to the last micro-USD before a limit."""
    worker = await asyncpg.connect(database.url("crewlog_research"))
    run, tree, day = (ScopeLimit(scope, None, 1000) for scope in ("run/1", "tree/1", "tenant/1"))
    one, same, other, unbound = (new_task() for _ in range(4))
    bound = {one: (day, run), same: (day, run), other: (tree, day), unbound: ()}
    await call(owner, by_hand(*(opened(task_id, *scopes) for task_id, scopes in bound.items())))

    async def plain(*requests: AppendRequest) -> dict[str, tuple[int, int]] | None:
        given = plain_arguments([encode_request(request) for request in requests], "by hand")
        assert given is not None
        is_written = await worker.fetchval(SQL_PLAIN_WITH_CALLS, *given) is not None
        return {row[0]: (row[1], row[2]) for row in await owner.fetch("SELECT scope, spent, reserved FROM es.budgets")} if is_written else None

    assert await plain(calling(one, 10, expected=1), calling(same, 5, expected=1)) == {"run/1": (0, 15), "tree/1": (0, 0), "tenant/1": (0, 15)}
    mixed = (settling(one, 4, expected=2), calling(other, 3, expected=1), calling(unbound, 999, expected=1))
    assert await plain(*mixed) == {"run/1": (4, 5), "tree/1": (0, 3), "tenant/1": (4, 8)}
    free = to_task(one, asked("m1-1"), expected=3)._replace(**free_call(one))
    assert await plain(free, settling(other, 7, expected=2), settling(unbound, 999, expected=2)) == {"run/1": (4, 5), "tree/1": (7, 0), "tenant/1": (11, 5)}
    last = (settling(same, 0, expected=2), calling(other, 984, "last", expected=3))
    assert await plain(*last) == {"run/1": (4, 0), "tree/1": (7, 984), "tenant/1": (11, 984)}
    assert await plain(calling(one, 6, "more", expected=4), calling(unbound, 6, "more", expected=3)) is None, "one of them is left for the whole gate"
    await worker.close()


def free_call(task_id: TaskId) -> dict[str, Any]:
    """What the request of a call that costs nothing says about money."""
    held = reservation_id(task_id, "m1-1")
    return {"reserve": Reservation(held, 0), "settle": [Settlement(held, 0)]}
