"""What each adapter makes of good answers, whole and streamed, against a real server on loopback: one meaning on all wires."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.model_server import Canned
from support.wires import ANTHROPIC, CHAT, GEMINI, LOOK, RESPONSES, WIRES, Said, Wire

from crewlog.schemas.blocks import Message, ModelReply, ModelRequest, OutputFormat, Text, ToolResult, ToolUse
from crewlog.schemas.usage import Usage

TWO_CALLS = (("c1", "look", '{"at":"x"}'), ("c2", "look", '{"at":"y","deep":2}'))
VERDICT = OutputFormat(
    "verdict",
    {
        "type": "object",
        "properties": {"accepted": {"type": "boolean"}, "score": {"type": "integer", "minimum": 1}, "note": {"type": "string"}},
        "required": ["accepted"],
    },
)
OPEN = OutputFormat("counts", {"type": "object", "properties": {"counts": {"type": "object", "additionalProperties": {"type": "integer"}}}})
"""A map with any names: only Gemini's strict mode can say it. `{}` below it makes it too much for that one as well."""
ANYTHING = OutputFormat("anything", {"type": "object", "properties": {"value": {}}})

modes = pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
wires = pytest.mark.parametrize("wire", WIRES, ids=str)


def canned(wire: Wire, said: Said, *, is_streamed: bool) -> Canned:
    headers = {"request-id": "req-1", "x-request-id": "req-1"}
    return Canned(events=wire.events(said), headers=headers) if is_streamed else Canned(body=wire.answer(said), headers=headers)


async def ask(wire: Wire, answer: Canned, request: ModelRequest | None = None, *, shown: list[str] | None = None) -> tuple[ModelReply, dict[str, Any]]:
    async with wire.asking(answer) as (model, server):
        reply = await model.complete(request or wire.request(), timeout_s=30, on_text=None if shown is None else shown.append)
        assert (model.wire, model.provider) == (wire.name, wire.provider)
        assert len(server.requests) == 1
        return reply, server.requests[0]


@wires
@modes
async def test_the_same_answer_means_the_same_on_every_wire(wire: Wire, is_streamed: bool) -> None:
    shown: list[str] = []
    said = Said("I look.", TWO_CALLS, thinking="Let me see.")
    reply, _ = await ask(wire, canned(wire, said, is_streamed=is_streamed), shown=shown if is_streamed else None)
    assert reply.content == (Text("I look."), ToolUse("c1", "look", '{"at":"x"}'), ToolUse("c2", "look", '{"at":"y","deep":2}'))
    assert reply.stop == "tool_use"
    assert reply.thinking == "Let me see."
    assert reply.usage == Usage(140, 20, 100, 0 if wire is GEMINI else 30, 12)
    assert reply.model == wire.answer(said)["model" if wire is not GEMINI else "modelVersion"]
    assert reply.request_id == ("resp-1" if wire is GEMINI else "req-1")
    assert json.loads(reply.raw)
    assert "".join(shown) == ("I look." if is_streamed else ""), "thinking is not shown as the answer"


@wires
async def test_a_streamed_answer_is_the_same_as_a_whole_one(wire: Wire) -> None:
    said = Said("Hello, wörld.\u2028 Next line.", TWO_CALLS, thinking="hm, well")
    whole, _ = await ask(wire, canned(wire, said, is_streamed=False))
    streamed, sent = await ask(wire, canned(wire, said, is_streamed=True), shown=[])
    assert (whole.content, whole.stop, whole.usage, whole.thinking) == (streamed.content, streamed.stop, streamed.usage, streamed.thinking)
    assert (whole.native and json.loads(bytes(whole.native.items))) == (streamed.native and json.loads(bytes(streamed.native.items)))
    assert wire is GEMINI or sent["stream"] is True


STOPS = [
    *((ANTHROPIC, said, stop) for said, stop in (("max_tokens", "max_tokens"), ("refusal", "refusal"), ("stop_sequence", "end_turn"), ("pause_turn", "pause"))),
    *((RESPONSES, said, stop) for said, stop in (("incomplete:max_output_tokens", "max_tokens"), ("incomplete:content_filter", "refusal"))),
    *((CHAT, said, stop) for said, stop in (("length", "max_tokens"), ("content_filter", "refusal"), ("tool_calls", "end_turn"))),
    *((GEMINI, said, stop) for said, stop in (("MAX_TOKENS", "max_tokens"), ("SAFETY", "refusal"), ("RECITATION", "refusal"), ("CONTINUATION", "pause"))),
]


