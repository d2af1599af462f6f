"""What of an event may stand in the clear: its *public form*, in which everything that a person, a model or a tool wrote is gone.

The log stores an event of a run whose person has a key as its public form and, beside it, the whole event enciphered. Once the key is
destroyed the public form is all there is; it decodes and folds like any event. What stays: ids, names of steps, tools and models, versions,
times, money, usage, states, error codes, who decided. `test_public_form` makes a decision about every field of every event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from crewlog.schemas import run_events as run
from crewlog.schemas import system_events as system
from crewlog.schemas import task_events as task
from crewlog.schemas.codec import Event
from crewlog.schemas.effects import Compensation, Rollback, RollbackPage, UndoOrder
from crewlog.schemas.payload import Payload
from crewlog.schemas.values import Failure, Issue, Outcome

PERSONAL: Final = "[personal]"
"""Stands where a text of a person was, in the public form of an event."""
ERASED: Final = "[erased]"
"""What readers get in its place once the key is destroyed."""

Veil = Callable[[Any], Any]
"""Returns the public form of one field's value."""

_OF_TASK: Final = frozenset({
    *("schema_version", "task_id", "run_id", "parent_task_id", "key", "tenant", "user", "surface", "type", "limits", "timeout_seconds", "budget"),
    *("priority", "auto_approve", "routing", "synthesis", "trial"),
})  # fmt: skip
_OF_STEP: Final = frozenset({"key", "type", "depends_on", "timeout_seconds"})


def public_form(event: Event) -> Event:
    """Return an event without what is personal in it; the event itself when nothing is."""
    changed = {name: hidden for name, veil in VEILS.get(type(event), {}).items() if (hidden := veil(value := getattr(event, name))) != value}
    return msgspec.structs.replace(event, **changed) if changed else event


def _optional(veil: Veil) -> Veil:
    return lambda value: value if value is None or value is msgspec.UNSET else veil(value)


def _each(veil: Veil) -> Veil:
    return lambda values: tuple(map(veil, values))


def _none(_: object) -> tuple[()]:
    return ()


def _text(text: str) -> str:
    return text and PERSONAL


def _payload(payload: Payload) -> Payload:
    return payload if payload.size == 0 else Payload(len(PERSONAL), inline=PERSONAL)


def _failure(failure: Failure) -> Failure:
    return replace(failure, message=_text(failure.message))


def _issue(issue: Issue) -> Issue:
    return replace(issue, message=_text(issue.message))


def _outcome(outcome: Outcome) -> Outcome:
    return Outcome(_text(outcome.summary), flags=outcome.flags, trust=outcome.trust)


def _call(call: task.ToolCall) -> task.ToolCall:
    return msgspec.structs.replace(call, arguments=_payload(call.arguments))


def _edited(result: task.EditedResult) -> task.EditedResult:
    return msgspec.structs.replace(result, content=_payload(result.content))


def _replaced(one: task.Replaced) -> task.Replaced:
    return msgspec.structs.replace(one, by=_text(one.by))


def _ways(ways: task.ToolWays) -> task.ToolWays:
    return msgspec.structs.replace(ways, degraded=tuple(map(_text, ways.degraded)))


def _compensation(one: Compensation) -> Compensation:
    return msgspec.structs.replace(one, arguments="{}", resource=_text(one.resource))


def _rollback(rollback: Rollback) -> Rollback:
    page = _page(RollbackPage(rollback.orders, rollback.kinds, rollback.left, rollback.more))
    return msgspec.structs.replace(rollback, orders=page.orders, left=page.left, reason=_text(rollback.reason))


def _page(page: RollbackPage) -> RollbackPage:
    left = tuple(msgspec.structs.replace(one, resource=_text(one.resource)) for one in page.left)
    return msgspec.structs.replace(page, orders=tuple(map(_order, page.orders)), left=left)


def _order(order: UndoOrder) -> UndoOrder:
    return replace(order, arguments="{}", resource=_text(order.resource))


