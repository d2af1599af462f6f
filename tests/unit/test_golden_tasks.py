"""The golden tasks of this repository, played without a server, a key or the network; and what happens when one is not as expected."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from support.paid_agent import AGENT, KIND
from support.scripted import ScriptedModel, calls
from support.toolbox import MemoryArtifacts
from typer.testing import CliRunner

from crewlog.events.clock import SystemClock
from crewlog.orchestrator.bundle import collect, pack_bundle, read_bundle
from crewlog.orchestrator.cli import command_line
from crewlog.orchestrator.golden import SUFFIX, Golden, find_golden, golden_of, golden_path, read_golden, recording_of, task_of, updated, write_golden
from crewlog.orchestrator.golden_observe import Difference, differences, normalised, observe
from crewlog.orchestrator.golden_play import Answers, Played, play
from crewlog.orchestrator.golden_report import Verdict, junit
from crewlog.orchestrator.memory_crew import memory_crew
from crewlog.orchestrator.replay import replay
from crewlog.orchestrator.run_history import RunHistory, all_payloads, load_history, with_texts
from crewlog.schemas.codec import encode
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId
from crewlog.schemas.price_table import TokenPrices
from crewlog.schemas.run_events import RunCancelled, RunPlanned
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import ToolStarted

FOLDER = Path(__file__).parents[1] / "golden_tasks"
ALL = find_golden([FOLDER])
MAIL = FOLDER / f"mail-approved{SUFFIX}"


async def played(path: Path, golden: Golden | None = None, **how: Any) -> Played:
    return await play(golden or read_golden(path), read_bundle(recording_of(path)), path, SystemClock(), **how)


def test_all_specialists_are_covered() -> None:
    kinds = {step.split(": ")[1].split(" ")[0] for path in ALL for step in read_golden(path).expect.plan or ()}
    assert len(ALL) >= 12
    assert kinds == {"research", "code", "data", "communicate"}
    assert all(read_golden(path).expect.max_cost_micro_usd is not None for path in ALL)


@pytest.mark.parametrize("models", ["recorded", "offline"])
@pytest.mark.parametrize("path", ALL, ids=[path.name.removesuffix(SUFFIX) for path in ALL])
async def test_a_golden_task_comes_out_as_it_did(path: Path, models: Answers) -> None:
    """`recorded`: crewlog makes the same of the same answers. `offline`: the rules give the same answers."""
    found = differences(read_golden(path).expect, observe((await played(path, models=models)).history), is_exact=True)
    assert not found, "\n".join(map(str, found))


async def test_nothing_of_a_golden_task_runs_that_reaches_out() -> None:
    history = (await played(MAIL)).history
    begun = [event for recorded in history.events if isinstance(event := recorded.event(), ToolStarted)]
    assert {event.stub for event in begun if event.tool == "send_email"} == {"recorded"}


async def test_what_is_played_replays_as_it_was() -> None:
    bundle = read_bundle(recording_of(MAIL))
    report = await replay(bundle.store(), bundle.run_id)
    assert report.divergence is None


async def test_a_call_that_the_recording_does_not_have_is_an_error_and_never_runs() -> None:
    """Another recipient: the mail is another call."""
    golden = read_golden(MAIL)
    task = {**golden.task, "objective": golden.task["objective"].replace("team@", "others@")}
    history = (await played(MAIL, msgspec.structs.replace(golden, task=task), models="offline")).history
    stubs = {event.tool: event.stub for recorded in history.events if isinstance(event := recorded.event(), ToolStarted)}
    assert "send_email" not in stubs  # nobody had approved it
    assert any(str(found).startswith("tasks.task.tools: ") for found in differences(golden.expect, observe(history), is_exact=True))


async def test_another_goal_is_noticed_as_drift() -> None:
    golden = read_golden(MAIL)
    found = await played(MAIL, msgspec.structs.replace(golden, task={**golden.task, "objective": "Mail nobody."}))
    assert found.drift[0] == "task call 1"
    assert len(found.drift) == found.calls


async def test_recorded_answers_cost_what_they_did(tmp_path: Path) -> None:
    """What a server of one's own costs is known where the crew was, and nowhere else: the recording says it."""
    path, history = await recorded_of_a_paid_run(tmp_path)
    golden, found = read_golden(path), await played(path, agents=["support.paid_agent:AGENT"])
    seen = observe(found.history)
    assert (seen.cost_micro_usd, seen.flags, found.drift) == (observe(history).cost_micro_usd, (), [])
    assert seen.cost_micro_usd == 2 * (10 * 3 + 5 * 15)
    assert not differences(golden.expect, seen, is_exact=True)
    less = msgspec.structs.replace(golden.expect, max_cost_micro_usd=seen.cost_micro_usd - 1)
    assert [found.where for found in differences(less, seen, is_exact=True)] == ["max_cost_micro_usd"]


