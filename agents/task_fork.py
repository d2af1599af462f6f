"""How a task goes on that was forked from another one: what both share is kept, what was open begins again. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from crewlog.schemas.merge_patch import merged
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import EditedResult, TaskForked
from crewlog.schemas.usage import Usage

if TYPE_CHECKING:
    from crewlog.agents.task_state import Call, Exchange, TaskState


def forked_state(state: TaskState, event: TaskForked) -> TaskState:
    """Return the state of the fork, whose stream begins with this event.

    Args:
        state: the parent behind the last event that both share.
    """
    assert state.task is not None
    edited = {result.call_id: result for result in event.results}
    calls = tuple(_reopened(call, is_done=call.call.call_id in edited) for call in state.calls)
    begun = [call.call.tool for call in state.calls if call.starts and call.status != "done"]
    is_begun = state.setup is not None and not event.begins_anew
    return replace(
        state,
        version=1,
        is_forked=True,
        task=forked_task(state.task, event),
        phase="opened" if state.phase == "opened" else "between_attempts",
        attempt=0,
        worker="",
        deadline_us=0,
        setup=(event.setup or state.setup) if is_begun else None,
        opening=(event.opening or state.opening) if is_begun else None,
        first_link=0,
        warned=(),
        asking=None,
        hedge=None,
        tried=(),
        calls=calls,
        exchanges=tuple(_edited(exchange, edited) for exchange in _told(state.exchanges, event.said)),
        stop="" if state.stop in ("refusal", "max_tokens") else state.stop,  # the next model may do better
        outcome=None if event.results or event.said else state.outcome,
        failure=None,
        usage=Usage(),
        cost_micro_usd=0,
        unpriced_calls=0,
        started=_without(state.started, begun),
    )


def forked_task(task: AgentTask, event: TaskForked) -> AgentTask:
    """Return what the agent of a forked task is given."""
    return msgspec.convert(merged(msgspec.to_builtins(task), msgspec.json.decode(event.changes)), AgentTask)


def _reopened(call: Call, *, is_done: bool) -> Call:
    """Begin a call anew that had no result: nothing of it has happened in the fork, and a person is asked again."""
    if call.status == "done" or is_done:
        return replace(call, status="done")
    return type(call)(call.call, asks=call.asks)


def _told(exchanges: tuple[Exchange, ...], said: str) -> tuple[Exchange, ...]:
    if not said or not exchanges:
        return exchanges
    last = exchanges[-1]
    return (*exchanges[:-1], replace(last, said="\n\n".join(filter(None, (last.said, said)))))


def _edited(exchange: Exchange, edited: dict[str, EditedResult]) -> Exchange:
    from crewlog.agents.task_state import Result  # its fold calls this module

    wanted = [call for call in exchange.calls if call.call_id in edited]
    if not wanted:
        return exchange
    known = {result.call_id: result for result in exchange.results}
    for call in wanted:
        edit = edited[call.call_id]
        before = known.get(call.call_id) or Result(call.call_id, call.tool, edit.content, edit.is_error, "untrusted")
        known[call.call_id] = replace(before, content=edit.content, is_error=edit.is_error, shown="")
    return replace(exchange, results=tuple(known[call.call_id] for call in exchange.calls if call.call_id in known))


def _without(started: tuple[str, ...], begun: list[str]) -> tuple[str, ...]:
    """Take back the starts of calls that had no outcome: they are started again."""
    left = list(started)
    for tool in begun:
        left.reverse()
        left.remove(tool)
        left.reverse()
    return tuple(left)
