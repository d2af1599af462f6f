"""What led to what in a recorded run: for each event the events it follows from, and in what way. Pure.

Where the log says so (`causation_id`, ids of calls, tasks and approvals) that is taken; the rest follows from what the machines react to:
a model is asked because the results of the last turn are there, a step is dispatched because those it depends on are accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from uuid import UUID

from crewlog.events.store import Recorded
from crewlog.schemas.codec import Event, Unknown
from crewlog.schemas.ids import Stream, category, task_stream
from crewlog.schemas.run_events import (
    RollbackContinued,
    RunEvent,
    RunForked,
    RunPlanned,
    RunReleased,
    TaskDispatched,
    TaskHeld,
    TaskResumed,
    TaskRetryScheduled,
    TaskReviewed,
    TaskSuspended,
)
from crewlog.schemas.system_events import BillCorrected, CallSettled
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    BudgetWarned,
    CompensationFinished,
    CompensationStarted,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallStarted,
    TaskCancelled,
    TaskFailed,
    TaskForked,
    TaskOpened,
    TaskStarted,
    ToolFinished,
    ToolInDoubt,
    ToolProbed,
    ToolStarted,
)


class Cause(NamedTuple):
    """One end of a link between two events: the index of the other one, and in what way they belong together: `dispatch`, `intent`, `permit` …"""

    at: int
    relation: str


@dataclass
class _Known:
    """What was seen of one task so far, as indexes of events."""

    opened: int = 0
    dispatched: int = 0
    started: int = 0
    ended: int = 0
    attempt_failed: int = 0
    forked: int = 0
    """The fork that lets it go on, until it is dispatched again."""
    retry: int = 0
    last: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    """Model call -> its intent."""
    asked_by: dict[str, int] = field(default_factory=dict)
    """Tool call -> the answer that asked for it."""
    tools: dict[str, int] = field(default_factory=dict)
    """Tool call -> its intent."""
    questions: dict[UUID, int] = field(default_factory=dict)
    answers: dict[UUID, int] = field(default_factory=dict)
    answer_to: dict[str, int] = field(default_factory=dict)
    """Tool call -> what a person decided about it."""
    fresh: list[int] = field(default_factory=list)
    """What the next model call follows from: whatever came since the last one was answered."""


def causes(events: Sequence[Recorded]) -> list[tuple[Cause, ...]]:
    """Return what each event follows from, in the order of the events; events are named by their index, from 1."""
    fold = _Fold()
    found = [tuple(dict.fromkeys(cause for cause in fold.take(n, recorded) if cause.at)) for n, recorded in enumerate(events, 1)]
    by_id = {recorded.event_id: n for n, recorded in enumerate(events, 1)}
    for n, recorded in enumerate(events):
        said = by_id.get(recorded.causation_id) if recorded.causation_id else None
        if said is not None and said != n + 1 and not found[n]:
            found[n] = (Cause(said, "causation"),)
    return found


def effects(found: Sequence[tuple[Cause, ...]]) -> list[tuple[Cause, ...]]:
    """Turn causes round: return what each event led to."""
    led: list[list[Cause]] = [[] for _ in found]
    for n, follows in enumerate(found, 1):
        for at, relation in follows:
            led[at - 1].append(Cause(n, relation))
    return [tuple(items) for items in led]


class _Fold:
    """Goes through the events of a run once. Lives within one call of `causes`."""

    def __init__(self) -> None:
        self._tasks: dict[Stream, _Known] = {}
        self._planned = 0
        self._depends: dict[str, tuple[str, ...]] = {}
        self._reviewed: dict[str, int] = {}
        """Step key -> its last review."""
        self._released = 0
        self._run_last = (0, 0)
        """Index and time of the last run event."""

    def take(self, n: int, recorded: Recorded) -> Iterable[Cause]:
        event = recorded.event()
        if category(recorded.stream) == "task":
            known = self._of(recorded.stream)
            found = list(self._task_event(n, recorded, event, known))
            known.last = n
            return found
        if isinstance(event, RunEvent):
            found = list(self._run_event(n, recorded, event))
            self._run_last = (n, recorded.occurred_us)
            return found
        if isinstance(event, CallSettled | BillCorrected):
            return [Cause(self._of(task_stream(event.task_id)).calls.get(event.call_id, 0), "intent")]
        return []

    def _of(self, stream: Stream) -> _Known:
        known = self._tasks.get(stream)
        if known is None:
            known = self._tasks[stream] = _Known()
        return known

    def _run_event(self, n: int, recorded: Recorded, event: RunEvent) -> Iterable[Cause]:
        before, before_us = self._run_last
        beside = Cause(before, "decision") if before_us == recorded.occurred_us else Cause(0, "")
        known = self._of(task_stream(event.task_id)) if hasattr(event, "task_id") else _Known()
        match event:
            case TaskReviewed():
                self._reviewed[event.key] = n
                yield Cause(known.ended or known.attempt_failed, "outcome")
                if not (known.ended or known.attempt_failed):
                    yield beside
            case TaskRetryScheduled():
                known.retry = n
                yield Cause(known.attempt_failed, "outcome")
            case TaskHeld():
                yield Cause(known.attempt_failed, "outcome")
            case TaskSuspended():
                yield Cause(known.questions.get(event.approval_id, 0), "question")
            case TaskResumed():
                known.answers[event.approval_id] = n
                yield Cause(known.questions.get(event.approval_id, 0), "question")
            case RunPlanned():
                self._planned, self._depends = n, {step.key: step.depends_on for step in event.steps}
                yield beside
            case TaskDispatched():
                yield from self._dispatched(n, event, known, beside)
            case RunReleased():
                self._released = n
                yield Cause(before, "hold")
            case RollbackContinued():  # it is through with what it had
                yield Cause(before, "next step")
            case RunForked():
                yield Cause(n - 1, "fork")
                for fork in event.tasks:
                    self._tasks[task_stream(fork.task_id)] = replace(self._tasks.pop(task_stream(fork.parent), _Known()), forked=n)
            case _:
                yield beside

    def _dispatched(self, n: int, event: TaskDispatched, known: _Known, beside: Cause) -> Iterable[Cause]:
        again, forked = known.dispatched, known.forked
        known.dispatched, known.forked = n, 0
        if forked:
            yield Cause(forked, "fork")
            return
        if again:
            due = max(known.retry, self._released, *known.answers.values(), 0)
            yield Cause(due, "due" if due == known.retry else "answer" if due in known.answers.values() else "release")
            return
        known.opened = known.opened or n
        needed = [self._reviewed[key] for key in self._depends.get(event.key, ()) if key in self._reviewed]
        yield from (Cause(at, "depends_on") for at in needed)
        if event.key in self._depends and not event.revision:
            yield Cause(self._planned, "plan")
        if event.revision and event.key in self._reviewed:
            yield Cause(self._reviewed[event.key], "review")
        if event.key not in self._depends and not event.revision:
            yield beside

    def _task_event(self, n: int, recorded: Recorded, event: Event | Unknown, known: _Known) -> Iterable[Cause]:
        match event:
            case TaskOpened() | TaskForked():
                yield Cause(known.dispatched, "dispatch")
            case TaskStarted():
                yield Cause(known.dispatched, "dispatch")
                if event.taken_over_from:
                    yield Cause(known.started, "taken over")
                known.started = n
                known.fresh = [*(at for at in known.fresh if at != known.attempt_failed), n]
            case ModelCallStarted():
                yield from (Cause(at, "next step") for at in known.fresh)
                yield from (Cause(at, "made beside") for at in [*known.calls.values()][-1:] if event.hedge)
                known.calls[event.call_id] = n
            case ModelCallFinished():
                yield Cause(known.calls.get(event.call_id, 0), "intent")
                known.asked_by |= dict.fromkeys((call.call_id for call in event.tool_calls), n)
                known.fresh = [n]
            case ModelCallFailed():
                yield Cause(known.calls.get(event.call_id, 0), "intent")
                known.fresh = [n]
            case ToolStarted():
                yield Cause(known.asked_by.get(event.call_id, 0), "asked for")
                yield Cause(known.answer_to.get(event.call_id, 0), "permit")
                if event.undoes:  # no model asked for it
                    yield Cause(known.started, "next step")
                if event.call_id in known.tools:  # the worker that began it died
                    yield Cause(known.started, "taken over")
                known.tools[event.call_id] = n
            case ToolFinished():
                yield from self._tool_finished(n, event, known)
            case ApprovalRequested():
                yield Cause(known.tools.get(event.call_id, 0) or known.asked_by.get(event.call_id, 0), "asked for")
                known.questions[event.approval_id] = n
            case ApprovalDecided():
                yield Cause(known.questions.get(event.approval_id, 0), "question")
                known.answer_to[event.call_id] = n
            case TaskFailed() | TaskCancelled():
                at, at_us = self._run_last
                yield Cause(at if at_us == recorded.occurred_us else known.attempt_failed or known.last, "decision")
            case _:
                yield from self._other_event(n, recorded, event, known)

    def _other_event(self, n: int, recorded: Recorded, event: Event | Unknown, known: _Known) -> Iterable[Cause]:
        match event:
            case ToolInDoubt() | ToolProbed() | CompensationStarted() | CompensationFinished():
                yield Cause(known.tools.get(event.call_id, 0), "intent")
                known.answer_to[event.call_id] = n
            case BudgetWarned():
                yield Cause(known.calls.get(event.call_id, 0) or known.last, "spending")
            case _:
                yield Cause(known.last, "next step")
                known.fresh = [n]
                self._ends(n, recorded, known)

    @staticmethod
    def _ends(n: int, recorded: Recorded, known: _Known) -> None:
        if recorded.type == "TaskCompleted":
            known.ended = n
        elif recorded.type == "AttemptFailed":
            known.attempt_failed = n

    @staticmethod
    def _tool_finished(n: int, event: ToolFinished, known: _Known) -> Iterable[Cause]:
        intent = known.tools.get(event.call_id, 0)
        yield Cause(intent, "intent")
        answer = known.answer_to.get(event.call_id, 0)
        if not intent or answer > intent or event.status in ("refused", "unknown"):
            yield Cause(answer, "answer")
        if not intent:
            yield Cause(known.asked_by.get(event.call_id, 0), "asked for")
        asked = known.asked_by.get(event.call_id, 0)
        # the next call follows from all results of the turn; the answer itself only as long as there is none
        known.fresh = [at for at in known.fresh if at != asked] + [n]
