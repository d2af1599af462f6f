"""A person's data is erased from a real crew: found nowhere afterwards, while the log verifies and everything that looks at it goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from support.audit import caught_up
from support.live_crew import LiveCrew, a_crew, only

from crewlog.events.clock import SystemClock
from crewlog.events.credentials import ADMIN, load_credentials
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.home import Home
from crewlog.schemas.ids import RunId
from crewlog.schemas.public_form import ERASED
from crewlog.schemas.task import parse_task

CLOCK = SystemClock()
ADA, BOB = "Zaphod Quux", "Trillian Frob"
"""Words that are nowhere but in the goals and files of two persons."""


@pytest.fixture(scope="module")
def keyed() -> Iterator[LiveCrew]:
    """A crew whose runs have keys."""
    with a_crew(*only("communicate"), CREWLOG_PERSON_KEYS="on", CREWLOG_SMTP_PORT="9") as crew:
        yield crew


async def submitted(client: Client, user: str, words: str, *, to: str = "") -> RunId:
    """Have a draft written, or a mail that waits for a person, and return the run."""
    goal = f"Email {to}: {words} is well" if to else f"Draft a note that {words} is well"
    task = parse_task({"task_id": str(CLOCK.random_id()), "type": "communicate", "user": user, "objective": goal})
    run = (await client.submit(task)).run_id
    if not to:
        assert (await client.wait(run)).status == "completed"
        return run
    async for recorded in client.events(run, follow=True):
        if recorded.type == "TaskSuspended":
            break
    return run


async def rows_with(crew: LiveCrew, word: str) -> list[str]:
    """Return the tables of the database that have a word in a row, whatever the column."""
    state = Home(crew.home).state()
    assert state is not None
    assert state.database_port is not None
    connection = await asyncpg.connect(load_credentials(crew.home).postgres_url(ADMIN, state.database_port))
    try:
        tables = await connection.fetch("SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('es', 'rm', 'rm_build', 'public')")
        found = [name for (name,) in tables if await connection.fetchval(f"SELECT count(*) FROM {name} t WHERE strpos(t::text, $1) > 0", word)]
        views = await connection.fetch("SELECT format('%I.%I', schemaname, viewname) FROM pg_views WHERE schemaname = 'crewlog'")
        return found + [name for (name,) in views if await connection.fetchval(f"SELECT count(*) FROM {name} t WHERE strpos(t::text, $1) > 0", word)]
    finally:
        await connection.close()


def files_with(crew: LiveCrew, word: str) -> list[str]:
    """Return the files of the home that have a word in them: those of Postgres with its write-ahead log, of NATS, artifacts, logs."""
    found = subprocess.run(["grep", "-rlaF", word, str(crew.home)], capture_output=True, text=True, check=False)
    return [str(Path(line).relative_to(crew.home).parts[0]) for line in found.stdout.splitlines()]


async def test_a_person_is_erased(keyed: LiveCrew, crew: LiveCrew, tmp_path: Path) -> None:
    async with keyed.client() as client:
        ada, bob, waits = [await submitted(client, *whose) for whose in (("ada", ADA), ("bob", BOB))] + [
            await submitted(client, "ada", ADA, to="eve@example.org")
        ]
        (asked,) = await client.asked(waits)
        assert ADA in await client.text(asked.arguments)
        assert ADA in await client.answer(await client.run(ada))
        assert {ADA in run.goal for run in await client.runs()} == {True, False}
        assert await rows_with(keyed, ADA) == [], "nothing is in the clear at any time"
        assert set(files_with(keyed, ADA)) == {"artifacts"}

        _refuses(keyed, waits)
        done = keyed.json("erase", "ada", "--yes", "--terminate", "--reason", "asked for it")
        assert (done["runs"], done["keys"], done["in_clear"]) == (2, 2, [])
        assert done["files"] >= 1
        again = keyed.json("erase", "ada", "--yes")
        assert (again["keys"], again["files"], again["erased_us"]) == (0, 0, done["erased_us"])

        assert await rows_with(keyed, ADA) == []
        assert files_with(keyed, ADA) == []
        assert keyed.json("verify", "--blobs")["faults"] == []
        await caught_up(keyed)  # what views lack that are a moment behind is corrected, too
        assert "nothing had to be corrected" in keyed.run("db", "rebuild").stderr
        rows = keyed.json("sql", "select run_id, user_name, reason from crewlog.erasures order by run_id")
        assert rows == [{"run_id": str(run), "user_name": "ada", "reason": "asked for it"} for run in sorted((ada, waits))]
        assert {run.run_id: run.goal for run in await client.runs()} == {ada: ERASED, waits: ERASED, bob: (await client.run(bob)).goal}
        later = await submitted(client, "ada", ADA)
        assert ADA in await client.answer(await client.run(later)), "a later run has a key of its own"
        assert BOB in await client.answer(await client.run(bob))
    _looks_say_so(keyed, ada)
    _an_erased_run_travels(keyed, crew, ada, tmp_path / "erased.run")
    _it_goes_to_an_archive_and_comes_back(keyed, ada, tmp_path / "archive")


def test_runs_that_lie_in_the_clear_are_named_with_what_to_do(crew: LiveCrew, tmp_path: Path) -> None:
    crew.env["CREWLOG_USER"] = "cleo"
    try:
        run = crew.json("submit", "Count the rows", "--type", "data", "--wait", "--timeout", "90")["run_id"]
    finally:
        del crew.env["CREWLOG_USER"]
    assert [each["run_id"] for each in crew.json("runs", "--user", "cleo")] == [run]
    said = crew.run("erase", "cleo", "--yes", code=1)
    assert said.stdout == ""
    assert f"not erased: 1 run of cleo (tenant default) in the clear, under no key that could be destroyed: {run}\n" in said.stderr
    assert "crewlog archive --user cleo --tenant default --older-than 0s --without-files --out FOLDER" in said.stderr
    gone = crew.json("archive", "--user", "cleo", "--tenant", "default", "--older-than", "0s", "--out", tmp_path, "--yes")
    assert [each["run_id"] for each in gone["archived"]] == [run]


def _refuses(crew: LiveCrew, waits: RunId) -> None:
    """Nothing is erased by mistake, or under a run that goes on."""
    refused = crew.run("erase", "ada", "--yes", code=2).stderr
    assert str(waits) in refused
    assert "--terminate" in refused
    assert "say so beforehand" in crew.run("erase", "ada", code=2).stderr
    assert "'nobody' matches nothing" in crew.run("erase", "nobody", "--yes", code=3).stderr


def _looks_say_so(crew: LiveCrew, run: RunId) -> None:
    """Looks at an erased run end well and tell; what would need its texts is refused."""
    replayed = crew.run("replay", str(run), "--verify")
    assert "was erased on" in replayed.stderr
    assert "identical" not in replayed.stderr
    answered = crew.run("show", str(run))
    assert answered.stdout == f"{ERASED}\n"
    assert "ordered by anonymous: asked for it" in answered.stderr
    assert "cannot be traced back to sources" in crew.run("lineage", str(run), code=2).stderr
    shown = crew.run("show", str(run), "--as", "conversation")
    assert "[erased]" in shown.stdout
    assert "was erased on" in shown.stderr
    assert "cannot be rebuilt: its person's data was erased on" in crew.run("explain", f"{run}:6").stdout
    assert "cannot be forked: its person's data was erased on" in crew.run("fork", str(run), "--at", "3", code=2).stderr


def _an_erased_run_travels(crew: LiveCrew, elsewhere: LiveCrew, run: RunId, file: Path) -> None:
    """It goes through a file to a crew without keys as what is left of it, and is erased there, too."""
    crew.run("export", str(run), "--out", file)
    assert elsewhere.json("import", file)["run_id"] == str(run)
    assert elsewhere.json("replay", str(run), "--verify")["erased_us"] > 0


def _it_goes_to_an_archive_and_comes_back(crew: LiveCrew, run: RunId, folder: Path) -> None:
    done = crew.json("archive", "--user", "ada", "--older-than", "0s", "--out", folder, "--yes")
    assert done["stayed"] == []
    assert crew.json("sql", f"select data ->> 'goal' as goal from crewlog.events where stream = 'archive/{run}'") == [{"goal": ERASED}]
    assert crew.json("import", folder / f"{run}.crewlog")["run_id"] == str(run)
    assert crew.json("replay", str(run), "--verify")["erased_us"] > 0
    assert crew.json("verify")["faults"] == []
