"""What decides about a chaos run, without processes: the draws of a seed, and each violation that an audit claims to find, planted."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from uuid import UUID

import pytest
from support.decider import a_task, broken, done, submit
from support.runlog import RunLog

from crewlog.events.store import BudgetState, Recorded
from crewlog.orchestrator.chaos import ChaosReport
from crewlog.orchestrator.chaos_audit import Calls, Found
from crewlog.orchestrator.chaos_ends import end_violations
from crewlog.orchestrator.chaos_sink import Effect
from crewlog.orchestrator.chaos_strikes import PARTS, STOPPED_S, Strike, Striker, Victim
from crewlog.orchestrator.chaos_text import report_lines
from crewlog.orchestrator.invariants import charged_micro_usd, ledger_violations, run_violations
from crewlog.schemas import effects
from crewlog.schemas.codec import encode, type_name
from crewlog.schemas.effects import ProbeVerdict
from crewlog.schemas.ids import ApprovalId, Hash, RunId, Stream, TaskId, run_stream, task_stream
from crewlog.schemas.payload import EMPTY
from crewlog.schemas.run_events import RunCancelled, RunFailed
from crewlog.schemas.system_events import BillCorrected, CallSettled
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalDecision,
    AttemptFailed,
    ModelCallFinished,
    ModelCallStarted,
    TaskCompleted,
    TaskEvent,
    TaskFailed,
    ToolFinished,
    ToolProbed,
    ToolStarted,
)
from crewlog.schemas.usage import Price, Usage
from crewlog.schemas.values import Failure, Outcome

RUN, TASK = RunId(UUID(int=1)), TaskId(UUID(int=2))
STREAM = Stream(f"task/{TASK}")
DONE = TaskCompleted(Outcome("done"), Usage(), 0, 1, 0)
CRASHED = AttemptFailed(1, Failure("internal", "it broke", True), Usage(), 0)


def recorded(*events: TaskEvent | CallSettled | BillCorrected, versions: list[int] | None = None) -> list[Recorded]:
    numbers = versions or list(range(1, len(events) + 1))
    return [
        Recorded(n, STREAM, n, UUID(int=n), type_name(event), event.schema_version, encode(event), n, RUN, TASK)
        for n, event in zip(numbers, events, strict=True)
    ]


def started(key: str = "k", call: str = "c", effect: effects.Effect = "idempotent") -> ToolStarted:
    return ToolStarted(call, "send", "1", effect, key)


def finished(status: Literal["ok", "unknown"] = "ok", call: str = "c") -> ToolFinished:
    return ToolFinished(call, "send", status, EMPTY, 1)


def probed(verdict: ProbeVerdict) -> ToolProbed:
    return ToolProbed("c", "send", verdict, EMPTY)


def decided(decision: ApprovalDecision) -> ApprovalDecided:
    return ApprovalDecided(ApprovalId(UUID(int=9)), "c", Hash("0" * 64), decision, "maria")


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([], "was accepted and is not in the log"),
        (recorded(started(), finished()), "ends at no version of 2"),
        (recorded(DONE, TaskFailed(Failure("x", "y", False))), r"ends at \[1, 2\] of 2"),
        (recorded(DONE, CRASHED), r"ends at \[1\] of 2"),
        (recorded(started(), DONE, versions=[1, 3]), r"has versions \[1, 3\]"),
        (recorded(started(), finished(), finished(), DONE), "c of .* has 2 outcomes"),
        (recorded(started("k"), started("other"), finished(), DONE), "was started under several keys"),
        (recorded(started(effect="irreversible"), started(effect="irreversible"), finished(), DONE), "was repeated and nobody was asked"),
        (recorded(started(effect="compensable"), probed("unknown"), started(effect="compensable"), finished(), DONE), "was repeated and nobody was asked"),
        (recorded(started(effect="irreversible"), finished("unknown"), DONE), "is left unknown and nobody was asked"),
    ],
)
def test_a_broken_run_is_found(events: list[Recorded], said: str) -> None:
    (violation,) = run_violations(RUN, events)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(violation)


def test_a_good_run_is_let_pass() -> None:
    begun = started(effect="irreversible")
    assert not [*run_violations(RUN, recorded(started(effect="idempotent"), finished("unknown"), DONE))], "its tool is gone, and doing it twice does no harm"
    assert not [*run_violations(RUN, recorded(begun, decided("did_not_happen"), begun, finished(), DONE))]
    assert not [*run_violations(RUN, recorded(begun, probed("did_not_happen"), begun, decided("give_up"), finished("unknown"), DONE))]


def answer(call_id: str, micro_usd: int) -> ModelCallFinished:
    return ModelCallFinished(call_id, 1, "tool_use", EMPTY, (), Usage(), Price(micro_usd, "config"), "p", "m", False, 1)


def test_the_first_bill_of_a_call_counts() -> None:
    late = CallSettled(TASK, RUN, "m1", "p", "m", Usage(), Price(900, "worst case"))
    asked = ModelCallStarted("m1", 1, "p", "m", Hash("0" * 64), 1)
    assert charged_micro_usd(recorded(asked, answer("m1", 600), answer("m2", 50), DONE, late)) == 650
    corrected = BillCorrected(TASK, RUN, "m1", "p", "m", Usage(), Price(40, "config"), 900)
    assert charged_micro_usd(recorded(asked, answer("m2", 50), DONE, late, corrected)) == 90, "unless it was a worst case that was corrected"


def test_a_ledger_that_is_off_is_found() -> None:
    good = {"run/a": BudgetState(None, None, 650, 0)}
    assert not [*ledger_violations({"run/a": 650, "run/free": 0}, good)]
    assert "651 spent in the log" in next(ledger_violations({"run/a": 651}, good))
    assert "5 reserved in the ledger" in next(ledger_violations({"run/a": 650}, {"run/a": BudgetState(None, None, 650, 5)}))
    assert "does not know it" in next(ledger_violations({"run/b": 1}, good))


def calls(*events: TaskEvent) -> Calls:
    noted = Calls()
    noted.note(recorded(*events))
    return noted


@pytest.mark.parametrize(
    ("log", "arrivals", "effects", "said"),
    [
        (calls(started("k"), finished()), {}, {}, "is recorded as done and never reached the receiver"),
        (calls(), {"x": 1}, {"x": Effect("x", "t/send/1", "irreversible")}, "under key x, which is not in the log"),
        (calls(started("k"), finished()), {"k": 2}, {"k": Effect("k", "t/send/1", "irreversible")}, "cannot be taken back and was done 2 times"),
        (
            calls(started("k"), started("j", "d"), finished(), finished(call="d")),
            {"k": 1, "j": 1},
            {"k": Effect("k", "t/stamp/1", "idempotent"), "j": Effect("j", "t/stamp/1", "idempotent")},
            "was done 2 times under different keys",
        ),
    ],
)
def test_a_book_that_does_not_fit_the_log_is_found(log: Calls, arrivals: dict[str, int], effects: dict[str, Effect], said: str) -> None:
    (violation,) = log.violations(arrivals, effects)
    assert said in violation


def test_what_can_be_repeated_may_arrive_again_and_what_broke_off_need_not_have_arrived() -> None:
    log = calls(started("k"), started("k"), finished(), started("j", "d"))
    assert not [*log.violations({"k": 2}, {"k": Effect("k", "t/stamp/1", "idempotent")})]


SCRIPTS = {"a": "stamp+stamp send finish", "b": "stamp finish"}


def a_run(calls: dict[str, str], *, says: str = "finished", fails: str = "") -> list[str]:
    """Play a run whose steps are `SCRIPTS`; returns what is wrong with its end.

    Args:
        calls: step -> the calls that its task made, `?` behind one that a person gave up, `!` behind one that broke.
        says: what each task says in the end.
        fails: the step whose task ends with an error instead.
    """
    plan = {"steps": [{"key": key, "type": "data", "objective": script} for key, script in SCRIPTS.items()]}
    log, submitted = RunLog(), submit(plan=plan)
    log.decides(submitted)
    status: dict[str, Literal["ok", "unknown", "error"]] = {"": "ok", "?": "unknown", "!": "error"}
    for key in SCRIPTS:
        task_id = log.state.tasks[key].task_id
        for call in calls[key].split():
            tool = call.rstrip("?!")
            log._append(task_stream(task_id), ToolFinished(call, tool, status[call.removeprefix(tool)], EMPTY, 1))
        log.says(task_id, broken() if key == fails else done(says))
    return [*end_violations(submitted.task, [*log.run_events, *log.task_events])]


def test_a_run_that_ends_as_it_was_handed_in_is_let_pass() -> None:
    assert a_run({"a": "stamp stamp send? finish", "b": "stamp finish"}) == [], "a person said that nobody knows whether it was sent"
    assert a_run({"a": "stamp stamp stamp send finish", "b": "stamp finish"}) == [], "what may be repeated is"


@pytest.mark.parametrize(
    ("played", "said"),
    [
        (
            {"a": "stamp stamp send finish", "b": "stamp", "fails": "b"},
            ["completed with the answer 'finished', flagged failed:b, not with '## a", "but for finish"],
        ),
        ({"a": "stamp stamp send finish", "b": "stamp finish", "says": "done"}, ["not with '## a"]),
        ({"a": "stamp send finish", "b": "stamp finish"}, ["step a of run .* did not make all calls of its script, but for stamp$"]),
        ({"a": "stamp stamp send! finish", "b": "finish"}, ["but for send$", "step b of run .*, but for stamp$"]),
    ],
)
def test_a_run_that_ends_otherwise_is_found(played: dict[str, str], said: list[str]) -> None:
    rest = {name: played[name] for name in ("says", "fails") if name in played}
    found = a_run({key: played[key] for key in SCRIPTS}, **rest)
    assert len(found) == len(said), found
    for violation, expected in zip(found, said, strict=True):
        assert re.search(expected, violation), violation


def test_a_run_that_fails_or_is_ended_is_found_with_its_reason() -> None:
    plan = {"steps": [{"key": "a", "type": "data", "objective": "finish"}]}
    for end, said in (
        (RunFailed(Failure("poison", "nobody could handle it", False), EMPTY), "ended as RunFailed, not as RunCompleted: poison: nobody could handle it"),
        (RunCancelled("wrong file", "maria"), "ended as RunCancelled, not as RunCompleted: wrong file, by maria"),
    ):
        task = a_task(plan=plan)
        ended = Recorded(1, run_stream(RunId(task.run_id)), 1, UUID(int=1), type_name(end), 1, encode(end), 1, RunId(task.run_id))
        assert [*end_violations(task, [ended])] == [f"run {task.run_id} {said}"]


async def strikes_of(seed: int, victims: list[Victim], *, kills: int = 3) -> list[Strike]:
    struck: list[Strike] = []

    async def work() -> None:
        await asyncio.sleep(0)

    striker = Striker(random.Random(seed), lambda: victims, PARTS, pause_s=(0, 0), work=work, on_strike=struck.append)
    try:
        async with asyncio.timeout(60):
            await striker.run(kills)
    finally:
        striker.release()
    assert struck == striker.strikes
    return struck


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that only wait."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"]) for _ in range(4)]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


async def test_strikes_hit_who_is_meant_and_whoever_was_stopped_goes_on(sleepers: list[subprocess.Popen[bytes]]) -> None:
    struck = await strikes_of(1, [Victim("agents", f"agent-{n}", process.pid) for n, process in enumerate(sleepers)])
    dead = {strike.victim.pid for strike in struck if strike.action == "kill"}
    assert len(dead) == 3
    for process in sleepers:
        if process.pid in dead:
            assert process.wait(60) == -signal.SIGKILL
        else:
            os.kill(process.pid, 0)
    (left,) = [process for process in sleepers if process.pid not in dead]
    left.terminate()  # a process that is still stopped would not end
    assert left.wait(60) == -signal.SIGTERM


async def test_the_same_seed_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Striker, "_carry_out", lambda _self, _strike: True)
    victims = [Victim(part, f"{part}-{n}", n) for part in PARTS for n in (1, 2)]
    drawn = await strikes_of(5, victims, kills=200)
    assert drawn == await strikes_of(5, victims, kills=200) != await strikes_of(6, victims, kills=200)
    assert {strike.victim.part for strike in drawn} == set(PARTS)
    stops = [strike for strike in drawn if strike.action == "stop"]
    assert 0.1 < len(stops) / len(drawn) < 0.4
    for strike in stops:
        shortest, longest = STOPPED_S[strike.victim.part]
        assert shortest <= strike.stopped_s <= longest


def a_report(**given: object) -> ChaosReport:
    counts = {"agents": 3, "nats": 1}
    plain = {"seed": 7, "seconds": 9.0, "kills": counts, "stops": {}, "accepted": 4, "ended": {"RunCompleted": 4}, "effects": 9}
    rest = {"repeated_arrivals": 2, "resolved": {"happened": 1}, "audit": Found(), "left_over": [], "home": None}
    return ChaosReport(**{**plain, **rest, **given})  # type: ignore[arg-type]


def test_a_report_says_what_was_kept_or_what_was_not() -> None:
    text = "\n".join(report_lines(a_report()))
    assert "4 killed (agents 3, nats 1), 0 stopped (none)" in text
    assert "every promise was kept" in text
    broken = a_report(audit=Found(violations=["run x is open"]), left_over=["12 python"], home="somewhere")
    text = "\n".join(report_lines(broken))
    assert "2 violations:\n  run x is open\n  left running: 12 python\n" in text
    assert "everything is in somewhere" in text
    assert "every promise" not in text


INTERRUPTED = """
import asyncio, os, signal
from crewlog.orchestrator import __main__ as start, chaos

async def interrupted(run):
    (run._config.home / "log").write_text("of a crew")
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()

chaos.ChaosRun.carry_out = interrupted
start.main()
"""


@pytest.mark.parametrize("keep", [False, True])
def test_what_an_interrupted_run_advises_can_be_done(keep: bool, tmp_path: Path) -> None:
    home = tmp_path / "home"
    words = ["chaos", "--home", str(home), *(["--keep"] if keep else [])]
    done = subprocess.run([sys.executable, "-P", "-c", INTERRUPTED, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert "go on with: crewlog chaos" in done.stderr
    assert home.exists() is keep
