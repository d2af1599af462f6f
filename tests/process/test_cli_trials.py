"""The command line against a real crew: fork, golden, eval. Shapes of `-o json` are a contract."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from support.live_crew import LiveCrew

from crewlog.events.clock import SystemClock
from crewlog.events.credentials import load_credentials
from crewlog.events.nats_bus import NatsBus
from crewlog.events.postgres_store import PostgresStore
from crewlog.orchestrator.home import Home
from crewlog.orchestrator.replay import replay
from crewlog.orchestrator.service import OrchestratorService
from crewlog.schemas.ids import RunId, shadow_run_id
from crewlog.schemas.task import AgentTask, parse_task


@pytest.fixture(scope="module")
def run(crew: LiveCrew, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of one task that has ended: there is no table to count."""
    notes = tmp_path_factory.mktemp("notes") / "notes.txt"
    notes.write_text(f"Nothing but words: {uuid4()}.\n")
    shown: dict[str, Any] = crew.json("submit", "Count the rows", "--type", "data", "--attach", notes, "--wait", "--timeout", "90")
    return shown


async def test_a_fork_goes_on_from_an_event_and_says_where_it_comes_from(crew: LiveCrew, run: dict[str, Any]) -> None:
    forked = crew.json("fork", run["run_id"], "--at", "7", "--reason", "to see")
    assert set(forked) == {"run_id", "parent_run_id", "at", "tasks"}
    assert (forked["parent_run_id"], forked["at"], forked["tasks"]) == (run["run_id"], 7, ["task"])
    async with crew.client() as client:
        ended = await client.wait(RunId(UUID(forked["run_id"])))
        report = await replay(await client.store(), RunId(UUID(forked["run_id"])))
    assert (ended.status, ended.source, str(ended.parent_run_id), ended.answer) == ("completed", "fork", run["run_id"], run["answer"])
    assert report.divergence is None
    assert "has events 1 to" in crew.run("fork", run["run_id"], "--at", "999", code=3).stderr


def test_a_run_is_kept_as_a_golden_task_that_the_crew_carries_out_as_well(crew: LiveCrew, run: dict[str, Any], tmp_path: Path) -> None:
    kept = crew.json("golden", "record", run["run_id"], "--to", tmp_path / "count.golden.json")
    assert set(kept) == {"run_id", "name", "files"}
    (lived,) = crew.json("golden", "run", tmp_path, "--live")
    assert (lived["name"], lived["passed"], lived["differences"]) == ("count", True, [])


def test_a_planned_run_is_asked_the_same_when_it_is_played_without_a_crew(crew: LiveCrew, tmp_path: Path) -> None:
    planned = crew.json("submit", "Count the rows", "--wait", "--timeout", "90")
    crew.run("golden", "record", planned["run_id"], "--to", tmp_path)
    (again,) = crew.json("golden", "run", tmp_path, "--strict")
    assert (again["passed"], again["drift"]) == (True, [])


def test_instructions_for_a_kind_that_is_none_are_refused(crew: LiveCrew, run: dict[str, Any]) -> None:
    for command in (("eval",), ("fork", run["run_id"], "--at", "7")):
        said = crew.run(*command, "--prompt", "ghost=Be brief.", code=2).stderr
        assert "a prompt is named for kind ghost, which no agent has; there are " in said
        assert {"code", "communicate", "data"} <= set(said.rpartition("there are ")[2].split(", ")), "and whoever else was in a crew that others use, too"


def test_two_evaluations_at_once_keep_apart(crew: LiveCrew, run: dict[str, Any]) -> None:
    def tried() -> dict[str, Any]:
        found: dict[str, Any] = crew.json("eval", "--last", "1", "--type", "data", "--model", "offline", "--max-usd", "0.25")
        return found

    with ThreadPoolExecutor(2) as terminals:
        both = [asked.result() for asked in [terminals.submit(tried) for _ in range(2)]]
    assert [[pair["run_id"] for pair in found["pairs"]] for found in both] == [[run["run_id"]]] * 2
    assert len({found["budget"]["scope"] for found in both}) == len({found["pairs"][0]["trial_id"] for found in both}) == 2
    assert [(found["summary"]["diverging"]["count"], found["skipped"], found["budget"]["hard_micro_usd"]) for found in both] == [(0, [], 250_000)] * 2


def test_finished_runs_are_tried_again_and_their_budget_is_listed(crew: LiveCrew, run: dict[str, Any]) -> None:
    found = crew.json("eval", "--last", "1", "--type", "data", "--model", "offline", "--max-usd", "0.25", "--check", "false", code=1)
    assert set(found) == {"name", "summary", "pairs", "skipped", "budget"}
    assert [(pair["run_id"], pair["diverges"], pair["check"], pair["is_worse"]) for pair in found["pairs"]] == [(run["run_id"], False, "failed", True)]
    assert found["summary"]["diverging"]["high"] > 0.5  # one pair says little
    (budget,) = [row for row in crew.json("budget", "list", "--all") if row["scope"] == f"trial/default/{found['name']}"]
    assert (budget["kind"], budget["hard_micro_usd"]) == ("trial", 250_000)


