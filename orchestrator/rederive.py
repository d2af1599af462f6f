"""Derive every recorded decision again: the check behind `replay --verify`, pure.

The first event of a decision and the task event it is about tell which command led to it. Deciding that command again on the state
before it, at the recorded time, must give the recorded events byte for byte, in the run stream as well as in the task streams.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from typing import Any, NamedTuple

import msgspec

from crewlog.events.controls import Control
from crewlog.events.store import Recorded
from crewlog.orchestrator.commands import (
    AbortRun,
    ApprovalAsked,
    AttemptEnded,
    BuryTask,
    CancelRun,
    Command,
    ContinueRollback,
    DecideApproval,
    ForkRun,
    HandedBack,
    LiftQuarantine,
    PauseRun,
    QuarantineRun,
    ReleaseRun,
    ResumeRun,
    SubmitRun,
    TaskEnded,
    TaskFork,
    Terms,
    Tick,
)
from crewlog.orchestrator.decide import DEADLINE, POISON, decide
from crewlog.orchestrator.dispatch import kinds_told
from crewlog.orchestrator.draft import Decision
from crewlog.orchestrator.planning import PLANNER, Kinds, Offer
from crewlog.orchestrator.run import RunState, active_tasks, initial_state
from crewlog.schemas.codec import Event, encode, type_name
from crewlog.schemas.divergence import Divergence
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Stream, TaskId, task_stream
from crewlog.schemas.run_events import (
    QuarantineLifted,
    ResultsHeld,
    RollbackContinued,
    RunCancelled,
    RunEvent,
    RunFailed,
    RunForked,
    RunPaused,
    RunQuarantined,
    RunReleased,
    RunResumed,
    RunSubmitted,
    TaskDispatched,
    TaskHeld,
    TaskResumed,
    TaskRetryScheduled,
    TaskReturned,
    TaskReviewed,
    TaskSuspended,
)
from crewlog.schemas.task import RUN, read_task
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    AttemptFailed,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskForked,
    TaskHandedBack,
    TaskOpened,
)
from crewlog.schemas.values import Failure

OURS = (TaskOpened, TaskForked, ApprovalDecided, TaskFailed, TaskCancelled)
"""What the orchestrator writes to task streams."""


class Decided(NamedTuple):
    """One decision derived again: the command that led to it, the state it was made on, and what it says. `at` is where its first event
    stands in the run stream, from 0."""

    at: int
    command: Command
    before: RunState
    decision: Decision


def verify_run(run_events: Sequence[Recorded], task_events: Sequence[Recorded]) -> Divergence | None:
    """Compare what is recorded about a run with what `decide` makes of the same commands.

    Args:
        run_events: the run stream in order.
        task_events: the events of all task streams of the run, each stream in order.

    Returns:
        The first difference, or None when every decision follows from the log.
    """
    tasks = _Tasks(task_events)
    for decided in _decisions(run_events, tasks):
        if isinstance(decided, Divergence):
            return decided
        found = _compare_run(decided.decision.events, run_events, decided.at)
        for write in decided.decision.writes:
            for expected in write.events:
                found = found or tasks.compare_next(write.stream, expected)
        if found is not None:
            return found
    return tasks.surplus()


def decisions(run_events: Sequence[Recorded], task_events: Sequence[Recorded]) -> Iterator[Decided | Divergence]:
    """Derive the decisions about a run again, one after the other; ends with a divergence when one cannot be."""
    return _decisions(run_events, _Tasks(task_events))


def _decisions(run_events: Sequence[Recorded], tasks: _Tasks) -> Iterator[Decided | Divergence]:
    state = initial_state()
    at = 0
    while at < len(run_events):
        first = run_events[at]
        event = first.event()
        if not isinstance(event, RunEvent):
            at += 1  # of a type that this program does not know: what was decided because of it is named as having no cause
            continue
        command = _submitted(event, run_events, at) if isinstance(event, RunSubmitted) else _command(event, state, tasks)
        if command is None:
            yield Divergence(first.stream, first.version, "cause", f"an event that leads to {first.type}", None)
            return
        try:
            decision = decide(command, state, first.occurred_us, _kinds(command, run_events, at, tasks))
        except ContractError as error:
            yield Divergence(first.stream, first.version, "type", type(error).__name__, first.type)
            return
        if not decision.events:
            yield Divergence(first.stream, first.version, "type", None, first.type)
            return
        yield Decided(at, command, state, decision)
        state = decision.state
        at += len(decision.events)


class _Tasks:
    """The task events of a run, and how many of those the orchestrator wrote have been explained."""

    def __init__(self, task_events: Sequence[Recorded]) -> None:
        self._events: dict[Stream, list[Event]] = defaultdict(list)
        self._ours: dict[Stream, list[Recorded]] = defaultdict(list)
        self._next: dict[Stream, int] = defaultdict(int)
        for recorded in sorted(task_events, key=lambda r: (r.stream, r.version)):
            event = recorded.event()
            if isinstance(event, OURS):
                self._ours[recorded.stream].append(recorded)
            if isinstance(event, Event):
                self._events[recorded.stream].append(event)

    def of(self, task_id: TaskId) -> Sequence[Event]:
        """Return all known events of a task."""
        return self._events.get(task_stream(task_id), ())

    def compare_next(self, stream: Stream, expected: Event) -> Divergence | None:
        """Compare with the next event that the orchestrator wrote to a task stream."""
        at = self._next[stream]
        self._next[stream] += 1
        if at >= len(self._ours[stream]):
            return Divergence(stream, 0, "type", type_name(expected), None)
        return _compare(expected, self._ours[stream][at])

    def surplus(self) -> Divergence | None:
        """Return the first event of ours that no decision explains."""
        for stream, recorded in sorted(self._ours.items()):
            if self._next[stream] < len(recorded):
                left = recorded[self._next[stream]]
                return Divergence(stream, left.version, "type", None, left.type)
        return None


def _command(event: RunEvent, state: RunState, tasks: _Tasks) -> Command | None:
    match event:
        case RunForked():
            return _fork(event, tasks)
        case RunReleased():
            return ReleaseRun(event.scope, event.limit_micro_usd, event.used_micro_usd)
        case RollbackContinued() if state.rollback is not None:
            return ContinueRollback(event.page, len(state.rollback.orders))
        case RunCancelled():
            return CancelRun(event.reason, event.actor)
        case RunFailed() | ResultsHeld() if isinstance(event.error, Failure):
            return Tick() if event.error.code == DEADLINE else _aborted(event.error, state, tasks)
        case RunPaused() | RunQuarantined() | RunResumed() | QuarantineLifted():
            return _intervention(event)
        case TaskDispatched():
            return Tick()
        case TaskResumed():
            return Tick() if event.decision == "expired" else _decided(event, tasks)
        case TaskRetryScheduled() | TaskHeld() | TaskSuspended() | TaskReviewed() | TaskReturned():
            return _noticed(event, state, tasks)
        case _:
            return None


def _submitted(event: RunSubmitted, run_events: Sequence[Recorded], at: int) -> SubmitRun:
    """Rebuild a submission: what was in force for it stands right behind it."""
    beside = (r.event() for r in islice(run_events, at + 1, None) if r.occurred_us == run_events[at].occurred_us)
    noted = list(takewhile(lambda e: isinstance(e, RunPaused | RunQuarantined), beside))
    pauses = tuple(_control(event, event.since_us) for event in noted if isinstance(event, RunPaused))
    quarantines = tuple(_control(event) for event in noted if isinstance(event, RunQuarantined))
    terms = Terms(event.limits, event.tree, event.hold_s, event.caller)
    return SubmitRun(read_task(event.task), event.source, terms, pauses, quarantines, event.rollback)


def _intervention(event: RunPaused | RunQuarantined | RunResumed | QuarantineLifted) -> Command:
    match event:
        case RunPaused():
            return PauseRun(_control(event, event.since_us))
        case RunQuarantined():
            return QuarantineRun(_control(event))
        case RunResumed():
            return ResumeRun(event.scope, event.actor, event.reason)
        case QuarantineLifted():
            return LiftQuarantine(event.scope, event.control, event.actor, event.reason)


def _control(event: RunPaused | RunQuarantined, since_us: int = 0) -> Control:
    return Control(event.scope, event.control, event.actor, event.reason, since_us)


def _fork(event: RunForked, tasks: _Tasks) -> ForkRun:
    def of(task_id: TaskId) -> Iterator[TaskFork]:
        for said in tasks.of(task_id):
            if isinstance(said, TaskForked):
                yield TaskFork(said.parent, said.version, said.results, said.said, said.setup, said.opening, said.begins_anew)

    forks = tuple(fork for task in event.tasks for fork in of(task.task_id))
    place = (event.parent, event.parent_version, event.at, event.position)
    return ForkRun(event.run_id, *place, event.changes, forks, event.actor, event.reason, Terms(event.limits, hold_s=event.hold_s))


def _aborted(error: Failure, state: RunState, tasks: _Tasks) -> AbortRun:
    ended = [task.task_id for task in active_tasks(state) if any(isinstance(said, TaskCompleted) for said in tasks.of(task.task_id))]
    return AbortRun(error, tuple(ended))


def _decided(event: TaskResumed, tasks: _Tasks) -> Command | None:
    for written in tasks.of(event.task_id):
        if isinstance(written, ApprovalDecided) and written.approval_id == event.approval_id and written.decision != "expired":
            return DecideApproval(event.approval_id, written.decision, event.actor, written.note)
    return None


def _noticed(event: TaskRetryScheduled | TaskHeld | TaskSuspended | TaskReviewed | TaskReturned, state: RunState, tasks: _Tasks) -> Command | None:
    """Find the agent's event that a decision answers; a review without one was due by the clock, or about a dead letter."""
    task = state.tasks.get(event.key)
    attempt = task.attempt if task is not None else 0
    for said in tasks.of(event.task_id):
        match said:
            case TaskCompleted() if isinstance(event, TaskReviewed):
                return TaskEnded(event.task_id, said)
            case TaskHandedBack() if isinstance(event, TaskReturned) and said.number == event.number:
                return HandedBack(event.task_id, said)
            case AttemptFailed() if not isinstance(event, TaskSuspended | TaskReturned) and said.attempt == attempt and said.error == event.error:
                return AttemptEnded(event.task_id, said)
            case ApprovalRequested() if isinstance(event, TaskSuspended) and said.approval_id == event.approval_id:
                return ApprovalAsked(event.task_id, said)
            case _:
                continue
    if isinstance(event, TaskReviewed) and event.error is not None and event.error.code == POISON and task is not None:
        return BuryTask(event.task_id, task.kind, task.attempt, task.dispatches, event.error.message)
    return Tick() if isinstance(event, TaskReviewed) else None


