"""Who may write what: the same refusals by the memory log and by the database itself, and no way around the gate."""

from __future__ import annotations

import re
from typing import Any

import asyncpg
import msgspec
import pytest
from support.logs import (
    CLOCK,
    Log,
    asked,
    completed,
    dispatched,
    new_run,
    new_task,
    opening,
    request,
    started,
    submitted,
    to_run,
    to_task,
)
from support.money import opened
from support.postgres import Database

from crewlog.events.append_call import SQL, SQL_PLAIN, arguments, plain_arguments
from crewlog.events.append_request import encode_request
from crewlog.events.grants import BUILT_IN_KINDS, GRANTS, OPERATOR, ORCHESTRATOR, PROJECTOR, READER, ROLES, SPECIALIST, kind_role, owner_grants
from crewlog.events.migrate import TEMPORARY_FILES_MAX
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import NO_STREAM, EventStore, Write
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.codec import EVENT_TYPES, Event
from crewlog.schemas.errors import NotAuthorised
from crewlog.schemas.ids import ApprovalId, Stream, agent_stream, run_stream, task_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.run_events import RUN_EVENTS
from crewlog.schemas.system_events import SYSTEM_EVENTS, AgentStopped, BillCorrected, DocumentIngested
from crewlog.schemas.task_events import TASK_EVENTS, TERMINAL_TYPES, ApprovalDecided, TaskCancelled, TaskFailed, TaskOpened
from crewlog.schemas.values import Failure

pytestmark = pytest.mark.hand_written("tries who may write what")


def ingested() -> DocumentIngested:
    content = content_hash(b"text")
    return DocumentIngested("default", content, library=True, name="a.md", media_type="text/markdown", size=4, text=content, lines=1, title="A")


# the table


def names(types: tuple[type, ...]) -> set[str]:
    return {cls.__name__ for cls in types}


def test_every_event_type_has_exactly_one_kind_of_writer() -> None:
    by_its_own_way = {BillCorrected.__name__}
    """What `es.correct_bill` writes, for whoever may settle the call: it changes budgets, so no other way may write it."""
    by_category: dict[str, set[str]] = {}
    for grant in GRANTS:
        by_category.setdefault(grant.category, set()).update(grant.types)
    assert by_category["run"] == names(RUN_EVENTS)
    assert by_category["task"] == names(TASK_EVENTS)
    assert set.union(*(types for name, types in by_category.items() if name not in ("run", "task"))) == names(SYSTEM_EVENTS) - by_its_own_way
    assert set.union(*by_category.values()) == set(EVENT_TYPES) - by_its_own_way
    orchestrator = next(g for g in GRANTS if (g.role, g.category) == (ORCHESTRATOR, "task"))
    agents = [g for g in GRANTS if g.category == "task" and g.role != ORCHESTRATOR]
    assert all(g.types.isdisjoint(orchestrator.types) and g.types | orchestrator.types == names(TASK_EVENTS) for g in agents)
    assert all(not g.opens for g in agents)


def test_every_kind_is_somebodys() -> None:
    task_grants = [g for g in GRANTS if g.category == "task" and g.role != ORCHESTRATOR]
    for kind in (*BUILT_IN_KINDS, "shouter"):
        assert [g.role for g in task_grants if g.covers(kind)] == [kind_role(kind)]
    assert [g.role for g in task_grants if g.covers(None)] == []


async def test_the_database_holds_the_table(database: Database) -> None:
    connection = await database.admin()
    rows = await connection.fetch("SELECT role, category, types, closing, kind, except_kinds, opens FROM es.grants")
    await connection.close()
    expected = {(g.role, g.category): g for g in (*GRANTS, *owner_grants("crewlog_admin"))}
    assert len(rows) == len(expected)
    for row in rows:
        grant = expected[row["role"], row["category"]]
        assert (frozenset(row["types"]), row["kind"], frozenset(row["except_kinds"]), row["opens"]) == grant[2:]
        assert frozenset(row["closing"]) == grant.closing
    assert frozenset(name for row in rows for name in row["closing"]) == TERMINAL_TYPES


# what is refused


async def refuses(store: EventStore, stream: Stream, event: Event) -> None:
    with pytest.raises(NotAuthorised):
        await store.append(request(Write(stream, [event])))