@modes
@pytest.mark.parametrize(("wire", "said", "stop"), STOPS, ids=[f"{wire}-{said}" for wire, said, _ in STOPS])
async def test_stop_reasons(wire: Wire, said: str, stop: str, is_streamed: bool) -> None:
    reply, _ = await ask(wire, canned(wire, Said("So far.", stop=said), is_streamed=is_streamed), shown=[] if is_streamed else None)
    assert (reply.stop, reply.content) == (stop, (Text("So far."),))


async def test_a_refusal_of_openai_is_text_with_its_own_stop() -> None:
    body = RESPONSES.answer(Said())
    body["output"][0]["content"] = [{"type": "refusal", "refusal": "I cannot."}]
    reply, _ = await ask(RESPONSES, Canned(body=body))
    assert (reply.stop, reply.content) == ("refusal", (Text("I cannot."),))


@wires
async def test_the_same_request_is_the_same_bytes_and_holds_no_key(wire: Wire) -> None:
    async with wire.asking(Canned(body=wire.answer(Said()))) as (model, server):
        for _ in range(2):
            await model.complete(wire.request(effort="high"), timeout_s=30)
        assert json.dumps(server.requests[0]) == json.dumps(server.requests[1])
        assert "key-of-a-test" not in json.dumps(server.requests[0])
        assert "key-of-a-test" in str(server.headers[0])
        assert "traceparent" not in server.headers[0]
        assert "key-of-a-test" not in server.paths[0]


