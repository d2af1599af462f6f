"""Whatever a provider answers, whole or as a stream, is an answer or a `ModelError`: nothing in it can crash a worker."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.wires import ANTHROPIC, CHAT, GEMINI, RESPONSES, WIRES, Said, Wire

from crewlog.agents import model_anthropic, model_gemini, model_openai_chat, model_openai_responses
from crewlog.agents.model import ModelError
from crewlog.agents.model_openai import Connection
from crewlog.schemas.blocks import ModelReply, ModelRequest, OutputFormat, ToolUse

SAID = Said("I look.", (("c1", "look", '{"at":"x"}'), ("c2", "look", '{"at":"y","deep":null}')), thinking="hm, well")
OUTPUT = OutputFormat("result", {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})
CONNECTION = Connection("m", api_key="k", base_url="http://127.0.0.1:9/v1")
UNDERSTAND: dict[str, Callable[[bytes, ModelRequest], ModelReply]] = {
    ANTHROPIC.name: model_anthropic.understand,
    RESPONSES.name: lambda body, request: model_openai_responses.understand(body, request, CONNECTION),
    CHAT.name: lambda body, request: model_openai_chat.understand(body, request, CONNECTION),
    GEMINI.name: model_gemini.understand,
}
ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "id", "content", "x"]), inner, max_size=2),
    max_leaves=4,
)
wires = pytest.mark.parametrize("wire", WIRES, ids=str)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(child, (*path, key))


def spoilt(draw: Callable[[Any], Any], value: Any) -> Any:
    """Replace or remove a few parts of a JSON value."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(value))
        if not found:
            break
        *above, last = draw(st.sampled_from(found))
        at = value
        for key in above:
            at = at[key]
        if draw(st.booleans()):
            at[last] = draw(ODD)
        else:
            del at[last]
    return value


def judged(wire: Wire, body: bytes, request: ModelRequest) -> None:
    try:
        reply = UNDERSTAND[wire.name](body, request)
    except ModelError:
        return
    uses = [block for block in reply.content if isinstance(block, ToolUse)]
    assert len({use.call_id for use in uses}) == len(uses)
    assert isinstance(json.dumps([block.text for block in reply.content if not isinstance(block, ToolUse)]).encode(), bytes)


@wires
@given(data=st.data())
def test_a_spoilt_answer_is_an_answer_or_an_error(wire: Wire, data: st.DataObject) -> None:
    request = wire.request(output=data.draw(st.sampled_from([None, OUTPUT])))
    judged(wire, json.dumps(spoilt(data.draw, wire.answer(SAID))).encode(), request)


@wires
@given(body=st.binary(max_size=40))
def test_bytes_of_any_kind_are_malformed(wire: Wire, body: bytes) -> None:
    judged(wire, body, wire.request())


async def streamed(wire: Wire, events: list[bytes]) -> bytes:
    async def chunks() -> AsyncIterator[bytes]:
        for event in events:
            yield event

    model: Any = wire.make("http://127.0.0.1:9")
    if wire is RESPONSES:
        body: bytes = await model._streamed(chunks(), lambda text: None)
        return body
    written = (model_anthropic if wire is ANTHROPIC else model_openai_chat).Written()
    body = await model._streamed(chunks(), written, lambda text: None)
    written.usage()
    return body


@pytest.mark.parametrize("wire", [ANTHROPIC, RESPONSES, CHAT], ids=str)
@given(data=st.data())
async def test_a_spoilt_stream_is_an_answer_or_an_error(wire: Wire, data: st.DataObject) -> None:
    events = wire.events(SAID)
    at = data.draw(st.sampled_from([n for n, event in enumerate(events) if isinstance(event, dict)]))
    events[at] = spoilt(data.draw, events[at])
    frames = [event.encode() if isinstance(event, str) else f"data: {json.dumps(event)}\n\n".encode() for event in events]
    if data.draw(st.booleans()):
        frames = frames[: data.draw(st.integers(0, len(frames)))]
    try:
        body = await streamed(wire, frames)
    except ModelError:
        return
    judged(wire, body, wire.request())


@given(data=st.data())
def test_spoilt_chunks_of_gemini_too(data: st.DataObject) -> None:
    written = model_gemini.Written()
    for event in GEMINI.events(SAID):
        chunk = spoilt(data.draw, event) if data.draw(st.booleans()) else event
        try:
            with model_gemini.understanding("m"):
                written.take(chunk)
                body = written.body()
        except ModelError:
            return
        written.usage()
        judged(GEMINI, body, GEMINI.request())