async def test_an_agent_writes_its_own_kind_only(log: Log) -> None:
    orchestrator = await log.open()
    tasks = {kind: new_task() for kind in (*BUILT_IN_KINDS, "shouter")}
    for kind, task_id in tasks.items():
        await orchestrator.append(opening(new_run(), task_id, kind=kind))
    for kind in tasks:
        worker = await log.open(kind_role(kind))
        for other, task_id in tasks.items():
            if other == kind:
                assert (await worker.append(to_task(task_id, started(), expected=1))).versions == [2]
            else:
                await refuses(worker, task_stream(task_id), asked())
    assert len(await orchestrator.read_streams({task_stream(task_id): 0 for task_id in tasks.values()})) == 2 * len(tasks)


async def test_an_agent_opens_nothing_and_ends_only_well(log: Log) -> None:
    orchestrator, worker = await log.open(), await log.open("crewlog_research")
    run_id, task_id = new_run(), new_task()
    await orchestrator.append(opening(run_id, task_id))
    opened = TaskOpened("research", "step", 0, msgspec.Raw(b"{}"))
    await refuses(worker, task_stream(new_task()), opened)
    await refuses(worker, task_stream(new_task()), started())
    await refuses(worker, run_stream(run_id), dispatched(task_id))
    await refuses(worker, agent_stream("research"), AgentStopped("research", "w"))
    await refuses(worker, Stream("elsewhere/1"), started())
    await refuses(worker, Stream("task"), started())
    failure = Failure("code", "message")
    for event in (opened, TaskFailed(failure), TaskCancelled("r", "a"), ApprovalDecided(CLOCK.new_id(), "c", content_hash(b""), "approved", "me")):  # type: ignore[arg-type]
        await refuses(worker, task_stream(task_id), event)
    assert (await worker.append(to_task(task_id, started(), completed(), expected=1))).versions == [2, 3]


async def test_the_orchestrator_does_not_speak_for_agents(log: Log) -> None:
    orchestrator = await log.open()
    task_id = new_task()
    await orchestrator.append(opening(new_run(), task_id))
    for event in (started(), asked(), completed(), submitted(new_run())):
        await refuses(orchestrator, task_stream(task_id), event)
    await refuses(orchestrator, Stream("doc/default/x"), ingested())


async def test_documents_come_from_people_and_research(log: Log) -> None:
    for role in ROLES:
        if role in (PROJECTOR, READER):
            continue
        store = await log.open(role)
        stream = Stream(f"doc/default/{role}")
        if role in (OPERATOR, "crewlog_research"):
            await store.append(request(Write(stream, [ingested()], NO_STREAM)))
        else:
            await refuses(store, stream, ingested())


async def test_a_login_without_grants_appends_nothing(log: Log) -> None:
    projector = await log.open(PROJECTOR)
    await refuses(projector, run_stream(new_run()), dispatched(new_task()))


async def test_one_wrong_stream_refuses_the_whole_request(log: Log) -> None:
    orchestrator, worker = await log.open(), await log.open("crewlog_research")
    mine, other = new_task(), new_task()
    await orchestrator.append(opening(new_run(), mine))
    await orchestrator.append(opening(new_run(), other, kind="data"))
    with pytest.raises(NotAuthorised):
        await worker.append(request(Write(task_stream(mine), [started()], 1), Write(task_stream(other), [asked()], 1)))
    assert len(await worker.read_streams({task_stream(mine): 0, task_stream(other): 0})) == 2


async def test_a_denied_request_does_not_learn_what_is_known(log: Log) -> None:
    orchestrator, worker = await log.open(), await log.open("crewlog_data")
    first = opening(new_run(), new_task())
    await orchestrator.append(first)
    with pytest.raises(NotAuthorised):
        await worker.append(first)


async def test_the_owner_of_the_database_may_write_everything(database: Database) -> None:
    store = await PostgresStore.open(database.admin_url, actor="all-in-one", clock=CLOCK)
    run_id, task_id = new_run(), new_task()
    await store.append(opening(run_id, task_id, kind="shouter"))
    await store.append(to_task(task_id, started(), completed(), expected=1))
    await store.append(request(Write(Stream("doc/default/1"), [ingested()], NO_STREAM)))
    await store.append(to_run(run_id, dispatched(task_id), expected=1))
    assert {event.writer for event in await store.read_run(run_id)} == {"crewlog_admin"}
    await store.close()


# no way around the gate