def _kinds(command: Command, run_events: Sequence[Recorded], at: int, tasks: _Tasks) -> Kinds:
    """Rebuild the kinds a decision knew: those that a planner was told about stand in its task; an accepted task names its own."""
    known: dict[str, Offer] = {}
    if isinstance(command, SubmitRun):
        task = command.task
        named = [step.type for step in task.plan.steps] if task.plan is not None else [] if task.type == RUN else [task.type]
        known = dict.fromkeys((PLANNER, *named), Offer(""))
    for recorded in run_events[at:]:
        if recorded.occurred_us != run_events[at].occurred_us:
            break
        event = recorded.event()
        if isinstance(event, TaskDispatched) and event.offered:
            return known | _told(event.task_id, tasks)
    return known


def _told(task_id: TaskId, tasks: _Tasks) -> dict[str, Offer]:
    for event in tasks.of(task_id):
        if isinstance(event, TaskOpened):
            return kinds_told(read_task(event.task))
    return {}


def _compare_run(expected: Sequence[RunEvent], run_events: Sequence[Recorded], at: int) -> Divergence | None:
    first = run_events[at]
    for offset, event in enumerate(expected):
        if at + offset >= len(run_events):
            return Divergence(first.stream, first.version + offset, "type", type_name(event), None)
        recorded = run_events[at + offset]
        if type_name(event) != recorded.type:
            return Divergence(recorded.stream, recorded.version, "type", type_name(event), recorded.type)
        if recorded.occurred_us != first.occurred_us:
            return Divergence(recorded.stream, recorded.version, "occurred_us", first.occurred_us, recorded.occurred_us)
        if found := _compare(event, recorded):
            return found
    return None


def _compare(expected: Event, recorded: Recorded) -> Divergence | None:
    if type_name(expected) != recorded.type:
        return Divergence(recorded.stream, recorded.version, "type", type_name(expected), recorded.type)
    data = encode(expected)
    if data == recorded.data or (recorded.schema_version < expected.schema_version and recorded.event() == expected):
        return None
    ours, theirs = msgspec.json.decode(data), msgspec.json.decode(recorded.data)
    for field in sorted({*ours, *theirs}):
        if ours.get(field) != theirs.get(field):
            return Divergence(recorded.stream, recorded.version, field, _short(ours.get(field)), _short(theirs.get(field)))
    return None  # the same values, written by a program version that encodes them in another order


def _short(value: Any) -> Any:
    text = msgspec.json.encode(value)
    return value if len(text) <= 400 else text[:400].decode(errors="replace") + "…"
