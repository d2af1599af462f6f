"""A recorded run as a tree: run > tasks > turns > calls, each with its time and its cost. A pure fold that takes every event as it comes.

Only what stands in the events is needed, no blob. Events of unknown types leave no trace here; they are in the list of events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from crewlog.events.store import Recorded
from crewlog.orchestrator.run_history import RunHistory
from crewlog.schemas.codec import Event, Unknown
from crewlog.schemas.ids import Hash, Stream, task_stream
from crewlog.schemas.payload import Payload
from crewlog.schemas.run_events import (
    ForkedTask,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunForked,
    RunHeld,
    RunReleased,
    RunSubmitted,
    TaskDispatched,
    TaskHeld,
    TaskReviewed,
    TaskSuspended,
)
from crewlog.schemas.task_events import (
    ApprovalRequested,
    AttemptFailed,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallSkipped,
    ModelCallStarted,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskOpened,
    TaskStarted,
    ToolFinished,
    ToolStarted,
)
from crewlog.schemas.values import Outcome

UNDER_WAY: Final = frozenset({"running", "asked", "waits"})
"""States of a call without an end."""


class CallNode(msgspec.Struct, frozen=True):
    """One call of a model or a tool."""

    call_id: str
    what: Literal["model", "tool"]
    name: str
    """The tool, or `<provider>/<model>`."""
    turn: int
    status: str
    """`ok`, `error`, `refused`, `unknown`, `failed`, `skipped`, or that it has no end: `running`, `asked`, `waits` for a person, `lost`."""
    index: int
    """Of its first event."""
    end_index: int | None
    started_us: int
    finished_us: int | None
    latency_ms: int
    cost_micro_usd: int | None
    """0 for a tool; None for a model call that nobody knows the price of."""
    request_hash: Hash | None = None
    input: Payload | None = None
    """Arguments of a tool."""
    output: Payload | None = None
    """What the model said, or the tool's result."""
    asks: tuple[str, ...] = ()
    """Tools that the model asked for."""
    note: str = ""
    """Why there is no answer."""


class TurnNode(msgspec.Struct, frozen=True):
    """One turn: the calls of a model until one was answered, and the tools it asked for."""

    turn: int
    calls: tuple[CallNode, ...]

    @property
    def cost_micro_usd(self) -> int:
        """What its calls cost; those without a price count nothing."""
        return sum(call.cost_micro_usd or 0 for call in self.calls)


class TaskNode(msgspec.Struct, frozen=True):
    """One task."""

    task_id: str
    key: str
    kind: str
    revision: int
    status: str
    """`waiting`, `running`, `suspended`, `held`, `between attempts`, `completed`, `failed`, `cancelled`."""
    verdict: str
    """Of the critic; empty while there is none."""
    attempt: int
    worker: str
    agent_version: str
    """Of the agent that began it."""
    index: int
    opened_us: int
    started_us: int | None
    finished_us: int | None
    cost_micro_usd: int
    unpriced_calls: int
    outcome: Outcome | None
    turns: tuple[TurnNode, ...]

    def calls(self) -> Iterator[CallNode]:
        """List all calls."""
        return (call for turn in self.turns for call in turn.calls)


class RunTree(msgspec.Struct, frozen=True):
    """One run."""

    run_id: str
    goal: str
    status: str
    """`open`, `held` by a budget, `completed`, `failed` or `cancelled`."""
    events: int
    submitted_us: int
    finished_us: int | None
    cost_micro_usd: int
    unpriced_calls: int
    answer: Payload | None
    tasks: tuple[TaskNode, ...]


@dataclass
class _Task:
    """A task in the making."""

    task_id: str
    index: int
    opened_us: int
    key: str = ""
    kind: str = ""
    revision: int = 0
    status: str = "waiting"
    verdict: str = ""
    attempt: int = 0
    worker: str = ""
    agent_version: str = ""
    started_us: int | None = None
    finished_us: int | None = None
    outcome: Outcome | None = None
    calls: dict[tuple[str, str], CallNode] = field(default_factory=dict)
    turn: int = 0