FORBIDDEN = (
    "INSERT INTO es.streams (stream_id, version) VALUES ('task/x', 1)",
    "UPDATE es.streams SET version = 0",
    "UPDATE es.streams SET kind = 'research'",
    "DELETE FROM es.streams",
    "INSERT INTO es.events SELECT * FROM es.events",
    "UPDATE es.events SET data = '{}'",
    "DELETE FROM es.events",
    "TRUNCATE es.events",
    "SELECT nextval('es.event_position')",
    "SELECT setval('es.event_position', 1)",
    "SELECT * FROM es.grants",
    "INSERT INTO es.grants VALUES ('crewlog_research', 'run', '{}', '{}', NULL, '{}', true)",
    "UPDATE es.budgets SET hard = NULL",
    "INSERT INTO es.budgets (scope) VALUES ('run/1')",
    "DELETE FROM es.budgets",
    "DELETE FROM es.reservations",
    "UPDATE es.reservations SET amount = 0",
    "UPDATE es.streams SET scopes = NULL",
    "SELECT es.make_scopes('{run/1}', '{1}', '{1}')",
    "SELECT es.reserved_elsewhere('crewlog_research', '{task/1}')",
    "UPDATE es.blobs SET data = ''",
    "DELETE FROM es.blobs",
    "DELETE FROM public.crewlog_migrations",
    "SET ROLE crewlog_admin",
    "SET ROLE crewlog_planner",
    "SET SESSION AUTHORIZATION crewlog_planner",
    "ALTER TABLE es.events DISABLE TRIGGER ALL",
    "SET session_replication_role = replica",
    "ALTER FUNCTION es.high_water() OWNER TO crewlog_research",
    "CREATE TABLE es.mine (x int)",
    "CREATE TABLE public.mine (x int)",
    "CREATE SCHEMA mine",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_xact_lock_shared(1, 2)",
    "SELECT lo_create(0)",
)


async def test_one_who_reads_views_cannot_hold_up_those_who_read_the_log(database: Database) -> None:
    store = await PostgresStore.open(database.url(ORCHESTRATOR), actor="o", clock=CLOCK)
    await store.append(opening(new_run()))
    reader = await asyncpg.connect(database.url(READER))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await reader.execute("SELECT pg_advisory_lock_shared(17747::bigint << 48)")  # as an append that has drawn its first position
    assert len((await store.read_all(0, 10)).events) == 1
    await reader.close()
    await store.close()


