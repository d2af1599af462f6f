"""What a model adapter costs beyond the SDK it stands on: CPU of this process per call, the SDK with prepared arguments beside our adapter.

Both ask the same server on loopback, which runs in another process, in alternating batches. The request is one of a task on its way: 12 tools, 20 turns,
40 KB. The bound is 1 ms per call beyond the SDK's own.

    python benchmarks/adapters.py [--calls 400]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

from measure import machine

from crewlog.agents import model_anthropic, model_gemini, model_openai_chat, model_openai_responses
from crewlog.schemas.blocks import Message, ModelRequest, Text, ToolDef, ToolResult, ToolUse

BATCH = 20
BOUND_MS = 1.0
WORDS = "The quick brown fox jumps over the lazy dog. " * 6
ARGUMENTS = {"path": "notes/a.md", "line": 3}
PIECES = [WORDS[at : at + 9] for at in range(0, len(WORDS), 9)]
Call = Callable[[], Awaitable[Any]]


def request(model: str) -> ModelRequest:
    """Return a request in the middle of a task."""
    properties = {f"p{n}": {"type": "string", "description": "One of the parameters."} for n in range(6)}
    tools = tuple(ToolDef(f"tool_{n}", "Does one thing well. " * 5, {"type": "object", "properties": properties, "required": ["p0"]}) for n in range(12))
    messages = [Message("user", (Text(WORDS * 8),))]
    for n in range(20):
        messages.append(Message("assistant", (Text("I look."), ToolUse(f"call_{n}", "tool_1", json.dumps({**ARGUMENTS, "p0": WORDS})))))
        messages.append(Message("user", (ToolResult(f"call_{n}", "tool_1", WORDS * 5),)))
    return ModelRequest(model, WORDS * 10, tools, tuple(messages), 1_000)


# --- the answers, whole and as events of a stream

USED = {"input_tokens": 9_000, "output_tokens": 90}
MESSAGE = {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "tool_use", "stop_sequence": None, "usage": USED}
CONTENT = [{"type": "text", "text": WORDS}, {"type": "tool_use", "id": "call_x", "name": "tool_1", "input": ARGUMENTS}]
OUTPUT = [
    {"type": "message", "id": "msg", "role": "assistant", "status": "completed", "content": [{"type": "output_text", "text": WORDS, "annotations": []}]},
    {"type": "function_call", "id": "fc", "call_id": "call_x", "name": "tool_1", "arguments": json.dumps(ARGUMENTS), "status": "completed"},
]
RESPONSE = {
    "id": "r",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "status": "completed",
    "output": OUTPUT,
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {**USED, "total_tokens": 9_090, "input_tokens_details": {}, "output_tokens_details": {}},
}
CHAT_USED = {"prompt_tokens": 9_000, "completion_tokens": 90, "total_tokens": 9_090}
CHAT_CALL = {"index": 0, "id": "call_x", "type": "function", "function": {"name": "tool_1", "arguments": json.dumps(ARGUMENTS)}}
CHAT = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
CHAT_SAID = {"role": "assistant", "content": WORDS, "tool_calls": [CHAT_CALL]}
GEMINI_PARTS = [{"text": WORDS}, {"functionCall": {"name": "tool_1", "args": ARGUMENTS}, "thoughtSignature": "c2ln"}]
GEMINI_REST = {"usageMetadata": {"promptTokenCount": 9_000, "candidatesTokenCount": 90}, "modelVersion": "m", "responseId": "r"}


def candidate(*parts: dict[str, Any], stop: str | None = None) -> dict[str, Any]:
    """Return the candidates of one Gemini answer or chunk."""
    return {"candidates": [{"content": {"role": "model", "parts": list(parts)}, **({"finishReason": stop} if stop else {})}]}


WHOLE = {
    "messages": {**MESSAGE, "content": CONTENT},
    "responses": RESPONSE,
    "completions": {**CHAT, "choices": [{"index": 0, "message": CHAT_SAID, "finish_reason": "tool_calls"}], "usage": CHAT_USED},
    "generateContent": {**candidate(*GEMINI_PARTS, stop="STOP"), **GEMINI_REST},
}
EVENTS: dict[str, list[Any]] = {
    "messages": [
        {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}} for piece in PIECES),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 90}},
        {"type": "message_stop"},
    ],
    "responses": [
        *({"type": "response.output_text.delta", "item_id": "msg", "output_index": 0, "content_index": 0, "delta": p, "logprobs": []} for p in PIECES),
        {"type": "response.completed", "response": RESPONSE},
    ],
    "completions": [
        *({**CHAT, "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in PIECES),
        {**CHAT, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": CHAT_USED},
    ],
    "streamGenerateContent": [*(candidate({"text": piece}) for piece in PIECES), {**candidate({"text": "."}, stop="STOP"), **GEMINI_REST}],
}


def _frame(event: dict[str, Any]) -> bytes:
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n".encode()


BODIES = {(name, False): json.dumps(body).encode() for name, body in WHOLE.items()}
BODIES |= {(name, True): b"".join(map(_frame, events)) for name, events in EVENTS.items()}


def serve(ready: Connection) -> None:
    """Answer every request with the prepared body of its endpoint, until killed."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            size = 0
            while (row := (await reader.readline()).strip().lower()) != b"":
                size = int(row[15:]) if row.startswith(b"content-length:") else size
            sent = await reader.readexactly(size)
            name = line.split(b" ")[1].split(b"?")[0].replace(b":", b"/").rsplit(b"/", 1)[1].decode()
            is_streamed = name.startswith("stream") or b'"stream":true' in sent.replace(b" ", b"")
            body = BODIES[name, is_streamed]
            kind = b"text/event-stream" if is_streamed else b"application/json"
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (kind, len(body)) + body)
            await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


