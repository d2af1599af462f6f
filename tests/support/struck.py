"""Strike one process at one fault point and see that everything is right afterwards: what a row of the matrix does.

Used by the matrix over all points, and by the tests that plant a defect and want a row to report it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import msgspec
from support.audit import ended_well, follows_the_rules
from support.gate import Gate, a_gate
from support.live_crew import LiveCrew
from support.logs import new_task, to_task
from support.money import calling, opened
from support.nursery import Forked, Nursery
from support.plants import PLANTED

from crewlog.events.clock import SystemClock
from crewlog.events.credentials import ADMIN, load_credentials
from crewlog.events.nats_bus import NatsBus
from crewlog.events.postgres_store import PostgresStore
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.home import Home
from crewlog.schemas.budget import ScopeLimit, tree_scope
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.ids import RunId, TaskId, task_stream
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import TaskFailed, TaskOpened
from crewlog.schemas.values import Failure

Action = Literal["kill", "stop"]
Case = tuple[str, Action]
"""A point, `name` or `name:hit` where another passing than the first strikes; and what happens there."""

FROM_HIT: Final = {"before_timers_taken": 2}
"""Which passing of a point strikes, where it is not the first: that one belongs to the start of the process."""
CROWD: Final = 200
"""Messages behind which somebody has a reason to overtake."""
CROWDS_MAX: Final = 20
IMPATIENT: Final = {
    "CREWLOG_SWEEP_INTERVAL_S": "0.1",
    "CREWLOG_DISPATCH_LEASE_S": "0.05",
    "CREWLOG_SETTLE_GRACE_S": "0.05",
    "CREWLOG_ACK_WAIT_S": "1",
    "CREWLOG_BUDGETS": "tenant/day=1000",
}


class Victim:
    """A process that is armed at one point, and the folder where it leaves word that it got there."""

    def __init__(self, case: Case, process: Forked, marker: Path) -> None:
        self.case, self.process, self.marker = case, process, marker

    async def struck(self) -> None:
        """Wait until the process was struck by its fault."""
        if self.case[1] == "kill":
            assert await asyncio.to_thread(self.process.wait, 90) == -signal.SIGKILL
        else:
            await until(lambda: self.process.is_stopped)
        assert self.marker.exists(), f"{self.case[0]} was never reached"

    async def wake_and_stop(self) -> None:
        """Let a stopped process go on where it was, to the end of what it was doing."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        assert await asyncio.to_thread(self.process.wait, 90) == 0


