"""Servers that speak Chat Completions in their own ways: the adapter takes them as they are."""

from __future__ import annotations

from typing import Any

import pytest
from support.model_server import Canned, serve_models
from support.wires import CHAT, Said

from crewlog.agents.model_openai_chat import OpenAIChatModel
from crewlog.agents.tokens import estimate_usage
from crewlog.schemas.blocks import ModelReply, OutputFormat, Text, ToolUse

VERDICT = OutputFormat("verdict", {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})


async def ask(answer: Canned, *, shown: list[str] | None = None, **more: Any) -> ModelReply:
    async with CHAT.asking(answer) as (model, _):
        return await model.complete(CHAT.request(**more), timeout_s=30, on_text=None if shown is None else shown.append)


async def asked_with(answer: Any, output: OutputFormat | None = None, **settings: Any) -> tuple[ModelReply, dict[str, Any], dict[str, str]]:
    async with serve_models(Canned(body=answer)) as server:
        model = OpenAIChatModel("qwen-test", provider="box", base_url=f"{server.url}/v1", **settings)
        reply = await model.complete(CHAT.request(output=output), timeout_s=30)
        await model.close()
        return reply, server.requests[0], server.headers[0]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_server_that_does_not_count_is_not_free(is_streamed: bool) -> None:
    body = {**CHAT.answer(Said()), "usage": None}
    events = CHAT.events(Said())[:-2]  # it just ends: no usage, no [DONE]
    reply = await ask(Canned(events=events) if is_streamed else Canned(body=body), shown=[] if is_streamed else None)
    assert reply.usage == estimate_usage(CHAT.request(), reply.content)
    assert reply.usage.input_tokens > 0


async def test_the_key_of_another_provider_is_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-openai")
    _, _, headers = await asked_with(CHAT.answer(Said()))
    assert headers["authorization"] == "Bearer none"


async def test_the_bound_of_the_answer_has_the_name_that_is_configured() -> None:
    _, sent, _ = await asked_with(CHAT.answer(Said()), max_tokens_field="max_completion_tokens")
    assert sent["max_completion_tokens"] == 500
    assert "max_tokens" not in sent


async def test_a_structured_answer_by_a_forced_call() -> None:
    reply, sent, _ = await asked_with(CHAT.answer(Said("", (("c1", "verdict", '{"ok": true}'),))), VERDICT, structured="tool")
    assert (reply.content, reply.stop) == ((Text('{"ok": true}'),), "end_turn")
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["verdict"]
    assert sent["tool_choice"]["function"]["name"] == "verdict"


async def test_a_structured_answer_by_instruction() -> None:
    reply, sent, _ = await asked_with(CHAT.answer(Said('Sure! {"ok": true} There it is.')), VERDICT, structured="instruction")
    assert reply.content == (Text('{"ok": true}'),)
    assert "It must satisfy this JSON Schema" in sent["messages"][-1]["content"]
    assert "response_format" not in sent


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_thinking_in_tags_is_no_answer(is_streamed: bool) -> None:
    said = Said("<think>\nLet me see: 2 < 3.\n</think>\n\nIt is three.")
    shown: list[str] = []
    pieces = [said.text[at : at + 5] for at in range(0, len(said.text), 5)]
    chunks = [{"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    events = [*chunks, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    reply = await ask(Canned(events=events) if is_streamed else Canned(body=CHAT.answer(said)), shown=shown if is_streamed else None)
    assert reply.content == (Text("It is three."),)
    assert reply.thinking == "Let me see: 2 < 3."
    assert "".join(shown).strip() == ("It is three." if is_streamed else "")


@pytest.mark.parametrize("text", ["<", "<b>bold</b>", "<thin ice>", "  <p>"])
async def test_other_tags_are_text(text: str) -> None:
    shown: list[str] = []
    chunks = [{"choices": [{"delta": {"content": letter}, "finish_reason": None}]} for letter in text]
    reply = await ask(Canned(events=[*chunks, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]), shown=shown)
    assert reply.content == (Text(text),)


async def test_arguments_as_an_object_and_stop_beside_calls() -> None:
    body = CHAT.answer(Said("", (("c1", "look", "{}"),), stop="stop"))
    body["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] = {"at": "x"}
    reply = await ask(Canned(body=body))
    assert reply.content == (ToolUse("c1", "look", '{"at": "x"}'),)
    assert reply.stop == "tool_use"


async def test_calls_that_all_have_the_same_index_stay_apart() -> None:
    calls = [{"index": 0, "id": id_, "function": {"name": "look", "arguments": f'{{"at":"{id_}"}}'}} for id_ in ("c1", "c2")]
    chunks = [{"choices": [{"delta": {"tool_calls": [call]}, "finish_reason": None}]} for call in calls]
    reply = await ask(Canned(events=[*chunks, {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}]), shown=[])
    assert reply.content == (ToolUse("c1", "look", '{"at":"c1"}'), ToolUse("c2", "look", '{"at":"c2"}'))


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_content_in_pieces(is_streamed: bool) -> None:
    pieces = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Hi "}, {"type": "text", "text": "there."}]
    body = CHAT.answer(Said())
    body["choices"][0]["message"]["content"] = pieces
    chunks = [{"choices": [{"delta": {"content": [piece]}, "finish_reason": None}]} for piece in pieces]
    events = [*chunks, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    reply = await ask(Canned(events=events) if is_streamed else Canned(body=body), shown=[] if is_streamed else None)
    assert (reply.content, reply.thinking) == ((Text("Hi there."),), "hm")
