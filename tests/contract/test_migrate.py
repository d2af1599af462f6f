"""The migration runner: each file once, all or nothing, forward only; logins and rights afterwards."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from support.logs import CLOCK, new_run, new_task, opening
from support.postgres import Database

from crewlog.events.credentials import scram_verifier
from crewlog.events.migrate import _LOCK, LOG_FOLDER, connect, ensure_database, ensure_roles, fingerprint, migrate, read_migrations
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.server_postgres import PostgresServer
from crewlog.schemas.errors import ConfigError, Unavailable

_numbers = count(1)


@pytest_asyncio.fixture
async def empty(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """Return the URL of a database that does not exist yet."""
    name = f"empty {next(_numbers)}"  # a name that must be quoted
    yield postgres_server.admin_url(name.replace(" ", "%20"))
    connection = await connect(postgres_server.admin_url("postgres"))
    await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    await connection.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the log's migrations and one more behind them."""
    for path in LOG_FOLDER.glob("*.sql"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "0050_more.sql").write_text("CREATE TABLE public.more (x int);")
    return tmp_path


async def tables(url: str) -> set[str]:
    connection = await connect(url)
    rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    await connection.close()
    return {row[0] for row in rows}


async def test_each_file_is_applied_once(empty: str) -> None:
    await ensure_database(empty)
    await ensure_database(empty)
    names = sorted(path.name for path in LOG_FOLDER.glob("*.sql"))
    assert await migrate(empty) == names
    assert await migrate(empty) == []


async def test_processes_that_start_together_take_turns(empty: str) -> None:
    await asyncio.gather(*(ensure_database(empty) for _ in range(4)))
    applied = await asyncio.gather(*(migrate(empty) for _ in range(6)))
    assert sorted(map(len, applied)) == [0, 0, 0, 0, 0, len(list(LOG_FOLDER.glob("*.sql")))]


async def test_folders_are_read_as_one_sequence(empty: str, tmp_path: Path) -> None:
    await ensure_database(empty)
    (tmp_path / "0101_view.sql").write_text("CREATE VIEW public.seen AS SELECT position FROM es.events;")
    applied = await migrate(empty, [tmp_path, LOG_FOLDER])
    assert applied[-1] == "0101_view.sql"


async def test_a_file_that_fails_leaves_nothing_of_itself(empty: str, folder: Path) -> None:
    await ensure_database(empty)
    (folder / "0060_broken.sql").write_text("CREATE TABLE public.half (x int); SELECT 1/0;")
    with pytest.raises(ConfigError, match=r"0060_broken.sql failed and was rolled back: division by zero"):
        await migrate(empty, [folder])
    assert await tables(empty) == {"crewlog_migrations", "more"}
    (folder / "0060_broken.sql").write_text("CREATE TABLE public.half (x int);")
    assert await migrate(empty, [folder]) == ["0060_broken.sql"]


async def test_a_changed_file_is_refused(empty: str, folder: Path) -> None:
    await ensure_database(empty)
    await migrate(empty, [folder])
    (folder / "0050_more.sql").write_text("CREATE TABLE public.other (x int);")
    with pytest.raises(ConfigError, match=r"(?s)0050_more.sql was changed.*another home folder"):
        await migrate(empty, [folder])


def test_what_only_this_build_can_use_is_named_after_its_files(folder: Path) -> None:
    before = fingerprint([folder])
    assert fingerprint([folder]) == before
    (folder / "0050_more.sql").write_text("CREATE TABLE public.other (x int);")
    assert fingerprint([folder]) != before
    assert len(before) == 8


async def test_a_database_newer_than_the_program_is_refused(empty: str, folder: Path) -> None:
    await ensure_database(empty)
    await migrate(empty, [folder])
    with pytest.raises(ConfigError, match=r"0050_more.sql, which this program does not know"):
        await migrate(empty)


ROLLING = """-- Room for what a later program records.
-- rolling: it only adds, so that programs of before neither see nor miss it
CREATE TABLE public.later (x int);
ALTER TABLE es.timers ADD COLUMN later text; -- DROP nothing
"""


async def test_a_program_of_before_goes_on_beside_a_rolling_migration(empty: str, folder: Path) -> None:
    (folder / "0050_more.sql").write_text(ROLLING)
    await ensure_database(empty)
    assert (await migrate(empty, [folder]))[-1] == "0050_more.sql"
    assert await migrate(empty) == [], "the older program starts again while the newer one runs"
    store = await PostgresStore.open(empty, actor="orchestrator@older", clock=CLOCK)
    run_id, task_id = new_run(), new_task()
    await store.append(opening(run_id, task_id))
    await store.set_timers({run_id: 1})
    assert list(await store.take_due(2, 5)) == [run_id]
    await store.close()
    assert await migrate(empty, [folder]) == []


