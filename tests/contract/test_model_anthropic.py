"""The Anthropic adapter against a real server on loopback that speaks its wire."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.model_server import Canned, ModelServer, serve_models

from crewlog.agents.model import Closable
from crewlog.agents.model_anthropic import AnthropicModel
from crewlog.schemas.blocks import Message, ModelReply, ModelRequest, Text, ToolDef, ToolResult, ToolUse
from crewlog.schemas.usage import Usage

MODEL = "claude-haiku-5-5"


def answer(*content: dict[str, Any], stop: str | None = "end_turn", usage: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": f"{MODEL}-20261001",
        "content": list(content),
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": usage or {"input_tokens": 12, "output_tokens": 3},
    }


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


REQUEST = ModelRequest(
    MODEL,
    "Be brief.",
    (ToolDef("look", "Look.", {"type": "object", "properties": {"at": {"type": "string"}}}),),
    (Message("user", (Text("Hello"),)),),
    500,
)


@asynccontextmanager
async def asking(*answers: Canned) -> AsyncIterator[tuple[AnthropicModel, ModelServer]]:
    async with serve_models(*answers) as server:
        model = AnthropicModel(MODEL, api_key="key-of-a-test", base_url=server.url)
        try:
            yield model, server
        finally:
            await model.close()


async def ask(canned: Canned, request: ModelRequest = REQUEST, *, timeout_s: float = 5) -> tuple[ModelReply, ModelServer]:
    async with asking(canned) as (model, server):
        return await model.complete(request, timeout_s=timeout_s), server


async def test_text_comes_back_with_usage_and_the_raw_answer() -> None:
    body = answer(
        text("Hi."),
        usage={
            "input_tokens": 10,
            "output_tokens": 20,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 30,
            "output_tokens_details": {"thinking_tokens": 12},
        },
    )
    reply, server = await ask(Canned(body=body))
    assert reply.content == (Text("Hi."),)
    assert reply.stop == "end_turn"
    assert reply.model == f"{MODEL}-20261001"
    assert reply.usage == Usage(input_tokens=140, output_tokens=20, cache_read_tokens=100, cache_write_tokens=30, reasoning_tokens=12)
    assert json.loads(reply.raw)["id"] == "msg_1"
    assert server.paths == ["/v1/messages"]
    sent = server.requests[0]
    assert sent["model"] == MODEL
    assert sent["max_tokens"] == 500
    assert sent["system"][0]["text"] == "Be brief."
    assert sent["tools"][0]["name"] == "look"
    assert "temperature" not in sent
    assert "key-of-a-test" in str(server.headers[0])
    assert "traceparent" not in server.headers[0]


async def test_parallel_tool_calls_come_back_in_order_and_thinking_is_left_out() -> None:
    body = answer(
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        text("I look."),
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "ü"}},  # escaped on the wire, and kept as it was written
        {"type": "tool_use", "id": "toolu_2", "name": "look", "input": {}},
        stop="tool_use",
    )
    reply, _ = await ask(Canned(body=body))
    assert reply.content == (Text("I look."), ToolUse("toolu_1", "look", '{"at":"\\u00fc"}'), ToolUse("toolu_2", "look", "{}"))
    assert reply.stop == "tool_use"


async def test_a_conversation_goes_out_with_all_results_first_and_no_empty_text() -> None:
    messages = (
        Message("user", (Text("Hello"),)),
        Message("assistant", (Text(""), ToolUse("a", "look", '{"at": "x"}'), ToolUse("b", "look", "not json"))),
        Message("user", (Text("and now?"), ToolResult("a", "look", "seen"), ToolResult("b", "look", "", is_error=True))),
    )
    _, server = await ask(Canned(body=answer(text("ok"))), ModelRequest(MODEL, "", (), messages, 10))
    sent = server.requests[0]
    assert "system" not in sent
    assert "tools" not in sent
    assert [block["type"] for block in sent["messages"][1]["content"]] == ["tool_use", "tool_use"]
    assert sent["messages"][1]["content"][1]["input"] == {"invalid_json": "not json"}
    assert [block["type"] for block in sent["messages"][2]["content"]] == ["tool_result", "tool_result", "text"]
    assert [block["is_error"] for block in sent["messages"][2]["content"][:2]] == [False, True]


async def test_the_same_request_is_the_same_bytes() -> None:
    async with asking(Canned(body=answer(text("ok")))) as (model, server):
        await model.complete(REQUEST, timeout_s=30)
        await model.complete(REQUEST, timeout_s=30)
        assert server.requests[0] == server.requests[1]


@pytest.mark.parametrize(("stop", "expected"), [("max_tokens", "max_tokens"), ("refusal", "refusal"), ("stop_sequence", "end_turn")])
async def test_stop_reasons(stop: str, expected: str) -> None:
    assert (await ask(Canned(body=answer(text("x"), stop=stop))))[0].stop == expected


def test_a_worker_sees_that_it_has_to_be_closed() -> None:
    assert isinstance(AnthropicModel("claude-test", api_key="k"), Closable)


async def test_what_a_cache_may_keep_ends_in_three_places_and_stays_the_same_from_turn_to_turn() -> None:
    opening, more = Message("user", (Text("Hello"),)), Message("assistant", (ToolUse("a", "look", "{}"),))
    results = Message("user", (ToolResult("a", "look", "seen"),))
    async with asking(Canned(body=answer(text("ok")))) as (model, server):
        for messages in ((opening, more, results), (opening, more, results, Message("assistant", (Text("hm"),)), Message("user", (Text("go on"),)))):
            await model.complete(ModelRequest(MODEL, "Be brief.", REQUEST.tools, messages, 10), timeout_s=30)
        sent = server.requests
    mark = {"type": "ephemeral"}
    for body in sent:
        assert body["system"][-1]["cache_control"] == body["messages"][0]["content"][-1]["cache_control"] == body["cache_control"] == mark
        assert json.dumps(body).count("cache_control") == 3
    first, second = sent
    assert (first["system"], first["tools"], first["messages"]) == (second["system"], second["tools"], second["messages"][:3])
