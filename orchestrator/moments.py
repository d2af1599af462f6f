"""A run behind any of its events: the folded state of the run and of its tasks, the conversation, and what comes next. Pure.

Step through with `moments`; the machines are those that ran it (`run.evolve`, `agents.task_state.evolve`, `agents.turn.next_step`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from crewlog.agents.recorded_task import Conversation, advance, conversation, pending_step
from crewlog.agents.task_state import TaskState, initial_state
from crewlog.events.store import Recorded
from crewlog.orchestrator.report import run_report
from crewlog.orchestrator.run import RunState, evolve
from crewlog.orchestrator.run import initial_state as initial_run
from crewlog.orchestrator.run_history import RunHistory
from crewlog.schemas.ids import Stream, TaskId, category, task_stream
from crewlog.schemas.run_events import RunEvent, RunForked
from crewlog.schemas.task_events import TaskOpened


class Moment(msgspec.Struct, frozen=True):
    """What was known behind one event."""

    index: int
    recorded: Recorded
    run: RunState
    tasks: Mapping[Stream, TaskState]
    keys: Mapping[Stream, str]


def moments(history: RunHistory) -> Iterator[Moment]:
    """Step through a run event by event. The mappings of a moment go on with the next one: take what you need before you ask for it."""
    run = initial_run()
    tasks: dict[Stream, TaskState] = {}
    keys: dict[Stream, str] = {}
    for index, recorded in enumerate(history.events, 1):
        event = recorded.event()
        if isinstance(event, RunEvent):
            run = evolve(run, event)
            if isinstance(event, RunForked):
                _go_on(event, tasks, keys)
        elif category(recorded.stream) == "task":
            tasks[recorded.stream] = advance(tasks.get(recorded.stream) or initial_state(), recorded)
            if isinstance(event, TaskOpened):
                keys[recorded.stream] = event.key
        yield Moment(index, recorded, run, tasks, keys)


def _go_on(event: RunForked, tasks: dict[Stream, TaskState], keys: dict[Stream, str]) -> None:
    """Let the tasks of a fork take the place of those they go on from."""
    for fork in event.tasks:
        parent, own = task_stream(fork.parent), task_stream(fork.task_id)
        if parent in tasks:
            tasks[own], keys[own] = tasks.pop(parent), keys.pop(parent, fork.key)


def moment_at(history: RunHistory, index: int) -> Moment:
    """Return what was known behind the event with this index, from 1."""
    *_, last = moments(history.until(index))
    return last


def stream_of(moment: Moment) -> Stream | None:
    """Return the stream of the task that the event is about; None when it is about the run alone."""
    if category(moment.recorded.stream) == "task":
        return moment.recorded.stream
    task_id: TaskId | None = getattr(moment.recorded.event(), "task_id", None)
    stream = task_stream(task_id) if task_id is not None else None
    return stream if stream in moment.tasks else None


def conversation_at(history: RunHistory, moment: Moment, *, with_reasoning: bool = False) -> Conversation | None:
    """Return the conversation of the task that the event is about, as it was then."""
    stream = stream_of(moment)
    if stream is None:
        return None
    events = [recorded for recorded in history.events[: moment.index] if history.stream_of(recorded.stream) == history.stream_of(stream)]
    return conversation(events, history.read, with_reasoning=with_reasoning)


def pending(history: RunHistory, state: TaskState) -> dict[str, Any]:
    """Describe the step that follows in a task: its name and what it consists of."""
    if state.phase == "working" and state.asking is not None and not state.asking.is_lost:
        waits_for = " or ".join(f"{call.provider}/{call.model}" for call in (state.asking, state.hedge) if call is not None)
        return {"step": "Answer", "call_id": state.asking.call_id, "turn": state.asking.turn, "of": waits_for}
    if running := [call.call.call_id for call in state.calls if call.status == "running"]:
        return {"step": "Results", "calls": running}
    step = pending_step(state, history.read)
    return {"step": type(step).__name__, **{name: plain(getattr(step, name)) for name in step.__struct_fields__}}


def describe_moment(history: RunHistory, moment: Moment) -> dict[str, Any]:
    """Describe a moment as JSON: the run as `runs.get` reports it, its tasks with the step that follows in each, and the one it is about."""
    stream = stream_of(moment)
    task = None if stream is None else moment.tasks[stream]
    return {
        "index": moment.index,
        "of": len(history.events),
        "run": None if moment.run.status == "new" else plain(run_report(moment.run)),
        "tasks": [_brief(history, moment, name) for name in moment.tasks],
        "task": None if stream is None or task is None else {**_brief(history, moment, stream), "state": _state(task)},
    }


def _brief(history: RunHistory, moment: Moment, stream: Stream) -> dict[str, Any]:
    state = moment.tasks[stream]
    return {
        "task_id": stream.removeprefix("task/"),
        "key": moment.keys.get(stream, ""),
        "version": state.version,
        "phase": state.phase,
        "attempt": state.attempt,
        "turn": state.turn,
        "cost_micro_usd": state.cost_micro_usd,
        "next": pending(history, state),
    }


_TOLD_ELSEWHERE = frozenset({"task", "setup", "opening", "exchanges"})


def _state(state: TaskState) -> dict[str, Any]:
    return {name: plain(getattr(state, name)) for name in state.__struct_fields__ if name not in _TOLD_ELSEWHERE}


def plain(value: Any) -> Any:
    """Turn a value of a state into what JSON knows."""
    return msgspec.to_builtins(value, str_keys=True, enc_hook=_builtin)


def _builtin(value: Any) -> Any:
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is nothing that a state holds")
