"""Every fault point, in a real process: killed there, or stopped there and woken when another one has finished the work.

The cases of one role run side by side, each of an agent with a kind of its own; a test per case then says how it went. A point that
nobody passed fails its cases.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Final

import pytest
import pytest_asyncio
from support.audit import ended_well, same_after_rebuild
from support.gate import a_gate
from support.live_crew import LiveCrew, a_crew
from support.nursery import Nursery, a_nursery
from support.struck import (
    IMPATIENT,
    Action,
    Asked,
    Case,
    a_process,
    a_victim,
    strike_an_agent,
    strike_an_orchestrator,
    strike_who_is_asked,
    strike_who_overtakes,
)

from crewlog.events import faults
from crewlog.events.credentials import load_credentials
from crewlog.events.nats_bus import NatsBus
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.home import Home

ACTIONS: Final[tuple[Action, ...]] = ("kill", "stop")
SLOW: Final = ("before_letter_kept", "after_letter_kept")
"""A message is kept as a dead letter when its worker has failed five times, with growing waits between."""
OF_REQUESTS: Final = tuple(
    point for point in faults.OF_ORCHESTRATORS if point.partition("_")[2] in ("budget_change", "timers_taken", "settlement", "schedule_append")
)
"""Passed only when somebody, or something, asks for it."""
OF_CROWDS: Final = tuple(point for point in faults.OF_ORCHESTRATORS if "_overtaker_" in point)
"""Passed only while many tasks of somebody else wait to be taken in."""
INTENT_TO_SEND: Final = "before_task_append:2"
"""The append that records that something is about to be done which cannot be repeated."""
OF_AGENT: Final = (*faults.OF_EVERY_LOG, *(point for point in faults.OF_AGENTS if point not in SLOW), INTENT_TO_SEND)
OF_ORCHESTRATOR: Final = (*faults.OF_EVERY_LOG, *(point for point in faults.OF_ORCHESTRATORS if point not in (*OF_REQUESTS, *OF_CROWDS)))
AT_ONCE: Final = 6
NOBODY: Final = "research=0,code=0,communicate=0,planner=0,data=0"


def cases(*points: str) -> list[Case]:
    return [(point, action) for point in points for action in ACTIONS]


@pytest.fixture(scope="module")
def sturdy() -> Iterator[LiveCrew]:
    with a_crew("--agents", NOBODY, **IMPATIENT) as crew:
        yield crew


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with a_nursery() as nursery:
        yield nursery


@pytest.fixture
async def client(sturdy: LiveCrew) -> AsyncIterator[Client]:
    async with sturdy.client() as connected:
        yield connected


async def outcomes(cases: list[Case], play: Callable[[Case], Awaitable[None]]) -> dict[Case, Exception | None]:
    """Play all cases, some of them at once; what went wrong is said by the test of the case."""
    room = asyncio.Semaphore(AT_ONCE)
    found: dict[Case, Exception | None] = {}

    async def one(case: Case) -> None:
        async with room:
            try:
                await play(case)
            except Exception as error:  # noqa: BLE001 — the test of the case raises it
                found[case] = error
            else:
                found[case] = None

    await asyncio.gather(*map(one, cases))
    return found


def verdict(found: Mapping[Case, Exception | None], case: Case) -> None:
    if (error := found[case]) is not None:
        raise error


# ── agents ──


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def of_agents(sturdy: LiveCrew, nursery: Nursery) -> dict[Case, Exception | None]:
    async with sturdy.client() as client:
        return await outcomes(cases(*OF_AGENT), lambda case: strike_an_agent(sturdy, nursery, client, case))


@pytest.mark.parametrize("case", cases(*OF_AGENT), ids="-".join)
def test_an_agent_is_struck(of_agents: dict[Case, Exception | None], case: Case) -> None:
    verdict(of_agents, case)


# ── orchestrators ──


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def of_orchestrators(sturdy: LiveCrew, nursery: Nursery) -> dict[Case, Exception | None]:
    """All victims at once beside the crew's own orchestrator, and runs until each was struck: who takes a message is up to NATS."""
    async with sturdy.client() as client, a_gate() as gate:
        gate.open()
        env = {**sturdy.env, "GATE": str(gate.path)}
        async with a_process(nursery, "gated", env):
            return await outcomes(cases(*OF_ORCHESTRATOR), lambda case: strike_an_orchestrator(sturdy, nursery, client, case))


@pytest.mark.parametrize("case", cases(*OF_ORCHESTRATOR), ids="-".join)
def test_an_orchestrator_is_struck(of_orchestrators: dict[Case, Exception | None], case: Case) -> None:
    verdict(of_orchestrators, case)


