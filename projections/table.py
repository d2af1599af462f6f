"""A table of the read model: writes many rows in one statement, and nothing else.

Names are not schema-qualified: the connection's search path says whether the live tables or those of a rebuild are meant.
"""

from __future__ import annotations

from collections.abc import Collection
from types import NoneType
from typing import Any, Final, Generic, TypeVar, get_args, get_type_hints
from uuid import UUID

import asyncpg
import msgspec

from crewlog.projections.rows import Json

R = TypeVar("R", bound=msgspec.Struct)

UNNEST_MAX: Final = 200
"""Most rows that are written as arrays."""

_PG_TYPES: Final[dict[Any, str]] = {UUID: "uuid", str: "text", int: "bigint", bool: "boolean", Json: "jsonb"}


class Table(Generic[R]):
    """One table whose columns are the fields of a row struct."""

    def __init__(self, name: str, row: type[R], *, key: tuple[str, ...]) -> None:
        self.name, self.key = name, key
        self.columns: Final = row.__struct_fields__
        hints = get_type_hints(row)
        arrays = ", ".join(f"${n}::{_pg_type(hints[column])}[]" for n, column in enumerate(self.columns, 1))
        updates = ", ".join(f"{column} = excluded.{column}" for column in self.columns if column not in key)
        # every name in these texts is a constant of the program
        self._upsert = f"INSERT INTO {name} ({', '.join(self.columns)}) SELECT * FROM unnest({arrays}) ON CONFLICT ({', '.join(key)}) DO UPDATE SET {updates}"  # noqa: S608

        names = ", ".join(self.columns)
        self._staged = f"staged_{name}"
        self._make_staged = f"CREATE TEMPORARY TABLE IF NOT EXISTS {self._staged} (LIKE {name}) ON COMMIT DELETE ROWS"
        self._from_staged = f"INSERT INTO {name} ({names}) SELECT {names} FROM {self._staged} ON CONFLICT ({', '.join(key)}) DO UPDATE SET {updates}"  # noqa: S608

    async def insert(self, connection: asyncpg.Connection, rows: Collection[R]) -> None:
        """Add rows whose keys are not there yet, inside a transaction."""
        if rows:
            await connection.copy_records_to_table(self.name, records=map(msgspec.structs.astuple, rows), columns=self.columns)

    async def write(self, connection: asyncpg.Connection, rows: Collection[R]) -> None:
        """Insert rows, or replace those with the same key, inside a transaction. Two of them must not have the same key.

        Many rows go through a temporary table: the driver looks at every value of an array three times, which takes longer than the server does.
        """
        if len(rows) > UNNEST_MAX:
            await connection.execute(self._make_staged)
            await connection.copy_records_to_table(self._staged, records=map(msgspec.structs.astuple, rows), columns=self.columns)
            await connection.execute(self._from_staged)
        elif rows:
            await connection.execute(self._upsert, *zip(*map(msgspec.structs.astuple, rows), strict=True))


def _pg_type(hint: Any) -> str:
    options = [option for option in get_args(hint) if option is not NoneType]
    if options and all(isinstance(option, str) for option in options):  # Literal
        return "text"
    return _PG_TYPES[options[0] if options else hint]
