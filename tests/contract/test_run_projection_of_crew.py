"""The fold of runs over what real orchestrators write: nothing is left out, and it agrees with the orchestrator about every run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.crew import Crew, crash_once, diligent
from support.decider import a_plan, broken, done
from support.run_tables import Tables, fold_in_bulk, fold_pages

from crewlog.events.memory_store import MemoryStore
from crewlog.schemas.ids import ApprovalId, Hash, RunId, TaskId, derived_approval_id
from crewlog.schemas.payload import EMPTY
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import ApprovalRequested, TaskEvent


async def tables_of(crew: Crew) -> Tables:
    """Fold the log of a crew, event by event and all at once."""
    store = MemoryStore(crew.log)
    events = (await store.read_all(0, 100_000)).events
    at_once = await fold_pages(store, [events])
    one_by_one = await fold_pages(store, [[event] for event in events])
    assert vars(at_once) == vars(one_by_one) == vars(await fold_in_bulk(store, [[event] for event in events]))
    for task in at_once.tasks.values():
        run = at_once.runs[task["run_id"],]
        assert run["status"] == "running" or task["waiting_reason"] is None, task
    return at_once


def statuses(tables: Tables, run_id: RunId) -> dict[tuple[str, int], str]:
    return {(key, revision): task["status"] for (run, key, revision), task in tables.tasks.items() if run == run_id}


async def run_to_its_end(crew: Crew, **fields: Any) -> RunId:
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(**fields)
        await crew.ended(run_id)
        return run_id


async def test_a_goal_is_planned_worked_on_and_answered() -> None:
    crew = Crew(diligent)
    run_id = await run_to_its_end(crew)
    tables = await tables_of(crew)
    assert tables.runs[run_id,]["status"] == "completed"
    assert statuses(tables, run_id) == {("@plan", 0): "completed", ("a", 0): "completed", ("@synthesis", 0): "completed"}
    assert all(task["objective"] for task in tables.tasks.values())


async def test_a_single_task_keeps_its_id() -> None:
    crew = Crew(diligent)
    run_id = await run_to_its_end(crew, type="data")
    (task,) = (await tables_of(crew)).tasks.values()
    assert (task["task_id"], task["key"], task["status"]) == (run_id, "task", "completed")


async def test_retries_and_a_failed_step() -> None:
    crew = Crew(lambda task, attempt: broken(attempt=attempt) if task.key == "bad" else crash_once(task, attempt))
    plan = a_plan(good="data", bad="code", after="research bad")
    run_id = await run_to_its_end(crew, plan=plan)
    tables = await tables_of(crew)
    found = statuses(tables, run_id)
    assert (found["bad", 0], found["after", 0]) == ("failed", "skipped")
    assert tables.tasks[run_id, "good", 0]["attempt"] == 2


async def test_work_sent_back_is_a_new_revision() -> None:
    def wordy_first(task: AgentTask, attempt: int) -> TaskEvent:
        del attempt
        return done("short" if any(item.key == "@review" for item in task.context) else "far too many words for this")

    crew = Crew(wordy_first)
    run_id = await run_to_its_end(crew, type="data", constraints={"words_max": 2})
    tables = await tables_of(crew)
    assert statuses(tables, run_id) == {("task", 0): "revised", ("task", 1): "completed"}
    assert tables.tasks[run_id, "task", 0]["verdict"] == "revise"


async def test_a_cancelled_run_leaves_nothing_waiting() -> None:
    crew = Crew(lambda task, attempt: diligent(task, attempt) if task.key == "first" else None)
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(plan=a_plan(first="data", second="code first", third="research second"))
        await crew.until_handed(2)
        before = await tables_of(crew)
        assert before.tasks[run_id, "third", 0]["waiting_reason"] == "waiting for step second"
        assert before.tasks[run_id, "second", 0]["waiting_reason"] == "queued for code (attempt 1)"
        assert (await crew.ask("runs.cancel", {"run_id": run_id, "reason": "enough", "actor": "eve"}))["ok"]
        await crew.ended(run_id)
    tables = await tables_of(crew)
    assert statuses(tables, run_id) == {("first", 0): "completed", ("second", 0): "cancelled", ("third", 0): "skipped"}
    assert tables.runs[run_id,]["error"] == "cancelled by eve: enough"


@pytest.mark.parametrize("decision", ["approved", "denied"])
async def test_approvals(decision: str) -> None:
    asked = asyncio.Event()

    def asks_first(task: AgentTask, attempt: int) -> TaskEvent:
        if not asked.is_set():
            asked.set()
            approval_id = ApprovalId(derived_approval_id(TaskId(task.task_id), call_id="t1-1/0"))
            return ApprovalRequested(approval_id, "t1-1", "send_email", EMPTY, Hash("d" * 64), "sends mail", crew.clock.now_us() + 60_000_000)
        return diligent(task, attempt)

    crew = Crew(asks_first)
    async with crew.orchestrator(), crew.agents():
        run_id = await crew.submit(type="communicate")
        await crew.until(lambda: "TaskSuspended" in crew.types(run_id))
        before = await tables_of(crew)
        (approval,) = before.approvals.values()
        assert approval["status"] == "pending"
        (task,) = before.tasks.values()
        assert task["waiting_reason"].startswith("approval of send_email by a person until 20")
        body = {"run_id": run_id, "approval_id": approval["approval_id"], "decision": decision, "actor": "bob", "note": "so be it"}
        assert (await crew.ask("approvals.decide", body))["ok"]
        await crew.ended(run_id)
    (approval,) = (await tables_of(crew)).approvals.values()
    assert (approval["status"], approval["actor"], approval["note"]) == (decision, "bob", "so be it")