# ── crowds ──


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def of_crowds(sturdy: LiveCrew, nursery: Nursery) -> dict[Case, Exception | None]:
    async with sturdy.client() as client, a_gate() as gate:
        gate.open()
        async with a_process(nursery, "gated", {**sturdy.env, "GATE": str(gate.path)}):
            return await outcomes(cases(*OF_CROWDS), lambda case: strike_who_overtakes(sturdy, nursery, client, case))


@pytest.mark.parametrize("case", cases(*OF_CROWDS), ids="-".join)
def test_an_orchestrator_is_struck_while_a_task_overtakes(of_crowds: dict[Case, Exception | None], case: Case) -> None:
    verdict(of_crowds, case)


# ── what an orchestrator does when it is asked ──


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def of_requests(sturdy: LiveCrew, nursery: Nursery) -> dict[Case, Exception | None]:
    async with sturdy.client() as client, a_gate() as gate:
        gate.open()
        async with a_process(nursery, "gated", {**sturdy.env, "GATE": str(gate.path)}):
            await ended_well(client, [(await client.submit("stamp finish", kind="gated")).run_id])  # now the budgets are known
            await client.schedules.add("now-and-then", await client.prepare("stamp finish", kind="gated"), cron="0 0 1 1 *")
            asked = Asked(sturdy, client)
            found = await outcomes(cases(*OF_REQUESTS), lambda case: strike_who_is_asked(sturdy, nursery, asked, case))
            await asked.is_right()
            return found


@pytest.mark.parametrize("case", cases(*OF_REQUESTS), ids="-".join)
def test_an_orchestrator_is_struck_by_what_it_is_asked(of_requests: dict[Case, Exception | None], case: Case) -> None:
    verdict(of_requests, case)


# ── projectors ──


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def of_projectors(sturdy: LiveCrew, nursery: Nursery) -> dict[Case, Exception | None]:
    """Victims stand by; whoever leads is struck in its turn, then the views are compared with a rebuild."""
    async with sturdy.client() as client, a_gate() as gate:
        gate.open()
        async with a_process(nursery, "gated", {**sturdy.env, "GATE": str(gate.path)}), AsyncExitStack() as closing:
            victims = {case: await closing.enter_async_context(a_victim(nursery, "projector", case, sturdy.env)) for case in cases(*faults.OF_PROJECTORS)}
            left = dict(victims)
            async with asyncio.timeout(200):
                while left:
                    await dethrone(client)
                    await client.submit("stamp finish", kind="gated")
                    await asyncio.sleep(0.2)
                    for case, victim in list(left.items()):
                        if victim.marker.exists():
                            del left[case]
                            await victim.struck()
                            if case[1] == "stop":
                                await victim.wake_and_stop()
        await same_after_rebuild(sturdy)
        return {case: None if case not in left else AssertionError(f"{case[0]} was never reached") for case in victims}


async def dethrone(client: Client) -> None:
    """Kill the crew's own projector, so that a victim leads."""
    for process in await client.processes():
        if process.name == "projector" and process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("case", cases(*faults.OF_PROJECTORS), ids="-".join)
def test_a_projector_is_struck(of_projectors: dict[Case, Exception | None], case: Case) -> None:
    verdict(of_projectors, case)


# ── letters, and the matrix as a whole ──


@pytest.mark.long
@pytest.mark.parametrize("case", cases(*SLOW), ids="-".join)
async def test_a_worker_is_struck_while_it_keeps_a_dead_letter(sturdy: LiveCrew, nursery: Nursery, client: Client, case: Case) -> None:
    kind = f"letters-{case[0]}-{case[1]}"
    state = Home(sturdy.home).state()
    assert state is not None
    async with a_gate() as gate:
        env = {**sturdy.env, "GATE": str(gate.path), "GATED_KIND": kind, "CREWLOG_SLOTS": "1"}
        bus = await NatsBus.connect(load_credentials(sturdy.home).nats_url("orchestrator", state.nats_port or 0), name="test")
        try:
            async with a_victim(nursery, "gated", case, env) as victim:
                await bus.enqueue(f"work.{kind}.normal", b"no task", message_id=f"bad-{kind}")
                await victim.struck()
                async with a_process(nursery, "gated", env):
                    async with asyncio.timeout(60):
                        while await bus.backlog("WORK", f"{kind}-normal"):  # noqa: ASYNC110
                            await asyncio.sleep(0.1)
                    if case[1] == "stop":
                        await victim.wake_and_stop()
            assert len([letter async for letter in client.letters.all(kind=kind)]) == 1, "kept once"
        finally:
            await bus.close()


def test_every_point_has_its_cases() -> None:
    assert {*OF_AGENT, *SLOW, *OF_ORCHESTRATOR, *OF_CROWDS, *OF_REQUESTS, *faults.OF_PROJECTORS} == {*faults.POINTS, INTENT_TO_SEND}
