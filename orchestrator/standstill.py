"""Runs that stand still although nothing is known that they wait for: find them, and record each standstill once.

Every state of an open run has something that ends it: an agent, a time, a person, a budget, an operator. A run that has none is a
defect, in this program or in what keeps it from acting, and people must hear of it. What is looked for:

- nothing of the run is under way, and it is neither held, paused nor kept back;
- a time is over, and what was due then has not happened;
- a task was put on its queue again and again, agents of its kind are there, and none of them has begun it.

A run is taken to stand still when it was found in the same state for a while: an orchestrator needs a moment for what is due.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from crewlog.events.clock import Clock
from crewlog.events.store import ANY, AppendRequest, EventStore, Write
from crewlog.orchestrator.run import RunState, TaskState, active_tasks, next_due_us
from crewlog.orchestrator.run_controls import is_at_rest
from crewlog.schemas.errors import ContractError, NotAuthorised
from crewlog.schemas.ids import RunId, TaskId, alert_stream, standstill_event_id
from crewlog.schemas.system_events import RunStoodStill

SENT_AGAIN_MAX: Final = 3
"""Times a task may be put on its queue again before somebody should look why nobody begins it."""

log = logging.getLogger(__name__)


class Standstill(NamedTuple):
    """What is odd about a run."""

    what: str
    since_us: int
    """0: nobody knows; since it was first seen."""
    task_id: TaskId | None = None


def standstill_of(state: RunState, now_us: int, *, patience_us: int, sent_again: Callable[[RunState, TaskState], int]) -> Standstill | None:
    """Say why a run needs somebody to look at it; None when it waits for something. Pure.

    Args:
        patience_us: how long what is due may be late.
        sent_again: how often a task was put on its queue again, 0 for one that no agent is there for.
    """
    if state.status != "open" or is_at_rest(state) or state.pauses:
        return None
    due_us = next_due_us(state)
    if due_us is not None and now_us - due_us >= patience_us:
        return Standstill("what was due has not happened: no orchestrator acts on this run, their logs say why", due_us)
    active = list(active_tasks(state))
    if not active and state.hold is None:
        return Standstill("nothing of it is under way and nothing is due", 0)
    for task in active:
        if task.phase == "dispatched" and (times := sent_again(state, task)) >= SENT_AGAIN_MAX:
            return Standstill(f"task {task.key} was put on its queue {times} times again, {task.kind} agents answer, and none has begun it", 0, task.task_id)
    return None


class Standstills:
    """Notices runs that stand still, in the rounds of the sweep."""

    def __init__(self, store: EventStore, clock: Clock, *, patience_s: float) -> None:
        """Prepare.

        Args:
            patience_s: how long a run may be found in the same state before it is recorded, in seconds.
        """
        self._store, self._clock, self._patience_s = store, clock, patience_s
        self._seen: dict[RunId, tuple[str, float, int]] = {}
        """Run -> the state it stands in, and when it was first seen so, by both clocks."""
        self._recorded: dict[RunId, str] = {}
        """Run -> the state in which it was recorded by this process."""

    async def look(self, states: Iterable[RunState], sent_again: Callable[[RunState, TaskState], int]) -> None:
        """Look at these runs, and record those that have stood still for long enough.

        Raises:
            Unavailable: the log cannot be reached.
        """
        now_us, now_s = self._clock.now_us(), self._clock.monotonic()
        for state in states:
            found = standstill_of(state, now_us, patience_us=round(self._patience_s * 1e6), sent_again=sent_again)
            stands = None if found is None else _state_of(state)
            if found is None or stands is None:
                self._seen.pop(state.run_id, None)
                self._recorded.pop(state.run_id, None)
                continue
            seen = self._seen.get(state.run_id)
            if seen is None or seen[0] != stands:
                self._seen[state.run_id] = (stands, now_s, now_us)
            elif now_s - seen[1] >= self._patience_s and self._recorded.get(state.run_id) != stands:
                await self._record(state, found._replace(since_us=found.since_us or seen[2]), stands)

    def suspects(self, run_id: RunId) -> bool:
        """Say whether a run stood still when it was looked at: then it is looked at again until it does not."""
        return run_id in self._seen

    def keep(self, run_ids: AbstractSet[RunId]) -> None:
        """Forget all runs but these."""
        for kept in (self._seen, self._recorded):
            for run_id in kept.keys() - run_ids:
                del kept[run_id]

    async def _record(self, state: RunState, found: Standstill, stands: str) -> None:
        event = RunStoodStill(state.run_id, found.what, found.since_us, found.task_id)
        write = Write(alert_stream(state.run_id), (event,), ANY)
        event_id = standstill_event_id(state.run_id, stands)
        try:
            await self._store.append(AppendRequest((write,), (event_id,), self._clock.now_us(), state.run_id, found.task_id))
        except (ContractError, NotAuthorised) as error:
            log.warning("run %s stands still and that cannot be recorded: %s", state.run_id, error)
        else:
            log.error("run %s stands still: %s", state.run_id, found.what)
        self._recorded[state.run_id] = stands


def _state_of(state: RunState) -> str:
    """Name the state that a run stands in: another one as soon as anything happens to it."""
    tasks = sorted(f"{task.task_id} {task.phase} {task.attempt} {task.dispatches}" for task in state.tasks.values())
    return f"{state.deadline_us} {state.plans} {' '.join(tasks)}"
