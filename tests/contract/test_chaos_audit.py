"""What the audit of a chaos run claims to find in queues, ledger and open runs, planted in a real log, and found."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import NamedTuple

import pytest
from support.logs import CLOCK, cancelled, new_run, new_task, opening, request, to_run
from support.money import calling, opened, settling
from support.postgres import Database
from support.views import follow, log_of, model_of

from crewlog.events.bus import Message
from crewlog.events.memory_bus import MemoryBus
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import Write
from crewlog.orchestrator import chaos_audit
from crewlog.orchestrator.chaos_agent import KIND
from crewlog.orchestrator.chaos_sink import Sink
from crewlog.projections.queries import Queries
from crewlog.projections.query_rows import Lag
from crewlog.projections.read_model import ReadModel
from crewlog.schemas.budget import ScopeLimit, run_scope, tenant_scope, utc_day
from crewlog.schemas.ids import RunId, agent_stream
from crewlog.schemas.subjects import control_worker
from crewlog.schemas.system_events import AgentRegistered, AgentStopped

pytestmark = pytest.mark.hand_written("plants what no crew would leave behind")


class Left(NamedTuple):
    """A log with its views, and queues."""

    store: PostgresStore
    model: ReadModel
    queries: Queries
    bus: MemoryBus

    async def noise(self) -> list[str]:
        """Return what has not come to rest."""
        await self.bus.ensure_kind(KIND)
        return [violation async for violation in chaos_audit._rest(self.store, self.bus, self.queries, CLOCK)]

    async def money(self, charged: dict[RunId, int], days: Collection[str], billed: int) -> list[str]:
        """Return what is wrong with the ledger."""
        return [violation async for violation in chaos_audit._money(self.store, charged, days, billed)]


@pytest.fixture
async def left(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Left]:
    monkeypatch.setattr(chaos_audit, "QUIET_WITHIN_S", 0.0)
    async with log_of(database) as store, model_of(database, store) as model, Queries(database.url("crewlog_operator"), CLOCK) as queries:
        yield Left(store, model, queries, MemoryBus())


async def test_a_message_a_reservation_and_a_view_that_do_not_come_to_rest_are_found(left: Left) -> None:
    assert await left.noise() == []
    await left.bus.enqueue(f"work.{KIND}.low", b"{}", message_id="w")
    await left.bus.enqueue("tasks.default.data", b"{}", message_id="t")
    assert await left.noise() == ["queue TASKS/intake still holds 1 messages", f"queue WORK/{KIND}-low still holds 1 messages"]
    await left.bus.remove("TASKS", 1)
    await left.bus.remove("WORK", 1)
    task_id = new_task()
    await left.store.append(opened(task_id, ScopeLimit("run/1", None, None)))
    await left.store.append(calling(task_id, 100))
    await follow(left.model, left.store)
    (never_settled,) = await left.noise()
    assert never_settled.endswith(f" of task/{task_id} was never settled")
    await left.store.append(settling(task_id, 100))
    behind = await left.noise()
    assert "view runs does not catch up with the log" in behind
    assert all(said.endswith("does not catch up with the log") for said in behind)
    await follow(left.model, left.store)
    assert await left.noise() == []


async def test_an_open_run_is_found_and_whether_anybody_was_told_of_it(left: Left) -> None:
    run_id = new_run()
    await left.store.append(opening(run_id))
    assert await chaos_audit._open_runs(left.store, [run_id]) == [f"run {run_id} is open"]
    assert await chaos_audit._open_runs(left.store, [new_run()]) == [f"run {run_id} is open, and nobody was told that it was accepted"]
    await left.store.append(to_run(run_id, cancelled()))
    assert await chaos_audit._open_runs(left.store, []) == []


async def test_a_worker_of_whom_the_log_says_the_wrong_thing_is_found(left: Left) -> None:
    async def says(event: AgentRegistered | AgentStopped) -> None:
        await left.store.append(request(Write(agent_stream(KIND), (event,))))

    async def found() -> list[str]:
        return [violation async for violation in chaos_audit._workers(left.store, left.bus, CLOCK)]

    async def answer(message: Message) -> None:
        await left.bus.publish(message.reply, b"{}")

    for worker in ("w1", "w2", "w3"):
        await says(AgentRegistered(KIND, worker, "", "1", 4, "m", simulated=False, tools=()))
    await left.bus.subscribe(control_worker("w1"), answer)
    await says(AgentStopped(KIND, "w3", heard_us=1))
    assert await found() == ["worker w2 is gone, and the log says otherwise"]
    await says(AgentStopped(KIND, "w2"))
    assert await found() == []
    await says(AgentStopped(KIND, "w1", heard_us=1))
    assert await found() == ["worker w1 is there, and the log says otherwise"]


async def test_the_end_of_a_worker_that_is_recorded_while_it_is_waited_for_is_waited_for_in_the_views(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they are not as a rebuild makes them."""
    monkeypatch.setattr(chaos_audit, "QUIET_WITHIN_S", 60.0)
    await left.store.append(request(Write(agent_stream(KIND), (AgentRegistered(KIND, "w1", "", "1", 4, "m", simulated=False, tools=()),))))
    await follow(left.model, left.store)
    lag, ends = left.queries.lag, 0

    async def die(_: Message) -> None:
        """Answer no more, and have the end recorded."""
        nonlocal ends
        if not ends:
            ends += 1
            await left.store.append(request(Write(agent_stream(KIND), (AgentStopped(KIND, "w1", heard_us=1),))))

    async def look() -> list[Lag]:
        """Let the views follow when somebody has seen that they are behind."""
        found = await lag()
        await follow(left.model, left.store)
        return found

    await left.bus.subscribe(control_worker("w1"), die)
    monkeypatch.setattr(left.queries, "lag", look)
    assert await left.noise() == []
    assert ends == 1
    assert {view.waiting_since for view in await lag()} == {None}


