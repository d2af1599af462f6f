"""A conversation that began on one wire goes on over another: all sixteen pairs, with two parallel calls of which one failed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.model_server import Canned
from support.wires import ANTHROPIC, CHAT, GEMINI, RESPONSES, WIRES, Said, Wire

from crewlog.schemas.blocks import Message, ModelReply, Text, ToolResult, ToolUse

FOREIGN_SIGNATURE = "c2tpcF90aG91Z2h0X3NpZ25hdHVyZV92YWxpZGF0b3I="
SECRETS = ("c2ln", "c2VjcmV0", "rs_1", "fc_0", "msg_1", "Zmlyc3Q+", "My own thoughts.")
"""What belongs to one provider: signatures, encrypted reasoning, item ids, thinking."""
PAIRS = [pytest.param(begun, continued, id=f"{begun}-to-{continued}") for begun in WIRES for continued in WIRES]


async def begin(wire: Wire) -> tuple[Message, ...]:
    said = Said("I look twice.", (("c1", "look", '{"at":"here"}'), ("c2", "look", '{"at":"there","deep":2}')), thinking="My own thoughts.")
    async with wire.asking(Canned(body=wire.answer(said))) as (model, _):
        reply: ModelReply = await model.complete(wire.request(), timeout_s=30)
    results = Message("user", (ToolResult("c1", "look", "seen"), ToolResult("c2", "look", "nobody there", is_error=True)))
    return Message("user", (Text("Hello"),)), Message("assistant", reply.content, reply.native), results


async def go_on(wire: Wire, messages: tuple[Message, ...], **more: Any) -> dict[str, Any]:
    async with wire.asking(Canned(body=wire.answer(Said("Done.")))) as (model, server):
        reply = await model.complete(wire.request(*messages, **more), timeout_s=30)
        assert reply.content == (Text("Done."),)
        return server.requests[0]


@pytest.mark.parametrize(("begun", "continued"), PAIRS)
async def test_every_pair(begun: Wire, continued: Wire) -> None:
    sent = await go_on(continued, await begin(begun))
    uses, results = heard(continued, sent)
    assert uses == [("c1", "look", {"at": "here"}), ("c2", "look", {"at": "there", "deep": 2})]
    assert results == [("c1", "seen", False), ("c2", "nobody there", True)]
    text = json.dumps(sent)
    assert "I look twice." in text
    if begun is not continued or begun is CHAT:
        assert not [secret for secret in SECRETS if secret in text]
    if continued is GEMINI and begun is not GEMINI:
        parts = [part for content in sent["contents"] for part in content["parts"] if "functionCall" in part]
        assert [part.get("thoughtSignature") for part in parts] == [FOREIGN_SIGNATURE, None]


@pytest.mark.parametrize("wire", [ANTHROPIC, RESPONSES, GEMINI], ids=str)
async def test_another_model_over_the_same_wire_is_sent_no_items(wire: Wire) -> None:
    asked, told, results = await begin(wire)
    assert told.native is not None
    text = json.dumps(await go_on(wire, (asked, Message("assistant", told.content, type(told.native)(wire.name, "other", told.native.items)), results)))
    assert not [secret for secret in SECRETS if secret in text]


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_an_answer_that_paused_goes_back_as_the_last_message(wire: Wire) -> None:
    messages = (Message("user", (Text("Hello"),)), Message("assistant", (Text("So far."),)))
    sent = await go_on(wire, messages)
    assert "So far." in json.dumps(sent[{RESPONSES: "input", GEMINI: "contents"}.get(wire, "messages")][-1])


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_messages_that_say_nothing_are_left_out(wire: Wire) -> None:
    messages = (Message("user", (Text("Hello"),)), Message("assistant", (Text(""),)), Message("user", (Text(""), Text("Go on."))))
    sent = await go_on(wire, messages, system="", tools=())
    told = [item for item in sent[{RESPONSES: "input", GEMINI: "contents"}.get(wire, "messages")] if item["role"] in ("assistant", "model")]
    assert not told
    assert '""' not in json.dumps(sent)


def heard(wire: Wire, sent: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Calls as (id, name, arguments) and results as (id, text, is_error), as this wire's provider reads them."""
    match wire.name:
        case "anthropic.messages":
            blocks = [block for message in sent["messages"] for block in message["content"]]
            uses = [(b["id"], b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"]
            return uses, [(b["tool_use_id"], b["content"], b["is_error"]) for b in blocks if b["type"] == "tool_result"]
        case "openai.responses":
            uses = [(i["call_id"], i["name"], json.loads(i["arguments"])) for i in sent["input"] if i["type"] == "function_call"]
            return uses, [said_in_text(i["call_id"], i["output"]) for i in sent["input"] if i["type"] == "function_call_output"]
        case "openai.chat":
            calls = [call for message in sent["messages"] for call in message.get("tool_calls", ())]
            uses = [(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
            return uses, [said_in_text(m["tool_call_id"], m["content"]) for m in sent["messages"] if m["role"] == "tool"]
        case _:
            parts = [part for content in sent["contents"] for part in content["parts"]]
            calls = [part["functionCall"] for part in parts if "functionCall" in part]
            answers = [part["functionResponse"] for part in parts if "functionResponse" in part]
            uses = [(call["id"], call["name"], call["args"]) for call in calls]
            return uses, [(a["id"], next(iter(a["response"].values())), "error" in a["response"]) for a in answers]


def said_in_text(call_id: str, text: str) -> tuple[str, str, bool]:
    is_error = text.startswith('{"error"')
    return call_id, json.loads(text)["error"] if is_error else text, is_error


async def test_what_the_models_say_is_two_calls() -> None:
    """The story above is the one that is meant: two calls, one message."""
    for wire in WIRES:
        _, told, _ = await begin(wire)
        assert [type(block) for block in told.content] == [Text, ToolUse, ToolUse]
        assert (told.native is None) == (wire is CHAT)
