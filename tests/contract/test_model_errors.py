"""Every row of the error table, and every way an answer can be ruined, on each wire against a real server on loopback."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.model_server import Canned, serve_models
from support.wires import ANTHROPIC, CHAT, GEMINI, KEY, RESPONSES, WIRES, Said, Wire

from crewlog.agents.model import RETRYABLE, ModelError
from crewlog.agents.model_errors import one_try, retry_after_s
from crewlog.schemas.blocks import ModelRequest, ToolDef
from crewlog.schemas.usage import Usage

ROWS = [
    (429, "rate_limit_error", "slow down", "rate_limit"),
    (503, "unavailable", "busy", "overloaded"),
    (529, "overloaded_error", "busy", "overloaded"),
    (500, "api_error", "oops", "server"),
    (502, "bad_gateway", "oops", "server"),
    (409, "conflict", "in use", "server"),
    (408, "timeout", "slow", "timeout"),
    (499, "closed", "gone", "timeout"),
    (504, "timeout_error", "slow", "timeout"),
    (401, "authentication_error", "bad key", "auth"),
    (403, "permission_error", "no", "auth"),
    (402, "billing_error", "pay", "billing"),
    (404, "not_found_error", "the model was retired", "not_found"),
    (413, "request_too_large", "too large", "context_length"),
    (400, "invalid_request_error", "prompt is too long: 300000 tokens > 200000 maximum", "context_length"),
    (400, "INVALID_ARGUMENT", "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).", "context_length"),
    (400, "invalid_request_error", "tools.0.name: bad", "bad_request"),
    (422, "invalid_request_error", "cannot be processed", "bad_request"),
]


def coded(type_: str, code: str) -> Any:
    return {"type": "error", "error": {"type": type_, "message": "x", "details": {"error_code": code}}}


SPECIAL: list[tuple[Wire, int, Any, str]] = [
    (
        ANTHROPIC,
        429,
        {"type": "error", "error": {"type": "rate_limit_error", "message": "x", "details": {"error_code": "enforced_spend_limit_reached"}}},
        "billing",
    ),
    (
        ANTHROPIC,
        400,
        {"type": "error", "error": {"type": "invalid_request_error", "message": "x", "details": {"error_code": "organization_on_hold"}}},
        "billing",
    ),
    (ANTHROPIC, 400, ANTHROPIC.problem(400, "invalid_request_error", "Your credit balance is too low"), "billing"),
    (RESPONSES, 429, RESPONSES.problem(429, "insufficient_quota", "You exceeded your current quota"), "billing"),
    (CHAT, 429, CHAT.problem(429, "insufficient_quota", "You exceeded your current quota"), "billing"),
    (RESPONSES, 400, RESPONSES.problem(400, "context_length_exceeded", "too much"), "context_length"),
    (CHAT, 400, CHAT.problem(400, "content_filter", "filtered"), "content_filter"),
    (GEMINI, 400, {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "API key not valid.", "details": [{"reason": "API_KEY_INVALID"}]}}, "auth"),
    *((wire, 503, "<html>down</html>", "overloaded") for wire in WIRES),
    *((wire, 400, "", "bad_request") for wire in WIRES),
]


async def refused(wire: Wire, canned: Canned, *, timeout_s: float = 5, is_streamed: bool = False, request: ModelRequest | None = None) -> ModelError:
    """Ask once and return the error; asked twice would be a retry of the SDK. Where a busy machine had not asked when its time was over, it gets more."""
    async with wire.asking(canned) as (model, server):
        with pytest.raises(ModelError) as caught:
            await model.complete(request or wire.request(), timeout_s=timeout_s, on_text=(lambda text: None) if is_streamed else None)
        asked = len(server.requests)
    if request is None and not asked and timeout_s < 60:
        return await refused(wire, canned, timeout_s=timeout_s * 4, is_streamed=is_streamed)
    assert asked == (request is None)
    assert KEY not in str(caught.value)
    assert caught.value.failure().retryable == (caught.value.kind in RETRYABLE)
    return caught.value


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("wire", WIRES, ids=str)
@pytest.mark.parametrize(("status", "code", "message", "kind"), ROWS, ids=[f"{row[0]}-{row[3]}" for row in ROWS])
async def test_a_refusal_is_asked_once_and_named(wire: Wire, status: int, code: str, message: str, kind: str, is_streamed: bool) -> None:
    error = await refused(wire, Canned(status, wire.problem(status, code, message)), is_streamed=is_streamed)
    assert (error.kind, error.status) == (kind, status)
    assert message in str(error)


@pytest.mark.parametrize(("wire", "status", "body", "kind"), SPECIAL, ids=[f"{wire}-{status}-{kind}" for wire, status, _, kind in SPECIAL])
async def test_codes_say_more_than_the_status(wire: Wire, status: int, body: Any, kind: str) -> None:
    assert (await refused(wire, Canned(status, body))).kind == kind


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_how_long_to_wait_and_the_name_of_the_call_are_passed_on(wire: Wire) -> None:
    headers = {"retry-after": "17.5", "request-id": "req-7", "x-request-id": "req-7"}
    error = await refused(wire, Canned(429, wire.problem(429, "rate_limit_error", "slow down"), headers))
    assert error.retry_after_s == error.failure().retry_after_s == 17.5
    assert error.request_id == ("" if wire is GEMINI else "req-7")


async def test_gemini_says_in_the_body_how_long_to_wait() -> None:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17.5s"}
    body = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "quota", "details": [info]}}
    assert (await refused(GEMINI, Canned(429, body))).retry_after_s == 17.5


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30 GMT", "date": "Sat, 21 Nov 2026 10:00:00 GMT"}, 30),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30 GMT", "date": "Sat, 21 Nov 2026 10:01:00 GMT"}, 0),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30 GMT"}, None),
        ({"retry-after": "-4"}, 0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Mon, 01 Jan 99999 00:00:00 GMT", "date": "Sat, 21 Nov 2026 10:00:00 GMT"}, None),
        ({}, None),
    ],
)
def test_retry_after_has_three_shapes(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


def malformed_answers(wire: Wire) -> list[tuple[str, Canned]]:
    return [
        ("empty object", Canned(body={})),
        ("empty", Canned(body="")),
        ("html", Canned(body="<html>hello</html>", headers={"content-type": "text/html"})),
        ("broken json", Canned(body='{"id": "msg_1", "content": [')),
        ("list", Canned(body=[1, 2])),
        ("no stop reason", Canned(body=wire.answer(Said("half", stop=None)))),
        ("unknown stop reason", Canned(body=wire.answer(Said("x", stop="invented")))),
        ("wrong types", Canned(body={**wire.answer(Said()), "content": 7, "output": 7, "choices": 7, "candidates": 7})),
        ("stream that just ends", Canned(events=wire.events(Said("half an answer", stop=None)))),
        ("stream of nothing", Canned(events=[])),
        ("stream of html", Canned(events=["<html>hello</html>\n\n"])),
        ("stream with broken json", Canned(events=[*wire.events(Said())[:2], 'data: {"type": \n\n'])),
    ]


@pytest.mark.parametrize(("wire", "canned"), [pytest.param(wire, canned, id=f"{wire}-{name}") for wire in WIRES for name, canned in malformed_answers(wire)])
async def test_what_is_no_answer_is_malformed(wire: Wire, canned: Canned) -> None:
    assert (await refused(wire, canned, is_streamed=canned.events is not None)).kind == "malformed"


@pytest.mark.parametrize("wire", WIRES, ids=str)
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_a_cut_connection(wire: Wire, is_streamed: bool) -> None:
    said = Said("x" * 1000)
    canned = Canned(events=wire.events(said)[:2], then="cut") if is_streamed else Canned(body=wire.answer(said), cut_at=200)
    error = await refused(wire, canned, is_streamed=is_streamed)
    assert (error.kind, "broke off the connection" in str(error)) == ("cut", True), error
    # what was used so far is known where the provider says it first
    assert error.usage == (Usage(140, 1, 100, 30, 12) if is_streamed and wire is ANTHROPIC else None)


@pytest.mark.parametrize(("then", "kind"), [("cut", "cut"), ("end", "malformed"), ("hang", "timeout")])
@pytest.mark.parametrize("said", [Said("word " * 400), Said("", (("toolu_1", "look", json.dumps({"at": "word " * 400})),))], ids=["text", "call"])
async def test_what_was_written_before_a_stream_broke_was_used(said: Said, then: Any, kind: str) -> None:
    """This provider tells at the beginning what it read, and only at the end what it wrote."""
    error = await refused(ANTHROPIC, Canned(events=ANTHROPIC.events(said)[:-2], then=then), timeout_s=3 if then == "hang" else 10, is_streamed=True)
    assert (error.kind, error.usage and error.usage.input_tokens) == (kind, 140)
    assert error.usage is not None
    assert 400 <= error.usage.output_tokens < 800


@pytest.mark.parametrize("wire", WIRES, ids=str)
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_silence_is_a_timeout(wire: Wire, is_streamed: bool) -> None:
    canned = Canned(events=wire.events(Said())[:2], then="hang") if is_streamed else Canned(hangs=True)
    assert (await refused(wire, canned, timeout_s=0.3, is_streamed=is_streamed)).kind == "timeout"


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_nobody_listening_is_a_connection_error(wire: Wire) -> None:
    async with serve_models(Canned()) as server:
        url = server.url
    model: Any = wire.make(url)
    with pytest.raises(ModelError) as caught:
        await model.complete(wire.request(), timeout_s=30)
    await model.close()
    assert (caught.value.kind, f"cannot be reached at {url}: " in str(caught.value)) == ("connection", True), caught.value


ODD_BODIES: list[Any] = [
    {"error": {"message": {"a": 1}, "type": ["x"], "code": {"y": 1}, "status": 7, "details": "none"}},
    {"error": "text"},
    {"error": None},
    {"error": ["x"]},
    ["x"],
    "text",
    "",
    7,
]


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_a_refusal_in_a_form_of_its_own_is_told_by_its_status(wire: Wire) -> None:
    async with wire.asking(*(Canned(500, body) for body in ODD_BODIES)) as (model, _):
        for body in ODD_BODIES:
            with pytest.raises(ModelError) as caught:
                await model.complete(wire.request(), timeout_s=30)
            assert (caught.value.kind, caught.value.status) == ("server", 500), body


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_an_error_in_a_stream_in_a_form_of_its_own_is_not_taken_for_our_mistake(wire: Wire) -> None:
    odd = [body for body in ODD_BODIES[:4] if body != {"error": None}]
    streams = [[*wire.events(Said())[:2], {"type": "error", **body}] for body in odd]
    async with wire.asking(*(Canned(events=events) for events in streams)) as (model, _):
        for body in odd:
            with pytest.raises(ModelError) as caught:
                await model.complete(wire.request(), timeout_s=30, on_text=lambda text: None)
            assert caught.value.kind in ("server", "malformed"), body


IN_STREAM = [
    (ANTHROPIC, {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, "overloaded"),
    (ANTHROPIC, {"type": "error", "error": {"type": "api_error", "message": "oops"}}, "server"),
    (RESPONSES, {"type": "error", "code": "rate_limit_exceeded", "message": "slow down"}, "rate_limit"),
    (RESPONSES, {"type": "response.failed", "response": {"status": "failed", "output": [], "error": {"code": "server_error", "message": "oops"}}}, "server"),
    (RESPONSES, {"error": {"code": "insufficient_quota", "message": "no more"}}, "billing"),
    (CHAT, {"error": {"code": 429, "message": "slow down"}}, "rate_limit"),
    (CHAT, {"error": "the model crashed"}, "server"),
    (GEMINI, {"error": {"code": 503, "status": "UNAVAILABLE", "message": "busy"}}, "overloaded"),
]


@pytest.mark.parametrize(("wire", "event", "kind"), IN_STREAM, ids=[f"{wire}-{kind}" for wire, _, kind in IN_STREAM])
async def test_an_error_in_the_middle_of_a_stream_is_named(wire: Wire, event: Any, kind: str) -> None:
    error = await refused(wire, Canned(events=[*wire.events(Said())[:2], event]), is_streamed=True)
    assert error.kind == kind
    assert error.usage == (Usage(140, 1, 100, 30, 12) if wire is ANTHROPIC else None)


@pytest.mark.parametrize(
    ("code", "kind"),
    [("rate_limit_exceeded", "rate_limit"), ("server_error", "server"), ("invalid_prompt", "content_filter"), ("insufficient_quota", "billing")],
)
async def test_a_response_can_be_a_failure_with_status_200(code: str, kind: str) -> None:
    body = {**RESPONSES.answer(Said()), "status": "failed", "output": [], "error": {"code": code, "message": "no"}}
    error = await refused(RESPONSES, Canned(body=body))
    assert (error.kind, error.status) == (kind, None)
    assert error.usage == Usage(140, 20, 100, 30, 12), "it is billed"


async def test_a_proxy_reports_errors_with_status_200() -> None:
    assert (await refused(CHAT, Canned(body={"error": {"code": 402, "message": "pay"}}))).kind == "billing"


async def test_a_refused_prompt_of_gemini_is_filtered_content() -> None:
    error = await refused(GEMINI, Canned(body={"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 9}}))
    assert (error.kind, error.usage) == ("content_filter", Usage(9))


async def test_a_full_context_window_is_named_and_billed() -> None:
    error = await refused(ANTHROPIC, Canned(body=ANTHROPIC.answer(Said(stop="model_context_window_exceeded"))))
    assert (error.kind, error.usage) == ("context_length", Usage(140, 20, 100, 30, 12))


@pytest.mark.parametrize("wire", WIRES, ids=str)
@pytest.mark.parametrize("names", [("a.b",), ("1st",), ("x" * 65,), ("",), ("same", "same")], ids=["dot", "digit", "long", "empty", "twice"])
async def test_a_tool_that_not_all_providers_take_is_refused_before_anybody_is_asked(wire: Wire, names: tuple[str, ...]) -> None:
    tools = tuple(ToolDef(name, "", {"type": "object", "properties": {}}) for name in names)
    assert (await refused(wire, Canned(), request=wire.request(tools=tools))).kind == "bad_request"


async def test_a_request_that_cannot_be_built_is_our_mistake_and_stops_the_chain() -> None:
    with pytest.raises(ModelError) as caught:
        async with one_try("m", 5, LookupError, lambda error: ModelError("server", ""), secret=""):
            json.dumps(object())  # what an SDK does when it is given a wrong argument
    assert caught.value.kind == "bad_request"
    assert "could not be built" in str(caught.value)
