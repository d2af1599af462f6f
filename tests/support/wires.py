"""The four wires as their providers speak them: the same answer, streamed or not, and the same refusals, in the words of each."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from support.model_server import Canned, ModelServer, serve_models

from crewlog.agents.model import Closable, Model
from crewlog.agents.model_anthropic import AnthropicModel
from crewlog.agents.model_gemini import GeminiModel
from crewlog.agents.model_openai_chat import OpenAIChatModel
from crewlog.agents.model_openai_responses import OpenAIResponsesModel
from crewlog.schemas.blocks import Message, ModelRequest, Text, ToolDef

KEY = "key-of-a-test"
LOOK = ToolDef("look", "Look.", {"type": "object", "properties": {"at": {"type": "string"}, "deep": {"type": "integer"}}, "required": ["at"]})


@dataclass(frozen=True)
class Said:
    """What a provider says. `stop` is in its own words; None leaves it out. Calls are (id, name, arguments as JSON text)."""

    text: str = "Hi."
    calls: tuple[tuple[str | None, str, str], ...] = ()
    thinking: str = ""
    stop: str | None = ""
    """Empty for what fits the content."""


@dataclass(frozen=True)
class Wire:
    """One wire: how its adapter is made, and how its provider speaks."""

    name: str
    provider: str
    model: str
    make: Callable[[str], Model]
    answer: Callable[[Said], dict[str, Any]]
    events: Callable[[Said], list[Any]]
    problem: Callable[[int, str, str], Any]
    """An error body: status, code, message."""

    def __str__(self) -> str:
        return self.name

    def request(self, *messages: Message, **more: Any) -> ModelRequest:
        """A request to this wire's model."""
        given: dict[str, Any] = {"system": "Be brief.", "tools": (LOOK,), "max_tokens": 500, **more}
        return ModelRequest(model=self.model, messages=messages or (Message("user", (Text("Hello"),)),), **given)

    @asynccontextmanager
    async def asking(self, *answers: Canned) -> AsyncIterator[tuple[Model, ModelServer]]:
        """An adapter and the server it talks to."""
        async with serve_models(*answers) as server:
            model = self.make(server.url)
            try:
                yield model, server
            finally:
                assert isinstance(model, Closable)
                await model.close()


def _anthropic(said: Said) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "thinking", "thinking": said.thinking, "signature": "c2ln"}] if said.thinking else []
    content += [{"type": "text", "text": said.text}] if said.text else []
    content += [{"type": "tool_use", "id": id_, "name": name, "input": json.loads(arguments)} for id_, name, arguments in said.calls]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-test-20261001",
        "content": content,
        "stop_reason": said.stop if said.stop != "" else "tool_use" if said.calls else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "output_tokens": 20,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 30,
            "output_tokens_details": {"thinking_tokens": 12},
        },
    }


def _anthropic_events(said: Said) -> list[Any]:
    whole = _anthropic(Said(said.text, tuple((id_, name, "{}") for id_, name, _ in said.calls), said.thinking, said.stop))
    usage = whole["usage"]
    events: list[Any] = [{"type": "message_start", "message": {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}}]
    arguments = iter(text for _, _, text in said.calls)
    for index, block in enumerate(whole["content"]):
        empty = {"thinking": {"type": "thinking", "thinking": "", "signature": ""}, "text": {"type": "text", "text": ""}}
        events.append({"type": "content_block_start", "index": index, "content_block": empty.get(block["type"], {**block, "input": {}})})
        match block["type"]:
            case "thinking":
                deltas = [{"type": "thinking_delta", "thinking": piece} for piece in halves(block["thinking"])]
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            case "text":
                deltas = [{"type": "text_delta", "text": piece} for piece in halves(block["text"])]
            case _:
                deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", *halves(next(arguments)))]
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events += [{"type": "content_block_stop", "index": index}, 'event: ping\ndata: {"type": "ping"}\n\n']
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    return [
        *events,
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 20, "output_tokens_details": {"thinking_tokens": 12}}},
        {"type": "message_stop"},
    ]


def _responses(said: Said) -> dict[str, Any]:
    output: list[dict[str, Any]] = []
    if said.thinking:
        summary = [{"type": "summary_text", "text": said.thinking}]
        output.append({"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": "c2VjcmV0"})
    if said.text:
        part = {"type": "output_text", "text": said.text, "annotations": []}
        output.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]})
    for at, (id_, name, arguments) in enumerate(said.calls):
        output.append({"type": "function_call", "id": f"fc_{at}", "call_id": id_, "name": name, "arguments": arguments, "status": "completed"})
    status = said.stop or "completed"
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "gpt-test-2026",
        **({"status": status.partition(":")[0]} if said.stop is not None else {}),
        "output": output,
        "incomplete_details": {"reason": status.partition(":")[2]} if status.startswith("incomplete") else None,
        "usage": {
            "input_tokens": 140,
            "output_tokens": 20,
            "total_tokens": 160,
            "input_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 30},
            "output_tokens_details": {"reasoning_tokens": 12},
        },
    }