# --- the two sides


def unseen(_: str) -> None:
    """Take streamed text and show it to nobody."""


async def drain(stream: Any) -> None:
    async for _ in stream:
        pass


def sides(url: str) -> dict[str, tuple[Call, Call]]:
    """Return, per wire and mode, a call through the SDK alone and one through our adapter."""
    import anthropic
    import openai
    from google import genai
    from google.genai import types

    claude = anthropic.AsyncAnthropic(api_key="k", base_url=url, max_retries=0, open_telemetry={"traces": False, "propagation": False})
    gpt = openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0)
    options = types.HttpOptions(base_url=url, retry_options=types.HttpRetryOptions(attempts=1))
    gemini = genai.Client(vertexai=False, api_key="k", http_options=options).aio.models
    messages, responses, chat = (module.render(request("m")) for module in (model_anthropic, model_openai_responses, model_openai_chat))
    body = model_gemini.render(request("m"))
    contents = [types.Content.model_validate(content) for content in body["contents"]]
    config = types.GenerateContentConfig(
        system_instruction=WORDS * 10,
        max_output_tokens=1_000,
        tools=[types.Tool.model_validate(tool) for tool in body["tools"]],
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        automatic_continuation=False,
    )
    ours = {
        "anthropic.messages": model_anthropic.AnthropicModel("m", api_key="k", base_url=url),
        "openai.responses": model_openai_responses.OpenAIResponsesModel("m", api_key="k", base_url=f"{url}/v1"),
        "openai.chat": model_openai_chat.OpenAIChatModel("m", provider="local", base_url=f"{url}/v1"),
        "gemini.generate_content": model_gemini.GeminiModel("m", api_key="k", base_url=url),
    }

    async def streamed(call: Call) -> None:
        await drain(await call())

    whole: dict[str, Call] = {
        "anthropic.messages": lambda: claude.messages.create(**messages, timeout=30),
        "openai.responses": lambda: gpt.responses.create(**responses, timeout=30),
        "openai.chat": lambda: gpt.chat.completions.create(**chat, timeout=30),
        "gemini.generate_content": lambda: gemini.generate_content(model="m", contents=contents, config=config),
    }
    events: dict[str, Call] = {
        "anthropic.messages": lambda: claude.messages.create(**messages, stream=True, timeout=30),
        "openai.responses": lambda: gpt.responses.create(**responses, stream=True, timeout=30),
        "openai.chat": lambda: gpt.chat.completions.create(**chat, stream=True, timeout=30),
        "gemini.generate_content": lambda: gemini.generate_content_stream(model="m", contents=contents, config=config),
    }

    def of(name: str, *, is_streamed: bool) -> tuple[Call, Call]:
        asked, model = request("m"), ours[name]
        on_text = unseen if is_streamed else None
        sdk: Call = (lambda: streamed(events[name])) if is_streamed else whole[name]
        return sdk, lambda: model.complete(asked, timeout_s=30, on_text=on_text)

    return {f"{name} {mode}": of(name, is_streamed=mode == "streamed") for name in ours for mode in ("whole", "streamed")}


async def cpu_ms(call: Call) -> float:
    started = time.process_time()
    for _ in range(BATCH):
        await call()
    return (time.process_time() - started) * 1000 / BATCH


async def measure(url: str, calls: int) -> None:
    print(f"{machine()}; {calls} calls per side in batches of {BATCH}; medians of CPU per call")
    print(f"{'wire':34}{'SDK':>10}{'adapter':>10}{'beyond':>10}")
    worst = 0.0
    for name, (sdk, ours) in sides(url).items():
        await cpu_ms(sdk), await cpu_ms(ours)  # connections, imports, caches
        pairs = [(await cpu_ms(sdk), await cpu_ms(ours)) for _ in range(max(1, calls // BATCH))]
        one, other = (sorted(values)[len(values) // 2] for values in zip(*pairs, strict=True))
        worst = max(worst, other - one)
        print(f"{name:34}{one:7.2f} ms{other:7.2f} ms{other - one:+7.2f} ms")
    print(f"worst: {worst:+.2f} ms beyond the SDK, bound {BOUND_MS:g} ms: {'reached' if worst <= BOUND_MS else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=400)
    calls = parser.parse_args().calls
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    try:
        asyncio.run(measure(f"http://127.0.0.1:{here.recv()}", calls))
    finally:
        server.kill()
        server.join()


if __name__ == "__main__":
    main()
