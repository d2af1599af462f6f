"""The Gemini API behind the model port.

The SDK's retries, automatic function calling and automatic continuation are off. Requests go out as the JSON of the wire, through the SDK's
`extra_body`: its own types would re-encode what has to go back unchanged, and refuse fields they do not know. A signature is bound to
the model that made it; for a call that another model made there is a value that says so.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from crewlog.agents.model import ModelError, OnText
from crewlog.agents.model_calls import TokenCount, as_object, call_ids, check_tools, compact, is_made, native_items, raw_list, tool_name
from crewlog.agents.model_errors import malformed, one_try, refusal, understanding
from crewlog.agents.model_http import client_options
from crewlog.agents.model_sdk import load_sdk
from crewlog.agents.schema_dialect import NotStrict, express, instruction, original
from crewlog.schemas.blocks import Message, ModelReply, ModelRequest, Native, StopReason, Text, ToolDef, ToolResult, ToolUse
from crewlog.schemas.text import clean
from crewlog.schemas.usage import Usage

if TYPE_CHECKING:
    import httpx2
    from google.genai import Client
    from google.genai import errors as genai_errors

WIRE: Final = "gemini.generate_content"
_STOPS: Final[Mapping[str, StopReason]] = {
    "STOP": "end_turn",
    "MAX_TOKENS": "max_tokens",
    "CONTINUATION": "pause",
    **dict.fromkeys(("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR"), "refusal"),
}
_EFFORTS: Final = {"none": "MINIMAL", "max": "XHIGH"}
"""Efforts that other providers know, in the words of this one; the rest only differ in case."""
_FOREIGN: Final = base64.b64encode(b"skip_thought_signature_validator").decode()
"""Signature of the first call in a message that this model did not write: without any, newer models answer 400."""
_BASE64: Final = str.maketrans("-_", "+/")
"""Signatures that passed through the SDK, back into the alphabet in which the provider writes them."""
_UNUSED: Final = "-"
"""The SDK demands contents; those of the request take their place."""


class GeminiModel:
    """One model of Google.

    Args:
        name: model id as the provider names it.
        api_key: sent to the provider, never logged.
        base_url: address of the API without a version; None for the SDK's default.
        api_version: `v1`, `v1beta`; None for the SDK's default.
    """

    wire = WIRE
    provider = "google"
    simulated = False

    def __init__(self, name: str, *, api_key: str, base_url: str | None = None, api_version: str | None = None) -> None:
        self.name = name
        self._api_key, self._base_url, self._api_version = api_key, base_url, api_version
        self._client: Client | None = None
        self._http: httpx2.AsyncClient | None = None

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        """Ask once.

        Raises:
            ModelError: with the kind that decides between retry, fallback and failure.
        """
        await load_sdk("google.genai")
        from google.genai import errors, types

        config = types.GenerateContentConfig(
            http_options=types.HttpOptions(timeout=int(timeout_s * 1000), extra_body=render(request)),
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            automatic_continuation=False,
            should_return_http_response=on_text is None,
        )
        written = Written()
        async with one_try(self.name, timeout_s, errors.APIError, self._explain, used=written.usage, secret=self._api_key):
            models = self._connected().aio.models
            if on_text is None:
                answer = await models.generate_content(model=self.name, contents=_UNUSED, config=config)
                http = answer.sdk_http_response
                body = (http.body or "").encode() if http else b""
            else:
                chunks = await models.generate_content_stream(model=self.name, contents=_UNUSED, config=config)
                body = await self._streamed(cast("AsyncGenerator[Any, None]", chunks), written, on_text)
            return understand(body, request)

    async def close(self) -> None:
        """Let go of the connections. Safe to call twice."""
        if self._client is not None and self._http is not None:
            client, http, self._client, self._http = self._client, self._http, None, None
            await client.aio.aclose()
            client.close()
            await http.aclose()

    def _connected(self) -> Client:
        if self._client is None:
            import httpx2
            from google.genai import Client, types

            # a client of our own: the SDK would take aiohttp where that is installed, whose errors are others
            self._http = httpx2.AsyncClient(**client_options(self.name))
            options = types.HttpOptions(
                base_url=self._base_url,
                api_version=self._api_version,
                retry_options=types.HttpRetryOptions(attempts=1),
                httpx_async_client=self._http,
            )
            self._client = Client(vertexai=False, api_key=self._api_key, http_options=options)
        return self._client

    async def _streamed(self, chunks: AsyncGenerator[Any, None], written: Written, on_text: OnText) -> bytes:
        async with aclosing(chunks):
            while True:
                with understanding(self.name):  # the SDK parses a chunk while it is waited for
                    if (chunk := await anext(chunks, None)) is None:
                        return written.body()
                    text = written.take(chunk.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"sdk_http_response"}))
                if text:
                    on_text(text)

    def _explain(self, error: genai_errors.APIError) -> ModelError:
        details = _details(error.details)
        reasons = tuple(str(detail["reason"]) for detail in details if "reason" in detail)
        message = error.message or str(error)
        headers = getattr(error.response, "headers", None)
        code = error.code if isinstance(error.code, int) else 0
        return refusal(self.name, code, (*reasons, error.status), message, headers=headers, retry_after=_retry_delay(details))


def _details(body: Any) -> list[dict[str, Any]]:
    error = body.get("error") if isinstance(body, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    return [detail for detail in details if isinstance(detail, dict)] if isinstance(details, list) else []


def _retry_delay(details: list[dict[str, Any]]) -> float | None:
    """Return the wait that `RetryInfo` asks for, in seconds: `"17.5s"`."""
    for detail in details:
        if str(detail.get("@type", "")).endswith("RetryInfo"):
            try:
                return float(str(detail.get("retryDelay", "")).removesuffix("s"))
            except ValueError:
                return None
    return None


def render(request: ModelRequest) -> dict[str, Any]:
    """Translate a request into the body of `generateContent`. The same request gives the same bytes, which is what a prompt cache wants."""
    check_tools(request)
    contents = [
        {"role": "model" if message.role == "assistant" else "user", "parts": parts}
        for message in request.messages
        if (parts := native_items(message, WIRE, request.model) or list(_parts(message)))
    ]
    generation: dict[str, Any] = {"maxOutputTokens": request.max_tokens}
    body: dict[str, Any] = {"contents": contents, "generationConfig": generation}
    if request.system:
        body["systemInstruction"] = {"parts": [{"text": request.system}]}
    if request.effort:
        generation["thinkingConfig"] = {"thinkingLevel": _EFFORTS.get(request.effort, request.effort.upper())}
    if request.output is not None:
        # without tools: older models refuse both in one call
        generation["responseMimeType"] = "application/json"
        try:
            generation["responseJsonSchema"] = express(request.output.schema, "gemini")
        except NotStrict:
            contents.append({"role": "user", "parts": [{"text": instruction(request.output.schema)}]})
    elif request.tools:
        body["tools"] = _tools(msgspec.json.encode(request.tools))
    return body


@lru_cache(maxsize=64)
def _tools(encoded: bytes) -> list[dict[str, Any]]:
    tools = msgspec.json.decode(encoded, type=tuple[ToolDef, ...])
    declared = [{"name": tool.name, "description": tool.description, "parametersJsonSchema": tool.parameters} for tool in tools]
    return [{"functionDeclarations": declared}]


def _parts(message: Message) -> Iterator[dict[str, Any]]:
    is_first = True
    for block in message.content:
        match block:
            case Text():
                if block.text:
                    yield {"text": block.text}
            case ToolUse():
                call = {"name": tool_name(block.name), "args": as_object(block.arguments), **_id(block.call_id)}
                yield {"functionCall": call, **({"thoughtSignature": _FOREIGN} if is_first else {})}
                is_first = False
            case ToolResult():
                response = {"error" if block.is_error else "output": block.content}
                yield {"functionResponse": {"name": tool_name(block.name), "response": response, **_id(block.call_id)}}


def _id(call_id: str) -> dict[str, str]:
    """Name a call only by an id that was given: results of calls without one are matched by name and order."""
    return {} if is_made(call_id) else {"id": call_id}


class _Call(msgspec.Struct, rename="camel"):
    name: str
    id: str | None = None
    args: msgspec.Raw = msgspec.Raw(b"{}")


class _Part(msgspec.Struct, rename="camel"):
    text: str | None = None
    thought: bool | None = None
    function_call: _Call | None = None


class _Content(msgspec.Struct, rename="camel"):
    parts: list[msgspec.Raw] | None = None


class _Candidate(msgspec.Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None


class _Used(msgspec.Struct, rename="camel"):
    prompt_token_count: TokenCount | None = None
    candidates_token_count: TokenCount | None = None
    tool_use_prompt_token_count: TokenCount | None = None
    thoughts_token_count: TokenCount | None = None
    cached_content_token_count: TokenCount | None = None

    def neutral(self) -> Usage:
        """Count output with thinking, which this provider counts apart."""
        thoughts = self.thoughts_token_count or 0
        read = (self.prompt_token_count or 0) + (self.tool_use_prompt_token_count or 0)
        return Usage(read, (self.candidates_token_count or 0) + thoughts, self.cached_content_token_count or 0, 0, thoughts)


class _Answer(msgspec.Struct, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: dict[str, Any] | None = None
    usage_metadata: _Used | None = None
    model_version: str | None = None
    response_id: str | None = None


def understand(body: bytes, request: ModelRequest) -> ModelReply:
    """Translate an answer.

    Args:
        body: the response as JSON.

    Raises:
        ModelError: it is no complete answer, or the prompt was refused.
    """
    asked = request.model
    with understanding(asked):
        answer = msgspec.json.decode(body, type=_Answer)
        candidate = answer.candidates[0] if answer.candidates else None
        raw_parts = (candidate.content.parts or []) if candidate and candidate.content else []
        parts = [msgspec.json.decode(part, type=_Part) for part in raw_parts]
    usage, response_id = answer.usage_metadata.neutral() if answer.usage_metadata else None, answer.response_id or ""
    if candidate is None and (reason := (answer.prompt_feedback or {}).get("blockReason")):
        raise ModelError("content_filter", f"{asked} refused the prompt: {reason}", usage=usage, request_id=response_id)
    if candidate is None or candidate.finish_reason is None or usage is None:
        raise malformed(asked, "an answer without a finish reason or usage: it was cut off", usage=usage, request_id=response_id)
    if candidate.finish_reason not in _STOPS:
        raise malformed(asked, f"an answer that ended with {candidate.finish_reason}", usage=usage, request_id=response_id)
    calls = [part.function_call for part in parts if part.function_call]
    ids, kept = call_ids((call.id for call in calls), request)
    stop = _STOPS[candidate.finish_reason]
    return ModelReply(
        content=tuple(_said(parts, iter(ids), request)),
        stop="tool_use" if calls and stop == "end_turn" else stop,
        usage=usage,
        model=answer.model_version or asked,
        raw=body,
        native=Native(WIRE, asked, raw_list(raw_parts)) if kept and raw_parts else None,
        thinking="".join(part.text for part in parts if part.thought and part.text),
        request_id=response_id,
    )


def _said(parts: list[_Part], ids: Iterator[str], request: ModelRequest) -> Iterator[Text | ToolUse]:
    text: list[str] = []
    for part in parts:
        if part.function_call is None:
            text += [part.text] if part.text and not part.thought else []
            continue
        if text:
            yield _text(text, request)
            text = []
        yield ToolUse(next(ids), part.function_call.name, compact(part.function_call.args))
    if text:
        yield _text(text, request)


def _text(pieces: list[str], request: ModelRequest) -> Text:
    """Put the parts of one text together: an answer may come in many."""
    text = "".join(pieces)
    return Text(original(text, request.output.schema) if request.output else text)


class Written:
    """An answer while it is being streamed: chunks go in, an answer as without streaming comes out."""

    def __init__(self) -> None:
        self._parts: list[dict[str, Any]] = []
        self._texts: list[list[str]] = []
        self._candidate: dict[str, Any] | None = None
        self._answer: dict[str, Any] = {}

    def take(self, chunk: dict[str, Any]) -> str:
        """Take in one chunk and return the text it adds to the answer."""
        self._answer |= {key: value for key, value in chunk.items() if key != "candidates"}
        shown = []
        for candidate in chunk.get("candidates", ())[:1]:
            self._candidate = {**(self._candidate or {}), **{key: value for key, value in candidate.items() if key != "content"}}
            for part in (candidate.get("content") or {}).get("parts") or ():
                self._add(part)
                shown += [part["text"]] if part.get("text") and not part.get("thought") else []
        return "".join(shown)

    def _add(self, part: dict[str, Any]) -> None:
        """Add a part; a piece of text goes to the text before it, unless it carries anything else."""
        last = self._parts[-1] if self._parts else {}
        if last and "text" in part and part == {**last, "text": part["text"]} and set(part) <= {"text", "thought"}:
            self._texts[-1].append(part["text"])
            return
        if "thoughtSignature" in part:
            part = {**part, "thoughtSignature": part["thoughtSignature"].translate(_BASE64)}
        self._parts.append(part)
        self._texts.append([part["text"]] if "text" in part else [])

    def usage(self) -> Usage | None:
        """What was reported as used so far; None while nothing was."""
        try:
            return msgspec.convert(self._answer.get("usageMetadata"), _Used).neutral()
        except msgspec.ValidationError:
            return None

    def body(self) -> bytes:
        """Return the answer as JSON."""
        parts = [{**part, "text": "".join(text)} if text else part for part, text in zip(self._parts, self._texts, strict=True)]
        candidates = [{**self._candidate, "content": {"role": "model", "parts": parts}}] if self._candidate else []
        return clean(json.dumps({**self._answer, "candidates": candidates}, ensure_ascii=False, separators=(",", ":"))).encode()
