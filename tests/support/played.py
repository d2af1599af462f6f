"""Runs as the whole crew records them, played in virtual time: the logs that tools for past runs are tried on."""

from __future__ import annotations

import logging
from functools import lru_cache

from sim.plan import Mix, Plan, draw_plan
from sim.world import World

from crewlog.events import faults
from crewlog.events.memory_store import MemoryLog
from crewlog.orchestrator.run_history import RunHistory
from crewlog.schemas.ids import RunId

QUIET = Mix(0.01, 0.0, 0.0, 0.0)


def _played(plan: Plan) -> MemoryLog:
    world, before = World(plan), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    faults.hook = world.point
    try:
        world.loop.run_until_complete(world.play())
    finally:
        world.loop.forget()
        faults.hook = None
        logging.disable(before)
    return world.log


@lru_cache(maxsize=8)
def quiet_log() -> MemoryLog:
    """A single task, and a plan of three steps, without any trouble."""
    return _played(Plan(1, QUIET, (), 2))


@lru_cache(maxsize=64)
def troubled_log(seed: int) -> MemoryLog:
    """Runs in which models fail, processes die, and people are asked, as the seed has it."""
    return _played(draw_plan(seed))


def histories(log: MemoryLog) -> list[RunHistory]:
    """All runs of a log, with their texts."""
    runs = dict.fromkeys(RunId(r.run_id) for r in log.events if r.run_id is not None)
    texts = {hash_: data.decode() for hash_, data in log.blobs.items()}
    return [RunHistory(run_id, tuple(r for r in log.events if r.run_id == run_id), texts) for run_id in runs]
