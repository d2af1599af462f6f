"""Every fault point, in a real process: killed there, or stopped there and woken when another one has finished the work.

The cases of one role run side by side, each of an agent with a kind of its own; a test per case then says how it went. A point that
nobody passed fails its cases.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import pytest
import pytest_asyncio
from support.audit import ended_well, follows_the_rules, same_after_rebuild
from support.gate import Gate, a_gate
from support.live_crew import LiveCrew, a_crew
from support.logs import new_task, to_task
from support.money import calling, opened
from support.nursery import Forked, Nursery, a_nursery

from crewlog.events import faults
from crewlog.events.clock import SystemClock
from crewlog.events.credentials import ADMIN, load_credentials
from crewlog.events.nats_bus import NatsBus
from crewlog.events.postgres_store import PostgresStore
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.home import Home
from crewlog.schemas.budget import ScopeLimit, tree_scope
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.ids import RunId, TaskId
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import TaskFailed
from crewlog.schemas.values import Failure

Action = Literal["kill", "stop"]
Case = tuple[str, Action]

ACTIONS: Final[tuple[Action, ...]] = ("kill", "stop")
SLOW: Final = ("before_letter_kept", "after_letter_kept")
"""A message is kept as a dead letter when its worker has failed five times, with growing waits between."""
OF_REQUESTS: Final = tuple(
    point for point in faults.OF_ORCHESTRATORS if point.partition("_")[2] in ("budget_change", "timers_taken", "settlement", "schedule_append")
)
"""Passed only when somebody, or something, asks for it."""
FROM_HIT: Final = {"before_timers_taken": 2}
"""Which passing of a point strikes, where it is not the first: that one belongs to the start of the process."""
OF_AGENT: Final = (*faults.OF_EVERY_LOG, *(point for point in faults.OF_AGENTS if point not in SLOW))
OF_ORCHESTRATOR: Final = (*faults.OF_EVERY_LOG, *(point for point in faults.OF_ORCHESTRATORS if point not in OF_REQUESTS))
AT_ONCE: Final = 6
IMPATIENT: Final = {
    "CREWLOG_SWEEP_INTERVAL_S": "0.1",
    "CREWLOG_DISPATCH_LEASE_S": "0.05",
    "CREWLOG_SETTLE_GRACE_S": "0.05",
    "CREWLOG_ACK_WAIT_S": "1",
    "CREWLOG_BUDGETS": "tenant/day=1000",
}
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


class Victim:
    """A process that is armed at one point, and the folder where it leaves word that it got there."""

    def __init__(self, case: Case, process: Forked, marker: Path) -> None:
        self.case, self.process, self.marker = case, process, marker

    async def struck(self) -> None:
        """Wait until the process was struck by its fault."""
        if self.case[1] == "kill":
            assert await asyncio.to_thread(self.process.wait, 30) == -signal.SIGKILL
        else:
            await until(lambda: self.process.is_stopped)
        assert self.marker.exists(), f"{self.case[0]} was never reached"

    async def wake_and_stop(self) -> None:
        """Let a stopped process go on where it was, to the end of what it was doing."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        assert await asyncio.to_thread(self.process.wait, 30) == 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 — what stops itself gives no signal
            await asyncio.sleep(0.02)


@asynccontextmanager
async def a_victim(nursery: Nursery, role: str, case: Case, env: Mapping[str, str]) -> AsyncIterator[Victim]:
    point, action = case
    with tempfile.TemporaryDirectory(prefix="struck-") as folder:
        process = await nursery.start(
            role, {**env, "CREWLOG_FAULT": f"{point}:{FROM_HIT.get(point, 1)}:{action}", "CREWLOG_FAULT_ONCE": folder}, marker=Path(folder) / point
        )
        try:
            yield Victim(case, process, Path(folder) / point)
        finally:
            process.kill()
            await asyncio.to_thread(process.wait, 30)


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


@asynccontextmanager
async def an_agent(nursery: Nursery, env: Mapping[str, str]) -> AsyncIterator[Forked]:
    process = await nursery.start("gated", env)
    try:
        yield process
    finally:
        process.terminate()
        assert await asyncio.to_thread(process.wait, 30) == 0


