"""A real crew whose model costs money: held at its limit, shown, raised, finished; an orchestrator killed in between; the ledger balances."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from support.audit import caught_up
from support.live_crew import CLI, LiveCrew, a_crew
from support.model_server import Canned, ModelServer, serve_models
from support.wires import CHAT, Said

from crewlog.events.clock import SystemClock
from crewlog.events.readiness import READY_FD
from crewlog.schemas.budget import utc_day

OUTPUT_TOKENS = 3_000
COST = OUTPUT_TOKENS * 100
"""Of one call, in micro-USD; its worst case is 8,192 tokens."""
WORST_CASE = 8_192 * 100
PRICES = {"house:*": {"input": "0", "output": "100"}}
PLAN = {
    "steps": [
        {"key": "a", "type": "research", "objective": "Say a"},
        {"key": "b", "type": "research", "objective": "Say b", "depends_on": ["a"]},
        {"key": "c", "type": "research", "objective": "Say c", "depends_on": ["b"]},
    ]
}


def answer() -> Canned:
    events = CHAT.events(Said("The answer is 42."))
    usage = {"prompt_tokens": 10, "completion_tokens": OUTPUT_TOKENS, "total_tokens": OUTPUT_TOKENS + 10}
    return Canned(events=[{**event, "usage": usage} if isinstance(event, dict) and event.get("usage") else event for event in events])


@asynccontextmanager
async def a_paid_crew(**env: str) -> AsyncIterator[tuple[LiveCrew, ModelServer]]:
    async with serve_models(answer()) as models:
        settings = {
            "CREWLOG_MODELS": f"house:fake-1@{models.url}/v1",
            "CREWLOG_PRICES": json.dumps(PRICES),
            "CREWLOG_SWEEP_INTERVAL_S": "0.5",
            **env,
        }
        starting = a_crew("--agents", "research=1,code=0,data=0,communicate=0,planner=0", **settings)
        crew = await asyncio.to_thread(starting.__enter__)
        try:
            yield crew, models
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)


@asynccontextmanager
async def another_orchestrator(crew: LiveCrew) -> AsyncIterator[None]:
    ready, child = os.pipe()
    process = subprocess.Popen([*CLI, "orchestrator"], env={**crew.env, READY_FD: str(child)}, pass_fds=(child,))  # noqa: ASYNC220
    os.close(child)
    try:
        async with asyncio.timeout(90):
            assert await asyncio.to_thread(os.read, ready, 1) == b"1"
        yield
    finally:
        os.close(ready)
        process.kill()
        process.wait()


async def run(crew: LiveCrew, *arguments: str | Path, code: int = 0, **more: Any) -> str:
    done = await asyncio.to_thread(partial(crew.run, *arguments, code=code, **more))
    return f"{done.stdout}\n---\n{done.stderr}"


async def data(crew: LiveCrew, *arguments: str | Path, code: int = 0) -> Any:
    return await asyncio.to_thread(partial(crew.json, *arguments, code=code))


async def balance(crew: LiveCrew, models: ModelServer, run_id: str) -> None:
    """Hold the ledger against what the provider served, to the micro-dollar. Over midnight two days have a budget of each kind."""
    ledger: Counter[str] = Counter()
    for budget in await data(crew, "budget", "show", run_id):
        ledger[budget["kind"]] += budget["spent_micro_usd"]
        assert budget["reserved_micro_usd"] == 0
    assert ledger == dict.fromkeys(("run", "tree", "tenant/day", "user/day", "kind/day"), len(models.requests) * COST)
    assert sum(cost["cost_micro_usd"] for cost in await data(crew, "costs", run_id)) == len(models.requests) * COST
    assert "identical" in await run(crew, "replay", run_id, "--verify")


async def test_a_run_at_its_limit_is_held_shown_and_raised_to_its_end(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(PLAN))
    async with a_paid_crew() as (crew, models):
        shown = await run(crew, "submit", "--file", plan, "--budget", "1.30", "--wait", code=6)
        data_part, told = shown.split("\n---\n")
        assert "The answer is 42." in data_part, "what was finished"
        assert "held by budget run/" in told
        assert "BudgetWarned" in told
        assert "RunHeld" in told
        served = len(models.requests)
        (held,) = await data(crew, "runs", "--status", "held")
        run_id = held["run_id"]
        assert (held["hold"]["scope"], held["hold"]["limit_micro_usd"], held["hold"]["used_micro_usd"]) == (f"run/{run_id}", 1_300_000, served * COST)
        assert held["hold"]["needed_micro_usd"] >= 8_192 * 100
        assert held["warnings"] == [f"run/{run_id}"]
        why = {task["key"]: task["waiting_reason"] for task in await data(crew, "why", run_id)}
        assert why["b"].startswith(f"budget run/{run_id}: $0.6000 of $1.3000 used")
        assert (await run(crew, "watch", run_id, code=6)).count("The answer is 42.") >= 1
        (listed,) = [budget for budget in await data(crew, "budget", "list") if budget["scope"] == f"run/{run_id}"]
        assert (listed["runs_held"], listed["hard_micro_usd"], listed["soft_micro_usd"]) == (1, 1_300_000, 910_000)
        assert "holds 1 run" in await run(crew, "budget", "list")
        assert f"run {run_id[:8]} is held by budget run/{run_id}" in await run(crew, "status")
        assert [entry["run_id"] for entry in (await data(crew, "status"))["held"]] == [run_id]

        assert "would not raise it" in await run(crew, "budget", "raise", run_id, "--hard", "1.00", code=2)
        assert "not an amount" in await run(crew, "budget", "raise", run_id, "--hard", "nan", code=2)
        assert "lets no model be asked" in await run(crew, "submit", "x", "--budget", "0", code=2)
        assert "cannot be negative" in await run(crew, "submit", "x", "--budget=-1", code=2)
        assert len(models.requests) == served, "a held run costs nothing"

        raised = await data(crew, "budget", "raise", run_id[:8], "--hard", "10", "--reason", "worth it", "--as", "eve")
        assert (raised["hard_micro_usd"], raised["changed_by"], raised["reason"]) == (10_000_000, "eve", "worth it")
        tenant = max((budget for budget in await data(crew, "budget", "show", run_id) if budget["kind"] == "tenant/day"), key=itemgetter("day"))
        assert tenant["hard_micro_usd"] is None
        assert tenant["is_open"] or tenant["day"] < utc_day(SystemClock().now_us()), "until midnight"
        assert "is limited to $50.0000 now" in await run(crew, "budget", "set", tenant["scope"], "--hard", "50")
        ended = await data(crew, "watch", run_id)
        assert (ended["status"], ended["hold"]) == ("completed", None)
        assert ended["answer"].count("The answer is 42.") == 3
        assert len(models.requests) == 6
        await balance(crew, models, run_id)
        await evaluate_up_to_a_limit(crew, models)


async def evaluate_up_to_a_limit(crew: LiveCrew, models: ModelServer) -> None:
    """Four runs of two calls are tried again for what two of them take. The second trial is held while the first has reserved the rest, and goes on when
    that turned out cheaper; the others are held for good and cancelled, or not begun."""
    async with crew.client() as client:
        runs = [(await client.submit(await client.prepare(f"Say {n}", kind="research"))).run_id for n in range(4)]
        assert {run.status for run in await asyncio.gather(*map(client.wait, runs))} == {"completed"}
        before = len(models.requests)
        limit = 3 * COST + WORST_CASE + 30_000
        options = ("--last", "4", "--type", "research", "--at-once", "2", "--max-usd", f"{limit / 1e6}")
        found = await data(crew, "eval", "--model", f"house:fake-1@{models.url}/v1", *options, code=6)
        asked = (len(models.requests) - before) * COST
        (scope,) = [row for row in await data(crew, "budget", "list", "--all") if row["scope"] == found["budget"]["scope"]]
        assert found["budget"] == {"scope": f"trial/default/{found['name']}", "spent_micro_usd": asked, "hard_micro_usd": limit}
        assert (scope["spent_micro_usd"], scope["reserved_micro_usd"]) == (asked, 0)
        assert asked == 4 * COST < limit
        assert found["summary"]["pairs"] == 2
        judged = [(pair["status"], pair["trial_status"], pair["diverges"], pair["is_worse"]) for pair in found["pairs"]]
        assert judged == [("completed", "completed", False, False)] * 2
        assert (found["summary"]["cost_micro_usd"], found["summary"]["trial_cost_micro_usd"]) == (4 * COST, 4 * COST)
        begun = [skipped["was_begun"] for skipped in found["skipped"]]
        assert len(begun) == 2
        assert all("the evaluation has spent what it may" in skipped["why"] for skipped in found["skipped"])
        await caught_up(crew)
        assert [run.status for run in await client.runs(trials=True) if run.source == "trial"].count("cancelled") == sum(begun)
        assert len(models.requests) == before + 4, "nothing was asked after the limit"


async def test_one_of_two_orchestrators_killed_between_the_change_and_the_release_loses_nothing(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(PLAN))
    fault = {"CREWLOG_FAULT": "after_budget_change:1:kill", "CREWLOG_FAULT_ONCE": str(tmp_path)}
    async with a_paid_crew(**fault) as (crew, models), another_orchestrator(crew):
        run_id = (await data(crew, "submit", "--file", plan, "--budget", "1.30"))["run_id"]
        await run(crew, "watch", run_id, code=6)
        await run(crew, "budget", "raise", run_id, "--hard", "10", code=4)
        assert (tmp_path / "after_budget_change").exists(), "it was killed there"
        ended = await data(crew, "watch", run_id)
        assert ended["status"] == "completed"
        await balance(crew, models, run_id)


async def test_what_a_killed_worker_left_reserved_is_settled_when_its_run_was_cancelled() -> None:
    async with a_paid_crew(CREWLOG_SETTLE_GRACE_S="0.1", CREWLOG_DISPATCH_LEASE_S="3600") as (crew, models):
        models.answers = [Canned(hangs=True)]
        run_id = (await data(crew, "submit", "Say it", "--type", "research", "--budget", "5"))["run_id"]
        async with asyncio.timeout(90):
            while not models.requests:  # noqa: ASYNC110 — the server of the test is in this loop
                await asyncio.sleep(0.01)
        (worker,) = [process for process in (await data(crew, "status"))["processes"] if process["name"].startswith("research")]
        await run(crew, "cancel", run_id)
        os.kill(worker["pid"], signal.SIGKILL)
        async with asyncio.timeout(90):
            while any(budget["reserved_micro_usd"] for budget in await data(crew, "budget", "show", run_id)):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        budgets = await data(crew, "budget", "show", run_id)
        await caught_up(crew)
        (cost,) = await data(crew, "costs", run_id)
        assert {budget["spent_micro_usd"] for budget in budgets} == {cost["cost_micro_usd"]}
        assert cost["cost_micro_usd"] >= 8_192 * 100
        assert cost["worst_case_calls"] == 1
