"""What is known of one task: its state, and `evolve`, which applies one fact to it.

    state = fold(evolve, events)        step = next_step(state, setup)        shell performs the step and records what happened

The same fold serves a live worker, one that takes over after a crash, and a replay. Nothing here decides (see `turn`), waits, reads a
clock or knows a provider.

    opened ── TaskStarted ──▶ working ── TaskCompleted ──▶ ended
                               │  ▲ ▲                         ▲
               every open call │  │ └── TaskStarted ── between attempts ── TaskFailed
               waits: suspended┘  └── ApprovalDecided         (AttemptFailed)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from crewlog.agents.chain import CONTENT_FILTER, CONTEXT_LENGTH, HEDGE_LOST, Tried
from crewlog.agents.task_fork import forked_state
from crewlog.agents.undo import undo_call
from crewlog.schemas.effects import Compensation
from crewlog.schemas.ids import ApprovalId, Hash
from crewlog.schemas.payload import EMPTY, Payload
from crewlog.schemas.task import AgentTask, read_task
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    AttemptFailed,
    BudgetWarned,
    CallPurpose,
    CompensationFinished,
    CompensationStarted,
    ContextCompacted,
    Link,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallSkipped,
    ModelCallStarted,
    Nudged,
    TaskCancelled,
    TaskCompleted,
    TaskEvent,
    TaskFailed,
    TaskForked,
    TaskHandedBack,
    TaskMoved,
    TaskOpened,
    TaskStarted,
    ToolCall,
    ToolFinished,
    ToolInDoubt,
    ToolProbed,
    ToolStarted,
)
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import ArtifactRef, Failure, Outcome, Trust

COUNTS_KEPT: Final = 5
"""Calls whose estimate is remembered beside what the provider counted."""

CallStatus = Literal["new", "running", "interrupted", "asked", "approved", "denied", "happened", "done"]


class Call(msgspec.Struct, frozen=True):
    """One tool call of the current turn. `interrupted`: it has an intent and no outcome, because a worker died or nobody answered it.
    `happened`: a person says so."""

    call: ToolCall
    status: CallStatus = "new"
    approval_id: ApprovalId | None = None
    digest: Hash | None = None
    note: str = ""
    """Who denied the call and why."""
    asks: int = 0
    """How often a person was asked about it."""
    starts: int = 0
    """How often it was started."""
    may_have_happened: bool = False
    """It ran and has no outcome."""
    doubt: str = ""
    """Why it has none, when no worker died."""
    fingerprint: Hash = Hash("")
    """What it asks for, once it has begun."""
    compensation: Compensation | None = None
    """How to take it back."""
    probed: ToolProbed | None = None
    """What its probe found since it was interrupted."""
    undoing: Literal["", "running", "ok", "error"] = ""
    """How far it is with being taken back since it was interrupted."""


class Result(msgspec.Struct, frozen=True):
    """What the model is told about one call."""

    call_id: str
    tool: str
    content: Payload
    is_error: bool
    trust: Trust = "trusted"
    shown: str = ""
    """What the model is shown in place of the content, once that was left out to make room."""


class Exchange(msgspec.Struct, frozen=True):
    """One finished turn: what the model said, and the results of its calls in their order."""

    text: Payload
    calls: tuple[ToolCall, ...]
    results: tuple[Result, ...] = ()
    said: str = ""
    """What the model is told behind the results: a nudge."""
    text_shown: str = ""
    """What is shown in place of the text, once that was left out to make room."""
    is_compacted: bool = False
    """Something of it was left out."""
    native: Payload | None = None
    """What the provider itself wrote; for `wire` and `model` only."""
    wire: str = ""
    model: str = ""
    """The model that was asked, by the name it was asked for."""
    purpose: CallPurpose = "turn"
    problems: tuple[str, ...] = ()
    """What keeps a structured answer from satisfying the schema."""
    is_paused: bool = False
    """The provider wants to be called again with what it has said so far."""


class Count(msgspec.Struct, frozen=True):
    """Input tokens of one call: estimated before it, counted by its provider."""

    provider: str
    model: str
    estimated: int
    counted: int


class Asking(msgspec.Struct, frozen=True):
    """A model call that was begun. `is_lost`: its worker died before the answer was recorded, so nobody knows what it cost."""

    call_id: str
    turn: int
    wire: str
    provider: str
    model: str
    link: int
    """Its place in the chain; -1: the chain is another one by now."""
    reserved_micro_usd: int
    purpose: CallPurpose
    is_lost: bool = False
    was_hedged: bool = False
    """A second call was made beside it, or could not be; or it is the second one. There is never a third."""


class TaskState(msgspec.Struct, frozen=True):
    """Everything known about one task. `version` is the version of its stream."""

    version: int = 0
    task: AgentTask | None = None
    phase: Literal["absent", "opened", "working", "between_attempts", "ended"] = "absent"
    attempt: int = 0
    worker: str = ""
    deadline_us: int = 0
    """When the attempt ends; 0: the next worker to take the task gives it its time."""
    handed_back: int = 0
    """How often a worker gave it back between two steps."""
    simulated: bool = False
    model: str = ""
    setup: Payload | None = None
    opening: Payload | None = None
    chain: tuple[Link, ...] = ()
    """The models that may be asked; never empty once the task was started."""
    falls_back: bool = False
    """A failed call is followed by another one, as the chain says; False: it ends the attempt."""
    refusals_fall_through: bool = False
    hedge_after_s: float | None = None
    """When a second model may be asked beside one that is slow with a structured answer, in seconds; None: never."""
    first_link: int = 0
    """Where the chain begins since a budget's soft limit was reached."""
    warned: tuple[str, ...] = ()
    """Budgets that were found to be over their soft limit."""
    asking: Asking | None = None
    hedge: Asking | None = None
    """A second call, made beside `asking`; once that has failed it takes its place."""
    tried: tuple[Tried, ...] = ()
    """Calls of this turn and attempt without an answer; those that found the conversation too long stay, as it only grows."""
    turn: int = 0
    """Model calls answered so far."""
    tries: int = 0
    """Model calls begun or skipped in this turn."""
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
    """Tools of all calls that were started, in order; one that was started again counts once."""
    nudges: int = 0
    """Answers in plain text so far; each but the last one is answered with the setup's nudge."""
    looped_turn: int = 0
    """The turn behind which the model was told that it repeats itself; 0 when it never was."""
    counts: tuple[Count, ...] = ()
    """Of the last calls, the latest last; the last one lacks its count while the call is under way."""
    is_compacted: bool = False
    """Something was left out of the conversation."""
    artifacts: tuple[ArtifactRef, ...] = ()
    trust: Trust = "trusted"
    is_forked: bool = False
    """It goes on from another task, perhaps with an edited prompt."""
    is_stubbed: bool = False
    """A call was answered as if it had been carried out."""


