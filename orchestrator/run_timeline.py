"""When what happened in a recorded run: waits in queues and for people, model calls, tool calls. Pure."""

from __future__ import annotations

import msgspec

from crewlog.orchestrator.run_history import RunHistory
from crewlog.orchestrator.run_tree import build_tree
from crewlog.schemas.ids import Stream, task_stream
from crewlog.schemas.run_events import TaskDispatched
from crewlog.schemas.task_events import ApprovalDecided, ApprovalRequested, TaskStarted


class Span(msgspec.Struct, frozen=True):
    """Something that took time. Times are microseconds since the run began; without an end it goes on, or nobody knows of one."""

    what: str
    """`queue`, `person`, `model` or `tool`."""
    name: str
    key: str
    """Key of its task."""
    turn: int
    status: str
    index: int
    started_us: int
    finished_us: int | None
    cost_micro_usd: int | None = 0


def timeline(history: RunHistory) -> list[Span]:
    """List what took time in a run, in the order in which it began."""
    tree = build_tree(history)
    spans = _waits(history)
    for task in tree.tasks:
        spans += [
            Span(call.what, call.name, task.key, call.turn, call.status, call.index, call.started_us, call.finished_us, call.cost_micro_usd)
            for call in task.calls()
            if call.status not in ("asked", "waits", "refused", "skipped")
        ]
    first_us = history.events[0].occurred_us if history.events else 0  # of a fork, what it shares took its time as well
    moved = (_moved(span, first_us) for span in spans)
    return sorted(moved, key=lambda span: (span.started_us, span.index))


def _moved(span: Span, first_us: int) -> Span:
    finished_us = None if span.finished_us is None else span.finished_us - first_us
    return msgspec.structs.replace(span, started_us=span.started_us - first_us, finished_us=finished_us)


def _waits(history: RunHistory) -> list[Span]:
    keys: dict[Stream, str] = {}
    queued: dict[Stream, Span] = {}
    asked: dict[object, Span] = {}
    found: list[Span] = []
    for index, recorded in enumerate(history.events, 1):
        event, now_us = recorded.event(), recorded.occurred_us
        match event:
            case TaskDispatched():
                stream = task_stream(event.task_id)
                keys[stream] = event.key
                queued[stream] = Span("queue", event.kind, event.key, 0, "waits", index, now_us, None)
            case TaskStarted() if recorded.stream in queued:
                found.append(_ended(queued.pop(recorded.stream), "ok", now_us))
            case ApprovalRequested():
                asked[event.approval_id] = Span("person", event.tool, keys.get(recorded.stream, ""), 0, "waits", index, now_us, None)
            case ApprovalDecided() if event.approval_id in asked:
                found.append(_ended(asked.pop(event.approval_id), event.decision, now_us))
            case _:
                pass
    return [*found, *queued.values(), *asked.values()]


def _ended(span: Span, status: str, now_us: int) -> Span:
    return msgspec.structs.replace(span, status=status, finished_us=now_us)
