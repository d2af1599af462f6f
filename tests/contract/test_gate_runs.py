"""Whose run an event is of: that of its stream, so that nobody shows something to another tenant as of a run of that one."""

from __future__ import annotations

import asyncio

import asyncpg
import msgspec
import pytest
from support.logs import CLOCK, Log, asked, cancelled, completed, dispatched, new_run, new_task, opening, request, started, to_run, to_task
from support.postgres import Database

from crewlog.events.append_call import SQL_OPENING, SQL_PLAIN, opening_arguments, plain_arguments
from crewlog.events.append_request import encode_request
from crewlog.events.grants import ORCHESTRATOR, SPECIALIST, kind_role
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import NO_STREAM, Appended, AppendRequest, EventStore, Reservation, Write
from crewlog.schemas.errors import ConflictError, ContractError, NotAuthorised
from crewlog.schemas.ids import RunId, Stream, TaskId, alert_stream, corrected_event_id, mcp_stream, reservation_id, run_stream, spend_stream, task_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.system_events import BillCorrected, CallSettled, McpToolPinned, RunStoodStill
from crewlog.schemas.usage import WORST_CASE, Price, Usage

pytestmark = pytest.mark.hand_written("tries events of a run on streams of another")

RESEARCH = kind_role("research")


def settled(task_id: TaskId, run_id: RunId | None) -> AppendRequest:
    event = CallSettled(task_id, run_id or RunId(task_id), "m1-1", "provider", "model", Usage(), Price(0, WORST_CASE))
    return request(Write(spend_stream(task_id), [event]), run_id=run_id, task_id=task_id)


def pinned(server: str) -> Write:
    return Write(mcp_stream(server), [McpToolPinned(server, "tool", content_hash(b"{}"), msgspec.Raw(b"{}"), accepted=False)], NO_STREAM)


async def two_runs(log: Log) -> tuple[EventStore, EventStore, RunId, TaskId, RunId, TaskId]:
    """Open two runs with a task each; returns the stores of the orchestrator and of an agent, and the ids."""
    orchestrator = await log.open()
    run_id, task_id, other, of_other = new_run(), new_task(), new_run(), new_task()
    await orchestrator.append(opening(run_id, task_id))
    await orchestrator.append(opening(other, of_other))
    return orchestrator, await log.open(RESEARCH), run_id, task_id, other, of_other


async def refuses(store: EventStore, asked_for: AppendRequest, *said: object) -> None:
    with pytest.raises(ContractError) as caught:
        await store.append(asked_for)
    assert all(str(part) in str(caught.value) for part in said), caught.value


@pytest.mark.parametrize("expected", [1, -1])
async def test_an_agent_appends_to_its_task_as_of_the_run_of_that_only(log: Log, expected: int) -> None:
    _, agent, run_id, task_id, other, _ = await two_runs(log)
    await refuses(agent, to_task(task_id, started(), expected=expected, run_id=other), task_stream(task_id), run_id, other)
    await refuses(agent, to_task(task_id, started(), expected=expected, run_id=new_run()), task_stream(task_id), run_id)
    assert (await agent.append(to_task(task_id, started(), expected=expected, run_id=run_id))).versions == [2]
    assert (await agent.append(to_task(task_id, completed(), expected=2))).versions == [3]
    assert [event.run_id for event in await agent.read_streams({task_stream(task_id): 0})] == [run_id] * 3, "also where the append names no run"
    assert len(await agent.read_run(other)) == 2


async def test_what_travels_with_a_refused_request_is_written(log: Log) -> None:
    _, agent, run_id, task_id, other, of_other = await two_runs(log)
    wrong, right = to_task(task_id, started(), expected=1, run_id=other), to_task(of_other, started(), expected=1, run_id=other)
    refused, written = await asyncio.gather(agent.append(wrong), agent.append(right), return_exceptions=True)
    assert isinstance(refused, ContractError)
    assert not isinstance(written, BaseException)
    assert (await agent.append(to_task(task_id, started(), expected=1, run_id=run_id))).versions == [2]


async def test_an_append_is_of_one_run(log: Log) -> None:
    orchestrator, _, run_id, task_id, other, of_other = await two_runs(log)
    both = request(Write(run_stream(run_id), [dispatched(task_id)]), Write(run_stream(other), [dispatched(of_other)]), run_id=run_id)
    await refuses(orchestrator, both, run_stream(other), run_id, other)
    await refuses(orchestrator, to_run(run_id, cancelled(), expected=1)._replace(run_id=other), run_stream(run_id), run_id, other)
    assert len(await orchestrator.read_run(run_id)) == len(await orchestrator.read_run(other)) == 2


