"""Take back what a run did: find its effects in its events, plan their compensations in reverse order, and say what came of it. Pure.

A rollback is a run of its own, whose steps are one compensation each: so it is dispatched, retried, taken over, paused, replayed and shown like
any other run, and one that is killed in the middle goes on. Its id is derived from the run's, so that asking twice is asking once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from msgspec.structs import replace

from crewlog.events.store import Recorded
from crewlog.orchestrator.run import RunState, TaskState
from crewlog.schemas.effects import Compensation, Effect, LeftEffect, Rollback, UndoOrder
from crewlog.schemas.ids import Hash, RunId, TaskId, category
from crewlog.schemas.run_events import Step
from crewlog.schemas.task_events import CompensationFinished, TaskForked, TaskMoved, TaskOpened, TaskStarted, ToolFinished, ToolProbed, ToolStarted
from crewlog.schemas.text import shorten

ORDERS_BYTES_MAX: Final = 128 * 1024
"""Orders of one rollback as JSON: they are recorded in one event. What does not fit is for the next rollback."""
LEFT_BYTES_MAX: Final = 64 * 1024
DETAIL_CHARS_MAX: Final = 300


class RunEffect(msgspec.Struct, frozen=True):
    """One effect of a run as its events tell it, in the order in which they began."""

    task_id: TaskId
    kind: str
    call_id: str
    tool: str
    effect: Effect
    key: str
    fingerprint: Hash
    position: int
    """Of its outcome, or of its intent while it has none."""
    worker: str
    status: Literal["open", "ok", "error", "unknown"] = "open"
    """`open`: it has an intent and no outcome."""
    compensation: Compensation | None = None
    is_contained: bool = False
    """All that it did is in its result."""


def effects_of(events: Iterable[Recorded], contained: Mapping[Hash, frozenset[str]]) -> list[RunEffect]:
    """Read the effects of a run off its events.

    Args:
        events: of all its streams, in the order of the log.
        contained: blob of a setup -> names of the tools in it that reach nothing outside.
    """
    kinds: dict[UUID, str] = {}
    workers: dict[UUID, str] = {}
    inside: dict[UUID, frozenset[str]] = {}
    found: dict[tuple[UUID, str], RunEffect] = {}
    for recorded in events:
        if category(recorded.stream) != "task":
            continue
        event, task_id = recorded.event(), UUID(recorded.stream.removeprefix("task/"))
        match event:
            case TaskOpened() | TaskForked():
                kinds[task_id] = event.kind
            case TaskStarted():
                workers[task_id] = event.worker
                inside[task_id] = contained.get(event.setup.ref or Hash(""), frozenset())
            case TaskMoved():
                inside[task_id] = contained.get(event.setup.ref or Hash(""), frozenset())
            case ToolStarted() if event.effect != "read" and not event.stub:
                found[task_id, event.call_id] = RunEffect(
                    task_id=TaskId(task_id),
                    kind=kinds.get(task_id, ""),
                    call_id=event.call_id,
                    tool=event.tool,
                    effect=event.effect,
                    key=event.idempotency_key,
                    fingerprint=event.fingerprint,
                    position=recorded.position,
                    worker=workers.get(task_id, ""),
                    compensation=event.compensation,
                    is_contained=event.tool in inside.get(task_id, ()),
                )
            case ToolProbed() | CompensationFinished() | ToolFinished() if (task_id, event.call_id) in found:
                found[task_id, event.call_id] = _later(found[task_id, event.call_id], event, recorded.position)
            case _:
                continue
    return list(found.values())


def _later(effect: RunEffect, event: ToolProbed | CompensationFinished | ToolFinished, position: int) -> RunEffect:
    match event:
        case ToolProbed():
            known = {"happened": effect.status, "did_not_happen": "error", "unknown": effect.status}[event.verdict]
            return replace(effect, status=known, compensation=event.compensation or effect.compensation)
        case CompensationFinished():
            return replace(effect, status="error") if event.status == "ok" else effect
        case ToolFinished():
            status = event.status if event.status != "refused" else "error"
            return replace(effect, status=status, position=position, compensation=event.compensation or effect.compensation)


def plan_rollback(
    run_id: RunId, effects: Sequence[RunEffect], *, number: int, undone: Collection[str], kinds: Collection[str], actor: str, reason: str
) -> Rollback:
    """Decide what a rollback does, the last effect first, and what it must leave.

    Args:
        undone: keys of effects that earlier rollbacks took back.
        kinds: agent kinds there are.
    """
    last_undo = {effect.fingerprint: effect.position for effect in effects if effect.fingerprint and effect.status == "ok"}
    orders: list[UndoOrder] = []
    whose: list[str] = []
    left: list[LeftEffect] = []
    size, left_size, more = 0, 0, 0
    for effect in reversed(effects):
        undo = effect.compensation
        is_over = effect.status == "error" or effect.key in undone
        if is_over or (undo is not None and last_undo.get(undo.fingerprint, 0) > effect.position):
            continue
        if undo is None or effect.kind not in kinds:
            if not (effect.is_contained and undo is None):
                item = _left(effect)
                left_size += len(msgspec.json.encode(item))
                left += [item] if left_size <= LEFT_BYTES_MAX else []
                more += left_size > LEFT_BYTES_MAX
            continue
        order = _order(run_id, effect, undo)
        size += len(msgspec.json.encode(order))
        if size > ORDERS_BYTES_MAX:
            more += 1
            continue
        orders.append(order)
        whose.append(effect.kind)
    return Rollback(run_id, number, tuple(orders), tuple(whose), tuple(left), actor, reason, more)


def _order(run_id: RunId, effect: RunEffect, undo: Compensation) -> UndoOrder:
    worker = effect.worker if effect.status == "open" else ""
    return UndoOrder(run_id, effect.task_id, effect.call_id, effect.key, effect.tool, undo.tool, undo.version, undo.arguments, undo.resource, worker)


def _left(effect: RunEffect) -> LeftEffect:
    resource = effect.compensation.resource if effect.compensation is not None else ""
    why: Literal["irreversible", "unknown", "no_compensation", "no_agent"] = "no_compensation"
    if effect.compensation is not None:
        why = "no_agent"
    elif effect.status != "ok":
        why = "unknown"
    elif effect.effect == "irreversible":
        why = "irreversible"
    return LeftEffect(effect.task_id, effect.call_id, effect.key, effect.tool, why, resource)


def undo_steps(rollback: Rollback) -> tuple[Step, ...]:
    """Return the plan of a rollback: one step for each order, named by its place."""
    nothing = msgspec.Raw(b"{}")
    return tuple(
        Step(f"undo-{n}", kind, f"Take back {order.effect_tool}{f' ({order.resource})' if order.resource else ''} with {order.tool}", (), nothing)
        for n, (kind, order) in enumerate(zip(rollback.kinds, rollback.orders, strict=True), 1)
    )


def undone_keys(state: RunState) -> frozenset[str]:
    """Return the keys of the effects that a rollback has taken back so far."""
    return frozenset(order.key for order, task in _carried_out(state) if task is not None and task.is_finished)


def rollback_flags(state: RunState) -> tuple[str, ...]:
    """Return the flags of a rollback's end: `not_undone` when something is still there."""
    rollback = state.rollback
    assert rollback is not None
    failed = any(task is None or not task.is_finished for _, task in _carried_out(state))
    return ("not_undone",) if failed or rollback.left or rollback.more else ()


