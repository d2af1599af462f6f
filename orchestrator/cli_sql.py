"""`crewlog sql`: ask the public views in SQL."""

from __future__ import annotations

import csv
import io
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from crewlog.orchestrator.cli_options import HomeOption
from crewlog.orchestrator.cli_output import load_config, print_json, print_table, run_async, say

if TYPE_CHECKING:
    from crewlog.orchestrator.read_only_sql import Answer

CELL_CHARS_MAX: Final = 80
"""Of a cell in a table for people; JSON and CSV have all of it."""


class SqlOutput(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(run_async(sql))


async def sql(
    query: Annotated[str, typer.Argument(metavar="QUERY|FILE|-", help="One SELECT, a file that holds it, or - for stdin.", show_default=False)],
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="Most rows to print.")] = 1_000,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, max=3_600, help="Most seconds it may take.")] = 30.0,
    home: HomeOption = None,
    output: Annotated[SqlOutput, typer.Option("--output", "-o", help="How to print the rows.")] = SqlOutput.TABLE,
) -> None:
    """Ask the public views in SQL; nothing can be changed, and nothing else be read.

    The views are those of docs/views.md; they need no prefix: crewlog sql "select run_id, status, goal from runs". In CSV, text that a
    spreadsheet would carry out as a formula has an apostrophe in front.
    """
    from crewlog.orchestrator.endpoints import database_url
    from crewlog.orchestrator.read_only_sql import ask

    answer = await ask(database_url(load_config(home), "reader"), _text(query), rows_max=limit, timeout_s=timeout)
    match output:
        case SqlOutput.JSON:
            print_json([dict(zip(answer.columns, row, strict=True)) for row in answer.rows])
        case SqlOutput.CSV:
            typer.echo(to_csv(answer), nl=False)
        case SqlOutput.TABLE:
            print_table(answer.columns, [[_cell(value) for value in row] for row in answer.rows], right=_numbers(answer))
    if answer.is_cut:
        say(f"only the first {limit} rows; --limit prints more")


def to_csv(answer: Answer) -> str:
    """Return the rows as CSV of RFC 4180, with a heading."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(answer.columns)
    for row in answer.rows:
        writer.writerow([_harmless(_flat(value)) for value in row])
    return text.getvalue()


def _text(query: str) -> str:
    if query == "-":
        return sys.stdin.read()
    if " " not in query.strip() and Path(query).is_file():
        return Path(query).read_text(encoding="utf-8")
    return query


def _flat(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _harmless(value: Any) -> Any:
    """What models and pages wrote must not become a formula in a spreadsheet."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _cell(value: Any) -> str:
    text = "" if value is None else str(_flat(value))
    return text if len(text) <= CELL_CHARS_MAX else f"{text[: CELL_CHARS_MAX - 1]}…"


def _numbers(answer: Answer) -> frozenset[str]:
    columns = zip(*answer.rows, strict=True) if answer.rows else ()
    kinds = ([value for value in column if value is not None] for column in columns)
    return frozenset(
        name
        for name, values in zip(answer.columns, kinds, strict=False)
        if values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    )