async def test_what_is_spent_beside_a_task_is_of_the_run_of_that(log: Log) -> None:
    _, agent, run_id, task_id, other, of_other = await two_runs(log)
    await refuses(agent, settled(task_id, other), spend_stream(task_id), run_id, other)
    assert (await agent.append(settled(of_other, None))).versions == [1]
    assert (await agent.append(settled(of_other, other))).versions == [2], "whoever opened it does not say whose it is"
    assert (await agent.append(settled(task_id, run_id))).versions == [1]
    assert [event.run_id for event in await agent.read_streams({spend_stream(of_other): 0})] == [other] * 2
    assert len(await agent.read_run(other)) == 4


@pytest.mark.parametrize("names_its_run", [True, False])
async def test_what_is_spent_beside_a_task_is_for_those_who_may_write_to_it(log: Log, names_its_run: bool) -> None:
    orchestrator, research, run_id, task_id, *_ = await two_runs(log)
    named = run_id if names_its_run else None
    for store, beside in (
        (await log.open(kind_role("code")), task_id),
        (await log.open(SPECIALIST), task_id),
        (research, new_task()),
        (orchestrator, new_task()),
    ):
        with pytest.raises(NotAuthorised):
            await store.append(settled(beside, named))
    assert not await orchestrator.read_streams({spend_stream(task_id): 0})
    assert [(await store.append(settled(task_id, named))).versions for store in (research, orchestrator)] == [[1], [2]]


async def test_what_is_spent_beside_a_task_is_written_behind_the_opening_that_it_travels_with(log: Log) -> None:
    orchestrator, run_id, task_id = await log.open(), new_run(), new_task()
    first, second = await asyncio.gather(orchestrator.append(opening(run_id, task_id)), orchestrator.append(settled(task_id, None)))
    assert (first.versions, second.versions) == ([1, 1], [1])
    assert [event.run_id for event in await orchestrator.read_streams({spend_stream(task_id): 0})] == [run_id]


