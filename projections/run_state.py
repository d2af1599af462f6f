"""What the fold of one run remembers between events: its rows, and what is open in each task.

A state is never stored. A run that is not in memory is folded again from its own events.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final
from uuid import UUID

import msgspec

from crewlog.events.controls import Measure, is_kind, kind_scope
from crewlog.projections.json_text import to_json
from crewlog.projections.rows import FINISHED, ApprovalRow, ModelCallRow, RunRow, TaskRow, TaskStatus, ToolCallRow
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Stream, TaskId, task_stream
from crewlog.schemas.values import ArtifactRef, Shortfall

FILE_BYTES_END: Final = 1 << 63
"""Sizes of files are below, as in every file system."""


class TaskState(msgspec.Struct, eq=False):
    """One task while it is worked on. Tool calls and approvals are held only while they have no outcome."""

    row: TaskRow
    depends_on: tuple[str, ...] = ()
    model_call: ModelCallRow | None = None
    """The call that is under way."""
    hedge: ModelCallRow | None = None
    """A second one beside it; it takes its place when the first one ends."""
    model_calls: dict[str, ModelCallRow] = msgspec.field(default_factory=dict)
    """The newest row of every call: the bill of one may come when its worker is long gone."""
    tool_calls: dict[str, ToolCallRow] = msgspec.field(default_factory=dict)
    approvals: dict[UUID, ApprovalRow] = msgspec.field(default_factory=dict)
    artifacts: dict[tuple[str, str], ArtifactRef] = msgspec.field(default_factory=dict)
    retry_due_us: int = 0
    ended_us: int | None = None
    """When the agent said that the work is done, before anybody judged it."""
    decision: str = ""
    """The last decision of a person, as text, until the task is taken up again."""
    shortfall: Shortfall | None = None
    """The limit that leaves no room for its next model call, while it is held."""

    @property
    def is_finished(self) -> bool:
        return self.row.status in FINISHED


class Intervention(msgspec.Struct, frozen=True):
    """A pause or a quarantine that a run has taken note of. `control` is its number."""

    measure: Measure
    scope: str
    actor: str
    reason: str
    since_us: int
    control: int


class Changed(msgspec.Struct, eq=False):
    """Rows of a run that changed, in the order they were first touched. A set that keeps order."""

    runs: dict[RunRow, None] = msgspec.field(default_factory=dict)
    tasks: dict[TaskRow, None] = msgspec.field(default_factory=dict)
    model_calls: dict[ModelCallRow, None] = msgspec.field(default_factory=dict)
    tool_calls: dict[ToolCallRow, None] = msgspec.field(default_factory=dict)
    approvals: dict[ApprovalRow, None] = msgspec.field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.runs) + len(self.tasks) + len(self.model_calls) + len(self.tool_calls) + len(self.approvals)


class RunState(msgspec.Struct, eq=False):
    """One run: its tasks by step and revision, by stream, and the newest revision of each step."""

    row: RunRow
    changed: Changed = msgspec.field(default_factory=Changed)
    """What has not been handed out to be written."""
    is_written: bool = False
    """Some of its rows may be in the tables already."""
    was_over: bool = False
    """It was over when they were handed out last."""
    submitted_task_id: UUID | None = None
    is_fork: bool = False
    tasks: dict[tuple[str, int], TaskState] = msgspec.field(default_factory=dict)
    by_stream: dict[Stream, TaskState] = msgspec.field(default_factory=dict)
    latest: dict[str, TaskState] = msgspec.field(default_factory=dict)
    warned: dict[str, None] = msgspec.field(default_factory=dict)
    """Budget scopes that were found to be over their soft limit, in this order."""
    controls: list[Intervention] = msgspec.field(default_factory=list)
    """What people did to it and have not taken back, in this order."""
    stopped_since_us: int = 0
    """Since when its clocks stand still; 0 when they run."""
    results_held: bool = False
    """All work is done and a quarantine keeps the end back."""

    @property
    def starved(self) -> TaskState | None:
        """Return the first task that a budget holds, if any: nothing is dispatched then."""
        return next((task for task in self.tasks.values() if task.row.status == "held" and task.shortfall is not None), None)

    def pause_of(self, kind: str) -> Intervention | None:
        """Return the first pause that keeps tasks of a kind from starting, if any."""
        return next((c for c in self.controls if c.measure == "pause" and (not is_kind(c.scope) or c.scope == kind_scope(kind))), None)

    @property
    def is_over(self) -> bool:
        """Say whether no further event is expected, so that the state may be forgotten."""
        return self.row.finished_us is not None

    def add(self, row: TaskRow) -> TaskState:
        """Take in a task. A further revision of a step becomes its newest one."""
        task = TaskState(row)
        self.tasks[row.key, row.revision] = task
        self.by_stream[task_stream(TaskId(row.task_id))] = task
        newest = self.latest.get(row.key)
        if newest is None or newest.row.revision < row.revision:
            self.latest[row.key] = task
        return task


def open_task(run: RunState, *, key: str, revision: int, task_id: UUID, kind: str, at_us: int, changed: Changed) -> TaskState:
    """Find the task of a step's revision, or take in one that no plan has announced under this revision."""
    task = run.tasks.get((key, revision))
    if task is None:
        row = TaskRow(run.row.run_id, key, revision, task_id, kind, planned_us=at_us)
        announced = run.latest.get(key)
        if announced is not None:
            row.objective, row.depends_on = announced.row.objective, announced.row.depends_on
            if announced.row.status == "planned":
                finish(announced, "skipped", at_us, changed)
        task = run.add(row)
    if task.row.task_id != task_id:
        task.row.task_id = task_id
        run.by_stream[task_stream(TaskId(task_id))] = task
    task.row.kind = kind
    changed.tasks[task.row] = None
    return task


def add_artifacts(task: TaskState, artifacts: Collection[ArtifactRef], changed: Changed) -> None:
    """Note files a task made, each name and content once.

    Raises:
        ContractError: a size that no file has, and no view can show.
    """
    if not artifacts:
        return
    if not all(0 <= artifact.size < FILE_BYTES_END for artifact in artifacts):
        raise ContractError(f"task {task.row.task_id} says that it made a file of a size that none has")
    for artifact in artifacts:
        task.artifacts[artifact.name, artifact.hash] = artifact
    task.row.artifacts = to_json(list(task.artifacts.values()))
    changed.tasks[task.row] = None


def finish(task: TaskState, status: TaskStatus, at_us: int, changed: Changed) -> None:
    """Give a task its last status and close whatever is still open in it. Does nothing to a finished task."""
    if task.is_finished:
        return
    row = task.row
    row.status, row.finished_us = status, task.ended_us if task.ended_us is not None else at_us
    changed.tasks[row] = None
    close_model_call(task, changed)
    for call in task.tool_calls.values():
        call.status = "not_run" if call.status == "requested" else "abandoned"
        changed.tool_calls[call] = None
    for approval in task.approvals.values():
        approval.status, approval.decided_us = "withdrawn", at_us
        changed.approvals[approval] = None
    task.tool_calls.clear()
    task.approvals.clear()


def close_model_call(task: TaskState, changed: Changed) -> None:
    """Mark model calls that nobody will hear the end of: their worker is gone."""
    for call in (task.model_call, task.hedge):
        if call is not None:
            call.status = "abandoned"
            changed.model_calls[call] = None
    task.model_call = task.hedge = None
