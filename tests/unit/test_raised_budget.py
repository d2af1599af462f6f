"""A run whose budget was too small, until somebody raised it: what is made of it later has what it had in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from support.paid_agent import AGENT, KIND
from support.scripted import ScriptedModel, calls
from support.toolbox import MemoryArtifacts

from crewlog.events.clock import SystemClock
from crewlog.orchestrator.bundle import collect, pack_bundle, read_bundle, unpack_bundle
from crewlog.orchestrator.client_trials import submitted_task
from crewlog.orchestrator.golden import SUFFIX, golden_of, recording_of, write_golden
from crewlog.orchestrator.golden_observe import differences, observe
from crewlog.orchestrator.golden_play import play
from crewlog.orchestrator.memory_crew import MemoryCrew, memory_crew
from crewlog.orchestrator.raised_budget import raised_budget
from crewlog.orchestrator.replay import replay
from crewlog.orchestrator.run_history import all_payloads, load_history, with_texts
from crewlog.schemas.budget import run_scope
from crewlog.schemas.ids import RunId
from crewlog.schemas.task import Budget, parse_task

MODEL = "claude-sonnet-4-5"
"""One whose price is known everywhere."""
RAISED = 10_000_000


@pytest.fixture
async def crew(tmp_path: Path) -> AsyncIterator[MemoryCrew]:
    model = ScriptedModel(
        [calls((name, "{}")) for name in ("look", "finish", "finish", "finish")], wire="anthropic.messages", provider="anthropic", name=MODEL, simulated=False
    )
    setup = memory_crew([AGENT], lambda _: (model,), clock=SystemClock(), artifacts=MemoryArtifacts(), folder=tmp_path / "work")
    async with asyncio.timeout(60), setup as made:
        yield made


async def starved(crew: MemoryCrew) -> RunId:
    """Carry out a run that is held at once, and go on when it has more."""
    task = {"task_id": str(SystemClock().random_id()), "type": KIND, "objective": "look", "budget": {"hard_micro_usd": 1}, "timeout_seconds": 30}
    run_id = await crew.submit(parse_task(task))
    await crew.until(lambda: any(recorded.type == "RunHeld" for recorded in crew.log.events))
    await crew.ask("budgets.raise", {"scope": run_scope(run_id), "hard_micro_usd": RAISED, "actor": "eve", "reason": "it is worth it"})
    assert (await crew.end(run_id)).type == "RunCompleted"
    return run_id


async def test_a_fork_may_spend_what_its_run_may(crew: MemoryCrew) -> None:
    run_id = await starved(crew)
    history = await load_history(crew.store, run_id)
    looked = next(n for n, recorded in enumerate(history.events, 1) if recorded.type == "ToolFinished")
    fork = RunId(UUID((await crew.ask("runs.fork", {"run_id": run_id, "at": looked, "actor": "ann"}))["run_id"]))
    assert (await crew.end(fork)).type == "RunCompleted"
    assert (await crew.store.budgets([run_scope(fork)]))[run_scope(fork)].hard == RAISED
    assert (await replay(crew.store, fork)).divergence is None
    less = {"run_id": run_id, "at": looked, "actor": "ann", "changes": {"budget": {"hard_micro_usd": 5_000_000}}}
    given = RunId(UUID((await crew.ask("runs.fork", less))["run_id"]))
    await crew.end(given)
    assert (await crew.store.budgets([run_scope(given)]))[run_scope(given)].hard == 5_000_000


async def test_a_trial_may_spend_what_its_run_may(crew: MemoryCrew) -> None:
    task = await submitted_task(crew.store, await starved(crew))
    assert task is not None
    assert task.budget.hard_micro_usd == RAISED


async def test_a_golden_task_has_the_money_that_its_recording_took(crew: MemoryCrew, tmp_path: Path) -> None:
    run_id = await starved(crew)
    history = await load_history(crew.store, run_id)
    history = await with_texts(crew.store, history, all_payloads(history.events))
    recording = pack_bundle(await collect(crew.store, run_id))
    path, golden = tmp_path / f"paid{SUFFIX}", golden_of(history, "paid", budget=await raised_budget(crew.store, run_id))
    write_golden(path, golden, recording, {})
    played = await play(golden, read_bundle(recording_of(path)), path, SystemClock(), agents=["support.paid_agent:AGENT"])
    assert not differences(msgspec.structs.replace(golden.expect, max_seconds=None), observe(played.history), is_exact=True)


async def test_a_file_tells_it_by_what_let_the_run_go_on(crew: MemoryCrew) -> None:
    run_id = await starved(crew)
    told = Budget(hard_micro_usd=RAISED, soft_micro_usd=RAISED * 7 // 10)
    assert await raised_budget(crew.store, run_id) == told
    elsewhere = unpack_bundle(pack_bundle(await collect(crew.store, run_id)), "a file").store()
    assert await raised_budget(elsewhere, run_id) == Budget(hard_micro_usd=RAISED)
    other = await crew.submit(parse_task({"task_id": str(SystemClock().random_id()), "type": KIND, "objective": "look", "budget": {"hard_micro_usd": RAISED}}))
    await crew.end(other)
    assert await raised_budget(crew.store, other) is None
