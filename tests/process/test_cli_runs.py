"""The command line against a real crew: submit, look, replay. Shapes of `-o json` are a contract."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from support.live_crew import DEMO, LiveCrew

from crewlog.events.credentials import load_credentials
from crewlog.orchestrator.bundle import read_bundle
from crewlog.orchestrator.home import Home
from crewlog.orchestrator.replay import replay
from crewlog.schemas.errors import ContractError
from crewlog.schemas.payload import content_hash

GOAL = "Summarise the mean body mass by species."


@pytest.fixture(scope="module")
def finished(crew: LiveCrew) -> dict[str, Any]:
    """A run that has ended, as `submit --wait -o json` prints it."""
    shown: dict[str, Any] = crew.json("submit", GOAL, "--attach", DEMO / "penguins.csv", "--wait", "--timeout", "90")
    return shown


def test_a_goal_with_a_file_is_answered_from_the_file(finished: dict[str, Any]) -> None:
    assert finished["status"] == "completed"
    assert finished["simulated"] is True
    assert "3700.66" in finished["answer"]
    assert {task["kind"] for task in finished["tasks"]} == {"planner", "data"}


def test_progress_goes_to_stderr_one_line_per_event_and_the_answer_to_stdout(crew: LiveCrew) -> None:
    done = crew.run("submit", GOAL, "--attach", DEMO / "penguins.csv", "--wait")
    assert "RunSubmitted" in done.stderr
    assert "ToolFinished" in done.stderr
    assert "3700.66" in done.stdout
    assert "RunSubmitted" not in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


async def test_the_client_takes_any_name_of_a_run(crew: LiveCrew, finished: dict[str, Any]) -> None:
    whole = uuid.UUID(finished["run_id"])
    async with crew.client() as client, asyncio.timeout(60):
        for name in (whole, str(whole), str(whole)[:13]):
            assert (await client.wait(name)).run_id == whole
            assert {task.run_id for task in await client.tasks(name)} == {whole}
            assert await client.waits.why(name) == []


async def test_a_client_that_is_closed_opens_nothing_any_more(crew: LiveCrew, finished: dict[str, Any]) -> None:
    async with crew.client() as client:
        run = await client.run(finished["run_id"])
    before = asyncio.all_tasks()
    for late in (client.submit("count"), client.wait(run.run_id), client.runs(), client.tasks(run.run_id), client.workers(), client.scale({}), client.store()):
        with pytest.raises(ContractError, match=r"this client is closed; use it inside of `async with Client\.connect"):
            await late
    assert asyncio.all_tasks() == before


def test_without_wait_the_id_alone_is_printed(crew: LiveCrew) -> None:
    run_id = crew.run("submit", GOAL, "--attach", DEMO / "penguins.csv").stdout.strip()
    assert str(uuid.UUID(run_id)) == run_id
    assert crew.json("watch", run_id)["run_id"] == run_id


SHAPES = {
    "run": (
        "run_id tenant user_name type goal status submitted_at finished_at tasks_done tasks_total agents turns tool_calls input_tokens output_tokens "
        "cost_micro_usd unpriced_calls simulated approvals_pending flags artifacts answer answer_ref citations error_code error hold warnings "
        "source parent_run_id"
    ),
    "task": (
        "task_id run_id key kind revision objective depends_on status waiting_reason worker provider model simulated attempt turns model_calls tool_calls "
        "input_tokens output_tokens cached_tokens cost_micro_usd unpriced_calls planned_at dispatched_at started_at finished_at verdict issues artifacts "
        "outcome error_code error"
    ),
    "budget": (
        "scope kind tenant run_id day soft_micro_usd hard_micro_usd spent_micro_usd reserved_micro_usd is_open runs_held changed_at changed_by reason "
        "is_over_soft"
    ),
    "event": "event_id type schema_version stream version position run_id task_id occurred_at causation_id actor data",
    "cost": "group calls input_tokens output_tokens cached_tokens cost_micro_usd unpriced_calls simulated cache_write_tokens reasoning_tokens "
    "saved_micro_usd failed_calls failed_micro_usd unused_calls unused_micro_usd worst_case_calls worst_case_micro_usd open_calls",
    "repriced": "group calls repriced_calls repriced_micro_usd recorded_micro_usd unlisted_calls unlisted_models unlisted_micro_usd "
    "unmeasured_calls unmeasured_micro_usd",
    "replay": "run_id events streams model_calls state_hash divergence unknown erased_us",
    "status": "home processes agents providers views problems held controls standstills",
    "process": "name kind state pid restarts",
    "agent": "kind worker version slots model simulated unavailable started_at is_shadow",
    "view": "name position head waiting_since",
}


def fields(shape: str) -> set[str]:
    return set(SHAPES[shape].split())


def test_shapes_that_json_prints_keep_their_fields(crew: LiveCrew, finished: dict[str, Any]) -> None:
    run_id = finished["run_id"]
    assert set(finished) == fields("run") | {"tasks"}
    assert set(finished["tasks"][0]) == fields("task")
    assert set(crew.json("runs")[0]) == fields("run")
    assert set(crew.json("show", run_id)) == fields("run") | {"tasks"}
    assert {frozenset(json.loads(line)) for line in crew.run("events", run_id, "-o", "json").stdout.splitlines()} == {frozenset(fields("event"))}
    assert set(crew.json("costs", run_id, "--by", "agent")[0]) == fields("cost")
    assert set(crew.json("costs", run_id, "--reprice", "genai-prices")[0]) == fields("repriced")
    assert set(crew.json("replay", run_id)) == fields("replay")
    status = crew.json("status")
    assert set(status) == fields("status")
    assert set(status["processes"][0]) == fields("process")
    assert set(status["agents"][0]) == fields("agent")
    assert set(status["views"][0]) == fields("view")
    assert crew.json("why", run_id) == []
    assert {frozenset(budget) for budget in crew.json("budget", "show", run_id)} == {frozenset(fields("budget"))}
    assert [asked for asked in crew.json("approvals") if asked["run_id"] == run_id] == []


def test_every_run_replays_identically(crew: LiveCrew, finished: dict[str, Any]) -> None:
    report = crew.json("replay", finished["run_id"], "--verify")
    assert report["divergence"] is None
    assert report["model_calls"] == sum(task["model_calls"] for task in finished["tasks"])
    assert "identical" in crew.run("replay", finished["run_id"], "--verify").stderr


def test_a_run_is_looked_into_and_goes_to_a_file_that_replays_without_the_crew(crew: LiveCrew, finished: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "run.crewlog"
    crew.run("export", finished["run_id"], "--out", file)
    bundle = read_bundle(file)
    asked = next(recorded for recorded in reversed(bundle.events) if recorded.type == "ModelCallFinished")
    told = crew.json("explain", str(asked.event_id)[:30])
    assert (told["run_id"], told["event"]["position"]) == (finished["run_id"], asked.position)
    assert told["request"]["is_exact"] is True
    report = asyncio.run(replay(bundle.store(), bundle.run_id))
    assert report.divergence is None
    assert report.state_hash == crew.json("replay", finished["run_id"])["state_hash"]
    crew.run("show", file, "--save", tmp_path / "made")
    made = {path.relative_to(tmp_path / "made").as_posix(): content_hash(path.read_bytes()) for path in (tmp_path / "made").rglob("*") if path.is_file()}
    assert made == {artifact["name"]: artifact["hash"] for artifact in finished["artifacts"]}
    crew.run("export", file, "--out", tmp_path / "texts.crewlog", "--without-files")
    assert read_bundle(tmp_path / "texts.crewlog") == bundle._replace(files={})


def test_tables_are_for_people(crew: LiveCrew, finished: dict[str, Any]) -> None:
    short = finished["run_id"][:8]
    assert short in crew.run("runs").stdout
    assert "RunCompleted" in crew.run("events", short).stdout
    assert "total" in crew.run("costs", short).stdout
    assert "AGENT" in crew.run("costs").stdout
    assert "orchestrator" in crew.run("status").stdout
    assert "every task has ended" in crew.run("why", short).stderr


def test_ids_may_be_short_and_the_last_run_needs_none(crew: LiveCrew, finished: dict[str, Any]) -> None:
    assert crew.json("show", finished["run_id"][:8])["run_id"] == finished["run_id"]
    assert crew.json("show", "@last")["run_id"] == crew.json("show")["run_id"] == crew.json("runs")[0]["run_id"]


LOADED = """
import json, sys
from crewlog.orchestrator.cli_quick import run_quickly
code = run_quickly(sys.argv[1:])
json.dump(sorted(sys.modules), sys.stderr)
sys.exit(code)
"""
BESIDE_PYTHON = {"crewlog", "asyncpg", "msgspec", "platformdirs", "typing_extensions", "_distutils_hack"}
"""All that a look at a run may load: the driver of the database, the codec, and the way to the home folder. Not pydantic: what is in the log was
checked when it was accepted."""
LOOKS = (
    ("show", "{}"),
    ("show", "--as", "tree", "{}"),
    ("show", "--as", "timeline", "{}"),
    ("show", "--as", "events", "{}"),
    ("show", "--as", "conversation", "{}"),
    ("events", "{}"),
    ("explain", "{}:5"),
    ("replay", "{}", "--to", "5"),
    ("diff", "{}:9", "{}:9"),
    ("lineage", "{}"),
)


def test_a_look_loads_neither_the_bus_nor_the_command_line_nor_the_settings(crew: LiveCrew, finished: dict[str, Any]) -> None:
    for words in LOOKS:
        asked = [word.format(finished["run_id"]) for word in words]
        done = subprocess.run([sys.executable, "-P", "-c", LOADED, *asked], env=crew.env, capture_output=True, text=True, timeout=60, check=True)
        loaded = set(json.loads(done.stderr[done.stderr.index('["') :]))
        installed = {name.partition(".")[0] for name in loaded} & packages_distributions().keys()
        assert installed - BESIDE_PYTHON == set(), words
        assert not loaded & {"crewlog.events.config", "crewlog.events.bus", "crewlog.orchestrator.client"}, words


def test_files_are_saved(crew: LiveCrew, finished: dict[str, Any], tmp_path: Any) -> None:
    crew.run("show", finished["run_id"], "--save", tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {file["name"].split("/")[-1] for file in finished["artifacts"]}


def test_views_are_rebuilt_to_the_same(crew: LiveCrew, finished: dict[str, Any]) -> None:
    before = crew.json("show", finished["run_id"])
    done = crew.json("db", "rebuild")
    assert done["events"] > 0
    assert "runs" in done["projections"]
    assert isinstance(done["corrected"], dict)
    assert crew.json("show", finished["run_id"]) == before
    assert crew.json("db", "migrate") == {"applied": [], "logins": [], "open_to_public": []}
    assert crew.json("db", "url")["url"].startswith("postgresql://crewlog_operator:")


def test_a_plan_of_ones_own_needs_no_planner(crew: LiveCrew, tmp_path: Any) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"steps": [{"key": "count", "type": "data", "objective": "How many rows are there?"}]}))
    shown = crew.json("submit", "--file", plan, "--attach", DEMO / "penguins.csv", "--wait")
    assert [task["key"] for task in shown["tasks"]] == ["count"]
    assert "344" in shown["answer"]


def test_a_task_as_json_on_stdin_is_one_run_however_often_it_is_sent(crew: LiveCrew) -> None:
    task = json.dumps({"task_id": str(uuid.uuid4()), "type": "research", "objective": "Which library holds documents?"})
    first = json.loads(crew.run("submit", "--file", "-", "-o", "json", stdin=task).stdout)
    again = json.loads(crew.run("submit", "--file", "-", "-o", "json", stdin=task).stdout)
    assert (first["status"], again["status"]) == ("accepted", "duplicate")
    assert first["run_id"] == again["run_id"]
    crew.run("watch", first["run_id"])


def test_documents_are_added_once_and_found(crew: LiveCrew, tmp_path: Any) -> None:
    (tmp_path / "lighthouse.md").write_text("# Lighthouse\n\nThe lamp of the lighthouse is lit at 19:40 every evening.\n")
    assert [d["added"] for d in crew.json("docs", "add", tmp_path / "lighthouse.md")] == [True]
    assert [d["added"] for d in crew.json("docs", "add", tmp_path / "lighthouse.md")] == [False]
    assert "lighthouse.md" in [d["name"] for d in crew.json("docs", "list")]
    shown = crew.json("submit", "When is the lamp of the lighthouse lit?", "--type", "research", "--wait")
    assert "19:40" in shown["answer"]


def test_a_search_forks_the_run_for_each_try_and_names_the_first_bad_one(crew: LiveCrew, tmp_path: Path) -> None:
    run = crew.json("submit", "Which islands are there?", "--type", "research", "--wait")["run_id"]
    prompts = [tmp_path / name for name in ("good.txt", "bad.txt")]
    for prompt in prompts:
        prompt.write_text("You answer from documents.")
    check = tmp_path / "check.sh"
    first = tmp_path / "first"  # is the one whose answer is good
    check.write_text(f"#!/bin/sh\ncat >{tmp_path}/$CREWLOG_STATUS\ntest -e {first} || echo $CREWLOG_RUN >{first}\ntest $CREWLOG_RUN = $(cat {first})\n")
    check.chmod(0o755)

    found = crew.json("bisect", run, "--over", "prompts", ",".join(map(str, prompts)), "--check", check)

    assert (found["outcome"], found["last_good"], found["first_bad"]) == ("first bad", *map(str, prompts))
    assert [tried["verdict"] for tried in found["tried"]] == ["good", "bad"]
    assert len({run, *(tried["run_id"] for tried in found["tried"])}) == 3
    assert (tmp_path / "completed").read_text()


def test_a_run_is_published_again(crew: LiveCrew, tmp_path: Path) -> None:
    run = crew.json("submit", "Which islands are there?", "--type", "research", "--wait")["run_id"]
    assert "published" in crew.run("replay", run, "--subject", "replay.mine", "--speed", "1000").stderr
    assert "crews work with" in crew.run("replay", run, "--subject", "events.mine", code=2).stderr
    assert "may not publish" in crew.run("replay", run, "--subject", "elsewhere.mine", code=2).stderr
    crew.run("export", run, "--out", tmp_path / "run.crewlog")
    state = Home(crew.home).state()
    assert state is not None
    assert state.nats_port is not None
    nobody = LiveCrew(tmp_path / "none", {"CREWLOG_NATS_URL": load_credentials(crew.home).nats_url("operator", state.nats_port)})
    told = nobody.run("replay", tmp_path / "run.crewlog", "--subject", "replay.mine", "--speed", "1000").stderr
    assert "published" in told, "an exported run needs a NATS server, and no crew"
