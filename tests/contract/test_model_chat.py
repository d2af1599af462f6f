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


def piece(arguments: Any = None, *, name: str | None = None, **where: Any) -> dict[str, Any]:
    return {**where, "function": {"name": name, "arguments": arguments}}


async def streamed_calls(*deltas: list[dict[str, Any]]) -> list[ToolUse]:
    chunks = [{"choices": [{"delta": {"tool_calls": calls}, "finish_reason": None}]} for calls in deltas]
    reply = await ask(Canned(events=[*chunks, {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}]), shown=[])
    assert len({block.call_id for block in reply.content if isinstance(block, ToolUse)}) == len(reply.content)
    return [block for block in reply.content if isinstance(block, ToolUse)]


@pytest.mark.parametrize("where", [{"index": 0}, {"index": None}, {}])
@pytest.mark.parametrize("ids", [("c1", "c2", "c3"), (None, None, None), ("", "", ""), ("c", "c", "c")])
@pytest.mark.parametrize("is_one_delta", [True, False])
async def test_whole_calls_with_the_same_index_or_none_stay_apart(where: dict[str, Any], ids: tuple[str | None, ...], is_one_delta: bool) -> None:
    whole = [("look", '{"at":"x"}'), ("look", "{}"), ("send", {"to": "y"})]
    calls = [piece(arguments, name=name, id=id_, **where) for id_, (name, arguments) in zip(ids, whole, strict=True)]
    uses = await streamed_calls(calls) if is_one_delta else await streamed_calls(*([call] for call in calls))
    assert [(use.name, use.arguments) for use in uses] == [("look", '{"at":"x"}'), ("look", "{}"), ("send", '{"to": "y"}')]
    if ids[0] == "c1":
        assert [use.call_id for use in uses] == list(ids)


@pytest.mark.parametrize("where", [{"index": 0}, {}])
@pytest.mark.parametrize("ids", [("c1", "c2"), (None, None)])
async def test_calls_in_pieces_with_the_same_index_or_none_stay_apart(where: dict[str, Any], ids: tuple[str | None, ...]) -> None:
    pieces = [[piece("", name="look", id=id_, **where), piece('{"at":', **where), piece(f'"{at}"}}', **where)] for at, id_ in enumerate(ids)]
    uses = await streamed_calls(*([each] for call in pieces for each in call))
    assert [(use.name, use.arguments) for use in uses] == [("look", '{"at":"0"}'), ("look", '{"at":"1"}')]


async def test_pieces_of_two_calls_may_come_in_turns() -> None:
    first, second = {"index": 0, "id": "c1"}, {"index": 0, "id": "c2"}
    uses = await streamed_calls(
        [piece("", name="look", **first)], [piece("", name="send", **second)], [piece('{"at":', **first)], [piece("{}", **second)], [piece('"x"}', **first)]
    )
    assert uses == [ToolUse("c1", "look", '{"at":"x"}'), ToolUse("c2", "send", "{}")]


@pytest.mark.parametrize("again", [{"id": "c1", "name": "look"}, {"name": "look"}, {"id": "another"}])
async def test_a_piece_that_says_again_what_it_belongs_to_or_has_an_id_of_its_own_is_no_call(again: dict[str, Any]) -> None:
    at = {"index": 0}
    uses = await streamed_calls([piece("", name="look", id="c1", **at)], [piece('{"at":', **again, **at)], [piece('"x"}', **again, **at)])
    assert uses == [ToolUse("c1", "look", '{"at":"x"}')]
    uses = await streamed_calls([piece('{"at":"x"}', name="look", id="c1", **at)], [piece("", **{"id": "c1", **again}, **at)])
    assert uses == [ToolUse("c1", "look", '{"at":"x"}')]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_content_in_pieces(is_streamed: bool) -> None:
    pieces = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Hi "}, {"type": "text", "text": "there."}]
    body = CHAT.answer(Said())
    body["choices"][0]["message"]["content"] = pieces
    chunks = [{"choices": [{"delta": {"content": [piece]}, "finish_reason": None}]} for piece in pieces]
    events = [*chunks, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    reply = await ask(Canned(events=events) if is_streamed else Canned(body=body), shown=[] if is_streamed else None)
    assert (reply.content, reply.thinking) == ((Text("Hi there."),), "hm")
