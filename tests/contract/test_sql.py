"""`crewlog sql`: the login of the reader reads the public views, and whatever else is tried, the database refuses."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from random import Random
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from support.histories import store_history, write_history
from support.postgres import Database
from support.views import follow, log_of, model_of

from crewlog.events.grants import OPERATOR, READER
from crewlog.orchestrator.cli_sql import to_csv
from crewlog.orchestrator.read_only_sql import Answer, ask
from crewlog.schemas.errors import ConfigError, ContractError

pytestmark = pytest.mark.hand_written("random histories: views are read, nothing is decided")

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNS = 6


@pytest_asyncio.fixture
async def url(database: Database) -> AsyncIterator[str]:
    """The reader's address of a database with some runs in it."""
    async with log_of(database) as store, model_of(database, store) as model:
        await store_history(store, write_history(Random(3), runs=RUNS, moves=300))
        await follow(model, store)
    yield database.url(READER)


async def rows(url: str, sql: str, *, rows_max: int = 100, timeout_s: float = 10) -> Answer:
    return await ask(url, sql, rows_max=rows_max, timeout_s=timeout_s)


async def test_views_are_read_by_their_names(url: str) -> None:
    found = await rows(url, "select run_id, submitted_at, cost_micro_usd, flags, simulated from runs order by submitted_at;")
    assert found.columns == ["run_id", "submitted_at", "cost_micro_usd", "flags", "simulated"]
    assert len(found.rows) == RUNS
    run_id, submitted_at, cost, flags, simulated = found.rows[0]
    assert (str(UUID(run_id)), type(cost), type(flags), type(simulated)) == (run_id, int, list, bool)
    assert datetime.fromisoformat(submitted_at).tzinfo is not None
    (data,) = (await rows(url, "select data from crewlog.events where type = 'RunSubmitted' order by position limit 1")).rows[0]
    assert data["run_id"] == run_id
    assert (await rows(url, "select 1 where false")) == Answer(["?column?"], [], is_cut=False)
    assert (await rows(url, "select n, n / 3.0 as third from generate_series(1, 5) n", rows_max=2)).is_cut


ATTEMPTS = (
    "insert into runs select * from runs",
    "update events set actor = 'x'",
    "delete from runs",
    "with gone as (delete from es.events returning 1) select * from gone",
    "truncate es.events",
    "create table mine (x int)",
    "create temp table mine (x int)",
    "select * into mine from runs",
    "drop view runs",
    "alter role crewlog_reader superuser",
    "set role crewlog_operator",
    "set session authorization crewlog_admin",
    "set transaction read write",
    "reset all",
    "commit",
    "rollback; delete from runs",
    "select 1; select 2",
    "do $$ begin perform 1; end $$",
    "copy (select 1) to '/tmp/crewlog-test-out'",
    "copy runs to program 'id'",
    "listen news",
    "vacuum",
    "",
    "-- nothing",
    "select * from es.events",
    "select * from es.blobs",
    "select * from es.grants",
    "select * from rm.runs",
    "select * from public.crewlog_migrations",
    "select * from pg_authid",
    "select * from pg_shadow",
    "select * from pg_hba_file_rules",
    "select * from pg_file_settings",
    "select * from pg_user_mappings m join pg_foreign_server s on true join pg_authid a on true",
    "select pg_read_file('/etc/passwd')",
    "select pg_ls_dir('.')",
    "select lo_import('/etc/passwd')",
    "select pg_terminate_backend(pid) from pg_stat_activity where usename <> session_user",
    "select pg_reload_conf()",
    "select nextval('es.event_position')",
    "select es.seal(10)",
    "select es.archive_run(gen_random_uuid())",
    "select set_config('role', 'crewlog_operator', true)",
    "select set_config('session_authorization', 'crewlog_admin', true)",
    "select query_to_xml('delete from es.events', true, true, '')",
    "select query_to_xml('select * from pg_authid', true, true, '')",
    "select set_config('transaction_read_only', 'off', true), query_to_xml('delete from crewlog.runs', true, true, '')",
)


@contextmanager
def suppress_contract_errors(refused: list[str], attempt: str) -> Iterator[None]:
    try:
        yield
    except ContractError:
        refused.append(attempt)


async def test_nothing_else_is_read_and_nothing_is_written(database: Database, url: str) -> None:
    admin = await database.admin()
    count = "SELECT (SELECT count(*) FROM es.events) + (SELECT count(*) FROM rm.runs) * 1000 + (SELECT count(*) FROM pg_class)"
    before = await admin.fetchval(count)
    refused = []
    for attempt in ATTEMPTS:
        with suppress_contract_errors(refused, attempt):
            await rows(url, attempt)
    assert refused == list(ATTEMPTS), "the others were let through"
    assert await admin.fetchval(count) == before
    await admin.close()


async def test_the_login_itself_has_no_more_rights(database: Database, url: str) -> None:
    """Also without the command in between, as a notebook uses it, and with every setting of the session turned off."""
    connection = await asyncpg.connect(url)
    try:
        assert await connection.fetchval("SHOW default_transaction_read_only") == "on"
        await connection.execute("SET default_transaction_read_only = off")
        for statement in (
            "DELETE FROM crewlog.runs",
            "INSERT INTO es.tombstones VALUES (1, '', gen_random_uuid())",
            "SELECT * FROM es.events",
            "CREATE SCHEMA mine",
        ):
            with pytest.raises(asyncpg.PostgresError, match=r"permission denied|cannot delete from view"):
                await connection.execute(statement)
        assert len(await connection.fetch("SELECT * FROM runs")) == RUNS
    finally:
        await connection.close()


async def test_a_login_that_may_do_more_is_refused(database: Database, url: str) -> None:
    for more in (database.admin_url, database.url(OPERATOR)):
        with pytest.raises(ConfigError, match="may do more"):
            await rows(more, "select 1")


@pytest.mark.parametrize("statement", ["select pg_sleep(60)", "select set_config('statement_timeout', '0', false), pg_sleep(60)"])
async def test_no_statement_takes_longer_than_it_may(url: str, statement: str) -> None:
    with pytest.raises(ContractError, match="--timeout"):
        await rows(url, statement, timeout_s=0.1)


async def test_a_result_is_bounded_in_bytes_too(url: str) -> None:
    with pytest.raises(ContractError, match="bytes"):
        await rows(url, "select repeat('x', 8000000) from generate_series(1, 20)")


async def test_the_ten_questions_have_answers(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    questions = __import__("ten_questions").questions()
    assert [words.split(".")[0] for words, _ in questions] == [str(n) for n in range(1, 11)]
    for words, statement in questions:
        assert (await rows(url, statement)).columns, words
    sys.modules.pop("ten_questions")


def test_csv_is_read_back_and_starts_no_formula() -> None:
    answer = Answer(["a", "b"], [["=1+1", -5], ['say "hi"\nand go', None], [{"x": [1]}, "-x"]], is_cut=False)
    assert list(csv.reader(io.StringIO(to_csv(answer)))) == [["a", "b"], ["'=1+1", "-5"], ['say "hi"\nand go', ""], ['{"x": [1]}', "'-x"]]
