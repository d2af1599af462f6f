"""Chat Completions behind the model port: whatever speaks this wire at an address of one's own, such as Ollama, vLLM, llama.cpp or a proxy.

Servers differ, so little is asked of them: no strict mode, usage and call ids may be missing, arguments may come as an object. Thinking, beside
the answer or in tags in front of it, is kept out of the answer and never sent back. Requests go out through the SDK's `extra_body`: its walk over
the types of a long conversation costs 7 ms of CPU per call and changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec

from crewlog.agents.model import OnText
from crewlog.agents.model_calls import TokenCount, as_json, call_ids, check_tools, tool_name
from crewlog.agents.model_errors import malformed, one_try, understanding
from crewlog.agents.model_openai import Connection, result_text
from crewlog.agents.model_sdk import load_sdk
from crewlog.agents.model_stream import event_data
from crewlog.agents.schema_dialect import instruction, original
from crewlog.agents.tokens import estimate_usage
from crewlog.schemas.blocks import Message, ModelReply, ModelRequest, OutputFormat, StopReason, Text, ToolDef, ToolResult, ToolUse
from crewlog.schemas.usage import Usage

WIRE: Final = "openai.chat"
MaxTokensField = Literal["max_tokens", "max_completion_tokens"]
Structured = Literal["schema", "tool", "instruction"]
"""How a structured answer is asked for: by `response_format`, by a forced tool call, or in words."""
_NO_KEY: Final = "none"
"""Sent where no key is set: the SDK wants one, and would otherwise send OpenAI's own to somebody else's server."""
_STOPS: Final[Mapping[str, StopReason]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_THINK, _THOUGHT = "<think>", "</think>"


class OpenAIChatModel:
    """One model of a server that speaks Chat Completions.

    Args:
        name: model id as the server names it.
        provider: the name configured for the server.
        base_url: address of the API with `/v1`.
        api_key: sent to the server, never logged; empty when it wants none.
        max_tokens_field: how the server calls the bound of the answer.
        structured: what the server offers for structured answers.
    """

    wire = WIRE
    simulated = False

    def __init__(
        self,
        name: str,
        *,
        provider: str,
        base_url: str,
        api_key: str = "",
        max_tokens_field: MaxTokensField = "max_tokens",
        structured: Structured = "schema",
    ) -> None:
        self.name, self.provider = name, provider
        self._max_tokens_field, self._structured = max_tokens_field, structured
        self._api_key = api_key
        self._connection = Connection(name, api_key=api_key or _NO_KEY, base_url=base_url)

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        """Ask once.

        Raises:
            ModelError: with the kind that decides between retry, fallback and failure.
        """
        await load_sdk("openai")
        import openai

        body_sent = render(request, max_tokens_field=self._max_tokens_field, structured=self._structured)
        written = Written()
        async with one_try(self.name, timeout_s, openai.OpenAIError, self._connection.explain, used=written.usage, secret=self._api_key):
            create = self._connection.open(openai).chat.completions.with_streaming_response.create
            if on_text is None:
                async with create(model=self.name, messages=(), extra_body=body_sent, timeout=timeout_s) as response:
                    body, request_id = await response.read(), response.headers.get("x-request-id", "")
            else:
                body_sent["stream_options"] = {"include_usage": True}
                async with create(model=self.name, messages=(), extra_body=body_sent, stream=True, timeout=timeout_s) as response:
                    request_id = response.headers.get("x-request-id", "")
                    body = await self._streamed(
                        event_data(response.iter_bytes(), self.name, media_type=response.headers.get("content-type", "")), written, on_text
                    )
            return understand(body, request, self._connection, request_id)

    async def close(self) -> None:
        """Let go of the connections. Safe to call twice."""
        await self._connection.close()

    async def _streamed(self, events: AsyncIterable[bytes], written: Written, on_text: OnText) -> bytes:
        async for data in events:
            if data == b"[DONE]":
                break
            with understanding(self.name):
                chunk = msgspec.json.decode(data, type=_Chunk)
                text = written.take(chunk)
            if chunk.error is not None:
                raise self._connection.refused(_error(chunk.error))
            if text:
                on_text(text)
        with understanding(self.name):
            return written.body()


def render(request: ModelRequest, *, max_tokens_field: MaxTokensField = "max_tokens", structured: Structured = "schema") -> dict[str, Any]:
    """Translate a request into the body of `POST /chat/completions`. The same request gives the same bytes."""
    check_tools(request)
    messages = [{"role": "system", "content": request.system}] if request.system else []
    messages += [item for message in request.messages for item in _messages(message)]
    body: dict[str, Any] = {"model": request.model, "messages": messages, max_tokens_field: request.max_tokens}
    if request.tools:
        body["tools"] = _tools(msgspec.json.encode(request.tools))
    if request.effort:
        body["reasoning_effort"] = request.effort
    if request.output is not None:
        _ask_for(request.output, body, structured)
    return body


def _ask_for(output: OutputFormat, body: dict[str, Any], structured: Structured) -> None:
    if structured == "tool":
        forced = {"name": output.name, "description": "Hand in the answer.", "parameters": output.schema}
        body["tools"] = [{"type": "function", "function": forced}]
        body["tool_choice"] = {"type": "function", "function": {"name": output.name}}
        return
    if "tools" in body:
        body["tool_choice"] = "none"
    if structured == "schema":
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": output.name, "strict": False, "schema": output.schema}}
    else:
        body["messages"].append({"role": "user", "content": instruction(output.schema)})


@lru_cache(maxsize=64)
def _tools(encoded: bytes) -> list[dict[str, Any]]:
    tools = msgspec.json.decode(encoded, type=tuple[ToolDef, ...])
    return [{"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters}} for tool in tools]


def _messages(message: Message) -> Iterator[dict[str, Any]]:
    text = "\n\n".join(block.text for block in message.content if isinstance(block, Text) and block.text)
    if message.role == "assistant":
        calls = [
            {"id": block.call_id, "type": "function", "function": {"name": tool_name(block.name), "arguments": as_json(block.arguments)}}
            for block in message.content
            if isinstance(block, ToolUse)
        ]
        if text or calls:
            yield {"role": "assistant", "content": text or None, **({"tool_calls": calls} if calls else {})}
        return
    for block in message.content:
        if isinstance(block, ToolResult):
            yield {"role": "tool", "tool_call_id": block.call_id, "content": result_text(block)}
    if text:
        yield {"role": "user", "content": text}


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: msgspec.Raw = msgspec.Raw(b'""')


class _Call(msgspec.Struct):
    function: _Function
    id: str | None = None
    index: int | None = None


class _Piece(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: list[_Piece] | str | None = None


class _Said(msgspec.Struct):
    content: str | list[_Piece] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _In(msgspec.Struct):
    cached_tokens: TokenCount | None = None
    cache_write_tokens: TokenCount | None = None


class _Out(msgspec.Struct):
    reasoning_tokens: TokenCount | None = None


class _Used(msgspec.Struct):
    prompt_tokens: TokenCount
    completion_tokens: TokenCount
    prompt_tokens_details: _In | None = None
    completion_tokens_details: _Out | None = None

    def neutral(self) -> Usage:
        read, out = self.prompt_tokens_details or _In(), self.completion_tokens_details or _Out()
        return Usage(self.prompt_tokens, self.completion_tokens, read.cached_tokens or 0, read.cache_write_tokens or 0, out.reasoning_tokens or 0)


class _Choice(msgspec.Struct):
    message: _Said | None = None
    delta: _Said | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    """A whole answer or one piece of it: they differ in `message` and `delta` only."""

    choices: list[_Choice] | None = None
    usage: _Used | None = None
    error: Any = None
    model: str | None = None


def understand(body: bytes, request: ModelRequest, connection: Connection, request_id: str = "") -> ModelReply:
    """Translate an answer.

    Args:
        body: the completion as JSON.

    Raises:
        ModelError: it is no complete answer, or the server reports a failure in it.
    """
    asked = request.model
    with understanding(asked):
        answer = msgspec.json.decode(body, type=_Chunk)
    if answer.error is not None:
        raise connection.refused(_error(answer.error), request_id=request_id)
    usage = answer.usage.neutral() if answer.usage else None
    choice = answer.choices[0] if answer.choices else _Choice()
    said, reason = choice.message, choice.finish_reason
    if said is None or reason is None or reason not in _STOPS:
        cut = "an answer without a stop reason: it was cut off" if answer.choices else "nothing of an answer: is this the address of a model API?"
        what = f"a stop reason this version does not know: {reason}" if said and reason else cut
        raise malformed(asked, what, usage=usage, request_id=request_id)
    with understanding(asked):
        text, thinking = split_thinking(said)
        calls = [(call.id, call.function.name or "", _arguments(call.function.arguments)) for call in said.tool_calls or ()]
    content = _content(text or said.refusal or "", calls, request)
    stop = "tool_use" if reason == "stop" and any(isinstance(block, ToolUse) for block in content) else _STOPS[reason]
    if stop == "tool_use" and not any(isinstance(block, ToolUse) for block in content):
        stop = "end_turn"
    return ModelReply(
        content=content,
        stop="refusal" if said.refusal else stop,
        # a server that does not count must not look free: the estimate is rather too high
        usage=usage or estimate_usage(request, content),
        model=answer.model or asked,
        raw=body,
        thinking=thinking,
        request_id=request_id,
    )


def _content(text: str, calls: list[tuple[str | None, str, str]], request: ModelRequest) -> tuple[Text | ToolUse, ...]:
    if request.output is not None:
        # a structured answer may come as the one call that was forced
        text = next((arguments for _, name, arguments in calls if name == request.output.name), text)
        return (Text(original(text, request.output.schema)),) if text else ()
    ids, _ = call_ids((call_id for call_id, _, _ in calls), request)
    uses = (ToolUse(call_id, name, arguments) for call_id, (_, name, arguments) in zip(ids, calls, strict=True))
    return (*((Text(text),) if text else ()), *uses)


def split_thinking(said: _Said) -> tuple[str, str]:
    """Separate an answer from the thinking that servers put beside it, or in tags in front of it."""
    text, thinking = _text(said.content), _thinking(said)
    if not text.lstrip().startswith(_THINK):
        return text, thinking
    thought, _, text = text.lstrip().removeprefix(_THINK).partition(_THOUGHT)
    return text.lstrip(), "\n\n".join(filter(None, (thinking, thought.strip())))


def _text(content: str | list[_Piece] | None) -> str:
    """Return the text of a content: most servers send it as a string, some in pieces."""
    return "".join(piece.text or "" for piece in content) if isinstance(content, list) else content or ""


def _thinking(said: _Said) -> str:
    pieces = [piece.thinking for piece in said.content if piece.thinking] if isinstance(said.content, list) else []
    return said.reasoning_content or said.reasoning or "".join(_text(piece) for piece in pieces)


def _arguments(raw: msgspec.Raw) -> str:
    """Return arguments as text: most servers send them as a string, some as the object itself."""
    if bytes(raw)[:1] == b'"':
        text: str = msgspec.json.decode(raw, type=str)
        return text or "{}"
    return "{}" if bytes(raw) == b"null" else bytes(raw).decode()


def _error(error: Any) -> dict[str, Any]:
    return error if isinstance(error, dict) else {"message": str(error)}


def _is_another(known: Mapping[str, Any], call_id: str | None, arguments: str) -> bool:
    """Say whether a piece that names a tool begins another call than the one at its index: some servers send every call whole, all with the same index
    or none, and some without ids."""
    if call_id and known["id"] and call_id != known["id"]:
        return True
    is_same = bool(call_id) and call_id == known["id"]
    return bool(arguments.strip() or not is_same) and _is_whole("".join(known["arguments"]))


def _is_whole(arguments: str) -> bool:
    try:
        msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return False
    return True


class Written:
    """An answer while it is being streamed: chunks go in, an answer as without streaming comes out."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._at: dict[int, int] = {}
        self._reason: str | None = None
        self._model: str | None = None
        self._used: _Used | None = None
        self._is_hidden = True
        self._held = ""

    def take(self, chunk: _Chunk) -> str:
        """Take in one chunk and return the text it adds to the answer."""
        self._model = chunk.model or self._model
        self._used = chunk.usage or self._used
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self._reason = choice.finish_reason or self._reason
        delta = choice.delta or choice.message or _Said()
        self._thinking.append(_thinking(delta))
        self._refusal.append(delta.refusal or "")
        for call in delta.tool_calls or ():
            self._add(call)
        text = _text(delta.content)
        self._text.append(text)
        return self._visible(text) if text else ""

    def _add(self, call: _Call) -> None:
        raw = bytes(call.function.arguments)
        arguments = msgspec.json.decode(raw, type=str) if raw[:1] == b'"' else "" if raw == b"null" else raw.decode()
        name = call.function.name or ""
        at = self._begun(call)
        if at is None or (name and _is_another(self._calls[at], call.id, arguments)):
            at = len(self._calls)
            self._calls.append({"id": call.id, "name": "", "arguments": []})
            self._at[call.index if call.index is not None else at] = at
        known = self._calls[at]
        known["id"] = known["id"] or call.id
        if name != known["name"]:  # some say it again with every piece
            known["name"] += name
        known["arguments"].append(arguments)

    def _begun(self, call: _Call) -> int | None:
        """Return which of the calls so far a piece may belong to: one at its index, or the last where it has none."""
        at = self._at.get(call.index) if call.index is not None else len(self._calls) - 1 if self._calls else None
        if at is not None and call.id and call.id != self._calls[at]["id"]:
            return next((at for at, known in enumerate(self._calls) if known["id"] == call.id), at)
        return at

    def _visible(self, piece: str) -> str:
        """Hold back what may be thinking in tags, and everything up to their end."""
        if not self._is_hidden:
            return piece
        self._held += piece
        start = self._held.lstrip()
        if not start.startswith(_THINK[: len(start)]):
            self._is_hidden = False
            return self._held
        _, ended, text = self._held.partition(_THOUGHT)
        self._is_hidden = not ended
        return text.lstrip()

    def usage(self) -> Usage | None:
        """What was reported as used so far; None while nothing was."""
        return self._used.neutral() if self._used else None

    def body(self) -> bytes:
        """Return the answer as JSON."""
        calls = [{"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": "".join(call["arguments"])}} for call in self._calls]
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text), "tool_calls": calls}
        message |= {"reasoning_content": "".join(self._thinking) or None, "refusal": "".join(self._refusal) or None}
        answer = {"model": self._model, "choices": [{"message": message, "finish_reason": self._reason}], "usage": self._used}
        return msgspec.json.encode(answer)
