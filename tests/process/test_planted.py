"""Tests of the tests: defects planted in real processes, each of which a row of the matrix of fault points, or the audit of a chaos run, must report.

A defect is a function that is replaced in a process before it begins (`support.plants`), never a switch in the product. The rows are those
of `test_fault_points`; each is played here on processes that have the defect. What nobody makes good shows by waiting in vain, so that these
rows wait at the same time, each for as long as all of them together took on sound processes just before. The audit of a chaos run is held to
what it claims in the same way, on a crew that is struck.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from support.gate import a_gate
from support.live_crew import LiveCrew
from support.nursery import Nursery, a_nursery
from support.plants import PLANTED, PLANTS
from support.struck import IMPATIENT, Asked, Case, a_process, hand_out_twice, strike_an_agent, strike_an_orchestrator, strike_who_overtakes

from crewlog.events.clock import SystemClock
from crewlog.events.config import load
from crewlog.orchestrator import chaos, chaos_audit, chaos_load
from crewlog.orchestrator.chaos_crew import ChaosCrew
from crewlog.orchestrator.client import Client

OF_AGENTS: Final[dict[str, tuple[Case, str]]] = {
    "effect_before_intent": (("before_task_append:2", "kill"), "what cannot be repeated was not"),
    "lost_tasks_go_on": (("before_task_append:2", "stop"), "what cannot be repeated was not"),
    "key_of_the_process": (("after_tool_effect", "kill"), "started under several keys|idempotency_key"),
}
"""Defect -> the row that reports it, and what it says."""
TWICE: Final = ("lost_tasks_go_on", "a_run_for_each_message")
"""Without what these take away, a message that comes again when NATS has forgotten it is done again."""
OVERTAKEN: Final = "overtaken_before_append"
"""Without what this takes away, a task that overtakes is lost with the orchestrator that took it out of the stream."""
OF_CHAOS: Final = {
    "blind_repeat": r"was repeated and nobody was asked|cannot be taken back and was done \d times",
    "gives_up_every_other": r"run .* ended as RunFailed, not as RunCompleted: internal: .*somebody else began it",
    "settled_for_less": r"budget run/.* micro-USD spent and 0 reserved in the ledger",
    "the_dead_stay": r"worker chaos-\w+ is gone, and the log says otherwise",
    "views_for_nothing": r"view runs: \d+ rows differ from a rebuild|view tasks: \d+ rows differ from a rebuild",
}
"""Defect -> what the audit of a chaos run says."""
OF_ORCHESTRATORS: Final = {
    "intake_before_append": "was taken and is not in the log",
    "nothing_sent_again": "has no end",
    "ack_before_append": "has no end",
    "nothing_settled": "stays reserved",
}
SOUND_WITHIN_S: Final = 60.0
LOST_AFTER_S: Final = 3.0
"""What overtook is in the log within so many seconds once an orchestrator is there; an agent, to end it, is not."""

Row = Callable[[float], Awaitable[None]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers() -> AsyncIterator[LiveCrew]:
    """Servers in a home of their own: whatever else is in the crew, a test starts."""
    home = Path(tempfile.mkdtemp(prefix="crewlog-test-"))
    home.chmod(0o755)  # noqa: ASYNC240  (root's Postgres runs as another user, who must be able to enter)
    config = load(home=home).model_copy(update={"database_url": None, "nats_url": None})
    servers = ChaosCrew(config, home / "sink", SystemClock(), workers=0, orchestrators=0, settings=IMPATIENT)
    try:
        await servers.start()
        yield LiveCrew(home, IMPATIENT)
    finally:
        await servers.stop()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with a_nursery() as nursery:
        yield nursery


async def reports(rows: Mapping[str, Row], within_s: float) -> dict[str, str]:
    """Play rows at the same time; returns what each reports, nothing where all is right."""

    async def one(row: Row) -> str:
        try:
            await row(within_s)
        except AssertionError as error:
            return str(error) or "an assertion"
        return ""

    return dict(zip(rows, await asyncio.gather(*map(one, rows.values())), strict=True))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reported(servers: LiveCrew, nursery: Nursery) -> dict[str, str]:
    """Defect -> what its row reports about it."""
    async with servers.client() as client, a_gate() as gate:
        gate.open()
        rows = Rows(servers, nursery, client)
        overtaken = await reports({OVERTAKEN: rows.overtaking(OVERTAKEN)}, LOST_AFTER_S)
        async with a_process(nursery, "orchestrator", {**servers.env, PLANTED: TWICE[1]}):
            twice = overtaken | await reports({f"twice {TWICE[1]}": rows.twice()}, SOUND_WITHIN_S)
        async with a_process(nursery, "orchestrator", servers.env), a_process(nursery, "gated", {**servers.env, "GATE": str(gate.path)}) as agent:
            assert await reports({"twice": rows.twice()}, SOUND_WITHIN_S) == {"twice": ""}
            twice |= await reports({f"twice {TWICE[0]}": rows.twice(TWICE[0])}, SOUND_WITHIN_S)
            found = twice | await reports({name: rows.of_agents(name) for name in OF_AGENTS}, SOUND_WITHIN_S)
            clock = SystemClock()
            began = clock.monotonic()
            sound = await reports(rows.of_orchestrators(), SOUND_WITHIN_S)
            took_s = clock.monotonic() - began
        assert not any(sound.values()), sound
        assert agent.returncode == 0
        planted = " ".join(name for name in OF_ORCHESTRATORS if name != "ack_before_append")
        async with a_process(nursery, "orchestrator", {**servers.env, PLANTED: planted}), a_process(nursery, "gated", {**servers.env, "GATE": str(gate.path)}):
            return found | await reports(rows.of_orchestrators(planted), took_s)


class Rows:
    """Rows of the matrix, on these servers."""

    def __init__(self, servers: LiveCrew, nursery: Nursery, client: Client) -> None:
        self._servers, self._place = servers, (servers, nursery, client)

    def of_agents(self, name: str) -> Row:
        """Return the row that reports a defect of agents."""
        return lambda within_s: strike_an_agent(*self._place, OF_AGENTS[name][0], within_s=within_s, planted=name)

    def twice(self, planted: str = "") -> Row:
        """Return the row of messages that come again, on agents that have a defect."""
        return lambda within_s: hand_out_twice(*self._place, within_s=within_s, planted=planted)

    def overtaking(self, planted: str) -> Row:
        """Return the row of tasks that overtake, at an orchestrator that has a defect; the next one comes when it is struck, and finds what it left."""

        async def row(within_s: float) -> None:
            struck = asyncio.Event()
            case: Case = ("after_overtaker_removed", "kill")
            striking = asyncio.create_task(strike_who_overtakes(*self._place, case, within_s=within_s, on_struck=struck.set, planted=planted))
            waiting = asyncio.create_task(struck.wait())
            await asyncio.wait((striking, waiting), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            async with a_process(self._place[1], "orchestrator", self._servers.env):
                await striking

        return row

    def of_orchestrators(self, planted: str = "") -> dict[str, Row]:
        """Return rows that show whether what was left half done is done. Each begins when the one before it has struck: none may get in another's way."""
        worker, submitter = asyncio.Event(), asyncio.Event()
        hasty = "ack_before_append" if planted else ""

        async def working(within_s: float) -> None:
            await strike_an_agent(*self._place, ("before_task_append", "kill"), within_s=within_s, on_struck=worker.set, planted=hasty)

        async def taking(within_s: float) -> None:
            await worker.wait()
            await strike_an_orchestrator(*self._place, ("before_run_append", "kill"), within_s=within_s, on_struck=submitter.set, planted=planted)

        async def sending(within_s: float) -> None:
            await submitter.wait()
            await strike_an_orchestrator(*self._place, ("before_work_published", "kill"), within_s=within_s, planted=planted)

        async def settling(within_s: float) -> None:
            asked = Asked(self._servers, self._place[2])
            await asked.settlement()
            await asked.is_settled(within_s)

        return {"ack_before_append": working, "intake_before_append": taking, "nothing_sent_again": sending, "nothing_settled": settling}


