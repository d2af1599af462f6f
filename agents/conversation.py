"""Render the conversation of a task into a model request. Pure: the texts of large payloads are passed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from crewlog.agents.setup import Setup
from crewlog.agents.task_state import Exchange, TaskState
from crewlog.schemas.blocks import Message, ModelRequest, Text, ToolResult, ToolUse
from crewlog.schemas.payload import Payload

ReadText = Callable[[Payload], str]


def payloads_of(state: TaskState) -> Iterator[Payload]:
    """List every payload the next request is made of, so that their blobs can be fetched at once. What was left out of it is not among them."""
    if state.opening is not None:
        yield state.opening
    for exchange in state.exchanges:
        if not exchange.text_shown:
            yield exchange.text
        yield from (call.arguments for call in exchange.calls)
        yield from (result.content for result in exchange.results if not result.shown)


def build_request(state: TaskState, setup: Setup, read: ReadText) -> ModelRequest:
    """Build the request of the next model call. The same events give the same bytes, live and in a replay."""
    assert state.opening is not None
    messages = [Message("user", (Text(read(state.opening)),))]
    for exchange in state.exchanges:
        messages += _turn(exchange, setup, read)
    return ModelRequest(
        model=state.model,
        system=setup.system,
        tools=tuple(t.definition for t in setup.tools if state.is_compacted or not t.is_late),
        messages=tuple(messages),
        max_tokens=setup.max_tokens,
    )


def _turn(exchange: Exchange, setup: Setup, read: ReadText) -> list[Message]:
    text = exchange.text_shown or read(exchange.text)
    said = [Text(text)] if text else []
    calls = [ToolUse(c.call_id, c.tool, read(c.arguments)) for c in exchange.calls]
    if not calls:
        # an assistant message must not be empty, and the model is told why it goes on
        return [Message("assistant", tuple(said) or (Text("(no answer)"),)), Message("user", (Text(setup.nudge),))]
    results = tuple(ToolResult(r.call_id, r.tool, r.shown or read(r.content), r.is_error) for r in exchange.results)
    told = (Text(exchange.said),) if exchange.said else ()
    return [Message("assistant", (*said, *calls)), Message("user", (*results, *told))]
