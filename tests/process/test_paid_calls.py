"""Calls that cost money, in a whole crew: providers that fail, and a worker that is killed between reservation, call and settlement.

The ledger balances to the micro-dollar against what the providers served.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from support.audit import ended_well, events
from support.live_crew import LiveCrew, a_crew
from support.model_server import Canned, serve_models
from support.paid_agent import KIND
from support.wires import ANTHROPIC, GEMINI, RESPONSES, Said

from crewlog.events.bus import Handler, Message
from crewlog.events.readiness import READY_FD
from crewlog.orchestrator.invariants import charged_micro_usd
from crewlog.schemas.budget import run_scope
from crewlog.schemas.ids import RunId
from crewlog.schemas.system_events import BillCorrected
from crewlog.schemas.task_events import ModelCallFailed, ModelCallFinished, ModelCallStarted
from crewlog.schemas.usage import ESTIMATE, NOT_BILLED, Price

TESTS = Path(__file__).parents[1]
KEYS = {"ANTHROPIC_API_KEY": "key", "OPENAI_API_KEY": "key", "GEMINI_API_KEY": "key"}
PRICES = {"anthropic:*": {"input": 3, "output": 15}, "openai:*": {"input": 2, "output": 8}, "google:*": {"input": 1, "output": 10}}
ANSWER_MICRO_USD = 140 * 3 + 20 * 15
"""Of each answer: 140 tokens in, 20 out."""


@pytest.fixture(scope="module")
def crew() -> Iterator[LiveCrew]:
    with a_crew("--agents", "research=0,code=0,communicate=0,planner=0,data=0", CREWLOG_SWEEP_INTERVAL_S="0.1", CREWLOG_DISPATCH_LEASE_S="0.05") as started:
        yield started


@asynccontextmanager
async def an_agent(crew: LiveCrew, models: str, env: Mapping[str, str]) -> AsyncIterator[subprocess.Popen[bytes]]:
    ready, child = os.pipe()
    given = {**crew.env, **KEYS, "CREWLOG_MODELS": models, "CREWLOG_PRICES": json.dumps(PRICES), "PYTHONPATH": str(TESTS), **env, READY_FD: str(child)}
    process = subprocess.Popen([sys.executable, "-P", "-m", "support.paid_agent"], env=given, pass_fds=(child,))  # noqa: ASYNC220
    os.close(child)
    try:
        async with asyncio.timeout(60):
            assert await asyncio.to_thread(os.read, ready, 1) == b"1"
        yield process
    finally:
        os.close(ready)
        process.kill()
        process.wait()


def _into(queue: asyncio.Queue[Message]) -> Handler:
    async def put(message: Message) -> None:
        queue.put_nowait(message)

    return put


async def test_a_is_rate_limited_b_breaks_in_the_middle_and_c_finishes(crew: LiveCrew) -> None:
    limited = Canned(429, ANTHROPIC.problem(429, "rate_limit_error", "slow down"), {"retry-after": "60", "request-id": "req_a"})
    broken = Canned(events=RESPONSES.events(Said("Once upon a time"))[:2], then="cut")
    finish = Canned(events=GEMINI.events(Said("", ((None, "finish", "{}"),))))
    async with AsyncExitStack() as closing:
        a, b, c = [await closing.enter_async_context(serve_models(answer)) for answer in (limited, broken, finish)]
        client = await closing.enter_async_context(crew.client())
        chain = f"anthropic:claude-test@{a.url} > openai:gpt-test@{b.url}/v1 > google:gemini-test@{c.url}"
        await closing.enter_async_context(an_agent(crew, chain, {}))
        task = await client.prepare("finish", kind=KIND)
        told: asyncio.Queue[Message] = asyncio.Queue()
        hearing = await client.hear(RunId(task.run_id), _into(told))
        closing.push_async_callback(hearing.stop)
        run_id = (await client.submit(task)).run_id
        async with asyncio.timeout(60):
            piece = json.loads((await told.get()).data)
        await ended_well(client, [run_id])
        recorded = [r.event() for r in await events(client, run_id)]
        state = (await (await client.store()).budgets([run_scope(run_id)]))[run_scope(run_id)]
        costs = await asyncio.to_thread(crew.json, "costs", str(run_id), "--by", "provider")
        states = await asyncio.to_thread(crew.json, "providers")
    assert piece == {"call_id": "m1-2", "text": "Once upo"}, "what the second one wrote before it broke was told, and is no answer"
    assert (len(a.requests), len(b.requests), len(c.requests)) == (1, 1, 1)
    assert [(e.provider, e.error.code) for e in recorded if isinstance(e, ModelCallFailed)] == [
        ("anthropic", "model_rate_limit"),
        ("openai", "model_cut"),
    ]
    (answered,) = [e for e in recorded if isinstance(e, ModelCallFinished)]
    assert answered.provider == "google"
    refused, broken_off = [e for e in recorded if isinstance(e, ModelCallFailed)]
    guessed = broken_off.price.cost_micro_usd or 0
    assert refused.price == Price(0, NOT_BILLED)
    assert broken_off.price.source == ESTIMATE, "it broke before it told its usage: what was sent and heard is counted, and said to be"
    assert 0 < guessed < min(e.reserved_micro_usd or 0 for e in recorded if isinstance(e, ModelCallStarted) and e.provider == "openai")
    assert answered.price.cost_micro_usd == 140 + 20 * 10
    assert (state.spent, state.reserved) == (guessed + 340, 0)
    assert {c["group"]["provider"]: c["cost_micro_usd"] for c in costs} == {"google": 340, "anthropic": 0, "openai": guessed}
    assert [(p["provider"], p["state"], p["reason"]) for p in states["providers"]] == [("anthropic", "open", "rate_limit")]


@pytest.mark.parametrize(
    ("point", "hit", "was_served"),
    [
        ("after_task_append", 1, False),
        ("before_model_call", 1, False),
        ("after_model_call", 1, True),
        ("after_task_append", 2, False),
        ("before_model_call", 2, False),
        ("after_model_call", 2, True),
    ],
)
async def test_the_ledger_balances(crew: LiveCrew, tmp_path: Path, point: str, hit: int, was_served: bool) -> None:
    look, finish = (Canned(events=ANTHROPIC.events(Said("", (("toolu_1", name, "{}"),)))) for name in ("look", "finish"))
    # a call that is made again is answered with the next answer: whoever asks a third time is told to finish
    answers = [look, finish] if hit == 1 and not was_served else [look, look, finish] if hit == 1 else [look, finish]
    async with AsyncExitStack() as closing:
        server = await closing.enter_async_context(serve_models(*answers))
        client = await closing.enter_async_context(crew.client())
        armed = {"CREWLOG_FAULT": f"{point}:{hit}:kill", "CREWLOG_FAULT_ONCE": str(tmp_path)}
        victim = await closing.enter_async_context(an_agent(crew, f"anthropic:claude-test@{server.url}", armed))
        run_id = (await client.submit("look and finish", kind=KIND)).run_id
        assert await asyncio.to_thread(victim.wait, 60) == -signal.SIGKILL
        await closing.enter_async_context(an_agent(crew, f"anthropic:claude-test@{server.url}", {}))
        await ended_well(client, [run_id])
        recorded = [r.event() for r in await events(client, run_id)]
        store = await client.store()
        state = (await store.budgets([run_scope(run_id)]))[run_scope(run_id)]
        served = len(server.requests)
    begun = {e.call_id: e for e in recorded if isinstance(e, ModelCallStarted)}
    finished = [e for e in recorded if isinstance(e, ModelCallFinished)]
    (lost,) = [e for e in recorded if isinstance(e, ModelCallFailed)]
    assert [e.price.cost_micro_usd for e in finished] == [ANSWER_MICRO_USD] * 2, "every recorded call is exact"
    assert (lost.error.code, lost.price.source) == ("interrupted", "worst case")
    assert lost.price.cost_micro_usd == begun[lost.call_id].reserved_micro_usd > ANSWER_MICRO_USD
    assert served == len(finished) + was_served
    assert len(begun) == 3
    assert (state.spent, state.reserved) == (2 * ANSWER_MICRO_USD + lost.price.cost_micro_usd, 0)


async def test_a_worker_that_stood_still_brings_the_bill_of_its_call(crew: LiveCrew, tmp_path: Path) -> None:
    look, finish = (Canned(events=ANTHROPIC.events(Said("", (("toolu_1", name, "{}"),)))) for name in ("look", "finish"))
    async with AsyncExitStack() as closing:
        server = await closing.enter_async_context(serve_models(look, look, finish))
        client = await closing.enter_async_context(crew.client())
        armed = {"CREWLOG_FAULT": "after_model_call:1:stop", "CREWLOG_FAULT_ONCE": str(tmp_path)}
        stopped = await closing.enter_async_context(an_agent(crew, f"anthropic:claude-test@{server.url}", armed))
        run_id = (await client.submit("look and finish", kind=KIND)).run_id
        await closing.enter_async_context(an_agent(crew, f"anthropic:claude-test@{server.url}", {}))
        await ended_well(client, [run_id])
        store = await client.store()
        worst = (await store.budgets([run_scope(run_id)]))[run_scope(run_id)].spent
        before = await asyncio.to_thread(crew.json, "costs", str(run_id))
        told = asyncio.Event()
        hearing = await client.hear_of(run_id, told)
        closing.push_async_callback(hearing.stop)
        stopped.send_signal(signal.SIGCONT)
        async with asyncio.timeout(60):
            while not (late := [r for r in await events(client, run_id) if r.type == "BillCorrected"]):
                await told.wait()
                told.clear()
        await client.indexed(late[0].position, "runs")
        state = (await store.budgets([run_scope(run_id)]))[run_scope(run_id)]
        after = await asyncio.to_thread(crew.json, "costs", str(run_id))
        recorded = await events(client, run_id)
    assert worst > 3 * ANSWER_MICRO_USD, "the lost call was settled at the most it could cost"
    assert (state.spent, state.reserved) == (3 * ANSWER_MICRO_USD, 0) == (charged_micro_usd(recorded), 0)
    bills = [event for r in late if isinstance(event := r.event(), BillCorrected)]
    assert [(bill.price.cost_micro_usd, bill.settled_micro_usd) for bill in bills] == [(ANSWER_MICRO_USD, worst - 2 * ANSWER_MICRO_USD)]
    assert [sum(row["cost_micro_usd"] for row in rows) for rows in (before, after)] == [worst, 3 * ANSWER_MICRO_USD]
