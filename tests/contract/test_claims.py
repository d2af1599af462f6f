"""Claims in the memory log and in Postgres: of workers that claim the same thing at the same moment, in one process or in two, one may run."""

from __future__ import annotations

import asyncio

import pytest
from support.logs import CLOCK, Log, new_run, new_task, opening, request

from crewlog.agents.claims import Claim, read_claim, settlement
from crewlog.events.grants import kind_role
from crewlog.events.store import EventStore, Write
from crewlog.schemas.effects import EffectRef, claim_stream
from crewlog.schemas.errors import ConflictError
from crewlog.schemas.ids import Hash, RunId, TaskId, task_stream
from crewlog.schemas.payload import EMPTY
from crewlog.schemas.system_events import ClaimsOpened, EffectClaimed, EffectSettled
from crewlog.schemas.task_events import ToolStarted

pytestmark = pytest.mark.hand_written("tries claims without the calls that make them")

OPENED = ClaimsOpened("default", "research", "book", Hash("a" * 64))
STREAM = claim_stream("default", OPENED.fingerprint)
WORKERS = 6


async def claim(store: EventStore, run_id: RunId, task_id: TaskId, found: Claim) -> bool:
    """Append an intent together with a claim at the version that was read, as the worker does."""
    call = EffectRef(run_id, task_id, "c", f"key of {task_id}")
    intent = Write(task_stream(task_id), (ToolStarted("c", "book", "1", "irreversible", call.key, fingerprint=OPENED.fingerprint),), 1)
    try:
        await store.append(request(intent, Write(STREAM, (EffectClaimed(call, CLOCK.now_us() + 60_000_000),), found.version), run_id=run_id, task_id=task_id))
    except ConflictError as error:
        if error.stream != STREAM:  # it must be the claim that conflicts, not the task
            raise
        return False
    return True


async def test_of_claims_at_the_same_moment_one_is_made_and_its_intent_with_it(log: Log) -> None:
    orchestrator = await log.open()
    stores = [await log.open(kind_role("research")) for _ in range(2)]
    tasks = [(new_run(), new_task()) for _ in range(WORKERS)]
    for run_id, task_id in tasks:
        await orchestrator.append(opening(run_id, task_id))
    read = await asyncio.gather(*(read_claim(stores[n % 2], CLOCK, OPENED) for n in range(WORKERS)))
    assert {stream for stream, _ in read} == {STREAM}
    made = await asyncio.gather(*(claim(stores[n % 2], *tasks[n], read[n][1]) for n in range(WORKERS)))
    assert made.count(True) == 1
    begun = [recorded.task_id for recorded in await orchestrator.read_streams({task_stream(task): 1 for _, task in tasks})]
    assert begun == [tasks[made.index(True)][1]]
    winner = f"key of {begun[0]}"
    _, held = await read_claim(stores[0], CLOCK, OPENED)
    others = EffectRef(*tasks[made.index(True)], "c", winner)
    assert held.holder("another", CLOCK.now_us()) == others
    assert held.holder(winner, CLOCK.now_us()) is None, "its own claim keeps nobody from its own call"
    assert held.holder("another", CLOCK.now_us() + 61_000_000) is None
    for status, keeps in (("ok", others), ("unknown", others), ("error", None), ("undone", None)):
        settled = EffectSettled(winner, status, EMPTY, "trusted")  # type: ignore[arg-type]
        await stores[0].append(request(settlement("default", OPENED.fingerprint, settled)))
        assert (await read_claim(stores[1], CLOCK, OPENED))[1].holder("another", CLOCK.now_us()) == keeps


async def test_the_stream_of_a_claim_belongs_to_no_run(log: Log) -> None:
    orchestrator, store = await log.open(), await log.open(kind_role("research"))
    run_id, task_id = new_run(), new_task()
    await orchestrator.append(opening(run_id, task_id))
    _, found = await read_claim(store, CLOCK, OPENED)
    assert await claim(store, run_id, task_id, found)
    assert STREAM not in {recorded.stream for recorded in await orchestrator.read_run(run_id)}