def initial_state() -> TaskState:
    """Return the state of a task nobody opened."""
    return TaskState()


def opened_state(task: AgentTask) -> TaskState:
    """Return the state behind `TaskOpened`, the first event of every task stream."""
    return TaskState(version=1, task=task, phase="opened", trust=joined(item.outcome.trust for item in task.context))


def evolve(state: TaskState, event: TaskEvent) -> TaskState:  # noqa: C901, PLR0912  (one arm per event type)
    """Apply one fact. The most frequent ones come first: a replay goes through here for every event of the log."""
    version = state.version + 1
    match event:
        case ToolStarted():
            return _tool_started(state, event, version)
        case ToolFinished():
            return _tool_finished(state, event, version)
        case ModelCallStarted():
            return _asked(state, event, version)
        case ModelCallFinished():
            return _answered(state, event, version)
        case TaskOpened():
            return opened_state(read_task(event.task))
        case TaskStarted():
            return _started(state, event, version)
        case TaskCompleted():
            return replace(state, version=version, phase="ended", outcome=event.outcome)
        case ModelCallFailed() | ModelCallSkipped():
            return _not_answered(state, event, version)
        case ApprovalRequested() | ApprovalDecided():
            return _approval(state, event, version)
        case ToolInDoubt() | ToolProbed() | CompensationStarted() | CompensationFinished():
            return replace(state, version=version, calls=_updated(state.calls, event.call_id, lambda c: _in_doubt(c, event)))
        case Nudged():
            nudged = replace(state.exchanges[-1], said=event.text)
            return replace(state, version=version, exchanges=(*state.exchanges[:-1], nudged), looped_turn=len(state.exchanges))
        case ContextCompacted():
            return _compacted(state, event, version)
        case AttemptFailed():
            open_calls = {"asking": None, "hedge": None}
            return replace(state, version=version, phase="between_attempts", failure=event.error, attempt=event.attempt, **open_calls, tried=(), deadline_us=0)
        case TaskMoved():
            return replace(state, version=version, setup=event.setup)
        case TaskHandedBack():
            return replace(state, version=version, worker="", deadline_us=0, handed_back=event.number)
        case TaskFailed() | TaskCancelled():
            return replace(state, version=version, phase="ended")
        case BudgetWarned():
            return replace(state, version=version, warned=(*state.warned, event.scope), first_link=max(state.first_link, event.first_link))
        case TaskForked():
            return forked_state(state, event)
        case _:
            raise TypeError(f"{type(event).__name__} is not an event of a task stream")


