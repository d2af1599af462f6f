"""Where two recorded runs differ: the first step that differs, then step by step. Pure.

Steps are aligned by the key of their task, its revision, the turn and the call; ids of runs and tasks, and times, are no difference. A step
differs in what was asked (`request`), what was called (`name`, `input`), what came of it (`status`, `output`, `asks`) or its `cost`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from crewlog.agents.recorded_task import asked_request, folded
from crewlog.orchestrator.run_history import RunHistory
from crewlog.orchestrator.run_tree import CallNode, RunTree, TaskNode, build_tree
from crewlog.schemas.blocks import ModelRequest
from crewlog.schemas.errors import ContractError
from crewlog.schemas.task_events import ModelCallStarted

FIELDS: Final = ("request", "name", "input", "status", "output", "asks", "cost")


class Side(msgspec.Struct, frozen=True):
    """One step as it was in one of the runs. Texts are told where the step differs."""

    index: int
    name: str
    status: str
    cost_micro_usd: int | None
    latency_ms: int
    asks: tuple[str, ...]
    request_hash: str | None
    input: str | None
    output: str | None


class StepDiff(msgspec.Struct, frozen=True):
    """One call of both runs, or of one of them. `differs` is empty when both are the same."""

    key: str
    revision: int
    turn: int
    call_id: str
    what: str
    differs: tuple[str, ...]
    """Names of `FIELDS`; `only in a` or `only in b` when the other run has no such step."""
    a: Side | None
    b: Side | None


class TaskDiff(msgspec.Struct, frozen=True):
    """One task of both runs, or of one: status, verdict, attempt, cost and seconds from its start to its end, of each."""

    key: str
    revision: int
    a: dict[str, Any] | None
    b: dict[str, Any] | None


class Saw(msgspec.Struct, frozen=True):
    """The first part of a model request that differs, such as `messages[2]`, as both models saw it; None where there is none."""

    where: str
    a: Any
    b: Any


class RunDiff(msgspec.Struct, frozen=True):
    """Two runs beside each other. `first` is the place in `steps` of the earliest difference."""

    is_identical: bool
    a: dict[str, Any]
    b: dict[str, Any]
    differs: tuple[str, ...]
    """What differs of the runs as wholes: `status`, `answer`, `tasks`."""
    first: int | None
    saw: Saw | None
    """Set when the first difference is in what a model was asked."""
    tasks: tuple[TaskDiff, ...]
    steps: tuple[StepDiff, ...]


_Key = tuple[str, int, int, str, str]


def diff_runs(a: RunHistory, b: RunHistory) -> RunDiff:
    """Compare two runs, or two beginnings of runs; their texts must be there."""
    trees = build_tree(a), build_tree(b)
    steps = tuple(_steps(a, b, *trees))
    differing = [n for n, step in enumerate(steps) if step.differs]
    first = min(differing, key=lambda n: min(side.index for side in (steps[n].a, steps[n].b) if side is not None), default=None)
    tasks = tuple(_tasks(*trees))
    answers = [None if tree.answer is None else history.shown(tree.answer) for history, tree in ((a, trees[0]), (b, trees[1]))]
    whole = {"status": trees[0].status != trees[1].status, "answer": answers[0] != answers[1], "tasks": any(map(task_differences, tasks))}
    differs = tuple(name for name, is_different in whole.items() if is_different)
    return RunDiff(
        is_identical=first is None and not differs,
        a=_brief(trees[0], answers[0]),
        b=_brief(trees[1], answers[1]),
        differs=differs,
        first=first,
        saw=None if first is None else _saw(a, b, steps, steps[first]),
        tasks=tasks,
        steps=steps,
    )


def _brief(tree: RunTree, answer: str | None) -> dict[str, Any]:
    fields = ("run_id", "goal", "status", "events", "cost_micro_usd", "unpriced_calls")
    took = None if tree.finished_us is None else (tree.finished_us - tree.submitted_us) / 1e6
    return {**{name: getattr(tree, name) for name in fields}, "took_s": took, "answer": answer}


def _by_key(tree: RunTree) -> dict[_Key, CallNode]:
    return {(task.key, task.revision, call.turn, call.what, call.call_id): call for task in tree.tasks for call in task.calls()}


def _steps(a: RunHistory, b: RunHistory, tree_a: RunTree, tree_b: RunTree) -> Iterator[StepDiff]:
    ours, theirs = _by_key(tree_a), _by_key(tree_b)
    tasks = list(dict.fromkeys((*((k[0], k[1]) for k in ours), *((k[0], k[1]) for k in theirs))))
    places = {task: n for n, task in enumerate(tasks)}
    order = {key: n for n, key in enumerate(dict.fromkeys((*ours, *theirs)))}
    for key in sorted(order, key=lambda k: (places[k[0], k[1]], k[2], order[k])):
        one, other = ours.get(key), theirs.get(key)
        differs = _differs(a, b, one, other)
        task, revision, turn, what, call_id = key
        sides = (None if call is None else _side(history, call, is_told=bool(differs)) for history, call in ((a, one), (b, other)))
        yield StepDiff(task, revision, turn, call_id, what, differs, *sides)


def _differs(a: RunHistory, b: RunHistory, one: CallNode | None, other: CallNode | None) -> tuple[str, ...]:
    if one is None or other is None:
        return ("only in b" if one is None else "only in a",)
    pairs = zip(FIELDS, _compared(a, one), _compared(b, other), strict=True)
    return tuple(name for name, ours, theirs in pairs if ours != theirs)


def _compared(history: RunHistory, call: CallNode) -> tuple[Any, ...]:
    texts = (None if payload is None else history.shown(payload) for payload in (call.input, call.output))
    arguments, output = texts
    return call.request_hash, call.name, arguments, call.status, output, call.asks, call.cost_micro_usd


def _side(history: RunHistory, call: CallNode, *, is_told: bool) -> Side:
    texts = (history.shown(payload) if payload is not None and is_told else None for payload in (call.input, call.output))
    return Side(call.index, call.name, call.status, call.cost_micro_usd, call.latency_ms, call.asks, call.request_hash, *texts)


def _tasks(tree_a: RunTree, tree_b: RunTree) -> Iterator[TaskDiff]:
    ours, theirs = ({(task.key, task.revision): task for task in tree.tasks} for tree in (tree_a, tree_b))
    for key, revision in dict.fromkeys((*ours, *theirs)):
        yield TaskDiff(key, revision, _task(ours.get((key, revision))), _task(theirs.get((key, revision))))


def _task(task: TaskNode | None) -> dict[str, Any] | None:
    if task is None:
        return None
    took = None if task.finished_us is None or task.started_us is None else (task.finished_us - task.started_us) / 1e6
    fields = ("kind", "agent_version", "status", "verdict", "attempt", "cost_micro_usd", "unpriced_calls")
    return {**{name: getattr(task, name) for name in fields}, "took_s": took}


def task_differences(task: TaskDiff) -> tuple[str, ...]:
    """Name what differs of a task: its fields, or that one of the runs does not have it. How long it took is no difference."""
    if task.a is None or task.b is None:
        return ("only in b" if task.a is None else "only in a",)
    return tuple(name for name in task.a if name != "took_s" and task.a[name] != task.b[name])


def _saw(a: RunHistory, b: RunHistory, steps: Sequence[StepDiff], first: StepDiff) -> Saw | None:
    if "request" not in first.differs or first.a is None or first.b is None:
        return None
    asked = _asked(steps, first)
    if asked is None:
        return None
    try:
        ours, theirs = _request(a, asked[0].index), _request(b, asked[1].index)
    except ContractError:  # a blob is missing: that the requests differ is known all the same
        return None
    return None if ours is None or theirs is None else request_difference(ours, theirs)


def _asked(steps: Sequence[StepDiff], first: StepDiff) -> tuple[Side, Side] | None:
    """Return the calls whose requests are held against each other: those of the first step that differs, unless one of these was skipped and asked
    nobody. Then calls of the same turn are taken, if there are any of one model."""
    turn = [step for step in steps if (step.key, step.revision, step.turn) == (first.key, first.revision, first.turn)]
    pairs = [(first.a, first.b), *((ours.a, theirs.b) for ours in turn for theirs in turn)]
    both = [(a, b) for a, b in pairs if a is not None and b is not None and a.request_hash is not None and b.request_hash is not None]
    return next(((a, b) for a, b in both if (a, b) == pairs[0] or a.name == b.name), None)


def _request(history: RunHistory, index: int) -> ModelRequest | None:
    recorded = history.events[index - 1]
    event = recorded.event()
    if not isinstance(event, ModelCallStarted):
        return None
    return asked_request(folded(history.in_front(recorded)), event, history.read)


def request_difference(a: ModelRequest, b: ModelRequest) -> Saw | None:
    """Find the first part in which two requests differ; None when they are the same."""
    for name in ("model", "system", "max_tokens", "output", "effort"):
        if getattr(a, name) != getattr(b, name):
            return Saw(name, msgspec.to_builtins(getattr(a, name)), msgspec.to_builtins(getattr(b, name)))
    for name in ("tools", "messages"):
        ours, theirs = getattr(a, name), getattr(b, name)
        for n in range(max(len(ours), len(theirs))):
            one, other = (items[n] if n < len(items) else None for items in (ours, theirs))
            if one != other:
                return Saw(f"{name}[{n}]", _told(one), _told(other))
    return None


def _told(part: Any) -> Any:
    """Return a tool or message as JSON. What its provider wrote itself is left out: it may hold reasoning."""
    if part is None:
        return None
    return msgspec.to_builtins(msgspec.structs.replace(part, native=None) if hasattr(part, "native") else part)
