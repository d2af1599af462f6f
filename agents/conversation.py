"""Render the conversation of a task into a model request. Pure: the texts of large payloads are passed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from crewlog.agents.setup import Setup
from crewlog.agents.task_state import Exchange, TaskState
from crewlog.schemas.blocks import Block, Message, ModelRequest, Native, OutputFormat, Text, ToolResult, ToolUse
from crewlog.schemas.payload import Payload
from crewlog.schemas.task_events import CallPurpose, Link

ReadText = Callable[[Payload], str]


def payloads_of(state: TaskState) -> Iterator[Payload]:
    """List every payload the next request is made of, so that their blobs can be fetched at once. What was left out of it is not among them."""
    if state.opening is not None:
        yield state.opening
    for exchange in state.exchanges:
        if not exchange.text_shown:
            yield exchange.text
        if exchange.native is not None and not exchange.is_compacted:
            yield exchange.native
        yield from (call.arguments for call in exchange.calls)
        yield from (result.content for result in exchange.results if not result.shown)


def build_request(state: TaskState, setup: Setup, read: ReadText, *, link: int = 0, purpose: CallPurpose = "turn") -> ModelRequest:
    """Build the request of the next model call. The same events give the same bytes, live and in a replay.

    Args:
        link: place in the chain of the model that is asked.
        purpose: `output` asks for the task's result as JSON behind the conversation.
    """
    assert state.opening is not None
    target = state.chain[link]
    talk = _Talk([Message("user", (Text(read(state.opening)),))])
    schema = state.task.output_schema if state.task is not None else None
    for at, exchange in enumerate(state.exchanges):
        said, native = said_blocks(exchange, read), _native(exchange, target, read)
        talk.add("assistant", said, native)
        if exchange.is_paused:
            continue
        following = state.exchanges[at + 1].purpose if at + 1 < len(state.exchanges) else purpose
        talk.add("user", tuple(_told(exchange, following, setup, schema, read)))
    output = OutputFormat("result", schema) if purpose == "output" and schema is not None else None
    tools = setup.offered(is_compacted=state.is_compacted)
    return ModelRequest(model=target.model, system=setup.system, tools=tools, messages=tuple(talk.messages), max_tokens=setup.max_tokens, output=output)


class _Talk:
    """Messages in which the two sides take turns: what one side says in several pieces is one message."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages

    def add(self, role: Literal["user", "assistant"], content: tuple[Block, ...], native: Native | None = None) -> None:
        before = self.messages[-1]
        if before.role != role:
            # a message must not be empty
            self.messages.append(Message(role, content or (Text("(no answer)"),), native))
        else:
            self.messages[-1] = Message(role, (*before.content, *content), _joined(before.native, native))


def _joined(first: Native | None, second: Native | None) -> Native | None:
    if first is None or second is None:
        return None
    items = [item for native in (first, second) for item in msgspec.json.decode(native.items, type=list[msgspec.Raw])]
    return Native(first.wire, first.model, msgspec.Raw(msgspec.json.encode(items)))


def said_blocks(exchange: Exchange, read: ReadText) -> tuple[Block, ...]:
    """Return what the model said in one turn: its text and its calls."""
    text = exchange.text_shown or read(exchange.text)
    said = (Text(text),) if text else ()
    return (*said, *(ToolUse(c.call_id, c.tool, read(c.arguments)) for c in exchange.calls))


def result_blocks(exchange: Exchange, read: ReadText) -> Iterator[ToolResult]:
    """Return the results of the calls of one turn, in their order."""
    for result in exchange.results:
        yield ToolResult(result.call_id, result.tool, result.shown or read(result.content), result.is_error)


def _native(exchange: Exchange, target: Link, read: ReadText) -> Native | None:
    if exchange.native is None or exchange.is_compacted or (exchange.wire, exchange.model) != (target.wire, target.model):
        return None
    return Native(exchange.wire, exchange.model, msgspec.Raw(read(exchange.native).encode()))


def _told(exchange: Exchange, following: CallPurpose, setup: Setup, schema: dict[str, Any] | None, read: ReadText) -> Iterator[Block]:
    """Say what the model is told behind one of its messages: the results of its calls, and why it is asked again."""
    yield from result_blocks(exchange, read)
    if exchange.purpose == "output":
        yield Text("\n".join([setup.correction_prompt, *(f"- {problem}" for problem in exchange.problems)]))
    elif following == "output":
        yield Text(f"{setup.output_prompt.strip()}\n\n```json\n{msgspec.json.encode(schema).decode()}\n```")
    elif not exchange.calls and (setup.nudge or not exchange.said):
        yield Text(setup.nudge or ("" if exchange.is_paused else setup.empty_nudge))
    if exchange.said:
        yield Text(exchange.said)
