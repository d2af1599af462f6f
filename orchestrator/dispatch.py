"""The `AgentTask` that goes to an agent: written straight as JSON, because all of its parts were validated when they came in.

Whatever grows with the work of others is cut to a bound here, so that no dispatch can exceed what the log and the queue take.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec

from crewlog.orchestrator.brief import BudgetBrief
from crewlog.orchestrator.planning import Kinds, Offer, away, offers
from crewlog.orchestrator.run import SYNTHESIS, RunState, TaskState, blocked_steps, is_finished
from crewlog.schemas.effects import UndoOrder
from crewlog.schemas.ids import TaskId
from crewlog.schemas.run_events import Step
from crewlog.schemas.subjects import worker_group
from crewlog.schemas.task import AgentTask
from crewlog.schemas.text import shorten
from crewlog.schemas.trial import Trial
from crewlog.schemas.values import ContextItem, Issue, Outcome

CONTEXT_BYTES_MAX: Final = 64 * 1024
"""Outcomes passed on to one task, as JSON."""
OUTCOME_BYTES_MAX: Final = 96 * 1024
"""One outcome in the run stream; the task stream keeps all of it."""
OBJECTIVE_CHARS_MAX: Final = 300
"""An earlier step's objective, where it is only background."""
ISSUES_MAX: Final = 20
SYSTEM: Final = "system"
KINDS: Final = "@kinds"
AWAY: Final = "@away"
RUBRIC: Final = "@rubric"
TRUNCATED: Final = "truncated"

_encode: Final = msgspec.json.Encoder().encode


class Dispatch(NamedTuple):
    """A task to be put on its queue after the commit. `message` is None when it has to be read from its `TaskOpened`."""

    task_id: TaskId
    kind: str
    lane: str
    attempt: int
    serial: int
    message: bytes | None

    @property
    def group(self) -> str:
        """Name the workers that may take it: they have a window and a queue of their own."""
        return worker_group(self.kind, self.lane)


class TaskMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """`AgentTask` on its way out. What equals the contract's default is left out (a test parses it back)."""

    schema_version: int
    task_id: UUID
    run_id: UUID
    type: str
    objective: str
    key: str
    timeout_seconds: int
    parent_task_id: UUID | None = None
    tenant: str = "default"
    user: str = "anonymous"
    surface: str = "default"
    context: tuple[msgspec.Raw, ...] = ()
    attachments: tuple[dict[str, Any], ...] = ()
    constraints: msgspec.Raw | None = None
    limits: dict[str, int] = {}
    budget: BudgetBrief = BudgetBrief()
    output_schema: dict[str, Any] | None = None
    priority: Literal["high", "normal", "low", "shadow"] = "normal"
    auto_approve: bool = False
    undo: UndoOrder | None = None
    trial: Trial | None = None


def task_message(
    state: RunState,
    step: Step,
    *,
    task_id: TaskId,
    context: Sequence[ContextItem],
    output_schema: dict[str, Any] | None,
    hard_micro_usd: int | None,
    undo: UndoOrder | None = None,
) -> bytes:
    """Write the AgentTask for one step of a run: what the step says, and for the rest what the run was submitted with.

    Its budget only says that there is one: what may be spent is bound to its stream, where the log holds every model call to it.

    Args:
        hard_micro_usd: the lowest hard limit of what the task is charged to, None without any.
    """
    brief = state.brief
    attachments = brief.attachments
    if step.attachments is not None:
        attachments = tuple(a for a in attachments if a["name"] in step.attachments)
    return _encode(
        TaskMessage(
            schema_version=1,
            task_id=task_id,
            run_id=state.run_id,
            type=step.type,
            objective=step.objective,
            key=step.key,
            timeout_seconds=step.timeout_seconds or brief.timeout_seconds,
            parent_task_id=brief.parent_task_id if task_id == brief.task_id else brief.task_id,
            tenant=brief.tenant,
            user=brief.user,
            surface=brief.surface,
            context=(*brief.context, *fit_context(context)),
            attachments=attachments,
            constraints=None if bytes(step.constraints) == b"{}" else step.constraints,
            limits=brief.limits,
            budget=BudgetBrief(hard_micro_usd),
            output_schema=output_schema,
            priority=brief.priority,
            auto_approve=brief.auto_approve,
            undo=undo,
            trial=brief.trial,
        )
    )


def fit_context(items: Sequence[ContextItem], bytes_max: int = CONTEXT_BYTES_MAX) -> tuple[msgspec.Raw, ...]:
    """Encode context items; when all together are too large, each is cut to its equal share. What is said of kinds is never cut."""
    encoded = [_encode(item) for item in items]
    if sum(map(len, encoded)) > bytes_max:
        share = bytes_max // len(items)
        encoded = [data if len(data) <= share or item.key in (KINDS, AWAY) else _cut(item, share) for item, data in zip(items, encoded, strict=True)]
    return tuple(map(msgspec.Raw, encoded))


