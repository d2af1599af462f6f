"""Events as a Parquet file, written by DuckDB (extra `data`) from lines of JSON beside it: the log may be larger than the memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from crewlog.schemas.errors import ConfigError, ContractError

COLUMNS: Final[Mapping[str, str]] = {
    "position": "BIGINT",
    "stream": "VARCHAR",
    "version": "BIGINT",
    "type": "VARCHAR",
    "schema_version": "SMALLINT",
    "event_id": "UUID",
    "tenant": "VARCHAR",
    "run_id": "UUID",
    "task_id": "UUID",
    "causation_id": "UUID",
    "occurred_at": "TIMESTAMPTZ",
    "actor": "VARCHAR",
    "data": "VARCHAR",
}
"""Columns of the file, in order. `data` is JSON as text."""


def parquet_line(event: Mapping[str, Any], tenant: str) -> bytes:
    """Return one line of what the file is made from.

    Args:
        event: as it is relayed to `events.>`.
    """
    row = {**event, "tenant": tenant, "data": msgspec.json.encode(event["data"]).decode()}
    return msgspec.json.encode({name: row[name] for name in COLUMNS}) + b"\n"


def write_parquet(lines: Path, out: Path) -> None:
    """Make a Parquet file, compressed with zstd, of lines of JSON.

    Raises:
        ConfigError: DuckDB is not installed.
        ContractError: the file cannot be written.
    """
    try:
        import duckdb
    except ModuleNotFoundError:
        raise ConfigError("Parquet files need DuckDB, which is not installed", hint="pip install 'crewlog[data]'") from None
    connection = duckdb.connect()
    try:
        rows = connection.read_json(str(lines), format="newline_delimited", columns=dict(COLUMNS), maximum_object_size=1 << 28)
        rows.write_parquet(str(out), compression="zstd")
    except duckdb.IOException as error:
        raise ContractError(f"{out} cannot be written: {error}") from None
    finally:
        connection.close()