def _started(state: TaskState, event: TaskStarted, version: int) -> TaskState:
    # what ran when the former worker died has an intent and no outcome
    calls = tuple(replace(c, status="interrupted", may_have_happened=True) if c.status == "running" else c for c in state.calls)
    # a program that knew no chains recorded no wire either: what became of its call, or what it reserved, is not to be found out
    chain = event.chain or (Link("", event.provider, event.model, event.simulated),)
    asking, hedge = [
        replace(call, is_lost=True, link=call.link if chain == state.chain else -1) if call is not None and call.wire else None
        for call in (state.asking, state.hedge)
    ]
    assert state.task is not None
    if state.task.undo is not None and all(c.status == "done" for c in calls):  # each attempt makes the call anew
        made = undo_call(state.task.undo, event.attempt)
        state, calls = replace(state, exchanges=(*state.exchanges, Exchange(EMPTY, (made,)))), (Call(made),)
    return replace(
        state,
        version=version,
        phase="working",
        worker=event.worker,
        attempt=event.attempt,
        deadline_us=event.deadline_us,
        model=event.model,
        simulated=state.simulated or event.simulated,
        setup=event.setup,
        opening=event.opening,
        chain=chain,
        falls_back=bool(event.chain),
        refusals_fall_through=event.refusals_fall_through,
        hedge_after_s=event.hedge_after_s,
        asking=asking,
        hedge=hedge,
        tried=state.tried if chain == state.chain else (),
        calls=calls,
        failure=None,
    )


def _asked(state: TaskState, event: ModelCallStarted, version: int) -> TaskState:
    call = Asking(event.call_id, event.turn, event.wire, event.provider, event.model, event.link, event.reserved_micro_usd, event.purpose)
    counts = _estimated(state.counts, event)
    if event.hedge:
        return replace(_hedged(state, version), hedge=replace(call, was_hedged=True), counts=counts)
    return replace(state, version=version, tries=state.tries + 1, asking=call, counts=counts)


def _hedged(state: TaskState, version: int) -> TaskState:
    asking = replace(state.asking, was_hedged=True) if state.asking is not None else None
    return replace(state, version=version, tries=state.tries + 1, asking=asking)


def open_model_calls(state: TaskState) -> tuple[Asking, ...]:
    """Return the model calls without an outcome, in the order in which they are given up: the first call decides what follows, so it is last."""
    return tuple([call for call in (state.hedge, state.asking) if call is not None])