def rollback_report(state: RunState) -> dict[str, Any] | None:
    """Describe what a rollback has done so far as JSON; None for any other run."""
    rollback = state.rollback
    if rollback is None:
        return None
    done: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for order, task in _carried_out(state):
        item = {name: getattr(order, name) for name in ("task_id", "call_id", "key", "resource")} | {"tool": order.effect_tool, "undone_with": order.tool}
        if task is not None and task.is_finished:
            done.append(item)
        elif task is not None and not task.is_active:
            failed.append(item | {"error": task.error.message if task.error is not None else ""})
    return {"run_id": rollback.run_id, "number": rollback.number, "undone": done, "failed": failed, "left": rollback.left, "more": rollback.more}


def rollback_text(state: RunState) -> str:
    """Say for people what was taken back and what was not, with the ids by which it is found."""
    rollback = state.rollback
    assert rollback is not None
    done: list[str] = []
    rest: list[str] = []
    for order, task in _carried_out(state):
        named = _named(order.effect_tool, order.resource, order.task_id, order.call_id, order.key)
        if task is not None and task.is_finished:
            done.append(named)
        else:
            why = shorten(task.error.message, DETAIL_CHARS_MAX) if task is not None and task.error is not None else "nobody got to it"
            rest.append(f"{named}: {why}")
    rest += [f"{_named(left.tool, left.resource, left.task_id, left.call_id, left.key)}: {_WHY[left.why]}" for left in rollback.left]
    lines = [f"Rollback {rollback.number} of run {rollback.run_id} ({rollback.reason}): {len(done)} taken back, {len(rest)} not."]
    lines += ["", "Taken back:", *(f"- {line}" for line in done)] if done else []
    lines += ["", "Not taken back:", *(f"- {line}" for line in rest)] if rest else []
    if rollback.more:
        lines += ["", f"{rollback.more} more effects did not fit into this rollback: roll the run back again."]
    return "\n".join(lines)


_WHY: Final[Mapping[str, str]] = {
    "irreversible": "it is irreversible",
    "unknown": "nobody knows whether it happened, and how to take it back was not recorded",
    "no_compensation": "how to take it back was not recorded",
    "no_agent": "there are no agents of its kind any more",
}


def _named(tool: str, resource: str, task_id: UUID, call_id: str, key: str) -> str:
    return f"{tool}{f' {resource}' if resource else ''} (task {task_id}, call {call_id}, key {key})"


def _carried_out(state: RunState) -> list[tuple[UndoOrder, TaskState | None]]:
    assert state.rollback is not None
    return [(order, state.tasks.get(f"undo-{n}")) for n, order in enumerate(state.rollback.orders, 1)]
