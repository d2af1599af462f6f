"""Runs forked at random places, by whole crews in virtual time: every fork ends, replays as it was, and shares instead of copying."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final
from uuid import UUID

import pytest
from sim.forks import VERSIONS, ForkWorld, play
from sim.plan import draw_plan
from support.run_tables import fold_pages

from crewlog.events.memory_store import MemoryStore
from crewlog.orchestrator.fork_place import fork_place
from crewlog.orchestrator.moments import moments
from crewlog.orchestrator.replay import replay
from crewlog.orchestrator.run_history import load_history
from crewlog.orchestrator.run_tree import build_tree
from crewlog.projections.rows import FINISHED
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId
from crewlog.schemas.task_events import TaskStarted, ToolStarted

SEEDS: Final = range(4)
FORKS: Final = 6


@pytest.fixture(scope="module")
def worlds() -> list[ForkWorld]:
    return [play(draw_plan(seed), forks=FORKS) for seed in SEEDS]


def forks_of(world: ForkWorld) -> list[RunId]:
    return [fork.run_id for fork in world.forks if fork.answer["ok"]]


def test_every_fork_replays_as_it_was(worlds: list[ForkWorld]) -> None:
    made = 0
    for world in worlds:
        for run_id in forks_of(world):
            report = asyncio.run(replay(MemoryStore(world.log), run_id))
            assert report.divergence is None, (world.plan.seed, run_id, report.divergence)
            made += 1
    assert made > len(SEEDS) * FORKS // 2


def test_a_place_is_refused_only_where_the_run_is_over(worlds: list[ForkWorld]) -> None:
    refused = 0
    for world in worlds:
        for fork in world.forks:
            if not fork.answer["ok"]:
                history = asyncio.run(load_history(MemoryStore(world.log), fork.parent))
                with pytest.raises(ContractError, match=r"is over behind event \d+ of \d+: fork it at \d+ or before"):
                    fork_place(history, fork.asked["at"])
                refused += 1
    assert refused


def test_a_fork_for_a_version_is_begun_by_that_version_alone_whoever_dies(worlds: list[ForkWorld]) -> None:
    begun = Counter[str]()
    for world in worlds:
        for fork in world.forks:
            wanted = fork.asked.get("agent_version", "").partition("=")[2]
            if fork.answer["ok"] and wanted:
                own = [recorded.event() for stream in world.log.streams.values() if stream.run_id == fork.run_id for recorded in stream.events]
                started = [event for event in own if isinstance(event, TaskStarted)]
                assert {(event.agent_version, world.versions[event.worker]) for event in started} <= {(wanted, wanted)}, (world.plan.seed, fork)
                begun[wanted] += len(started)
    assert set(begun) == set(VERSIONS), begun


def test_nothing_of_a_stubbed_fork_reaches_the_world(worlds: list[ForkWorld]) -> None:
    stubs = 0
    for world in worlds:
        assert sum(world.sink.arrivals.values()) == world.arrived_before
        for run_id in forks_of(world):
            own = [recorded.event() for stream in world.log.streams.values() if stream.run_id == run_id for recorded in stream.events]
            begun = [event for event in own if isinstance(event, ToolStarted)]
            assert all(event.stub for event in begun if event.effect != "read")
            stubs += sum(bool(event.stub) for event in begun)
    assert stubs


def test_allowed_effects_are_carried_out_under_keys_of_the_fork() -> None:
    world = play(draw_plan(3), forks=FORKS, effects="allow")
    arrived = {what.split("/")[0] for what in world.sink.explained.values()}
    own = {str(recorded.task_id) for run_id in forks_of(world) for s in world.log.streams.values() if s.run_id == run_id for recorded in s.events}
    assert arrived & own
    assert len(world.sink.explained) == len(world.sink.arrivals)


def test_a_fork_shares_what_came_before_and_can_be_looked_at_like_any_run(worlds: list[ForkWorld]) -> None:
    for world in worlds[:10]:
        for fork in world.forks:
            if fork.answer["ok"]:
                store = MemoryStore(world.log)
                parent, own = asyncio.run(load_history(store, RunId(UUID(fork.answer["parent_run_id"])))), asyncio.run(load_history(store, fork.run_id))
                shared = next(n for n, recorded in enumerate(own.events) if recorded.type == "RunForked" and recorded.run_id == fork.run_id)
                assert set(own.events[:shared]) <= set(parent.events[: fork.answer["at"]])
                *_, last = moments(own)
                assert last.run.run_id == fork.run_id
                assert all(state.phase == "ended" for state in last.tasks.values())
                tree = build_tree(own)
                assert tree.cost_micro_usd == last.run.cost_micro_usd
                assert {task.status for task in tree.tasks} <= {"completed", "failed", "cancelled"}


def test_the_views_have_forks_with_their_parents_and_only_their_own_part(worlds: list[ForkWorld]) -> None:
    for world in worlds[:3]:
        events = list(world.log.events)
        pages = [events[n : n + 50] for n in range(0, len(events), 50)]
        tables = asyncio.run(fold_pages(MemoryStore(world.log), pages, open_runs_max=1))
        for fork in world.forks:
            if fork.answer["ok"]:
                row = tables.runs[fork.run_id,]
                assert (row["source"], str(row["parent_run_id"])) == ("fork", fork.answer["parent_run_id"])
                own = {str(call["task_id"]) for call in tables.model_calls.values() if call["run_id"] == fork.run_id}
                assert own <= {str(recorded.task_id) for recorded in events if recorded.run_id == fork.run_id}
        assert all(task["status"] in FINISHED for task in tables.tasks.values())


def test_the_same_request_makes_one_fork(worlds: list[ForkWorld]) -> None:
    for world in worlds:
        assert len(set(forks_of(world))) == len(forks_of(world))
        first = [recorded for recorded in world.log.events if recorded.type == "RunForked"]
        assert len(first) == len(forks_of(world))