def model_call(state: TaskState, call_id: str) -> Asking | None:
    """Return the open call of this id; the first one when there is none, as there was only one once."""
    return state.hedge if state.hedge is not None and state.hedge.call_id == call_id else state.asking


def _closed(state: TaskState, call_id: str) -> dict[str, Asking | None]:
    """Say which calls are open once this one is closed."""
    if state.hedge is None or state.hedge.call_id != call_id:
        return {"asking": state.hedge, "hedge": None}
    return {"hedge": None}


def _not_answered(state: TaskState, event: ModelCallFailed | ModelCallSkipped, version: int) -> TaskState:
    if isinstance(event, ModelCallSkipped):
        if event.hedge:  # the first call goes on, and should it fail, the model that had no room beside it may have some then
            return _hedged(state, version)
        skipped = Tried(event.link, event.reason, event.detail, event.retry_after_s, shortfall=event.shortfall or None)
        return replace(state, version=version, tries=state.tries + 1, tried=(*state.tried, skipped))
    open_calls, cost = _closed(state, event.call_id), _charge(state, event.price.cost_micro_usd)
    paid = replace(state, version=version, usage=state.usage + event.usage, **open_calls, **cost)
    if not state.falls_back:
        return replace(paid, failure=event.error)
    if event.link < 0 or event.error.code == HEDGE_LOST:
        return paid
    error = event.error
    tried = Tried(event.link, error.code.removeprefix("model_"), error.message, error.retry_after_s or 0.0, event.status, event.request_id)
    return replace(paid, tried=(*state.tried, tried))


def _answered(state: TaskState, event: ModelCallFinished, version: int) -> TaskState:
    asked = model_call(state, event.call_id)
    said = replace(
        state,
        version=version,
        counts=_counted(state.counts, asked, event.usage.input_tokens),
        usage=state.usage + event.usage,
        simulated=state.simulated or event.simulated,
        **_closed(state, event.call_id),
        **_charge(state, event.price.cost_micro_usd),
    )
    if event.stop == "refusal" and state.refusals_fall_through and asked is not None:
        refused = Tried(asked.link, CONTENT_FILTER, "the model refused to answer", request_id=event.request_id)
        return replace(said, tried=(*state.tried, refused))
    exchange = Exchange(
        event.text,
        event.tool_calls,
        native=event.native,
        wire=event.wire,
        model=asked.model if asked is not None else event.model,
        purpose=event.purpose,
        problems=event.problems,
        is_paused=event.stop == "pause",
    )
    is_plain = not event.tool_calls and event.purpose == "turn" and event.stop != "pause"
    return replace(
        said,
        turn=event.turn,
        tries=0,
        tried=tuple([t for t in state.tried if t.kind == CONTEXT_LENGTH]),
        stop=event.stop,
        exchanges=(*state.exchanges, exchange),
        calls=tuple([Call(c) for c in event.tool_calls]),
        nudges=state.nudges + is_plain,
        tool_calls=state.tool_calls + len(event.tool_calls),
    )


def _approval(state: TaskState, event: ApprovalRequested | ApprovalDecided, version: int) -> TaskState:
    def change(call: Call) -> Call:
        if isinstance(event, ApprovalRequested):
            return replace(call, status="asked", approval_id=event.approval_id, digest=event.digest, asks=call.asks + 1)
        note = f"{event.decision.replace('_', ' ')} by {event.actor}" + (f": {event.note}" if event.note else "")
        return replace(call, status=_DECIDED.get(event.decision, "denied"), note=note)

    # nobody knows how long a person takes, so whoever works on the task next gets its time anew
    return replace(state, version=version, calls=_updated(state.calls, event.call_id, change), deadline_us=0)


_DECIDED: Final[dict[str, CallStatus]] = {"approved": "approved", "did_not_happen": "approved", "happened": "happened"}


