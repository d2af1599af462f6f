"""A web site on loopback whose every byte the test decides: pages by path, and what was asked for."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Answer = bytes | Callable[[Asked], bytes] | Callable[[asyncio.StreamWriter], Awaitable[None]]


def page(body: bytes | str, media_type: str = "text/html", status: str = "200 OK", **headers: str) -> bytes:
    """Write a whole HTTP/1.1 answer."""
    data = body.encode() if isinstance(body, str) else body
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    kind = f"Content-Type: {media_type}\r\n" if media_type else ""
    return f"HTTP/1.1 {status}\r\n{kind}{more}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data


def redirect(location: str, status: str = "302 Found") -> bytes:
    """Write a redirect."""
    return page(b"", "", status, Location=location)


@dataclass
class Website:
    """`pages` maps paths, without their query, to whole answers, or to functions that make or write one."""

    pages: dict[str, Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    port: int = 0
    _open: set[asyncio.Task[None]] = field(default_factory=set)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        with suppress(asyncio.CancelledError):  # by `hang_up`
            await self.handle(reader, writer)
        self._open.discard(task)

    async def hang_up(self) -> None:
        """End the requests that nobody answers."""
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
            method, path, _ = head[0].split(" ", 2)
            asked = Asked(method, path, headers, await reader.readexactly(int(headers.get("content-length", "0"))))
            self.asked.append(asked)
            answer = self.pages.get(path.partition("?")[0], page("nothing here", status="404 Not Found"))
            if isinstance(answer, bytes):
                writer.write(answer)
            elif asyncio.iscoroutinefunction(answer):
                await answer(writer)
            else:
                made = answer(asked)  # type: ignore[arg-type]  # the other one of the two kinds of functions
                assert isinstance(made, bytes)
                writer.write(made)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client had enough
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()


@asynccontextmanager
async def serving(pages: Mapping[str, Answer] | None = None, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Website]:
    """Run a site."""
    site = Website(dict(pages or {}))
    server = await asyncio.start_server(site.connected, "127.0.0.1", 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    async with server:
        try:
            yield site
        finally:
            await site.hang_up()