def test_a_search_does_not_wait_for_ever_and_says_what_it_waited_for(crew: LiveCrew, run: dict[str, Any]) -> None:
    def tried(what: str, candidates: str, *more: str) -> tuple[str, str]:
        done = crew.run("bisect", run["run_id"], "--over", what, candidates, "--check", "true", "-o", "json", *more, code=1)
        found = msgspec.json.decode(done.stdout)
        assert (found["outcome"], [one["verdict"] for one in found["tried"]]) == ("unknown", ["skip"])
        # by the log: views may be a moment behind the word that a run is cancelled
        return crew.json("show", found["tried"][0]["run_id"], "--as", "tree")["status"], done.stderr

    status, said = tried("versions", "data=no-1;data=no-2", "--patience", "2")
    assert status == "cancelled"
    waits = "waits for a worker of version no-1 of kind data; versions live: 1; ended by: a worker of kind data that starts with version no-1"
    assert f"nothing has happened in it for 2 s: {waits}" in said
    refused = crew.run("bisect", run["run_id"], "--over", "versions", "1,nobody-2", "--check", "true", code=2).stderr
    assert "no agent has been there in version 'nobody-2'; versions known: " in refused
    crew.run("pause", "--kind", "data")
    try:
        status, said = tried("models", "offline,offline", "--patience", "2")
    finally:
        crew.run("resume", "--kind", "data")
    assert status == "cancelled"
    assert "is cancelled: nothing has happened in it for 2 s: " in said
    assert "crewlog resume --kind data" in said
    assert "unknown provider 'nobody'" in crew.run("bisect", run["run_id"], "--over", "models", "offline,nobody:x", "--check", "true", code=2).stderr


def test_a_check_that_says_otherwise_of_the_same_answer_finds_nothing(crew: LiveCrew, run: dict[str, Any], tmp_path: Path) -> None:
    once = f"mkdir {tmp_path}/there"  # good the first time, bad ever after
    done = crew.run("bisect", run["run_id"], "--over", "models", "offline,offline", "--check", once, "-o", "json", code=1)
    found = msgspec.json.decode(done.stdout)
    assert [one["verdict"] for one in found["tried"]] == ["good", "bad"]
    assert (found["outcome"], found["last_good"], found["first_bad"], found["suspects"]) == ("unsteady check", None, None, ["offline"])
    assert f"run {found['tried'][0]['run_id'][:8]} is bad when the check is asked again about the same answer" in done.stderr


def test_an_evaluation_without_runs_is_no_success(crew: LiveCrew) -> None:
    assert "no run of type nosuch has ended" in crew.run("eval", "--type", "nosuch", "--model", "offline", code=3).stderr


async def shadow_made(crew: LiveCrew, task: AgentTask) -> None:
    """Do what an orchestrator does whose CREWLOG_SHADOW says so, with its logins."""
    state, credentials, clock = Home(crew.home).state(), load_credentials(crew.home), SystemClock()
    assert state is not None
    assert state.nats_port is not None
    assert state.database_port is not None
    bus = await NatsBus.connect(credentials.nats_url("orchestrator", state.nats_port), name="shadows")
    store = await PostgresStore.open(credentials.postgres_url("crewlog_orchestrator", state.database_port), actor="orchestrator@shadows", clock=clock)
    try:
        await OrchestratorService(store, bus, clock).driver.submit(task, "api", is_shadow=True)
        await bus.flush()
    finally:
        await store.close()
        await bus.close()


async def test_a_shadow_waits_for_workers_of_its_own_and_is_then_held_against_its_run(crew: LiveCrew, run: dict[str, Any]) -> None:
    shadow = str(shadow_run_id(RunId(UUID(run["run_id"]))))
    trial = {"source": run["run_id"], "models": "offline", "name": "shadow-data-2026-11-26", "hard_micro_usd": 100_000}
    task = {"task_id": shadow, "run_id": shadow, "type": "data", "objective": "Count the rows", "priority": "shadow", "trial": trial}
    async with crew.client() as client:
        await shadow_made(crew, parse_task(task))
        await client.indexed(max([recorded.position async for recorded in client.events(RunId(UUID(shadow)))]), "runs")
        (waiting,) = await client.waits.why(shadow)
        assert (waiting.wait.reason, waiting.workers) == ("no_worker", ())
        assert "crewlog scale data.shadow=1" in waiting.wait.ends
        said = crew.run("shadow", "--last", "20", "--type", "data").stderr
        assert "no agent is up that takes the work of shadows" in said
        assert "it waits for a worker" in said
        try:
            assert crew.json("scale", "data.shadow=1")["agents"]["data.shadow"] == 1
            assert (await client.wait(RunId(UUID(shadow)))).status == "completed"
            assert [worker.group for worker in await client.workers() if worker.is_shadow] == ["data.shadow"]
            (pair,) = [pair for pair in crew.json("shadow", "--last", "20", "--type", "data")["pairs"] if pair["trial_id"] == shadow]
            assert (pair["run_id"], pair["status"], pair["trial_status"], pair["diverges"]) == (run["run_id"], "completed", "completed", False)
        finally:
            await client.scale({"data.shadow": 0})
