"""Why an event happened and what it led to: its causes and effects, and everything that whoever decided had in front of them. Pure.

For a model call that is the exact request, rebuilt from the log and held against the recorded hash; for a tool call the turn that asked
for it and the rules it was held to; for a decision of the orchestrator the command, and what else could have been decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from crewlog.agents.recorded_task import folded, setup_of
from crewlog.events.store import Recorded
from crewlog.orchestrator.causes import Cause, causes, effects
from crewlog.orchestrator.event_text import REASONING, describe, event_json
from crewlog.orchestrator.explain_calls import ModelEvent, ToolEvent, model_request, needed_texts, tool_call
from crewlog.orchestrator.run_history import RunHistory, payloads_in
from crewlog.schemas.codec import Unknown
from crewlog.schemas.ids import category
from crewlog.schemas.payload import Payload
from crewlog.schemas.run_events import RunEvent
from crewlog.schemas.task_events import ApprovalDecided, TaskCancelled, TaskEvent, TaskFailed, TaskForked, TaskOpened, TaskStarted


class Linked(msgspec.Struct, frozen=True):
    """Another event of the run and how it belongs to the one that is explained."""

    relation: str
    index: int
    position: int
    event_id: str
    stream: str
    type: str
    text: str


class Explanation(msgspec.Struct, frozen=True):
    """Everything the log says about one event. What does not apply to its type is None."""

    run_id: str
    index: int
    of: int
    event: dict[str, Any]
    """As it is relayed to `events.>`; readable reasoning is left out unless it was asked for."""
    texts: dict[str, str]
    """The texts of its payloads by field, where they were fetched."""
    decided_by: dict[str, Any]
    """Who wrote it; of an agent also the version of its prompt and rules, and its worker."""
    caused_by: tuple[Linked, ...]
    led_to: tuple[Linked, ...]
    request: dict[str, Any] | None
    call: dict[str, Any] | None
    decision: dict[str, Any] | None


def needed(history: RunHistory, index: int) -> list[Payload]:
    """List the payloads whose texts `explain` reads: a large run is explained without fetching the rest of it."""
    recorded = history.events[index - 1]
    own = payloads_in(recorded.event())
    return [*own, *needed_texts(_in_front(history, recorded), recorded)] if category(recorded.stream) == "task" else own


def explain(history: RunHistory, index: int, *, with_reasoning: bool = False) -> Explanation:
    """Explain the event with this index.

    Args:
        history: the whole run, with the texts that `needed` lists.
        with_reasoning: also tell what models thought.
    """
    recorded = history.events[index - 1]
    event, found = recorded.event(), causes(history.events)
    in_front = _in_front(history, recorded)
    return Explanation(
        run_id=str(history.run_id),
        index=index,
        of=len(history.events),
        event=event_json(recorded, with_reasoning=with_reasoning),
        texts=_texts(history, event, with_reasoning=with_reasoning),
        decided_by=_decided_by(history, recorded, in_front),
        caused_by=_linked(history, found[index - 1]),
        led_to=_linked(history, effects(found)[index - 1]),
        request=model_request(history, in_front, event, with_native=with_reasoning) if isinstance(event, ModelEvent) else None,
        call=tool_call(history, in_front, event) if isinstance(event, ToolEvent) else None,
        decision=_decision(history, recorded, event),
    )


def _decision(history: RunHistory, recorded: Recorded, event: Any) -> dict[str, Any] | None:
    if not isinstance(event, RunEvent | TaskOpened | TaskForked | ApprovalDecided | TaskFailed | TaskCancelled):
        return None
    from crewlog.orchestrator.explain_decision import decision_of  # all that decides: nobody else needs it

    return decision_of(history, recorded)


def _in_front(history: RunHistory, recorded: Recorded) -> Sequence[Recorded]:
    return history.in_front(recorded)


def _texts(history: RunHistory, event: Any, *, with_reasoning: bool) -> dict[str, str]:
    if isinstance(event, Unknown):
        return {"data": event.data.decode(errors="replace")}
    hidden = () if with_reasoning else REASONING
    fields = {name: getattr(event, name) for name in event.__struct_fields__ if name not in hidden}
    return {name: history.shown(value) for name, value in fields.items() if isinstance(value, Payload)}


def _decided_by(history: RunHistory, recorded: Recorded, in_front: Sequence[Recorded]) -> dict[str, Any]:
    by: dict[str, Any] = {"actor": recorded.actor, "writer": recorded.writer, "schema_version": recorded.schema_version}
    event = recorded.event()
    if not isinstance(event, TaskEvent):
        return by
    state = folded([*in_front, recorded] if isinstance(event, TaskStarted) else in_front)  # it says itself who begins
    setup = setup_of(state, history.read)
    if setup is None:
        return by
    return {**by, "kind": setup.kind, "agent_version": setup.version, "worker": state.worker, "attempt": state.attempt, "simulated": state.simulated}


def _linked(history: RunHistory, ends: Sequence[Cause]) -> tuple[Linked, ...]:
    return tuple(_link(end, history.events[end.at - 1]) for end in ends)


def _link(end: Cause, other: Recorded) -> Linked:
    return Linked(end.relation, end.at, other.position, str(other.event_id), other.stream, other.type, describe(other.event()))