async def test_settings_reach_each_wire_in_its_own_words() -> None:
    sent = {wire: (await ask(wire, Canned(body=wire.answer(Said())), wire.request(effort="max")))[1] for wire in WIRES}
    assert (sent[ANTHROPIC]["max_tokens"], sent[ANTHROPIC]["output_config"]) == (500, {"effort": "max"})
    assert (sent[RESPONSES]["max_output_tokens"], sent[RESPONSES]["reasoning"], sent[RESPONSES]["instructions"]) == (500, {"effort": "max"}, "Be brief.")
    assert (sent[RESPONSES]["store"], sent[RESPONSES]["include"]) == (False, ["reasoning.encrypted_content"])
    assert "previous_response_id" not in sent[RESPONSES]
    assert (sent[CHAT]["max_tokens"], sent[CHAT]["reasoning_effort"], sent[CHAT]["messages"][0]) == (500, "max", {"role": "system", "content": "Be brief."})
    assert sent[GEMINI]["generationConfig"] == {"maxOutputTokens": 500, "thinkingConfig": {"thinkingLevel": "XHIGH"}}
    assert sent[GEMINI]["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    assert sent[GEMINI]["tools"][0]["functionDeclarations"][0]["parametersJsonSchema"] == LOOK.parameters
    assert not any("temperature" in json.dumps(body) for body in sent.values())


async def test_strict_tools_lose_their_nulls_again() -> None:
    _, sent = await ask(RESPONSES, Canned(body=RESPONSES.answer(Said())))
    assert sent["tools"][0]["strict"] is True
    assert sent["tools"][0]["parameters"]["required"] == ["at", "deep"]
    reply, _ = await ask(RESPONSES, Canned(body=RESPONSES.answer(Said(calls=(("c1", "look", '{"at":"x","deep":null}'),)))))
    assert reply.content[1] == ToolUse("c1", "look", '{"at": "x"}')


# --- tool calls that are not as they should be


@wires
@modes
@pytest.mark.parametrize("ids", [("c1", "c1"), ("old", "c2"), ("a.b", "x" * 41)], ids=["twice", "of an earlier turn", "not for all"])
async def test_an_id_that_cannot_be_used_is_replaced_and_the_items_are_not_sent_back(wire: Wire, ids: tuple[str, str], is_streamed: bool) -> None:
    history = (Message("assistant", (ToolUse("old", "look", "{}"),)), Message("user", (ToolResult("old", "look", "seen"),)))
    request = wire.request(Message("user", (Text("Hello"),)), *history)
    said = Said("", tuple((id_, "look", "{}") for id_ in ids))
    if wire is CHAT and is_streamed and ids == ("c1", "c1"):
        said = Said("", (("c1", "look", "{}"), ("c1", "look", '{"at":"y"}')))
    reply, _ = await ask(wire, canned(wire, said, is_streamed=is_streamed), request, shown=[] if is_streamed else None)
    again, _ = await ask(wire, canned(wire, said, is_streamed=is_streamed), request, shown=[] if is_streamed else None)
    found = [block.call_id for block in reply.content if isinstance(block, ToolUse)]
    assert len(set(found) | {"old"}) == 3
    assert all(len(call_id) <= 40 and call_id.isascii() for call_id in found)
    assert reply.content == again.content, "ids are made from the request, not drawn"
    assert reply.native is None


@pytest.mark.parametrize("wire", [CHAT, GEMINI], ids=str)
async def test_a_missing_id_is_made_up(wire: Wire) -> None:
    reply, _ = await ask(wire, Canned(body=wire.answer(Said("", ((None, "look", "{}"), (None, "look", "{}"))))))
    first, second = (block for block in reply.content if isinstance(block, ToolUse))
    assert first.call_id != second.call_id
    assert first.call_id.startswith("made_")


@pytest.mark.parametrize("wire", [ANTHROPIC, RESPONSES, CHAT], ids=str)
@pytest.mark.parametrize("broken", ['{"at": ', "not json", '["a list"]'])
async def test_broken_arguments_are_kept_as_text(wire: Wire, broken: str) -> None:
    answer = canned(wire, Said("", (("c1", "look", broken),)), is_streamed=True)
    reply, _ = await ask(wire, answer, shown=[])
    assert reply.content == (ToolUse("c1", "look", broken),)
    assert wire is not ANTHROPIC or reply.native is None, "it cannot go back as an item"


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_broken_arguments_and_invented_names_of_the_past_are_sent_in_a_form_that_is_taken(wire: Wire) -> None:
    history = (
        Message("user", (Text("Hello"),)),
        Message("assistant", (ToolUse("c1", "functions.look<|x|>", '{"at": '),)),
        Message("user", (ToolResult("c1", "functions.look<|x|>", "not valid", is_error=True),)),
    )
    _, sent = await ask(wire, Canned(body=wire.answer(Said())), wire.request(*history))
    text = json.dumps(sent)
    assert "functions_look__x__" in text
    assert "functions.look" not in text
    assert "invalid_json" in text


@wires
@modes
async def test_a_megabyte_of_arguments(wire: Wire, is_streamed: bool) -> None:
    arguments = json.dumps({"at": "x" * 1_000_000, "number": 123456789012345678901234567890}, separators=(",", ":"))
    reply, _ = await ask(wire, canned(wire, Said("", (("c1", "look", arguments),)), is_streamed=is_streamed), shown=[] if is_streamed else None)
    assert reply.content == (ToolUse("c1", "look", arguments),)


# --- structured answers


@wires
@modes
async def test_a_structured_answer(wire: Wire, is_streamed: bool) -> None:
    text = '{"accepted": true, "score": null, "note": "fine"}' if wire is RESPONSES else '{"accepted": true, "note": "fine"}'
    request = wire.request(output=VERDICT)
    reply, sent = await ask(wire, canned(wire, Said(text), is_streamed=is_streamed), request, shown=[] if is_streamed else None)
    assert reply.content == (Text('{"accepted": true, "note": "fine"}'),)
    match wire.name:
        case "anthropic.messages":
            schema = sent["output_config"]["format"]["schema"]
            assert (schema["additionalProperties"], schema["required"]) == (False, ["accepted"])
            assert "minimum: 1" in schema["properties"]["score"]["description"]
            assert sent["tool_choice"] == {"type": "none"}
        case "openai.responses":
            form = sent["text"]["format"]
            assert (form["type"], form["name"], form["strict"]) == ("json_schema", "verdict", True)
            assert form["schema"]["required"] == ["accepted", "score", "note"]
            assert sent["tool_choice"] == "none"
        case "openai.chat":
            assert sent["response_format"]["json_schema"] == {"name": "verdict", "strict": False, "schema": VERDICT.schema}
            assert sent["tool_choice"] == "none"
        case _:
            assert sent["generationConfig"]["responseMimeType"] == "application/json"
            assert sent["generationConfig"]["responseJsonSchema"]["required"] == ["accepted"]
            assert "tools" not in sent


@wires
async def test_what_strict_mode_cannot_express_is_asked_for_in_another_way(wire: Wire) -> None:
    reply, sent = await ask(wire, Canned(body=wire.answer(Said('Here it is:\n```json\n{"value": [1, 2]}\n```'))), wire.request(output=ANYTHING))
    assert reply.content == (Text('{"value": [1, 2]}'),)
    if wire is RESPONSES:
        assert (sent["text"]["format"]["strict"], sent["text"]["format"]["schema"]) == (False, ANYTHING.schema)
    elif wire is not CHAT:
        assert "It must satisfy this JSON Schema" in json.dumps(sent)
        assert "format" not in sent.get("output_config", {})
        assert "responseJsonSchema" not in sent.get("generationConfig", {})


async def test_only_gemini_takes_a_map_with_any_names() -> None:
    _, sent = await ask(GEMINI, Canned(body=GEMINI.answer(Said("{}"))), GEMINI.request(output=OPEN))
    assert sent["generationConfig"]["responseJsonSchema"]["properties"]["counts"]["additionalProperties"] == {"type": "integer"}
    _, sent = await ask(RESPONSES, Canned(body=RESPONSES.answer(Said("{}"))), RESPONSES.request(output=OPEN))
    assert sent["text"]["format"]["strict"] is False


@wires
async def test_an_answer_that_is_no_json_is_left_for_whoever_validates_it(wire: Wire) -> None:
    reply, _ = await ask(wire, Canned(body=wire.answer(Said("I would rather not { say"))), wire.request(output=VERDICT))
    assert reply.content == (Text("I would rather not { say"),)


# --- native items


@pytest.mark.parametrize("wire", [ANTHROPIC, RESPONSES, GEMINI], ids=str)
@modes
async def test_items_go_back_as_they_came(wire: Wire, is_streamed: bool) -> None:
    said = Said("I look.", TWO_CALLS, thinking="hm, well")
    body = wire.answer(said)
    if not is_streamed:  # a field that no version of the SDK knows
        place = {"anthropic.messages": lambda: body["content"], "openai.responses": lambda: body["output"]}
        place.get(wire.name, lambda: body["candidates"][0]["content"]["parts"])()[0]["field_of_tomorrow"] = {"a_b": [1]}
    answer = canned(wire, said, is_streamed=True) if is_streamed else Canned(body=body)
    reply, _ = await ask(wire, answer, shown=[] if is_streamed else None)
    assert reply.native is not None
    assert (reply.native.wire, reply.native.model) == (wire.name, wire.model)
    turn = Message("assistant", reply.content, reply.native)
    results = Message("user", (ToolResult("c1", "look", "seen"), ToolResult("c2", "look", "nobody there", is_error=True)))
    _, sent = await ask(wire, Canned(body=wire.answer(Said())), wire.request(Message("user", (Text("Hello"),)), turn, results))
    match wire.name:
        case "anthropic.messages":
            assert sent["messages"][1]["content"] == body["content"]
        case "openai.responses":
            assert sent["input"][1:-2] == body["output"]
        case _:
            assert sent["contents"][1]["parts"] == body["candidates"][0]["content"]["parts"]


async def test_reasoning_without_its_content_is_not_sent_back() -> None:
    body = RESPONSES.answer(Said(thinking="hm"))
    del body["output"][0]["encrypted_content"]
    reply, _ = await ask(RESPONSES, Canned(body=body))
    assert (reply.native, reply.thinking) == (None, "hm")


async def test_gemini_calls_without_ids_are_answered_by_name_and_order() -> None:
    reply, _ = await ask(GEMINI, Canned(body=GEMINI.answer(Said("", ((None, "look", '{"at":"x"}'), (None, "look", '{"at":"y"}'))))))
    assert reply.native is not None
    uses = [block for block in reply.content if isinstance(block, ToolUse)]
    results = Message("user", tuple(ToolResult(use.call_id, use.name, f"saw {n}") for n, use in enumerate(uses)))
    request = GEMINI.request(Message("user", (Text("Hello"),)), Message("assistant", reply.content, reply.native), results)
    _, sent = await ask(GEMINI, Canned(body=GEMINI.answer(Said())), request)
    assert [part["functionResponse"] for part in sent["contents"][2]["parts"]] == [
        {"name": "look", "response": {"output": "saw 0"}},
        {"name": "look", "response": {"output": "saw 1"}},
    ]
