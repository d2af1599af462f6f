"""Which open runs the sweep must look at, and what it knows of the others without looking. Reads no log.

A run gives cause for a look when something happened to it since the last one, when it is known too little, or when its time has come. The
first shows in one number: how many events all of its streams have together. It only ever grows, whoever appends; the log tells it of runs that
have grown, and with the list of those that are open. So thousands that wait, for a person, for money, for a time or for their turn, cost no
reading.

What the sweep checks of runs that stand still all the same, because it is no event of theirs (a worker that died, a message that was lost,
a budget with room again), it finds in what was noted at the last look.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import msgspec

from crewlog.orchestrator.run import RunState, active_tasks, next_due_us, starving
from crewlog.schemas.ids import RunId, TaskId
from crewlog.schemas.subjects import SHADOW_LANE, worker_group


class DispatchedTask(NamedTuple):
    """A task that is with the agents of its kind, or on its way to them."""

    task_id: TaskId
    kind: str
    group: str
    """Of workers, see `subjects.worker_group`."""
    dispatches: int


class Noted(msgspec.Struct, frozen=True, gc=False):
    """What is known of a run since it was looked at."""

    tenant: str | None
    """None: it is a shadow, which counts for nobody."""
    events: int
    """How many its streams had together."""
    due_us: int | None
    """When the clock changes something, None: never."""
    dispatched: tuple[DispatchedTask, ...] = ()
    short_of: tuple[tuple[str, int], ...] = ()
    """Budgets that hold it, and how much it needs of each, in micro-USD."""


class Looks:
    """The open runs of the log as of the last look at each."""

    def __init__(self) -> None:
        self._noted: dict[RunId, Noted] = {}
        self._restless: set[RunId] = set()
        """Runs that are looked at every time."""

    def is_due(self, run_id: RunId, events: int, now_us: int) -> bool:
        """Say whether a run must be looked at, given how many events its streams have now."""
        noted = self._noted.get(run_id)
        return noted is None or noted.events != events or (noted.due_us is not None and noted.due_us <= now_us) or run_id in self._restless

    def timed(self, now_us: int) -> Iterator[tuple[RunId, int]]:
        """Yield the runs that must be looked at although nothing happened to them, with how many events they had."""
        for run_id, noted in self._noted.items():
            if (noted.due_us is not None and noted.due_us <= now_us) or run_id in self._restless:
                yield run_id, noted.events

    def note(self, state: RunState, events: int) -> None:
        """Take note of a run that is looked at; `events` was counted before its state was read."""
        lane = state.brief.priority
        dispatched = (task for task in active_tasks(state) if task.phase == "dispatched")
        tasks = tuple(DispatchedTask(task.task_id, task.kind, worker_group(task.kind, state.brief.lane_of(task.kind)), task.dispatches) for task in dispatched)
        short = () if state.hold is None else tuple((t.shortfall.scope, t.shortfall.needed_micro_usd) for t in starving(state) if t.shortfall is not None)
        self._noted[state.run_id] = Noted(state.brief.tenant if lane != SHADOW_LANE else None, events, next_due_us(state), tasks, short)

    def mark(self, run_id: RunId, *, restless: bool) -> None:
        """Have a run looked at every time, or no longer."""
        (self._restless.add if restless else self._restless.discard)(run_id)

    def forget(self, run_id: RunId) -> None:
        """Know nothing of a run any more: it is over, or a look at it failed."""
        self._noted.pop(run_id, None)
        self._restless.discard(run_id)

    def keep(self, run_ids: AbstractSet[RunId]) -> None:
        """Forget all runs but these."""
        if not self._noted.keys() <= run_ids:
            self._noted = {run_id: noted for run_id, noted in self._noted.items() if run_id in run_ids}
            self._restless &= self._noted.keys()

    def tenant_of(self, run_id: RunId) -> str | None:
        """Return whose an open run is; None when it was not looked at, or counts for nobody."""
        noted = self._noted.get(run_id)
        return None if noted is None else noted.tenant

    def tenants(self) -> Iterable[tuple[RunId, str]]:
        """Yield every run that counts for a tenant, with that."""
        return ((run_id, noted.tenant) for run_id, noted in self._noted.items() if noted.tenant is not None)

    def dispatched(self) -> Iterator[tuple[RunId, DispatchedTask]]:
        """Yield the tasks that are with agents, or on their way, with their runs."""
        for run_id, noted in self._noted.items():
            for task in noted.dispatched:
                yield run_id, task

    def held(self) -> dict[RunId, tuple[tuple[str, int], ...]]:
        """Return the runs that budgets hold -> those budgets, and what is needed of each."""
        return {run_id: noted.short_of for run_id, noted in self._noted.items() if noted.short_of}
