"""Bring a database to the shape this program needs: numbered SQL files, applied once each, forward only.

Files are named `0001_what_it_does.sql`; numbers are unique over all folders. Each file is one transaction together with its row in
`crewlog_migrations`. A file that was changed after it was applied is refused.

Rolling upgrades: a file with a line `-- rolling: …` says that programs of before go on beside what it does, because it only adds. A database
that knows more files than this program is taken as it is when all of those are rolling, and refused otherwise. So processes of two versions
run side by side: first the database is migrated, then process after process is replaced, and an old one that restarts meanwhile starts.
What a newer program has added to the table of rights stays: nobody takes rights away that are about events he does not know.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import asyncpg

from crewlog.events import grants
from crewlog.events.credentials import scram_verifier
from crewlog.events.postgres_hosts import check_address
from crewlog.schemas.codec import EVENT_TYPES
from crewlog.schemas.errors import ConfigError, Unavailable

log = logging.getLogger(__name__)

LOG_FOLDER: Final = Path(__file__).with_name("sql")

_ROLLING: Final = re.compile(r"^-- rolling: \S", re.MULTILINE)
_TAKES_AWAY: Final = re.compile(r"\b(DROP|RENAME|TRUNCATE|SET\s+NOT\s+NULL|ALTER\s+COLUMN\s+\w+\s+(?:SET\s+DATA\s+)?TYPE)\b", re.IGNORECASE)
_COMMENT: Final = re.compile(r"--[^\n]*")

_NAME: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
READER_CONNECTIONS_MAX: Final = 20
"""Sessions that the login for reading views may have at once: notebooks and dashboards must not take those of the crew."""

TEMPORARY_FILES_MAX: Final = "1GB"
"""What each session of a login may keep in files while a statement runs. No login can raise it for itself."""

_LOCK: Final = 0x637265776C6F67
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS public.crewlog_migrations (
  version integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now(),
  rolling boolean NOT NULL DEFAULT false)
"""
_RIGHTS: Final = "role, category, types, closing, kind, except_kinds, opens"
_COLUMN: Final = "ALTER TABLE public.crewlog_migrations ADD COLUMN rolling boolean NOT NULL DEFAULT false"
_HAS_COLUMN: Final = """
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'public.crewlog_migrations'::regclass AND attname = 'rolling')
"""

_OPEN_TO_PUBLIC: Final = """
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', p.oid::regprocedure) FROM pg_proc p
 WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname ~ '^(pg_(try_)?advisory_(xact_)?lock(_shared)?|lo_creat|lo_create|lo_from_bytea)$'
   AND has_function_privilege('public', p.oid, 'EXECUTE')
 UNION ALL
SELECT format('REVOKE %s ON DATABASE %I FROM PUBLIC', CASE WHEN d.datname = current_database() THEN 'TEMPORARY' ELSE 'CONNECT, TEMPORARY' END, d.datname)
  FROM pg_database d WHERE d.datallowconn AND has_database_privilege('public', d.oid, 'TEMPORARY')
"""

_PUBLIC_MAY: Final = """
SELECT what FROM (VALUES (1, 'take locks that stop the readers of the log', '^pg_(try_)?advisory_(xact_)?lock(_shared)?$'),
                         (2, 'make large objects', '^lo_(creat|create|from_bytea)$')) f (n, what, functions)
 WHERE EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname ~ f.functions
                                       AND has_function_privilege('public', p.oid, 'EXECUTE'))
 UNION ALL
SELECT 'keep temporary tables' WHERE has_database_privilege('public', current_database(), 'TEMPORARY')
"""
_SET_BY_ITSELF: Final = """
SELECT format('ALTER ROLE %I %s RESET %I', r.rolname, CASE WHEN d.oid IS NULL THEN '' ELSE format('IN DATABASE %I', d.datname) END, split_part(entry, '=', 1))
  FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase
       CROSS JOIN unnest(s.setconfig) entry LEFT JOIN pg_settings p ON p.name = split_part(entry, '=', 1)
 WHERE r.rolname = $1 AND p.context IS DISTINCT FROM 'superuser'
"""


