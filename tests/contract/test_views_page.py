"""docs/views.md and the database agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.postgres import Database

pytestmark = pytest.mark.hand_written("views are tried on histories of every shape")

PAGE = Path(__file__).parents[2] / "docs" / "views.md"


async def test_every_view_and_column_is_documented(database: Database) -> None:
    rows = re.findall(r"^\| `crewlog\.(\w+)` \|[^|]*\| `([^`]*)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {name: columns.split(", ") for name, columns in rows}
    connection = await database.admin()
    try:
        found: dict[str, list[str]] = {}
        for view, column in await connection.fetch(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'crewlog' ORDER BY table_name, ordinal_position"
        ):
            found.setdefault(view, []).append(column)
    finally:
        await connection.close()
    assert documented == found


async def test_the_questions_are_sql(database: Database) -> None:
    text = PAGE.read_text(encoding="utf-8")
    statements = re.findall(r"^    (select .*?;)$", text, re.MULTILINE | re.DOTALL)
    assert len(statements) == 7
    statements += re.findall(r"`(select .*?)`", text, re.DOTALL)
    assert len(statements) == 8
    connection = await database.admin()
    try:
        for statement in statements:
            await connection.fetch(statement.replace("…", "00000000-0000-4000-8000-000000000000"))
    finally:
        await connection.close()
