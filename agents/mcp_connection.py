"""One connection to one MCP server, kept by one task: opened, listed, watched, closed and opened again.

The library binds a connection to the task that opened it, so every attempt is a task of its own and calls only borrow its client. Whatever
a server does ends at most the attempt: the task that keeps the connection waits longer after each failure and tries again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CONNECTION_CLOSED, REQUEST_TIMEOUT, CallToolResult, Implementation, ToolListChangedNotification
from pydantic import ValidationError

from crewlog.agents.http_body import bound
from crewlog.agents.mcp_pins import TOOLS_MAX, Definition
from crewlog.agents.mcp_stdio import MESSAGE_BYTES_MAX, child_transport
from crewlog.events.clock import Clock
from crewlog.events.config_mcp import McpServer
from crewlog.schemas.retry import doubled_s
from crewlog.schemas.text import clean, shorten

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 60.0
"""From starting a server to having its tools: some commands download the server first."""
REQUEST_TIMEOUT_S: Final = 10.0
"""For a page of tools, and for what a web server does of a connection, once the server is there."""
REFRESH_S: Final = 60.0
"""How often tools are listed again: so a change is seen, and a connection that died is noticed before a call needs it."""
RETRY_FIRST_S: Final = 1.0
RETRY_LONGEST_S: Final = 60.0
CLOSE_TIMEOUT_S: Final = 10.0
PAGES_MAX: Final = 20
REASON_CHARS_MAX: Final = 300

OnListed = Callable[[Sequence[Definition]], Awaitable[None]]


class ServerFailed(Exception):
    """A call has no result; the text says why in words for a model and an operator."""


class NotConnected(ServerFailed):
    """The call did not reach the server: nothing has happened, and it may be tried again."""


class McpConnection:
    """Keeps one server connected from `start` to `stop`.

    Args:
        on_listed: called with the tools of the server after each listing.
    """

    def __init__(self, name: str, server: McpServer, on_listed: OnListed, *, clock: Clock, refresh_s: float = REFRESH_S) -> None:
        self.problem = "it was not reached yet"
        """Why the server cannot be used, or nothing."""
        self._name, self._server, self._on_listed, self._clock, self._refresh_s = name, server, on_listed, clock, refresh_s
        self._client: Client | None = None
        self._http: _Bounded | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._stale = asyncio.Event()

    def start(self) -> None:
        """Begin to keep the connection."""
        self._keeper = asyncio.create_task(self._keep(), name=f"mcp-{self._name}")

    async def settled(self) -> None:
        """Wait until the first attempt has connected or failed."""
        await self._settled.wait()

    async def stop(self) -> None:
        """Close the connection and end the server that was started for it. Safe to call twice."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})

    async def call(self, tool: str, arguments: dict[str, Any], *, key: str) -> CallToolResult:
        """Call a tool and return its result, good or bad.

        Args:
            key: the same for every try of this call; the server finds it in `_meta` as `crewlog/idempotency-key`.

        Raises:
            NotConnected: it was not called.
            ServerFailed: there is no result.
        """
        client, attempt, timeout_s = self._client, self._attempt, self._server.timeout_s
        if client is None or attempt is None or attempt.done():
            raise NotConnected(f"MCP server {self._name} cannot be used now: {self.problem or 'the connection broke and is opened again'}")
        meta: Any = {"crewlog/idempotency-key": key}
        calling = asyncio.create_task(client.call_tool(tool, arguments, timeout_s, meta=meta))
        try:
            await asyncio.wait({calling, attempt}, timeout=timeout_s + CLOSE_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not calling.done():
                calling.cancel()
                await asyncio.wait({calling})
        if calling.cancelled():
            raise ServerFailed(await self._broke(tool, attempt))
        error = calling.exception()
        if error is None:
            return calling.result()
        code = error.code if isinstance(error, MCPError) else None
        if code == REQUEST_TIMEOUT:
            self._stale.set()  # whether it only took long or hangs, the next listing shows
            raise ServerFailed(f"{tool} of MCP server {self._name} did not answer within {timeout_s:g} s; it may or may not have had its effect")
        if code == CONNECTION_CLOSED:
            raise ServerFailed(await self._broke(tool, attempt))
        raise ServerFailed(f"{tool} of MCP server {self._name} gave no result that can be used: {reason(error)}")

    async def _broke(self, tool: str, attempt: asyncio.Task[None]) -> str:
        await asyncio.wait({attempt}, timeout=CLOSE_TIMEOUT_S)
        why = reason(error) if attempt.done() and not attempt.cancelled() and (error := attempt.exception()) else "the connection was closed"
        return f"MCP server {self._name} broke while {tool} was running ({why}); it may or may not have had its effect"

    async def _keep(self) -> None:
        failures = 0
        while True:
            self._attempt = asyncio.create_task(self._connected(), name=f"mcp-{self._name}-attempt")
            try:
                await asyncio.wait({self._attempt})
            finally:
                self._attempt.cancel()
                await asyncio.wait({self._attempt}, timeout=CLOSE_TIMEOUT_S)
            failures = 1 if self._client is not None else failures + 1
            self._client = None
            error = None if self._attempt.cancelled() else self._attempt.exception()
            self.problem = reason(error) if error else "the connection was closed"
            if self._http is not None and self._http.refused:
                self.problem += f" (HTTP {self._http.refused})"
            self._settled.set()
            wait_s = doubled_s(RETRY_FIRST_S, failures - 1, longest_s=RETRY_LONGEST_S) * (0.5 + self._clock.fraction() / 2)
            log.warning("MCP server %s: %s; tried again in %.1f s", self._name, self.problem, wait_s)
            await asyncio.sleep(wait_s)

    async def _connected(self) -> None:
        """Connect, and stay until something breaks."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S) as limit, AsyncExitStack() as closing:
            info = Implementation(name="crewlog", version="1")
            transport = await self._transport(closing)
            client = Client(transport, read_timeout_seconds=CONNECT_TIMEOUT_S, message_handler=self._heard, client_info=info, cache=None)
            await closing.enter_async_context(client)
            await self._on_listed(await _list(client))
            limit.reschedule(None)
            self._client, self.problem = client, ""
            self._settled.set()
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._refresh_s):
                        await self._stale.wait()
                self._stale.clear()
                await self._on_listed(await _list(client))

    async def _transport(self, closing: AsyncExitStack) -> Any:
        server = self._server
        if server.command is not None:
            return child_transport(self._name, server.command, server.args, {name: value.get_secret_value() for name, value in server.env.items()})
        assert server.url is not None
        headers = {name: value.get_secret_value() for name, value in server.headers.items()}
        timeout = httpx2.Timeout(REQUEST_TIMEOUT_S, read=server.timeout_s + REQUEST_TIMEOUT_S)
        self._http = _Bounded()
        http = await closing.enter_async_context(
            httpx2.AsyncClient(transport=self._http, headers={"Accept-Encoding": "identity", **headers}, timeout=timeout, trust_env=False)
        )
        return streamable_http_client(server.url, http_client=http, max_sse_event_size=MESSAGE_BYTES_MAX)

    async def _heard(self, message: Any) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._stale.set()


async def _list(client: Client) -> list[Definition]:
    definitions: list[Definition] = []
    cursor = None
    for _ in range(PAGES_MAX):
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                page = await client.list_tools(cursor=cursor)
        except TimeoutError:
            raise ServerFailed(f"it did not list its tools within {REQUEST_TIMEOUT_S:g} s") from None
        definitions += [Definition(tool.name, tool.description or "", tool.input_schema) for tool in page.tools]
        cursor = page.next_cursor
        if not cursor or len(definitions) > TOOLS_MAX:
            break
    return definitions


def reason(error: BaseException) -> str:
    """Say in one line what went wrong: the causes themselves, however deeply a task group has wrapped them."""
    if isinstance(error, BaseExceptionGroup):
        causes = [reason(each) for each in error.exceptions]
        return "; ".join(dict.fromkeys(causes))[:REASON_CHARS_MAX]
    if isinstance(error, TimeoutError):
        return f"it did not answer within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(error, ValidationError):
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors(include_url=False, include_input=False)[:3])
        return shorten(f"it sent what the protocol does not allow: {'; '.join(faults)}", REASON_CHARS_MAX)
    text = shorten(" ".join(clean(str(error)).split()), REASON_CHARS_MAX)
    if isinstance(error, httpx2.HTTPError):
        return f"it cannot be reached: {text or type(error).__name__}"
    return text or type(error).__name__


class _Bounded(httpx2.AsyncBaseTransport):
    """Lets no whole answer grow past the limit, as sent or as unpacked. Streams of events have a limit per event, which the library keeps, and are not
    unpacked."""

    def __init__(self) -> None:
        self._inner = httpx2.AsyncHTTPTransport()
        self.refused = ""
        """Status of the last answer, if it was an error: the library only tells that there was one."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        self.refused = f"{response.status_code} {response.reason_phrase}".strip() if response.is_error else ""
        if "text/event-stream" not in response.headers.get("content-type", ""):
            bound(response, bytes_max=MESSAGE_BYTES_MAX, broken=lambda what: httpx2.ReadError(f"it sent {what}"))
        elif packing := response.headers.pop("content-encoding", ""):
            await response.aclose()
            raise httpx2.ReadError(f"it sent a stream of events packed as {shorten(clean(packing), 40)!r}, which was not asked for")
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()
