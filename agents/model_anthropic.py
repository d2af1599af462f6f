"""The Anthropic Messages API behind the model port: translates a request, asks once, translates the answer or the error.

Retries and tracing of the SDK are off: the worker owns both. Answers are read as bytes and parsed here, because the SDK takes whatever
comes for a message. Whatever cannot be understood in an answer is `malformed`, never a crash.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from crewlog.agents.model import ModelError, OnText
from crewlog.agents.model_calls import TokenCount, as_object, call_ids, check_tools, compact, native_items, raw_list, tool_name
from crewlog.agents.model_errors import malformed, one_try, refusal, understanding, unreachable
from crewlog.agents.model_http import client_options
from crewlog.agents.model_sdk import load_sdk
from crewlog.agents.model_stream import event_data
from crewlog.agents.schema_dialect import NotStrict, express, instruction, original
from crewlog.agents.tokens import estimate_tokens
from crewlog.schemas.blocks import Message, ModelReply, ModelRequest, Native, StopReason, Text, ToolDef, ToolResult, ToolUse
from crewlog.schemas.text import clean
from crewlog.schemas.usage import Usage

if TYPE_CHECKING:
    import anthropic

WIRE: Final = "anthropic.messages"
_STOPS: Final[Mapping[str, StopReason]] = {
    "end_turn": "end_turn",
    "pause_turn": "pause",
    "stop_sequence": "end_turn",
    "tool_use": "tool_use",
    "max_tokens": "max_tokens",
    "refusal": "refusal",
}
_CACHE: Final = {"type": "ephemeral"}
_EFFORTS: Final = {"none": "low", "minimal": "low"}
"""Efforts that other providers know, in the words of this one."""


class AnthropicModel:
    """One model of Anthropic.

    Args:
        name: model id as the provider names it.
        api_key: sent to the provider, never logged.
        base_url: address of the API without `/v1`; None for the SDK's default (or `ANTHROPIC_BASE_URL`).
    """

    wire = WIRE
    provider = "anthropic"
    simulated = False

    def __init__(self, name: str, *, api_key: str, base_url: str | None = None) -> None:
        self.name = name
        self._api_key, self._base_url = api_key, base_url
        self._client: anthropic.AsyncAnthropic | None = None

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        """Ask once.

        Raises:
            ModelError: with the kind that decides between retry, fallback and failure.
        """
        await load_sdk("anthropic")
        import anthropic

        arguments = render(request)
        written = Written()
        async with one_try(self.name, timeout_s, anthropic.AnthropicError, self._explain, used=written.usage, secret=self._api_key):
            create = self._connected(anthropic).messages.with_streaming_response.create
            if on_text is None:
                async with create(**arguments, timeout=timeout_s) as response:
                    body, request_id = await response.read(), response.request_id or ""
            else:
                async with create(**arguments, stream=True, timeout=timeout_s) as response:
                    request_id = response.request_id or ""
                    body = await self._streamed(
                        event_data(response.iter_bytes(), self.name, media_type=response.headers.get("content-type", "")), written, on_text
                    )
            return understand(body, request, request_id)

    async def close(self) -> None:
        """Let go of the connections. Safe to call twice."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    def _connected(self, sdk: Any) -> anthropic.AsyncAnthropic:
        if self._client is None:
            self._client = sdk.AsyncAnthropic(
                api_key=self._api_key,
                base_url=self._base_url,
                max_retries=0,
                open_telemetry={"traces": False, "propagation": False},
                http_client=sdk.DefaultAsyncHttpxClient(**client_options(self.name)),
            )
        return self._client

    async def _streamed(self, events: AsyncIterable[bytes], written: Written, on_text: OnText) -> bytes:
        async for data in events:
            with understanding(self.name):
                text = written.take(json.loads(data))
            if written.refused:
                error = written.refused
                details = error.get("details")
                code = details.get("error_code") if isinstance(details, dict) else None
                raise refusal(self.name, 0, (code, error.get("type")), error.get("message"))
            if text:
                on_text(text)
        with understanding(self.name):
            return written.body()

    def _explain(self, error: anthropic.AnthropicError) -> ModelError:
        import anthropic

        match error:
            case anthropic.APITimeoutError():
                return ModelError("timeout", f"no answer from {self.name}")
            case anthropic.APIConnectionError():
                return unreachable(self.name, error.__cause__ or error)
            case anthropic.APIStatusError():
                names = (error.error_code, error.type)
                message = error.api_message or str(error)
                return refusal(self.name, error.status_code, names, message, headers=error.response.headers, request_id=error.request_id)
            case _:
                return malformed(self.name, f"what the SDK does not understand: {error}")