def _responses_events(said: Said) -> list[Any]:
    whole = _responses(said)
    events: list[Any] = [{"type": "response.created", "response": {**whole, "status": "in_progress", "output": [], "usage": None}}]
    events += [{"type": "response.output_text.delta", "item_id": "msg_1", "delta": piece} for piece in halves(said.text)]
    if said.stop is not None:
        events.append({"type": f"response.{whole['status']}", "response": whole})
    return events


_CHAT_USAGE = {
    "prompt_tokens": 140,
    "completion_tokens": 20,
    "total_tokens": 160,
    "prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 30},
    "completion_tokens_details": {"reasoning_tokens": 12},
}


def _chat(said: Said) -> dict[str, Any]:
    calls = [{"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}} for id_, name, arguments in said.calls]
    message = {"role": "assistant", "content": said.text or None, **({"tool_calls": calls} if calls else {})}
    if said.thinking:
        message["reasoning_content"] = said.thinking
    choice = {"index": 0, "message": message, "finish_reason": _chat_stop(said)}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "qwen-test", "choices": [choice], "usage": _CHAT_USAGE}


def _chat_stop(said: Said) -> str | None:
    return said.stop if said.stop != "" else "tool_calls" if said.calls else "stop"


def _chat_events(said: Said) -> list[Any]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": piece} for piece in halves(said.thinking)]
    deltas += [{"content": piece} for piece in halves(said.text)]
    for index, (id_, name, arguments) in enumerate(said.calls):
        deltas.append({"tool_calls": [{"index": index, "id": id_, "type": "function", "function": {"name": name, "arguments": ""}}]})
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in halves(arguments)]
    chunks = [{"id": "chatcmpl-1", "model": "qwen-test", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    end = {"id": "chatcmpl-1", "model": "qwen-test", "choices": [{"index": 0, "delta": {}, "finish_reason": _chat_stop(said)}]}
    return [*chunks, end, {"id": "chatcmpl-1", "model": "qwen-test", "choices": [], "usage": _CHAT_USAGE}, "data: [DONE]\n\n"]


def _gemini(said: Said) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"text": said.thinking, "thought": True}] if said.thinking else []
    parts += [{"text": said.text}] if said.text else []
    for at, (id_, name, arguments) in enumerate(said.calls):
        call = {"name": name, "args": json.loads(arguments), **({"id": id_} if id_ else {})}
        parts.append({"functionCall": call, **({"thoughtSignature": "Zmlyc3Q+"} if at == 0 else {})})
    candidate = {"content": {"role": "model", "parts": parts}, "index": 0}
    if said.stop is not None:
        candidate["finishReason"] = said.stop or "STOP"
    return {
        "candidates": [candidate],
        "usageMetadata": {"promptTokenCount": 140, "candidatesTokenCount": 8, "thoughtsTokenCount": 12, "cachedContentTokenCount": 100, "totalTokenCount": 160},
        "modelVersion": "gemini-test-001",
        "responseId": "resp-1",
    }


def _gemini_events(said: Said) -> list[Any]:
    whole = _gemini(said)
    parts = whole["candidates"][0]["content"]["parts"]
    pieces = [{**part, "text": piece} for part in parts if "text" in part for piece in halves(part["text"])] + [part for part in parts if "text" not in part]
    chunks = [{"candidates": [{"content": {"role": "model", "parts": [piece]}, "index": 0}], "modelVersion": "gemini-test-001"} for piece in pieces]
    end = {**whole, "candidates": [{**whole["candidates"][0], "content": {"role": "model", "parts": []}}]}
    return [*chunks, end]


def halves(text: str) -> list[str]:
    """Cut a text in two, as a stream would."""
    return [piece for piece in (text[: len(text) // 2], text[len(text) // 2 :]) if piece]


def _anthropic_problem(status: int, code: str, message: str) -> Any:
    return {"type": "error", "error": {"type": code, "message": message}, "request_id": "req_1"}


def _openai_problem(status: int, code: str, message: str) -> Any:
    return {"error": {"code": code, "type": code, "message": message, "param": None}}


def _gemini_problem(status: int, code: str, message: str) -> Any:
    return {"error": {"code": status, "status": code, "message": message}}


ANTHROPIC = Wire(
    "anthropic.messages",
    "anthropic",
    "claude-test",
    lambda url: AnthropicModel("claude-test", api_key=KEY, base_url=url),
    _anthropic,
    _anthropic_events,
    _anthropic_problem,
)
RESPONSES = Wire(
    "openai.responses",
    "openai",
    "gpt-test",
    lambda url: OpenAIResponsesModel("gpt-test", api_key=KEY, base_url=f"{url}/v1"),
    _responses,
    _responses_events,
    _openai_problem,
)
CHAT = Wire(
    "openai.chat",
    "local",
    "qwen-test",
    lambda url: OpenAIChatModel("qwen-test", provider="local", api_key=KEY, base_url=f"{url}/v1"),
    _chat,
    _chat_events,
    _openai_problem,
)
GEMINI = Wire(
    "gemini.generate_content",
    "google",
    "gemini-test",
    lambda url: GeminiModel("gemini-test", api_key=KEY, base_url=url),
    _gemini,
    _gemini_events,
    _gemini_problem,
)
WIRES = (ANTHROPIC, RESPONSES, CHAT, GEMINI)
