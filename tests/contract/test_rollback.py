"""Taking a run back: its compensations in reverse order, by its own kind of agent, each an effect of its own; what cannot be taken back is listed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from support.effects import Outside
from support.scripted import Line, ScriptedModel, calls

from crewlog.agents.spec import ToolOutput, ToolSpec
from crewlog.agents.work import Workshop
from crewlog.agents.worker import Worker
from crewlog.events.artifact_store import open_artifacts
from crewlog.events.clock import SystemClock
from crewlog.events.memory_bus import MemoryBus
from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.orchestrator.memory_crew import QUIET, MemoryCrew, memory_crew
from crewlog.orchestrator.replay import replay
from crewlog.orchestrator.service import Settings
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId, TaskId, compensation_key, idempotency_key, rollback_run_id, task_stream
from crewlog.schemas.run_events import RollbackContinued, RunCompleted
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import ToolFinished, ToolStarted

SUBMIT = calls(("submit", '{"text":"done"}'))


@asynccontextmanager
async def crew(tmp: Path, outside: Outside, *lines: Line, log: MemoryLog | None = None, settings: Settings = QUIET) -> AsyncIterator[MemoryCrew]:
    artifacts = await open_artifacts(tmp / "artifacts")
    async with (
        asyncio.timeout(60),
        memory_crew(
            *([outside.agent()], lambda _: (ScriptedModel(list(lines)),)), clock=SystemClock(), artifacts=artifacts, folder=tmp, log=log, settings=settings
        ) as made,
    ):
        yield made


async def ran(made: MemoryCrew, **fields: Any) -> RunId:
    run_id = await made.submit(parse_task({"task_id": str(uuid4()), "type": "data", "objective": "do it", "auto_approve": True, **fields}))
    await made.end(run_id)
    return run_id


async def rolled_back(made: MemoryCrew, run_id: RunId) -> tuple[RunId, dict[str, Any]]:
    begun = await made.ask("runs.rollback", {"run_id": run_id, "reason": "wrong venue", "actor": "maria"})
    rollback = RunId(UUID(begun["run_id"]))
    await made.end(rollback)
    return rollback, (await made.ask("runs.get", {"run_id": rollback}))["run"]


def key(run_id: RunId, call_id: str) -> str:
    return idempotency_key(run_id, TaskId(run_id), call_id)


async def test_effects_are_taken_back_the_last_one_first_and_the_rest_is_listed(tmp_path: Path) -> None:
    outside = Outside()
    script = (calls(("rent", '{"text":"hall"}')), calls(("hire", '{"text":"band"}')), calls(("post", '{"text":"letter"}')), SUBMIT)
    async with crew(tmp_path, outside, *script) as made:
        run_id = await ran(made)
        assert len(outside.things) == 3
        rollback, report = await rolled_back(made, run_id)
        assert rollback == rollback_run_id(run_id, number=1)
        rented, hired, posted = (key(run_id, f"t{n}-1") for n in (1, 2, 3))
        assert outside.undone == [(f"id-{hired}", compensation_key(hired)), (f"id-{rented}", compensation_key(rented))]
        assert outside.things == {posted: "letter"}
        assert [item["key"] for item in report["rollback"]["undone"]] == [hired, rented]
        assert report["rollback"]["left"] == [{"task_id": str(run_id), "call_id": "t3-1", "key": posted, "tool": "post", "why": "irreversible"}]
        assert report["end"]["flags"] == ["not_undone"]
        assert f"post (task {run_id}, call t3-1, key {posted}): it is irreversible" in report["text"]
        replayed = await replay(made.store, rollback, verify=True)
        assert replayed.divergence is None, str(replayed.divergence)
        events = [r.event() for r in await made.store.read_run(rollback)]
        assert [e.undoes for e in events if isinstance(e, ToolStarted)] == [hired, rented]
        assert {e.effect for e in events if isinstance(e, ToolStarted)} == {"idempotent"}
        assert not [e for e in events if type(e).__name__ == "ModelCallStarted"], "no model is asked"


async def test_a_second_rollback_takes_back_only_what_the_first_one_could_not(tmp_path: Path) -> None:
    outside = Outside(undo_fails=True)
    async with crew(tmp_path, outside, calls(("rent", '{"text":"hall"}')), SUBMIT) as made:
        run_id = await ran(made, limits={"attempts_max": 1})
        first = await made.ask("runs.rollback", {"run_id": run_id, "reason": "wrong venue", "actor": "maria"})
        again = await made.ask("runs.rollback", {"run_id": run_id, "reason": "wrong venue", "actor": "maria"})
        assert (again["run_id"], again["status"]) == (first["run_id"], "duplicate")
        await made.ask("runs.cancel", {"run_id": first["run_id"], "reason": "it will not work", "actor": "maria"})
        outside.undo_fails = False
        second, report = await rolled_back(made, run_id)
        assert second == rollback_run_id(run_id, number=2)
        assert [item["key"] for item in report["rollback"]["undone"]] == [key(run_id, "t1-1")]
        assert report["end"]["flags"] == []
        _, third = await rolled_back(made, run_id)
        assert third["rollback"]["undone"] == []
        assert third["text"].startswith(f"Rollback 3 of run {run_id} (wrong venue): 0 taken back, 0 not.")


class Stuck(Outside):
    """Whatever is taken back hangs."""

    def undoing(self) -> ToolSpec:
        async def hang(*_: object) -> ToolOutput:
            self.entered.set()
            return await asyncio.Future()

        return replace(super().undoing(), run=hang)


async def test_a_tenant_that_may_have_no_more_runs_may_take_one_back(tmp_path: Path) -> None:
    outside = Outside()
    async with crew(tmp_path, outside, calls(("rent", '{"text":"hall"}')), SUBMIT, settings=QUIET._replace(open_runs_max=1)) as made:
        run_id = await ran(made)
        research = {"type": "research", "objective": "wait for a worker: there is none"}
        await made.submit(parse_task({"task_id": str(uuid4()), **research}))
        with pytest.raises(ContractError, match="CREWLOG_OPEN_RUNS_MAX"):
            await made.submit(parse_task({"task_id": str(uuid4()), **research}))

        _, report = await rolled_back(made, run_id)

        assert ([item["key"] for item in report["rollback"]["undone"]], outside.things) == ([key(run_id, "t1-1")], {})


async def test_whoever_takes_the_id_of_a_rollback_for_a_run_of_their_own_keeps_nobody_from_rolling_back(tmp_path: Path) -> None:
    outside = Outside()
    async with crew(tmp_path, outside, calls(("rent", '{"text":"hall"}')), SUBMIT) as made:
        run_id = await ran(made)
        taken = str(rollback_run_id(run_id, number=1))
        await made.submit(parse_task({"task_id": taken, "type": "code", "objective": "wait for an agent that is not there"}))
        rollback, report = await rolled_back(made, run_id)

    assert rollback == rollback_run_id(run_id, number=2)
    assert (len(report["rollback"]["undone"]), outside.things) == (1, {})


async def test_a_rollback_whose_worker_died_in_the_middle_goes_on(tmp_path: Path) -> None:
    outside = Outside()
    stuck = Stuck(things=outside.things)
    script = (calls(("rent", '{"text":"hall"}'), ("hire", '{"text":"band"}')), SUBMIT)
    artifacts = await open_artifacts(tmp_path / "artifacts")
    async with asyncio.timeout(60), memory_crew([], lambda _: (), clock=SystemClock(), artifacts=artifacts, folder=tmp_path) as made:

        async def worker(world: Outside, name: str, *lines: Line) -> Worker:
            shop = Workshop(name, world.agent(), (ScriptedModel(list(lines)),), artifacts, SystemClock(), tmp_path)
            begun = Worker(shop, MemoryStore(made.log, role="crewlog_data", on_commit=lambda _: made.grown.set()), MemoryBus(made.bus.broker), slots=1)
            await begun.start()
            return begun

        first = await worker(outside, "w1", *script)
        run_id = await ran(made)
        await first.stop(grace_s=1)
        dying = await worker(stuck, "w2")
        asked = await made.ask("runs.rollback", {"run_id": run_id, "reason": "wrong venue", "actor": "maria"})
        await stuck.entered.wait()
        await dying.stop(grace_s=0)
        last = await worker(outside, "w3")
        rollback = RunId(UUID(asked["run_id"]))
        end = (await made.end(rollback)).event()
        assert isinstance(end, RunCompleted)
        assert end.flags == ()
        assert len(outside.undone) == 2
        assert outside.things == {}
        begun = [e for r in await made.store.read_run(rollback) if isinstance(e := r.event(), ToolStarted)]
        assert len(begun) == 3
        assert begun[0].idempotency_key == begun[1].idempotency_key
        assert (await replay(made.store, rollback, verify=True)).divergence is None
        await last.stop(grace_s=1)


async def test_what_came_of_a_run_is_taken_back_with_it_in_one_order(tmp_path: Path) -> None:
    outside = Outside()
    script = [line for text in ("one", "two", "three") for line in (calls(("rent", json.dumps({"text": text}))), SUBMIT)]
    async with crew(tmp_path, outside, *script) as made:
        parent = await ran(made)
        child = await ran(made, parent_task_id=str(parent))
        grandchild = await ran(made, parent_task_id=str(child))
        _, first = await rolled_back(made, grandchild)
        assert [item["key"] for item in first["rollback"]["undone"]] == [key(grandchild, "t1-1")]
        rollback, report = await rolled_back(made, parent)
        assert [(item["run_id"], item["key"]) for item in report["rollback"]["undone"]] == [(str(run), key(run, "t1-1")) for run in (child, parent)]
        assert report["end"]["flags"] == []
        assert f"(run {child}, task {child}, call t1-1" in report["text"]
        assert outside.things == {}
        assert len(outside.undone) == 3, "what the rollback of the grandchild took back is not taken back again"
        assert (await replay(made.store, rollback, verify=True)).divergence is None
        _, nothing = await rolled_back(made, child)
        assert nothing["rollback"]["undone"] == []


async def test_a_run_is_not_rolled_back_while_what_came_of_it_is_under_way_or_being_rolled_back(tmp_path: Path) -> None:
    outside = Outside()
    async with crew(tmp_path, outside, calls(("rent", '{"text":"hall"}')), SUBMIT, calls(("rent", '{"text":"band"}'))) as made:
        parent = await ran(made)
        outside.mode, outside.entered = "done_and_hangs", asyncio.Event()
        task = {"task_id": str(uuid4()), "type": "data", "objective": "do it", "auto_approve": True, "parent_task_id": str(parent)}
        child = await made.submit(parse_task(task))
        await outside.entered.wait()
        ask = {"run_id": parent, "reason": "wrong venue", "actor": "maria"}
        with pytest.raises(ContractError, match=f"run {child}, which came from run {parent}, is not over"):
            await made.ask("runs.rollback", ask)
        await made.ask("runs.cancel", {"run_id": child, "reason": "no", "actor": "maria"})
        outside.undo_fails = True
        begun = await made.ask("runs.rollback", {**ask, "run_id": child})
        with pytest.raises(ContractError, match=f"run {child} is being rolled back by run {begun['run_id']}"):
            await made.ask("runs.rollback", ask)
        await made.ask("runs.cancel", {"run_id": begun["run_id"], "reason": "no", "actor": "maria"})


async def test_a_rollback_of_more_than_an_event_holds_goes_on_page_by_page_also_with_another_orchestrator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crewlog.orchestrator.rollback.PAGE_BYTES_MAX", 1_500)  # three orders or four
    outside = Outside()
    rented = calls(*(("rent", json.dumps({"text": f"hall {n}"})) for n in range(20)))
    async with crew(tmp_path, outside, rented, SUBMIT) as made:
        run_id = await ran(made)
        assert len(outside.things) == 20
        log = made.log
        begun = await made.ask("runs.rollback", {"run_id": run_id, "reason": "wrong venue", "actor": "maria"})
        assert 0 < begun["orders"] < 5
        assert begun["orders"] + begun["more"] == 20
        rollback = RunId(UUID(begun["run_id"]))
        await made.until(lambda: any(r.run_id == rollback and isinstance(r.event(), RollbackContinued) for r in log.events))
    assert 0 < len(outside.undone) < 20, "the crew goes away in the middle"
    async with crew(tmp_path, outside, log=log) as made:
        await made.end(rollback)
        report = (await made.ask("runs.get", {"run_id": rollback}))["run"]
        assert (report["rollback"]["undone_count"], report["rollback"]["more"], report["end"]["flags"]) == (20, 0, [])
        assert (await replay(made.store, rollback, verify=True)).divergence is None
        begins = [e for r in await made.store.read_run(run_id) if isinstance(e := r.event(), ToolStarted) and e.effect != "read"]
        assert list(dict.fromkeys(thing for thing, _ in outside.undone)) == [f"id-{e.idempotency_key}" for e in reversed(begins)]
        assert len({key for _, key in outside.undone}) == 20
        assert outside.things == {}


async def test_what_was_cleaned_up_in_the_run_is_not_cleaned_up_again(tmp_path: Path) -> None:
    outside = Outside()
    spec = outside.agent()
    offered = replace(spec, tools=tuple(replace(t, undoes=False) if t.name == "unmake" else t for t in spec.tools))  # type: ignore[union-attr]
    outside.agent = lambda kind="data": offered  # type: ignore[method-assign]

    def unmake(request: Any) -> Any:
        made = next(iter(outside.things))
        return calls(("unmake", json.dumps({"text": f"id-{made}"})))

    async with crew(tmp_path, outside, calls(("rent", '{"text":"hall"}')), unmake, SUBMIT) as made:
        run_id = await ran(made)
        _, report = await rolled_back(made, run_id)
        assert report["rollback"]["undone"] == []
        assert [left["tool"] for left in report["rollback"]["left"]] == ["unmake"]
        assert len(outside.undone) == 1


async def test_who_may_not_be_rolled_back(tmp_path: Path) -> None:
    outside = Outside(mode="hangs")
    async with crew(tmp_path, outside, calls(("rent", '{"text":"hall"}')), SUBMIT) as made:
        run_id = await made.submit(parse_task({"task_id": str(uuid4()), "type": "data", "objective": "do it"}))
        ask = {"run_id": run_id, "reason": "wrong venue", "actor": "maria"}
        with pytest.raises(ContractError, match="is not over: it could do more while it is rolled back"):
            await made.ask("runs.rollback", ask)
        with pytest.raises(ContractError, match="matches nothing"):
            await made.ask("runs.rollback", {**ask, "run_id": uuid4()})
        with pytest.raises(ContractError, match="matches nothing"):
            await made.ask("runs.rollback", ask, tenant="other")
        with pytest.raises(ContractError, match="who wants it and why"):
            await made.ask("runs.rollback", {**ask, "reason": " "})
        await outside.entered.wait()
        await made.ask("runs.cancel", {"run_id": run_id, "reason": "no", "actor": "maria"})


async def test_an_undo_order_cannot_be_submitted(tmp_path: Path) -> None:
    order = dict.fromkeys(("call_id", "key", "effect_tool", "tool", "version", "arguments"), "x") | {"run_id": str(uuid4()), "task_id": str(uuid4())}
    async with crew(tmp_path, Outside()) as made:
        with pytest.raises(ContractError, match="undo is reserved for the orchestrator"):
            await made.submit(parse_task({"task_id": str(uuid4()), "type": "data", "objective": "x", "undo": order}))


async def test_a_call_in_doubt_of_a_cancelled_run_is_taken_back_once_its_worker_is_through(tmp_path: Path) -> None:
    outside = Outside(mode="done_and_hangs")
    async with crew(tmp_path, outside, calls(("rent", '{"text":"hall"}'))) as made:
        run_id = await made.submit(parse_task({"task_id": str(uuid4()), "type": "data", "objective": "do it"}))
        await outside.entered.wait()
        await made.ask("runs.cancel", {"run_id": run_id, "reason": "no", "actor": "maria"})
        log = made.log
    outside.mode = "answers"
    async with crew(tmp_path, outside, log=log) as made:
        _, report = await rolled_back(made, run_id)
        assert [item["key"] for item in report["rollback"]["undone"]] == [key(run_id, "t1-1")]
        assert outside.things == {}
        finished = [r.event() for r in await made.store.read_streams({task_stream(TaskId(run_id)): 0})]
        assert not [e for e in finished if isinstance(e, ToolFinished)]
