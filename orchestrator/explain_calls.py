"""What was in front of an agent when it made a call: of a model call the exact request, of a tool call its rules and who asked for it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from crewlog.agents.conversation import payloads_of
from crewlog.agents.recorded_task import asked_request, folded, setup_of
from crewlog.agents.task_state import TaskState
from crewlog.agents.turn import digest_of
from crewlog.events.store import Recorded
from crewlog.orchestrator.run_history import RunHistory, erased_text
from crewlog.schemas.blocks import Message, ModelRequest
from crewlog.schemas.errors import ContractError
from crewlog.schemas.payload import Payload
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallSkipped,
    ModelCallStarted,
    ToolFinished,
    ToolStarted,
)

ModelEvent = ModelCallStarted | ModelCallFinished | ModelCallFailed | ModelCallSkipped
ToolEvent = ToolStarted | ToolFinished | ApprovalRequested | ApprovalDecided


def needed_texts(events: Sequence[Recorded], recorded: Recorded) -> list[Payload]:
    """List the payloads that explaining an event of a task reads.

    Args:
        events: what stands in front of it in its stream.
    """
    event = recorded.event()
    if isinstance(event, ModelEvent):
        state = folded(_in_front(events, event))
        return [*([state.setup] if state.setup else []), *payloads_of(state)]
    state = folded(events)
    of_calls = [call.call.arguments for call in state.calls]
    return [*([state.setup] if state.setup else []), *of_calls]


def _in_front(events: Sequence[Recorded], event: ModelEvent) -> Sequence[Recorded]:
    """Return what stands in front of the intent of a call; an outcome may be the last of several events behind it."""
    begun = _intent(events, event)
    return events if begun is None else events[: events.index(begun)]


def _intent(events: Sequence[Recorded], event: ModelEvent) -> Recorded | None:
    if isinstance(event, ModelCallStarted | ModelCallSkipped):
        return None
    begun = (r for r in reversed(events) if isinstance(said := r.event(), ModelCallStarted) and said.call_id == event.call_id)
    return next(begun, None)


def model_request(history: RunHistory, events: Sequence[Recorded], event: ModelEvent, *, with_native: bool) -> dict[str, Any]:
    """Rebuild what a model was asked, and check it against the recorded hash.

    Args:
        events: what stands in front of the event in its stream.
        with_native: also what providers wrote themselves, which may hold reasoning.
    """
    state = folded(_in_front(events, event))
    begun = _intent(events, event)
    asked = event if begun is None else begun.event()
    chain = list(_chain(state, asked if isinstance(asked, ModelCallStarted) else event))
    told: dict[str, Any] = {"call_id": event.call_id, "turn": event.turn, "chain": chain, "context": list(_context(state))}
    if not isinstance(asked, ModelCallStarted):
        return told
    told |= {"hash": asked.request_hash, "estimated_tokens": asked.estimated_tokens, "reserved_micro_usd": asked.reserved_micro_usd}
    if history.erased_us:
        return {**told, "rebuilt": None, "is_exact": False, "problem": erased_text(history.erased_us)}
    try:
        request = asked_request(state, asked, history.read)
    except ContractError as error:
        return {**told, "rebuilt": None, "is_exact": False, "problem": str(error)}
    if request is None:
        return {**told, "rebuilt": None, "is_exact": False, "problem": "the task was not started before it"}
    rebuilt = request.request_hash()
    return {**told, "rebuilt": rebuilt, "is_exact": rebuilt == asked.request_hash, **_request(request, with_native=with_native)}


def _request(request: ModelRequest, *, with_native: bool) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(request, messages=()), enc_hook=_raw)
    return {**fields, "messages": [_message(message, with_native=with_native) for message in request.messages]}


def _message(message: Message, *, with_native: bool) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(message, enc_hook=_raw)
    if message.native is not None and not with_native:
        del fields["native"]["items"]
    return fields


def _raw(value: Any) -> Any:
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    raise TypeError(f"{type(value).__name__} is nothing that a request holds")


def _chain(state: TaskState, event: ModelEvent) -> Iterator[dict[str, Any]]:
    """Say of each model that might have been asked what kept it from being it."""
    tried = {t.link: f"{t.kind}: {t.message}" if t.message else t.kind for t in state.tried}
    if state.asking is not None and not isinstance(event, ModelCallFinished | ModelCallFailed) and event.hedge:
        tried[state.asking.link] = "slow: it is being asked still"
    taken = getattr(event, "link", None)
    if taken is None:  # an answer names its model alone
        taken = state.asking.link if state.asking is not None else next((n for n, link in enumerate(state.chain) if link.model == event.model), 0)
    for place, link in enumerate(state.chain):
        why = tried.get(place, "" if place == taken else "before the place where the chain begins" if place < state.first_link else "not needed")
        yield {"link": place, "provider": link.provider, "model": link.model, "taken": place == taken, "why": why}


def _context(state: TaskState) -> Iterator[dict[str, Any]]:
    """List the tool results the model was told, with how far each may be trusted."""
    for turn, exchange in enumerate(state.exchanges, 1):
        for result in exchange.results:
            yield {
                "turn": turn,
                "call_id": result.call_id,
                "tool": result.tool,
                "trust": result.trust,
                "bytes": result.content.size,
                "is_error": result.is_error,
                "left_out": bool(result.shown),
            }


def tool_call(history: RunHistory, events: Sequence[Recorded], event: ToolEvent) -> dict[str, Any]:
    """Say what a tool call was, who asked for it, and the rules it was held to.

    Args:
        events: what stands in front of the event in its stream.
    """
    state = folded(events)
    setup = setup_of(state, history.read)
    call = next((call for call in state.calls if call.call.call_id == event.call_id), None)
    told: dict[str, Any] = {"call_id": event.call_id, "asked_in_turn": state.turn}
    if call is None or setup is None:
        return told
    rules = setup.tool(call.call.tool)
    digest = call.digest or (event.digest if isinstance(event, ApprovalRequested | ApprovalDecided) else None)
    return {
        **told,
        "tool": call.call.tool,
        "arguments": history.shown(call.call.arguments),
        "status_before": call.status,
        "may_have_happened": call.may_have_happened,
        "trust_of_task": state.trust,
        "rules": None if rules is None else msgspec.to_builtins(rules),
        "approval": None
        if digest is None
        else {
            "approval_id": str(call.approval_id or getattr(event, "approval_id", None)),
            "note": call.note,
            "binds_this_call": digest == digest_of(state, setup, call),
        },
    }
