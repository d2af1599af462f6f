"""The turn machine: what an agent does next, as pure functions over the events of one task.

    state = fold(evolve, events)        step = next_step(state, setup)        shell performs the step and records what happened

The same three lines run a task live, resume it after a crash, replay it for debugging and fork it. Nothing here waits, reads a
clock or knows a provider.

    opened ── TaskStarted ──▶ working ── TaskCompleted ──▶ ended
                               │  ▲ ▲                         ▲
               every open call │  │ └── TaskStarted ── between attempts ── TaskFailed
               waits: suspended┘  └── ApprovalDecided         (AttemptFailed)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, assert_never

import msgspec
from msgspec.structs import replace

from crewlog.agents.setup import Setup
from crewlog.schemas.ids import ApprovalId, Hash, TaskId, derived_approval_id
from crewlog.schemas.payload import Payload, content_hash
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    AttemptFailed,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallStarted,
    TaskCancelled,
    TaskCompleted,
    TaskEvent,
    TaskFailed,
    TaskOpened,
    TaskStarted,
    ToolCall,
    ToolFinished,
    ToolStarted,
)
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import SUMMARY_CHARS_MAX, ArtifactRef, Failure, Outcome, Trust

NUDGES_MAX = 1

CallStatus = Literal["new", "running", "interrupted", "asked", "approved", "denied", "done"]


class Call(msgspec.Struct, frozen=True):
    """One tool call of the current turn. `interrupted`: a worker died between intent and outcome."""

    call: ToolCall
    status: CallStatus = "new"
    approval_id: ApprovalId | None = None
    digest: Hash | None = None
    note: str = ""
    """Who denied the call and why."""
    asks: int = 0
    """How often a person was asked about it."""
    may_have_happened: bool = False
    """A worker died while it ran."""


class Result(msgspec.Struct, frozen=True):
    """What the model is told about one call."""

    call_id: str
    tool: str
    content: Payload
    is_error: bool


class Exchange(msgspec.Struct, frozen=True):
    """One finished turn: what the model said, and the results of its calls in their order."""

    text: Payload
    calls: tuple[ToolCall, ...]
    results: tuple[Result, ...] = ()


class TaskState(msgspec.Struct, frozen=True):
    """Everything known about one task. `version` is the version of its stream."""

    version: int = 0
    task: AgentTask | None = None
    phase: Literal["absent", "opened", "working", "between_attempts", "ended"] = "absent"
    attempt: int = 0
    worker: str = ""
    simulated: bool = False
    model: str = ""
    setup: Payload | None = None
    opening: Payload | None = None
    turn: int = 0
    """Model calls answered so far."""
    tries: int = 0
    """Model calls begun in this turn."""
    exchanges: tuple[Exchange, ...] = ()
    calls: tuple[Call, ...] = ()
    """Calls of the last exchange; empty once the model has been told their results."""
    stop: str = ""
    outcome: Outcome | None = None
    failure: Failure | None = None
    usage: Usage = Usage()
    cost_micro_usd: int = 0
    unpriced_calls: int = 0
    tool_calls: int = 0
    started: tuple[str, ...] = ()
    """Tools of all calls that were started, in order."""
    nudges: int = 0
    artifacts: tuple[ArtifactRef, ...] = ()
    trust: Trust = "trusted"


class Start(msgspec.Struct, frozen=True):
    """Record that this worker has the task."""


class AskModel(msgspec.Struct, frozen=True):
    """Call the model with the conversation so far."""

    call_id: str
    turn: int


class RunCalls(msgspec.Struct, frozen=True):
    """Check, and then run, ask about, or refuse these calls."""

    calls: tuple[Call, ...]


class Wait(msgspec.Struct, frozen=True):
    """A person must decide; nothing holds the task meanwhile."""

    approvals: tuple[ApprovalId, ...]


class Finish(msgspec.Struct, frozen=True):
    """The task is done."""

    outcome: Outcome


class Fail(msgspec.Struct, frozen=True):
    """This attempt is over."""

    failure: Failure


class Done(msgspec.Struct, frozen=True):
    """Nothing to do here: the stream or this attempt has its end, or a call is running."""


Step = Start | AskModel | RunCalls | Wait | Finish | Fail | Done


def initial_state() -> TaskState:
    """Return the state of a task nobody opened."""
    return TaskState()


def opened_state(task: AgentTask) -> TaskState:
    """Return the state behind `TaskOpened`, the first event of every task stream."""
    return TaskState(version=1, task=task, phase="opened", trust=_joined(item.outcome.trust for item in task.context))


def evolve(state: TaskState, event: TaskEvent) -> TaskState:
    """Apply one fact. The most frequent ones come first: a replay goes through here for every event of the log."""
    version = state.version + 1
    match event:
        case ToolStarted():
            calls = _updated(state.calls, event.call_id, lambda c: replace(c, status="running"))
            return replace(state, version=version, calls=calls, started=(*state.started, event.tool))
        case ToolFinished():
            return _tool_finished(state, event, version)
        case ModelCallStarted():
            return replace(state, version=version, tries=state.tries + 1)
        case ModelCallFinished():
            return _answered(state, event, version)
        case TaskOpened():
            return opened_state(AgentTask.model_validate_json(bytes(event.task)))
        case TaskStarted():
            return _started(state, event, version)
        case TaskCompleted():
            return replace(state, version=version, phase="ended", outcome=event.outcome)
        case ModelCallFailed():
            return replace(state, version=version, failure=event.error, **_charge(state, event.price.cost_micro_usd))
        case ApprovalRequested():
            asked = _updated(
                state.calls, event.call_id, lambda c: replace(c, status="asked", approval_id=event.approval_id, digest=event.digest, asks=c.asks + 1)
            )
            return replace(state, version=version, calls=asked)
        case ApprovalDecided():
            status: CallStatus = "approved" if event.decision == "approved" else "denied"
            note = f"{event.decision} by {event.actor}" + (f": {event.note}" if event.note else "")
            return replace(state, version=version, calls=_updated(state.calls, event.call_id, lambda c: replace(c, status=status, note=note)))
        case AttemptFailed():
            return replace(state, version=version, phase="between_attempts", failure=event.error, attempt=event.attempt)
        case TaskFailed() | TaskCancelled():
            return replace(state, version=version, phase="ended")
        case _:
            raise TypeError(f"{type(event).__name__} is not an event of a task stream")


def next_step(state: TaskState, setup: Setup | None) -> Step:
    """Decide what comes next. `setup` is None until the task was started."""
    match state.phase:
        case "absent" | "ended" | "between_attempts":
            return Done()
        case "opened":
            return Start()
        case "working":
            assert setup is not None
            return _next_while_working(state, setup)
        case _:
            assert_never(state.phase)


def _next_while_working(state: TaskState, setup: Setup) -> Step:
    task = state.task
    assert task is not None
    if state.failure is not None:
        return Fail(state.failure)
    if state.outcome is not None:
        return Finish(_finished(state, state.outcome))
    if state.stop == "refusal":
        return Fail(Failure("model_content_filter", "the model refused to answer; rephrase the objective"))
    if state.stop == "max_tokens":
        return Fail(Failure("model_truncated", f"the answer was cut at {setup.max_tokens} tokens; ask for less in one task"))
    open_calls = tuple(c for c in state.calls if c.status in ("new", "interrupted", "approved", "denied"))
    if open_calls and state.tool_calls > task.limits.tool_calls_max:
        return Fail(Failure("limit", f"limit tool_calls_max reached: the model asked for {state.tool_calls} calls, {task.limits.tool_calls_max} are allowed"))
    if open_calls:
        return RunCalls(open_calls)
    if any(c.status == "running" for c in state.calls):
        return Done()
    if waiting := tuple(c.approval_id for c in state.calls if c.status == "asked" and c.approval_id):
        return Wait(waiting)
    last = state.exchanges[-1] if state.exchanges else None
    if last is not None and not last.calls and (not setup.nudge or state.nudges > NUDGES_MAX):
        return Finish(_finished(state, Outcome(summary=last.text.inline or "", artifacts=state.artifacts, flags=("plain_answer",) if setup.nudge else ())))
    if limit := _limit_reached(state, task):
        return Fail(limit)
    return AskModel(f"m{state.turn + 1}-{state.tries + 1}", state.turn + 1)


def _limit_reached(state: TaskState, task: AgentTask) -> Failure | None:
    if state.turn >= task.limits.turns_max:
        return Failure("limit", f"limit turns_max reached: {state.turn} of {task.limits.turns_max} model turns without a result")
    hard = task.budget.hard_micro_usd
    if hard is not None and state.cost_micro_usd > 0 and state.cost_micro_usd >= hard:
        return Failure("budget", f"budget reached: {state.cost_micro_usd} of {hard} micro-USD spent on this task")
    return None


def approval_of(state: TaskState, call: Call) -> ApprovalId:
    """Name the approval that `call` would ask for next: asking again after a decision is a new question."""
    assert state.task is not None
    return derived_approval_id(TaskId(state.task.task_id), call_id=f"{call.call.call_id}/{call.asks}")


def digest_of(state: TaskState, setup: Setup, call: Call) -> Hash:
    """Bind a permit to what may be done with it: tool, version, arguments, agent kind, task and run."""
    assert state.task is not None
    tool = setup.tool(call.call.tool)
    parts = [call.call.tool, tool.version if tool else "", setup.kind, str(state.task.run_id), str(state.task.task_id)]
    return content_hash(msgspec.json.encode([*parts, msgspec.to_builtins(call.call.arguments)]))


def _started(state: TaskState, event: TaskStarted, version: int) -> TaskState:
    # what ran when the former worker died has an intent and no outcome
    calls = tuple(replace(c, status="interrupted", may_have_happened=True) if c.status == "running" else c for c in state.calls)
    return replace(
        state,
        version=version,
        phase="working",
        worker=event.worker,
        attempt=event.attempt,
        model=event.model,
        simulated=event.simulated,
        setup=event.setup,
        opening=event.opening,
        calls=calls,
        failure=None,
    )


def _answered(state: TaskState, event: ModelCallFinished, version: int) -> TaskState:
    return replace(
        state,
        version=version,
        turn=event.turn,
        tries=0,
        stop=event.stop,
        usage=state.usage + event.usage,
        exchanges=(*state.exchanges, Exchange(event.text, event.tool_calls)),
        calls=tuple([Call(c) for c in event.tool_calls]),
        nudges=state.nudges + (not event.tool_calls),
        tool_calls=state.tool_calls + len(event.tool_calls),
        **_charge(state, event.price.cost_micro_usd),
    )


def _charge(state: TaskState, cost_micro_usd: int | None) -> dict[str, int]:
    if cost_micro_usd is None:
        return {"unpriced_calls": state.unpriced_calls + 1}
    return {"cost_micro_usd": state.cost_micro_usd + cost_micro_usd}


def _tool_finished(state: TaskState, event: ToolFinished, version: int) -> TaskState:
    last = state.exchanges[-1]
    results = (*last.results, Result(event.call_id, event.tool, event.result, event.status != "ok"))
    if len(results) > 1:  # the model is told results in the order of its calls
        order = {call.call_id: n for n, call in enumerate(last.calls)}
        results = tuple(sorted(results, key=lambda r: order[r.call_id]))
    return replace(
        state,
        version=version,
        calls=_updated(state.calls, event.call_id, lambda c: replace(c, status="done")),
        exchanges=(*state.exchanges[:-1], Exchange(last.text, last.calls, results)),
        artifacts=(*state.artifacts, *event.artifacts) if event.artifacts else state.artifacts,
        outcome=event.outcome if event.status == "ok" and event.outcome is not None else state.outcome,
        trust="untrusted" if event.trust == "untrusted" else state.trust,
    )


def _updated(calls: tuple[Call, ...], call_id: str, change: Callable[[Call], Call]) -> tuple[Call, ...]:
    return tuple([change(c) if c.call.call_id == call_id else c for c in calls])


def _finished(state: TaskState, outcome: Outcome) -> Outcome:
    flags = tuple(dict.fromkeys([*outcome.flags, *(("simulated",) if state.simulated else ())]))
    return Outcome(
        summary=outcome.summary[:SUMMARY_CHARS_MAX],
        output=outcome.output,
        artifacts=outcome.artifacts,
        citations=outcome.citations,
        flags=flags,
        trust=_joined((outcome.trust, state.trust)),
    )


def _joined(labels: Iterable[Trust]) -> Trust:
    return "untrusted" if "untrusted" in labels else "trusted"