async def strike_an_agent(crew: LiveCrew, nursery: Nursery, client: Client, case: Case) -> None:
    kind = f"gated-{case[0]}-{case[1]}"
    async with a_gate() as gate:
        gate.open()
        env = {**crew.env, "GATE": str(gate.path), "GATED_KIND": kind, "CREWLOG_SLOTS": "1"}
        async with a_victim(nursery, "gated", case, env) as victim:
            run_id = (await client.submit("stamp send finish", kind=kind)).run_id
            await victim.struck()
            async with an_agent(nursery, env):
                await ended_well(client, [run_id])
                if case[1] == "stop":
                    await victim.wake_and_stop()
                    await follows_the_rules(client, run_id)
        effects_are_right(gate, 1)


def effects_are_right(gate: Gate, runs: int) -> None:
    keys = {tool: [call.key for call in gate.seen if call.tool == tool] for tool in ("stamp", "send")}
    assert len(keys["send"]) == len(set(keys["send"])) == runs, "what cannot be repeated was not"
    assert len(set(keys["stamp"])) == runs
    assert len(keys["stamp"]) <= 2 * runs


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
        async with an_agent(nursery, env):
            return await outcomes(cases(*OF_ORCHESTRATOR), lambda case: strike_an_orchestrator(sturdy, nursery, client, case))


async def strike_an_orchestrator(crew: LiveCrew, nursery: Nursery, client: Client, case: Case) -> None:
    async with a_victim(nursery, "orchestrator", case, crew.env) as victim:
        runs: list[RunId] = []
        while not victim.marker.exists():
            assert len(runs) < 100, f"{case[0]} was never reached"
            runs += await asyncio.gather(*(publish(client) for _ in range(3)))
            await ended_well(client, runs[-3:])
        await victim.struck()
        await ended_well(client, runs)
        if case[1] == "stop":
            await victim.wake_and_stop()
        for run_id in runs:
            await follows_the_rules(client, run_id)


