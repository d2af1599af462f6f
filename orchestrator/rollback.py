"""Take back what a run did: find its effects in its events, plan their compensations in reverse order, and say what came of it. Pure.

A rollback is a run of its own, whose steps are one compensation each: so it is dispatched, retried, taken over, paused, replayed and shown like
any other run, and one that is killed in the middle goes on. Its id is derived from the run's, so that asking twice is asking once. It takes
back what the run did and what came of it: the effects of runs that its tasks submitted, and of theirs, in one order. What is more than one
event holds follows page by page, each read off the log when the one before is through.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec
from msgspec.structs import replace

from crewlog.events.store import Recorded
from crewlog.orchestrator.run import RunState, TaskState
from crewlog.schemas.effects import Compensation, Effect, LeftEffect, Rollback, RollbackPage, UndoOrder
from crewlog.schemas.ids import Hash, RunId, TaskId, category
from crewlog.schemas.task_events import CompensationFinished, TaskForked, TaskMoved, TaskOpened, TaskStarted, ToolFinished, ToolProbed, ToolStarted
from crewlog.schemas.text import shorten
from crewlog.schemas.undo_steps import undo_key

PAGE_BYTES_MAX: Final = 128 * 1024
"""Orders, and effects that are left, of one page as JSON: they are recorded in one event, and their steps in another one. What does not fit is for
the next page."""
REPORTED_MAX: Final = 500
"""Effects of each sort that a report names: it has to fit into one message. All of them are in the log."""
TOLD_MAX: Final = 1000
"""Effects of each sort that the text at the end names."""
DETAIL_CHARS_MAX: Final = 300


class RunEffect(msgspec.Struct, frozen=True):
    """One effect of a run as its events tell it."""

    run_id: RunId
    task_id: TaskId
    kind: str
    call_id: str
    tool: str
    effect: Effect
    key: str
    fingerprint: Hash
    began: int
    """Position of its intent, or its time: effects are taken back in the reverse order of these."""
    position: int
    """Of its outcome, or of its intent while it has none; or the time of that."""
    worker: str
    status: Literal["open", "ok", "error", "unknown"] = "open"
    """`open`: it has an intent and no outcome."""
    compensation: Compensation | None = None
    is_contained: bool = False
    """All that it did is in its result."""


_OF_EFFECTS: Final = frozenset(
    cls.__name__ for cls in (TaskOpened, TaskForked, TaskStarted, TaskMoved, ToolStarted, ToolProbed, CompensationFinished, ToolFinished)
)


def effects_of(run_id: RunId, events: Iterable[Recorded], contained: Mapping[Hash, frozenset[str]], *, by_clock: bool = False) -> list[RunEffect]:
    """Read the effects of a run off its events.

    Args:
        events: of all its streams, in the order of the log.
        contained: blob of a setup -> names of the tools in it that reach nothing outside.
        by_clock: place effects by the times of their events, for a run, or beside one, whose positions are those of its return from a file.
    """
    kinds: dict[UUID, str] = {}
    workers: dict[UUID, str] = {}
    inside: dict[UUID, frozenset[str]] = {}
    found: dict[tuple[UUID, str], RunEffect] = {}
    for recorded in events:
        if recorded.type not in _OF_EFFECTS or category(recorded.stream) != "task":
            continue
        event, task_id = recorded.event(), UUID(recorded.stream.removeprefix("task/"))
        place = recorded.occurred_us if by_clock else recorded.position
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
                    run_id=run_id,
                    task_id=TaskId(task_id),
                    kind=kinds.get(task_id, ""),
                    call_id=event.call_id,
                    tool=event.tool,
                    effect=event.effect,
                    key=event.idempotency_key,
                    fingerprint=event.fingerprint,
                    began=place,
                    position=place,
                    worker=workers.get(task_id, ""),
                    compensation=event.compensation,
                    is_contained=event.tool in inside.get(task_id, ()),
                )
            case ToolProbed() | CompensationFinished() | ToolFinished() if (task_id, event.call_id) in found:
                found[task_id, event.call_id] = _later(found[task_id, event.call_id], event, place)
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


class Known(NamedTuple):
    """What is known when a rollback is planned. `undone`: keys of effects that rollbacks have taken back; `kinds`: the agent kinds there are."""

    undone: Collection[str]
    kinds: Collection[str]


def plan_page(run_id: RunId, effects: Iterable[RunEffect], known: Known, *, planned: Collection[str] = ()) -> RollbackPage:
    """Decide what a rollback does next, the last effect first, and what it must leave; as much as one event holds.

    Args:
        run_id: the run that is rolled back.
        effects: of this run and the runs that came from it, in any order.
        planned: keys of the effects that earlier pages are about.
    """
    in_order = sorted(effects, key=lambda effect: effect.began)
    last_undo = {effect.fingerprint: effect.position for effect in in_order if effect.fingerprint and effect.status == "ok"}
    orders: list[UndoOrder] = []
    kinds: list[str] = []
    left: list[LeftEffect] = []
    size, more = 0, 0
    for effect in reversed(in_order):
        undo = effect.compensation
        is_over = effect.status == "error" or effect.key in known.undone or effect.key in planned
        if is_over or (undo is None and effect.is_contained) or (undo is not None and last_undo.get(undo.fingerprint, 0) > effect.position):
            continue
        item = _order(effect, undo) if undo is not None and effect.kind in known.kinds else _left(run_id, effect)
        size += len(msgspec.json.encode(item))
        if size > PAGE_BYTES_MAX:  # what comes before it is for later, also where it would fit: the order counts
            more += 1
        elif isinstance(item, UndoOrder):
            orders.append(item)
            kinds.append(effect.kind)
        else:
            left.append(item)
    return RollbackPage(tuple(orders), tuple(kinds), tuple(left), more)


def wants_more(state: RunState) -> bool:
    """Say whether a rollback is through with what it has, and effects are behind it."""
    rollback = state.rollback
    is_through = state.status == "open" and rollback is not None and len(state.tasks) == len(rollback.orders)
    return is_through and rollback is not None and rollback.is_paged and rollback.more > 0 and not any(task.is_active for task in state.tasks.values())


def planned_keys(rollback: Rollback) -> frozenset[str]:
    """Return the keys of the effects that a rollback is about so far."""
    return frozenset(order.key for order in rollback.orders) | {left.key for left in rollback.left}


def _order(effect: RunEffect, undo: Compensation) -> UndoOrder:
    worker = effect.worker if effect.status == "open" else ""
    return UndoOrder(effect.run_id, effect.task_id, effect.call_id, effect.key, effect.tool, undo.tool, undo.version, undo.arguments, undo.resource, worker)


def _left(run_id: RunId, effect: RunEffect) -> LeftEffect:
    resource = effect.compensation.resource if effect.compensation is not None else ""
    why: Literal["irreversible", "unknown", "no_compensation", "no_agent"] = "no_compensation"
    if effect.compensation is not None:
        why = "no_agent"
    elif effect.status != "ok":
        why = "unknown"
    elif effect.effect == "irreversible":
        why = "irreversible"
    elsewhere = effect.run_id if effect.run_id != run_id else None
    return LeftEffect(effect.task_id, effect.call_id, effect.key, effect.tool, why, resource, elsewhere)


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
        item = {name: getattr(order, name) for name in ("run_id", "task_id", "call_id", "key", "resource")}
        item |= {"tool": order.effect_tool, "undone_with": order.tool}
        if task is not None and task.is_finished:
            done.append(item)
        elif task is not None and not task.is_active:
            failed.append(item | {"error": task.error.message if task.error is not None else ""})
    shown: dict[str, Any] = {"undone": done[:REPORTED_MAX], "failed": failed[:REPORTED_MAX], "left": rollback.left[:REPORTED_MAX]}
    counts = {"undone_count": len(done), "failed_count": len(failed), "left_count": len(rollback.left)}
    return {"run_id": rollback.run_id, "number": rollback.number, **shown, **counts, "more": rollback.more}


def rollback_text(state: RunState) -> str:
    """Say for people what was taken back and what was not, with the ids by which it is found."""
    rollback = state.rollback
    assert rollback is not None
    done: list[str] = []
    rest: list[str] = []
    for order, task in _carried_out(state):
        named = _named(order.effect_tool, order.resource, _place(rollback, order.run_id, order.task_id), order.call_id, order.key)
        if task is not None and task.is_finished:
            done.append(named)
        else:
            why = shorten(task.error.message, DETAIL_CHARS_MAX) if task is not None and task.error is not None else "nobody got to it"
            rest.append(f"{named}: {why}")
    for left in rollback.left:
        place = _place(rollback, left.run_id or rollback.run_id, left.task_id)
        rest.append(f"{_named(left.tool, left.resource, place, left.call_id, left.key)}: {_WHY[left.why]}")
    lines = [f"Rollback {rollback.number} of run {rollback.run_id} ({rollback.reason}): {len(done)} taken back, {len(rest)} not."]
    lines += _listed("Taken back:", done) + _listed("Not taken back:", rest)
    if rollback.more:
        lines += ["", f"{rollback.more} more effects did not fit into this rollback: roll the run back again."]
    return "\n".join(lines)


def _listed(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = [f"- and {len(items) - TOLD_MAX} more"] if len(items) > TOLD_MAX else []
    return ["", title, *(f"- {item}" for item in items[:TOLD_MAX]), *more]


_WHY: Final[Mapping[str, str]] = {
    "irreversible": "it is irreversible",
    "unknown": "nobody knows whether it happened, and how to take it back was not recorded",
    "no_compensation": "how to take it back was not recorded",
    "no_agent": "there are no agents of its kind any more",
}


def _named(tool: str, resource: str, place: str, call_id: str, key: str) -> str:
    return f"{tool}{f' {resource}' if resource else ''} ({place}, call {call_id}, key {key})"


def _place(rollback: Rollback, run_id: UUID, task_id: UUID) -> str:
    return f"task {task_id}" if run_id == rollback.run_id else f"run {run_id}, task {task_id}"


def _carried_out(state: RunState) -> list[tuple[UndoOrder, TaskState | None]]:
    assert state.rollback is not None
    return [(order, state.tasks.get(undo_key(n))) for n, order in enumerate(state.rollback.orders, 1)]