def build_tree(history: RunHistory) -> RunTree:
    """Fold a run, or the beginning of one, into its tree."""
    tasks: dict[Stream, _Task] = {}
    goal, shared, still = "", 0, "open"
    end: RunCompleted | RunFailed | RunCancelled | None = None
    finished_us = None
    for index, (recorded, event) in enumerate(zip(history.events, history.decoded, strict=True), 1):
        match event:
            case RunSubmitted():
                goal = event.goal
            case RunForked():
                goal, shared = event.goal, index - 1
                for fork in event.tasks:
                    _go_on(tasks, fork)
            case RunCompleted() | RunFailed() | RunCancelled():
                end, finished_us = event, recorded.occurred_us
            case RunHeld() | RunReleased():
                still = "held" if isinstance(event, RunHeld) else "open"
            case TaskHeld():
                _of(tasks, task_stream(event.task_id), index, recorded).status = "held"
            case TaskSuspended():
                _of(tasks, task_stream(event.task_id), index, recorded).status = "suspended"
            case TaskDispatched():
                task = _of(tasks, task_stream(event.task_id), index, recorded)
                task.key, task.kind, task.revision, task.attempt = event.key, event.kind, event.revision, event.attempt
            case TaskReviewed():
                _of(tasks, task_stream(event.task_id), index, recorded).verdict = event.verdict
            case _ if recorded.stream.startswith("task/"):
                _fold(_of(tasks, recorded.stream, index, recorded), event, index, recorded.occurred_us)
            case _:
                pass
    nodes = tuple(_node(task) for task in tasks.values())
    return RunTree(
        run_id=str(history.run_id),
        goal=goal,
        status=type(end).__name__.removeprefix("Run").lower() if end else still,
        events=len(history.events),
        submitted_us=history.events[history.first_own - 1].occurred_us if history.events else 0,
        finished_us=finished_us,
        cost_micro_usd=sum(call.cost_micro_usd or 0 for call in _own_calls(nodes, shared)),
        unpriced_calls=sum(call.cost_micro_usd is None for call in _own_calls(nodes, shared)),
        answer=end.answer if isinstance(end, RunCompleted) else end.partial if isinstance(end, RunFailed) else None,
        tasks=nodes,
    )


def _go_on(tasks: dict[Stream, _Task], fork: ForkedTask) -> None:
    """Let the task of a fork take the place of the one it goes on from. What was under way there has no outcome here."""
    task = tasks.pop(task_stream(fork.parent), None)
    if task is None:
        return
    task.task_id, task.status = str(fork.task_id), "waiting"
    _change(task, (key for key, call in task.calls.items() if call.status in UNDER_WAY), status="lost")
    tasks[task_stream(fork.task_id)] = task


def _own_calls(nodes: Iterable[TaskNode], shared: int) -> list[CallNode]:
    """List the calls that were made in this run: what a fork shares was paid for by its parent."""
    return [call for node in nodes for call in node.calls() if call.index > shared]


def _of(tasks: dict[Stream, _Task], stream: Stream, index: int, recorded: Recorded) -> _Task:
    task = tasks.get(stream)
    if task is None:
        task = tasks[stream] = _Task(stream.removeprefix("task/"), index, recorded.occurred_us)
    return task


