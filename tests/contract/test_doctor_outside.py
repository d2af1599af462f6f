"""What `crewlog doctor` finds about the web and about MCP servers that are configured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from support.postgres import Database

from crewlog.events.config import Config
from crewlog.events.config_mcp import McpServer
from crewlog.events.grants import READER
from crewlog.orchestrator.doctor import Finding, examine

SERVER = str(Path(__file__).parents[1] / "support" / "mcp_server.py")


async def findings(tmp_path: Path, **settings: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in await examine(Config(home=tmp_path, **settings))}


async def test_servers_are_reached_and_counted(tmp_path: Path) -> None:
    good = McpServer(kinds=("research", "data"), command=sys.executable, args=(SERVER,), tools=("add", "pid"))
    bad = McpServer(kinds=("research",), command="no-such-command")
    found = await findings(tmp_path, mcp={"good": good, "bad": bad})
    assert found["extra mcp"].ok
    assert found["mcp good"][1:3] == (True, "2 tools for research, data")
    assert found["mcp bad"][1:3] == (False, "no tools; MCP server bad: there is no command 'no-such-command'")
    assert not found["mcp bad"].needed


async def test_a_misspelt_setting_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CREWLOG_SLOT", "CREWLOG_BOGUS", "CREWLOG_HOUSE_API_KEY", "CREWLOG_TENANT"):
        monkeypatch.setenv(name, "2")
    found = [(f.found, f.hint, f.needed) for f in await examine(Config(home=tmp_path)) if f.check == "setting"]
    assert found == [("CREWLOG_BOGUS is none", "docs/configuration.md lists them all", False), ("CREWLOG_SLOT is none", "write CREWLOG_SLOTS", False)]


async def test_an_address_that_is_none_is_a_finding(tmp_path: Path) -> None:
    for address in ("mysql://x", "postgresql://a:port/x"):
        found = (await findings(tmp_path, database_url=address))["postgres"]
        assert (found.ok, found.hint) == (False, "check CREWLOG_DATABASE_URL")
        assert "malformed" in found.found


async def test_what_every_login_of_a_server_may_do_is_told_until_it_is_taken_away_as_the_guide_says(database: Database, tmp_path: Path) -> None:
    public = "any of the server may take locks that stop the readers of the log, make large objects, keep temporary tables"
    guide = Path(__file__).parents[2].joinpath("docs/guide.md").read_text()
    admin = await database.admin()
    for sql, ok, said in (
        (f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pg_catalog TO PUBLIC; GRANT TEMPORARY ON DATABASE {database.name} TO PUBLIC", False, public),
        (guide.partition("```sql\nDO $$")[2].partition("```")[0].join(("DO $$", "")), True, "no more than they need"),
    ):
        await admin.execute(sql)
        told = (await findings(tmp_path, database_url=database.url(READER)))["postgres logins"]
        assert (told.ok, told.found, told.needed) == (ok, said, False)
    await admin.close()


async def test_the_web_is_told_as_it_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BRAVE_API_KEY", "TAVILY_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert (await findings(tmp_path))["web"][1:3] == (False, "no search engine; reads no pages")
    assert (await findings(tmp_path, fetch_hosts=("*.example.org",)))["web"][1:3] == (True, "no search engine; reads pages of *.example.org")
    lonely = (await findings(tmp_path, searxng_url="http://127.0.0.1:1"))["web"]
    assert (lonely.ok, lonely.found) == (False, "searches with searxng; reads no pages")
    assert "CREWLOG_FETCH_HOSTS" in lonely.hint
