"""What is between a model and its agent, or pretends to be a model: pages, redirects, bombs, floods, keys that come back, counts below zero."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.model_server import Canned, serve_models
from support.wires import ANTHROPIC, CHAT, GEMINI, KEY, RESPONSES, WIRES, Said, Wire

from crewlog.agents.model import ModelError
from crewlog.agents.model_calls import as_object
from crewlog.agents.model_http import ANSWER_BYTES_MAX
from crewlog.schemas.blocks import Text, ToolUse

PAGE = "<html><body>Please log in to the proxy</body></html>"
BOMB = gzip.compress(b" " * (ANSWER_BYTES_MAX + 1))


async def failed(wire: Wire, canned: Canned, *, is_streamed: bool = True) -> ModelError:
    async with wire.asking(canned) as (model, server):
        with pytest.raises(ModelError) as caught:
            await model.complete(wire.request(), timeout_s=20, on_text=(lambda text: None) if is_streamed else None)
        assert len(server.requests) == 1
    return caught.value


def counted(wire: Wire, name: str, count: int) -> Any:
    """An answer of which one count of tokens is another."""

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: count if key == name else changed(inner) for key, inner in value.items()}
        return [changed(inner) for inner in value] if isinstance(value, list) else value

    return changed(wire.answer(Said()))


@pytest.mark.parametrize("wire", WIRES, ids=str)
@pytest.mark.parametrize(("body", "media_type"), [(PAGE, "text/html"), ({}, "application/json"), ("", "text/plain")], ids=["page", "object", "nothing"])
async def test_what_is_no_stream_is_shown(wire: Wire, body: Any, media_type: str) -> None:
    error = await failed(wire, Canned(body=body, headers={"content-type": media_type}))
    assert error.kind == "malformed"
    if wire is not GEMINI:  # its SDK reads streams, and says it in its own words
        assert f"{media_type} instead of a stream of events: {body if body == PAGE else '{}' if body == {} else 'nothing'}" in error.message
    elif body == PAGE:
        assert PAGE in error.message


@pytest.mark.parametrize("wire", WIRES, ids=str)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_conversation_is_not_sent_on_to_another_address(wire: Wire, status: int) -> None:
    async with serve_models(Canned(body=wire.answer(Said()))) as other:
        error = await failed(wire, Canned(status, "", {"location": f"{other.url}/elsewhere"}))
        assert (error.kind, error.status, len(other.requests)) == ("not_found", status, 0)
        assert f"redirects to {other.url}/elsewhere" in error.message


@pytest.mark.parametrize("wire", WIRES, ids=str)
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_an_answer_is_never_unpacked_beyond_its_bound(wire: Wire, is_streamed: bool) -> None:
    error = await failed(wire, Canned(body=BOMB, headers={"content-encoding": "gzip"}), is_streamed=is_streamed)
    assert (error.kind, "larger than 64 MiB" in error.message) == ("malformed", True), error


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_an_error_is_bounded_too(wire: Wire) -> None:
    error = await failed(wire, Canned(500, BOMB, {"content-encoding": "gzip"}))
    assert (error.kind, "larger than 64 MiB" in error.message) == ("malformed", True), error


async def test_a_stream_that_never_ends_is_left() -> None:
    line = "data: " + "x" * (ANSWER_BYTES_MAX // 8)

    class Endless(list[str]):
        def __iter__(self) -> Iterator[str]:
            for _ in range(10_000):
                yield line

    error = await failed(CHAT, Canned(events=Endless(), then="hang"))
    assert (error.kind, "larger than 64 MiB" in error.message) == ("malformed", True), error


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_an_answer_may_be_packed(wire: Wire) -> None:
    body = gzip.compress(json.dumps(wire.answer(Said("Packed."))).encode())
    async with wire.asking(Canned(body=body, headers={"content-encoding": "gzip"})) as (model, server):
        reply = await model.complete(wire.request(), timeout_s=30)
        assert server.headers[0]["accept-encoding"] == "gzip, deflate"
    assert reply.content == (Text("Packed."),)


@pytest.mark.parametrize("wire", WIRES, ids=str)
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_a_packed_answer_that_breaks_off_says_so(wire: Wire, is_streamed: bool) -> None:
    packed = gzip.compress(json.dumps(wire.answer(Said("Packed."))).encode())
    error = await failed(wire, Canned(body=packed[:-1], headers={"content-encoding": "gzip"}), is_streamed=is_streamed)
    assert (error.kind, "breaks off before its end" in error.message) == ("malformed", True), error


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_a_packing_that_was_not_asked_for_is_named(wire: Wire) -> None:
    error = await failed(wire, Canned(body=b"\x1b", headers={"content-encoding": "br"}))
    assert (error.kind, "packed as 'br', which was not asked for" in error.message) == ("malformed", True), error


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_a_key_that_comes_back_is_not_told(wire: Wire) -> None:
    error = await failed(wire, Canned(401, wire.problem(401, "authentication_error", f"invalid key: {KEY}\0")))
    assert error.kind == "auth"
    assert "invalid key: [key]\ufffd" in error.message, "nor is what the log cannot hold"
    assert KEY not in f"{error} {error.args} {error.failure()}"


@pytest.mark.parametrize(
    ("wire", "answer"),
    [
        (RESPONSES, {"status": "failed", "output": [], "error": {"message": f"invalid key: {KEY}"}}),
        (CHAT, {"error": {"message": f"invalid key: {KEY}"}}),
        (ANTHROPIC, {"content": [], "usage": {"input_tokens": 1, "output_tokens": 1}, "stop_reason": KEY}),
        (GEMINI, {"candidates": [{"finishReason": KEY}], "usageMetadata": {}}),
    ],
    ids=str,
)
async def test_nor_is_one_in_an_answer_that_is_none(wire: Wire, answer: Any) -> None:
    error = await failed(wire, Canned(body=answer), is_streamed=False)
    assert "[key]" in error.message
    assert KEY not in f"{error} {error.args} {error.failure()}"


@pytest.mark.parametrize(("asked", "believed"), [("99999999", 86_400), ("1e308", 86_400), ("-5", 0), ("nan", None)])
async def test_a_wait_is_believed_as_far_as_a_schedule_reaches(asked: str, believed: float | None) -> None:
    error = await failed(RESPONSES, Canned(429, RESPONSES.problem(429, "rate_limit_error", "slow down"), {"retry-after": asked}))
    assert error.retry_after_s == believed
    detail = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{asked}s"}
    body = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "slow down", "details": [detail]}}
    assert (await failed(GEMINI, Canned(429, body))).retry_after_s == believed


@pytest.mark.parametrize(
    ("wire", "name"),
    [(ANTHROPIC, "output_tokens"), (RESPONSES, "input_tokens"), (CHAT, "completion_tokens"), (GEMINI, "candidatesTokenCount")],
    ids=str,
)
@pytest.mark.parametrize("count", [-1, 2**70])
async def test_no_answer_gives_money_back(wire: Wire, name: str, count: int) -> None:
    error = await failed(wire, Canned(body=counted(wire, name, count)), is_streamed=False)
    assert (error.kind, error.usage) == ("malformed", None), error


@pytest.mark.parametrize("wire", [ANTHROPIC, GEMINI], ids=str)
async def test_a_character_that_was_cut_in_two_is_whole_again(wire: Wire) -> None:
    events = [json.dumps(event).replace("QQ", "\\ud83d").replace("ZZ", "\\ude00") for event in wire.events(Said("QQZZ"))]
    framed = [f"data: {event}\n\n" for event in events if not event.startswith('"event')]
    async with wire.asking(Canned(events=framed)) as (model, _):
        reply = await model.complete(wire.request(), timeout_s=30, on_text=lambda text: None)
    assert reply.content == (Text("😀"),)


@pytest.mark.parametrize("wire", [ANTHROPIC, RESPONSES, CHAT], ids=str)
@pytest.mark.parametrize("arguments", ['{"at": NaN}', '{"at": 1e400}', "[" * 100_000, '"here"', '{"at": '], ids=["nan", "endless", "deep", "text", "broken"])
async def test_arguments_that_are_none_cost_no_call_and_can_go_back_to_every_provider(wire: Wire, arguments: str) -> None:
    async with wire.asking(Canned(events=wire.events(Said("", (("call_1", "look", arguments),))))) as (model, _):
        reply = await model.complete(wire.request(), timeout_s=30, on_text=lambda text: None)
    (use,) = reply.content
    assert use == ToolUse("call_1", "look", arguments), "whoever runs the tool says what is wrong with them"
    assert as_object(arguments) == {"invalid_json": arguments}