async def test_money_that_is_in_one_book_only_is_found(left: Left) -> None:
    run_id, task_id, day = new_run(), new_task(), utc_day(CLOCK.now_us())
    await left.store.append(opened(task_id, ScopeLimit(run_scope(run_id), None, None), ScopeLimit(tenant_scope("default", day), None, None)))
    await left.store.append(calling(task_id, 100))
    held = f"the tenant's budgets: 0 micro-USD spent and 100 reserved in the ledger, {60} spent in the log"
    assert held in await left.money({run_id: 60}, [day], 60)
    await left.store.append(settling(task_id, 60))
    assert await left.money({run_id: 60}, [day], 60) == []
    assert await left.money({run_id: 60}, [day], 61) == ["models billed 61 micro-USD, the runs were charged 60"]
    assert await left.money({run_id: 60}, [], 60) == ["the tenant's budgets: 0 micro-USD spent and 0 reserved in the ledger, 60 spent in the log"]
    (of_run, of_tenant) = await left.money({run_id: 59}, [day], 59)
    assert f"budget {run_scope(run_id)}" in of_run
    assert of_tenant == "the tenant's budgets: 60 micro-USD spent and 0 reserved in the ledger, 59 spent in the log"


async def test_a_key_that_comes_with_two_effects_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crewlog.orchestrator.chaos_sink.ANSWERS_AFTER_S", (0.0, 0.0))
    sink = Sink(tmp_path / "sink", random.Random(1))
    for key, what in (("k", "t/stamp/1"), ("k", "t/stamp/1"), ("j", "t/stamp/2"), ("j", "t/send/2")):
        await sink._take({"key": key, "what": what, "effect": "idempotent"})
    assert sink.mixed == ["j"]
    assert (sink.arrivals, sink.repeated) == ({"k": 2, "j": 2}, 2)