def _fold(task: _Task, event: Event | Unknown, index: int, now_us: int) -> None:
    match event:
        case TaskOpened():
            task.key, task.kind, task.revision = event.key, event.kind, event.revision
        case TaskStarted():
            task.status, task.worker, task.attempt = "running", event.worker, max(task.attempt, event.attempt)
            task.agent_version = task.agent_version or event.agent_version
            task.started_us = task.started_us or now_us
            # what was under way when the former worker died has no outcome, unless one comes later all the same
            _change(task, (key for key, call in task.calls.items() if call.status == "running"), status="lost")
        case ModelCallStarted():
            name = f"{event.provider}/{event.model}"
            call = CallNode(event.call_id, "model", name, event.turn, "running", index, None, now_us, None, 0, 0, event.request_hash)
            task.calls["model", event.call_id] = call
        case ModelCallSkipped():
            name = f"{event.provider}/{event.model}"
            note = f"{event.reason}: {event.detail}" if event.detail else event.reason
            task.calls["model", event.call_id] = CallNode(event.call_id, "model", name, event.turn, "skipped", index, index, now_us, now_us, 0, 0, note=note)
        case ModelCallFinished():
            _answered(task, event, index, now_us)
        case ModelCallFailed():
            key = _model_key(task, event.call_id)
            ended = {"end_index": index, "finished_us": now_us, "latency_ms": event.latency_ms, "cost_micro_usd": event.price.cost_micro_usd}
            _change(task, key, status="failed", note=f"{event.error.code}: {event.error.message}", **ended)
        case ToolStarted():
            if ("tool", event.call_id) not in task.calls:  # a task of a rollback: no model asked for the call
                task.calls["tool", event.call_id] = CallNode(event.call_id, "tool", event.tool, 0, "asked", index, None, now_us, None, 0, 0)
            _change(task, [("tool", event.call_id)], status="running", started_us=now_us)
        case ApprovalRequested():
            _change(task, [("tool", event.call_id)], status="waits")
        case ToolFinished():
            _change(task, [("tool", event.call_id)], status=event.status, end_index=index, finished_us=now_us, latency_ms=event.latency_ms, output=event.result)
        case AttemptFailed():
            task.status = "between attempts"
        case TaskCompleted():
            task.status, task.finished_us, task.outcome = "completed", now_us, event.outcome
        case TaskFailed() | TaskCancelled():
            task.status, task.finished_us = "failed" if isinstance(event, TaskFailed) else "cancelled", now_us
        case _:
            pass


def _answered(task: _Task, event: ModelCallFinished, index: int, now_us: int) -> None:
    asks = tuple(call.tool for call in event.tool_calls)
    cost = event.price.cost_micro_usd
    ended = {"end_index": index, "finished_us": now_us, "latency_ms": event.latency_ms, "cost_micro_usd": cost, "output": event.text}
    _change(task, _model_key(task, event.call_id), status="ok", asks=asks, **ended)
    for call in event.tool_calls:
        node = CallNode(call.call_id, "tool", call.tool, event.turn, "asked", index, None, now_us, None, 0, 0, input=call.arguments)
        task.calls["tool", call.call_id] = node


def _model_key(task: _Task, call_id: str) -> list[tuple[str, str]]:
    """Find the call that an outcome belongs to; programs of long ago named it by its turn alone."""
    if ("model", call_id) in task.calls:
        return [("model", call_id)]
    return [key for key, call in task.calls.items() if key[0] == "model" and call.end_index is None][-1:]


def _change(task: _Task, keys: Iterable[tuple[str, str]], **changes: object) -> None:
    for key in list(keys):
        if key in task.calls:
            task.calls[key] = msgspec.structs.replace(task.calls[key], **changes)


def _node(task: _Task) -> TaskNode:
    turns: dict[int, list[CallNode]] = {}
    for call in task.calls.values():
        is_lost = task.finished_us is not None and call.status in UNDER_WAY
        turns.setdefault(call.turn, []).append(msgspec.structs.replace(call, status="lost") if is_lost else call)
    calls = [call for turn in turns.values() for call in turn]
    return TaskNode(
        **{name: getattr(task, name) for name in TaskNode.__struct_fields__ if hasattr(task, name) and name not in ("turns", "calls")},
        cost_micro_usd=sum(call.cost_micro_usd or 0 for call in calls),
        unpriced_calls=sum(call.cost_micro_usd is None for call in calls),
        turns=tuple(TurnNode(number, tuple(calls)) for number, calls in turns.items()),
    )
