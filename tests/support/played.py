"""Runs as the whole crew records them, played in virtual time: the logs that tools for past runs are tried on."""

from __future__ import annotations

from functools import lru_cache

from sim.plan import Mix, Plan, draw_plan
from sim.stage import played
from sim.world import World

from crewlog.events.memory_store import MemoryLog
from crewlog.orchestrator.run_history import RunHistory
from crewlog.schemas.ids import RunId

QUIET = Mix(0.01, 0.0, 0.0, 0.0)
EVENTFUL = ("ApprovalDecided", "TaskRetryScheduled", "ModelCallFailed")
SEEDS_MAX = 100
"""Far more than it takes to meet each of these."""


@lru_cache(maxsize=8)
def quiet_log(seed: int = 1) -> MemoryLog:
    """A single task, and a plan of three steps, without any trouble."""
    return played(World(Plan(seed, QUIET, (), 2))).log


@lru_cache(maxsize=64)
def troubled_log(seed: int) -> MemoryLog:
    """Runs in which models fail, processes die, and people are asked, as the seed has it."""
    return played(World(draw_plan(seed))).log


@lru_cache(maxsize=1)
def eventful_logs() -> tuple[MemoryLog, ...]:
    """Schedules in which, between them, everything of `EVENTFUL` happens: for each the first one that has it."""
    logs: list[MemoryLog] = []
    for type_ in EVENTFUL:
        if not any(_has(log, type_) for log in logs):
            logs.append(next(log for log in map(troubled_log, range(SEEDS_MAX)) if _has(log, type_)))
    return tuple(logs)


def _has(log: MemoryLog, type_: str) -> bool:
    return any(recorded.type == type_ for recorded in log.events)


def histories(log: MemoryLog) -> list[RunHistory]:
    """All runs of a log, with their texts."""
    runs = dict.fromkeys(RunId(r.run_id) for r in log.events if r.run_id is not None)
    texts = {hash_: data.decode() for hash_, data in log.blobs.items()}
    return [RunHistory(run_id, tuple(r for r in log.events if r.run_id == run_id), texts) for run_id in runs]
