"""What an evaluation waits for, and when it stops waiting: a fold of what its trials recorded, and the choice that follows from it. Pure.

    handed in ──▶ at work ◀──▶ held ──▶ over
                     │           │        ▲
                     └───────────┴──▶ told to stop

Each state is left, whatever the crew does:

- *handed in, at work*: by the end of the trial, by `RunHeld`, or when nothing was recorded of it for `patience_s`: no worker takes it, it asks a
  person, somebody paused it, or nobody decides about it.
- *held* by a budget that could have room once calls under way turn out cheaper than was reserved for them: by its release or its end, or when
  nothing was recorded of any trial for `patience_s`.
- *held* by a budget that cannot have room, because what is spent alone leaves too little and never becomes less: it is told to stop at once. Is
  the budget the trial's own, that is what came of it; any other has ended the evaluation: none begins any more, those at work go on.
- *told to stop*: by its end. If that does not come within `patience_s`, it is let go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from crewlog.events.store import BudgetState, Recorded
from crewlog.orchestrator.run import RunState, TaskState, active_tasks, evolve, initial_state, starving
from crewlog.schemas.ids import RunId, Stream, TaskId, run_stream, task_stream
from crewlog.schemas.run_events import RunEvent, TaskDispatched
from crewlog.schemas.task_events import TaskStarted
from crewlog.schemas.usage import format_usd

STOPPED: Final = "the evaluation has spent what it may"
NAMED_MAX: Final = 3
"""Trials that a report of progress names."""
_OWN: Final = ("run/", "tree/")
"""What only the trial itself is charged to."""


class UnderWay(msgspec.Struct, frozen=True):
    """One trial, as far as its log was read."""

    read: Mapping[Stream, int]
    """Its streams -> version up to which they were read."""
    news_s: float
    """When something of it was last read; a monotonic time in seconds."""
    run: RunState = initial_state()
    begun: Mapping[TaskId, int] = {}
    """Task -> how many attempts of it a worker has begun."""
    stop_s: float | None = None
    """When it was told to stop for the first time."""
    told: bool = False
    """Whether an orchestrator has heard that."""

    @property
    def is_over(self) -> bool:
        """Say whether it has ended, well or not."""
        return self.run.status not in ("new", "open")

    @property
    def is_held(self) -> bool:
        """Say whether a budget holds it, and nobody has told it to stop."""
        return self.run.hold is not None and not self.is_over and not self.told


class Choice(NamedTuple):
    """What follows."""

    stop: Mapping[RunId, str]
    """Trials to be told to stop -> why."""
    let_go: Mapping[RunId, str]
    """Trials that did not stop when they were told -> what they wait for."""
    full: str = ""
    """The budget without room that has ended the evaluation."""


def handed_in(trial_id: RunId, now_s: float) -> UnderWay:
    """Begin with a trial of which nothing was read yet."""
    return UnderWay({run_stream(trial_id): 0}, now_s)


def fold(trial: UnderWay, recorded: Recorded, now_s: float) -> UnderWay:
    """Add an event of one of a trial's streams, read at `now_s`."""
    read, event = {**trial.read, recorded.stream: recorded.version}, recorded.event()
    trial = replace(trial, read=read, news_s=now_s)
    if isinstance(event, TaskStarted) and recorded.task_id is not None:
        return replace(trial, begun={**trial.begun, recorded.task_id: trial.begun.get(recorded.task_id, 0) + 1})
    if isinstance(event, TaskDispatched):
        trial = replace(trial, read={**read, task_stream(event.task_id): read.get(task_stream(event.task_id), 0)})
    return replace(trial, run=evolve(trial.run, event)) if isinstance(event, RunEvent) else trial


def scopes_of_held(trials: Mapping[RunId, UnderWay]) -> list[str]:
    """Name the budgets that hold trials."""
    return sorted({task.shortfall.scope for trial in trials.values() if trial.is_held for task in starving(trial.run) if task.shortfall is not None})


