"""A table of the read model: writes many rows in one statement, and nothing else.

Names are not schema-qualified: the connection's search path says whether the live tables or those of a rebuild are meant.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from types import NoneType
from typing import Any, Final, Generic, TypeVar, get_args, get_type_hints
from uuid import UUID

import asyncpg
import msgspec

from crewlog.projections.rows import Json

R = TypeVar("R", bound=msgspec.Struct)

STATEMENT_ROWS_MAX: Final = 5_000
"""Most rows of a table in one statement."""

_PG_TYPES: Final[dict[Any, str]] = {UUID: "uuid", str: "text", int: "bigint", bool: "boolean", Json: "text"}
_encode: Final = msgspec.json.Encoder().encode


class Table(Generic[R]):
    """One table whose columns are the fields of a row struct."""

    def __init__(self, name: str, row: type[R], *, key: tuple[str, ...], owner: str | None = None) -> None:
        """Describe it.

        Args:
            key: columns of the primary key.
            owner: column that says whose a row is, where the key does not: nobody replaces a row of another one.
        """
        self.name, self.key = name, key
        self.columns: Final = row.__struct_fields__
        hints = get_type_hints(row)
        types = ", ".join(f"{column} {_pg_type(hints[column])}" for column in self.columns)
        values = ", ".join(_value(field, hints[field.name]) for field in msgspec.structs.fields(row))
        updates = ", ".join(f"{column} = excluded.{column}" for column in self.columns if column not in key)
        kept = f" WHERE {name}.{owner} = excluded.{owner}" if owner is not None else ""
        # every name in this text is a constant of the program
        self._upsert = f"""INSERT INTO {name} ({", ".join(self.columns)}) SELECT {values} FROM json_to_recordset($%d) AS r ({types})
                           ON CONFLICT ({", ".join(key)}) DO UPDATE SET {updates}{kept}"""  # noqa: S608

    def upsert(self, parameter: int) -> str:
        """Return the statement that writes the rows of a JSON array: its parameter of this number."""
        return self._upsert % parameter

    async def insert(self, connection: asyncpg.Connection, rows: Collection[R]) -> None:
        """Add rows whose keys are not there yet, inside a transaction."""
        if rows:
            await connection.copy_records_to_table(self.name, records=map(msgspec.structs.astuple, rows), columns=self.columns)

    async def write(self, connection: asyncpg.Connection, rows: Collection[R]) -> None:
        """Insert rows, or replace those with the same key, inside a transaction. Two of them must not have the same key."""
        await write_together(connection, self.upsert(1), [list(rows)])


def together(tables: Iterable[Table[Any]]) -> str:
    """Return one statement that writes rows of several tables, a parameter for each."""
    parts = (f"w{n} AS ({table.upsert(n)})" for n, table in enumerate(tables, 1))
    return f"WITH {', '.join(parts)} SELECT"


async def write_together(connection: asyncpg.Connection, statement: str, rows: Sequence[Sequence[msgspec.Struct]]) -> None:
    """Insert rows of each table of a statement, or replace those with the same key, inside a transaction.

    They travel as one JSON text for each table, which costs the driver half of what an array for each column does, and the server no more.
    """
    for begin in range(0, max(map(len, rows)), STATEMENT_ROWS_MAX):
        await connection.execute(statement, *(_encode(of_table[begin : begin + STATEMENT_ROWS_MAX]).decode() for of_table in rows))


def _value(field: msgspec.structs.FieldInfo, hint: Any) -> str:
    """Return what stands for a column in a statement. A row leaves out what is as it was when it began: most of most rows."""
    value = field.name
    assert field.default_factory is msgspec.NODEFAULT, f"{field.name} begins as something made anew: no constant stands for it in SQL"
    if (default := field.default) is not msgspec.NODEFAULT and default is not None:
        assert NoneType not in get_args(hint), f"{field.name} may be None, but begins as {default!r}: a None would be written as that"
        # a constant of the program, and JSON writes numbers, booleans and such words as SQL does, but for the quotes
        value = f"coalesce({value}, {_encode(default).decode().replace(chr(34), chr(39))})"
    return f"{value}::jsonb" if hint in (Json, Json | None) else value


def _pg_type(hint: Any) -> str:
    options = [option for option in get_args(hint) if option is not NoneType]
    if options and all(isinstance(option, str) for option in options):  # Literal
        return "text"
    return _PG_TYPES[options[0] if options else hint]
