"""What views do not hold: texts under persons' keys, read from the log and put into the rows that people look at.

The read model is folded from what is public, so nothing personal is in it at any time, and SQL shows `[personal]` in its place. Whoever asks
through the client and has the keys gets the texts, or `[erased]` once the key is destroyed. Rows without that mark cost nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final, TypeVar

import msgspec

from crewlog.events.store import EventStore, Recorded
from crewlog.projections.query_rows import ApprovalView, EventView, MemoryView, RunView, TaskView, ToolCallView
from crewlog.schemas.codec import Event, Unknown
from crewlog.schemas.ids import Hash, RunId, Stream, TaskId, memory_stream, run_stream, task_stream
from crewlog.schemas.payload import Payload
from crewlog.schemas.public_form import ERASED, PERSONAL
from crewlog.schemas.run_events import RunCancelled, RunCompleted, RunFailed, RunForked, RunHeld, RunPlanned, RunSubmitted, TaskReviewed
from crewlog.schemas.system_events import MemoryRemembered
from crewlog.schemas.task_events import ApprovalDecided, ApprovalRequested, ModelCallFinished, TaskCompleted, TaskOpened, ToolFinished
from crewlog.schemas.values import Outcome

V = TypeVar("V", bound=msgspec.Struct)

_OF_RUN: Final = (RunSubmitted, RunForked, RunPlanned, TaskReviewed, RunHeld, RunCompleted, RunFailed, RunCancelled)
_OF_TASK: Final = (TaskOpened, TaskCompleted, ModelCallFinished, ToolFinished, ApprovalRequested, ApprovalDecided)


class DisclosedViews:
    """Puts texts into rows of views; `store` opens the log when a row needs it."""

    def __init__(self, store: Callable[[], Awaitable[EventStore]]) -> None:
        self._store = store

    async def __call__(self, rows: list[V]) -> list[V]:
        """Return the rows with their texts."""
        rows = [_marked(row) for row in rows]
        hidden = [row for row in rows if _is_hidden(row)]
        if not hidden:
            return rows
        from crewlog.events.personal_store import PersonalStore

        if not isinstance(store := await self._store(), PersonalStore):
            return rows
        if isinstance(hidden[0], EventView):
            return [await _whole_event(store, row) if _is_hidden(row) else row for row in rows]
        said = await _read(store, hidden)
        return [_with_texts(row, said) if _is_hidden(row) else row for row in rows]


class _Said(msgspec.Struct, frozen=True, dict=True):
    """What the streams of some runs and tasks say: the events of each stream in their order."""

    streams: dict[str, list[Event]]

    def of(self, stream: Stream, *types: type[Event]) -> list[Any]:
        return [event for event in self.streams.get(stream, ()) if isinstance(event, types)]

    @cached_property
    def objectives(self) -> dict[tuple[str, str], str]:
        """Stream of a run and key of a step -> what it is to do, as planned last."""
        return {(stream, s.key): s.objective for stream, events in self.streams.items() for e in events if isinstance(e, RunPlanned) for s in e.steps}


def _marked(row: V) -> V:
    """Say of a row whose run was erased so in what its view reads from the event itself, as the tables say it in their columns. It needs no key."""
    match row:
        case RunView(goal=text, answer=said) if (text, said) == (ERASED, PERSONAL):
            return msgspec.structs.replace(row, answer=ERASED)
        case TaskView(objective=text, outcome=Outcome(summary=said) as outcome) if (text, said) == (ERASED, PERSONAL):
            return msgspec.structs.replace(row, outcome=replace(outcome, summary=ERASED))
        case _:
            return row


def _is_hidden(row: object) -> bool:
    match row:
        case RunView(goal=text) | TaskView(objective=text) | MemoryView(memory=text):
            return text == PERSONAL
        case ApprovalView(reason=text, arguments=arguments):
            return PERSONAL in (text, arguments.inline)
        case ToolCallView(arguments=arguments, result=result):
            return any(payload is not None and payload.inline == PERSONAL for payload in (arguments, result))
        case EventView(data=dict() as data):
            return "personal" in data
        case _:
            return False


async def _read(store: EventStore, rows: Sequence[Any]) -> _Said:
    streams: dict[Stream, int] = {}
    for row in rows:
        if isinstance(row, MemoryView):
            streams[memory_stream(row.tenant, row.user_name or "", Hash(row.content))] = 0
            continue
        if not isinstance(row, ApprovalView | ToolCallView):
            streams[run_stream(RunId(row.run_id))] = 0
        if not isinstance(row, RunView):
            streams[task_stream(TaskId(row.task_id))] = 0
    types = frozenset(cls.__name__ for cls in (*_OF_RUN, *_OF_TASK, MemoryRemembered))
    return _Said(_by_stream(await store.read_streams(streams, types=types)))


def _by_stream(events: Collection[Recorded]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for recorded in events:
        event = recorded.event()
        if not isinstance(event, Unknown):
            found.setdefault(recorded.stream, []).append(event)
    return found


def _with_texts(row: V, said: _Said) -> V:
    match row:
        case RunView():
            changed = _of_run(row, said)
        case TaskView():
            changed = _of_task(row, said)
        case ApprovalView():
            changed = _of_approval(row, said)
        case ToolCallView():
            changed = _of_call(row, said)
        case MemoryView():
            stream = memory_stream(row.tenant, row.user_name or "", Hash(row.content))
            changed = next(({"memory": m.text, "about": m.about} for m in reversed(said.of(stream, MemoryRemembered))), {})
        case _:
            changed = {}
    return msgspec.structs.replace(row, **changed)


def _of_run(row: RunView, said: _Said) -> dict[str, Any]:
    stream = run_stream(RunId(row.run_id))
    begun = said.of(stream, RunSubmitted, RunForked)
    changed: dict[str, Any] = {"goal": begun[0].goal if begun else row.goal}  # it may have been archived just now
    for event in said.of(stream, RunCompleted, RunFailed, RunCancelled, RunHeld)[-1:]:
        match event:
            case RunCompleted(answer=text):
                changed |= {"artifacts": event.artifacts, "citations": event.citations} | _answer(text)
            case RunFailed(partial=text):
                changed |= {"artifacts": event.artifacts, "error": event.error.message} | _answer(text)
            case RunHeld(partial=text) if row.hold is not None:
                changed |= {"artifacts": event.artifacts} | _answer(text)
            case RunCancelled():
                changed |= {"error": f"cancelled by {event.actor}: {event.reason}"}
    return changed


def _answer(text: Payload) -> dict[str, Any]:
    return {"answer": text.inline, "answer_ref": text.ref}


def _of_task(row: TaskView, said: _Said) -> dict[str, Any]:
    run, stream = run_stream(RunId(row.run_id)), task_stream(TaskId(row.task_id))
    opened = [msgspec.json.decode(event.task)["objective"] for event in said.of(stream, TaskOpened)]
    changed: dict[str, Any] = {"objective": opened[0] if opened else said.objectives.get((run, row.key), row.objective)}
    for completed in said.of(stream, TaskCompleted):
        changed |= {"outcome": completed.outcome, "artifacts": completed.outcome.artifacts}
    for review in said.of(run, TaskReviewed):
        if review.task_id == row.task_id:
            changed["issues"] = review.issues
            if review.error is not None:
                changed["error"] = review.error.message
    return changed


def _of_approval(row: ApprovalView, said: _Said) -> dict[str, Any]:
    stream = task_stream(TaskId(row.task_id))
    changed: dict[str, Any] = {}
    for event in said.of(stream, ApprovalRequested, ApprovalDecided):
        if event.approval_id == row.approval_id:
            changed |= {"note": event.note} if isinstance(event, ApprovalDecided) else {"arguments": event.arguments, "reason": event.reason}
    return changed


def _of_call(row: ToolCallView, said: _Said) -> dict[str, Any]:
    stream = task_stream(TaskId(row.task_id))
    asked = [call.arguments for event in said.of(stream, ModelCallFinished) for call in event.tool_calls if call.call_id == row.call_id]
    ended = [event.result for event in said.of(stream, ToolFinished) if event.call_id == row.call_id]
    return {"arguments": asked[-1] if asked else row.arguments, "result": ended[-1] if ended else row.result}


async def _whole_event(store: EventStore, row: V) -> V:
    assert isinstance(row, EventView)
    (recorded,) = (one for one in await store.read_streams({Stream(row.stream): row.version - 1}) if one.version == row.version)
    return msgspec.structs.replace(row, data=msgspec.json.decode(recorded.data))
