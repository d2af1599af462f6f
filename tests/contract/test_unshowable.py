"""Numbers that no view can show or sum up: an agent that writes one loses that row, and nobody else's view."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
import pytest
from support.histories import BEGIN_US
from support.logs import CLOCK, asked, dispatched, new_run, new_task, started
from support.postgres import Database
from support.views import PROJECTOR, follow, log_of, model_of

from crewlog.events.store import AppendRequest, EventStore, Write
from crewlog.projections.digest import digest
from crewlog.projections.rebuild import rebuild
from crewlog.schemas.codec import Event
from crewlog.schemas.ids import ApprovalId, Hash, RunId, TaskId, agent_stream, document_stream, provider_stream, run_stream, task_stream
from crewlog.schemas.payload import EMPTY, content_hash
from crewlog.schemas.run_events import RunSubmitted
from crewlog.schemas.system_events import AgentRegistered, DocumentIngested, ProviderStateChanged
from crewlog.schemas.task_events import ApprovalRequested, ModelCallFinished, TaskCompleted, TaskOpened, ToolCall, ToolFinished
from crewlog.schemas.usage import Price, Usage
from crewlog.schemas.values import ArtifactRef, Outcome

pytestmark = pytest.mark.hand_written("tries numbers that no honest agent writes")

HUGE = 2**62
NOTHING = content_hash(b"")


def asks(expires_us: int) -> ApprovalRequested:
    return ApprovalRequested(ApprovalId(CLOCK.new_id()), "c1", "send_email", EMPTY, NOTHING, "", expires_us)


def answered(usage: Usage, cost: int = 0, *, tool_calls: tuple[ToolCall, ...] = (), call_id: str = "call") -> ModelCallFinished:
    return ModelCallFinished(call_id, 1, "end_turn", EMPTY, tool_calls, usage, Price(cost, "config"), "acme", "a", simulated=False, latency_ms=1)


def tool_done(call_id: str) -> ToolFinished:
    return ToolFinished(call_id, "read_file", "ok", EMPTY, 1, "untrusted")


def made(size: int) -> TaskCompleted:
    return TaskCompleted(Outcome("done", artifacts=(ArtifactRef("a.txt", NOTHING, size),)), Usage(), 0, 1, 0)


def of_a_run(run_id: RunId, task_id: TaskId, *odd: Event) -> AppendRequest:
    task = msgspec.Raw(msgspec.json.encode({"task_id": task_id, "type": "research"}))
    own = [RunSubmitted(run_id, "default", "ann", "goal", task, "api"), dispatched(task_id)]
    writes = [Write(run_stream(run_id), own), Write(task_stream(task_id), [TaskOpened("research", "step", 0, msgspec.Raw(b"{}")), started(), asked(), *odd])]
    return AppendRequest(writes, [CLOCK.new_id() for write in writes for _ in write.events], BEGIN_US, run_id, task_id)


async def is_made_again(database: Database, store: EventStore) -> None:
    live = await digest(database.url(PROJECTOR))
    await rebuild(database.url(PROJECTOR), store)
    assert await digest(database.url(PROJECTOR)) == live


async def test_a_number_that_no_view_can_show_is_left_out_and_told(database: Database) -> None:
    odd: dict[str, list[Any]] = {
        "ApprovalRequested": [HUGE, -HUGE],
        "ModelCallFinished": [answered(Usage(HUGE)), answered(Usage(1, HUGE)), answered(Usage(-HUGE)), answered(Usage(), HUGE)],
        "TaskCompleted": [made(2**63), made(-1)],
    }
    beside: list[Event] = [
        AgentRegistered("data", "w1", "Counts.", "1", 4, "acme/a", simulated=False, tools=()),
        *(ProviderStateChanged("w1", "test", "acme", f"m{until_us}", "open", until_us) for until_us in (HUGE, BEGIN_US)),
    ]
    async with log_of(database) as store, model_of(database, store) as model:
        for event in (event for events in odd.values() for event in (*events, *events)):
            await store.append(of_a_run(new_run(), new_task(), asks(event) if isinstance(event, int) else event))
        for event in beside:
            stream = agent_stream("data") if isinstance(event, AgentRegistered) else provider_stream("acme")
            await store.append(AppendRequest([Write(stream, [event])], [CLOCK.new_id()], BEGIN_US))
        await store.append(of_a_run(new_run(), new_task(), answered(Usage(10, 20), 30)))
        await follow(model, store)
        admin = await database.admin()
        try:
            views = [row[0] for row in await admin.fetch("SELECT table_name FROM information_schema.views WHERE table_schema = 'crewlog'")]
            for view in views:
                await admin.fetch(f"SELECT * FROM crewlog.{view}")
            assert [tuple(row) for row in await admin.fetch("SELECT input_tokens, cost_micro_usd FROM crewlog.costs WHERE calls > open_calls")] == [(10, 30)]
            told = await admin.fetch("SELECT type, count(*) FROM crewlog.problems GROUP BY type")
            expected = {type_: 2 * len(events) for type_, events in odd.items()} | {"ProviderStateChanged": 1}
            assert {row[0]: row[1] for row in told} == expected
        finally:
            await admin.close()
        await is_made_again(database, store)


async def test_ids_that_agents_write_twice_cost_nobody_else_a_row(database: Database) -> None:
    """Two rows of one key in one statement are refused by the database, whichever came first stays, and the rest goes on."""
    question, first, second = asks(BEGIN_US), new_task(), new_task()
    call = ToolCall("c", "read_file", EMPTY)
    twice = answered(Usage(), tool_calls=(call, call))
    async with log_of(database) as store, model_of(database, store) as model:
        for task_id, odd in ((first, [question]), (second, [question]), (new_task(), [twice]), (new_task(), [answered(Usage(), tool_calls=(call,))])):
            await store.append(of_a_run(new_run(), task_id, *odd))
        again, once = new_task(), (call,)
        turns = (answered(Usage(), tool_calls=once), tool_done("c"), asked("m2"), answered(Usage(), tool_calls=once, call_id="m2"))
        await store.append(of_a_run(new_run(), again, *turns))
        await follow(model, store)
        admin = await database.admin()
        try:
            assert [row[0] for row in await admin.fetch("SELECT task_id FROM crewlog.approvals")] == [first]
            assert [row[0] for row in await admin.fetch("SELECT type FROM crewlog.problems")] == ["ModelCallFinished"]
            assert await admin.fetchval("SELECT status FROM crewlog.tool_calls WHERE task_id = $1", again) == "requested"
            assert await admin.fetchval("SELECT count(*) FROM crewlog.runs") == 5
        finally:
            await admin.close()
        await is_made_again(database, store)


async def test_a_text_that_cannot_be_read_costs_its_document_alone(database: Database) -> None:
    """Agents may store texts: one under the hash of another text, or none at all, stops nobody who reads."""
    broken = content_hash(b"what is not stored")
    async with log_of(database) as store, model_of(database, store) as model:
        (good,) = await store.put_blobs([b"# Heading\n\nwords"])
        admin = await database.admin()
        try:
            await admin.execute("INSERT INTO es.blobs (hash, codec, size, data) VALUES ($1, 1, 9, $2)", bytes.fromhex(broken), zlib.compress(b"other"))
            for name, text in (("broken", broken), ("no hash", Hash("x" * 64)), ("good", good)):
                content = content_hash(name.encode())
                event = DocumentIngested("default", content, library=True, name=name, media_type="text/plain", size=1, text=text, lines=1, title="")
                await store.append(AppendRequest([Write(document_stream("default", content), [event])], [CLOCK.new_id()], BEGIN_US))
            await follow(model, store)
            assert [row[0] for row in await admin.fetch("SELECT name FROM crewlog.documents")] == ["good"]
            told = [row[0] for row in await admin.fetch("SELECT error FROM crewlog.problems ORDER BY position")]
            assert ["stored with other bytes" in told[0], "does not exist" in told[1]] == [True, True]
        finally:
            await admin.close()