def _step(step: run.Step) -> run.Step:
    return msgspec.structs.replace(step, objective=_text(step.objective), constraints=msgspec.Raw(b"{}"), attachments=None)


def _task(raw: msgspec.Raw) -> msgspec.Raw:
    """Reduce the JSON of an `AgentTask`, or of a change to one, to what says how it runs, not what it is about."""
    fields = msgspec.json.decode(raw)
    if not isinstance(fields, dict):
        return raw
    kept = {name: value for name, value in fields.items() if name in _OF_TASK}
    if "objective" in fields:
        kept["objective"] = PERSONAL
    if isinstance(plan := fields.get("plan"), dict):
        steps = [{name: value for name, value in step.items() if name in _OF_STEP} | {"objective": PERSONAL} for step in plan.get("steps", ())]
        kept["plan"] = {"steps": steps}
    if isinstance(undo := fields.get("undo"), dict):
        kept["undo"] = undo | {"arguments": "{}", "resource": ""}
    return msgspec.Raw(msgspec.json.encode(kept))


_ERROR: Final[Mapping[str, Veil]] = {"error": _optional(_failure)}
_REASON: Final[Mapping[str, Veil]] = {"reason": _text}

VEILS: Final[Mapping[type, Mapping[str, Veil]]] = {
    run.RunSubmitted: {"goal": _text, "task": _task, "rollback": _optional(_rollback)},
    run.RunForked: {"goal": _text, "changes": _task, **_REASON},
    run.RunPlanned: {"steps": _each(_step), "note": _text},
    run.TaskRetryScheduled: _ERROR,
    run.TaskReviewed: {"issues": _each(_issue), "outcome": _optional(_outcome), **_ERROR},
    run.TaskHeld: _ERROR,
    run.RunHeld: {"partial": _payload, "artifacts": _none},
    run.RunCompleted: {"answer": _payload, "artifacts": _none, "citations": _none},
    run.RunFailed: {"partial": _payload, "artifacts": _none, **_ERROR},
    run.RunCancelled: _REASON,
    run.RunPaused: _REASON,
    run.RunResumed: _REASON,
    run.RunQuarantined: _REASON,
    run.QuarantineLifted: _REASON,
    run.RollbackContinued: {"page": _page},
    run.ResultsHeld: _ERROR,
    task.TaskOpened: {"task": _task},
    task.TaskForked: {"changes": _task, "results": _each(_edited), "said": _text, "opening": _optional(_payload)},
    task.TaskStarted: {"opening": _payload},
    task.ModelCallSkipped: {"detail": _text},
    task.ModelCallFinished: {
        "text": _payload,
        "tool_calls": _each(_call),
        "raw": lambda _: None,
        "native": _optional(_payload),
        "thinking": _optional(_payload),
        "problems": _each(_text),
    },
    task.ModelCallFailed: _ERROR,
    task.ToolStarted: {"compensation": _optional(_compensation)},
    task.ToolFinished: {
        "result": _payload,
        "artifacts": _none,
        "outcome": _optional(_outcome),
        "ways": _optional(_ways),
        "compensation": _optional(_compensation),
    },
    task.ToolInDoubt: _REASON,
    task.ToolProbed: {"result": _payload, "compensation": _optional(_compensation)},
    task.CompensationFinished: {"result": _payload},
    task.ApprovalRequested: {"arguments": _payload, **_REASON},
    task.ApprovalDecided: {"note": _text},
    task.Nudged: {"text": _text},
    task.ContextCompacted: {"replaced": _each(_replaced)},
    task.AttemptFailed: _ERROR,
    task.TaskCompleted: {"outcome": _outcome},
    task.TaskFailed: _ERROR,
    task.TaskCancelled: _REASON,
    system.MemoryRemembered: {"text": _text, "about": _text},
    system.MemoryForgotten: _REASON,
    system.ScheduleAdded: {"task": _task},
    system.ScheduleFired: {"error": _text},
    system.EffectSettled: {"result": _payload},
    system.RunArchived: {"goal": _text},
}
"""Event type -> field -> how its public form is made. What is not listed stays."""
