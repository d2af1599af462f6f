"""One history, four ways to the same state: folded live, replayed, rebuilt, and read from an export on another machine.

The histories are those of whole crews in virtual time whose processes die, freeze and lose messages, as a random seed has it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sim.forks import play as play_forks
from sim.plan import draw_plan
from support.played import troubled_log
from support.run_tables import fold_in_bulk, fold_pages

from crewlog.agents import task_state
from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.events.store import Recorded
from crewlog.orchestrator import run
from crewlog.orchestrator.bundle import collect, pack_bundle, unpack_bundle
from crewlog.orchestrator.replay import replay, state_hash
from crewlog.schemas.ids import RunId
from crewlog.schemas.run_events import RunEvent
from crewlog.schemas.task_events import TaskEvent


class Live:
    """What the processes knew while it happened: each event taken in as it was committed, all streams mixed."""

    def __init__(self) -> None:
        self.states: dict[str, Any] = {}

    def take(self, recorded: Recorded) -> None:
        event, stream = recorded.event(), str(recorded.stream)
        if isinstance(event, RunEvent):
            self.states[stream] = run.evolve(self.states.get(stream, run.initial_state()), event)
        elif isinstance(event, TaskEvent):
            self.states[stream] = task_state.evolve(self.states.get(stream, task_state.initial_state()), event)


def in_pages(events: Sequence[Recorded], random: Random) -> list[Sequence[Recorded]]:
    """Cut a log into pages of any length."""
    cuts = sorted({0, len(events), *random.choices(range(len(events)), k=random.randrange(6))})
    return [events[begin:end] for begin, end in itertools.pairwise(cuts)]


@given(seed=st.integers(0, 1_000_000))
@settings(max_examples=6)
def test_live_fold_replay_rebuild_and_import_agree(seed: int) -> None:
    log = troubled_log(seed)
    for run_id in dict.fromkeys(RunId(r.run_id) for r in log.events if r.run_id is not None):
        asyncio.run(agree(log, run_id, Random(seed)))


@given(seed=st.integers(0, 1_000_000))
@settings(max_examples=3)
def test_forks_and_forks_of_forks_agree_as_well(seed: int) -> None:
    world = play_forks(draw_plan(seed), forks=4)
    for fork in world.forks:
        if fork.answer["ok"]:
            asyncio.run(agree_about_fork(world.log, fork.run_id, Random(seed)))


async def agree_about_fork(log: MemoryLog, run_id: RunId, random: Random) -> None:
    here = MemoryStore(log)
    own, replayed = list(await here.read_run(run_id)), await replay(here, run_id)
    exported = pack_bundle(await collect(here, run_id))
    elsewhere = unpack_bundle(exported, "elsewhere").store()

    assert replayed.divergence is None
    assert await replay(elsewhere, run_id) == replayed
    assert pack_bundle(await collect(elsewhere, run_id)) == exported
    followed = await fold_pages(here, [[recorded] for recorded in own])
    rebuilt = await fold_in_bulk(here, in_pages(own, random), keep_max=random.choice([0, 20, 1000]))
    moved = await fold_pages(elsewhere, [await elsewhere.read_run(run_id)])
    assert vars(followed) == vars(rebuilt) == vars(moved)


async def agree(log: MemoryLog, run_id: RunId, random: Random) -> None:
    here = MemoryStore(log)
    own = list(await here.read_run(run_id))
    live = Live()
    for recorded in own:
        live.take(recorded)

    replayed = await replay(here, run_id)
    exported = pack_bundle(await collect(here, run_id))
    elsewhere = unpack_bundle(exported, "elsewhere").store()
    imported = await replay(elsewhere, run_id)

    assert replayed.divergence is None
    assert state_hash(live.states) == replayed.state_hash
    assert imported == replayed
    assert pack_bundle(await collect(elsewhere, run_id)) == exported

    followed = await fold_pages(here, [[recorded] for recorded in own])
    rebuilt = await fold_in_bulk(here, in_pages(own, random), keep_max=random.choice([0, 20, 1000]))
    moved = await fold_pages(elsewhere, [await elsewhere.read_run(run_id)])
    assert vars(followed) == vars(rebuilt) == vars(moved)
    assert followed.runs[run_id,]["status"] != "running"
