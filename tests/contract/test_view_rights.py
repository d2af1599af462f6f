"""Who may read the views: people and the orchestrator all of them, research the documents, other agents none, and nobody writes."""

from __future__ import annotations

import asyncpg
import pytest
from support.postgres import Database

VIEWS = (
    "runs", "tasks", "model_calls", "tool_calls", "effects", "costs", "approvals", "artifacts", "timeline", "agents", "events", "documents", "memories",
    "checkpoints", "problems", "providers", "budgets", "budget_tasks", "forks", "controls", "run_controls", "imports",
    "archives", "standstills", "erasures", "turns",
)  # fmt: skip


async def readable(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    try:
        found = set()
        for view in VIEWS:
            try:
                await connection.fetch(f"SELECT * FROM crewlog.{view} LIMIT 1")
                found.add(view)
            except asyncpg.InsufficientPrivilegeError:
                continue
        return found
    finally:
        await connection.close()


async def test_all_views_are_named_here(database: Database) -> None:
    connection = await database.admin()
    try:
        rows = await connection.fetch("SELECT table_name FROM information_schema.views WHERE table_schema = 'crewlog'")
        assert {row[0] for row in rows} == set(VIEWS)
    finally:
        await connection.close()


@pytest.mark.parametrize("role", ["operator", "orchestrator", "projector", "reader"])
async def test_people_and_the_orchestrator_read_everything(database: Database, role: str) -> None:
    assert await readable(database.url(f"crewlog_{role}")) == set(VIEWS)


async def test_research_reads_documents(database: Database) -> None:
    assert await readable(database.url("crewlog_research")) == {"documents", "checkpoints"}


@pytest.mark.parametrize("role", ["planner", "code", "data", "communicate", "specialist"])
async def test_other_agents_read_nothing(database: Database, role: str) -> None:
    assert await readable(database.url(f"crewlog_{role}")) == set()
    connection = await asyncpg.connect(database.url(f"crewlog_{role}"))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("SELECT * FROM crewlog.search_documents('default', 'x', NULL, 1)")
    finally:
        await connection.close()


@pytest.mark.parametrize("role", ["operator", "orchestrator", "research", "data"])
@pytest.mark.parametrize("statement", ["SELECT * FROM rm.runs", "DELETE FROM rm.runs", "DELETE FROM crewlog.runs", "UPDATE rm.checkpoints SET position = 0"])
async def test_nobody_else_reaches_the_tables(database: Database, role: str, statement: str) -> None:
    connection = await asyncpg.connect(database.url(f"crewlog_{role}"))
    try:
        with pytest.raises(asyncpg.PostgresError, match=r"permission denied|cannot delete from view"):
            await connection.execute(statement)
    finally:
        await connection.close()