@pytest.mark.parametrize("name", OF_AGENTS)
def test_a_row_reports_a_defect_of_agents(reported: dict[str, str], name: str) -> None:
    assert any(said in reported[name] for said in OF_AGENTS[name][1].split("|")), reported[name]


@pytest.mark.parametrize("name", OF_ORCHESTRATORS)
def test_a_row_reports_what_nobody_makes_good(reported: dict[str, str], name: str) -> None:
    assert OF_ORCHESTRATORS[name] in reported[name], reported[name]


@pytest.mark.parametrize("name", TWICE)
def test_a_message_that_nats_has_forgotten_is_done_once_because_of_what_the_defect_takes_away(reported: dict[str, str], name: str) -> None:
    assert "what cannot be repeated was not" in reported[f"twice {name}"], reported[f"twice {name}"]


def test_a_task_that_overtakes_is_lost_when_it_is_deleted_before_it_is_in_the_log(reported: dict[str, str]) -> None:
    assert "was taken and is not in the log" in reported[OVERTAKEN], reported[OVERTAKEN]


async def test_the_audit_of_a_chaos_run_reports_every_defect_of_the_crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crew of the command itself, struck as in its short mode: all of it has the defects, the audit has not."""
    (tmp_path / "sitecustomize.py").write_text("import os\nfrom support.plants import PLANTED, plant\nplant(os.environ.get(PLANTED, ''))\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}")
    monkeypatch.setenv(PLANTED, " ".join(OF_CHAOS))
    monkeypatch.setattr(chaos_load, "SCRIPTS", ("send send finish",))  # whoever is killed is killed in a call that nobody may repeat
    monkeypatch.setattr(chaos_audit, "QUIET_WITHIN_S", 10.0)  # who is dead stays for ever
    options = chaos.Options(seed=1, kills=4, seconds=15, parts=("agents",), in_flight=8, workers=2, orchestrators=1, pause_s=(0.0, 0.1))
    report = await chaos.run_chaos(options, SystemClock(), home=None, keep=False, say=print)
    assert report.home is not None, "it is kept when a promise was broken"
    shutil.rmtree(report.home)
    for name, said in OF_CHAOS.items():
        assert any(re.search(said, violation) for violation in report.violations), (name, report.violations)


def test_every_defect_has_its_row() -> None:
    assert {*OF_AGENTS, *OF_ORCHESTRATORS, *TWICE, OVERTAKEN, *OF_CHAOS} == set(PLANTS)