@pytest.mark.parametrize("role", [READER, SPECIALIST, "crewlog_research", OPERATOR, ORCHESTRATOR])
async def test_what_one_question_is_sorted_in_is_bounded_and_no_login_raises_that(database: Database, role: str) -> None:
    connection = await asyncpg.connect(database.url(role))
    await connection.execute("SET default_transaction_read_only = off")
    for sql in ("SET temp_file_limit = -1", f"ALTER ROLE {role} RESET temp_file_limit", f"ALTER ROLE {role} SET temp_file_limit = -1"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(sql)
    assert await connection.fetchval("SHOW temp_file_limit") == TEMPORARY_FILES_MAX
    await connection.close()


@pytest.mark.parametrize("role", [SPECIALIST, "crewlog_research", OPERATOR, ORCHESTRATOR])
async def test_no_login_gets_around_the_gate(database: Database, role: str) -> None:
    connection = await asyncpg.connect(database.url(role))
    for sql in FORBIDDEN:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            pytest.fail(f"{role}: {await connection.execute(sql)}: {sql}")
    if role != ORCHESTRATOR:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DELETE FROM es.timers")
    await connection.close()


def with_literals(sql: str, given: list[Any], **lists: str) -> tuple[str, list[Any]]:
    """Replace arguments, named by their number and type as `e12_text`, by lists that are written as Postgres writes them: our client counts from 1."""
    given = list(given)
    for name, literal in lists.items():
        number, of = name.removeprefix("e").split("_")
        sql = re.sub(rf"\${number}(?=[,)])", f"${number}::text::{of}[]", sql)
        given[int(number) - 1] = literal
    return sql, given


async def test_no_agent_decides_about_itself_by_a_list_that_counts_from_elsewhere(database: Database) -> None:
    orchestrator = await PostgresStore.open(database.url(ORCHESTRATOR), actor="o", clock=CLOCK)
    task_id = new_task()
    await orchestrator.append(opening(new_run(), task_id, kind="communicate"))
    decided = ApprovalDecided(ApprovalId(CLOCK.new_id()), "c", content_hash(b""), "approved", "me")
    honest = arguments([encode_request(to_task(task_id, decided))], "by hand")
    connection = await asyncpg.connect(database.url("crewlog_communicate"))
    assert "denied" in (await connection.fetchrow(SQL, *honest))["r_special"]
    for types, e_type in (
        *(("{ApprovalDecided}", "[0:0]={1}"), ("{ApprovalDecided}", "{{1}}")),
        *(("[0:0]={ApprovalDecided}", "{0}"), ("[2:3]={ApprovalDecided,Nudged}", "{2}")),
    ):
        sql, given = with_literals(SQL, honest, e12_text=types, e14_int=e_type)
        with pytest.raises(asyncpg.PostgresError, match="a list counts from 1"):
            await connection.fetch(sql, *given)
    await connection.close()
    assert len(await orchestrator.read_streams({task_stream(task_id): 0})) == 1
    await orchestrator.close()


async def test_no_agent_calls_without_money_or_counts_wrong_by_such_a_list(database: Database) -> None:
    orchestrator = await PostgresStore.open(database.url(ORCHESTRATOR), actor="o", clock=CLOCK)
    task_id = new_task()
    await orchestrator.append(opened(task_id, ScopeLimit("run/1", 5, 10)))
    honest = plain_arguments([encode_request(to_task(task_id, asked(), expected=1))], "by hand")
    assert honest is not None
    honest[2] = [1]
    connection = await asyncpg.connect(database.url("crewlog_research"))
    assert await connection.fetchval(SQL_PLAIN, *honest) is None
    for number, literal in (("e11_int", "[0:0]={1}"), ("e11_int", "{{1}}"), ("e3_int", "[0:0]={5}"), ("e9_text", "[0:0]={ModelCallStarted}")):
        sql, given = with_literals(SQL_PLAIN, honest, **{number: literal})
        with pytest.raises(asyncpg.PostgresError, match="a list counts from 1"):
            await connection.fetch(sql, *given)
    await connection.close()
    assert len(await orchestrator.read_streams({task_stream(task_id): 0})) == 1
    await orchestrator.close()


async def test_nobody_writes_what_would_stop_those_who_read_everything(database: Database) -> None:
    orchestrator = await PostgresStore.open(database.url(ORCHESTRATOR), actor="o", clock=CLOCK)
    task_id = new_task()
    await orchestrator.append(opening(new_run(), task_id))
    given = arguments([encode_request(to_task(task_id, started()))], "by hand")
    connection = await asyncpg.connect(database.url("crewlog_research"))
    for occurred_us, data, error in (
        *((2**62, "{}", "events_have_a_date"), (-1, "{}", "events_have_a_date")),
        *((1, '{"text": "a\\u0000b"}', "cannot be converted to text"), (1, '{"text": "a\\ud800b"}', "surrogate")),
        (1, f'{{"text": "{"x" * 800_000}"}}', "events_can_be_sent"),
    ):
        given[6], given[15] = [occurred_us], [data]
        with pytest.raises(asyncpg.PostgresError) as refused:
            await connection.fetch(SQL, *given)
        assert error in f"{refused.value} {refused.value.detail}"
    given[6], given[15] = [1], ['{"text": "a\\\\u0000b \\u0001 \\ud83d\\ude00"}']
    assert (await connection.fetchrow(SQL, *given))["r_versions"] == [2], "a backslash before u0000 is text"
    await connection.close()
    await orchestrator.close()


async def test_not_even_the_owner_changes_a_fact(database: Database) -> None:
    store = await PostgresStore.open(database.url(ORCHESTRATOR), actor="o", clock=CLOCK)
    await store.append(opening(new_run()))
    await store.close()
    connection = await database.admin()
    for sql in ("UPDATE es.events SET actor = 'me'", "DELETE FROM es.events", "TRUNCATE es.events"):
        with pytest.raises(asyncpg.PostgresError, match="append-only") as caught:
            await connection.execute(sql)
        assert caught.value.sqlstate == "ES003"
    await connection.close()


async def test_nobody_outside_the_roles_may_look(database: Database) -> None:
    connection = await database.admin()
    for function in ("es.append", "es.known_answer", "es.make_scopes", "es.reserved_elsewhere", "es.high_water", "es.read_all"):
        assert not await connection.fetchval(
            "SELECT bool_or(has_function_privilege('public', oid, 'EXECUTE')) FROM pg_proc WHERE oid::regproc::text = $1", function
        ), function
    await connection.close()