async def recorded_of_a_paid_run(folder: Path) -> tuple[Path, RunHistory]:
    """Keep a run whose model has a price in the settings of its crew alone."""
    model = ScriptedModel([calls((name, "{}")) for name in ("look", "finish")], wire="puppet.wire", provider="puppets", name="own-1", simulated=False)
    prices, clock = {"puppets:*": TokenPrices(input=Decimal(3), output=Decimal(15))}, SystemClock()
    task = parse_task({"task_id": str(clock.random_id()), "type": KIND, "objective": "look"})
    async with memory_crew([AGENT], lambda _: (model,), clock=clock, artifacts=MemoryArtifacts(), folder=folder / "work", prices=prices) as crew:
        await crew.end(await crew.submit(task))
        history = await load_history(crew.store, RunId(task.run_id))
        history = await with_texts(crew.store, history, all_payloads(history.events))
        path = folder / f"paid{SUFFIX}"
        write_golden(path, golden_of(history, "paid"), pack_bundle(await collect(crew.store, history.run_id)), {})
    return path, history


async def test_each_difference_names_its_place() -> None:
    golden = read_golden(MAIL)
    seen = observe((await played(MAIL)).history)
    tasks = {"task": {**(golden.expect.tasks or {})["task"], "tools": ["draft_message"]}}
    strict = msgspec.structs.replace(golden.expect, tasks=tasks, max_steps=1, flags=None)
    found = differences(strict, seen, is_exact=True)
    assert [d.where for d in found] == ["tasks.task.tools", "max_steps"]
    assert str(found[1]) == 'max_steps: expected "at most 1", got 3'
    live = msgspec.structs.replace(golden.expect, answer="in other words")
    assert not differences(live, seen, is_exact=False)
    assert [d.where for d in differences(live, seen, is_exact=True)] == ["answer"]


def test_what_is_another_one_each_time_is_normalised() -> None:
    text = "run 5ff03b96-294c-4dce-9411-f27226f59edf at 2026-11-25T21:35:01.6Z in /tmp/x-1/a.py, 1 passed in 0.03s"
    assert normalised({"a": [text, 3]}) == {"a": ["run <id> at <time> in <path>, 1 passed in <time>", 3]}


async def test_a_run_is_written_and_read_again(tmp_path: Path) -> None:
    history = (await played(MAIL)).history
    golden = golden_of(history, "again")
    path = tmp_path / f"again{SUFFIX}"
    write_golden(path, golden, recording_of(MAIL).read_bytes(), {})
    assert read_golden(path) == golden
    assert golden.expect.tasks == read_golden(MAIL).expect.tasks
    ids = {"task_id": "00000000-0000-4000-8000-000000000001"}
    assert task_of(golden, **ids).objective == task_of(read_golden(MAIL), **ids).objective
    assert not golden.task.keys() & {"task_id", "run_id", "trial"}


def test_what_was_edited_in_a_golden_task_is_there_when_there_was_no_room_to_write_it(tmp_path: Path) -> None:
    path = golden_path(tmp_path, "mail")
    write_golden(path, golden := msgspec.structs.replace(read_golden(MAIL), name="edited"), b"", {})
    words = [sys.executable, "-P", "-m", "crewlog.orchestrator", "golden", "record", recording_of(MAIL), "--to", path, "--overwrite"]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # compiled modules would be cut off, too, and found by others
    full = subprocess.run(words, preexec_fn=_leave_no_room, env=env, capture_output=True, text=True, check=False)
    assert (full.returncode, full.stderr.splitlines()[0]) == (74, f"error: {path} could not be written: File too large")
    assert (read_golden(path), sorted(tmp_path.iterdir())) == (golden, [path, recording_of(path)])


def _leave_no_room() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


def test_a_golden_task_that_was_edited_is_not_written_over(tmp_path: Path) -> None:
    path, command = golden_path(tmp_path, "mail"), ["golden", "record", str(recording_of(MAIL)), "--to"]
    made = CliRunner().invoke(command_line(), [*command, str(path)])
    assert (made.exit_code, CliRunner().invoke(command_line(), [*command, str(path)]).exit_code) == (0, 0)
    golden = read_golden(path)
    edited = msgspec.structs.replace(golden, expect=msgspec.structs.replace(golden.expect, max_steps=1, answer=None))
    write_golden(path, edited, b"", {})
    refused = CliRunner().invoke(command_line(), [*command, str(path)])
    assert (refused.exit_code, read_golden(path), recording_of(path).read_bytes()) == (2, edited, b"")
    assert "is there already and says otherwise: expect." in refused.stderr
    assert "expect.answer: expected null, got " in refused.stderr
    assert "expect.max_steps: expected 1, got " in refused.stderr
    assert "--overwrite" in refused.stderr
    assert CliRunner().invoke(command_line(), [*command, str(path), "--overwrite"]).exit_code == 0
    assert read_golden(path) == golden


