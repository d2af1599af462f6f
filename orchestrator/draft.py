"""One decision in the making: events applied to the state as they are decided, and what has to be written together with them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from crewlog.events.store import ANY, NO_STREAM, Write
from crewlog.orchestrator.dispatch import Dispatch, task_message
from crewlog.orchestrator.planning import Kinds
from crewlog.orchestrator.run import RunState, TaskState, answers_goal, evolve
from crewlog.orchestrator.scopes import scopes_of
from crewlog.schemas.effects import UndoOrder
from crewlog.schemas.ids import TaskId, derived_task_id, task_stream
from crewlog.schemas.payload import Payload, pack
from crewlog.schemas.run_events import RunEvent, Step, TaskDispatched
from crewlog.schemas.task_events import TaskCancelled, TaskEvent, TaskForked, TaskOpened
from crewlog.schemas.values import ContextItem

ORCHESTRATOR: str = "orchestrator"


class Decision(NamedTuple):
    """What follows from a command: run events, task events that belong into the same append, blobs that must be stored before it,
    tasks to publish after it, and the state behind it all."""

    state: RunState
    events: tuple[RunEvent, ...] = ()
    writes: tuple[Write, ...] = ()
    dispatches: tuple[Dispatch, ...] = ()
    blobs: tuple[bytes, ...] = ()


class Draft:
    """Collects one decision. Lives within one call of `decide`; everything it holds is a value."""

    def __init__(self, state: RunState, now_us: int, kinds: Kinds) -> None:
        self.state = state
        self.now_us = now_us
        self.kinds = kinds
        self._events: list[RunEvent] = []
        self._writes: list[Write] = []
        self._dispatches: list[Dispatch] = []
        self._blobs: list[bytes] = []

    def emit(self, event: RunEvent) -> None:
        """Decide one fact about the run."""
        self._events.append(event)
        self.state = evolve(self.state, event)

    def write(self, task_id: TaskId, event: TaskEvent) -> None:
        """Decide one fact about a task.

        No expected version: the run stream's is the fence between orchestrators, the log refuses a closed stream, and an agent
        that has not heard of it loses its next append.
        """
        self._writes.append(Write(task_stream(task_id), (event,), ANY))

    def pack(self, text: str) -> Payload:
        """Turn text into a payload."""
        payload, blob = pack(text)
        if blob is not None:
            self._blobs.append(blob)
        return payload

    def open_task(self, step: Step, context: Sequence[ContextItem], *, offered: Sequence[str] = (), undo: UndoOrder | None = None) -> None:
        """Open a new task for a step and dispatch it."""
        state = self.state
        brief = state.brief
        revision = state.revisions.get(step.key, 0)
        is_submitted_task = state.origin == "single" and revision == 0 and not step.key.startswith("@")
        task_id = TaskId(brief.task_id) if is_submitted_task else derived_task_id(state.run_id, key=step.key, revision=revision)
        scopes = scopes_of(state, step.type, self.now_us)
        hard = min((limit.hard_micro_usd for limit in scopes if limit.hard_micro_usd is not None), default=None)
        schema = brief.output_schema if answers_goal(state, step.key) else None
        message = task_message(state, step, task_id=task_id, context=context, output_schema=schema, hard_micro_usd=hard, undo=undo)
        opened = TaskOpened(step.type, step.key, revision, msgspec.Raw(message))
        self._writes.append(Write(task_stream(task_id), (opened,), NO_STREAM, step.type, scopes))
        deadline_us = self.deadline_us(step.timeout_seconds)
        self.emit(TaskDispatched(task_id, step.key, step.type, 1, revision, deadline_us, tuple(offered)))
        self._dispatches.append(Dispatch(task_id, step.type, brief.lane_of(step.type), 1, 1, message))

    def fork_task(self, task_id: TaskId, event: TaskForked) -> None:
        """Open a task that goes on from another one. It is charged like a new one."""
        self._writes.append(Write(task_stream(task_id), (event,), NO_STREAM, event.kind, scopes_of(self.state, event.kind, self.now_us)))

    def dispatch_again(self, task: TaskState, attempt: int) -> None:
        """Put a task that exists on its queue once more."""
        timeout_s = next((step.timeout_seconds for step in self.state.steps if step.key == task.key), None)
        self.emit(TaskDispatched(task.task_id, task.key, task.kind, attempt, task.revision, self.deadline_us(timeout_s), task.offered))
        serial = self.state.tasks[task.key].dispatches
        self._dispatches.append(Dispatch(task.task_id, task.kind, self.state.brief.lane_of(task.kind), attempt, serial, None))

    def deadline_us(self, timeout_s: int | None) -> int:
        """Return when a task dispatched now must be done: its own time from now, waiting in the queue included, but not after the run's.

        While a person is asked the run's own deadline stands still, so only the task's counts.
        """
        own_us = self.now_us + (timeout_s or self.state.brief.timeout_seconds) * 1_000_000
        run_us = self.state.deadline_us
        return min(own_us, run_us) if run_us and not self.state.paused_since_us else own_us

    def close_tasks(self, reason: str, actor: str, *, ended: Collection[TaskId] = ()) -> None:
        """Close the streams of all tasks that are not reviewed: their agents stop at their next append."""
        for task in self.state.tasks.values():
            if task.is_active and task.task_id not in ended:
                self.write(task.task_id, TaskCancelled(reason, actor))

    def decision(self) -> Decision:
        """Return the finished decision."""
        return Decision(self.state, tuple(self._events), tuple(self._writes), tuple(self._dispatches), tuple(self._blobs))