def _in_doubt(call: Call, event: ToolInDoubt | ToolProbed | CompensationStarted | CompensationFinished) -> Call:
    match event:
        case ToolInDoubt():
            return replace(call, status="interrupted", may_have_happened=True, doubt=event.reason)
        case ToolProbed():
            return replace(call, probed=event, compensation=event.compensation or call.compensation)
        case CompensationStarted():
            return replace(call, undoing="running")
        case CompensationFinished():
            return replace(call, undoing=event.status)


def _estimated(counts: tuple[Count, ...], event: ModelCallStarted) -> tuple[Count, ...]:
    known = [c for c in counts if c.counted or event.hedge]  # what was never answered was never counted
    return (*known[-COUNTS_KEPT + 1 :], Count(event.provider, event.model, event.estimated_tokens, 0)) if event.estimated_tokens else tuple(known)


def _counted(counts: tuple[Count, ...], asked: Asking | None, tokens: int) -> tuple[Count, ...]:
    if asked is None:
        return counts
    return tuple([replace(c, counted=tokens) if not c.counted and (c.provider, c.model) == (asked.provider, asked.model) else c for c in counts])


def _compacted(state: TaskState, event: ContextCompacted, version: int) -> TaskState:
    exchanges = list(state.exchanges)
    for item in event.replaced:
        exchange = replace(exchanges[item.turn - 1], is_compacted=True)
        if item.what == "text":
            exchange = replace(exchange, text_shown=item.by)
        else:
            results = tuple([replace(r, shown=item.by) if r.call_id == item.call_id else r for r in exchange.results])
            exchange = replace(exchange, results=results)
        exchanges[item.turn - 1] = exchange
    # what was too long is shorter now
    tried = tuple(t for t in state.tried if t.kind != CONTEXT_LENGTH)
    return replace(state, version=version, exchanges=tuple(exchanges), is_compacted=True, failure=None, tried=tried)


def _charge(state: TaskState, cost_micro_usd: int | None) -> dict[str, int]:
    if cost_micro_usd is None:
        return {"unpriced_calls": state.unpriced_calls + 1}
    return {"cost_micro_usd": state.cost_micro_usd + cost_micro_usd}


def _tool_started(state: TaskState, event: ToolStarted, version: int) -> TaskState:
    begun = {"status": "running", "fingerprint": event.fingerprint, "compensation": event.compensation, "probed": None, "undoing": "", "doubt": ""}
    is_first = any(c.call.call_id == event.call_id and not c.starts for c in state.calls)
    return replace(
        state,
        version=version,
        calls=_updated(state.calls, event.call_id, lambda c: replace(c, **begun, starts=c.starts + 1)),
        started=(*state.started, event.tool) if is_first else state.started,
        is_stubbed=state.is_stubbed or event.stub == "stubbed",
    )


def _tool_finished(state: TaskState, event: ToolFinished, version: int) -> TaskState:
    last = state.exchanges[-1]
    results = (*last.results, Result(event.call_id, event.tool, event.result, event.status != "ok", event.trust))
    if len(results) > 1:  # the model is told results in the order of its calls
        order = {call.call_id: n for n, call in enumerate(last.calls)}
        results = tuple(sorted(results, key=lambda r: order[r.call_id]))
    return replace(
        state,
        version=version,
        calls=_updated(state.calls, event.call_id, lambda c: replace(c, status="done")),
        exchanges=(*state.exchanges[:-1], replace(last, results=results)),
        artifacts=(*state.artifacts, *event.artifacts) if event.artifacts else state.artifacts,
        outcome=event.outcome if event.status == "ok" and event.outcome is not None else state.outcome,
        trust="untrusted" if event.trust == "untrusted" else state.trust,
    )


def _updated(calls: tuple[Call, ...], call_id: str, change: Callable[[Call], Call]) -> tuple[Call, ...]:
    return tuple([change(c) if c.call.call_id == call_id else c for c in calls])


def joined(labels: Iterable[Trust]) -> Trust:
    """Return the label of what was made from several parts: one untrusted part makes the whole untrusted."""
    return "untrusted" if "untrusted" in labels else "trusted"
