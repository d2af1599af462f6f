"""Where a run may be forked, and what is under way there. Pure.

A decision of the orchestrator is one append and is shared whole or not at all: a place inside of one means its end. Between the events of an
agent any place will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from crewlog.events.prefix import successors
from crewlog.events.store import Recorded
from crewlog.orchestrator.folds import folded
from crewlog.orchestrator.rederive import OURS
from crewlog.orchestrator.run import RunState, TaskState, active_tasks
from crewlog.orchestrator.run_history import RunHistory
from crewlog.schemas.codec import Unknown
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import Stream, category, task_stream
from crewlog.schemas.task_events import TaskCompleted

_OURS: Final = frozenset(cls.__name__ for cls in OURS)


class ForkPlace(NamedTuple):
    """A place where a run can be forked."""

    at: int
    """Index of the last event that is shared, from 1."""
    position: int
    state: RunState
    parent_version: int
    """Events of the run's own stream that are shared."""
    versions: dict[str, int]
    """Key of each task under way -> events of its own stream that are shared."""


def fork_place(history: RunHistory, index: int) -> ForkPlace:
    """Return the place that an index means.

    Raises:
        ContractError: the run is over there; the message names the last place where it was not. Or what would be shared cannot be folded: an event is
            damaged, or of a type that this program does not know.
    """
    events, end = history.events, _whole(history.events, index)
    _refuse_unfoldable(history, end, lambda stream: category(stream) == "run")
    state = folded(events[:end])
    if state.status != "open":
        raise ContractError(f"run {history.run_id} is over behind event {end} of {len(events)}: fork it at {_last_open(events, end)} or before")
    under_way = {task_stream(task.task_id) for task in active_tasks(state)}
    _refuse_unfoldable(history, end, lambda stream: history.stream_of(stream) in under_way)
    versions = {task.key: _shared_version(events[:end], task) for task in active_tasks(state)}
    own = [r for r in events[:end] if category(r.stream) == "run"]
    return ForkPlace(end, events[end - 1].position, state, own[-1].version, versions)


def _refuse_unfoldable(history: RunHistory, end: int, is_folded: Callable[[Stream], bool]) -> None:
    """Refuse a fork whose beginning nobody could fold: it would come to nothing in its first task."""
    for index, recorded in enumerate(history.events[:end], 1):
        if is_folded(recorded.stream) and (why := _unfoldable(recorded)):
            before = next((at for at in range(index - 1, 0, -1) if _whole(history.events, at) < index), 0)
            way = f"fork it at {before} or before" if before else "no part of it can be forked"
            raise ContractError(f"run {history.run_id} cannot be forked behind event {end}, which would share event {index}: {why}; {way}")


def _unfoldable(recorded: Recorded) -> str:
    try:
        event = recorded.event()
    except ContractError as error:
        return str(error)
    if not isinstance(event, Unknown):
        return ""
    place = f"{recorded.stream} version {recorded.version} at position {recorded.position}"
    return f"{place} is a {recorded.type} v{recorded.schema_version}, unknown to this program"


def _whole(events: Sequence[Recorded], index: int) -> int:
    """Move an index that stands inside of a decision to the end of that."""
    while (
        index < len(events) and _is_decision(events[index - 1]) and _is_decision(events[index]) and _append_of(events[index - 1]) == _append_of(events[index])
    ):
        index += 1
    return index


def _is_decision(recorded: Recorded) -> bool:
    return category(recorded.stream) == "run" or recorded.type in _OURS


def _append_of(recorded: Recorded) -> tuple[object, ...]:
    return recorded.occurred_us, recorded.causation_id, recorded.run_id


def _last_open(events: Sequence[Recorded], end: int) -> int:
    last = max(n for n, recorded in enumerate(events[:end], 1) if recorded.type in ("RunCompleted", "RunFailed", "RunCancelled"))
    while last > 1 and _is_decision(events[last - 2]) and _append_of(events[last - 2]) == _append_of(events[last - 1]):
        last -= 1
    return last - 1


def _shared_version(events: Sequence[Recorded], task: TaskState) -> int:
    """Return how much of a task is shared. Its good end is not: the fork draws the same conclusion again, without asking anybody."""
    last = next(recorded for recorded in reversed(events) if recorded.stream == task_stream(task.task_id))
    return last.version - (last.type == TaskCompleted.__name__)


def own_events(events: Sequence[Recorded], task: TaskState, version: int) -> list[Recorded]:
    """Return the shared events of a task under way, those that it shares itself among them, in their order."""
    stream, follows = task_stream(task.task_id), successors(events)
    return [r for r in events if follows.get(r.stream, r.stream) == stream and _is_shared(r, stream, version)]


def _is_shared(recorded: Recorded, stream: Stream, version: int) -> bool:
    return recorded.stream != stream or recorded.version <= version