def nothing() -> None:
    """Do nothing."""


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Say what is wrong if a wait takes too long."""
    try:
        yield
    except TimeoutError as error:
        raise AssertionError(what) from error


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(90):
        while not condition():  # noqa: ASYNC110 — what stops itself gives no signal
            await asyncio.sleep(0.02)


@asynccontextmanager
async def a_victim(nursery: Nursery, role: str, case: Case, env: Mapping[str, str]) -> AsyncIterator[Victim]:
    (point, _, hit), action = case[0].partition(":"), case[1]
    with tempfile.TemporaryDirectory(prefix="struck-") as folder:
        process = await nursery.start(
            role, {**env, "CREWLOG_FAULT": f"{point}:{hit or FROM_HIT.get(point, 1)}:{action}", "CREWLOG_FAULT_ONCE": folder}, marker=Path(folder) / point
        )
        try:
            yield Victim(case, process, Path(folder) / point)
        finally:
            process.kill()
            await asyncio.to_thread(process.wait, 90)


@asynccontextmanager
async def a_process(nursery: Nursery, role: str, env: Mapping[str, str]) -> AsyncIterator[Forked]:
    """Run a process that is not struck, and stop it in good order."""
    process = await nursery.start(role, env)
    try:
        yield process
    finally:
        process.terminate()
        assert await asyncio.to_thread(process.wait, 90) == 0


async def strike_an_agent(
    crew: LiveCrew, nursery: Nursery, client: Client, case: Case, *, within_s: float = 120.0, on_struck: Callable[[], None] = nothing, planted: str = ""
) -> None:
    """Strike one of two agents that have a kind for themselves, and check its run and what its effects reached.

    Args:
        within_s: how long the run may take once it was struck, in seconds.
        on_struck: called as soon as it is.
        planted: defects of both, see `support.plants`.
    """
    kind = f"gated-{'-'.join((*case, planted)).replace(':', '-').replace(' ', '-')}"
    async with a_gate() as gate:
        gate.open()
        env = {**crew.env, "GATE": str(gate.path), "GATED_KIND": kind, "CREWLOG_SLOTS": "1", PLANTED: planted}
        async with a_victim(nursery, "gated", case, env) as victim:
            run_id = (await client.submit("stamp send finish", kind=kind)).run_id
            await victim.struck()
            on_struck()
            async with a_process(nursery, "gated", env):
                await ended_well(client, [run_id], within_s=within_s)
                if case[1] == "stop":
                    await victim.wake_and_stop()
                    await follows_the_rules(client, run_id)
        effects_are_right(gate, 1)


async def hand_out_twice(crew: LiveCrew, nursery: Nursery, client: Client, *, within_s: float, planted: str = "") -> None:
    """Put a submission, and then the work that came of it, on their queues once more under other message ids, as NATS takes what comes again when
    it has forgotten the first one; and check that everything was done once. Nothing else may be under way.

    Args:
        within_s: how long until everything is over, in seconds.
        planted: defects of the agent, see `support.plants`.
    """
    kind = f"gated-twice-{planted}"
    state = Home(crew.home).state()
    assert state is not None
    async with a_gate() as gate, a_process(nursery, "gated", {**crew.env, "GATE": str(gate.path), "GATED_KIND": kind, PLANTED: planted}):
        gate.open()
        bus = await NatsBus.connect(load_credentials(crew.home).nats_url("orchestrator", state.nats_port or 0), name="test")
        try:
            task = parse_task({"task_id": str(uuid.uuid4()), "type": kind, "objective": "stamp send finish"})
            for _ in range(2):
                await bus.enqueue(f"tasks.default.{kind}", msgspec.json.encode(task), message_id=str(uuid.uuid4()))
                await all_is_over(bus, client, kind, within_s)
            store = await client.store()
            for opening in await store.read_streams({task_stream(TaskId(task.task_id)): 0}, types=frozenset({TaskOpened.__name__})):
                event = opening.event()
                assert isinstance(event, TaskOpened)
                headers = {"Run-Id": str(task.run_id), "Task-Id": str(task.task_id), "Attempt": "1", "Task-Version": "1"}
                await bus.enqueue(f"work.{kind}.normal", bytes(event.task), message_id=f"{task.task_id}:1:0-again", headers=headers)
            await all_is_over(bus, client, kind, within_s)
        finally:
            await bus.close()
    effects_are_right(gate, 1)
    await ended_well(client, [RunId(task.run_id)], within_s=within_s)


async def all_is_over(bus: NatsBus, client: Client, kind: str, within_s: float) -> None:
    """Wait until nothing is on the queues, and no run is open."""
    store = await client.store()
    with failing("not everything came to its end"):
        async with asyncio.timeout(within_s):
            while await bus.backlog("TASKS", "intake") or await store.open_runs(after=None, limit=1) or await bus.backlog("WORK", f"{kind}-normal"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def effects_are_right(gate: Gate, runs: int) -> None:
    keys = {tool: [call.key for call in gate.seen if call.tool == tool] for tool in ("stamp", "send")}
    assert len(keys["send"]) == len(set(keys["send"])) == runs, "what cannot be repeated was not"
    assert len(set(keys["stamp"])) == runs
    assert len(keys["stamp"]) <= 2 * runs


async def strike_an_orchestrator(
    crew: LiveCrew, nursery: Nursery, client: Client, case: Case, *, within_s: float = 90.0, on_struck: Callable[[], None] = nothing, planted: str = ""
) -> None:
    """Strike one orchestrator beside others, and check every run that it had a hand in.

    Args:
        within_s: how long a task may take into the log, and a run to its end, in seconds.
        on_struck: called as soon as it is.
        planted: defects of the one that is struck, see `support.plants`.
    """
    async with a_victim(nursery, "orchestrator", case, {**crew.env, PLANTED: planted}) as victim:
        runs: list[RunId] = []
        telling = asyncio.create_task(_tell(victim, on_struck))
        try:
            while not victim.marker.exists():
                assert len(runs) < 100, f"{case[0]} was never reached"
                runs += await asyncio.gather(*(publish(client, within_s=within_s) for _ in range(3)))
                await ended_well(client, runs[-3:], within_s=within_s)
            await victim.struck()
        finally:
            telling.cancel()
        await ended_well(client, runs, within_s=within_s)
        if case[1] == "stop":
            await victim.wake_and_stop()
        for run_id in runs:
            await follows_the_rules(client, run_id)


async def strike_who_overtakes(
    crew: LiveCrew, nursery: Nursery, client: Client, case: Case, *, within_s: float = 90.0, on_struck: Callable[[], None] = nothing, planted: str = ""
) -> None:
    """Strike one orchestrator while tasks of a quiet tenant overtake a crowd, and check each of them. What the crowd is made of is refused, which costs
    no agent anything.

    Args:
        within_s: how long a task may take into the log once it is struck, and a run to its end, in seconds.
        on_struck: called as soon as it is.
        planted: defects of the one that is struck, see `support.plants`.
    """
    state = Home(crew.home).state()
    assert state is not None
    bus = await NatsBus.connect(load_credentials(crew.home).nats_url("orchestrator", state.nats_port or 0), name="senders")
    runs: list[RunId] = []
    try:
        async with a_victim(nursery, "orchestrator", case, {**crew.env, PLANTED: planted}) as victim:
            for _ in range(CROWDS_MAX):
                for n in range(CROWD):
                    await bus.publish(f"tasks.{case[0]}_{case[1]}.gated", b"%d" % n)
                runs += [await enqueue(client) for _ in range(3)]
                await until_empty(bus, victim.marker.exists)
                if victim.marker.exists():
                    break
            assert victim.marker.exists(), f"{case[0]} was never reached"
            await victim.struck()
            on_struck()
            for run_id in runs:
                await taken(client, run_id, within_s=within_s)
            await ended_well(client, runs, within_s=within_s)
            if case[1] == "stop":
                await victim.wake_and_stop()
            await until_empty(bus, lambda: False)
            for run_id in runs:
                await follows_the_rules(client, run_id)
    finally:
        await bus.close()


async def until_empty(bus: NatsBus, is_over: Callable[[], bool]) -> None:
    """Wait until everybody is taken in, or there is no need to wait any longer."""
    with failing("not everything was taken in"):
        async with asyncio.timeout(90):
            while (await bus.queued("TASKS")).subjects and not is_over():  # noqa: ASYNC110  (the server sends no signal for it)
                await asyncio.sleep(0.02)


async def _tell(victim: Victim, on_struck: Callable[[], None]) -> None:
    await victim.struck()
    on_struck()


async def publish(client: Client, *, within_s: float) -> RunId:
    """Put a task on the queue and wait until it is in the log."""
    run_id = await enqueue(client)
    await taken(client, run_id, within_s=within_s)
    return run_id


async def enqueue(client: Client) -> RunId:
    """Put a task on the queue."""
    task = parse_task({"task_id": str(uuid.uuid4()), "type": "gated", "objective": "stamp send finish"})
    await client._bus.enqueue("tasks.default.gated", msgspec.json.encode(task), message_id=str(task.task_id))
    return RunId(task.run_id)


async def taken(client: Client, run_id: RunId, *, within_s: float) -> None:
    """Wait until a run is in the log."""
    store = await client.store()
    with failing(f"task {run_id} was taken and is not in the log"):
        async with asyncio.timeout(within_s):
            while not await store.read_run(run_id):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


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
        scope = max(budget.scope for budget in await self.client.budgets.scopes(every=True) if budget.scope.startswith("tenant/"))  # at midnight there are two
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

    async def is_settled(self, within_s: float) -> None:
        """Wait until nothing is reserved any more."""
        store = await self.store("crewlog_orchestrator")
        try:
            with failing("money stays reserved behind a task that is over"):
                async with asyncio.timeout(within_s):
                    while await store.open_reservations(SystemClock().now_us(), 100):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
        finally:
            await store.close()

    async def is_right(self) -> None:
        """Check that everything that was left half done is done, once."""
        store = await self.store("crewlog_orchestrator")
        await self.is_settled(30)
        async with asyncio.timeout(90):
            while open_runs := await store.open_runs(after=None, limit=100):
                await ended_well(self.client, open_runs)
        for budget in (await store.budgets([tree_scope(task_id) for task_id in self.tasks])).values():
            assert (budget.spent, budget.reserved) == (100, 0)
        await store.close()
        last = (await self.client.schedules.all())[0].last
        assert last is not None
        await ended_well(self.client, [RunId(run.run_id) for run in await self.client.runs(limit=50)])


async def strike_who_is_asked(crew: LiveCrew, nursery: Nursery, asked: Asked, case: Case) -> None:
    async with a_victim(nursery, "orchestrator", case, crew.env) as victim:
        async with asyncio.timeout(90):
            while not victim.marker.exists():
                await getattr(asked, case[0].partition("_")[2])()
                await asyncio.sleep(0.05)
        await victim.struck()
        if case[1] == "stop":
            await victim.wake_and_stop()