async def test_a_program_of_before_leaves_the_rights_of_a_newer_one_alone(empty: str) -> None:
    await ensure_database(empty)
    await migrate(empty)
    connection = await connect(empty)
    rights = "SELECT role, category, types, closing, kind, except_kinds, opens FROM es.grants ORDER BY role, category"
    await connection.execute("UPDATE es.grants SET types = types || '{TaskDreamt,TaskWoken}', closing = closing || '{TaskWoken}' WHERE category = 'task'")
    await connection.execute("INSERT INTO es.grants (role, category, types, closing, opens) VALUES ('crewlog_orchestrator', 'dream', '{Dreamt}', '{}', true)")
    await connection.execute("INSERT INTO es.grants (role, category, types, closing, opens) VALUES ('crewlog_research', 'run', '{RunFailed}', '{}', false)")
    newer = [tuple(row) for row in await connection.fetch(rights)]
    await migrate(empty)
    older = [tuple(row) for row in await connection.fetch(rights)]
    await connection.close()

    def sets(rows: list[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
        return {(role, category, frozenset(types), frozenset(closing), kind, opens) for role, category, types, closing, kind, _, opens in rows}

    wrong = ("crewlog_research", "run", frozenset({"RunFailed"}), frozenset(), None, False)
    assert sets(older) == sets(newer) - {wrong}, "what is known and not granted is taken away, what is not known stays"


@pytest.mark.parametrize("taken", ["DROP TABLE es.timers;", "ALTER TABLE es.timers RENAME x TO a;", "ALTER TABLE es.timers ALTER COLUMN due_us TYPE text;"])
def test_what_takes_something_away_is_not_rolling(folder: Path, taken: str) -> None:
    (folder / "0050_more.sql").write_text(f"-- rolling: so it says\n{taken}\n")
    with pytest.raises(ConfigError, match="says that it is rolling, but has"):
        read_migrations([folder])


def test_names_and_numbers_are_checked(folder: Path) -> None:
    (folder / "0050_again.sql").write_text("SELECT 1;")
    with pytest.raises(ConfigError, match=r"number 50 is used by 0050_again.sql and by 0050_more.sql"):
        read_migrations([folder])
    (folder / "0050_again.sql").rename(folder / "50-again.sql")
    with pytest.raises(ConfigError, match="not named like"):
        read_migrations([folder])


async def test_waiting_for_another_process_ends(empty: str) -> None:
    await ensure_database(empty)
    other = await connect(empty)
    await other.execute("SELECT pg_advisory_lock($1)", _LOCK)
    with pytest.raises(Unavailable, match="another process"):
        await migrate(empty, wait_s=0.2)
    await other.close()


async def test_servers_that_cannot_be_used_are_explained(postgres_server: PostgresServer) -> None:
    with pytest.raises(ConfigError, match="refused"):
        await migrate(postgres_server.admin_url("nowhere"))
    with pytest.raises(ConfigError, match="refused"):
        await migrate(postgres_server.admin_url("postgres").replace(":admin@", ":wrong@"))
    with pytest.raises(Unavailable):
        await migrate("postgresql://x:y@127.0.0.1:1/z")


async def test_one_url_of_an_ordinary_owner_is_enough(postgres_server: PostgresServer, empty: str) -> None:
    """An external database often comes with a login that owns it and is no superuser."""
    admin = await connect(postgres_server.admin_url("postgres"))
    await admin.execute("DROP ROLE IF EXISTS somebody")
    await admin.execute("CREATE ROLE somebody LOGIN PASSWORD 'theirs'")
    await ensure_database(empty)
    name = empty.rpartition("/")[2].replace("%20", " ")
    await admin.execute(f'ALTER DATABASE "{name}" OWNER TO somebody')
    url = empty.replace("crewlog_admin:admin@", "somebody:theirs@")
    owner = await connect(empty)
    await owner.execute("ALTER SCHEMA public OWNER TO somebody")
    await owner.close()

    await migrate(url)
    store = await PostgresStore.open(url, actor="all-in-one", clock=CLOCK)
    run_id = new_run()
    await store.append(opening(run_id, new_task()))
    assert [event.writer for event in await store.read_run(run_id)] == ["somebody", "somebody"]
    assert list(await store.open_runs(after=None, limit=5)) == [run_id]
    await store.close()
    await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await admin.execute("DROP ROLE somebody")
    await admin.close()


async def test_logins_are_made_once_and_follow_their_passwords(database: Database) -> None:
    await ensure_roles(database.admin_url, {"crewlog_operator": "it's \\new"})
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(database.url("crewlog_operator"))
    connection = await asyncpg.connect(database.url("crewlog_operator"), password="it's \\new")
    assert await connection.fetchval("SELECT count(*) FROM es.events") == 0
    await connection.close()
    await ensure_roles(database.admin_url, {"crewlog_operator": database.credentials.postgres["crewlog_operator"]})
    await (await asyncpg.connect(database.url("crewlog_operator"))).close()


@pytest.mark.parametrize("role", ["crewlog_specialist", "crewlog_reader"])
async def test_what_a_login_has_set_for_all_that_log_in_as_it_is_over_with_the_next_start(database: Database, role: str) -> None:
    hostile = await asyncpg.connect(database.url(role))
    await hostile.execute("SET default_transaction_read_only = off")
    name = await hostile.fetchval("SELECT quote_ident(current_database())")
    for where, setting in (("", "default_transaction_isolation = serializable"), (f"IN DATABASE {name}", "statement_timeout = 1")):
        await hostile.execute(f"ALTER ROLE {role} {where} SET {setting}")
    await hostile.close()

    await ensure_roles(database.admin_url, {role: database.credentials.postgres[role]})
    connection = await asyncpg.connect(database.url(role))
    assert await connection.fetchval("SHOW default_transaction_isolation") == "read committed"
    assert await connection.fetchval("SHOW statement_timeout") == ("1min" if role == "crewlog_reader" else "0")
    assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "10s"
    await connection.close()


async def test_who_starts_together_sets_the_same_logins_one_after_the_other(database: Database) -> None:
    password = database.credentials.postgres["crewlog_operator"]
    await asyncio.gather(*(ensure_roles(database.admin_url, {"crewlog_operator": password}) for _ in range(6)))
    connection = await asyncpg.connect(database.url("crewlog_operator"))
    assert await connection.fetchval("SELECT session_user") == "crewlog_operator"
    await connection.close()


async def test_what_is_kept_of_a_password_is_what_the_server_itself_would_keep(database: Database) -> None:
    """The server prepares a password before it keeps it; a client does the same before it proves that it knows it."""
    alike = ["Schl\u00fcssel", "Schlu\u0308ssel", "\u2168", "a\u00a0b", "I\u00adX\u00e9", "\u00ad", "\u0627\u0628", "\ufb01\u00fc", "\u3000x"]
    as_they_are = ["\u0627\u0031", "a\u0627", "bell\u0007\u00fc", "\U0001f511", "\u0221", "\ue000", "x\u0340", "plain", " "]
    connection = await database.admin()
    for password in (*alike, *as_they_are):
        await connection.execute(f"ALTER ROLE crewlog_operator PASSWORD {await connection.fetchval('SELECT quote_literal($1::text)', password)}")
        kept = await connection.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = 'crewlog_operator'")
        assert scram_verifier(password, b64decode(kept.split(":")[1].split("$")[0])) == kept, ascii(password)
        await ensure_roles(database.admin_url, {"crewlog_operator": password})
        if password != "x\u0340":  # this client normalises first, and would find nothing that is forbidden
            await (await asyncpg.connect(database.url("crewlog_operator"), password=password)).close()
    await ensure_roles(database.admin_url, {"crewlog_operator": database.credentials.postgres["crewlog_operator"]})
    await connection.close()


async def test_no_password_stands_in_a_statement(database: Database) -> None:
    admin = await database.admin()
    await admin.execute(f"ALTER DATABASE {database.name} SET log_statement = 'all'")
    try:
        await ensure_roles(database.admin_url, {"crewlog_operator": "a password to look for"})
        await (await asyncpg.connect(database.url("crewlog_operator"), password="a password to look for")).close()
    finally:
        await ensure_roles(database.admin_url, {"crewlog_operator": database.credentials.postgres["crewlog_operator"]})
        await admin.close()
    logged = database.server.log.read_text()
    assert "ALTER ROLE crewlog_operator LOGIN PASSWORD" in logged
    assert "a password to look for" not in logged
