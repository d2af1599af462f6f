"""What `es.append` itself refuses, called by hand with arguments that our own client never makes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from support.logs import cancelled, dispatched, new_run, new_task, opening, request, submitted, to_run
from support.postgres import Database

from crewlog.events.append_call import SQL, arguments
from crewlog.events.append_request import encode_request
from crewlog.events.grants import ORCHESTRATOR
from crewlog.events.store import AppendRequest, Write
from crewlog.schemas.ids import run_stream

# places of the arguments of es.append
STREAMS, W_REQUEST, W_STREAM, W_EVENTS, TYPES, E_TYPE, E_ID, E_DATA = 0, 1, 2, 4, 11, 13, 14, 15


@pytest_asyncio.fixture
async def connection(database: Database) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database.url(ORCHESTRATOR))
    yield connection
    await connection.close()


def by_hand(*requests: AppendRequest) -> list[Any]:
    return arguments([encode_request(r) for r in requests], "by hand")


async def call(connection: Any, given: list[Any]) -> Any:
    return await connection.fetchrow(SQL, *given)


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
        request(Write(run_stream(run_id), [dispatched(new_task())], 2), Write(run_stream(other), [dispatched(new_task())], 1), run_id=run_id),
        request(Write(run_stream(other), [dispatched(new_task()), submitted(other)]), run_id=other)._replace(event_ids=[known.event_ids[0], new_task()]),
        to_run(other, dispatched(new_task()), expected=2),
    ]
    row = await call(connection, by_hand(*calls))
    special = {answer["request"]: answer["status"] for answer in msgspec.json.decode(row[2])}
    assert special == {2: "duplicate", 3: "conflict", 5: "partial"}
    assert row[0] == [1, 0, 0, 3, 2, 0, 0, 3]