async def publish(client: Client) -> RunId:
    """Put a task on the queue and wait until it is in the log."""
    task = parse_task({"task_id": str(uuid.uuid4()), "type": "gated", "objective": "stamp send finish"})
    await client._bus.enqueue("tasks.default.gated", task.model_dump_json().encode(), message_id=str(task.task_id))
    async with asyncio.timeout(30):
        while not await (await client.store()).read_run(RunId(task.run_id)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return RunId(task.run_id)


@pytest.mark.parametrize("case", cases(*OF_ORCHESTRATOR), ids="-".join)
def test_an_orchestrator_is_struck(of_orchestrators: dict[Case, Exception | None], case: Case) -> None:
    verdict(of_orchestrators, case)


# ── what an orchestrator does when it is asked ──


class Asked:
    """What makes an orchestrator pass a point, again and again until it is the one that was armed; and what must be true afterwards."""

    def __init__(self, crew: LiveCrew, client: Client) -> None:
        state = Home(crew.home).state()
        assert state is not None
        assert state.database_port is not None
        self.client, self.credentials, self.port = client, load_credentials(crew.home), state.database_port
        self.tasks: list[TaskId] = []
        self.hard = 2_000_000_000

    async def store(self, role: str) -> PostgresStore:
        return await PostgresStore.open(self.credentials.postgres_url(role, self.port), actor="test", clock=SystemClock())

    async def request(self, verb: str, body: dict[str, object]) -> None:
        with suppress(Unavailable):  # whoever was asked may have been struck
            await self.client._bus.request(f"api.default.{verb}", json.dumps(body).encode(), timeout_s=0.5)

    async def budget_change(self) -> None:
        self.hard += 1_000_000
        (scope,) = [budget.scope for budget in await self.client.budgets.scopes(every=True) if budget.scope.startswith("tenant/")]
        await self.request("budgets.raise", {"scope": scope, "hard_micro_usd": self.hard, "actor": "tester", "reason": "more"})

    async def timers_taken(self) -> None:
        store = await self.store("crewlog_orchestrator")
        await store.set_timers({RunId(uuid.uuid4()): 1_000_000})
        await store.close()

    async def settlement(self) -> None:
        """Leave money reserved behind a task that is over."""
        run_id, task_id = RunId(uuid.uuid4()), new_task()
        self.tasks.append(task_id)
        store = await self.store(ADMIN)
        for step in (
            opened(task_id, ScopeLimit(tree_scope(task_id), None, None)),
            calling(task_id, 100),
            to_task(task_id, TaskFailed(Failure("x", "y", False))),
        ):
            await store.append(step._replace(run_id=run_id))
        await store.close()

    async def schedule_append(self) -> None:
        await self.request("schedules.run", {"name": "now-and-then", "actor": "tester"})

    async def is_right(self) -> None:
        """Check that everything that was left half done is done, once."""
        store = await self.store("crewlog_orchestrator")
        async with asyncio.timeout(30):
            while await store.open_reservations(SystemClock().now_us(), 100):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            while open_runs := await store.open_runs(after=None, limit=100):
                await ended_well(self.client, open_runs)
        for budget in (await store.budgets([tree_scope(task_id) for task_id in self.tasks])).values():
            assert (budget.spent, budget.reserved) == (100, 0)
        await store.close()
        last = (await self.client.schedules.all())[0].last
        assert last is not None
        await ended_well(self.client, [RunId(run.run_id) for run in await self.client.runs(limit=50)])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def of_requests(sturdy: LiveCrew, nursery: Nursery) -> dict[Case, Exception | None]:
    async with sturdy.client() as client, a_gate() as gate:
        gate.open()
        async with an_agent(nursery, {**sturdy.env, "GATE": str(gate.path)}):
            await ended_well(client, [(await client.submit("stamp finish", kind="gated")).run_id])  # now the budgets are known
            await client.schedules.add("now-and-then", await client.prepare("stamp finish", kind="gated"), cron="0 0 1 1 *")
            asked = Asked(sturdy, client)
            found = await outcomes(cases(*OF_REQUESTS), lambda case: strike_who_is_asked(sturdy, nursery, asked, case))
            await asked.is_right()
            return found


async def strike_who_is_asked(crew: LiveCrew, nursery: Nursery, asked: Asked, case: Case) -> None:
    async with a_victim(nursery, "orchestrator", case, crew.env) as victim:
        async with asyncio.timeout(30):
            while not victim.marker.exists():
                await getattr(asked, case[0].partition("_")[2])()
                await asyncio.sleep(0.05)
        await victim.struck()
        if case[1] == "stop":
            await victim.wake_and_stop()


@pytest.mark.parametrize("case", cases(*OF_REQUESTS), ids="-".join)
def test_an_orchestrator_is_struck_by_what_it_is_asked(of_requests: dict[Case, Exception | None], case: Case) -> None:
    verdict(of_requests, case)


# ── projectors ──


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def of_projectors(sturdy: LiveCrew, nursery: Nursery) -> dict[Case, Exception | None]:
    """Victims stand by; whoever leads is struck in its turn, then the views are compared with a rebuild."""
    async with sturdy.client() as client, a_gate() as gate:
        gate.open()
        async with an_agent(nursery, {**sturdy.env, "GATE": str(gate.path)}), AsyncExitStack() as closing:
            victims = {case: await closing.enter_async_context(a_victim(nursery, "projector", case, sturdy.env)) for case in cases(*faults.OF_PROJECTORS)}
            left = dict(victims)
            async with asyncio.timeout(60):
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
                async with an_agent(nursery, env):
                    async with asyncio.timeout(60):
                        while await bus.backlog("WORK", f"{kind}-normal"):  # noqa: ASYNC110
                            await asyncio.sleep(0.1)
                    if case[1] == "stop":
                        await victim.wake_and_stop()
            assert len([letter async for letter in client.letters.all(kind=kind)]) == 1, "kept once"
        finally:
            await bus.close()


def test_every_point_has_its_cases() -> None:
    assert {*OF_AGENT, *SLOW, *OF_ORCHESTRATOR, *OF_REQUESTS, *faults.OF_PROJECTORS} == set(faults.POINTS)
