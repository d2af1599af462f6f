"""A server on loopback that speaks the Messages wire over plain HTTP/1.1: it notes requests and answers what the test wrote down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Canned:
    """One answer. `cut_at` closes the connection after that many bytes of the body; `hangs` never answers."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    hangs: bool = False


@dataclass
class MessagesServer:
    """Answers request n with answer n; the last one is repeated."""

    answers: list[Canned]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    handlers: list[asyncio.Task[None]] = field(default_factory=list)

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handlers.append(asyncio.get_running_loop().create_task(self._handle(reader, writer)))

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := (await reader.readline()).decode():
                await self._one(line, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client closed its connection in the middle: that is what some tests are about
        finally:
            writer.close()

    async def _one(self, line: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        headers: dict[str, str] = {}
        while (row := (await reader.readline()).decode().strip()) != "":
            name, _, value = row.partition(":")
            headers[name.strip().lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.paths.append(line.split(" ")[1])
        self.headers.append(headers)
        self.requests.append(json.loads(body))
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if answer.hangs:
            await reader.read()
            return
        data = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
        given = {"content-type": "application/json", "content-length": str(len(data)), **answer.headers}
        head = f"HTTP/1.1 {answer.status} Answer\r\n" + "".join(f"{name}: {value}\r\n" for name, value in given.items()) + "\r\n"
        writer.write(head.encode() + data[: answer.cut_at])
        await writer.drain()
        if answer.cut_at is not None:
            raise ConnectionError("cut off as the test wants it")


@asynccontextmanager
async def serve_messages(*answers: Canned) -> AsyncIterator[MessagesServer]:
    """Listen on a free port of loopback."""
    messages = MessagesServer(list(answers))
    server = await asyncio.start_server(messages.connected, "127.0.0.1", 0)
    messages.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield messages
    finally:
        server.close()
        await server.wait_closed()
        # the handlers end by themselves: every client has closed its connections by now
        await asyncio.gather(*messages.handlers)