def choose(trials: Mapping[RunId, UnderWay], budgets: Mapping[str, BudgetState], *, asked_s: float, now_s: float, patience_s: float) -> Choice:
    """Choose which trials have to stop.

    Args:
        trials: those under way.
        budgets: those that hold trials, as they were at `asked_s`, before the trials were read. A trial of which something was recorded since may
            have been released meanwhile: nothing is concluded about it.
    """
    stop: dict[RunId, str] = {}
    ended_by = ""
    for trial_id, trial in trials.items():
        full = _full(trial, budgets) if trial.is_held and trial.news_s < asked_s else ""
        if full.startswith(_OWN):
            stop[trial_id] = f"its own budget {full} has no room for its next call"
        elif full:
            ended_by = full
            stop[trial_id] = f"{STOPPED}: {full} has no room for its next call"
    news_s = max((trial.news_s for trial in trials.values()), default=now_s)
    quiet = {trial_id: now_s - (news_s if trial.is_held else trial.news_s) for trial_id, trial in trials.items() if not trial.is_over}
    for trial_id, quiet_s in quiet.items():
        if quiet_s >= patience_s and not trials[trial_id].told:
            stop.setdefault(trial_id, f"nothing has happened in it for {patience_s:g} s: {waits_for(trials[trial_id])}")
    stopped = {trial_id: now_s - trial.stop_s for trial_id, trial in trials.items() if trial.stop_s is not None and not trial.is_over}
    return Choice(stop, {trial_id: waits_for(trials[trial_id]) for trial_id, since_s in stopped.items() if since_s >= patience_s}, ended_by)


def _full(trial: UnderWay, budgets: Mapping[str, BudgetState]) -> str:
    """Name the budget that will never have room for a held trial, one that others share first; empty while one of those that hold it may."""
    full = []
    for short in (task.shortfall for task in starving(trial.run)):
        budget = budgets.get(short.scope) if short is not None else None
        if short is None or budget is None or budget.hard is None or budget.spent + short.needed_micro_usd <= budget.hard:
            return ""
        full.append(short.scope)
    return min(full, key=lambda scope: scope.startswith(_OWN), default="")


def waits_for(trial: UnderWay) -> str:
    """Say what a trial that is not over waits for, as far as its log tells."""
    run = trial.run
    if run.status == "new":
        return "no orchestrator has taken it"
    if run.hold is not None:
        used, limit = format_usd(run.hold.used_micro_usd), format_usd(run.hold.limit_micro_usd)
        return f"held by budget {run.hold.scope}: {used} of {limit} used, its next call may take {format_usd(run.hold.needed_micro_usd)}"
    if run.pauses:
        return f"paused by {run.pauses[0].actor}"
    tasks = sorted(active_tasks(run), key=lambda task: _ORDER.index(task.phase) if task.phase in _ORDER else len(_ORDER))
    if not tasks:
        return "its results are kept back in quarantine" if run.quarantines else "an orchestrator has yet to look at it"
    version = "" if run.brief.trial is None else run.brief.trial.version_of(tasks[0].kind)
    return _task_waits_for(tasks[0], trial.begun, version)


_ORDER: Final = ("suspended", "dispatched", "retrying")
"""Of what several tasks wait for, that is told which is least likely to end by itself."""


def _task_waits_for(task: TaskState, begun: Mapping[TaskId, int], version: str) -> str:
    match task.phase:
        case "suspended":
            return f"{task.key} asks a person, see crewlog approvals"
        case "dispatched" if begun.get(task.task_id, 0) < task.dispatches:
            return f"{task.key} waits for a {task.kind} agent" + (f" of version {version}" if version else "")
        case "dispatched":
            return f"a {task.kind} agent works on {task.key}"
        case "retrying":
            return f"{task.key} failed and waits for its next attempt"
        case _:
            return f"an orchestrator has yet to look at {task.key}"


def progress(trials: Mapping[RunId, UnderWay], *, done: int, of: int, comparing: int, now_s: float) -> str:
    """Say how far an evaluation is and what it waits for: `comparing` trials are over and held against their runs, `done` of `of` runs are through."""
    left = sorted(trials.items(), key=lambda item: item[1].news_s)
    named = [f"{str(trial_id)[:8]} for {now_s - trial.news_s:.0f} s: {waits_for(trial)}" for trial_id, trial in left[:NAMED_MAX]]
    more = [f"and {len(left) - NAMED_MAX} more"] if len(left) > NAMED_MAX else []
    compared = [f"{comparing} compared now"] if comparing else []
    return "; ".join([f"{done} of {of} done, {len(left)} under way", *compared, *named, *more])