class Migration(NamedTuple):
    """One SQL file."""

    version: int
    name: str
    sql: str

    @property
    def is_rolling(self) -> bool:
        """True when programs that do not know this file go on beside what it did."""
        return _ROLLING.search(self.sql) is not None

    @property
    def sha256(self) -> str:
        """Fingerprint of the text, kept in the database to notice changed files."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def read_migrations(folders: Sequence[Path]) -> list[Migration]:
    """Read the SQL files of several folders in order of their numbers.

    Raises:
        ConfigError: a badly named file, one number twice, or a file that is not as rolling as it says.
    """
    found: dict[int, Migration] = {}
    for path in sorted(path for folder in folders for path in folder.glob("*.sql")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise ConfigError(f"migration {path} is not named like 0001_what_it_does.sql")
        version = int(match[1])
        if version in found:
            raise ConfigError(f"migration number {version} is used by {found[version].name} and by {path.name}")
        found[version] = migration = Migration(version, path.name, path.read_text(encoding="utf-8"))
        if migration.is_rolling and (taken := _TAKES_AWAY.search(_COMMENT.sub("", migration.sql))) is not None:
            raise ConfigError(f"migration {path.name} says that it is rolling, but has {taken[0]}: programs of before would miss what that takes away")
    return [found[version] for version in sorted(found)]


def fingerprint(folders: Sequence[Path]) -> str:
    """Return eight characters that change with every SQL file, for folders that only this build can go on with."""
    return hashlib.sha256("".join(migration.sha256 for migration in read_migrations(folders)).encode()).hexdigest()[:8]


async def migrate(admin_url: str, folders: Sequence[Path] = (LOG_FOLDER,), *, wait_s: float = 60.0) -> list[str]:
    """Apply what is missing and write the table of rights. Several callers at once take turns.

    Args:
        admin_url: login that owns the database, or will.
        wait_s: how long to wait for another process that is migrating, in seconds.

    Returns:
        Names of the files that were applied.

    Raises:
        ConfigError: a changed file, a database too new for this program, or SQL that fails.
        Unavailable: the server cannot be reached, or somebody else keeps migrating.
    """
    wanted = read_migrations(folders)
    connection = await connect(admin_url)
    try:
        await _lock(connection, wait_s)
        await connection.execute(_TABLE)
        if not await connection.fetchval(_HAS_COLUMN):
            await connection.execute(_COLUMN)
        missing = _missing(wanted, await connection.fetch("SELECT version, name, sha256, rolling FROM public.crewlog_migrations ORDER BY version"))
        for migration in missing:
            await _apply(connection, migration)
        await _write_grants(connection)
        return [migration.name for migration in missing]
    finally:
        await connection.close()


async def ensure_database(admin_url: str) -> None:
    """Create the database that `admin_url` names if the server does not have it yet."""
    check_address(admin_url)
    parts = urlsplit(admin_url)
    name = unquote(parts.path.removeprefix("/"))
    connection = await connect(parts._replace(path="/postgres").geturl())
    try:
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name):
            with suppress(asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):  # somebody else was faster
                await connection.execute(f"CREATE DATABASE {await _quoted(connection, name)}")
    finally:
        await connection.close()


async def ensure_roles(admin_url: str, passwords: Mapping[str, str], *, wait_s: float = 60.0) -> None:
    """Create or alter the logins and give them what they need besides `es.append`'s own table of rights.

    Run it after `migrate`, at every start: it repeats harmlessly. Several callers at once take turns, with those who migrate too. What a login may have
    set for itself, and for everybody who logs in as it, such as how transactions are isolated, is as if it had never been said.

    Args:
        passwords: login -> password; which rights a login gets follows from its name (`crewlog.events.grants`).
        wait_s: how long to wait for another process that migrates or does the same, in seconds.

    Raises:
        Unavailable: the server cannot be reached, or somebody else keeps migrating.
    """
    connection = await connect(admin_url)
    try:
        await _lock(connection, wait_s)
        async with connection.transaction():
            for role, password in sorted(passwords.items()):
                await _ensure_login(connection, role, password)
            for role in sorted(passwords.keys() & set(grants.ROLES)):
                await _grant_rights(connection, role)
    finally:
        await connection.close()


async def close_to_public(admin_url: str) -> None:
    """Take away what Postgres lets every login do, in a server that is the crew's alone: hold locks that others look at, keep data of its own, fill
    the disk with what one question is sorted in.

    One lock of a login that only reads views would stop all readers of the log (`es.high_water`), the seals, or the next start. Run it behind
    `ensure_roles`, as a superuser; it repeats harmlessly.
    """
    connection = await connect(admin_url)
    try:
        async with connection.transaction():
            for row in await connection.fetch(_OPEN_TO_PUBLIC):
                await connection.execute(row[0])
            await connection.execute(f"GRANT EXECUTE ON FUNCTION pg_try_advisory_lock(bigint) TO {grants.PROJECTOR}")  # who leads is told by one
            for role in grants.ROLES:
                if role != grants.PROJECTOR:  # which sorts whole logs for a rebuild
                    await connection.execute(f"ALTER ROLE {role} SET temp_file_limit = '{TEMPORARY_FILES_MAX}'")
    finally:
        await connection.close()


async def open_to_public(connection: Any) -> list[str]:
    """Say what every login of the server may do in this database: a server that is not the crew's alone keeps what Postgres lets them do.

    Returns:
        Nothing where `close_to_public`, or somebody by hand, has taken it away.
    """
    return [row[0] for row in await connection.fetch(_PUBLIC_MAY)]


async def connect(url: str, *, timeout_s: float = 10.0) -> Any:
    """Open one connection for administration.

    Raises:
        ConfigError: the address is malformed, the server refuses this login or does not have the database.
        Unavailable: the server cannot be reached.
    """
    check_address(url)
    try:
        return await asyncpg.connect(url, timeout=timeout_s, server_settings={"application_name": "crewlog migrate"})
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError, ValueError) as error:  # ValueError: the address is none
        raise ConfigError(f"Postgres refused the connection: {error}", hint="check CREWLOG_DATABASE_URL") from error
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        raise Unavailable(f"Postgres cannot be reached: {error or type(error).__name__}") from error


async def _lock(connection: Any, wait_s: float) -> None:
    # polled: waiters inside pg_advisory_lock() hold a snapshot, for which CREATE INDEX CONCURRENTLY would wait for ever
    for _ in range(int(wait_s / 0.1) + 1):
        if await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
            return
        await asyncio.sleep(0.1)
    raise Unavailable(f"another process has been migrating this database for {wait_s:g} s")


_OTHER_BUILD = "another build of crewlog made this database: use that one, or another home folder (--home); who changed the file: restore it, write a new one"


def _missing(wanted: Sequence[Migration], applied: Sequence[Mapping[str, Any]]) -> list[Migration]:
    by_version = {migration.version: migration for migration in wanted}
    for row in applied:
        migration = by_version.pop(row["version"], None)
        if migration is None and row["rolling"]:
            log.info("a newer program has added %s to the database; this one goes on beside it", row["name"])
            continue
        if migration is None:
            raise ConfigError(f"the database has migration {row['name']}, which this program does not know", hint="use the newer program that made it")
        if migration.sha256 != row["sha256"]:
            raise ConfigError(f"migration {migration.name} was changed after it was applied", hint=_OTHER_BUILD)
    return list(by_version.values())


async def _apply(connection: Any, migration: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                "INSERT INTO public.crewlog_migrations (version, name, sha256, rolling) VALUES ($1, $2, $3, $4)",
                *(migration.version, migration.name, migration.sha256, migration.is_rolling),
            )
    except asyncpg.PostgresError as error:
        raise ConfigError(f"migration {migration.name} failed and was rolled back: {error}") from error


async def _write_grants(connection: Any) -> None:
    owner = await connection.fetchval("SELECT session_user::text")
    rights = {
        (grant.role, grant.category): (grant.types, grant.closing, grant.kind, sorted(grant.except_kinds), grant.opens)
        for grant in (*grants.GRANTS, *grants.owner_grants(owner))
    }
    async with connection.transaction():
        for role, category, types, closing, *scope in await connection.fetch(f"SELECT {_RIGHTS} FROM es.grants"):  # noqa: S608 - constants of the program
            if newer := frozenset(types) - EVENT_TYPES.keys():
                own_types, own_closing, *own_scope = rights.get((role, category), (frozenset(), frozenset(), *scope))
                rights[role, category] = (own_types | newer, own_closing | (newer & frozenset(closing)), *own_scope)
        await connection.execute("DELETE FROM es.grants")
        rows = [(*key, sorted(types), sorted(closing), *scope) for key, (types, closing, *scope) in rights.items()]
        await connection.copy_records_to_table("grants", schema_name="es", columns=_RIGHTS.split(", "), records=rows)


async def _ensure_login(connection: Any, role: str, password: str) -> None:
    name = await _quoted(connection, role)
    exists = await connection.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", role)
    secret = await connection.fetchval("SELECT quote_literal($1::text)", scram_verifier(password))
    await connection.execute(f"{'ALTER' if exists else 'CREATE'} ROLE {name} LOGIN PASSWORD {secret}")
    for row in await connection.fetch(_SET_BY_ITSELF, role):
        await connection.execute(row[0])
    # an append that idles inside its transaction would hold back every reader of the whole log
    await connection.execute(f"ALTER ROLE {name} SET idle_in_transaction_session_timeout = '10s'")


async def _grant_rights(connection: Any, role: str) -> None:
    if role == grants.READER:
        await _restrict_reader(connection, await _quoted(connection, role))
        return
    writes = any(grant.role == role for grant in grants.GRANTS)
    rights = [
        "USAGE ON SCHEMA es",
        "SELECT ON es.streams, es.events, es.blobs, es.budgets, es.reservations, es.open_reservations, es.seals, es.tombstones",
        "SELECT ON SEQUENCE es.event_position",
        "EXECUTE ON FUNCTION es.high_water, es.read_all",
    ]
    if writes:
        append = "es.append, es.append_plain, es.append_opening, es.correct_bill"
        rights += [f"EXECUTE ON FUNCTION {append}", "INSERT, UPDATE (put_at) ON es.blobs"]
    if role != grants.PROJECTOR:  # views hold nothing that is personal, so whoever keeps them needs no keys
        rights.append("SELECT ON es.person_keys, es.person_blobs, es.person_files")
    if writes and role != grants.ARCHIVIST:
        rights.append("INSERT ON es.person_blobs, es.person_files")
    if role in (grants.ORCHESTRATOR, grants.OPERATOR):
        rights.append("INSERT ON es.person_keys")
    if role in (grants.PROJECTOR, grants.OPERATOR):
        rights.append("EXECUTE ON FUNCTION es.seal")
    if role == grants.OPERATOR:
        rights.append("EXECUTE ON FUNCTION es.import_run")
    if role == grants.ARCHIVIST:
        rights.append("EXECUTE ON FUNCTION es.run_digest, es.archive_hindrance, es.archive_run, es.prune_blobs, es.destroy_person_keys, es.drop_erased_text")
        rights.append("DELETE ON es.person_files")
    if role == grants.ORCHESTRATOR:
        rights += ["SELECT, INSERT, UPDATE, DELETE ON es.timers", "EXECUTE ON FUNCTION es.changed_runs, es.end_held_appends"]
    if role == grants.PROJECTOR:  # many rows go through a temporary table
        rights.append(f"TEMPORARY ON DATABASE {await _quoted(connection, await connection.fetchval('SELECT current_database()'))}")
    name = await _quoted(connection, role)
    for right in rights:
        await connection.execute(f"GRANT {right} TO {name}")


async def _restrict_reader(connection: Any, name: str) -> None:
    """Set what a session of the reader begins with. Its rights are those on the public views, given with them; these settings only keep mistakes small."""
    settings = {"default_transaction_read_only": "on", "statement_timeout": "60s", "lock_timeout": "5s", "search_path": "crewlog, pg_catalog"}
    for setting, value in settings.items():
        await connection.execute(f"ALTER ROLE {name} SET {setting} = {value if ',' in value else repr(value)}")
    await connection.execute(f"ALTER ROLE {name} CONNECTION LIMIT {READER_CONNECTIONS_MAX}")


async def _quoted(connection: Any, name: str) -> str:
    quoted: str = await connection.fetchval("SELECT quote_ident($1)", name)
    return quoted
