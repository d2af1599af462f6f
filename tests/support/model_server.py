"""A server on loopback that answers over plain HTTP/1.1 what a test wrote down: bodies and event streams of any model wire, and their ruin."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Canned:
    """One answer: a body, or events of a stream.

    `cut_at` closes the connection after that many bytes of the body. A stream ends as `then` says: in good order, by a closed connection,
    or never. `hangs` never answers.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    hangs: bool = False
    events: Sequence[Any] | None = None
    then: Literal["end", "cut", "hang"] = "end"


@dataclass
class ModelServer:
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
        elif answer.events is not None:
            await _stream(answer, reader, writer)
        else:
            await _send(answer, writer)


async def _send(answer: Canned, writer: asyncio.StreamWriter) -> None:
    data = answer.body if isinstance(answer.body, bytes) else answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
    given = {"content-type": "application/json", "content-length": str(len(data)), **answer.headers}
    writer.write(_head(answer, given) + data[: answer.cut_at])
    await writer.drain()
    if answer.cut_at is not None:
        raise ConnectionError("cut off as the test wants it")


async def _stream(answer: Canned, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    assert answer.events is not None
    writer.write(_head(answer, {"content-type": "text/event-stream", "transfer-encoding": "chunked", **answer.headers}))
    for event in answer.events:
        data = _event(event)
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await writer.drain()
    if answer.then == "hang":
        await reader.read()
    elif answer.then == "cut":
        raise ConnectionError("cut off as the test wants it")
    else:
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _event(event: Any) -> bytes:
    """Frame one event: a string as it is, anything else as JSON under its `type`."""
    if isinstance(event, str):
        return event.encode()
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def _head(answer: Canned, headers: Mapping[str, str]) -> bytes:
    return (f"HTTP/1.1 {answer.status} Answer\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n").encode()


@asynccontextmanager
async def serve_models(*answers: Canned) -> AsyncIterator[ModelServer]:
    """Listen on a free port of loopback."""
    models = ModelServer(list(answers))
    server = await asyncio.start_server(models.connected, "127.0.0.1", 0)
    models.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield models
    finally:
        server.close()
        await server.wait_closed()
        # the handlers end by themselves: every client has closed its connections by now
        await asyncio.gather(*models.handlers)
