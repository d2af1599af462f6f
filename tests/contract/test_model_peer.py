"""The adapters against a server that others wrote: aimock, which speaks these wires for tests of many clients.

npm install @copilotkit/aimock@1.43.0 && CREWLOG_TEST_AIMOCK=node_modules/.bin/llmock pytest tests/contract/test_model_peer.py
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.wires import ANTHROPIC, CHAT, GEMINI, RESPONSES, WIRES, Wire

from crewlog.agents.model import Closable, Model, ModelError
from crewlog.agents.model_gemini import GeminiModel
from crewlog.schemas.blocks import Message, ModelReply, Text, ToolResult, ToolUse

AIMOCK = os.environ.get("CREWLOG_TEST_AIMOCK") or shutil.which("llmock")
pytestmark = pytest.mark.skipif(AIMOCK is None, reason="aimock is not installed; the docstring says how")
FIXTURES = [
    {"match": {"userMessage": "look around", "hasToolResult": True}, "response": {"content": "Nobody is there."}},
    {
        "match": {"userMessage": "look around"},
        "response": {"toolCalls": [{"name": "look", "arguments": {"at": "here"}}, {"name": "look", "arguments": {"at": "there"}}]},
    },
    {"match": {"userMessage": "say hello"}, "response": {"content": "Hello! How can I help you today?"}},
    {"match": {"userMessage": "too much"}, "response": {"error": {"message": "slow down", "type": "rate_limit_error"}, "status": 429, "retryAfter": 7}},
    {"match": {"userMessage": "break"}, "response": {"content": "This is cut somewhere in the middle, I am afraid."}, "truncateAfterChunks": 2},
]
CALLING = (ANTHROPIC, RESPONSES, CHAT)
"""Its Gemini ends calls with a finish reason that the real one does not have."""
STARTS_WITHIN_S = 20


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    assert AIMOCK is not None
    fixtures = tmp_path / "fixtures.json"
    fixtures.write_text(json.dumps({"fixtures": FIXTURES}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        AIMOCK, "-p", str(port), "-f", str(fixtures), "--log-level", "info", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    async with asyncio.timeout(STARTS_WITHIN_S):
        while f":{port}" not in (line := (await process.stdout.readline()).decode()):
            assert line, "aimock ended before it listened"
    yield f"http://127.0.0.1:{port}"
    process.kill()
    await process.communicate()


async def ask(wire: Wire, url: str, *messages: Message, is_streamed: bool = False) -> tuple[ModelReply, str]:
    model: Model = GeminiModel(wire.model, api_key="k", base_url=url, api_version="v1beta") if wire is GEMINI else wire.make(url)
    shown: list[str] = []
    try:
        reply = await model.complete(wire.request(*messages), timeout_s=10, on_text=shown.append if is_streamed else None)
    finally:
        assert isinstance(model, Closable)
        await model.close()
    return reply, "".join(shown)


def said(text: str) -> Message:
    return Message("user", (Text(text),))


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_text_whole_and_streamed(wire: Wire, url: str) -> None:
    whole, _ = await ask(wire, url, said("say hello"))
    streamed, shown = await ask(wire, url, said("say hello"), is_streamed=True)
    assert whole.content == streamed.content == (Text("Hello! How can I help you today?"),)
    assert (whole.stop, streamed.stop, shown) == ("end_turn", "end_turn", "Hello! How can I help you today?")


@pytest.mark.parametrize("begun", CALLING, ids=str)
async def test_two_calls_go_on_over_every_wire(begun: Wire, url: str) -> None:
    for is_streamed in (False, True):
        reply, _ = await ask(begun, url, said("look around"), is_streamed=is_streamed)
        uses = [block for block in reply.content if isinstance(block, ToolUse)]
        assert [json.loads(use.arguments) for use in uses] == [{"at": "here"}, {"at": "there"}]
        results = Message("user", (ToolResult(uses[0].call_id, "look", "seen"), ToolResult(uses[1].call_id, "look", "dark", is_error=True)))
        for continued in WIRES:
            answer, _ = await ask(continued, url, said("look around"), Message("assistant", reply.content, reply.native), results)
            assert answer.content == (Text("Nobody is there."),), f"{begun} to {continued}"


@pytest.mark.parametrize("wire", WIRES, ids=str)
async def test_trouble_is_named(wire: Wire, url: str) -> None:
    with pytest.raises(ModelError, match="slow down") as limited:
        await ask(wire, url, said("too much"))
    assert (limited.value.kind, limited.value.retry_after_s) == ("rate_limit", 7)
    with pytest.raises(ModelError) as broken:
        await ask(wire, url, said("break"), is_streamed=True)
    assert broken.value.kind == "cut"
