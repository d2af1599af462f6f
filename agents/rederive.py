"""Check a recorded task against the turn machine: every event an agent wrote must be what `next_step` asked for.

Answers of models and tools are observations and are taken as they are; every decision made from them is derived again, and
every model request is rebuilt and its hash compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from crewlog.agents.chain import HEDGE_LOST, INTERRUPTED
from crewlog.agents.compaction import Compact, make_room
from crewlog.agents.conversation import build_request
from crewlog.agents.model_call import REPLY_INLINE_MAX
from crewlog.agents.recorded_task import advance
from crewlog.agents.setup import Setup
from crewlog.agents.stand_in import stubs_allowed
from crewlog.agents.task_state import Call, TaskState, evolve, initial_state, model_call, open_model_calls
from crewlog.agents.tool_runner import STARTS_MAX
from crewlog.agents.tool_ways import REPEATABLE
from crewlog.agents.turn import AskModel, Done, Fail, Finish, GiveUpCall, Nudge, RunCalls, Start, Step, approval_of, digest_of, hedge_of, next_step
from crewlog.agents.undo import call_key, undoes
from crewlog.events.store import Recorded
from crewlog.schemas.divergence import Divergence
from crewlog.schemas.ids import compensation_key
from crewlog.schemas.json_output import answer_problems
from crewlog.schemas.payload import Payload
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    AttemptFailed,
    BudgetWarned,
    CompensationFinished,
    CompensationStarted,
    ContextCompacted,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallSkipped,
    ModelCallStarted,
    Nudged,
    TaskCompleted,
    TaskEvent,
    TaskForked,
    TaskHandedBack,
    TaskMoved,
    TaskStarted,
    ToolFinished,
    ToolInDoubt,
    ToolProbed,
    ToolStarted,
)
from crewlog.schemas.usage import WORST_CASE
from crewlog.schemas.values import Failure

ReadText = Callable[[Payload], str]
Difference = tuple[str, Any, Any]
"""Field, expected, got."""

OBSERVED_FAILURES: Final = frozenset({"timeout", "limit_idle_seconds", "internal", "limit"})
"""Ends of an attempt that no decision leads to: the clock, or a defect; `limit` is what reaching any limit was called before each had a code."""


class TaskReplay(msgspec.Struct, frozen=True):
    """A task folded from its events."""

    state: TaskState
    model_calls: int
    divergence: Divergence | None


def replay_task(events: Sequence[Recorded], read: ReadText, *, verify: bool = True) -> TaskReplay:
    """Fold one task stream and, with `verify`, derive every decision in it again; stops at the first difference.

    Args:
        events: the whole stream in version order.
        read: returns the text of a payload; blobs are fetched before.
    """
    state, setup, model_calls = initial_state(), None, 0
    for recorded in events:
        event = recorded.event()
        if not isinstance(event, TaskEvent):
            state = advance(state, recorded)  # of a type that this program does not know: if a decision rests on it, that will be found
            continue
        if verify and (difference := _difference(state, setup, event, read)):
            return TaskReplay(state, model_calls, Divergence(recorded.stream, recorded.version, *difference))
        state = evolve(state, event)
        if isinstance(event, TaskForked):
            setup = None  # the fork may go on with another one
        if (isinstance(event, TaskStarted) and setup is None) or isinstance(event, TaskMoved):
            setup = msgspec.json.decode(read(event.setup), type=Setup)
        model_calls += isinstance(event, ModelCallFinished)
    return TaskReplay(state, model_calls, None)


def _difference(state: TaskState, setup: Setup | None, event: TaskEvent, read: ReadText) -> Difference | None:  # noqa: C901, PLR0912  (one arm per event type)
    match event:
        case TaskStarted() if state.setup is not None:
            deadline_us = state.deadline_us or event.deadline_us
            return _first(("setup", state.setup, event.setup), ("opening", state.opening, event.opening), ("deadline_us", deadline_us, event.deadline_us))
        case ModelCallStarted():
            return _model_call(state, setup, event, read)
        case ModelCallSkipped():
            return _skipped(state, setup, event)
        case ModelCallFinished() | ModelCallFailed():
            return _model_answer(state, event)
        case ToolStarted():
            return _tool_started(state, setup, event)
        case ToolFinished():
            return _tool_finished(state, setup, event)
        case ApprovalRequested():
            call = _open_call(state, setup, event.call_id)
            if call is None or setup is None:
                return "call_id", "a call that is open", event.call_id
            is_known = event.question is msgspec.UNSET or call.may_have_happened
            ids = ("approval_id", approval_of(state, call), event.approval_id), ("digest", digest_of(state, setup, call), event.digest)
            return _first(*ids, ("may have happened", True, is_known))
        case ToolInDoubt() | ToolProbed() | CompensationStarted() | CompensationFinished():
            return _in_doubt(state, setup, event)
        case ApprovalDecided():
            asked = next((c for c in state.calls if c.call.call_id == event.call_id and c.status == "asked"), None)
            return _first(("approval_id", asked.approval_id if asked else None, event.approval_id), ("digest", asked.digest if asked else None, event.digest))
        case Nudged():
            step = next_step(state, setup)
            return _first(("text", step.text if isinstance(step, Nudge) else type(step).__name__, event.text))
        case ContextCompacted():
            return _compacted(state, setup, event, read)
        case AttemptFailed() if event.error.code not in OBSERVED_FAILURES:
            return _attempt_failed(state, setup, event, read)
        case BudgetWarned():
            return ("scope", "one that was not warned of before", event.scope) if event.scope in state.warned else None
        case TaskCompleted():
            return _completed(state, setup, event)
        case TaskMoved():
            under_way = next((c.call.call_id for c in state.calls if c.status != "done"), "")
            return _first(("call under way", "", under_way), ("from_version", setup.version if setup is not None else "", event.from_version))
        case TaskHandedBack():
            return _first(("number", state.handed_back + 1, event.number)) or _handed_back(state, setup)
        case TaskForked():
            return _first(("version", state.version, event.version))
        case _:
            return None


def _ask(state: TaskState, setup: Setup | None, read: ReadText, *, is_hedge: bool = False) -> tuple[Step, Compact | Failure | int | None]:
    """Return the next step, and for a model call whether there is room for its request. That a call is slow, and needs a hedge, is an observation."""
    step = (hedge_of(state) or Done()) if is_hedge else next_step(state, setup)
    if not isinstance(step, AskModel) or setup is None:
        return step, None
    return step, make_room(state, setup, read, link=step.link, purpose=step.purpose, is_too_long=step.is_too_long)


def _compacted(state: TaskState, setup: Setup | None, event: ContextCompacted, read: ReadText) -> Difference | None:
    step, room = _ask(state, setup, read)
    if not isinstance(step, AskModel) or not isinstance(room, Compact):
        return "step", type(room).__name__ if isinstance(room, Failure) else type(step).__name__, "ContextCompacted"
    link = state.chain[step.link]
    return _first(
        ("turn", step.turn, event.turn),
        ("reason", room.reason, event.reason),
        ("provider", link.provider, event.provider),
        ("model", link.model, event.model),
        ("replaced", room.replaced, event.replaced),
        ("tokens", (room.tokens_before, room.tokens_after, room.tokens_max), (event.tokens_before, event.tokens_after, event.tokens_max)),
    )


def _model_call(state: TaskState, setup: Setup | None, event: ModelCallStarted, read: ReadText) -> Difference | None:
    step, room = _ask(state, setup, read, is_hedge=event.hedge)
    if not isinstance(step, AskModel) or setup is None:
        return "step", type(step).__name__, "ModelCallStarted"
    if isinstance(room, Compact | Failure):
        return "step", type(room).__name__, "ModelCallStarted"
    request = build_request(state, setup, read, link=step.link, purpose=step.purpose)
    link = state.chain[step.link]
    return _first(
        ("call_id", step.call_id, event.call_id),
        ("turn", step.turn, event.turn),
        ("purpose", step.purpose, event.purpose),
        ("link", step.link, event.link),
        ("provider", link.provider, event.provider),
        ("model", link.model, event.model),
        ("messages", len(request.messages), event.messages),
        ("estimated_tokens", room, event.estimated_tokens),
        ("request_hash", request.request_hash(), event.request_hash),
    )


def _skipped(state: TaskState, setup: Setup | None, event: ModelCallSkipped) -> Difference | None:
    step = hedge_of(state) if event.hedge else next_step(state, setup)
    if not isinstance(step, AskModel):
        return "step", type(step).__name__, "ModelCallSkipped"
    return _first(("call_id", step.call_id, event.call_id), ("link", step.link, event.link))


def _model_answer(state: TaskState, event: ModelCallFinished | ModelCallFailed) -> Difference | None:
    asking = model_call(state, event.call_id)
    if asking is None:
        return "call_id", None, event.call_id
    others = len(open_model_calls(state)) - 1
    if isinstance(event, ModelCallFailed):
        is_given_up = event.error.code == INTERRUPTED
        price = asking.reserved_micro_usd if event.price.source == WORST_CASE and is_given_up else event.price.cost_micro_usd
        return _first(
            ("call_id", asking.call_id, event.call_id),
            ("lost", asking.is_lost or is_given_up, is_given_up),
            ("calls beside it", True, others > 0 or event.error.code != HEDGE_LOST),
            ("price", price, event.price.cost_micro_usd),
        )
    schema = state.task.output_schema if state.task is not None else None
    fits = event.purpose != "output" or not answer_problems(event.text.inline or "", schema or {}, bytes_max=REPLY_INLINE_MAX)
    falls_through = event.stop == "refusal" and state.refusals_fall_through
    return _first(
        ("call_id", asking.call_id, event.call_id),
        ("purpose", asking.purpose, event.purpose),
        ("problems", fits, not event.problems),
        ("calls beside it", 0, 0 if falls_through else others),
    )


def _attempt_failed(state: TaskState, setup: Setup | None, event: AttemptFailed, read: ReadText) -> Difference | None:
    step, room = _ask(state, setup, read)
    wanted = step.failure if isinstance(step, Fail) else room if isinstance(room, Failure) else type(step).__name__
    short = (step.shortfall or msgspec.UNSET) if isinstance(step, Fail) else msgspec.UNSET
    return _first(
        ("error", wanted, event.error),
        ("shortfall", short, event.shortfall),
        ("usage", state.usage, event.usage),
        ("cost_micro_usd", state.cost_micro_usd, event.cost_micro_usd),
    )


def _handed_back(state: TaskState, setup: Setup | None) -> Difference | None:
    """That somebody paused it is an observation; that it could have gone on is checked. Whoever took the task over from a worker that died may
    give it back before anything else, so calls of that one may be open."""
    if state.phase == "between_attempts":
        return None
    step = next_step(state, setup)
    return None if isinstance(step, Start | AskModel | RunCalls | GiveUpCall | Done) else ("step", "one that begins something", type(step).__name__)


def _tool_started(state: TaskState, setup: Setup | None, event: ToolStarted) -> Difference | None:
    call, tool = _open_call(state, setup, event.call_id), setup.tool(event.tool) if setup else None
    if call is None or tool is None or state.task is None:
        return "call_id", "a call of a known tool that is open", event.call_id
    did_not_happen = call.probed is not None and call.probed.verdict == "did_not_happen"
    is_in_doubt = call.may_have_happened and tool.effect not in REPEATABLE and not did_not_happen
    needs_permit = (tool.needs_approval and not state.task.auto_approve) or is_in_doubt
    if needs_permit and call.status != "approved" and not (call.approval_id and not is_in_doubt):
        return "approval_id", "an approved call", event.approval_id
    key = call_key(state.task, event.call_id)
    return _first(
        ("undoes", undoes(state.task), event.undoes),
        ("tool", call.call.tool, event.tool),
        ("tool_version", tool.version, event.tool_version),
        ("effect", tool.effect, event.effect),
        ("idempotency_key", key, event.idempotency_key),
        ("approval_id", call.approval_id, event.approval_id),
        ("stub", True, event.stub in stubs_allowed(state.task, tool)),
    )


def _tool_finished(state: TaskState, setup: Setup | None, event: ToolFinished) -> Difference | None:
    call = next((c for c in state.calls if c.call.call_id == event.call_id), None)
    status = "absent" if call is None else call.status
    tool = setup.tool(event.tool) if setup else None
    if call is not None and tool is not None and tool.asks_person and event.status == "ok":
        return _first(("status of the call", True, status in ("approved", "denied")), ("answer", call.note, event.result.inline))
    if event.reused:  # what another call of the same did was looked up: an observation
        return _first(("status of the call", True, status in ("new", "approved", "interrupted")))
    is_given_up = event.status in ("refused", "unknown")
    if call is not None and (status == "happened" or (status == "interrupted" and not is_given_up)):
        return _cleared_up(call, event)
    ran = event.status in ("ok", "error")
    return _first(("status of the call", True, status == "running" if ran else status in ("new", "denied", "approved", "interrupted")))


def _in_doubt(state: TaskState, setup: Setup | None, event: ToolInDoubt | ToolProbed | CompensationStarted | CompensationFinished) -> Difference | None:
    call = next((c for c in state.calls if c.call.call_id == event.call_id), None)
    tool = setup.tool(call.call.tool) if setup is not None and call is not None else None
    if call is None or tool is None or state.task is None:
        return "call_id", "a call of a known tool", event.call_id
    if isinstance(event, ToolInDoubt):
        return _first(("status of the call", "running", call.status), ("may be repeated", False, tool.effect in REPEATABLE))
    interrupted = ("status of the call", "interrupted", call.status)
    if isinstance(event, ToolProbed):
        return _first(interrupted, ("has a probe", True, tool.has_probe), ("was probed before", False, call.probed is not None))
    known, undo = ("undone by", call.compensation.tool if call.compensation else None, event.tool), call.undoing
    if isinstance(event, CompensationFinished):
        return _first(interrupted, known, ("undoing", True, undo == "running" or (undo == "" and event.status == "error")))
    key = compensation_key(call_key(state.task, event.call_id))
    return _first(interrupted, known, ("undoing", True, undo in ("", "running")), ("key", key, event.key))


def _cleared_up(call: Call, event: ToolFinished) -> Difference | None:
    """Check the outcome of a call that had none: a person said that it happened, its probe found it or never did, or it was taken back."""
    if call.status == "happened":
        return _first(("status", "ok", event.status))
    if call.probed is not None and call.probed.verdict == "happened":
        return _first(("status", "ok", event.status), ("result", call.probed.result, event.result))
    never_happened = call.probed is not None and call.probed.verdict == "did_not_happen" and call.starts >= STARTS_MAX
    return _first(("status", "error", event.status), ("undoing", "ok", "ok" if never_happened else call.undoing))


def _completed(state: TaskState, setup: Setup | None, event: TaskCompleted) -> Difference | None:
    step = next_step(state, setup)
    return _first(
        ("outcome", step.outcome if isinstance(step, Finish) else type(step).__name__, event.outcome),
        ("usage", state.usage, event.usage),
        ("cost_micro_usd", state.cost_micro_usd, event.cost_micro_usd),
        ("turns", state.turn, event.turns),
        ("tool_calls", state.tool_calls, event.tool_calls),
    )


def _open_call(state: TaskState, setup: Setup | None, call_id: str) -> Call | None:
    step = next_step(state, setup)
    return next((c for c in step.calls if c.call.call_id == call_id), None) if isinstance(step, RunCalls) else None


def _first(*fields: Difference) -> Difference | None:
    return next((f for f in fields if f[1] != f[2]), None)
