"""The decision to fork a run: what the fork shares with its parent, and how each task that was under way there goes on. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from crewlog.orchestrator.advance import advance, step_of
from crewlog.orchestrator.brief import GOAL_CHARS_MAX
from crewlog.orchestrator.commands import ForkRun
from crewlog.orchestrator.draft import Draft
from crewlog.orchestrator.run import RunState, TaskState, active_tasks, answers_goal
from crewlog.orchestrator.scopes import scopes_of
from crewlog.schemas.ids import TaskId, derived_task_id
from crewlog.schemas.run_events import ForkedTask, RunForked
from crewlog.schemas.task_events import TaskForked
from crewlog.schemas.text import shorten

PASSED_ON: Final = ("auto_approve", "limits", "priority", "timeout_seconds", "trial")
"""Changes of the submitted task that hold for each of its tasks."""


def fork(draft: Draft, command: ForkRun) -> None:
    """Begin the fork: all tasks that were under way are opened anew from their own events, and dispatched.

    Args:
        draft: of the parent's state at the place of the fork.
    """
    parent, going = draft.state, {task.parent: task for task in command.tasks}
    forked = [(task, going[task.task_id]) for task in active_tasks(parent)]
    changes = msgspec.json.decode(command.changes)
    names = {task.key: forked_task_id(parent, command, task) for task, _ in forked}
    draft.emit(
        RunForked(
            run_id=command.run_id,
            tenant=parent.brief.tenant,
            user=parent.brief.user,
            type=parent.brief.type,
            goal=shorten(changes.get("objective", parent.brief.objective), GOAL_CHARS_MAX),
            parent=command.parent,
            parent_version=command.parent_version,
            at=command.at,
            position=command.position,
            tasks=tuple(ForkedTask(task.key, names[task.key], going.parent, going.version) for task, going in forked),
            changes=command.changes,
            actor=command.actor,
            reason=command.reason,
            deadline_us=draft.now_us + changes.get("timeout_seconds", parent.brief.timeout_seconds) * 1_000_000,
            limits=command.terms.limits,
            hold_s=command.terms.hold_s,
        )
    )
    for task, going_on in forked:
        patch = task_changes(parent, command, task)
        hard = [limit.hard_micro_usd for limit in scopes_of(draft.state, task.kind, draft.now_us) if limit.hard_micro_usd is not None]
        patch["budget"] = {"hard_micro_usd": min(hard, default=None), "soft_micro_usd": None}
        what = (going_on.parent, going_on.version, task.kind, task.key, task.revision, msgspec.Raw(msgspec.json.encode(patch)))
        rest = (going_on.results, going_on.said, going_on.setup, going_on.opening, going_on.begins_anew)
        draft.fork_task(names[task.key], TaskForked(*what, *rest))
    for task, _ in forked:
        draft.dispatch_again(draft.state.tasks[task.key], 1)
    advance(draft)


def forked_task_id(parent: RunState, command: ForkRun, task: TaskState) -> TaskId:
    """Name the task of a fork: the submitted one has the id that the fork submits it under."""
    if task.task_id == parent.brief.task_id:
        return TaskId(command.run_id)
    return derived_task_id(command.run_id, key=task.key, revision=task.revision)


def task_changes(parent: RunState, command: ForkRun, task: TaskState) -> dict[str, Any]:
    """Return what is different in the `AgentTask` of a task under way, but for its budget, as a JSON Merge Patch."""
    changes = msgspec.json.decode(command.changes)
    task_id = forked_task_id(parent, command, task)
    patch: dict[str, Any] = {name: changes[name] for name in PASSED_ON if name in changes}
    patch |= {"task_id": str(task_id), "run_id": str(command.run_id)}
    patch["parent_task_id"] = None if task_id == command.run_id else str(command.run_id)
    step, is_answer = step_of(parent, task), answers_goal(parent, task.key)
    if step.timeout_seconds is not None:
        patch.pop("timeout_seconds", None)
    if "objective" in changes and step.objective == parent.brief.objective:
        patch["objective"] = changes["objective"]
    if "constraints" in changes and is_answer:
        patch["constraints"] = changes["constraints"]
    if "output_schema" in changes and is_answer:
        patch["output_schema"] = changes["output_schema"]
    return patch