async def test_a_run_is_not_opened_without_its_id_whatever_it_travels_with(log: Log) -> None:
    orchestrator, run_id, other = await log.open(), new_run(), new_run()
    both = Write(run_stream(run_id), [cancelled()], 7), Write(run_stream(other), [dispatched(new_task())], NO_STREAM)
    answers = await asyncio.gather(
        *(orchestrator.append(one) for one in (request(*both, run_id=run_id), request(*both), opening(run_id))), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [ConflictError, ContractError, Appended]


async def test_what_is_reserved_is_of_the_run_of_its_stream(log: Log) -> None:
    orchestrator, agent, run_id, task_id, *_ = await two_runs(log)
    reserved = to_task(task_id, started(), asked("m1-1"), expected=1)._replace(reserve=Reservation(reservation_id(task_id, "m1-1"), 7))
    await agent.append(reserved)
    assert [found.run_id for found in await orchestrator.open_reservations(CLOCK.now_us() + 1, 10)] == [run_id]


@pytest.mark.parametrize("expected", [2, -1])
async def test_an_event_id_that_is_taken_by_an_event_of_another_type_is_not_there(log: Log, expected: int) -> None:
    _, agent, _, task_id, *_ = await two_runs(log)
    first = to_task(task_id, started(), expected=1)
    await agent.append(first)
    await refuses(agent, request(Write(task_stream(task_id), [completed()], expected), ids=first.event_ids), task_stream(task_id), "some of its event ids")
    assert (await agent.append(first)).duplicate


async def test_the_id_of_a_bill_may_be_taken_and_then_says_so(log: Log) -> None:
    _, agent, run_id, task_id, *_ = await two_runs(log)
    await agent.append(settled(task_id, run_id)._replace(event_ids=[corrected_event_id(task_id, "m1-1")]))
    event = BillCorrected(task_id, run_id, "m1-1", "provider", "model", Usage(1, 1), Price(3, "config"), 0)
    corrects = request(Write(spend_stream(task_id), [event]), run_id=run_id, task_id=task_id, ids=[corrected_event_id(task_id, "m1-1")])
    await refuses(agent, corrects, "some of its event ids")


async def test_a_bill_is_corrected_as_of_the_run_of_its_task(log: Log) -> None:
    _, agent, run_id, task_id, other, _ = await two_runs(log)
    await agent.append(settled(task_id, run_id))
    event = BillCorrected(task_id, run_id, "m1-1", "provider", "model", Usage(1, 1), Price(3, "config"), 0)
    corrects = request(Write(spend_stream(task_id), [event]), run_id=run_id, task_id=task_id)
    await refuses(agent, corrects._replace(run_id=other), other)
    assert (await agent.append(corrects)).versions == [2]


async def test_streams_of_no_run_hold_events_of_a_run_only_beside_its_own(log: Log) -> None:
    orchestrator, agent, run_id, task_id, other, _ = await two_runs(log)
    await refuses(agent, request(pinned("one"), run_id=other), mcp_stream("one"), other)
    own = Write(task_stream(task_id), [started()], 1)
    await refuses(agent, request(own, pinned("one"), run_id=other), task_stream(task_id), run_id, other)
    await agent.append(request(own, pinned("one"), run_id=run_id))
    await agent.append(request(pinned("two")))
    for server in ("one", "two"):
        await refuses(agent, request(pinned(server)._replace(expected=1), run_id=other), mcp_stream(server), other)
        assert (await agent.append(request(pinned(server)._replace(expected=1)))).versions == [2]
    stands = request(Write(alert_stream(run_id), [RunStoodStill(run_id, "nobody works on it", 1)]), run_id=run_id)
    assert (await orchestrator.append(stands)).versions == [1]


@pytest.mark.parametrize("expected", [2, -1])
async def test_an_append_to_a_run_that_names_no_run_is_of_that_one(log: Log, expected: int) -> None:
    orchestrator, _, run_id, task_id, *_ = await two_runs(log)
    await orchestrator.append(to_run(run_id, dispatched(task_id), expected=1))
    assert (await orchestrator.append(to_run(run_id, cancelled(), expected=expected)._replace(run_id=None))).versions == [3]
    assert [event.run_id for event in await orchestrator.read_streams({run_stream(run_id): 0})] == [run_id] * 3
    for again in (0, 1, -1):
        with pytest.raises(ConflictError):
            await orchestrator.append(to_run(run_id, cancelled(), expected=again)._replace(run_id=None))
    await refuses(orchestrator, to_run(new_run(), cancelled())._replace(run_id=None))


async def test_a_stream_of_no_run_is_of_none_whoever_opened_it(log: Log) -> None:
    """Else a run would show what others write there later, and could not leave the log while it is open."""
    _, agent, run_id, task_id, other, of_other = await two_runs(log)
    await agent.append(request(Write(task_stream(task_id), [started()], 1), pinned("one"), run_id=run_id))
    await agent.append(request(Write(task_stream(of_other), [started()], 1), pinned("one")._replace(expected=1), run_id=other))
    for one, of_one in ((run_id, task_id), (other, of_other)):
        assert {event.stream for event in await agent.read_run(one)} == {run_stream(one), task_stream(of_one)}
    assert [event.run_id for event in await agent.read_streams({mcp_stream("one"): 0})] == [run_id, other]


async def test_narrow_functions_leave_what_is_of_another_run_to_the_whole_gate(database: Database) -> None:
    orchestrator = await PostgresStore.open(database.url(ORCHESTRATOR), actor="o", clock=CLOCK)
    run_id, task_id, other = new_run(), new_task(), new_run()
    await orchestrator.append(opening(run_id, task_id))
    await orchestrator.append(opening(other))
    connection = await asyncpg.connect(database.url(RESEARCH))
    plain = plain_arguments([encode_request(to_task(task_id, started(), expected=1, run_id=run_id))], "by hand")
    assert plain is not None
    for asked_for in (request(pinned("one"), run_id=run_id), request(settled(task_id, None).writes[0]._replace(expected=NO_STREAM))):
        opens = opening_arguments([encode_request(asked_for)], "by hand")
        assert opens is not None
        assert await connection.fetchval(SQL_OPENING, *opens) is None
    for run in ([other], [[other]], []):
        assert await connection.fetchval(SQL_PLAIN, *plain[:4], run, *plain[5:]) is None
    by_place = SQL_PLAIN.replace("$5", "$5::text::uuid[]")  # the row is found by the first, the event would be written with the one that has number 1
    assert await connection.fetchval(by_place, *plain[:4], f"[0:1]={{{run_id},{other}}}", *plain[5:]) is None
    assert len(await connection.fetchval(SQL_PLAIN, *plain)) == 1
    assert await connection.fetchval(SQL_PLAIN, [spend_stream(task_id)], *plain[1:]) is None
    await connection.close()
    assert {event.run_id for event in await orchestrator.read_streams({Stream(task_stream(task_id)): 0})} == {run_id}
    await orchestrator.close()