def render(request: ModelRequest) -> dict[str, Any]:
    """Translate a request into arguments of `messages.create`.

    The same request gives the same bytes, and what comes first stays the same from turn to turn. Three places end what a cache may keep:
    tools and system, which all tasks of a kind share; the opening, which all turns of a task share; and the end, for the next turn.
    """
    check_tools(request)
    messages: list[dict[str, Any]] = [
        {"role": message.role, "content": content} for message in request.messages if (content := _content(message, request.model))
    ]
    arguments: dict[str, Any] = {"model": request.model, "max_tokens": request.max_tokens, "messages": messages, "cache_control": _CACHE}
    if len(messages) > 1:
        messages[0]["content"][-1]["cache_control"] = _CACHE
    if request.system:
        arguments["system"] = [{"type": "text", "text": request.system, "cache_control": _CACHE}]
    if request.tools:
        arguments["tools"] = _tools(msgspec.json.encode(request.tools))
    wanted: dict[str, Any] = {"effort": _EFFORTS.get(request.effort, request.effort)} if request.effort else {}
    if request.output is not None:
        if request.tools:
            arguments["tool_choice"] = {"type": "none"}
        try:
            wanted["format"] = {"type": "json_schema", "schema": express(request.output.schema, "anthropic")}
        except NotStrict:
            messages.append({"role": "user", "content": [{"type": "text", "text": instruction(request.output.schema)}]})
    if wanted:
        arguments["output_config"] = wanted
    return arguments


@lru_cache(maxsize=64)
def _tools(encoded: bytes) -> list[dict[str, Any]]:
    tools = msgspec.json.decode(encoded, type=tuple[ToolDef, ...])
    return [{"name": tool.name, "description": tool.description, "input_schema": tool.parameters} for tool in tools]


def _content(message: Message, model: str) -> list[dict[str, Any]]:
    return native_items(message, WIRE, model) or list(_blocks(message))


def _blocks(message: Message) -> Iterator[dict[str, Any]]:
    """Translate blocks. Results come before text, as the API demands; empty text is left out, as it refuses it."""
    for block in sorted(message.content, key=lambda block: not isinstance(block, ToolResult)):
        match block:
            case Text():
                if block.text.strip():
                    yield {"type": "text", "text": block.text}
            case ToolUse():
                yield {"type": "tool_use", "id": block.call_id, "name": tool_name(block.name), "input": as_object(block.arguments)}
            case ToolResult():
                yield {"type": "tool_result", "tool_use_id": block.call_id, "content": block.content or "(nothing)", "is_error": block.is_error}


class _Thoughts(msgspec.Struct):
    thinking_tokens: TokenCount | None = None


class _Used(msgspec.Struct):
    input_tokens: TokenCount
    output_tokens: TokenCount
    cache_read_input_tokens: TokenCount | None = None
    cache_creation_input_tokens: TokenCount | None = None
    output_tokens_details: _Thoughts | None = None

    def neutral(self) -> Usage:
        """Count input with cache reads and writes, and output with thinking."""
        read, written = self.cache_read_input_tokens or 0, self.cache_creation_input_tokens or 0
        details = self.output_tokens_details
        return Usage(self.input_tokens + read + written, self.output_tokens, read, written, (details.thinking_tokens or 0) if details else 0)


class _Block(msgspec.Struct):
    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _Answer(msgspec.Struct):
    content: list[msgspec.Raw]
    usage: _Used
    stop_reason: str | None = None
    model: str = ""


