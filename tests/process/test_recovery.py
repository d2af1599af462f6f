"""Whatever dies in the middle of a run, the run completes, and nothing with an effect happens twice. Real processes, real SIGKILLs."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import msgspec
import pytest
from support.audit import ended_well, events, follows_the_rules, same_after_rebuild
from support.gate import Gate, GatedAgents, a_gate, gated_agents
from support.gated_agent import KIND
from support.live_crew import CLI, DEMO, LiveCrew, a_crew, only
from support.reaper import descendants

from crewlog.events.credentials import load_credentials
from crewlog.events.jetstream import api
from crewlog.events.nats_bus import NatsBus
from crewlog.events.readiness import READY_FD
from crewlog.orchestrator.client import Client, RequestRefused
from crewlog.orchestrator.commands import Answer
from crewlog.orchestrator.home import Home
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.ids import RunId, agent_stream
from crewlog.schemas.parse import parse
from crewlog.schemas.plan import Plan
from crewlog.schemas.run_events import TaskSuspended
from crewlog.schemas.system_events import AgentStopped
from crewlog.schemas.task_events import TaskStarted, ToolStarted

COUNT = "Which sources are attached, and how many rows have they?"


@pytest.fixture(scope="module")
def sturdy() -> Iterator[LiveCrew]:
    """A crew that looks after lost messages every moment, so that tests need not wait for it."""
    settings = {"CREWLOG_SWEEP_INTERVAL_S": "0.3", "CREWLOG_DISPATCH_LEASE_S": "0.2", "CREWLOG_WORKER_GRACE_S": "1"}
    with a_crew(*only("code", "data", "research"), **settings) as crew:
        yield crew


@pytest.fixture
async def client(sturdy: LiveCrew) -> AsyncIterator[Client]:
    async with sturdy.client() as connected:
        yield connected


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    async with a_gate() as gate:
        yield gate


@pytest.fixture
async def agents(sturdy: LiveCrew, gate: Gate) -> AsyncIterator[GatedAgents]:
    async with gated_agents(sturdy, gate) as agents:
        yield agents


async def kill(client: Client, *names: str) -> None:
    """Kill processes of the crew, all at the same moment, and wait until that was noticed; one that is not up yet again is waited for."""
    async with asyncio.timeout(90):
        while not all(pids := [p.pid for p in await client.processes() if p.name in names]):  # noqa: ASYNC110 — the supervisor sends no signal
            await asyncio.sleep(0.02)
        assert len(pids) == len(names)
        for pid in pids:
            os.kill(pid or 0, signal.SIGKILL)
        while not {p.pid for p in await client.processes()}.isdisjoint(pids):  # noqa: ASYNC110 — likewise
            await asyncio.sleep(0.02)


def plan(**steps: str) -> Plan:
    """Make a plan from `key="kind: objective"`, each step after the one before."""
    made = []
    for key, text in steps.items():
        kind, _, objective = text.partition(": ")
        made.append({"key": key, "type": kind, "objective": objective, "depends_on": [made[-1]["key"]] if made else []})
    return parse(Plan, {"steps": made}, "no plan")


async def test_agent_orchestrator_and_projector_are_killed_in_the_middle_of_a_run(sturdy: LiveCrew, client: Client, gate: Gate, agents: GatedAgents) -> None:
    first = await agents.start()
    submitted = await client.submit(plan(work=f"{KIND}: stamp send finish", count=f"data: {COUNT}"))
    killed = await gate.call()
    assert (killed.tool, killed.pid) == ("stamp", first)
    await agents.kill(first)
    second = await agents.start()
    repeated = await gate.call()
    assert (repeated.tool, repeated.pid, repeated.key) == ("stamp", second, killed.key), "an idempotent tool runs again under the same key"
    await kill(client, "orchestrator", "projector")
    repeated.let_through()
    sent = await gate.call()
    assert sent.tool == "send"
    await kill(client, "orchestrator", "projector", "data")
    sent.let_through()
    await ended_well(client, [submitted.run_id])
    assert [call.tool for call in gate.seen] == ["stamp", "stamp", "send"]
    assert "identical" in (await asyncio.to_thread(sturdy.run, "replay", str(submitted.run_id), "--verify")).stderr


@pytest.mark.parametrize(("decision", "sends"), [("happened", 1), ("give_up", 1), ("did_not_happen", 2)])
async def test_what_cannot_be_repeated_asks_a_person_after_a_crash(client: Client, gate: Gate, agents: GatedAgents, decision: Answer, sends: int) -> None:
    first = await agents.start()
    submitted = await client.submit("send finish", kind=KIND)
    held = await gate.call()
    await agents.kill(first)
    await agents.start()
    gate.open()
    async with asyncio.timeout(90):
        async for recorded in client.events(submitted.run_id, follow=True):
            if isinstance(event := recorded.event(), TaskSuspended):
                await client.decide(submitted.run_id, event.approval_id, decision, actor="tester")
    await ended_well(client, [submitted.run_id])
    assert [(call.tool, call.key) for call in gate.seen] == [("send", held.key)] * sends


async def test_a_worker_that_is_killed_gets_its_end_and_one_that_stood_still_is_there_again(client: Client, gate: Gate, agents: GatedAgents) -> None:
    async def shown(*workers: str, there: bool) -> set[str]:
        """Wait until the view says of these whether they are there, or of one more that is; returns all that are."""
        async with asyncio.timeout(90):
            while True:
                rows = {row.worker: row.stopped_at is None for row in await client.queries().agents() if row.kind == KIND}
                found = {worker for worker, is_there in rows.items() if is_there}
                if all(rows[worker] == there for worker in workers) and (workers or found - before):
                    return found - before
                await asyncio.sleep(0.05)

    before = {row.worker for row in await client.queries().agents()}
    killed = await agents.start()
    (first,) = await shown(there=True)
    before.add(first)
    stopped = await agents.start()
    (second,) = await shown(there=True)
    os.kill(stopped, signal.SIGSTOP)
    await agents.kill(killed)
    await shown(first, second, there=False)
    said = [recorded.event() for recorded in await (await client.store()).read_streams({agent_stream(KIND): 0})]
    ends = [event for event in said if isinstance(event, AgentStopped) and event.worker in (first, second)]
    assert sorted(event.worker for event in ends) == sorted((first, second)), "each died once"
    assert all(event.heard_us is not msgspec.UNSET for event in ends)
    os.kill(stopped, signal.SIGCONT)
    await shown(second, there=True)
    await shown(first, there=False)
    gate.open()
    await ended_well(client, [(await client.submit("stamp finish", kind=KIND)).run_id])
    assert [call.pid for call in gate.seen] == [stopped]


@pytest.mark.parametrize("point", ["before_tool_effect", "after_tool_effect"])
async def test_an_agent_dies_in_a_call_of_each_effect_class(client: Client, gate: Gate, agents: GatedAgents, tmp_path: Path, point: str) -> None:
    """Each worker clears up what the one before it left, goes on to the next call, and dies there."""
    gate.open()
    tools, runs = ("stamp", "book", "rent", "wire"), []
    for number, tool in enumerate(tools):
        marker = tmp_path / tool
        marker.mkdir()
        # what it clears up passes the point once, a call that did not happen twice: by its probe, and when it runs again
        hit = 1 if not number else 3 if point == "before_tool_effect" and tools[number - 1] == "book" else 2
        pid = await agents.start(slots=1, env={"CREWLOG_FAULT": f"{point}:{hit}:kill", "CREWLOG_FAULT_ONCE": str(marker)})
        if not runs:  # somebody must be there to take it
            runs.append((await client.submit(f"{' '.join(tools)} finish", kind=KIND)).run_id)
        victim = agents.processes.pop(pid)
        try:
            assert await asyncio.to_thread(victim.wait, 90) == -signal.SIGKILL
        finally:
            victim.kill()
            victim.wait()
        assert (marker / point).exists(), "the point was reached"
    await agents.start()
    await ended_well(client, runs)
    seen = [call.tool for call in gate.seen]
    if point == "after_tool_effect":
        # stamp runs again under its key; what probes found stands; what cannot be found out was taken back
        assert seen == ["stamp", "stamp", "book", "probe book", "rent", "leave", "wire", "probe wire"]
    else:
        assert seen == ["stamp", "probe book", "book", "leave", "probe wire", "wire"]
    keys = {tool: {call.key for call in gate.seen if call.tool.removeprefix("probe ") == tool} for tool in (*tools, "leave")}
    assert all(len(found) <= 1 for found in keys.values()), keys


async def test_the_code_agent_is_killed_while_it_runs_tests(client: Client) -> None:
    submitted = await client.submit("Two tests fail. Find out why and repair the code.", kind="code", attachments=[DEMO / "penguin_loader"])
    async with asyncio.timeout(60):
        async for recorded in client.events(submitted.run_id, follow=True):
            if isinstance(event := recorded.event(), ToolStarted) and event.tool in ("run_tests", "try_edits"):
                await kill(client, "code")
                break
    await ended_well(client, [submitted.run_id])
    workers = [event.worker for r in await events(client, submitted.run_id) if isinstance(event := r.event(), TaskStarted)]
    assert len(set(workers)) == 2, "another process took the task over"


async def test_waiting_tasks_are_shared_by_the_processes_that_are_added(sturdy: LiveCrew, client: Client) -> None:
    await asyncio.to_thread(sturdy.json, "scale", "research=0")
    runs = [(await client.submit(f"What does the library say about topic {n}?", kind="research")).run_id for n in range(40)]
    async with held_back(sturdy, "research-normal"):  # rules are quick: the first process would be done before the fourth has started
        assert (await asyncio.to_thread(sturdy.json, "scale", "research=4"))["agents"]["research"] == 4
    await ended_well(client, runs)
    starts = [event.worker for run_id in runs for r in await events(client, run_id) if isinstance(event := r.event(), TaskStarted)]
    assert len(starts) == 40, "each task is begun once"
    assert len(set(starts)) == 4
    await asyncio.to_thread(sturdy.json, "scale", "research=1")


@asynccontextmanager
async def held_back(crew: LiveCrew, consumer: str) -> AsyncIterator[None]:
    """Have NATS hand out nothing of a queue meanwhile."""
    state = Home(crew.home).state()
    assert state is not None
    bus = await NatsBus.connect(load_credentials(crew.home).nats_url("supervisor", state.nats_port or 0), name="test")
    try:
        await api(bus, f"CONSUMER.PAUSE.WORK.{consumer}", {"pause_until": "2100-01-01T00:00:00Z"})
        yield
        await api(bus, f"CONSUMER.PAUSE.WORK.{consumer}", {})
    finally:
        await bus.close()


async def test_two_orchestrators_end_every_run_once(sturdy: LiveCrew, client: Client) -> None:
    ready, child = os.pipe()
    second = subprocess.Popen([*CLI, "orchestrator"], env={**sturdy.env, READY_FD: str(child)}, pass_fds=(child,))  # noqa: ASYNC220
    os.close(child)
    try:
        async with asyncio.timeout(90):
            assert await asyncio.to_thread(os.read, ready, 1) == b"1"
        tasks = [client.submit(plan(one=f"data: {COUNT}", two=f"data: {COUNT}")) for _ in range(20)]
        runs = [submitted.run_id for submitted in await asyncio.gather(*tasks)]
        await ended_well(client, runs)
        actors = {r.actor for run_id in runs for r in await events(client, run_id) if r.stream.startswith("run/")}
        assert len(actors) == 2, "both take part"
    finally:
        os.close(ready)
        second.terminate()
        assert await asyncio.to_thread(second.wait, 90) == 0


async def test_the_whole_store_of_nats_is_lost_while_runs_are_under_way(sturdy: LiveCrew, client: Client, gate: Gate, agents: GatedAgents) -> None:
    await agents.start(slots=1)
    submitted = [client.submit(plan(work=f"{KIND}: stamp finish", count=f"data: {COUNT}")) for _ in range(6)]
    submitted += [client.submit("stamp finish", kind=KIND) for _ in range(94)]
    runs = [run.run_id for run in await asyncio.gather(*submitted)]
    call = await gate.call()  # one is at work, the others have nothing but their messages
    assert sturdy.process is not None
    (server,) = [pid for pid, command in descendants(sturdy.process.pid).items() if f"{sturdy.home}/nats" in command]
    os.kill(server, signal.SIGKILL)
    lost = (sturdy.home / "nats" / "jetstream").rename(sturdy.home / "lost")  # at once: the next server makes a folder of its own there
    await asyncio.to_thread(shutil.rmtree, lost)
    call.let_through()
    gate.open()
    await ended_well(client, runs)
    assert [call.tool for call in gate.seen] == ["stamp"] * 100
    assert len({call.key for call in gate.seen}) == 100


async def test_postgres_is_killed_under_load(sturdy: LiveCrew, client: Client, gate: Gate, agents: GatedAgents) -> None:
    await agents.start()
    gate.open()
    runs = [run.run_id for run in await asyncio.gather(*(client.submit("stamp send finish", kind=KIND) for _ in range(40)))]
    lock = Path(sturdy.home, "postgres", "data", "postmaster.pid")  # a backend that begins has the server's own command line for a moment
    os.kill(int(lock.read_text().split()[0]), signal.SIGKILL)  # noqa: ASYNC240
    runs.append(await submitted_in_the_end(client))
    await ended_well(client, runs)
    assert len([call for call in gate.seen if call.tool == "send"]) == 41, "what cannot be repeated was not"


async def submitted_in_the_end(client: Client) -> RunId:
    """Submit a task as clients should: the same one again while nobody answers."""
    task = await client.prepare("stamp send finish", kind=KIND)
    async with asyncio.timeout(60):
        while True:
            try:
                return (await client.submit(task)).run_id
            except (Unavailable, RequestRefused):
                await asyncio.sleep(0.1)


async def test_a_worker_that_wakes_up_behind_its_successor_loses_its_append_and_goes_on(client: Client, gate: Gate, agents: GatedAgents) -> None:
    zombie = await agents.start(slots=1)
    run_id = (await client.submit("stamp finish", kind=KIND)).run_id
    held = await gate.call()
    os.kill(zombie, signal.SIGSTOP)
    heir = await agents.start(slots=1)
    repeated = await gate.call()
    assert (repeated.pid, repeated.key) == (heir, held.key)
    repeated.let_through()
    await ended_well(client, [run_id])
    before = await events(client, run_id)
    await agents.kill(heir)
    held.let_through()  # its tool returns as soon as it wakes up, and what it then writes comes too late
    os.kill(zombie, signal.SIGCONT)
    later = (await client.submit("stamp finish", kind=KIND)).run_id
    call = await gate.call()
    assert call.pid == zombie, "it gave its task up, and has room for another one"
    call.let_through()
    await ended_well(client, [later])
    assert await events(client, run_id) == before


async def test_a_worker_that_wakes_up_behind_a_persons_word_has_its_effect_no_more(client: Client, gate: Gate, agents: GatedAgents, tmp_path: Path) -> None:
    gate.open()
    zombie = await agents.start(slots=1, env={"CREWLOG_FAULT": "before_tool_effect:1:stop", "CREWLOG_FAULT_ONCE": str(tmp_path)})
    submitted = await client.submit("send finish", kind=KIND)
    async with asyncio.timeout(90):
        while not (tmp_path / "before_tool_effect").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    heir = await agents.start(slots=1)
    async with asyncio.timeout(60):
        async for recorded in client.events(submitted.run_id, follow=True):
            if isinstance(event := recorded.event(), TaskSuspended):
                await client.decide(submitted.run_id, event.approval_id, "did_not_happen", actor="tester")
    await ended_well(client, [submitted.run_id])
    before = await events(client, submitted.run_id)
    await agents.kill(heir)
    os.kill(zombie, signal.SIGCONT)
    later = (await client.submit("stamp finish", kind=KIND)).run_id
    await ended_well(client, [later])
    assert [(call.tool, call.pid) for call in gate.seen] == [("send", heir), ("stamp", zombie)], "it woke between intent and effect, and left it alone"
    assert await events(client, submitted.run_id) == before


async def test_all_of_it_replays_identically_and_views_are_the_same_after_a_rebuild(sturdy: LiveCrew, client: Client) -> None:
    async with asyncio.timeout(60):
        runs = await client.runs(limit=1000)
        for run in runs:
            await follows_the_rules(client, RunId(run.run_id))
        assert runs
    await same_after_rebuild(sturdy)


async def test_the_views_answer_what_people_ask(sturdy: LiveCrew, client: Client, gate: Gate, agents: GatedAgents) -> None:
    await agents.start()
    submitted = await client.submit(plan(work=f"{KIND}: stamp finish", count=f"data: {COUNT}"))
    held = await gate.call()
    connection = await asyncpg.connect((await asyncio.to_thread(sturdy.run, "db", "url")).stdout.strip())
    try:
        await _until_shown(connection, submitted.run_id, "working: tool stamp")
        waits = await connection.fetch(
            "select key, kind, waiting_reason from crewlog.tasks where run_id = $1 and waiting_reason is not null order by key", submitted.run_id
        )
        assert [tuple(row) for row in waits] == [("count", "data", "waiting for step work"), ("work", KIND, "working: tool stamp")]
        held.let_through()
        await ended_well(client, [submitted.run_id])
        costs = await connection.fetch(
            "select kind, sum(calls)::int, sum(input_tokens)::int > 0 from crewlog.costs where run_id = $1 group by kind order by kind", submitted.run_id
        )
        assert [row[0] for row in costs] == ["data", KIND]
        assert tuple(costs[1]) == (KIND, 2, True)
        calls = await connection.fetch("select turn, tool, effect, status, starts from crewlog.tool_calls where task_id = $1 order by turn", held.task_id)
        assert [tuple(row) for row in calls] == [(1, "stamp", "idempotent", "ok", 1), (2, "finish", "read", "ok", 1)]
        assert await connection.fetchval("select count(*) from crewlog.tasks where waiting_reason is not null and run_id = $1", submitted.run_id) == 0
    finally:
        await connection.close()


async def _until_shown(connection: asyncpg.Connection, run_id: RunId, reason: str) -> None:
    async with asyncio.timeout(90):
        while not await connection.fetchval("select true from crewlog.tasks where run_id = $1 and waiting_reason = $2", run_id, reason):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