def _cut(item: ContextItem, bytes_max: int) -> bytes:
    item = replace(item, objective=shorten(item.objective, OBJECTIVE_CHARS_MAX))
    around = len(_encode(item)) - len(_encode(item.outcome))
    return _encode(replace(item, outcome=fit_outcome(item.outcome, bytes_max - around)))


def fit_outcome(outcome: Outcome, bytes_max: int = OUTCOME_BYTES_MAX) -> Outcome:
    """Cut an outcome until its JSON fits, least needed first: output, citations, artifacts, then the end of the summary."""
    if len(_encode(outcome)) <= bytes_max:
        return outcome
    outcome = replace(outcome, output=None, flags=tuple(dict.fromkeys((*outcome.flags, TRUNCATED))))
    while len(_encode(outcome)) > bytes_max and outcome.citations:
        outcome = replace(outcome, citations=outcome.citations[: len(outcome.citations) // 2])
    while len(_encode(outcome)) > bytes_max and outcome.artifacts:
        outcome = replace(outcome, artifacts=outcome.artifacts[: len(outcome.artifacts) // 2])
    while len(_encode(outcome)) > bytes_max and outcome.summary:
        outcome = replace(outcome, summary=shorten(outcome.summary, len(outcome.summary) // 2))
    return outcome


def outcomes_of(state: RunState, keys: Iterable[str]) -> list[ContextItem]:
    """Return the outcomes of finished steps among `keys`, in the plan's order."""
    wanted = frozenset(keys)
    items: list[ContextItem] = []
    if not wanted:
        return items
    for step in state.steps:
        task = state.tasks.get(step.key)
        if step.key in wanted and task is not None and task.is_finished and task.outcome is not None:
            items.append(ContextItem(step.key, step.type, step.objective, task.outcome))
    return items


def kinds_items(kinds: Kinds) -> list[ContextItem]:
    """Tell a planner which kinds of agents there are and, if that is so, which cannot work and why."""
    told = [_kinds_item(KINDS, "the agent kinds a plan may use", "description", offers(kinds))]
    if lacking := away(kinds):
        told.append(_kinds_item(AWAY, "agent kinds that a plan may not use: they cannot work now", "unavailable", lacking))
    return told


def _kinds_item(key: str, objective: str, field: str, of: dict[str, str]) -> ContextItem:
    output = [{"kind": kind, field: text} for kind, text in of.items()]
    return ContextItem(key, SYSTEM, objective, Outcome("\n".join(f"{kind}: {text}" for kind, text in of.items()), output=output))


def kinds_told(task: AgentTask) -> dict[str, Offer]:
    """Return the kinds that `kinds_items` told a planner of. Nothing for any other task."""
    told = [(item.key, entry) for item in task.context if item.key in (KINDS, AWAY) for entry in item.outcome.output]
    return {entry["kind"]: Offer(entry["description"]) if key == KINDS else Offer("", entry["unavailable"]) for key, entry in told}


def review_item(issues: Sequence[Issue]) -> ContextItem:
    """Tell an agent what was wrong with its earlier work."""
    output = [{"rule": issue.rule, "message": shorten(issue.message, OBJECTIVE_CHARS_MAX)} for issue in issues[:ISSUES_MAX]]
    text = "The earlier outcome was not accepted. Repair this:\n" + "\n".join(f"- {issue['message']}" for issue in output)
    return ContextItem("@review", SYSTEM, "what the earlier outcome lacks", Outcome(text, output=output))


def rubric_item(rubric: Sequence[str]) -> ContextItem:
    """Tell a critic what to judge by."""
    text = "\n".join(f"{number}. {criterion}" for number, criterion in enumerate(rubric, 1))
    return ContextItem(RUBRIC, SYSTEM, "what the outcome is judged by", Outcome(text, output=list(rubric)))


def earlier_item(task: TaskState, step: Step) -> list[ContextItem]:
    """Hand an agent its earlier work."""
    return [] if task.outcome is None else [ContextItem(step.key, step.type, step.objective, task.outcome)]


def open_points_item(state: RunState) -> list[ContextItem]:
    """Tell a planner which steps failed, and which could not start because of them."""
    blocked = blocked_steps(state)
    output = [
        {"key": step.key, "type": step.type, "objective": shorten(step.objective, OBJECTIVE_CHARS_MAX), "problem": _problem(state, step.key, blocked)}
        for step in state.steps
        if not is_finished(state, step.key)
    ]
    if not output:
        return []
    text = "These steps have no result:\n" + "\n".join(f"- {point['key']}: {point['problem']}" for point in output)
    return [ContextItem("@open", SYSTEM, "steps without a result", Outcome(text, output=output))]


def _problem(state: RunState, key: str, blocked: dict[str, str]) -> str:
    if key in blocked:
        return f"could not start because {blocked[key]!r} failed"
    task = state.tasks.get(key)
    return "did not start" if task is None or task.error is None else f"failed: {task.error.message}"


def planner_step(state: RunState, key: str) -> Step:
    """Describe one of the orchestrator's own tasks: the planner is given the goal as it was submitted."""
    constraints = state.brief.constraints if key == SYNTHESIS else msgspec.Raw(b"{}")
    return Step(key, "planner", state.brief.objective, (), constraints)
