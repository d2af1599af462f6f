"""The OpenAI Responses API behind the model port.

Nothing is kept at the provider (`store=False`): the log holds the conversation, and reasoning comes back encrypted, to be sent again. Items go
back as they came, but only to the same model; without their reasoning they would be refused. Requests go out through the SDK's `extra_body`: its
walk over the types of a long conversation costs 25 ms of CPU per call and changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from crewlog.agents.model import OnText
from crewlog.agents.model_calls import TokenCount, as_json, call_ids, check_tools, native_items, raw_list, tool_name
from crewlog.agents.model_errors import malformed, one_try, understanding
from crewlog.agents.model_openai import Connection, output_schema, result_text, strict_or_plain
from crewlog.agents.model_sdk import load_sdk
from crewlog.agents.model_stream import event_data
from crewlog.agents.schema_dialect import original, without_nulls
from crewlog.schemas.blocks import Message, ModelReply, ModelRequest, Native, StopReason, Text, ToolDef, ToolResult, ToolUse
from crewlog.schemas.usage import Usage

WIRE: Final = "openai.responses"
_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_INCOMPLETE: Final[Mapping[str, StopReason]] = {"max_output_tokens": "max_tokens", "content_filter": "refusal"}


class OpenAIResponsesModel:
    """One model of OpenAI.

    Args:
        name: model id as the provider names it.
        api_key: sent to the provider, never logged.
        base_url: address of the API with `/v1`; None for the SDK's default (or `OPENAI_BASE_URL`).
    """

    wire = WIRE
    provider = "openai"
    simulated = False

    def __init__(self, name: str, *, api_key: str, base_url: str | None = None) -> None:
        self.name = name
        self._api_key = api_key
        self._connection = Connection(name, api_key=api_key, base_url=base_url)

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        """Ask once.

        Raises:
            ModelError: with the kind that decides between retry, fallback and failure.
        """
        await load_sdk("openai")
        import openai

        body_sent = render(request)
        async with one_try(self.name, timeout_s, openai.OpenAIError, self._connection.explain, secret=self._api_key):
            create = self._connection.open(openai).responses.with_streaming_response.create
            if on_text is None:
                async with create(extra_body=body_sent, timeout=timeout_s) as response:
                    body, request_id = await response.read(), response.headers.get("x-request-id", "")
            else:
                async with create(extra_body=body_sent, stream=True, timeout=timeout_s) as response:
                    request_id = response.headers.get("x-request-id", "")
                    body = await self._streamed(event_data(response.iter_bytes(), self.name, media_type=response.headers.get("content-type", "")), on_text)
            return understand(body, request, self._connection, request_id)

    async def close(self) -> None:
        """Let go of the connections. Safe to call twice."""
        await self._connection.close()

    async def _streamed(self, events: AsyncIterable[bytes], on_text: OnText) -> bytes:
        """Return the response that the last event carries: it holds the whole answer."""
        async for data in events:
            if data == b"[DONE]":
                break
            with understanding(self.name):
                event = msgspec.json.decode(data, type=_Event)
            if event.type in _ENDS:
                return bytes(event.response)
            if event.error is not None or event.type == "error":
                raise self._connection.refused(event.error or {"code": event.code, "message": event.message})
            if event.type == "response.output_text.delta" and event.delta:
                on_text(event.delta)
        raise malformed(self.name, "a stream that ended before the answer was complete")


def render(request: ModelRequest) -> dict[str, Any]:
    """Translate a request into the body of `POST /responses`. The same request gives the same bytes, which is what a prompt cache wants."""
    check_tools(request)
    body: dict[str, Any] = {
        "model": request.model,
        "input": [item for message in request.messages for item in _items(message, request.model)],
        "max_output_tokens": request.max_tokens,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": _prefix_key(request.system, msgspec.json.encode(request.tools)),
    }
    if request.system:
        body["instructions"] = request.system
    if request.tools:
        body["tools"] = _tools(msgspec.json.encode(request.tools))
    if request.output is not None:
        body["text"] = {"format": {"type": "json_schema", **output_schema(request.output)}}
        if request.tools:
            body["tool_choice"] = "none"
    if request.effort:
        body["reasoning"] = {"effort": request.effort}
    return body


@lru_cache(maxsize=64)
def _prefix_key(system: str, tools: bytes) -> str:
    """Name what all tasks of a kind begin with, so that they reach the same cache."""
    return hashlib.sha256(system.encode() + b"\0" + tools).hexdigest()[:32]


@lru_cache(maxsize=64)
def _tools(encoded: bytes) -> list[dict[str, Any]]:
    tools = []
    for tool in msgspec.json.decode(encoded, type=tuple[ToolDef, ...]):
        parameters, strict = strict_or_plain(tool.parameters)
        tools.append({"type": "function", "name": tool.name, "description": tool.description, "parameters": parameters, "strict": strict})
    return tools


def _items(message: Message, model: str) -> list[dict[str, Any]]:
    return native_items(message, WIRE, model) or list(_rendered(message))


def _rendered(message: Message) -> Iterator[dict[str, Any]]:
    for block in message.content:
        match block:
            case Text():
                if block.text:
                    yield {"type": "message", "role": message.role, "content": block.text}
            case ToolUse():
                yield {"type": "function_call", "call_id": block.call_id, "name": tool_name(block.name), "arguments": as_json(block.arguments)}
            case ToolResult():
                yield {"type": "function_call_output", "call_id": block.call_id, "output": result_text(block)}


class _Event(msgspec.Struct):
    type: str = ""
    delta: Any = None
    response: msgspec.Raw = msgspec.Raw(b"null")
    error: dict[str, Any] | None = None
    code: Any = None
    message: str | None = None


class _In(msgspec.Struct):
    cached_tokens: TokenCount | None = None
    cache_write_tokens: TokenCount | None = None


class _Out(msgspec.Struct):
    reasoning_tokens: TokenCount | None = None


class _Used(msgspec.Struct):
    input_tokens: TokenCount
    output_tokens: TokenCount
    input_tokens_details: _In | None = None
    output_tokens_details: _Out | None = None

    def neutral(self) -> Usage:
        read, out = self.input_tokens_details or _In(), self.output_tokens_details or _Out()
        return Usage(self.input_tokens, self.output_tokens, read.cached_tokens or 0, read.cache_write_tokens or 0, out.reasoning_tokens or 0)


class _Part(msgspec.Struct):
    type: str = ""
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct):
    type: str
    content: list[_Part] | None = None
    summary: list[_Part] | None = None
    encrypted_content: str | None = None
    call_id: str | None = None
    name: str = ""
    arguments: str = ""


class _Reason(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    status: str
    output: list[msgspec.Raw]
    usage: _Used | None = None
    error: dict[str, Any] | None = None
    incomplete_details: _Reason | None = None
    model: str = ""


def understand(body: bytes, request: ModelRequest, connection: Connection, request_id: str = "") -> ModelReply:
    """Translate an answer.

    Args:
        body: the response as JSON.

    Raises:
        ModelError: it is no complete response, or the provider reports a failure in it.
    """
    asked = request.model
    with understanding(asked):
        answer = msgspec.json.decode(body, type=_Response)
        items = [msgspec.json.decode(item, type=_Item) for item in answer.output]
        usage = answer.usage.neutral() if answer.usage else None
    if answer.status == "failed":
        error = connection.refused(answer.error or {}, request_id=request_id)
        error.usage = usage
        raise error
    reason = (answer.incomplete_details.reason if answer.incomplete_details else None) or "none"
    if answer.status not in ("completed", "incomplete") or (answer.status == "incomplete" and reason not in _INCOMPLETE):
        raise malformed(asked, f"a response with status {answer.status} and reason {reason}", usage=usage, request_id=request_id)
    if usage is None:
        raise malformed(asked, "a response without usage", request_id=request_id)
    ids, kept = call_ids((item.call_id for item in items if item.type == "function_call"), request)
    given = all(item.call_id for item in items if item.type == "function_call")
    # reasoning without its encrypted content lives at the provider only, which keeps nothing for us
    kept = kept and given and all(item.encrypted_content for item in items if item.type == "reasoning")
    return ModelReply(
        content=tuple(_said(items, iter(ids), request)),
        stop=_INCOMPLETE[reason] if answer.status == "incomplete" else _stop(items),
        usage=usage,
        model=answer.model or asked,
        raw=body,
        native=Native(WIRE, asked, raw_list(answer.output)) if kept and items else None,
        thinking="\n\n".join(part.text for item in items if item.type == "reasoning" for part in item.summary or () if part.text),
        request_id=request_id,
    )


def _stop(items: list[_Item]) -> StopReason:
    if any(part.type == "refusal" for item in items for part in item.content or ()):
        return "refusal"
    return "tool_use" if any(item.type == "function_call" for item in items) else "end_turn"


def _said(items: list[_Item], ids: Iterator[str], request: ModelRequest) -> Iterator[Text | ToolUse]:
    schemas = {tool.name: tool.parameters for tool in request.tools}
    for item in items:
        if item.type == "message":
            for part in item.content or ():
                if part.type == "output_text" and part.text:
                    yield Text(original(part.text, request.output.schema) if request.output else part.text)
                elif part.refusal:
                    yield Text(part.refusal)
        elif item.type == "function_call":
            yield ToolUse(next(ids), item.name, without_nulls(item.arguments, schemas.get(item.name)))