def understand(body: bytes, request: ModelRequest, request_id: str = "") -> ModelReply:
    """Translate an answer.

    Args:
        body: the message as JSON.

    Raises:
        ModelError: it is no complete message, or the conversation no longer fits.
    """
    asked = request.model
    with understanding(asked):
        answer = msgspec.json.decode(body, type=_Answer)
        blocks = [msgspec.json.decode(item, type=_Block) for item in answer.content]
        usage = answer.usage.neutral()
    if answer.stop_reason is None:
        raise malformed(asked, "an answer without a stop reason: it was cut off", usage=usage, request_id=request_id)
    if answer.stop_reason == "model_context_window_exceeded":
        raise ModelError("context_length", f"the conversation does not fit into the context window of {asked}", usage=usage, request_id=request_id)
    if answer.stop_reason not in _STOPS:
        raise malformed(asked, f"a stop reason this version does not know: {answer.stop_reason}", usage=usage, request_id=request_id)
    ids, kept = call_ids((block.id for block in blocks if block.type == "tool_use"), request)
    # arguments that are no object came through a stream and are kept as text: they cannot go back as an item
    kept = kept and all(bytes(block.input)[:1] == b"{" for block in blocks if block.type == "tool_use")
    items = [item for item, block in zip(answer.content, blocks, strict=True) if block.type != "text" or (block.text or "").strip()]
    return ModelReply(
        content=tuple(_said(blocks, iter(ids), request)),
        stop=_STOPS[answer.stop_reason],
        usage=usage,
        model=answer.model or asked,
        raw=body,
        native=Native(WIRE, asked, raw_list(items)) if kept and items else None,
        thinking="\n\n".join(block.thinking for block in blocks if block.type == "thinking" and block.thinking),
        request_id=request_id,
    )


def _said(blocks: list[_Block], ids: Iterator[str], request: ModelRequest) -> Iterator[Text | ToolUse]:
    for block in blocks:
        if block.type == "text" and block.text:
            yield Text(original(block.text, request.output.schema) if request.output else block.text)
        elif block.type == "tool_use":
            broken = bytes(block.input)[:1] == b'"'
            yield ToolUse(next(ids), block.name, msgspec.json.decode(block.input, type=str) if broken else compact(block.input))


class Written:
    """An answer while it is being streamed: events go in, a message as the API answers without streaming comes out."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._pieces: dict[int, list[str]] = {}
        self.refused: dict[str, Any] | None = None
        """The error that came instead of the rest."""

    def take(self, event: dict[str, Any]) -> str:
        """Take in one event and return the text it adds to the answer."""
        match event["type"]:
            case "message_start":
                self._message = dict(event["message"])
            case "content_block_start":
                self._blocks[event["index"]] = dict(event["content_block"])
            case "content_block_delta":
                return self._add(event["index"], event["delta"])
            case "message_delta":
                self._message |= event["delta"]
                self._message["usage"] = self._message.get("usage", {}) | {key: value for key, value in event["usage"].items() if value is not None}
            case "error":
                self.refused = dict(event["error"])
        return ""

    def _add(self, index: int, delta: dict[str, Any]) -> str:
        block = self._blocks[index]
        match delta["type"]:
            case "text_delta" | "input_json_delta" | "thinking_delta":
                piece: str = delta[{"text_delta": "text", "input_json_delta": "partial_json", "thinking_delta": "thinking"}[delta["type"]]]
                self._pieces.setdefault(index, []).append(piece)
                return piece if delta["type"] == "text_delta" else ""
            case "signature_delta":
                block["signature"] = delta["signature"]
            case "citations_delta":
                block["citations"] = [*(block.get("citations") or ()), delta["citation"]]
        return ""

    def usage(self) -> Usage | None:
        """What was used so far; None while nothing is known. The provider counts what it writes at the end: until then that is estimated."""
        try:
            told = msgspec.convert(self._message.get("usage"), _Used).neutral()
        except msgspec.ValidationError:
            return None
        if self._message.get("stop_reason") is not None:
            return told
        return msgspec.structs.replace(told, output_tokens=max(told.output_tokens, sum(estimate_tokens("".join(pieces)) for pieces in self._pieces.values())))

    def body(self) -> bytes:
        """Return the message as JSON. To be called once, at the end."""
        for index, pieces in self._pieces.items():
            block, text = self._blocks[index], "".join(pieces)
            if block["type"] == "tool_use":
                block["input"] = _parsed(text)
            else:
                key = "thinking" if block["type"] == "thinking" else "text"
                block[key] = (block.get(key) or "") + text
        return clean(json.dumps({**self._message, "content": list(self._blocks.values())}, ensure_ascii=False, separators=(",", ":"))).encode()


def _parsed(text: str) -> Any:
    """Return arguments as an object where they are one; broken ones stay text."""
    found = as_object(text)
    return text if "invalid_json" in found else found