def test_a_golden_task_gets_the_ending_by_which_it_is_found(tmp_path: Path) -> None:
    wanted = tmp_path / "a.golden.json"
    assert [golden_path(tmp_path / name, "n") for name in ("a", "a.json", "a.golden", "a.golden.json")] == [wanted] * 4
    assert (golden_path(None, "n"), golden_path(tmp_path, "n")) == (Path("golden/n.golden.json"), tmp_path / "n.golden.json")


async def test_an_update_leaves_out_what_was_taken_out_and_keeps_bounds_that_hold() -> None:
    seen = observe((await played(MAIL)).history)
    expect = read_golden(MAIL).expect
    edited = msgspec.structs.replace(expect, answer=None, max_steps=50, max_seconds=0.0, tasks={"task": {"tools": []}}, status="failed")
    again = updated(edited, seen)
    assert (again.answer, again.max_steps, again.status, again.tasks) == (None, 50, "completed", {"task": {"tools": seen.tasks["task"]["tools"]}})
    assert again.max_seconds is not None
    assert again.max_seconds >= seen.seconds
    assert differences(again, seen, is_exact=True) == []


@pytest.mark.parametrize(
    "text", ["{", '{"name": "x"}', '{"name":"x","task":{},"expect":{"stauts":"completed"}}', '{"format":"other","name":"x","task":{},"expect":{}}']
)
def test_what_is_no_golden_task_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.golden.json").write_text(text)
    with pytest.raises(ContractError, match=r"x\.golden\.json is (no golden task|a 'other')"):
        read_golden(tmp_path / "x.golden.json")


def test_a_folder_without_any_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="crewlog golden record RUN"):
        find_golden([tmp_path])


async def test_what_somebody_cut_off_is_no_golden_task() -> None:
    history = (await played(MAIL)).history
    cut = msgspec.structs.replace(history, events=tuple(r for r in history.events if r.type not in ("RunCompleted", "TaskReviewed")))
    with pytest.raises(ContractError, match="is not over"):
        golden_of(cut, "cut")
    end = next(recorded for recorded in history.events if recorded.type == "RunCompleted")
    cancelled = msgspec.structs.replace(end, type="RunCancelled", data=encode(RunCancelled("enough", "ann")))
    with pytest.raises(ContractError, match="was cancelled: a golden task needs a run that came to its own end"):
        golden_of(msgspec.structs.replace(cut, events=(*cut.events, cancelled)), "cancelled")


async def test_what_takes_a_run_back_is_no_golden_task() -> None:
    history = (await played(MAIL)).history
    planned = next(recorded for recorded in history.run_events if recorded.type == "RunPlanned")
    plan = planned.event()
    assert isinstance(plan, RunPlanned)
    undo = msgspec.structs.replace(planned, data=encode(msgspec.structs.replace(plan, origin="rollback")))
    with pytest.raises(ContractError, match="takes back what another one did"):
        golden_of(msgspec.structs.replace(history, events=tuple(undo if recorded is planned else recorded for recorded in history.events)), "undo")


def test_a_recording_that_is_missing_says_how_to_make_it(tmp_path: Path) -> None:
    path = tmp_path / MAIL.name
    path.write_bytes(MAIL.read_bytes())
    ended = CliRunner().invoke(command_line(), ["golden", "run", str(path)])
    assert ended.exit_code == 1
    assert f"record a run again with crewlog golden record RUN --to {path}" in ended.stdout


def test_the_report_for_ci_names_what_was_asked_otherwise() -> None:
    strict = Verdict("strict", "s.golden.json", False, (), "", None, 0.1, ("task call 2",), 3)
    failure = ET.fromstring(junit([strict])).find("testcase/failure")
    assert failure is not None
    assert failure.attrib["message"] == failure.text == "1 of 3 model calls were asked otherwise than recorded, the first is task call 2"


def test_the_report_for_ci_tells_failures_from_errors() -> None:
    bad = Verdict("bad", "bad.golden.json", False, (Difference("status", "completed", "failed\x00<"),), "", None, 1.5)
    broken = Verdict("broken", "b.golden.json", False, (), "no recording", None, 0.0)
    suite = ET.fromstring(junit([Verdict("good", "g", True, (), "", None, 0.5), bad, broken]))
    assert suite.attrib | {"tests": "3", "failures": "1", "errors": "1", "time": "2.000"} == suite.attrib
    assert [[child.tag for child in case] for case in suite] == [[], ["failure"], ["error"]]


def test_the_command_ends_with_code_1_when_one_fails(tmp_path: Path) -> None:
    path = tmp_path / MAIL.name
    golden = read_golden(MAIL)
    write_golden(path, msgspec.structs.replace(golden, expect=msgspec.structs.replace(golden.expect, max_steps=1)), recording_of(MAIL).read_bytes(), {})
    report = tmp_path / "junit.xml"
    ended = CliRunner().invoke(command_line(), ["golden", "run", str(path), "--junit", str(report)])
    assert ended.exit_code == 1
    assert "max_steps" in ended.stdout
    assert 'failures="1"' in report.read_text()
    assert CliRunner().invoke(command_line(), ["golden", "run", str(MAIL), "-o", "json"]).exit_code == 0
