"""Run one statement of a person over the public views: with a login that may read them and nothing else, for a bounded time, for so many rows.

What keeps it harmless are the rights of the login in the database, not a look at the text: whatever is written, it can only be read from the
views. A login that may do more is refused. The read-only transaction and the limits keep mistakes small.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from crewlog.events.connections import explain, is_retryable
from crewlog.events.postgres_hosts import cluster
from crewlog.schemas.errors import ConfigError, ContractError, Unavailable

GRACE_S: Final = 2.0
"""How much longer than the server's own limit this side waits, in seconds: a statement may switch that one off for itself."""
CELL_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of all values of a result together, as text: a few rows can be large."""

_MAY_DO_MORE: Final = """
SELECT rolsuper OR coalesce(has_schema_privilege(to_regnamespace('es')::oid, 'USAGE'), false) OR pg_has_role('pg_read_all_data', 'MEMBER')
  FROM pg_roles WHERE rolname = session_user
"""


class Answer(NamedTuple):
    """Names of the columns and the rows; `is_cut` says that there would have been more."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    is_cut: bool


async def ask(url: str, sql: str, *, rows_max: int, timeout_s: float) -> Answer:
    """Run one statement.

    Args:
        url: with the login that reads views.
        rows_max: most rows to return.
        timeout_s: longest time the statement may take.

    Raises:
        ContractError: Postgres refuses the statement, or it takes too long or says too much.
        ConfigError: the login may do more than read views.
        Unavailable: the server cannot be reached.
    """
    settings = {
        "application_name": "crewlog sql",
        "search_path": "crewlog, pg_catalog",
        "default_transaction_read_only": "on",
        "statement_timeout": str(round(timeout_s * 1000)),
    }
    try:
        connection = await cluster(url).connect(settings)
    except Exception as error:
        if is_retryable(error, None):
            raise Unavailable(f"ask the views: Postgres cannot be reached: {error or type(error).__name__}") from error
        raise explain(error, "ask the views") from error
    try:
        await _check_login(connection)
        for name in ("json", "jsonb"):
            await connection.set_type_codec(name, schema="pg_catalog", encoder=str, decoder=msgspec.json.decode)
        async with asyncio.timeout(timeout_s + GRACE_S):
            return await _fetch(connection, sql, rows_max)
    except TimeoutError:
        raise ContractError(f"the statement took longer than {timeout_s:g} s; ask for less, or give it more time with --timeout") from None
    except asyncpg.QueryCanceledError as error:
        raise ContractError(f"the statement was ended after {timeout_s:g} s; ask for less, or give it more time with --timeout") from error
    except asyncpg.ObjectNotInPrerequisiteStateError as error:  # Postgres would have a trigger made that lets the view be written
        raise ContractError(f"{error.args[0]}: nothing can be changed here, only asked with SELECT") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ContractError(f"Postgres refused the statement: {error}") from error
    finally:
        connection.terminate()


async def _check_login(connection: asyncpg.Connection) -> None:
    if await connection.fetchval(_MAY_DO_MORE):
        name = await connection.fetchval("SELECT session_user")
        raise ConfigError(
            f"login {name} may do more than read views, and so could what you ask",
            hint="set CREWLOG_READER_URL to the same database with the login crewlog_reader",
        )


async def _fetch(connection: asyncpg.Connection, sql: str, rows_max: int) -> Answer:
    """Read one row more than is wanted, in a transaction that is rolled back whatever happened in it."""
    transaction = connection.transaction(readonly=True)
    await transaction.start()
    statement = await connection.prepare(sql)  # one statement: the protocol takes no more
    columns = [attribute.name for attribute in statement.get_attributes()]
    if not columns:
        raise ContractError("only a query gives rows, and this is none")
    rows: list[list[Any]] = []
    size = 0
    async for record in statement.cursor(prefetch=100):
        row = [plain(value) for value in record]
        size += sum(len(value) if isinstance(value, str) else 16 for value in row)
        if size > CELL_BYTES_MAX:
            raise ContractError(f"the rows hold more than {CELL_BYTES_MAX} bytes; ask for fewer columns or rows")
        if len(rows) == rows_max:
            return Answer(columns, rows, is_cut=True)
        rows.append(row)
    return Answer(columns, rows, is_cut=False)


def plain(value: Any) -> Any:
    """Turn a value of Postgres into what JSON knows: numbers stay numbers where that loses nothing, everything else becomes text."""
    match value:
        case None | bool() | int() | float() | str() | dict():
            return value
        case datetime() | date():
            return value.isoformat()
        case Decimal():
            return int(value) if value == value.to_integral_value() and value.is_finite() else str(value)
        case UUID():
            return str(value)
        case bytes():
            return value.hex()
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return str(value)
